"""HAPPO: Heterogeneous-Agent Proximal Policy Optimisation."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, get_args

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule, update_learning_rate

from sb3_happo.common.buffers import MultiAgentRolloutBuffer, joint_minibatches
from sb3_happo.common.gradients import add_up, pieces
from sb3_happo.common.hyperparameters import (
    COUNT,
    NOT_NEGATIVE,
    POSITIVE,
    Setting,
    optional,
    scheduled,
)
from sb3_happo.common.on_policy_algorithm import MultiAgentOnPolicyAlgorithm
from sb3_happo.common.policies import AgentPolicy
from sb3_happo.common.trust_region import flat_gradient
from sb3_happo.common.type_aliases import ActorBatch, AgentOrder, AgentOrderFn, AgentOrderName


class HAPPO(MultiAgentOnPolicyAlgorithm):
    """
    Heterogeneous-Agent Proximal Policy Optimisation (Algorithm 3 of Kuba et al. 2021, "Trust Region Policy Optimisation in
    Multi-Agent Reinforcement Learning", https://arxiv.org/abs/2109.11251; Zhong et al. 2024, "Heterogeneous-Agent
    Reinforcement Learning", JMLR 25).

    The agents are updated one after the other. Each maximises PPO's clipped objective of ``M = factor * A``: the advantage of
    the joint action, weighted by the product of the probability ratios of the agents updated before it. By the paper's
    advantage decomposition lemma the team's return then improves with every agent's step, without shared parameters.

    Knowingly different from the paper: the advantages are normalised (``normalize_advantage``), the policies get an entropy
    bonus (``ent_coef``), an agent makes several passes over minibatches, as PPO does, and an agent that is dead or not on
    turn at a step has no part in it. From HARL: clipping ``ratio * M`` instead of ``factor * min(...)``, which is the same
    because the factor is positive; the ratio is that of the whole action (the product over its dimensions); names and
    meanings of the hyperparameters are SB3's. With one agent, and the same settings, the numbers are those of SB3's ``PPO``.

    :param policy: "MlpPolicy" ("CnnPolicy" and "MultiInputPolicy" mean the same: each agent's network follows its observation
        space), "MlpLstmPolicy" or "MlpGruPolicy" for actors and a critic with memory, a subclass of ``JointPolicy``, or the
        environment itself: ``HAPPO(env)``
    :param env: A PettingZoo or Gymnasium environment, a ``JointEnv``, an id such as "mpe2/simple_spread_v3", or a ``VecEnv``
        of these (see ``make_joint_vec_env``)
    :param learning_rate: Of the actors, > 0, constant or a schedule of the remaining progress (from 1 to 0); single agents
        may have their own (``policy_kwargs["agent_kwargs"][agent]["learning_rate"]``)
    :param n_steps: Steps per environment and update; an update learns from ``n_steps * n_envs`` joint transitions
    :param batch_size: Minibatch of the actors, in joint transitions; None for all of them at once
    :param n_epochs: Passes over the rollout that each agent makes
    :param gamma: Discount factor, in [0, 1]
    :param gae_lambda: Trade-off of bias against variance in generalised advantage estimation, in [0, 1]
    :param clip_range: How far from 1 an agent's ratio may profit, > 0, constant or a schedule
    :param clip_range_vf: How far a value may move in one update, > 0, constant or a schedule, in the units in which the critic
        predicts (standard deviations of the return where ``normalize_value``); None for no limit
    :param normalize_advantage: Normalise advantages to mean 0 and standard deviation 1: True or "minibatch" within each
        minibatch, as SB3 does; "rollout" once per update, as HARL does; False not at all. Only steps at which the agent
        was active count
    :param ent_coef: Weight of the entropy bonus, >= 0, constant or a schedule: one that falls keeps the agents undecided until
        they have seen more, so that they do not settle on the first division of labour that works
    :param vf_coef: Weight of the value loss, >= 0; actors and critic have optimisers of their own, so with Adam it matters
        only for the gradient clipping
    :param max_grad_norm: Largest norm of the gradient, of each actor and of the critic apart, > 0; None for no clipping
    :param target_kl: Stop an agent's passes when its approximate KL divergence exceeds 1.5 times this (the critic goes on,
        where SB3's ``PPO`` stops both); None for never
    :param critic_learning_rate: Constant or a schedule; None for the actors' ``learning_rate``
    :param critic_n_epochs: Passes of the critic; None for the actors' ``n_epochs``
    :param critic_batch_size: Minibatch of the critic; None for the actors' ``batch_size``
    :param normalize_value: Let the critic predict returns normalised by their running mean and standard deviation
    :param huber_delta: Where the value loss turns from quadratic to linear (Huber loss), in the critic's units; None for the
        mean squared error
    :param use_clipped_value_loss: With ``clip_range_vf``, take the larger of the clipped and the unclipped loss, as HARL and
        MAPPO do; otherwise the clipped one alone, as SB3 does
    :param chunk_length: With a recurrent policy, through how many steps gradients flow back (truncated backpropagation through
        time), at least 1; None for the whole rollout. What is learned in one piece must lie within one chunk: a cue that
        matters k steps later wants more than k. Longer chunks take more time
    :param agent_order: In which order the agents are updated: "random" (a new permutation every update, as in the paper),
        "fixed" (the environment's), "reverse", "greedy" (the agent whose surrogate advantage can rise fastest first, after
        "Order Matters", Wang et al. 2023, https://arxiv.org/abs/2302.06205, which ranks agents by advantages of their own), or
        a callable from the tuple of agents to a sequence of them
    :param rollout_buffer_class: A subclass of ``MultiAgentRolloutBuffer``
    :param rollout_buffer_kwargs: Its further keyword arguments
    :param stats_window_size: Episodes over which the logged return and length are averaged
    :param tensorboard_log: Folder for TensorBoard; None for no log
    :param policy_kwargs: Of the networks: ``net_arch``, ``activation_fn``, ``ortho_init``, ``output_gain``,
        ``input_layer_norm``, ``layer_norm``, ``log_std_init``, ``log_std_form``, ``rescale_actions``, features extractors,
        optimisers, ``lstm_hidden_size``, ``n_lstm_layers``, ``enable_critic_lstm`` (see
        :class:`~sb3_happo.common.policies.AgentPolicy`), and overrides in ``agent_kwargs`` and ``critic_kwargs`` (see
        :class:`~sb3_happo.common.policies.JointPolicy`)
    :param verbose: 0 for no output, 1 for training information
    :param seed: Seed of everything random
    :param device: "auto", "cpu", "cuda", ...
    :param _init_setup_model: Whether to build the networks now
    :raises ValueError: If something in the environment or the settings cannot work, before any training
    """

    settings: ClassVar[dict[str, Setting]] = {
        "n_epochs": COUNT,
        **MultiAgentOnPolicyAlgorithm.settings,
        "clip_range": scheduled(POSITIVE),
        "ent_coef": scheduled(NOT_NEGATIVE),
        "target_kl": optional(POSITIVE),
    }

    def __init__(
        self,
        policy: Any,
        env: Any = None,
        learning_rate: float | Schedule = 5e-4,
        n_steps: int = 1024,
        batch_size: int | None = 1024,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.2,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool | str = True,
        ent_coef: float | Schedule = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float | None = 0.5,
        target_kl: float | None = None,
        critic_learning_rate: float | Schedule | None = None,
        critic_n_epochs: int | None = None,
        critic_batch_size: int | None = None,
        normalize_value: bool = True,
        huber_delta: float | None = None,
        use_clipped_value_loss: bool = False,
        chunk_length: int | None = 32,
        agent_order: AgentOrder = "random",
        rollout_buffer_class: type[MultiAgentRolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            batch_size=batch_size,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            clip_range_vf=clip_range_vf,
            use_clipped_value_loss=use_clipped_value_loss,
            critic_learning_rate=critic_learning_rate,
            critic_n_epochs=critic_n_epochs,
            critic_batch_size=critic_batch_size,
            normalize_value=normalize_value,
            huber_delta=huber_delta,
            chunk_length=chunk_length,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
        )
        self.n_epochs = n_epochs
        self.clip_range = clip_range
        self.normalize_advantage = normalize_advantage
        self.target_kl = target_kl
        self.agent_order = agent_order
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        if self.normalize_advantage not in (True, False, "minibatch", "rollout"):
            raise ValueError(
                f"normalize_advantage must be a bool, 'minibatch' or 'rollout', not {self.normalize_advantage!r}"
            )
        if not callable(self.agent_order) and self.agent_order not in get_args(AgentOrderName):
            raise ValueError(
                f"agent_order must be one of {get_args(AgentOrderName)} or a callable, not {self.agent_order!r}"
            )
        super()._setup_model()
        self.clip_range = FloatSchedule(self.clip_range)
        if callable(self.agent_order):
            self._own_order(
                self.agent_order
            )  # once in vain, so that a wrong one is refused before any training

    def _own_order(self, agent_order: AgentOrderFn) -> list[str]:
        order = list(agent_order(self.agents))
        if sorted(order) != sorted(self.agents):
            raise ValueError(
                f"agent_order must return every agent once; it returned {order} for {list(self.agents)}"
            )
        return order

    def train(self) -> None:
        """One update of the team from the rollout: lines 7 to 14 of the paper's Algorithm 3."""
        self.policy.set_training_mode(True)
        # M^{i_1} = A: before the first agent the factor is 1, and it multiplies the joint advantage
        factor = th.ones(self.rollout_buffer.n_rows, device=self.device)
        for agents in self._update_order(factor):  # one at a time
            data = {agent: self.rollout_buffer.agent_data(agent, factor) for agent in agents}
            self._update_actors(data)
            factor.copy_(self._next_factor(data, factor))  # in place: a greedy order looks at it
        self._update_critic()
        self._n_updates += 1
        self._log_update(factor)

    def _update_order(self, factor: th.Tensor) -> Iterator[tuple[str, ...]]:
        """
        :param factor: Of the agents updated so far, ``(n_rows,)``, as it stands whenever the next one is asked for
        :return: Who is updated next, until everybody was: one agent at a time (line 8 of Algorithm 3)
        """
        if self.agent_order == "greedy":
            remaining = list(self.agents)
            while remaining:
                steepest = max(remaining, key=lambda agent: self._steepness(agent, factor))
                remaining.remove(steepest)
                yield (steepest,)
            return
        order: Sequence[str] = self.agents
        if callable(self.agent_order):
            order = self._own_order(self.agent_order)
        elif self.agent_order == "random":
            order = [self.agents[index] for index in np.random.permutation(len(self.agents))]
        elif self.agent_order == "reverse":
            order = self.agents[::-1]
        yield from ((agent,) for agent in order)

    def _steepness(self, agent: str, factor: th.Tensor) -> float:
        """
        How fast the agent's surrogate advantage rises: the norm of the gradient of its objective at the policy of the rollout.

        The surrogate advantages themselves, ``mean(ratio * factor * A)``, cannot rank agents that share one advantage: before
        its own update every agent's ratio is 1.

        :param agent: An agent that was not updated yet
        :param factor: Of the agents updated so far, ``(n_rows,)``
        :return: >= 0
        """
        data = self.rollout_buffer.agent_data(agent, factor)
        if not len(data.advantages):
            return 0.0
        if self.normalize_advantage:
            data = normalize_advantages(data)
        policy = self.policies[agent]
        log_prob, _ = policy.evaluate_batch(data)
        params = [param for param in policy.parameters() if param.requires_grad]
        return flat_gradient(self._policy_loss(log_prob, data), params).norm().item()

    def _update_actors(self, data: dict[str, ActorBatch]) -> None:
        """
        Maximise the clipped objective by gradient steps (line 11 of Algorithm 3).

        :param data: Per agent that is updated, its rows of the rollout with the factor of the agents before; several agents
            are updated at once only if they share parameters
        """
        policies = {agent: self.policies[agent] for agent in data}
        leader, policy = next(iter(policies.items()))
        rate = self.policy.lr_schedules.get(leader, self.lr_schedule)(
            self._current_progress_remaining
        )
        update_learning_rate(policy.optimizer, rate)
        params = list(policy.parameters())
        ent_coef = self._ent_coef(self._current_progress_remaining)
        if self.normalize_advantage == "rollout":
            data = {agent: normalize_advantages(rows) for agent, rows in data.items()}
        logs: list[th.Tensor] = []
        for _ in range(self.n_epochs):
            for batch in joint_minibatches(data, self.batch_size):
                if self.normalize_advantage in (True, "minibatch"):
                    batch = {agent: normalize_advantages(rows) for agent, rows in batch.items()}
                n_rows = sum(len(rows.advantages) for rows in batch.values())

                def contribution(
                    part: tuple[str, ActorBatch], n_rows: int = n_rows
                ) -> tuple[th.Tensor, th.Tensor]:
                    agent, rows = part
                    terms = self._actor_terms(policies[agent], rows) * (
                        len(rows.advantages) / n_rows
                    )
                    return terms[0] - ent_coef * terms[1], terms

                parts = [(agent, piece) for agent, rows in batch.items() for piece in pieces(rows)]
                logs.append(add_up(contribution, parts, params, self._executor))
                if self.target_kl is not None and logs[-1][2] > 1.5 * self.target_kl:
                    self._log_actors(list(data), logs)
                    return

                th.nn.utils.clip_grad_norm_(params, self.max_grad_norm)
                policy.optimizer.step()
        self._log_actors(list(data), logs)

    def _actor_terms(self, policy: AgentPolicy, batch: ActorBatch) -> th.Tensor:
        """
        :param policy: An agent's policy
        :param batch: A minibatch of its rows
        :return: Policy loss, entropy, approximate KL divergence from the policy at collection, share of clipped samples,
            ``(4,)``
        """
        log_prob, entropy = policy.evaluate_batch(batch)
        policy_loss = self._policy_loss(log_prob, batch)
        with th.no_grad():
            # Schulman's estimate of the KL divergence, low in variance (http://joschu.net/blog/kl-approx.html)
            log_ratio = log_prob - batch.old_log_prob
            change = log_ratio.exp() - 1
            approx_kl = (change - log_ratio).mean()
            clip_fraction = (change.abs() > self._clip_range()).float().mean()
        return th.stack([policy_loss, entropy.mean(), approx_kl, clip_fraction])

    def _policy_loss(self, log_prob: th.Tensor, batch: ActorBatch) -> th.Tensor:
        """
        PPO's clipped objective of ``M = factor * A``, negated (line 11 of Algorithm 3).

        :param log_prob: Of the actions now, ``(batch,)``
        :param batch: With their log-probabilities at collection, (normalised) advantages and factor
        :return: Scalar
        """
        objective = batch.factor * batch.advantages
        ratio = th.exp(log_prob - batch.old_log_prob)
        clip_range = self._clip_range()
        return -th.min(
            ratio * objective, ratio.clamp(1 - clip_range, 1 + clip_range) * objective
        ).mean()

    def _next_factor(self, data: dict[str, ActorBatch], factor: th.Tensor) -> th.Tensor:
        """
        Multiply the factor by the new ratio of the agents just updated, at the steps at which they were active
        (line 12 of Algorithm 3).

        :param data: Their rows of the rollout
        :param factor: Of the agents before them, ``(n_rows,)``
        :return: Of the agents up to and with them, ``(n_rows,)``
        """
        factor = factor.clone()
        for agent, batch in data.items():
            if not len(batch.advantages):
                continue  # never active in this rollout, and PyTorch's distributions refuse an empty batch
            policy = self.policies[agent]
            policy.set_training_mode(False)  # dropout has no part in who changed what
            with th.no_grad():
                log_prob, _ = policy.evaluate_batch(batch)
            policy.set_training_mode(True)
            ratio = th.exp(log_prob - batch.old_log_prob)
            factor[slice(None) if batch.rows is None else batch.rows] *= ratio
        return factor

    def _ent_coef(self, progress: float) -> float:
        # A plain number stays one, for callbacks that set it
        return self.ent_coef(progress) if callable(self.ent_coef) else self.ent_coef

    def _clip_range(self) -> float:
        return self.clip_range(self._current_progress_remaining)  # type: ignore[operator]

    def _log_actors(self, agents: list[str], logs: list[th.Tensor]) -> None:
        means = th.stack(logs).mean(dim=0).tolist() if logs else [float("nan")] * 4
        for agent in agents:
            name = self._log_names[agent]
            for key, value in zip(
                ("policy_loss", "entropy", "approx_kl", "clip_fraction"), means, strict=True
            ):
                self.logger.record(f"{name}/{key}", value)
            log_std = self.policies[agent].effective_log_std()
            if log_std is not None:
                self.logger.record(f"{name}/std", log_std.exp().mean().item())

    def _log_update(self, factor: th.Tensor) -> None:
        self.logger.record("train/factor_mean", factor.mean().item())
        self.logger.record("train/factor_std", factor.std().item())
        # Which share of the samples would carry as much information if all had the same weight (Kish)
        self.logger.record(
            "train/factor_ess", (factor.sum() ** 2 / (factor**2).sum() / len(factor)).item()
        )
        self.logger.record(
            "train/learning_rate", self.lr_schedule(self._current_progress_remaining)
        )
        self.logger.record("train/clip_range", self._clip_range())
        if callable(self.ent_coef):
            self.logger.record("train/ent_coef", self._ent_coef(self._current_progress_remaining))
        if self.clip_range_vf is not None:
            self.logger.record(
                "train/clip_range_vf", self.clip_range_vf(self._current_progress_remaining)
            )  # type: ignore[operator]
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")


def normalize_advantages(batch: ActorBatch) -> ActorBatch:
    """
    :param batch: Some of an agent's rows
    :return: The same with advantages of mean 0 and standard deviation 1; a single row as it is
    """
    advantages = batch.advantages
    if len(advantages) < 2:
        return batch
    return batch._replace(advantages=(advantages - advantages.mean()) / (advantages.std() + 1e-8))
