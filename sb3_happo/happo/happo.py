"""HAPPO: Heterogeneous-Agent Proximal Policy Optimisation."""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule

from sb3_happo.common.agent_order import (
    GREEDY_ORDERS,
    check_agent_order,
    fixed_order,
    greedy_order,
    steepness,
)
from sb3_happo.common.agent_policy import AgentPolicy
from sb3_happo.common.communicating_update import update_communicating_team
from sb3_happo.common.correlated_noise import ExplorationNoise
from sb3_happo.common.distributions import unvalidated
from sb3_happo.common.factor import (
    leaves_little,
    multiply_ratios,
    warn_of_idle_agents,
)
from sb3_happo.common.finite import check_steps
from sb3_happo.common.formulas import (
    approx_kl,
    clip_fraction,
    clipped_policy_loss,
    normalize,
)
from sb3_happo.common.gradient_step import GradientStep, gradient_step
from sb3_happo.common.hyperparameters import (
    COUNT,
    NOT_NEGATIVE,
    POSITIVE,
    Setting,
    optional,
    scheduled,
)
from sb3_happo.common.minibatches import join_agents, joint_minibatches
from sb3_happo.common.on_policy_algorithm import MultiAgentOnPolicyAlgorithm
from sb3_happo.common.rollout_buffer import MultiAgentRolloutBuffer
from sb3_happo.common.type_aliases import ActorBatch, AgentOrder
from sb3_happo.common.update_log import log_actors, log_update


class HAPPO(MultiAgentOnPolicyAlgorithm):
    """
    Heterogeneous-Agent Proximal Policy Optimisation (Algorithm 3 of Kuba et al. 2021, "Trust Region
    Policy Optimisation in Multi-Agent Reinforcement Learning", https://arxiv.org/abs/2109.11251;
    Zhong et al. 2024, "Heterogeneous-Agent Reinforcement Learning", JMLR 25).

    The agents are updated one by one. Each maximises PPO's clipped objective of
    ``M = factor * A``: the advantage of the joint action, weighted by the product of the
    probability ratios of the agents updated before. By the paper's advantage decomposition lemma
    the return of the team improves with every agent's step, without shared parameters.

    Differences from the paper: normalised advantages (``normalize_advantage``), an entropy bonus
    (``ent_coef``), and several passes over minibatches, as in PPO; steps at which an agent is dead
    or not on turn enter neither its loss nor its ratio. Differences from HARL: dead agents have no
    part in the factor, time limits are bootstrapped, the value normaliser is updated once per
    update, advantages are divided by the sample deviation of each minibatch, and the entropy of
    continuous actions is a mean; see ``docs/harl.md``. One agent has the numbers of SB3's ``PPO``.

    :param policy: "MlpPolicy" ("CnnPolicy" and "MultiInputPolicy" mean the same: each agent's
        network follows its observation space), "MlpLstmPolicy" or "MlpGruPolicy" for recurrent
        actors and critic, a subclass of ``JointPolicy``, or the environment: ``HAPPO(env)``
    :param env: PettingZoo or Gymnasium environment, ``JointEnv``, id such as
        "mpe2/simple_spread_v3", or ``VecEnv`` of these (see ``make_joint_vec_env``)
    :param learning_rate: Learning rate of the actors, >= 0, constant or a schedule of the remaining
        progress (from 1 to 0). For single agents:
        ``policy_kwargs["agent_kwargs"][agent]["learning_rate"]``
    :param n_steps: Steps per environment and update; a rollout has ``n_steps * n_envs`` joint
        transitions
    :param batch_size: Minibatch of the actors, in joint transitions; None for the whole rollout
    :param n_epochs: Passes of each agent over the rollout
    :param gamma: Discount factor, in [0, 1]
    :param gae_lambda: Trade-off of bias against variance in generalised advantage estimation, in
        [0, 1]
    :param clip_range: Largest distance of an agent's ratio from 1 that still increases the
        objective, > 0, constant or a schedule
    :param clip_range_vf: Largest change of a value per update, > 0, constant or a schedule, in the
        critic's units (standard deviations of the return with ``normalize_value``); None for no
        limit
    :param normalize_advantage: Normalisation of the advantages to mean 0 and standard deviation 1:
        True or "minibatch" within each minibatch, as in SB3; "rollout" once per update, as in HARL;
        False for none. Only steps at which the agent was active count
    :param ent_coef: Weight of the entropy bonus, >= 0, constant or a schedule. A falling schedule
        keeps the policies stochastic at first, against early convergence to a poor joint policy
    :param vf_coef: Weight of the value loss, >= 0. Actors and critic have their own optimisers, so
        with Adam it has an effect on the clipping of gradients only
    :param max_grad_norm: Largest norm of the gradient, of each actor and of the critic apart, > 0;
        None for no clipping
    :param target_kl: Limit of the approximate KL divergence: an agent's passes end where it exceeds
        1.5 times this value (those of the critic continue, while SB3's ``PPO`` ends both); None for
        no limit
    :param critic_learning_rate: Learning rate of the critic, >= 0, constant or a schedule; None for
        ``learning_rate``
    :param critic_n_epochs: Passes of the critic; None for ``n_epochs``
    :param critic_batch_size: Minibatch of the critic; None for ``batch_size``
    :param normalize_value: Normalisation of returns by running statistics, and bounds of values
    :param huber_delta: Error at which the value loss turns from quadratic to linear (Huber loss),
        in the critic's units; None for the squared error
    :param use_clipped_value_loss: With ``clip_range_vf``, the larger of the clipped and the
        unclipped loss, as in HARL and MAPPO; otherwise the clipped one, as in SB3
    :param chunk_length: Steps of backpropagation through time of recurrent policies, >= 1; None for
        the whole rollout. A dependency over k steps needs more than k. Longer chunks take more time
    :param agent_order: Order of the updates: "random" (a new permutation per update, as in the
        paper), "fixed" (the environment's), "reverse", "greedy" (the agent with the steepest
        surrogate advantage first), "semi_greedy" (every second agent at random, after Wang et al.
        2023, https://arxiv.org/abs/2302.06205), or a callable from the tuple of agents to a list
    :param use_sde: Generalised state-dependent exploration (gSDE) of the continuous actions, as in
        SB3, with matrices for each agent and environment; see ``docs/exploration.md``
    :param sde_sample_freq: Steps between two draws of these matrices; -1 for one per rollout
    :param exploration_noise: Correlation of the Gaussian draws over time: "ou", "pink", the
        exponent of coloured noise in [0, 2], one of the classes of
        :mod:`~sb3_happo.common.correlated_noise`, or ``{agent: one of these}``; None for
        independent draws
    :param action_noise: Not supported: noise that is added to actions falsifies the ratios
    :param target_critic_tau: Share of the critic that a target critic takes over at each update, in
        (0, 1]; the values of the rollout, and so the advantages, are the target critic's. None for
        none
    :param rollout_buffer_class: Subclass of ``MultiAgentRolloutBuffer``
    :param rollout_buffer_kwargs: Further keyword arguments of the buffer
    :param stats_window_size: Episodes over which the logged return and length are averaged
    :param tensorboard_log: Folder for TensorBoard; None for no log
    :param policy_kwargs: Keyword arguments of the policies, see
        :class:`~sb3_happo.common.networks.NetworkOptions`,
        :class:`~sb3_happo.common.agent_policy.AgentPolicy` and, for ``agent_kwargs`` and
        ``critic_kwargs``, :class:`~sb3_happo.common.joint_policy.JointPolicy`
    :param verbose: 0 for no output, 1 for training information
    :param seed: Seed for the pseudo-random generators
    :param device: "auto", "cpu", "cuda", ...
    :param _init_setup_model: Whether to build the networks in the constructor
    :raises ValueError: Before any training, if the environment or a setting is not supported
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
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        exploration_noise: ExplorationNoise = None,
        action_noise: None = None,
        target_critic_tau: float | None = None,
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
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            exploration_noise=exploration_noise,
            action_noise=action_noise,
            target_critic_tau=target_critic_tau,
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
                "normalize_advantage must be a bool, 'minibatch' or 'rollout', "
                f"not {self.normalize_advantage!r}"
            )
        super()._setup_model()
        self.clip_range = FloatSchedule(self.clip_range)
        # Calls a user's function once: a wrong order is refused before any training
        check_agent_order(self.agent_order, self.agents)

    def train(self) -> None:
        """One update of the team from a rollout: lines 6 to 14 of the paper's Algorithm 3."""
        self.policy.set_training_mode(True)
        # Lines 4 to 7 were `collect_rollouts`, with the joint advantage by GAE
        # Line 9: M is the advantage before the first agent: it is factor * advantage, with factor 1
        factor = th.ones(self.rollout_buffer.n_rows, device=self.device)
        idle: list[str] = []
        talk = self.policy.communicates
        order = update_communicating_team(self) if talk else self._update_order(factor)
        # Lines 8 and 10: for each agent, in the order of a random permutation
        for agents in order:
            idle += agents if leaves_little(factor) else ()
            data = {agent: self.rollout_buffer.agent_data(agent, factor) for agent in agents}
            # Lines 6 and 11: maximise PPO's clipped objective of M over minibatches
            self._update_actors(data)
            # Line 12: multiply M by the new ratio, in place: a greedy order reads the tensor
            factor.copy_(self._next_factor(data, factor))
        # Line 14: fit the critic to the returns
        self._update_critic()
        self._n_updates += 1
        log_update(self, factor)
        warn_of_idle_agents(self, idle)

    # ---------------------------------------------------------------- order of the agents

    def _update_order(self, factor: th.Tensor) -> Iterator[tuple[str, ...]]:
        """
        Order of the updates (line 8 of Algorithm 3).

        :param factor: Factor of the agents updated so far, ``(n_rows,)``, which changes between two
            iterations
        :return: Iterator over the agents to update next, one at a time
        """
        every = GREEDY_ORDERS.get(str(self.agent_order))
        if every is not None:
            order = greedy_order(self.agents, lambda agent: self._steepness(agent, factor), every)
        else:
            order = iter(fixed_order(self.agent_order, self.agents))
        for agent in order:
            yield (agent,)

    def _steepness(self, agent: str, factor: th.Tensor) -> float:
        """Steepness of an agent's objective at the policy of the rollout."""
        data = self.rollout_buffer.agent_data(agent, factor)
        if self.normalize_advantage:
            data = normalize_advantages(data)
        return steepness(self.policies[agent], data, self._policy_loss)

    # ---------------------------------------------------------------- actors

    @unvalidated()  # PyTorch's own error about NaN names no agent
    def _update_actors(self, data: dict[str, ActorBatch]) -> None:
        """
        Maximise the clipped objective by gradient steps (line 11 of Algorithm 3).

        :param data: Samples of the agents to update, with the factor of the agents before; those
            of several agents only if they share parameters
        """
        leader = next(iter(data))
        self._set_actor_rate(leader)
        ent_coef = self._ent_coef(self._current_progress_remaining)
        if self.normalize_advantage == "rollout":
            data = {agent: normalize_advantages(rows) for agent, rows in data.items()}
        owner = f"agent {', '.join(map(repr, data))}"
        steps: list[GradientStep] = []
        for batch in joint_minibatches(data, self.batch_size, self.n_epochs):
            if self.normalize_advantage in (True, "minibatch"):
                batch = normalize_each(batch)
            # One batch for the network: a pass per agent would take ten times as long in a crowd
            one_hots = [self.policies[agent].one_hot for agent in batch]
            joint = join_agents(list(batch.values()), one_hots)
            n_rows = len(joint.advantages)

            def loss_of(
                agent: str, rows: ActorBatch, n_rows: int = n_rows
            ) -> tuple[th.Tensor, th.Tensor]:
                terms = self._actor_terms(self.policies[agent], rows)
                terms = terms * (len(rows.advantages) / n_rows)
                return terms[0] - ent_coef * terms[1], terms

            step = gradient_step(
                loss_of,
                {next(iter(batch)): joint},
                self.policies[leader].optimizer,
                self.max_grad_norm,
                owner,
                self._executor,
                self._within_target_kl,
            )
            steps.append(step)
            if not step.accepted:
                break
        check_steps(self, owner, steps)
        log_actors(self, list(data), [step.figures for step in steps])

    def _within_target_kl(self, figures: th.Tensor) -> bool:
        """False if the approximate KL divergence among the figures is too large for a step."""
        return self.target_kl is None or not bool(figures[2] > 1.5 * self.target_kl)

    def _actor_terms(self, policy: AgentPolicy, batch: ActorBatch) -> th.Tensor:
        """
        :param policy: Policy of an agent
        :param batch: Minibatch of its samples
        :return: Policy loss, entropy, approximate KL divergence from the policy at collection, and
            share of clipped samples, ``(4,)``
        """
        log_prob, entropy = policy.evaluate_batch(batch)
        policy_loss = self._policy_loss(log_prob, batch)
        with th.no_grad():
            kl = approx_kl(log_prob, batch.old_log_prob)
            clipped = clip_fraction(log_prob, batch.old_log_prob, self._clip_range())
        return th.stack([policy_loss, entropy.mean(), kl, clipped])

    def _policy_loss(self, log_prob: th.Tensor, batch: ActorBatch) -> th.Tensor:
        """
        Hook: loss of the policy. Here PPO's clipped objective of ``M = factor * A``, negated.

        :param log_prob: Log-probabilities of the actions under the present policy, ``(batch,)``
        :param batch: Minibatch with (normalised) advantages and factor
        :return: Loss, a scalar
        """
        return clipped_policy_loss(
            log_prob, batch.old_log_prob, batch.advantages, batch.factor, self._clip_range()
        )

    def _next_factor(self, data: dict[str, ActorBatch], factor: th.Tensor) -> th.Tensor:
        """
        Hook: factor after an update, multiplied by the new ratios of the agents just updated at the
        steps at which they were active (line 12 of Algorithm 3).

        :param data: Samples of these agents
        :param factor: Factor of the agents before them, ``(n_rows,)``
        :return: Factor of the agents up to and with them, ``(n_rows,)``
        """
        return multiply_ratios(self, self.policies, data, factor)

    # ---------------------------------------------------------------- schedules

    def _ent_coef(self, progress: float) -> float:
        # A number stays a number, for callbacks that set it
        return self.ent_coef(progress) if callable(self.ent_coef) else self.ent_coef

    def _clip_range(self) -> float:
        assert callable(self.clip_range)
        return self.clip_range(self._current_progress_remaining)


def normalize_advantages(batch: ActorBatch) -> ActorBatch:
    """
    :param batch: Samples of an agent
    :return: Samples with advantages of mean 0 and standard deviation 1; a single row is unchanged
    """
    return batch._replace(advantages=normalize(batch.advantages))


def normalize_each(batch: dict[str, ActorBatch]) -> dict[str, ActorBatch]:
    """
    Normalise the advantages of each agent by itself.

    :param batch: Samples by agent
    :return: Samples as of :func:`normalize_advantages`, found at once if the agents have as many
    """
    sizes = {len(rows.advantages) for rows in batch.values()}
    if len(batch) == 1 or len(sizes) > 1 or min(sizes) < 2:
        return {agent: normalize_advantages(rows) for agent, rows in batch.items()}
    joint = th.stack([rows.advantages for rows in batch.values()])  # (n_agents, batch)
    means, deviations = joint.mean(dim=1, keepdim=True), joint.std(dim=1, keepdim=True)
    normal = ((joint - means) / (deviations + 1e-8)).unbind()
    pairs = zip(batch.items(), normal, strict=True)
    return {agent: rows._replace(advantages=advantages) for (agent, rows), advantages in pairs}
