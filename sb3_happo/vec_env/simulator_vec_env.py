"""Base class of simulators that step many environments at once."""

import time
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

from sb3_happo.envs.spaces import joint_action_dtype
from sb3_happo.vec_env.step_facts import StepFacts, StepInfos


class EpisodeStatistics:
    """
    Returns and lengths of episodes, as SB3's ``Monitor`` reports them, for many environments.

    :param n_envs: Number of environments
    """

    def __init__(self, n_envs: int) -> None:
        self._returns = np.zeros(n_envs)
        self._lengths = np.zeros(n_envs, dtype=np.int64)
        self._start = time.time()

    def add(self, rewards: np.ndarray) -> None:
        """
        Count a step of all environments.

        :param rewards: Team rewards, ``(n_envs,)``
        """
        self._returns += rewards
        self._lengths += 1

    def clear(self) -> None:
        """Begin new episodes in all environments."""
        self._returns[:] = 0.0
        self._lengths[:] = 0

    def end(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """
        End the episodes of some environments, and begin new ones there.

        :param rows: Indices of the environments
        :return: ``info["episode"]`` of each: return ``r``, length ``l``, and ``t``, the seconds
            since this object was made
        """
        seconds = round(time.time() - self._start, 6)
        ended = zip(self._returns[rows].tolist(), self._lengths[rows].tolist(), strict=True)
        self._returns[rows] = 0.0
        self._lengths[rows] = 0
        return [{"r": round(total, 6), "l": length, "t": seconds} for total, length in ended]


class SimulatorVecEnv(VecEnv):
    """
    Many environments inside one simulator, which exist only together. All agents are active at
    every step. A subclass implements the methods of ``VecEnv``; its ``step_wait`` makes the infos
    with :meth:`_make_infos` and completes them with :meth:`_end_episodes`.

    :param n_envs: Number of environments
    :param observation_space: Joint observation space
    :param action_space: Joint action space
    """

    observation_space: spaces.Dict
    action_space: spaces.Dict

    def __init__(
        self, n_envs: int, observation_space: spaces.Dict, action_space: spaces.Dict
    ) -> None:
        #: Names of the agents
        self.agents: tuple[str, ...] = tuple(action_space.spaces)
        #: Number of agents
        self.n_agents = len(self.agents)
        self._action_dtype = joint_action_dtype(action_space)
        self._episodes = EpisodeStatistics(n_envs)
        super().__init__(n_envs, observation_space, action_space)

    def _make_infos(
        self,
        rewards: np.ndarray,
        agent_rewards: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
    ) -> StepInfos:
        """
        Make the infos of a step and its facts, and count the step in the statistics of episodes.

        :param rewards: Team rewards, ``(n_envs,)``
        :param agent_rewards: Individual rewards, ``(n_envs, n_agents)``
        :param terminated: End of an episode by its own rules, bool ``(n_envs,)``
        :param truncated: End of an episode by its time limit, bool ``(n_envs,)``
        :return: Infos with their facts
        """
        self._episodes.add(rewards)
        facts = StepFacts(
            agent_rewards=agent_rewards.astype(np.float32),
            dones=terminated | truncated,
            truncated=truncated & ~terminated,
            active=None,
            waiting=None,
        )
        infos = ({"agent_rewards": own, "TimeLimit.truncated": False} for own in agent_rewards)
        return StepInfos(infos, facts)

    def _end_episodes(self, infos: StepInfos, terminal_obs: Mapping[str, Any]) -> None:
        """
        Complete the infos of the environments whose episode has ended.

        :param infos: Infos of the step, in which the entries are written
        :param terminal_obs: Last joint observation of these environments, each entry
            ``(n_ended, ...)``
        """
        rows = np.flatnonzero(infos.facts.dones)
        ended = zip(rows.tolist(), self._episodes.end(rows), strict=True)
        for position, (row, episode) in enumerate(ended):
            infos[row] |= {
                "TimeLimit.truncated": bool(infos.facts.truncated[row]),
                "terminal_observation": {
                    key: values[position] for key, values in terminal_obs.items()
                },
                "episode": episode,
            }

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None
    ) -> list[bool]:
        """
        :param wrapper_class: Class of a wrapper
        :param indices: Indices of the environments to look at, all by default
        :return: For each of them, True for ``Monitor``, whose statistics are in the infos here
        """
        return [issubclass(wrapper_class, Monitor) for _ in self._get_indices(indices)]
