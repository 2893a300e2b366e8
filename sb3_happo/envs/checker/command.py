"""The check of an environment, as a function and as a command."""

import argparse
import ast
import operator
import sys
from collections.abc import Sequence
from typing import Any, cast

import gymnasium as gym
from gymnasium import spaces

from sb3_happo.envs.adapters import GymnasiumTeam, GymWrappedTeam, Team, TurnBased
from sb3_happo.envs.checker.interface import Interface, check_interface, run_official_tests
from sb3_happo.envs.checker.play import RandomPlay, Rollout, check_opposed_rewards
from sb3_happo.envs.checker.report import Findings, Report
from sb3_happo.envs.joint_env import JointEnv
from sb3_happo.envs.make import make_env
from sb3_happo.envs.space_checks import check_team_spaces
from sb3_happo.envs.spaces import ACTION_MASK, AGENT_STATES, STATE

# Steps of the parts of a check that need fewer than the random play
_SEED_STEPS = 50
_OFFICIAL_STEPS = 200


def check_marl_env(env: Any, n_steps: int = 500, seed: int = 0, **env_kwargs: Any) -> Report:
    """
    Check a multi-agent environment: play it at random and report what is wrong with it, how to
    solve it, and what the algorithms will see. PettingZoo's and Gymnasium's own tests are run, too.

    .. code-block:: python

        report = check_marl_env(MyEnv())
        print(report)
        assert report.ok

    :param env: A PettingZoo or Gymnasium env, a :class:`~sb3_happo.envs.JointEnv`, an id of
        :func:`~sb3_happo.envs.make_joint_env`, or a callable that returns an env. The check steps
        and resets the env; do not use it afterwards
    :param n_steps: Number of joint steps to play
    :param seed: Seed of the env and of the actions
    :param env_kwargs: Keyword arguments of the env, for an id or a callable
    :return: Findings, and a summary of what the algorithms will see
    :raises ValueError: If an id does not resolve
    """
    n_steps, seed = operator.index(n_steps), operator.index(seed)
    name, env, joint = _resolve(env, env_kwargs)
    findings = Findings()
    interface = check_interface(findings, env)
    if interface is None or findings.failed():
        return Report(name, findings.in_order(), [])
    with findings.reporting("joining the env", "See the message."):
        joint = joint or JointEnv(env)
        check_team_spaces(joint.observation_space, joint.action_space)
    rollout: Rollout | None = None
    with findings.reporting(
        "playing the env at random", "Run reset and step on their own to see where it comes from."
    ):
        team = _as_team(env, interface, joint)
        uses_state = joint is None or joint.uses_env_state
        play = RandomPlay(findings, env, team, seed, uses_state)
        rollout = _play(play, n_steps)
        if joint is None or joint.n_agents == len(play.ids):
            check_opposed_rewards(findings, play.ids, rollout.rewards)
    _check_officially(findings, env, interface, joint, n_steps)
    summary = [] if joint is None else _summary(joint, rollout)
    return Report(name, findings.in_order(), summary)


def _resolve(env: Any, env_kwargs: dict[str, Any]) -> tuple[str, Any, JointEnv | None]:
    """
    :param env: An id, a callable, or an environment
    :param env_kwargs: Keyword arguments of the environment
    :return: Name for the report; the environment to play; the ``JointEnv`` around it, if any
    """
    if isinstance(env, str):
        name = env
        env = make_env(env, **env_kwargs)
    elif isinstance(env, type) or (callable(env) and not hasattr(env, "reset")):
        env = env(**env_kwargs)
        name = type(env).__name__
    else:
        name = str(getattr(env, "unwrapped", env).__class__.__name__)
    if isinstance(env, gym.Env) and isinstance(env.unwrapped, JointEnv):
        joint = env.unwrapped
        env = joint.env
        return type(getattr(env, "unwrapped", env)).__name__, env, joint
    return name, env, None


def _as_team(env: Any, interface: Interface, joint: JointEnv | None) -> Team:
    if interface == "gymnasium":
        return GymnasiumTeam(env, None if joint is None else joint.n_agents > 1)
    if interface == "turns":
        return TurnBased(env)
    # Not ParallelTeam, whose errors would come before the findings of the play
    return GymWrappedTeam(env) if isinstance(env, gym.Wrapper) else cast(Team, env)


def _play(play: RandomPlay, n_steps: int) -> Rollout:
    play.start(play.seed)
    play.check_seeds(min(n_steps, _SEED_STEPS))
    rollout = play.rollout(n_steps, play.seed)
    if not rollout.lengths:
        play.findings.add(
            "note",
            f"no episode ended within {n_steps} steps",
            "Make sure that episodes end, for example by truncation.",
        )
    return rollout


def _check_officially(
    findings: Findings, env: Any, interface: Interface, joint: JointEnv | None, n_steps: int
) -> None:
    """Run the official tests where they apply: Gymnasium's knows single-agent envs only."""
    if interface == "gymnasium" and (joint is None or joint.n_agents > 1):
        return
    keys = [] if joint is None else list(joint.observation_space)
    masked = any(key.endswith("/" + ACTION_MASK) for key in keys)
    run_official_tests(findings, env, interface, masked, min(n_steps, _OFFICIAL_STEPS))


def _summary(joint: JointEnv, rollout: Rollout | None) -> list[str]:
    """Lines about the agents' spaces, the critic's state, the reward and the random play."""
    lines = [f"agents       {joint.n_agents}: {', '.join(joint.agents)}"]
    lines += [_agent_summary(joint, agent) for agent in joint.agents]
    state = {}
    for key, space in joint.observation_space.items():
        if key in (STATE, AGENT_STATES) or key.startswith(STATE + "/"):
            state[key] = space
    lines.append(f"critic       {_list_spaces(state)}")
    lines.append(f"team reward  {joint.team_reward}")
    # The play is that of the whole environment, in which the team may be only a part
    if rollout is None or rollout.rewards.shape[1] != joint.n_agents or not len(rollout.rewards):
        return lines
    means = zip(joint.agents, rollout.rewards.mean(axis=0), strict=True)
    each = ", ".join(f"{agent} {mean:.4g}" for agent, mean in means)
    lines.append(f"random play  mean reward per step: {each}")
    lengths = rollout.lengths
    if lengths:
        lines.append(
            f"episodes     {len(lengths)}, of {min(lengths)} to {max(lengths)} joint steps"
        )
    return lines


def _agent_summary(joint: JointEnv, agent: str) -> str:
    own = {}
    for key, space in joint.observation_space.items():
        if key == agent or key.startswith(f"{agent}/"):
            own[key] = space
    masked = own.pop(f"{agent}/{ACTION_MASK}", None) is not None
    text = f"{agent}: sees {_list_spaces(own)}; does {_short(joint.action_space[agent])}"
    return f"{text}, masked" if masked else text


def _list_spaces(entries: dict[str, spaces.Space]) -> str:
    return ", ".join(f"{key}: {_short(space)}" for key, space in entries.items())


def _short(space: spaces.Space) -> str:
    if not isinstance(space, spaces.Box):
        return str(space)
    bounds = f"[{space.low.min():.4g}, {space.high.max():.4g}]" if space.shape != (0,) else ""
    return f"Box{space.shape} {bounds} {space.dtype}"


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Command line of the check.

    :param arguments: Command-line arguments; those of the process by default
    :return: Exit status: 1 if there are errors
    """
    parser = argparse.ArgumentParser(
        prog="python -m sb3_happo.envs.checker", description="Check a multi-agent environment."
    )
    parser.add_argument("id", help="id, for example mpe2/simple_spread_v3 or my_pkg/my_env_v0")
    parser.add_argument(
        "kwargs", nargs="*", metavar="key=value", help="arguments of the env, for example N=2"
    )
    parser.add_argument("--n-steps", type=int, default=500, help="joint steps to play")
    parser.add_argument("--seed", type=int, default=0, help="seed of the env and of the actions")
    options = parser.parse_args(arguments)
    env_kwargs: dict[str, Any] = {}
    for pair in options.kwargs:
        key, equals, value = pair.partition("=")
        if not equals:
            parser.error(f"{pair!r} is not key=value")
        env_kwargs[key] = _parse_value(value)
    report = check_marl_env(options.id, options.n_steps, options.seed, **env_kwargs)
    sys.stdout.write(f"{report}\n")
    return 0 if report.ok else 1


def _parse_value(text: str) -> Any:
    """Value of a Python literal; the text itself if it is none."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
