"""Random actions of a team, in raw form."""

from collections.abc import Mapping

import numpy as np
from gymnasium import spaces

from sb3_happo.common.action_noise import continuous_columns
from sb3_happo.common.distributions import ActionLeaf, action_leaves
from sb3_happo.common.team_spaces import TeamSpaces
from sb3_happo.envs.spaces import split_mask


class RandomActions:
    """
    Uniform raw actions, legal where there are action masks. They are drawn from the generators of
    the action spaces, environment by environment, as SB3 draws them.

    :param team: Spaces of the team
    """

    def __init__(self, team: TeamSpaces) -> None:
        self._team = team
        self._leaves: dict[str, list[ActionLeaf]] = {}
        self._spaces: dict[str, list[spaces.Space]] = {}
        for agent, space in team.action_space.spaces.items():
            self._leaves[agent] = list(action_leaves(space))
            self._spaces[agent] = _plain_spaces(space)
        #: Mask of the continuous columns of raw actions, ``(n_columns,)``
        self.continuous = np.concatenate(list(continuous_columns(team.action_space).values()))
        self.n_columns = len(self.continuous)

    def draw(
        self, observations: Mapping[str, np.ndarray], n_envs: int, chosen: np.ndarray | None = None
    ) -> np.ndarray:
        """
        :param observations: Joint observation with the masks, each entry ``(n_envs, ...)``
        :param n_envs: Number of environments
        :param chosen: Mask of the actions to draw, ``(n_envs, n_agents)``; None for all
        :return: Raw actions of all agents side by side, ``(n_envs, action_dim)``; zeros for those
            that are not drawn
        """
        raw = np.zeros((n_envs, self.n_columns), np.float32)
        masks = {}
        for agent in self._team.agents:
            masks[agent] = self._team.action_masks(observations, agent)  # type: ignore[arg-type]
        for env in range(n_envs):
            start = 0
            for index, agent in enumerate(self._team.agents):
                own_mask = masks[agent]
                mask = None if own_mask is None else np.asarray(own_mask[env])
                size = sum(leaf.n_actions for leaf in self._leaves[agent])
                if chosen is None or chosen[env, index]:
                    raw[env, start : start + size] = self._draw_agent(agent, mask)
                start += size
        return raw

    def _draw_agent(self, agent: str, mask: np.ndarray | None) -> np.ndarray:
        """Raw action of an agent, ``(n_columns,)``."""
        parts, start = [], 0
        for leaf, space in zip(self._leaves[agent], self._spaces[agent], strict=True):
            own_mask = None
            if mask is not None and leaf.n_choices:
                own_mask = split_mask(space, mask[start : start + leaf.n_choices])
            start += leaf.n_choices
            sample = space.sample() if own_mask is None else space.sample(own_mask)
            parts.append(_as_raw(space, sample))
        return np.concatenate(parts)


def _plain_spaces(space: spaces.Space) -> list[spaces.Space]:
    """Plain spaces inside an action space, with their own generators, in the order of leaves."""
    if not isinstance(space, (spaces.Dict, spaces.Tuple)):
        return [space]
    inner = space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces
    plain: list[spaces.Space] = []
    for part in inner:
        plain += _plain_spaces(part)
    return plain


def _as_raw(space: spaces.Space, sample: np.ndarray) -> np.ndarray:
    """
    :param space: Plain action space
    :param sample: Action of it
    :return: Raw action: Box actions scaled to [-1, 1], choices counted from 0, ``(n_columns,)``
    """
    if isinstance(space, spaces.Box):
        width = space.high - space.low
        share = (sample - space.low) / np.where(width > 0, width, 1)
        return (2.0 * share - 1.0).ravel()
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        return np.ravel(sample - space.start)
    return np.ravel(sample)
