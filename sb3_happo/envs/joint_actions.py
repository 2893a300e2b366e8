"""Joint actions as the team's environment takes them: one action per active agent."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_happo.envs.spaces import action_converter, convert_actions


class JointActionSplitter:
    """
    Splits joint actions into the actions of the active agents.

    :param ids: Ids of the agents in the environment
    :param action_space: Action spaces by the agents' names, in the same order
    """

    def __init__(self, ids: Sequence[Any], action_space: spaces.Dict) -> None:
        self._ids = ids
        self._names = tuple(action_space.spaces)
        self._converters = [action_converter(space) for space in action_space.spaces.values()]
        self._needs_conversion = any(converter is not None for converter in self._converters)

    def split(self, action: dict[str, Any] | np.void, active: np.ndarray | None) -> dict[Any, Any]:
        """
        :param action: ``{agent: action}``, or one row of an array of dtype
            :func:`~sb3_happo.envs.spaces.joint_action_dtype`
        :param active: Active mask, ``(n_agents,)``; None if all agents are active
        :return: Actions of the active agents, by their ids in the environment
        :raises ValueError: If the action is not the team's
        """
        values = self._from_dict(action, active) if isinstance(action, dict) else self._row(action)
        if active is None:
            return dict(zip(self._ids, values, strict=True))
        chosen = zip(self._ids, values, active, strict=True)
        return {agent: value for agent, value, is_active in chosen if is_active}

    def _from_dict(self, action: dict[str, Any], active: np.ndarray | None) -> list[Any]:
        """Actions in the agents' order; None for inactive agents."""
        if active is None:
            active_names = self._names
        else:
            pairs = zip(self._names, active, strict=True)
            active_names = tuple(name for name, is_active in pairs if is_active)
        for name in active_names:
            if name not in action:
                raise ValueError(
                    f"No action for agent {name!r}; it is active, and the action has "
                    f"{list(action)}."
                )
        return [action.get(name) for name in self._names]

    def _row(self, action: Any) -> Sequence[Any]:
        """Actions in the agents' order, converted to their own spaces."""
        if getattr(getattr(action, "dtype", None), "names", None) != self._names:
            raise ValueError(
                "A joint action is a dict {agent: action}, or one row of an array of "
                f"joint_action_dtype(env.action_space), for the agents {list(self._names)}; this "
                f"is {action!r}."
            )
        values: Sequence[Any] = action.item()
        if not self._needs_conversion:
            return values
        return convert_actions(values, self._converters)
