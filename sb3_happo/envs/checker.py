"""
A doctor for multi-agent environments: what is wrong, what to do about it, and what the algorithms will see.

``python -m sb3_happo.envs.checker mpe2/simple_spread_v3 N=2`` checks an id, with keyword arguments for the env.
"""

import argparse
import ast
import contextlib
import io
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any, Literal, NamedTuple, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_happo.envs.joint_env import JointEnv
from sb3_happo.envs.make import make_env
from sb3_happo.envs.spaces import (
    ACTION_MASK,
    AGENT_STATES,
    STATE,
    check_team_spaces,
    flatten_mask,
    n_choices,
    split_mask,
)
from sb3_happo.envs.teams import GymnasiumTeam, Team, TurnBased, agent_ids, has_ended

Level = Literal["error", "warning", "note"]
# Rewards of two agents whose correlation over a random team's steps is below this oppose each other
_OPPOSED = -0.5


class Finding(NamedTuple):
    """
    One thing that is wrong, or worth knowing.

    :param level: "error": training would fail or go wrong; "warning": probably not meant so; "note": worth knowing
    :param what: What was found
    :param remedy: What to do about it
    """

    level: Level
    what: str
    remedy: str


class Report(NamedTuple):
    """
    What :func:`check_marl_env` found.

    :param name: The environment
    :param findings: What is wrong, errors first
    :param summary: What the algorithms will see, line by line; empty if the env cannot be joined
    """

    name: str
    findings: list[Finding]
    summary: list[str]

    @property
    def ok(self) -> bool:
        """
        :return: Whether there are no errors
        """
        return not any(finding.level == "error" for finding in self.findings)

    def __str__(self) -> str:
        counts = {
            level: sum(finding.level == level for finding in self.findings)
            for level in ("error", "warning", "note")
        }
        lines = [
            f"{self.name}: "
            + ", ".join(f"{n} {level}{'' if n == 1 else 's'}" for level, n in counts.items())
        ]
        for finding in self.findings:
            lines += ["", f"{finding.level.upper()}: {finding.what}", f"  -> {finding.remedy}"]
        if self.summary:
            lines += ["", "What the algorithms will see:", *(f"  {line}" for line in self.summary)]
        return "\n".join(lines)


class _Rollout(NamedTuple):
    """
    A stretch of random play.

    :param observations: Everything observed, in order, as flat lists of arrays
    :param rewards: ``(n_steps, n_agents)``
    :param lengths: Lengths of the episodes that ended
    """

    observations: list[list[np.ndarray]]
    rewards: np.ndarray
    lengths: list[int]


class _Doctor:
    """Collects findings, each kind once."""

    def __init__(self) -> None:
        self._findings: dict[tuple[str, str], Finding] = {}

    def add(self, level: Level, what: str, remedy: str, key: str | None = None) -> None:
        """
        :param level: How bad it is
        :param what: What was found
        :param remedy: What to do about it
        :param key: What makes two findings the same; by default ``what``
        """
        self._findings.setdefault((level, key or what), Finding(level, what, remedy))

    def failed(self) -> bool:
        """
        :return: Whether there are errors
        """
        return any(finding.level == "error" for finding in self._findings.values())

    def findings(self) -> list[Finding]:
        """
        :return: What was found, errors first
        """
        order = ["error", "warning", "note"]
        return sorted(self._findings.values(), key=lambda finding: order.index(finding.level))

    @contextlib.contextmanager
    def survives(self, doing: str, remedy: str) -> Iterator[None]:
        """
        Turn an exception into a finding.

        :param doing: What is being done
        :param remedy: What to do if it fails
        """
        try:
            yield
        except Exception as error:  # whatever somebody's env raises
            self.add("error", f"{doing} raises {type(error).__name__}: {error}", remedy)

    # ------------------------------------------------------------ single values

    def observation(self, agent: str, space: spaces.Space, value: Any, part: str = "") -> None:
        """
        :param agent: Whose observation
        :param space: What it should be in
        :param value: The observation, or a part of it
        :param part: Which part
        """
        whose = f"agent {agent!r}: observation{part and f' {part}'}"
        if isinstance(space, (spaces.Dict, spaces.Tuple)):
            self._nested_observation(whose, agent, space, value, part)
            return
        if isinstance(space, spaces.Box) and not isinstance(value, np.ndarray):
            self.add(
                "warning",
                f"{whose} is a {type(value).__name__}, no array",
                "Return np.array(..., dtype=np.float32).",
            )
        array = np.asarray(value)
        if array.shape != space.shape:
            self.add(
                "error",
                f"{whose} has shape {array.shape}, its space {space.shape}",
                "Make both the same: correct observation_space, or what the env returns.",
                key=f"shape {whose}",
            )
            return
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            kind = "NaN" if np.isnan(array).any() else "infinite"
            self.add(
                "error",
                f"{whose} is {kind}",
                "Find the division by zero, the logarithm of a negative number, or the unbounded growth it comes from.",
            )
        elif isinstance(space, spaces.Box):
            if array.dtype.kind == "f" and space.dtype.kind in "iu":
                self.add(
                    "error",
                    f"{whose} has floats in a space of {space.dtype}",
                    "Declare the space with dtype=np.float32.",
                )
            elif (array < space.low).any() or (array > space.high).any():
                self.add(
                    "warning",
                    f"{whose} has values in [{array.min():.4g}, {array.max():.4g}], outside its bounds",
                    "Widen the bounds of the Box, with np.inf if there are none.",
                    key=f"bounds {whose}",
                )
        elif not space.contains(value):
            self.add(
                "error",
                f"{whose} {value!r} is not in {space}",
                "Correct observation_space, or what the env returns.",
                whose,
            )

    def _nested_observation(
        self, whose: str, agent: str, space: spaces.Dict | spaces.Tuple, value: Any, part: str
    ) -> None:
        if isinstance(space, spaces.Tuple):
            if len(value) != len(space.spaces):
                self.add(
                    "error",
                    f"{whose} has {len(value)} parts, its space {len(space.spaces)}",
                    "Make both the same.",
                )
            for index, (subspace, subvalue) in enumerate(zip(space.spaces, value, strict=False)):
                self.observation(agent, subspace, subvalue, f"{part}/{index}")
            return
        if not isinstance(value, Mapping):
            self.add(
                "error",
                f"{whose} is a {type(value).__name__}, its space a Dict",
                "Return a dict with the keys of the space.",
            )
            return
        missing, extra = set(space.spaces) - set(value), set(value) - set(space.spaces)
        if missing:
            self.add(
                "error",
                f"{whose} lacks {sorted(missing)}",
                "Return every key that the observation space has.",
            )
        if extra:
            self.add(
                "warning",
                f"{whose} has {sorted(extra)}, which its space has not",
                "Add them to the space; they are ignored.",
            )
        for key, subspace in space.spaces.items():
            if key in value and key != ACTION_MASK:
                self.observation(agent, subspace, value[key], f"{part}/{key}")

    def mask(self, agent: str, space: spaces.Space, mask: Any) -> np.ndarray | None:
        """
        :param agent: Whose mask
        :param space: The agent's action space
        :param mask: The mask as the env gives it
        :return: The mask laid out flat, None if it is of no use
        """
        if not n_choices(space):
            self.add(
                "warning",
                f"agent {agent!r} has an action mask, but {space} has nothing to mask",
                "It is ignored; drop it.",
            )
            return None
        try:
            flat = flatten_mask(space, mask)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            self.add(
                "error",
                f"agent {agent!r}: {error}",
                f"Return {n_choices(space)} zeros and ones, one head after the other.",
            )
            return None
        if not np.isin(flat, (0, 1)).all():
            self.add(
                "warning",
                f"agent {agent!r}: an action mask with other values than 0 and 1",
                "Use 0 and 1, as int8.",
            )
        if not _allows_something(split_mask(space, flat)):
            self.add(
                "error",
                f"agent {agent!r}: an action mask that allows nothing",
                "Always leave one action legal (one that does nothing, say), or leave the agent out of the observations.",
            )
            return None
        return flat

    def reward(self, agent: str, reward: Any) -> float:
        """
        :param agent: Whose reward
        :param reward: The reward
        :return: It as a number, 0 if it is none
        """
        if np.ndim(reward):
            self.add(
                "error",
                f"agent {agent!r}: a reward of shape {np.shape(reward)}",
                "Return one number per agent.",
            )
            return 0.0
        try:
            number = float(reward)
        except (TypeError, ValueError):
            self.add(
                "error",
                f"agent {agent!r}: the reward {reward!r} is no number",
                "Return one number per agent.",
            )
            return 0.0
        if not np.isfinite(number):
            self.add(
                "error",
                f"agent {agent!r}: a reward of {number}",
                "Find what it is computed from; rewards must be finite.",
            )
            return 0.0
        return number


def _allows_something(mask: Any) -> bool:
    if mask is None:
        return True
    if isinstance(mask, np.ndarray):
        return bool(mask.any())
    return all(
        _allows_something(part) for part in (mask.values() if isinstance(mask, dict) else mask)
    )


def _arrays(observation: Any) -> list[np.ndarray]:
    if isinstance(observation, Mapping):
        return [
            array for key in sorted(observation, key=str) for array in _arrays(observation[key])
        ]
    if isinstance(observation, (tuple, list)):
        return [array for part in observation for array in _arrays(part)]
    return [np.asarray(observation)]


class _Examination:
    """
    Plays an env at random through the parallel interface, and looks at all it returns.

    :param doctor: Where findings go
    :param env: The env
    :param team: The env behind the parallel interface
    :param seed: Seed
    :param uses_state: Whether the critic will see the env's ``state()``
    """

    def __init__(self, doctor: _Doctor, env: Any, team: Team, seed: int, uses_state: bool) -> None:
        self.doctor = doctor
        self.env = env
        self.team = team
        self.seed = seed
        self._state_level: Level = "error" if uses_state else "warning"
        self.in_turns = isinstance(team, TurnBased)
        self.ids: list[Any] = []
        self._state_shape: tuple[int, ...] | None = None
        self._spaces: dict[Any, tuple[spaces.Space, spaces.Space]] = {}

    def start(self, seed: int | None) -> tuple[dict[Any, Any], dict[Any, dict]]:
        """
        Reset, and look at what comes back.

        :param seed: Seed
        :return: Observations and infos
        """
        observations, infos = self.team.reset(seed=seed)
        self.ids = agent_ids(self.team)
        if not getattr(self.env, "possible_agents", None) and not isinstance(self.env, gym.Env):
            self.doctor.add(
                "warning",
                "the env has no `possible_agents`",
                "List in it everyone who may ever appear.",
            )
        for agent in self.ids:
            current = (self.team.observation_space(agent), self.team.action_space(agent))
            known = self._spaces.setdefault(agent, current)
            if known != current:
                self.doctor.add(
                    "error",
                    f"agent {str(agent)!r}: its spaces change from one reset to the next",
                    "Return the same spaces always; pad to the largest.",
                )
        self._look(observations, infos)
        self._state()
        return observations, infos

    def rollout(self, n_steps: int, seed: int, seeded: bool = True) -> _Rollout:
        """
        Play at random.

        :param n_steps: For how long
        :param seed: Seed of the actions and, if ``seeded``, of the first reset
        :param seeded: Whether to seed the env
        :return: What came of it
        """
        samplers = {
            agent: deepcopy(action_space) for agent, (_, action_space) in self._spaces.items()
        }
        for index, space in enumerate(samplers.values()):
            space.seed(seed + index)
        observations, infos = self.start(seed if seeded else None)
        seen, rewards, lengths, length = [_arrays(observations)], [], [], 0
        done: set[Any] = set()
        for _ in range(n_steps):
            actions = {}
            for agent, observation in observations.items():
                if agent in samplers and agent not in done:
                    actions[agent] = samplers[agent].sample(self._mask(agent, observation, infos))
            shown = {agent: _arrays(observation) for agent, observation in observations.items()}
            before = deepcopy(shown)
            answer: Any = self.team.step(actions)
            if not isinstance(answer, tuple) or len(answer) != 5:
                self.doctor.add(
                    "error",
                    f"step returns {len(answer) if isinstance(answer, tuple) else type(answer).__name__} and not five dicts",
                    "Return observations, rewards, terminations, truncations, infos.",
                )
                break
            observations, step_rewards, terminations, truncations, infos = answer
            self._aliases(shown, before)
            length += 1
            self._look(observations, infos)
            self._state()
            rewards.append(
                [self.doctor.reward(str(agent), step_rewards.get(agent, 0.0)) for agent in self.ids]
            )
            self._keys(actions, step_rewards, terminations, truncations)
            seen.append(_arrays(observations))
            done = {
                agent
                for agent in self.ids
                if terminations.get(agent, False) or truncations.get(agent, False)
            }
            if has_ended(self.team.agents, terminations, truncations):
                lengths.append(length)
                length = 0
                done = set()
                observations, infos = self.start(None)
        return _Rollout(seen, np.array(rewards).reshape(-1, len(self.ids)), lengths)

    def _mask(self, agent: Any, observation: Any, infos: Mapping[Any, Any]) -> Any:
        space = self._spaces[agent][1]
        in_observation = isinstance(observation, Mapping) and ACTION_MASK in observation
        mask = (
            observation[ACTION_MASK]
            if in_observation
            else (infos.get(agent) or {}).get(ACTION_MASK)
        )
        if mask is None:
            return None
        flat = self.doctor.mask(str(agent), space, mask)
        return None if flat is None else split_mask(space, flat)

    def _look(self, observations: Any, infos: Any) -> None:
        for name, value in (("observations", observations), ("infos", infos)):
            if not isinstance(value, Mapping):
                self.doctor.add(
                    "error",
                    f"the {name} are a {type(value).__name__}, no dict",
                    "Return {agent: ...} for both.",
                )
                return
        strangers = [agent for agent in observations if agent not in self._spaces]
        if strangers:
            self.doctor.add(
                "error",
                f"observations of agents {strangers}, who are not in possible_agents",
                "List them there.",
            )
        for agent, observation in observations.items():
            if agent in self._spaces:
                self.doctor.observation(str(agent), self._spaces[agent][0], observation)

    def _keys(
        self, actions: Mapping, rewards: Mapping, terminations: Mapping, truncations: Mapping
    ) -> None:
        """The agents of one step's dicts, against each other."""
        for name, values in (
            ("rewards", rewards),
            ("terminations", terminations),
            ("truncations", truncations),
        ):
            strangers = [agent for agent in values if agent not in self._spaces]
            missing = [str(agent) for agent in actions if agent not in values]
            if strangers:
                self.doctor.add(
                    "error",
                    f"{name} of {strangers}, who are not in possible_agents",
                    "Use the agents' own names.",
                )
            if missing:
                self.doctor.add(
                    "warning",
                    f"no {name} for {missing}, who acted",
                    "Return one for everyone who acted.",
                )
        if self.in_turns:
            return
        stay = [
            str(agent)
            for agent in self.team.agents
            if terminations.get(agent, False) or truncations.get(agent, False)
        ]
        if stay and not isinstance(self.team, GymnasiumTeam):
            self.doctor.add(
                "warning",
                f"agents {stay} are terminated or truncated, and still in `agents`",
                "Remove them from self.agents in the same step; they get no more actions.",
            )
        left = [
            str(agent)
            for agent in actions
            if agent not in self.team.agents
            and not (terminations.get(agent, False) or truncations.get(agent, False))
        ]
        if left:
            self.doctor.add(
                "warning",
                f"agents {left} left `agents` without being terminated or truncated",
                "Set the flag in the step in which they leave; otherwise the episode's end counts as a termination.",
            )

    def _aliases(
        self, shown: dict[Any, list[np.ndarray]], before: dict[Any, list[np.ndarray]]
    ) -> None:
        for agent, arrays in shown.items():
            for array, old in zip(arrays, before[agent], strict=True):
                if not np.array_equal(array, old, equal_nan=array.dtype.kind == "f"):
                    self.doctor.add(
                        "error",
                        f"agent {str(agent)!r}: the next step changes the observation that was returned before",
                        "Return a copy (`observation.copy()`), not the array that the env goes on working in.",
                    )

    def _state(self) -> None:
        if isinstance(self.team, GymnasiumTeam) or not hasattr(self.team, "state"):
            return
        remedy = "Repair it, or join the env with state='observations'."
        try:
            state = np.asarray(self.team.state())
        except NotImplementedError:
            return
        except Exception as error:  # whatever somebody's env raises
            self.doctor.add(
                self._state_level, f"state() raises {type(error).__name__}: {error}", remedy
            )
            return
        if state.dtype.kind not in "biuf":
            self.doctor.add(self._state_level, f"state() returns {state.dtype}, no numbers", remedy)
            return
        if self._state_shape not in (None, state.shape):
            self.doctor.add(
                self._state_level,
                f"state() has shape {state.shape}, and had {self._state_shape} before",
                remedy,
            )
        self._state_shape = state.shape
        if state.dtype.kind == "f" and not np.isfinite(state).all():
            self.doctor.add(self._state_level, "state() is not finite", remedy)

    def seeds(self, n_steps: int) -> None:
        """
        Play the same stretch twice, and start without a seed.

        :param n_steps: For how long
        """
        first, second = (self.rollout(n_steps, self.seed) for _ in range(2))
        if not (
            _same(first.observations, second.observations)
            and np.array_equal(first.rewards, second.rewards)
        ):
            self.doctor.add(
                "warning",
                "the same seed and actions give different episodes",
                "Draw all randomness from a generator that reset(seed) makes anew: np.random.default_rng(seed).",
            )
            return
        other = self.rollout(0, self.seed + 1)
        if _same(first.observations[:1], other.observations):
            return  # an env that always starts alike; whether it is seeded cannot be seen
        self.start(self.seed)
        unseeded = [self.rollout(0, self.seed, seeded=False) for _ in range(2)]
        if _same(unseeded[0].observations, unseeded[1].observations):
            self.doctor.add(
                "error",
                "every reset without a seed gives the same start",
                "Make a new generator only if seed is not None: all episodes but the first are reset without a seed.",
            )


def _same(first: list[list[np.ndarray]], second: list[list[np.ndarray]]) -> bool:
    return len(first) == len(second) and all(
        len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
        for a, b in zip(first, second, strict=True)
    )


def _opposition(doctor: _Doctor, ids: Sequence[Any], rewards: np.ndarray) -> None:
    """Say so where what is good for one agent is bad for another."""
    moving = (
        [index for index in range(rewards.shape[1]) if rewards[:, index].std() > 0]
        if len(rewards) > 1
        else []
    )
    if len(moving) < 2:
        return
    correlation = np.corrcoef(rewards[:, moving].T)
    if correlation.min() > _OPPOSED:
        return
    first, second = np.unravel_index(int(correlation.argmin()), correlation.shape)
    side = [
        str(ids[moving[index]]) for index in range(len(moving)) if correlation[first, index] > 0
    ]
    doctor.add(
        "warning",
        f"the rewards of {str(ids[moving[first]])!r} and {str(ids[moving[second]])!r} oppose each other "
        f"(correlation {correlation.min():.2f}): a reward for the whole team cancels out",
        f"Train one side against the other, for example JointEnv(env, agents={side}, others='random').",
    )


def _kind(doctor: _Doctor, env: Any) -> Literal["gymnasium", "turns", "parallel"] | None:
    """Which interface the env speaks, and whether it speaks it throughout."""
    if isinstance(env, gym.Env):
        if hasattr(env.unwrapped, "possible_agents"):
            doctor.add(
                "error",
                "the env derives from gymnasium.Env, but has `possible_agents` as PettingZoo's do",
                "Derive it from pettingzoo.ParallelEnv (all act at once) or AECEnv (in turns).",
            )
        return "gymnasium"
    turns = hasattr(env, "agent_iter") and hasattr(env, "last")
    if not turns and not all(
        callable(getattr(env, name, None)) for name in ("observation_space", "action_space")
    ):
        doctor.add(
            "error",
            f"{type(env).__name__} is neither a PettingZoo nor a Gymnasium env",
            "Derive it from pettingzoo.ParallelEnv, pettingzoo.AECEnv or gymnasium.Env; PettingZoo's have the methods "
            "observation_space(agent) and action_space(agent).",
        )
        return None
    answer: Any = ()
    with doctor.survives(
        "reset(seed=0)",
        "Give reset the arguments seed=None and options=None, and run it on its own.",
    ):
        answer = env.reset(seed=0)
    if turns and answer is not None and answer != ():
        doctor.add(
            "error",
            "the env is an AECEnv by its class, but its reset returns something, as a ParallelEnv's does",
            "Derive it from pettingzoo.ParallelEnv if all act at once; an AECEnv's reset returns nothing.",
        )
    elif not turns and answer is None:
        doctor.add(
            "error",
            "the env is a ParallelEnv by its class, but its reset returns nothing, as an AECEnv's does",
            "Return (observations, infos), or derive it from pettingzoo.AECEnv.",
        )
    elif not turns and (not isinstance(answer, tuple) or len(answer) not in (0, 2)):
        doctor.add(
            "error",
            "reset does not return two dicts",
            "Return (observations, infos), each {agent: ...}.",
        )
    if (
        not turns
        and not doctor.failed()
        and hasattr(env.unwrapped, "agent_selection")
        and env.unwrapped is env
    ):
        doctor.add(
            "warning",
            "a ParallelEnv with `agent_selection`, which is an AECEnv's",
            "Remove it; all agents act at once.",
        )
    return "turns" if turns else "parallel"


def _official_tests(doctor: _Doctor, env: Any, kind: str, masked: bool, n_steps: int) -> None:
    """PettingZoo's and Gymnasium's own tests, where they apply."""
    if kind == "gymnasium":
        from gymnasium.utils.env_checker import check_env

        name, test = (
            "gymnasium.utils.env_checker.check_env",
            lambda: check_env(env.unwrapped, skip_render_check=True),
        )
    else:
        from pettingzoo.test import api_test, parallel_api_test

        name = "pettingzoo.test." + ("api_test" if kind == "turns" else "parallel_api_test")
        test = lambda: (api_test if kind == "turns" else parallel_api_test)(env, n_steps)  # noqa: E731
        ids = agent_ids(env)
        if masked and any(
            not isinstance(env.action_space(agent), spaces.Discrete) for agent in ids
        ):
            doctor.add(
                "note",
                f"{name} was left out",
                "It cannot sample masked actions of other spaces than Discrete.",
            )
            return
    _run_test(doctor, name, test)


def _run_test(doctor: _Doctor, name: str, test: Callable[[], Any]) -> None:
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("always")
        with doctor.survives(
            name, "Run it on the env alone to see where; its message says what it expected."
        ):
            test()
    for warning in caught:
        if issubclass(warning.category, UserWarning):
            text = str(warning.message).replace("\x1b[33mWARN: ", "").replace("\x1b[0m", "")
            doctor.add("note", f"{name}: {text}", "Advice of that test; heed it where it fits.")


def _summary(joint: JointEnv, rollout: _Rollout | None) -> list[str]:
    lines = [f"agents       {joint.n_agents}: {', '.join(joint.agents)}"]
    for agent, action_space in joint.action_space.items():
        own = {
            key: space
            for key, space in joint.observation_space.items()
            if key == agent or key.startswith(f"{agent}/")
        }
        masked = own.pop(f"{agent}/{ACTION_MASK}", None) is not None
        seen = ", ".join(f"{key}: {_short(space)}" for key, space in own.items())
        lines.append(
            f"{agent}: sees {seen}; does {_short(action_space)}{', masked' if masked else ''}"
        )
    state = {
        key: space
        for key, space in joint.observation_space.items()
        if key in (STATE, AGENT_STATES) or key.startswith(STATE + "/")
    }
    lines.append(
        "critic       " + ", ".join(f"{key}: {_short(space)}" for key, space in state.items())
    )
    lines.append(f"team reward  {joint.team_reward}")
    if rollout is not None and len(rollout.rewards):
        means = rollout.rewards.mean(axis=0)
        each = ", ".join(
            f"{agent} {mean:.4g}" for agent, mean in zip(joint.agents, means, strict=True)
        )
        lines.append(f"random play  mean reward per step: {each}")
        if rollout.lengths:
            lines.append(
                f"episodes     {len(rollout.lengths)}, of {min(rollout.lengths)} to {max(rollout.lengths)} joint steps"
            )
    return lines


def _short(space: spaces.Space) -> str:
    if isinstance(space, spaces.Box):
        bounds = f"[{space.low.min():.4g}, {space.high.max():.4g}]" if space.shape != (0,) else ""
        return f"Box{space.shape} {bounds} {space.dtype}"
    return str(space)


def check_marl_env(env: Any, n_steps: int = 500, seed: int = 0, **env_kwargs: Any) -> Report:
    """
    Examine a multi-agent environment: play it at random, and say what is wrong with it, what to do about that, and what
    the algorithms will see of it. PettingZoo's and Gymnasium's own tests are run, too.

    .. code-block:: python

        report = check_marl_env(MyEnv())
        print(report)
        assert report.ok

    :param env: A PettingZoo or Gymnasium env, a :class:`~sb3_happo.envs.JointEnv`, an id of
        :func:`~sb3_happo.envs.make_joint_env`, or a callable that returns an env. It is stepped and reset; do not use it on
    :param n_steps: Joint steps to play
    :param seed: Seed of the env and of the actions
    :param env_kwargs: Arguments of the env, for an id or a callable
    :return: Findings, and what the algorithms will see
    :raises ValueError: If an id does not resolve
    """
    if isinstance(env, str):
        name, env = env, make_env(env, **env_kwargs)
    elif isinstance(env, type) or (callable(env) and not hasattr(env, "reset")):
        env = env(**env_kwargs)
        name = type(env).__name__
    else:
        name = str(getattr(env, "unwrapped", env).__class__.__name__)
    doctor = _Doctor()
    joint: JointEnv | None = None
    if isinstance(env, gym.Env) and isinstance(env.unwrapped, JointEnv):
        joint = env.unwrapped
        env = joint.env
        name = type(getattr(env, "unwrapped", env)).__name__
    kind = _kind(doctor, env)
    if kind is None or doctor.failed():
        return Report(name, doctor.findings(), [])
    with doctor.survives("joining the env", "See the message."):
        joint = joint or JointEnv(env)
        check_team_spaces(joint.observation_space, joint.action_space)
    rollout = None
    with doctor.survives(
        "playing the env at random", "Run reset and step on their own to see where it comes from."
    ):
        team = _as_team(env, kind, joint)
        examination = _Examination(doctor, env, team, seed, joint is None or joint.uses_env_state)
        examination.start(seed)
        examination.seeds(min(n_steps, 50))
        rollout = examination.rollout(n_steps, seed)
        if not rollout.lengths:
            doctor.add(
                "note",
                f"no episode ended within {n_steps} steps",
                "See to it that episodes end; truncate them, say.",
            )
        if joint is None or joint.n_agents == len(examination.ids):
            _opposition(doctor, examination.ids, rollout.rewards)
    if kind != "gymnasium" or (joint is not None and joint.n_agents == 1):
        masked = joint is not None and any(
            key.endswith("/" + ACTION_MASK) for key in joint.observation_space
        )
        _official_tests(doctor, env, kind, masked, min(n_steps, 200))
    joins = joint is not None and (rollout is None or rollout.rewards.shape[1] == joint.n_agents)
    summary = [] if joint is None else _summary(joint, rollout if joins else None)
    return Report(name, doctor.findings(), summary)


def _as_team(env: Any, kind: str, joint: JointEnv | None) -> Team:
    if kind == "gymnasium":
        return GymnasiumTeam(env, None if joint is None else joint.n_agents > 1)
    return TurnBased(env) if kind == "turns" else cast(Team, env)


def main(arguments: Sequence[str] | None = None) -> int:
    """
    The command.

    :param arguments: Command line, by default the process's own
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
        try:
            env_kwargs[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            env_kwargs[key] = value
    report = check_marl_env(options.id, options.n_steps, options.seed, **env_kwargs)
    sys.stdout.write(f"{report}\n")
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
