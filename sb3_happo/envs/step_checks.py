"""Checks of what ``reset`` and ``step`` of an environment return, with errors that advise."""

from collections.abc import Collection, Mapping, Set
from typing import Any

#: Name under which RLlib's environments flag all agents at once
ALL_AGENTS = "__all__"
#: Advice at the end of errors
SEE_CHECKER = "check_marl_env(env), of sb3_happo.envs.checker, tests the whole env."

_RESET = "Return (observations, infos), each {agent: ...}"
_STEP = (
    "Return (observations, rewards, terminations, truncations, infos), each {agent: ...}; four "
    "values are the interface of before PettingZoo 1.22 and Gym 0.26, whose `dones` are now split "
    "into terminations and truncations"
)
_STEP_PARTS = ("observations", "rewards", "terminations", "truncations", "infos")


def check_reset(returned: Any) -> tuple[dict[Any, Any], dict[Any, dict]]:
    """
    Check what the ``reset`` of a team's environment returns.

    :param returned: Value that ``reset`` returned
    :return: Observations and infos
    :raises TypeError: If it is not a tuple of two dicts
    """
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise TypeError(
            f"reset returns {describe(returned)} and not two dicts. {_RESET}. {SEE_CHECKER}"
        )
    _check_dicts("reset", ("observations", "infos"), returned, _RESET)
    return returned


def check_step(returned: Any) -> tuple[Any, Any, Any, Any, Any]:
    """
    Check what the ``step`` of a team's environment returns.

    :param returned: Value that ``step`` returned
    :return: Observations, rewards, terminations, truncations and infos
    :raises TypeError: If it is not a tuple of five dicts
    """
    if not isinstance(returned, tuple) or len(returned) != 5:
        raise TypeError(
            f"step returns {describe(returned)} and not five dicts. {_STEP}. {SEE_CHECKER}"
        )
    _check_dicts("step", _STEP_PARTS, returned, _STEP)
    return returned


def check_gymnasium(method: str, returned: Any, n: int) -> Any:
    """
    Check the number of values that ``reset`` or ``step`` of a Gymnasium environment returns.

    :param method: Name of the method, "reset" or "step"
    :param returned: Value that the method returned
    :param n: Number of values in the present interface
    :return: ``returned``
    :raises TypeError: If it is not a tuple of that length, or the info is no dict
    """
    wanted = "(observation, info)"
    if method == "step":
        wanted = "(observation, reward, terminated, truncated, info)"
    if not isinstance(returned, tuple) or len(returned) != n:
        raise TypeError(
            f"{method} returns {describe(returned)} and not {n} values. Return {wanted}, the "
            "interface of Gymnasium; envs of before Gym 0.26 can be wrapped with "
            "shimmy.GymV21CompatibilityV0."
        )
    if not isinstance(returned[-1], Mapping):
        raise TypeError(
            f"{method} returns the info {returned[-1]!r}, no dict. Return {wanted}, with an empty "
            "dict where there is nothing to say."
        )
    return returned


def _check_dicts(method: str, names: tuple[str, ...], values: tuple, remedy: str) -> None:
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, Mapping):
            raise TypeError(
                f"{method}: the {name} are {describe(value)}, no dict. {remedy}. {SEE_CHECKER}"
            )


def describe(value: Any) -> str:
    """
    :param value: Any value
    :return: Kind and size of the value, for errors
    """
    if isinstance(value, tuple):
        return f"a tuple of {len(value)} values"
    if isinstance(value, (bool, int, float, str)) or value is None:
        return repr(value)
    return f"a {type(value).__name__}"


def without_none(infos: Mapping[Any, Any]) -> dict[Any, dict]:
    """
    :param infos: Infos by agent, some of which may be None
    :return: Infos by agent, with empty dicts for None
    """
    return {agent: {} if info is None else info for agent, info in infos.items()}


def agent_flags(
    terminations: dict[Any, bool],
    truncations: dict[Any, bool],
    known: Set[Any],
    alive: Collection[Any],
) -> tuple[dict[Any, bool], dict[Any, bool]]:
    """
    Flags by agent, where a flag ``"__all__"`` ends the episode for all agents.

    :param terminations: Terminations of a step
    :param truncations: Truncations of the same step
    :param known: All agents
    :param alive: Agents that were alive before or after the step
    :return: Terminations and truncations by agent; the arguments if they have no further names
    :raises ValueError: If a flag has another name than that of an agent or ``"__all__"``
    """
    if terminations.keys() <= known and truncations.keys() <= known:
        return terminations, truncations
    terminated, truncated = dict(terminations), dict(truncations)
    all_terminated = all_truncated = False
    if ALL_AGENTS not in known:
        all_terminated = bool(terminated.pop(ALL_AGENTS, False))
        all_truncated = bool(truncated.pop(ALL_AGENTS, False))
    check_names_of_agents("terminations", terminated, known)
    check_names_of_agents("truncations", truncated, known)
    # An agent that has a flag of its own keeps it
    open_ended = [agent for agent in alive if not (terminated.get(agent) or truncated.get(agent))]
    if all_terminated:
        terminated.update(dict.fromkeys(open_ended, True))
    elif all_truncated:
        truncated.update(dict.fromkeys(open_ended, True))
    return terminated, truncated


def check_names_of_agents(what: str, values: Mapping[Any, Any], known: Collection[Any]) -> None:
    """
    Check that all names in a dict of a step are names of agents.

    :param what: Name of the dict
    :param values: Dict of a step
    :param known: All agents
    :raises ValueError: If there is another name
    """
    unknown = [name for name in values if name not in known]
    if unknown:
        advice = ""
        if what in ("terminations", "truncations"):
            advice = f" A flag {ALL_AGENTS!r} is understood, and ends the episode for all."
        raise ValueError(
            f"step returns {what} for {unknown}, which are no agents of the env: it has "
            f"{sorted(map(str, known))}. Use the agents' own names.{advice} {SEE_CHECKER}"
        )


def reward_error(name: str, reward: Any) -> TypeError:
    """
    :param name: Name of an agent
    :param reward: Reward of the agent, which is no number
    :return: Error to raise
    """
    shape = getattr(reward, "shape", None)
    value = f"{reward!r} of shape {shape}" if shape else repr(reward)
    return TypeError(
        f"agent {name!r}: the reward {value} is no number. Return one number per agent. "
        f"{SEE_CHECKER}"
    )
