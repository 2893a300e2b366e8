"""Base of the value-based algorithms: epsilon-greedy teams, and targets by the best actions."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import LinearSchedule
from torch.nn import functional as F

from sb3_happo.common.distributions import action_leaves
from sb3_happo.common.hyperparameters import COUNT, SHARE, Setting
from sb3_happo.common.off_policy_algorithm import MultiAgentOffPolicyAlgorithm
from sb3_happo.common.off_policy_learning import mean_over
from sb3_happo.common.replay_buffer import JointSamples
from sb3_happo.common.value_policy import IndependentValuePolicy
from sb3_happo.suggestions import check_names

ValueLoss = Literal["huber", "mse"]
_LOSSES: dict[str, Any] = {"huber": F.smooth_l1_loss, "mse": F.mse_loss}


class ValueBasedAlgorithm(MultiAgentOffPolicyAlgorithm):
    """
    Base of the value-based algorithms. Agents take the legal actions of the highest values, or at
    random, each in each environment by its own draw. Defaults are those of SB3's ``DQN``.

    Several choices of one agent (MultiDiscrete, MultiBinary, Dict and Tuple) have values that are
    added. ``predict`` does not explore.

    :param policy: Name of a policy, "MlpPolicy", "CnnPolicy" or "MultiInputPolicy", or a class
    :param env: Environment of any form that ``HAPPO`` takes, whose actions are not continuous
    :param learning_rate: Learning rate, >= 0, constant or a schedule
    :param buffer_size: Number of transitions in the replay buffer, of all environments together
    :param learning_starts: Number of timesteps of random actions before the first update
    :param batch_size: Transitions per gradient step
    :param tau: Weight of the networks in each update of their target networks, in [0, 1]
    :param gamma: Discount factor
    :param train_freq: Steps of each environment between two updates
    :param gradient_steps: Gradient steps per update; -1 for as many as transitions were collected
    :param target_update_interval: Timesteps between two updates of the target networks
    :param exploration_fraction: Share of the training in which the exploration rate falls
    :param exploration_initial_eps: Probability of a random action at the start
    :param exploration_final_eps: Probability of a random action at the end
    :param max_grad_norm: Largest norm of a gradient
    :param double_q: Choice of the next actions by the networks instead of the target networks
    :param value_loss: "huber" (DQN's) or "mse". Only "mse" makes values the means of returns: with
        large errors Huber's loss is nearer to their medians
    :param hysteretic: Weight of errors that lower a value, in [0, 1]; 1 for plain Q-learning
    :param kwargs: Keyword arguments of ``MultiAgentOffPolicyAlgorithm``, without ``action_noise``
    :raises TypeError: If an action space has a continuous part
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": IndependentValuePolicy,
        "CnnPolicy": IndependentValuePolicy,
        "MultiInputPolicy": IndependentValuePolicy,
    }
    settings: ClassVar[dict[str, Setting]] = MultiAgentOffPolicyAlgorithm.settings | {
        "target_update_interval": COUNT,
        "exploration_fraction": Setting("in (0, 1]", lambda value: 0 < value <= 1),
        "exploration_initial_eps": SHARE,
        "exploration_final_eps": SHARE,
        "hysteretic": SHARE,
    }
    policy: IndependentValuePolicy

    def __init__(
        self,
        policy: Any,
        env: Any = None,
        learning_rate: float | Schedule = 1e-4,
        buffer_size: int = 1_000_000,
        learning_starts: int = 100,
        batch_size: int = 32,
        tau: float = 1.0,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 4,
        gradient_steps: int = 1,
        *,
        target_update_interval: int = 10000,
        exploration_fraction: float = 0.1,
        exploration_initial_eps: float = 1.0,
        exploration_final_eps: float = 0.05,
        max_grad_norm: float | None = 10,
        double_q: bool = False,
        value_loss: ValueLoss = "huber",
        hysteretic: float = 1.0,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("action_noise") is not None:
            raise ValueError(
                f"action_noise: {type(self).__name__} has no continuous actions for noise; set "
                "exploration_initial_eps and exploration_final_eps instead."
            )
        self.target_update_interval = target_update_interval
        self.exploration_fraction = exploration_fraction
        self.exploration_initial_eps = exploration_initial_eps
        self.exploration_final_eps = exploration_final_eps
        self.double_q = double_q
        self.value_loss = value_loss
        self.hysteretic = hysteretic
        #: Probability of a random action at the next step; 0 before the first, as in DQN
        self.exploration_rate = 0.0
        self._n_calls = 0
        super().__init__(
            policy,
            env,
            learning_rate,
            buffer_size,
            learning_starts,
            batch_size,
            tau,
            gamma,
            train_freq,
            gradient_steps,
            max_grad_norm=max_grad_norm,
            **kwargs,
        )

    def _setup_model(self) -> None:
        check_names([self.value_loss], _LOSSES, "`value_loss`")
        self._check_actions()
        super()._setup_model()
        self.exploration_schedule = LinearSchedule(
            self.exploration_initial_eps, self.exploration_final_eps, self.exploration_fraction
        )

    def _check_actions(self) -> None:
        """Refuse continuous actions."""
        assert isinstance(self.action_space, spaces.Dict)
        for agent, space in self.action_space.spaces.items():
            for leaf in action_leaves(space):
                if isinstance(leaf.space, spaces.Box):
                    raise TypeError(
                        f"{type(self).__name__} needs one value for each option, and agent "
                        f"{agent!r} has the continuous actions {leaf.space}; make them Discrete, "
                        "or use HATD3 or HADDPG."
                    )

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        names, tensors = super()._get_torch_save_params()
        if not hasattr(self.critic, "optimizer"):
            names.remove("policy.critic.optimizer")
        return names, tensors

    def _set_critic_rate(self) -> None:
        if hasattr(self.critic, "optimizer"):
            super()._set_critic_rate()

    # ---------------------------------------------------------------- collection

    def _explore(self, obs: Mapping[str, np.ndarray], n_envs: int) -> np.ndarray:
        # Drawn before the actions, as in DQN
        chosen = np.random.rand(n_envs, len(self.agents)) < self.exploration_rate
        greedy = self._policy_actions(obs, n_envs)
        if not chosen.any():
            return greedy
        random = self._random_actions.draw(obs, n_envs, chosen)
        columns = self.policy.raw_columns.values()
        sizes = [own.stop - own.start for own in columns]
        return np.where(chosen.repeat(sizes, axis=1), random, greedy)

    def _policy_actions(self, obs: Mapping[str, np.ndarray], n_envs: int) -> np.ndarray:
        """
        Hook: raw actions of the policies, before random ones take their place.

        :param obs: Joint observation, each entry ``(n_envs, ...)``
        :param n_envs: Number of environments
        :return: Raw actions of all agents side by side, ``(n_envs, action_dim)``
        """
        return super()._explore(obs, n_envs)

    def _on_step(self) -> None:
        """Update the target networks and the exploration rate after a step of the environments."""
        self._n_calls += 1
        if self._n_calls % max(self.target_update_interval // self.n_envs, 1) == 0:
            self.policy.update_targets(self.tau)
        self.exploration_rate = self.exploration_schedule(self._current_progress_remaining)
        self.logger.record("rollout/exploration_rate", self.exploration_rate)

    # ---------------------------------------------------------------- learning

    def train(self, gradient_steps: int, batch_size: int = 32) -> None:
        """
        Gradient steps of the values.

        :param gradient_steps: Number of gradient steps
        :param batch_size: Transitions per gradient step
        """
        self._begin_training()
        for _ in range(gradient_steps):
            self._learn(self._sample(batch_size))
        self._n_updates += gradient_steps
        self._log_training()

    def _learn(self, data: JointSamples) -> None:
        """
        Hook: one gradient step of all agents.

        :param data: Transitions
        """
        raise NotImplementedError

    def _taken_values(self, data: JointSamples) -> dict[str, th.Tensor]:
        """
        :param data: Transitions
        :return: Values of each agent's actions, differentiable, ``(batch,)``; those of the best
            actions where an agent did not act, whose action had no effect
        """
        taken = {}
        for agent in self.agents:
            values = self.policy.values(data.observations, agent)
            own = self.policy.taken(values, data.actions, agent)
            active = self._active(agent, data)
            if active is not None:
                own = own.where(active, self.policy.best(values, agent))
            taken[agent] = own
            self._record(f"{self._log_names[agent]}/q_value", mean_over(own, active, dim=0))
        return taken

    @th.no_grad()
    def _next_values(self, data: JointSamples) -> th.Tensor:
        """
        :param data: Transitions
        :return: Target networks' values of the best legal next actions, ``(batch, n_agents)``
        """
        networks = self.policy.target_networks
        columns = []
        for agent in self.agents:
            values = self.policy.values(data.next_observations, agent, networks[agent])
            chosen_by = None
            if self.double_q:
                chosen_by = self.policy.values(data.next_observations, agent)
            columns.append(self.policy.best(values, agent, chosen_by))
        return th.stack(columns, dim=1)

    def _distances(self, values: th.Tensor, targets: th.Tensor) -> th.Tensor:
        """Losses of ``value_loss`` alone, of the shape of the values."""
        losses: th.Tensor = _LOSSES[self.value_loss](values, targets, reduction="none")
        return losses

    def _losses(self, values: th.Tensor, targets: th.Tensor) -> th.Tensor:
        """
        :param values: Values, ``(batch, n_values)``
        :param targets: Targets, ``(batch, n_values)``
        :return: Losses, ``(batch, n_values)``
        """
        losses = self._distances(values, targets)
        if self.hysteretic == 1.0:
            return losses
        return losses * th.where(targets < values.detach(), self.hysteretic, 1.0)
