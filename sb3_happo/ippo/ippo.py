"""IPPO: Independent PPO."""

from typing import Any

import numpy as np
import torch as th

from sb3_happo.common.bootstrap import zero_after_leaving
from sb3_happo.common.own_rewards import OwnRewards
from sb3_happo.mappo.mappo import MAPPO
from sb3_happo.vec_env.step_facts import StepFacts


class IPPO(MAPPO):
    """
    Independent Proximal Policy Optimisation (de Witt et al. 2020, "Is Independent Learning All You
    Need in the StarCraft Multi-Agent Challenge?", https://arxiv.org/abs/2011.09533).

    Like :class:`~sb3_happo.MAPPO`, but each agent has its own critic, on its own observation, and
    learns from its own reward (``info["agent_rewards"]``). ``VecNormalize`` normalises it by the
    statistics of that agent's own returns. Behind another wrapper that changes the team's reward,
    training stops with an error, unless the wrapper changes the agents' own rewards alike.

    :param policy: As for ``HAPPO``
    :param env: As for ``HAPPO``
    :param args: As for ``HAPPO``
    :param policy_kwargs: As for ``MAPPO``
    :param kwargs: As for ``HAPPO``
    """

    _own_rewards: OwnRewards | None = None

    def __init__(
        self,
        policy: Any,
        env: Any = None,
        *args: Any,
        policy_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        policy_kwargs = {"local_critics": True} | (policy_kwargs or {})
        super().__init__(policy, env, *args, policy_kwargs=policy_kwargs, **kwargs)

    def _value_after_leaving(self, values: th.Tensor, active: th.Tensor) -> th.Tensor:
        """
        :param values: Values of an observation, ``(n, n_agents)``
        :param active: Active mask of the observation, ``(n, n_agents)``
        :return: Zeros: an agent that has terminated gets no further rewards
        """
        return zero_after_leaving(values, active)

    def _split_rewards(self, rewards: np.ndarray | th.Tensor, facts: StepFacts) -> th.Tensor:
        """
        :param rewards: Team rewards, ``(n_envs,)``, which are compared with the agents' own
        :param facts: Facts of the step, with each agent's own reward
        :return: New tensor, ``(n_envs, n_agents)``
        :raises ValueError: If a wrapper has changed the team's reward only
        """
        assert self.env is not None
        if self._own_rewards is None or self._own_rewards.env is not self.env:
            self._own_rewards = OwnRewards(self.env, self.agents, type(self).__name__)
        own_rewards = self._own_rewards(rewards, facts)
        own = th.as_tensor(own_rewards, dtype=th.float32, device=self.device)
        return own.clone()

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_own_rewards"]
