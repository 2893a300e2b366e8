"""Action noise of a team."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.noise import ActionNoise, VectorizedActionNoise

from sb3_happo.common.distributions import action_leaves
from sb3_happo.common.plain_state import plain_attributes, plain_copy
from sb3_happo.suggestions import did_you_mean

#: Setting of the user: one noise for the team, noises of single agents, or None
NoiseSetting: TypeAlias = ActionNoise | Mapping[str, ActionNoise] | None


class TeamActionNoise(VectorizedActionNoise):
    """
    Noise of all agents in all environments. Only continuous columns of raw actions get noise.

    :param setting: One noise for the team, whose numbers belong to the continuous actions of all
        agents side by side, in the agents' order; or noises of single agents, ``{agent: noise}``
    :param action_space: Joint action space, one entry per agent
    :param n_envs: Number of environments, each with noise of its own
    :raises ValueError: If an agent is unknown, or a noise has another size than the actions
    :raises TypeError: If a noise is none of SB3's
    """

    def __init__(self, setting: Any, action_space: spaces.Dict, n_envs: int = 1) -> None:
        self.setting = setting
        columns = continuous_columns(action_space)
        self._n_columns = sum(map(len, columns.values()))
        self._parts: list[tuple[np.ndarray, VectorizedActionNoise]] = []
        if isinstance(setting, Mapping):
            own_noises = {str(agent): noise for agent, noise in setting.items()}
            for agent in own_noises:
                if agent not in columns:
                    hint = did_you_mean(agent, columns, otherwise=f"The team has {list(columns)}.")
                    raise ValueError(f"action_noise: unknown agent {agent!r}. {hint}")
        else:
            own_noises = {"": setting}
            columns = {"": np.concatenate(list(columns.values()))}
        starts = np.cumsum([0, *map(len, columns.values())])
        for (owner, continuous), start in zip(columns.items(), starts, strict=False):
            if owner in own_noises:
                noise = _checked(own_noises[owner], owner, int(continuous.sum()))
                indices = start + np.flatnonzero(continuous)
                self._parts.append((indices, VectorizedActionNoise(noise, n_envs)))
        self.n_envs = n_envs

    @classmethod
    def wrap(cls, noise: Any, action_space: spaces.Dict, n_envs: int) -> "TeamActionNoise | None":
        """
        :param noise: Setting of the user, noise of this class, or None
        :param action_space: Joint action space
        :param n_envs: Number of environments
        :return: Noise for this number of environments, the given one if it fits; None for none
        """
        if noise is None:
            return None
        if isinstance(noise, cls):
            if noise.n_envs == n_envs:
                return noise
            noise = noise.setting
        elif isinstance(noise, VectorizedActionNoise):
            noise = noise.base_noise
        return cls(noise, action_space, n_envs)

    def __call__(self) -> np.ndarray:
        """
        :return: Noise of raw actions, ``(n_envs, action_dim)``, 0 for discrete columns
        """
        values = np.zeros((self.n_envs, self._n_columns), np.float32)
        for indices, noise in self._parts:
            values[:, indices] = noise()
        return values

    def reset(self, indices: Iterable[int] | None = None) -> None:
        """
        :param indices: Indices of the environments whose episode has ended; None for all
        """
        chosen = None if indices is None else list(indices)
        for _, noise in self._parts:
            noise.reset(chosen)

    def state(self) -> list[list[dict[str, Any]]]:
        """
        :return: Plain attributes of each noise in each environment, such as the last values of an
            ``OrnsteinUhlenbeckActionNoise``
        """
        return [list(map(plain_attributes, noise.noises)) for _, noise in self._parts]

    def restore(self, states: list[list[dict[str, Any]]]) -> None:
        """
        :param states: Result of :meth:`state` for the same setting and number of environments
        """
        for (_, noise), own in zip(self._parts, states, strict=True):
            for single, state in zip(noise.noises, own, strict=True):
                vars(single).update(plain_copy(state))

    def __repr__(self) -> str:
        return f"TeamActionNoise({self.setting!r}, n_envs={self.n_envs})"


def continuous_columns(action_space: spaces.Dict) -> dict[str, np.ndarray]:
    """
    :param action_space: Joint action space
    :return: For each agent the mask of the continuous columns of its raw action, ``(n_columns,)``
    """
    columns = {}
    for agent, space in action_space.spaces.items():
        masks = []
        for leaf in action_leaves(space):
            masks.append(np.full(leaf.n_actions, isinstance(leaf.space, spaces.Box)))
        columns[agent] = np.concatenate(masks)
    return columns


def _checked(noise: Any, owner: str, size: int) -> ActionNoise:
    """
    :param noise: Noise of one environment
    :param owner: Agent, or "" for the team
    :param size: Number of its continuous actions
    :return: The noise
    """
    whose = f"of agent {owner!r}" if owner else "of all agents together"
    name = f"action_noise[{owner!r}]" if owner else "action_noise"
    if not isinstance(noise, ActionNoise) or isinstance(noise, VectorizedActionNoise):
        raise TypeError(
            f"{name} must be a noise of stable_baselines3.common.noise, such as NormalActionNoise, "
            f"or a dict {{agent: noise}}; not {noise!r}."
        )
    if not size:
        raise ValueError(
            f"{name}: the actions {whose} have no continuous part that noise could be added to; "
            "discrete actions are explored by sampling. Omit it."
        )
    state = np.random.get_state()
    try:
        shape = np.shape(noise())
    finally:
        # The training's random numbers do not depend on this check
        np.random.set_state(state)
        noise.reset()
    if shape != (size,):
        raise ValueError(
            f"{name} has the shape {shape}, and the continuous actions {whose} have the shape "
            f"({size},); make it with mean=np.zeros({size}), sigma=0.1 * np.ones({size})."
        )
    return noise
