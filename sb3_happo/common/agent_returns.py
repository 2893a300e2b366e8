"""Returns of the agents' own rewards over the last episodes, for the log."""

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th


class AgentReturns:
    """
    Sums of each agent's own rewards over the episodes of every environment.

    :param agents: Names of the agents
    :param n_envs: Number of environments
    :param window: Number of episodes over which :meth:`means` averages
    """

    def __init__(self, agents: Sequence[str], n_envs: int, window: int) -> None:
        self.agents = tuple(agents)
        self._shape = (n_envs, len(self.agents))
        #: Returns of the last episodes, ``(n_agents,)`` each; NaN for an agent that was not there
        self._episodes: deque[np.ndarray] = deque(maxlen=window)
        self.restart()

    def restart(self) -> None:
        """Begin new episodes in all environments; finished episodes are kept."""
        # A tensor as soon as rewards are tensors, so that they need not leave their device
        self._sums: Any = np.zeros(self._shape)
        self._present = np.zeros(self._shape, dtype=bool)

    def clear(self) -> None:
        """Forget the finished episodes."""
        self._episodes.clear()

    def add(self, rewards: Any, dones: np.ndarray, active: np.ndarray | None) -> None:
        """
        Add one step of all environments.

        :param rewards: Own rewards, an array or a tensor ``(n_envs, n_agents)``
        :param dones: Mask of the episodes that end with the step, ``(n_envs,)``
        :param active: Active mask of the observations before the step, ``(n_envs, n_agents)``;
            None for all agents
        """
        is_tensor = isinstance(rewards, th.Tensor)
        if is_tensor and not isinstance(self._sums, th.Tensor):
            self._sums = th.as_tensor(self._sums, device=rewards.device)
        self._sums += rewards
        if active is None:
            self._present[:] = True
        else:
            self._present |= active
            if not is_tensor:
                # An agent that never acts may still be rewarded at the end of a game
                self._present |= rewards != 0
        if dones.any():
            self._end_episodes(dones)

    def _end_episodes(self, dones: np.ndarray) -> None:
        ended = self._sums[dones]
        if isinstance(ended, th.Tensor):
            ended = ended.cpu().numpy()
        self._episodes.extend(np.where(self._present[dones], ended, np.nan))
        self._sums[dones] = 0.0
        self._present[dones] = False

    def state(self) -> dict[str, Any]:
        """
        :return: Finished episodes, and sums of the running ones, plain data
        """
        return {"episodes": list(self._episodes), "sums": self._sums, "present": self._present}

    def restore(self, state: dict[str, Any]) -> None:
        """
        :param state: Result of :meth:`state`
        """
        self._episodes.clear()
        self._episodes.extend(state["episodes"])
        self._sums, self._present = state["sums"], state["present"]

    def means(self) -> dict[str, float]:
        """
        :return: Mean return of each agent over the last episodes in which it took part; without
            agents that took part in none
        """
        if not self._episodes:
            return {}
        returns = np.stack(self._episodes)
        known = np.isfinite(returns)
        sums = np.where(known, returns, 0.0).sum(axis=0)
        counts = known.sum(axis=0)
        columns = zip(self.agents, sums, counts, strict=True)
        return {agent: float(total / count) for agent, total, count in columns if count}
