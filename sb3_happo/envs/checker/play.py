"""Random play of an environment through the parallel interface, with checks of every step."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from sb3_happo.envs.adapters import (
    Flags,
    GymnasiumTeam,
    Team,
    TeamStep,
    TurnBased,
    agent_ids,
    flagged_agents,
    has_ended,
    is_gymnasium,
)
from sb3_happo.envs.checker.report import Findings, Level
from sb3_happo.envs.checker.values import check_mask, check_observation, check_reward
from sb3_happo.envs.spaces import ACTION_MASK, split_mask
from sb3_happo.envs.step_checks import ALL_AGENTS, agent_flags

# Correlation between two agents' rewards at the steps of random play below which they are opposed
_OPPOSED_CORRELATION = -0.5
# Resets without a seed that must be equal to the first one before an env is said to repeat itself
_N_UNSEEDED_RESETS = 20


class Rollout(NamedTuple):
    """
    Record of random play.

    :param observations: Observations of each step, in order, as flat lists of arrays
    :param rewards: Rewards, ``(n_steps, n_agents)``
    :param lengths: Lengths of the episodes that ended
    """

    observations: list[list[np.ndarray]]
    rewards: np.ndarray
    lengths: list[int]


class RandomPlay:
    """
    Random play with checks of everything that the environment returns.

    :param findings: Collection that takes the findings
    :param env: Environment
    :param team: The same environment behind the parallel interface
    :param seed: Seed of the environment and of the actions
    :param uses_state: Whether the critic will see the environment's ``state()``
    """

    def __init__(
        self, findings: Findings, env: Any, team: Team, seed: int, uses_state: bool
    ) -> None:
        self.findings = findings
        self.env = env
        self.team = team
        self.seed = seed
        self.takes_turns = isinstance(team, TurnBased)
        self.ids: list[Any] = []
        self._state_level: Level = "error" if uses_state else "warning"
        self._state_shape: tuple[int, ...] | None = None
        self._spaces: dict[Any, tuple[spaces.Space, spaces.Space]] = {}

    def start(self, seed: int | None) -> tuple[dict[Any, Any], dict[Any, dict]]:
        """
        Reset the environment and check what it returns.

        :param seed: Seed, or None
        :return: Observations and infos
        """
        listed = getattr(self.env, "possible_agents", None)
        n_listed = len(listed or ())
        observations, infos = self.team.reset(seed=seed)
        self._check_team(listed, n_listed)
        if not listed and not n_listed and not is_gymnasium(self.env):
            self.findings.add(
                "warning",
                "the env has no `possible_agents`",
                "List in it all agents that may ever appear.",
            )
        for agent in self.ids:
            current = (self.team.observation_space(agent), self.team.action_space(agent))
            known = self._spaces.setdefault(agent, current)
            if known != current:
                self.findings.add(
                    "error",
                    f"agent {str(agent)!r}: its spaces change from one reset to the next",
                    "Return the same spaces always; pad to the largest.",
                )
        self._check_observations(observations, infos)
        self._check_state()
        return observations, infos

    def _check_team(self, listed: Any, n_listed: int) -> None:
        """
        Compare the agents after a reset with those of before.

        :param listed: ``possible_agents`` before the reset
        :param n_listed: Their number then
        """
        current = agent_ids(self.team)
        lost = [str(agent) for agent in self.ids if agent not in current]
        self.ids += [agent for agent in current if agent not in self.ids]
        # An environment without `possible_agents` may have other `agents` in every episode
        if lost and listed is getattr(self.env, "possible_agents", None):
            self.findings.add(
                "error",
                f"the agents {lost} have been removed from `possible_agents` and never return",
                "`agents` and `possible_agents` are one list; copy it in reset: self.agents = "
                "self.possible_agents[:].",
            )
        if not len(self.team.agents):
            self.findings.add(
                "error",
                "`agents` is empty after reset",
                "Fill it in reset, for example self.agents = self.possible_agents[:], and return "
                "an observation for each.",
            )

    def rollout(self, n_steps: int, seed: int, seeded: bool = True) -> Rollout:
        """
        Play random legal actions.

        :param n_steps: Number of joint steps
        :param seed: Seed of the actions and, if ``seeded``, of the first reset
        :param seeded: Whether to seed the environment
        :return: Record of the play
        """
        samplers = self._samplers(seed)
        observations, infos = self.start(seed if seeded else None)
        seen = [_arrays(observations)]
        rewards: list[list[float]] = []
        lengths: list[int] = []
        length = 0
        done: set[Any] = set()
        for _ in range(n_steps):
            acting = [agent for agent in observations if agent in samplers and agent not in done]
            actions = {}
            for agent in acting:
                mask = self._mask(agent, observations[agent], infos)
                actions[agent] = samplers[agent].sample(mask)
            step = self._step(observations, actions)
            if step is None:
                break
            observations, step_rewards, terminations, truncations, infos = step
            terminations, truncations = self._heed_all(actions, terminations, truncations)
            length += 1
            rewards.append(self._rewards(step_rewards))
            self._check_agents(actions, step_rewards, terminations, truncations)
            seen.append(_arrays(observations))
            done = flagged_agents(self.ids, terminations, truncations)
            if has_ended(self.team.agents, terminations, truncations):
                lengths.append(length)
                length = 0
                done = set()
                observations, infos = self.start(None)
        return Rollout(seen, np.array(rewards).reshape(-1, len(self.ids)), lengths)

    def _samplers(self, seed: int) -> dict[Any, spaces.Space]:
        """Seeded copies of the action spaces."""
        samplers = {}
        for index, (agent, (_, action_space)) in enumerate(self._spaces.items()):
            samplers[agent] = deepcopy(action_space)
            samplers[agent].seed(seed + index)
        return samplers

    def _step(self, observations: dict[Any, Any], actions: dict[Any, Any]) -> TeamStep | None:
        """One step with its checks; None if the environment does not return a step."""
        shown = {agent: _arrays(observation) for agent, observation in observations.items()}
        before = deepcopy(shown)
        step: Any = self.team.step(actions)
        if not isinstance(step, tuple) or len(step) != 5:
            returned = len(step) if isinstance(step, tuple) else type(step).__name__
            self.findings.add(
                "error",
                f"step returns {returned} and not five dicts",
                "Return observations, rewards, terminations, truncations, infos.",
            )
            return None
        self._check_copies(shown, before)
        self._check_observations(step[0], step[4])
        self._check_state()
        return step

    def _rewards(self, rewards: Mapping[Any, Any]) -> list[float]:
        return [
            check_reward(self.findings, str(agent), rewards.get(agent, 0.0)) for agent in self.ids
        ]

    def _mask(self, agent: Any, observation: Any, infos: Mapping[Any, Any]) -> Any:
        """Action mask in the form that ``space.sample(mask)`` takes; None without a mask."""
        space = self._spaces[agent][1]
        if isinstance(observation, Mapping) and ACTION_MASK in observation:
            mask = observation[ACTION_MASK]
        else:
            mask = (infos.get(agent) or {}).get(ACTION_MASK)
        if mask is None:
            return None
        flat = check_mask(self.findings, str(agent), space, mask)
        return None if flat is None else split_mask(space, flat)

    def _check_observations(self, observations: Any, infos: Any) -> None:
        for name, value in (("observations", observations), ("infos", infos)):
            if not isinstance(value, Mapping):
                self.findings.add(
                    "error",
                    f"the {name} are a {type(value).__name__}, no dict",
                    "Return {agent: ...} for both.",
                )
                return
        unknown = [agent for agent in observations if agent not in self._spaces]
        if unknown:
            self.findings.add(
                "error",
                f"observations of agents {unknown}, who are not in possible_agents",
                "List them there.",
            )
        for agent, observation in observations.items():
            if agent in self._spaces:
                check_observation(self.findings, str(agent), self._spaces[agent][0], observation)

    def _check_agents(
        self,
        actions: Mapping[Any, Any],
        rewards: Mapping[Any, Any],
        terminations: Flags,
        truncations: Flags,
    ) -> None:
        """Compare the agents in the dicts of one step."""
        self._check_keys("rewards", rewards, actions)
        self._check_keys("terminations", terminations, actions)
        self._check_keys("truncations", truncations, actions)
        if not self.takes_turns:
            self._check_leaving(actions, terminations, truncations)

    def _heed_all(
        self, actions: Mapping[Any, Any], terminations: Flags, truncations: Flags
    ) -> tuple[Flags, Flags]:
        """Flags by agent, where a flag ``"__all__"`` holds for all agents, as in training."""
        if ALL_AGENTS not in terminations and ALL_AGENTS not in truncations:
            return terminations, truncations
        self.findings.add(
            "warning",
            f"terminations or truncations have {ALL_AGENTS!r}, which is no agent",
            "It is taken as the end for all agents; PettingZoo's envs give each agent its own "
            "flag.",
        )
        known = {*terminations, *truncations, *self.ids} - {ALL_AGENTS}
        return agent_flags(terminations, truncations, known, {*actions, *self.team.agents})

    def _check_keys(self, name: str, values: Mapping[Any, Any], actions: Mapping[Any, Any]) -> None:
        unknown = [agent for agent in values if agent not in self._spaces]
        missing = [str(agent) for agent in actions if agent not in values]
        if unknown:
            self.findings.add(
                "error",
                f"{name} of {unknown}, who are not in possible_agents",
                "Use the agents' own names.",
            )
        if missing:
            self.findings.add(
                "warning",
                f"no {name} for {missing}, who acted",
                "Return one for every agent that acted.",
            )

    def _check_leaving(
        self, actions: Mapping[Any, Any], terminations: Flags, truncations: Flags
    ) -> None:
        """Agents must leave ``agents`` in the step in which their flag is set, and only then."""
        agents = self.team.agents
        flagged = flagged_agents([*agents, *actions], terminations, truncations)
        staying = [str(agent) for agent in agents if agent in flagged]
        if staying and not isinstance(self.team, GymnasiumTeam):
            self.findings.add(
                "warning",
                f"agents {staying} are terminated or truncated, and still in `agents`",
                "Remove them from self.agents in the same step; they get no more actions.",
            )
        absent = [agent for agent in actions if agent not in agents]
        leaving = [str(agent) for agent in absent if agent not in flagged]
        if leaving:
            self.findings.add(
                "warning",
                f"agents {leaving} left `agents` without being terminated or truncated",
                "Set the flag in the step in which they leave; otherwise the episode's end counts "
                "as a termination.",
            )

    def _check_copies(
        self, shown: dict[Any, list[np.ndarray]], before: dict[Any, list[np.ndarray]]
    ) -> None:
        """Observations of the last step must not have been changed by this one."""
        for agent, arrays in shown.items():
            for array, old in zip(arrays, before[agent], strict=True):
                if not np.array_equal(array, old, equal_nan=array.dtype.kind == "f"):
                    self.findings.add(
                        "error",
                        f"agent {str(agent)!r}: the next step changes the observation that was "
                        "returned before",
                        "Return a copy (`observation.copy()`) and not the array that the env "
                        "changes later.",
                    )

    def _check_state(self) -> None:
        if isinstance(self.team, GymnasiumTeam) or not hasattr(self.team, "state"):
            return
        try:
            state = np.asarray(self.team.state())
        except NotImplementedError:
            return
        except Exception as error:  # user code may raise anything
            self._add_state_finding(f"state() raises {type(error).__name__}: {error}")
            return
        if state.dtype.kind not in "biuf":
            self._add_state_finding(f"state() returns {state.dtype}, no numbers")
            return
        if self._state_shape not in (None, state.shape):
            self._add_state_finding(
                f"state() has shape {state.shape}, and had {self._state_shape} before"
            )
        self._state_shape = state.shape
        if state.dtype.kind == "f" and not np.isfinite(state).all():
            self._add_state_finding("state() is not finite")

    def _add_state_finding(self, what: str) -> None:
        remedy = "Repair it, or join the env with state='observations'."
        self.findings.add(self._state_level, what, remedy)

    def check_seeds(self, n_steps: int) -> None:
        """
        Play twice with the same seed, and reset without a seed.

        :param n_steps: Number of joint steps of each play
        """
        first = self.rollout(n_steps, self.seed)
        second = self.rollout(n_steps, self.seed)
        same_observations = _are_equal(first.observations, second.observations)
        if not (same_observations and np.array_equal(first.rewards, second.rewards)):
            self.findings.add(
                "warning",
                "the same seed and actions give different episodes",
                "Draw all randomness from a generator that reset(seed) makes anew: "
                "np.random.default_rng(seed).",
            )
            return
        other = self.rollout(0, self.seed + 1)
        if _are_equal(first.observations[:1], other.observations):
            return  # every episode starts alike, so that seeding cannot be observed
        self.start(self.seed)
        if self._unseeded_starts_are_equal():
            self.findings.add(
                "error",
                "every reset without a seed gives the same start",
                "Make a new generator only if seed is not None: all episodes but the first are "
                "reset without a seed.",
            )

    def _unseeded_starts_are_equal(self) -> bool:
        """Whether many resets without a seed give one start; a start may have few forms."""
        first = self.rollout(0, self.seed, seeded=False)
        for _ in range(_N_UNSEEDED_RESETS):
            other = self.rollout(0, self.seed, seeded=False)
            if not _are_equal(first.observations, other.observations):
                return False
        return True


def _arrays(observation: Any) -> list[np.ndarray]:
    """The arrays inside a nested observation, with the keys of dicts in sorted order."""
    if isinstance(observation, Mapping):
        parts = [observation[key] for key in sorted(observation, key=str)]
    elif isinstance(observation, (tuple, list)):
        parts = list(observation)
    else:
        return [np.asarray(observation)]
    arrays = []
    for part in parts:
        arrays += _arrays(part)
    return arrays


def _are_equal(first: list[list[np.ndarray]], second: list[list[np.ndarray]]) -> bool:
    """Whether two records of observations have the same arrays."""
    if [len(arrays) for arrays in first] != [len(arrays) for arrays in second]:
        return False
    for ours, theirs in zip(first, second, strict=True):
        if not all(map(np.array_equal, ours, theirs)):
            return False
    return True


def check_opposed_rewards(findings: Findings, ids: Sequence[Any], rewards: np.ndarray) -> None:
    """
    Report agents whose rewards are anticorrelated: their mean is no objective for a team.

    :param findings: Collection that takes the findings
    :param ids: Agents, ``(n_agents,)``
    :param rewards: Rewards of random play, ``(n_steps, n_agents)``
    """
    if len(rewards) < 2:
        return
    varying = [index for index in range(rewards.shape[1]) if rewards[:, index].std() > 0]
    if len(varying) < 2:
        return
    # (n_steps, n_varying) -> (n_varying, n_varying)
    correlation = np.corrcoef(rewards[:, varying].T)
    if correlation.min() > _OPPOSED_CORRELATION:
        return
    names = [str(ids[index]) for index in varying]
    first, second = np.unravel_index(int(correlation.argmin()), correlation.shape)
    side = [name for name, value in zip(names, correlation[first], strict=True) if value > 0]
    findings.add(
        "warning",
        f"the rewards of {names[first]!r} and {names[second]!r} oppose each other "
        f"(correlation {correlation.min():.2f}): a reward for the whole team cancels out",
        "Train one side against the other, for example "
        f"JointEnv(env, agents={side}, other_agents='random').",
    )
