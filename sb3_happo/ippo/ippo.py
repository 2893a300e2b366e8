"""IPPO: Independent PPO."""

from typing import Any

import numpy as np
import torch as th

from sb3_happo.mappo.mappo import MAPPO


class IPPO(MAPPO):
    """
    Independent Proximal Policy Optimisation (de Witt et al. 2020, "Is Independent Learning All You
    Need in the StarCraft Multi-Agent Challenge?", https://arxiv.org/abs/2011.09533).

    Like :class:`~sb3_happo.MAPPO`, but each agent has its own critic, on its own observation, and
    learns from its own reward (``info["agent_rewards"]``, which ``VecNormalize`` does not
    normalise).

    :param policy: As for ``HAPPO``
    :param env: As for ``HAPPO``
    :param args: As for ``HAPPO``
    :param policy_kwargs: As for ``MAPPO``
    :param kwargs: As for ``HAPPO``
    """

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

    def _values_of_the_gone(self, values: th.Tensor, active: th.Tensor) -> th.Tensor:
        """
        :param values: Values of an observation, ``(n, n_agents)``
        :param active: Active mask of the observation, ``(n, n_agents)``
        :return: Zeros: an agent that has terminated gets no further rewards
        """
        return th.zeros_like(values)

    def _split_rewards(
        self, rewards: np.ndarray | th.Tensor, infos: list[dict[str, Any]]
    ) -> th.Tensor:
        """
        :param rewards: Team rewards, unused
        :param infos: Infos of the step, with each agent's own reward
        :return: Own rewards, ``(n_envs, n_agents)``, a new tensor
        """
        own = np.stack([info["agent_rewards"] for info in infos])
        return th.as_tensor(own, dtype=th.float32, device=self.device)
