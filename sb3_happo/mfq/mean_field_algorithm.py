"""Base of the mean-field algorithms: mean actions of the neighbours during training."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import Schedule

from sb3_happo.common.hyperparameters import POSITIVE, SHARE, Setting, scheduled
from sb3_happo.common.mean_field_policy import ACTING, MEAN_ACTIONS, MeanFieldPolicy
from sb3_happo.common.neighborhoods import Neighbors, Positions
from sb3_happo.common.replay_buffer import JointReplayBuffer, JointSamples
from sb3_happo.iql.iql import IQL

# Attributes that are not saved
_OF_RUNNING_EPISODES = ("_means", "_starts", "_agent_figures")


class MeanFieldAlgorithm(IQL):
    """
    Base of the mean-field algorithms. See :class:`~sb3_happo.MFQ` for the parameters.

    Actions are chosen given the mean actions of the step before, and learned from given those of
    the step itself, which the replay buffer's joint actions yield.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MeanFieldPolicy,
        "CnnPolicy": MeanFieldPolicy,
        "MultiInputPolicy": MeanFieldPolicy,
    }
    settings: ClassVar[dict[str, Setting]] = IQL.settings | {
        "n_steps": Setting("1: mean actions are known for single steps only", lambda n: n == 1),
        "temperature": scheduled(POSITIVE),
        "start_rate": SHARE,
        "n_iterations": Setting("a whole number, at least 0", lambda n: n >= 0, whole=True),
        "iteration_rate": Setting("in (0, 1]", lambda rate: 0 < rate <= 1),
    }
    policy: MeanFieldPolicy
    #: Mean actions of the last step in each environment, ``(n_envs, n_agents, n_mean)``
    _means: np.ndarray | None = None
    #: Mask of the environments whose next step is the first of an episode, ``(n_envs,)``
    _starts: np.ndarray | None = None

    def __init__(
        self,
        policy: Any,
        env: Any = None,
        learning_rate: float | Schedule = 1e-3,
        buffer_size: int = 100_000,
        learning_starts: int = 100,
        batch_size: int = 64,
        tau: float = 0.005,
        gamma: float = 0.95,
        train_freq: int | tuple[int, str] = 4,
        gradient_steps: int = 1,
        *,
        neighbors: Neighbors = "all",
        positions: Positions | None = None,
        temperature: float | Schedule = 0.1,
        n_iterations: int = 0,
        iteration_rate: float = 1.0,
        start_rate: float = 0.05,
        target_update_interval: int = 1,
        exploration_initial_eps: float = 0.0,
        exploration_final_eps: float = 0.0,
        policy_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.temperature = temperature
        self.n_iterations = n_iterations
        self.iteration_rate = iteration_rate
        self.start_rate = start_rate
        form = {"neighbors": neighbors, "positions": positions}
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
            target_update_interval=target_update_interval,
            exploration_initial_eps=exploration_initial_eps,
            exploration_final_eps=exploration_final_eps,
            policy_kwargs={"share_parameters": True, **form, **(policy_kwargs or {})},
            **kwargs,
        )

    def _make_policy(self) -> None:
        agents = list(self.action_space.spaces)  # type: ignore[attr-defined]
        if len(agents) == 1:
            raise ValueError(
                f"{type(self).__name__} needs neighbours, and the team has the agent "
                f"{agents[0]!r} alone; use IQL."
            )
        iterations = {"n_iterations": self.n_iterations, "iteration_rate": self.iteration_rate}
        self.policy_kwargs.update(iterations)
        super()._make_policy()
        # Functions cannot be saved, and the neighbours that they named can
        self.policy_kwargs.update(self.policy.neighborhood.plain())
        self._check_columns()
        self._set_temperature()

    def _check_columns(self) -> None:
        """Refuse positions that a ``VecNormalize`` has changed."""
        columns = self.policy.neighborhood.positions
        if isinstance(columns, list) and self.env is not None and self.normalizer is not None:
            raise ValueError(
                f"`positions` {columns} are columns of observations that VecNormalize normalises, "
                "whose distances have other units; pass norm_obs=False to it, or normalise in the "
                "environment."
            )

    @property
    def present_temperature(self) -> float:
        """
        :return: Temperature at the present progress
        """
        value = self.temperature
        return float(value(self._current_progress_remaining) if callable(value) else value)

    def _set_temperature(self) -> None:
        self.policy.temperature.value.fill_(self.present_temperature)

    # ---------------------------------------------------------------- collection

    def _begin_episodes(self, obs: Any) -> None:
        super()._begin_episodes(obs)
        self._restart_means()

    def _restart_means(self) -> None:
        """Expect the mean actions of first steps in all environments."""
        start = self.policy.start_means.cpu().numpy()
        self._means = np.repeat(start[np.newaxis], self.n_envs, axis=0)
        self._starts = np.ones(self.n_envs, dtype=bool)

    def _policy_actions(self, obs: Mapping[str, np.ndarray], n_envs: int) -> np.ndarray:
        if self._means is None:
            self._restart_means()
        beside: dict[str, Any] = {MEAN_ACTIONS: self._means}
        if self._presence.active is not None:
            beside[ACTING] = self._presence.active
        return super()._policy_actions({**obs, **beside}, n_envs)

    def _store_transition(  # type: ignore[override]
        self,
        replay_buffer: JointReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: Any,
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        if self._means is None:
            self._restart_means()
        assert self._starts is not None
        means = self._observed_means(buffer_action)
        if self._starts.any():
            firsts = th.as_tensor(self._starts, device=means.device)
            self.policy.learn_start_means(means[firsts].mean(dim=0), self.start_rate)
        ended = th.as_tensor(dones, device=means.device).bool().reshape(-1, 1, 1)
        self._means = means.where(~ended, self.policy.start_means).cpu().numpy()
        self._starts = np.array(dones, dtype=bool)
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)

    @th.no_grad()
    def _observed_means(self, raw: np.ndarray) -> th.Tensor:
        """
        :param raw: Raw actions of all agents side by side, ``(n_envs, action_dim)``
        :return: Mean actions of each agent's neighbours, ``(n_envs, n_agents, n_mean)``
        """
        obs: Any = self._last_obs
        actions = self.policy.encoded_by_group(th.as_tensor(raw, device=self.device))
        active = self._presence.active
        acting = None if active is None else th.as_tensor(active, device=self.device)
        return self.policy.mean_actions(actions, self._to_tensors(obs), acting)

    def _on_step(self) -> None:
        super()._on_step()
        self._set_temperature()
        self.logger.record("rollout/temperature", self.present_temperature)

    # ---------------------------------------------------------------- learning

    def _mean_actions(self, data: JointSamples) -> th.Tensor:
        """
        :param data: Transitions
        :return: Mean actions of each agent's neighbours in them, ``(batch, n_agents, n_mean)``
        """
        active = None if data.activity is None else data.activity.active
        actions = self.policy.encoded_by_group(data.actions)
        return self.policy.mean_actions(actions, data.observations, active)

    def _begin_training(self) -> None:
        super()._begin_training()
        self._agent_figures: dict[tuple[str, tuple[str, ...]], list[th.Tensor]] = {}

    def _record_agents(self, name: str, agents: tuple[str, ...], values: th.Tensor) -> None:
        """
        Keep a figure of several agents for the mean over the gradient steps of this update. In a
        crowd one tensor takes a hundredth of the time of one for each agent.

        :param name: Name of the figure
        :param agents: Names of the agents
        :param values: Figure of each agent, ``(n,)``
        """
        self._agent_figures.setdefault((name, agents), []).append(values.detach())

    def _log_training(self) -> None:
        super()._log_training()
        for (name, agents), values in self._agent_figures.items():
            means = th.stack(values).mean(dim=0).tolist()
            for agent, mean in zip(agents, means, strict=True):
                self.logger.record(f"{self._log_names[agent]}/{name}", mean)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), *_OF_RUNNING_EPISODES]
