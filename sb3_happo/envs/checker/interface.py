"""Interface that an environment implements, and the tests of its library for that interface."""

import contextlib
import io
import warnings
from collections.abc import Callable
from typing import Any, Literal

from gymnasium import spaces

from sb3_happo.envs.adapters import agent_ids, is_gymnasium, takes_turns
from sb3_happo.envs.checker.report import Findings

Interface = Literal["gymnasium", "turns", "parallel"]


def check_interface(findings: Findings, env: Any) -> Interface | None:
    """
    Determine the interface of an environment, and check that all of the environment follows it.

    :param findings: Collection that takes the findings
    :param env: Environment
    :return: "gymnasium", "turns" (PettingZoo's ``AECEnv``), "parallel" (PettingZoo's
        ``ParallelEnv``), or None for anything else
    """
    if is_gymnasium(env):
        if hasattr(env.unwrapped, "possible_agents"):
            findings.add(
                "error",
                "the env derives from gymnasium.Env, but has `possible_agents` as PettingZoo's do",
                "Derive it from pettingzoo.ParallelEnv (all agents act at once) or AECEnv (in "
                "turns).",
            )
        return "gymnasium"
    if takes_turns(env):
        _check_turns(findings, _reset(findings, env))
        return "turns"
    for name in ("observation_space", "action_space"):
        if not callable(getattr(env, name, None)):
            findings.add(
                "error",
                f"{type(env).__name__} is neither a PettingZoo nor a Gymnasium env",
                "Derive it from pettingzoo.ParallelEnv, pettingzoo.AECEnv or gymnasium.Env; "
                "PettingZoo's have the methods observation_space(agent) and action_space(agent).",
            )
            return None
    _check_parallel(findings, env, _reset(findings, env))
    return "parallel"


def _reset(findings: Findings, env: Any) -> Any:
    """Return value of ``reset(seed=0)``; an empty tuple if it fails."""
    remedy = "Give reset the arguments seed=None and options=None, and run it on its own."
    try:
        return env.reset(seed=0)
    except Exception as error:  # user code may raise anything
        findings.add_exception("reset(seed=0)", error, remedy)
        return ()


def _check_turns(findings: Findings, returned: Any) -> None:
    if returned is not None and returned != ():
        findings.add(
            "error",
            "the env is an AECEnv by its class, but its reset returns something, as a "
            "ParallelEnv's does",
            "Derive it from pettingzoo.ParallelEnv if all agents act at once; an AECEnv's reset "
            "returns nothing.",
        )


def _check_parallel(findings: Findings, env: Any, returned: Any) -> None:
    if returned is None:
        findings.add(
            "error",
            "the env is a ParallelEnv by its class, but its reset returns nothing, as an AECEnv's "
            "does",
            "Return (observations, infos), or derive it from pettingzoo.AECEnv.",
        )
    elif not isinstance(returned, tuple) or len(returned) not in (0, 2):
        findings.add(
            "error",
            "reset does not return two dicts",
            "Return (observations, infos), each {agent: ...}.",
        )
    if findings.failed():
        return
    if getattr(env, "unwrapped", env) is env and hasattr(env, "agent_selection"):
        findings.add(
            "warning",
            "a ParallelEnv with `agent_selection`, which is an AECEnv's",
            "Remove it; all agents act at once.",
        )


def run_official_tests(
    findings: Findings, env: Any, interface: Interface, masked: bool, n_steps: int
) -> None:
    """
    Run the tests that PettingZoo or Gymnasium has for environments.

    :param findings: Collection that takes the findings
    :param env: Environment
    :param interface: Interface of the environment
    :param masked: Whether an agent has an action mask
    :param n_steps: Number of steps of PettingZoo's tests
    """
    if interface == "gymnasium":
        from gymnasium.utils.env_checker import check_env

        _run_test(
            findings,
            "gymnasium.utils.env_checker.check_env",
            lambda: check_env(env.unwrapped, skip_render_check=True),
        )
        return
    from pettingzoo import AECEnv, ParallelEnv
    from pettingzoo.test import api_test, parallel_api_test

    if not isinstance(env, (AECEnv, ParallelEnv)):
        findings.add(
            "note",
            "PettingZoo's tests were left out",
            "The env derives from none of PettingZoo's classes, which those tests demand.",
        )
        return
    test = api_test if interface == "turns" else parallel_api_test
    name = f"pettingzoo.test.{test.__name__}"
    discrete = [isinstance(env.action_space(agent), spaces.Discrete) for agent in agent_ids(env)]
    if masked and not all(discrete):
        findings.add(
            "note",
            f"{name} was left out",
            "It cannot sample masked actions of other spaces than Discrete.",
        )
        return
    _run_test(findings, name, lambda: test(env, n_steps))


def _run_test(findings: Findings, name: str, test: Callable[[], Any]) -> None:
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("always")
        with findings.reporting(
            name, "Run it on the env alone to see where; its message says what it expected."
        ):
            test()
    for warning in caught:
        if issubclass(warning.category, UserWarning):
            text = str(warning.message).replace("\x1b[33mWARN: ", "").replace("\x1b[0m", "")
            findings.add("note", f"{name}: {text}", "Advice of that test; follow it where it fits.")
