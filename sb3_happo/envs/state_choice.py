"""Choice of the critic's state: the ``state`` argument of :class:`~sb3_happo.envs.JointEnv`."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import gymnasium as gym
import numpy as np

from sb3_happo.envs.adapters import Team
from sb3_happo.envs.spaces import STATE
from sb3_happo.envs.state import (
    AgentStates,
    ComputedState,
    Leaf,
    Observations,
    StateSource,
    concatenated_observations,
)

State: TypeAlias = str | Callable[[Any, Observations], np.ndarray] | None

# Exceptions of the default, state=None. MPE's state() computes all observations a second time, in a
# twelfth of the time of a step, and concatenates them ...
_STATE_IS_OBSERVATIONS = {"mpe2._mpe_utils.simple_env.SimpleEnv.state"}
# ... and the state() of multiwalker raises after a walker has fallen
_STATE_FAILS = {"pettingzoo.sisl.multiwalker.multiwalker.raw_env.state"}


class StateChoice(NamedTuple):
    """
    The critic's state.

    :param source: Object that computes it
    :param uses_env_state: Whether it is made of the environment's ``state()``, at least in part
    """

    source: StateSource
    uses_env_state: bool


def choose_state(
    state: State,
    env: Any,
    team: Team,
    leaves: list[Leaf],
    n_agents: int,
    joint: Observations,
    active: np.ndarray | None,
) -> StateChoice:
    """
    Choose how to compute the critic's state.

    :param state: Argument of :class:`~sb3_happo.envs.JointEnv`
    :param env: Environment
    :param team: Adapter of the environment
    :param leaves: Arrays of the agents' observations
    :param n_agents: Number of agents
    :param joint: Joint observation of a reset, without state
    :param active: Active mask of that observation, ``(n_agents,)``; None if all agents are active
    :return: State
    :raises ValueError: If ``state`` is unknown, or does not fit the environment
    :raises TypeError: If a callable returns no numeric array
    """
    if callable(state):
        user_state = partial(_call_user_state, state, env)
        computed = ComputedState(user_state, user_state(dict(joint)), "The state callable")
        return StateChoice(computed, uses_env_state=False)
    if state not in (None, "env", "observations", "agent"):
        raise ValueError(
            f"state={state!r} is neither None, 'env', 'observations', 'agent', nor a callable "
            "(env, observations)."
        )
    observed = concatenated_observations(leaves)
    from_env = None
    if state == "env":
        from_env = _env_state(team)
        if from_env is None:
            raise ValueError(
                "The env has no working state(); use state='observations' or a callable."
            )
    elif state != "observations" and _state_function(env) not in _STATE_FAILS:
        from_env = _env_state(team)
        # Compared, because a wrapper may change the observations
        repeats_observations = (
            from_env is not None
            and _state_function(env) in _STATE_IS_OBSERVATIONS
            and _is_same_state(from_env, observed, joint, active)
        )
        if repeats_observations:
            from_env = None
    source: StateSource = observed if from_env is None else from_env
    if state == "agent":
        source = AgentStates(source, leaves, n_agents)
    return StateChoice(source, uses_env_state=from_env is not None)


def _call_user_state(
    state: Callable[[Any, Observations], np.ndarray], env: Any, observations: Observations
) -> np.ndarray:
    return state(env, observations)


def _call_env_state(team: Team, observations: Observations) -> np.ndarray:
    return team.state()


def _env_state(team: Team) -> ComputedState | None:
    """The environment's ``state()`` as a state; None if it has none that works."""
    try:
        example = team.state()
        return ComputedState(partial(_call_env_state, team), example, "The env's state()")
    except (NotImplementedError, AttributeError):
        return None
    except Exception as error:  # user code may raise anything, and some of PettingZoo's envs do
        gym.logger.warn(
            f"The env's state() fails ({error!r}); the critic sees the observations instead."
        )
        return None


def _state_function(env: Any) -> str:
    """Module and name of the environment's ``state`` method."""
    function = getattr(type(getattr(env, "unwrapped", None)), "state", None)
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}"


def _is_same_state(
    from_env: ComputedState,
    observed: StateSource,
    joint: Observations,
    active: np.ndarray | None,
) -> bool:
    """Whether the concatenated observations equal the environment's state."""
    joint = dict(joint)
    observed(joint, active)
    if active is not None or STATE not in joint:
        return False
    return np.array_equal(joint[STATE], from_env.value(joint))
