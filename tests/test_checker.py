"""The doctor finds what is wrong, and nothing where all is well."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from sb3_happo.envs import JointEnv
from sb3_happo.envs.checker import check_marl_env, main
from tests.envs import (
    DictTeam,
    HeterogeneousTeam,
    MaskedGame,
    MatrixGame,
    RandomTeam,
    TupleTeam,
    TurnGame,
)

BOX = spaces.Box(-1, 1, (2,), np.float32)


@pytest.mark.parametrize(
    "make",
    [
        lambda: MatrixGame(4),
        MaskedGame,
        lambda: MaskedGame(masks_in="info"),
        HeterogeneousTeam,
        lambda: TurnGame(3, 4, {"player_1": 2}),
        TupleTeam,
        DictTeam,
        lambda: JointEnv(
            RandomTeam(
                {0: spaces.Discrete(2), 1: BOX}, observation_spaces={0: BOX, 1: spaces.Discrete(5)}
            )
        ),
        lambda: gym.make("CartPole-v1"),
    ],
    ids=[
        "matrix",
        "masks",
        "info_masks",
        "heterogeneous",
        "turns",
        "tuple",
        "dict",
        "joint",
        "cartpole",
    ],
)
def test_nothing_is_found_where_all_is_well(make: Callable[[], Any]) -> None:
    report = check_marl_env(make(), n_steps=100)
    worse = [
        finding
        for finding in report.findings
        if finding.level != "note" and "oppose" not in finding.what
    ]
    assert not worse
    assert report.ok


def test_the_summary_says_what_the_algorithms_see() -> None:
    report = check_marl_env(JointEnv(HeterogeneousTeam(), team_reward="sum"), n_steps=50)
    text = str(report)
    assert report.name == "HeterogeneousTeam"
    assert "5: camera, arm, crane, console, switch" in text
    assert "camera: sees camera: Box(36, 36, 3)" in text
    assert "does Discrete(4), masked" in text
    assert "state/arm/position" in text
    assert "team reward  sum" in text
    assert "of 12 to 12 joint steps" in text


class Sick(RandomTeam):
    """A team of two that is well but for what a test adds."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(
            {"a": spaces.Discrete(2), "b": spaces.Discrete(3)},
            observation_spaces={"a": BOX, "b": BOX},
            **kwargs,
        )


def with_observation(value: Any, space: spaces.Space = BOX, from_step: int = 3) -> type[Sick]:
    class Observing(Sick):
        def observation_space(self, agent: Any) -> spaces.Space:
            return space if agent == "a" else BOX

        def _observations(self) -> dict:
            observations = super()._observations()
            observations["a"] = value if self._t >= from_step else space.sample()
            return observations

    return Observing


def with_step(change: Callable[[Any, list[dict]], Any]) -> type[Sick]:
    class Stepping(Sick):
        def step(self, actions: dict) -> Any:
            answer = [dict(part) for part in super().step(actions)]
            return change(self, answer) or tuple(answer)

    return Stepping


def set_in(part: int, **values: Any) -> Callable[[Any, list[dict]], None]:
    return lambda env, answer: answer[part].update(values)


def with_mask(mask: Any, action_space: spaces.Space | None = None) -> type[Sick]:
    class Masking(Sick):
        def action_space(self, agent: Any) -> spaces.Space:
            return (
                action_space
                if action_space is not None and agent == "a"
                else super().action_space(agent)
            )

        def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
            return super().reset(seed, options)[0], {"a": {"action_mask": mask}}

        def step(self, actions: dict) -> Any:
            return *super().step(actions)[:4], {"a": {"action_mask": mask}}

    return Masking


def with_state(state: Callable[[Any], Any]) -> type[Sick]:
    return type("Stateful", (Sick,), {"state": state})


class Restarting(Sick):
    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        return super().reset(seed or 0, options)


class Unseeded(Sick):
    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        return super().reset(None, options)


class Reusing(Sick):
    def _observations(self) -> dict:
        self.buffer = getattr(self, "buffer", np.zeros(2, np.float32))
        self.buffer[:] = super()._observations()["a"]
        return {"a": self.buffer, "b": self.buffer.copy()}


class Growing(Sick):
    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        self._action_spaces["a"] = spaces.Discrete(self._action_spaces["a"].n + 1)
        return super().reset(seed, options)


class Parallel(Sick):
    def reset(self, seed: int | None = None, options: dict | None = None) -> Any:
        super().reset(seed, options)


class Turning(TurnGame):
    def reset(self, seed: int | None = None, options: dict | None = None) -> Any:
        super().reset(seed, options)
        return {}, {}


class Single(gym.Env):
    possible_agents = ("a", "b")
    observation_space = BOX
    action_space = BOX


class Selecting(Sick):
    agent_selection = "a"


class Failing(Sick):
    def step(self, actions: dict) -> Any:
        raise KeyError("wheel")


class Infinite(Sick):
    def action_space(self, agent: Any) -> spaces.Space:
        return spaces.Box(-np.inf, np.inf, (2,))


class Fighting(Sick):
    def step(self, actions: dict) -> Any:
        observations, rewards, *rest = super().step(actions)
        return observations, {"a": rewards["a"], "b": -rewards["a"]}, *rest


NESTED = spaces.Dict({"x": BOX, "y": spaces.Tuple([spaces.Discrete(2), BOX])})
X, Y = np.zeros(2, np.float32), (1, np.zeros(2, np.float32))


@pytest.mark.parametrize(
    ("make", "level", "what"),
    [
        (
            with_observation(np.array([np.nan, 0], np.float32)),
            "error",
            "agent 'a': observation is NaN",
        ),
        (
            with_observation(np.array([np.inf, 0], np.float32)),
            "error",
            "agent 'a': observation is infinite",
        ),
        (with_observation(np.zeros(3, np.float32)), "error", r"has shape \(3,\), its space \(2,\)"),
        (
            with_observation(np.full(2, 7, np.float32)),
            "warning",
            r"values in \[7, 7\], outside its bounds",
        ),
        (with_observation([0.0, 0.0]), "warning", "is a list, no array"),
        (
            with_observation(np.full(2, 0.5), spaces.Box(0, 5, (2,), np.int64)),
            "error",
            "floats in a space of int64",
        ),
        (
            with_observation(3, spaces.Discrete(3)),
            "error",
            r"observation 3 is not in Discrete\(3\)",
        ),
        (with_observation({"x": X}, NESTED), "error", r"lacks \['y'\]"),
        (
            with_observation({"x": X, "y": Y, "z": 1}, NESTED),
            "warning",
            r"has \['z'\], which its space has not",
        ),
        (
            with_observation({"x": X, "y": (1, X / 0)}, NESTED, 0),
            "error",
            "observation /y/1 is NaN",
        ),
        (with_observation({"x": X, "y": (1,)}, NESTED), "error", "has 1 parts, its space 2"),
        (with_observation(X, NESTED), "error", "is a ndarray, its space a Dict"),
        (with_mask(np.zeros(2)), "error", "agent 'a': an action mask that allows nothing"),
        (
            with_mask(np.array([1, 1, 0, 0, 0]), spaces.MultiDiscrete([2, 3])),
            "error",
            "allows nothing",
        ),
        (with_mask(np.ones(3)), "error", r"an action mask of shape \(3,\)"),
        (with_mask(np.array([1, 7])), "warning", "other values than 0 and 1"),
        (with_mask(np.ones(2), BOX), "warning", "nothing to mask"),
        (with_step(set_in(1, a=np.nan)), "error", "agent 'a': a reward of nan"),
        (with_step(set_in(1, a=np.zeros(2))), "error", r"agent 'a': a reward of shape \(2,\)"),
        (with_step(set_in(1, a="much")), "error", "reward 'much' is no number"),
        (with_step(set_in(1, c=1.0)), "error", r"rewards of \['c'\]"),
        (with_step(set_in(0, c=X)), "error", r"agents \['c'\]"),
        (
            with_step(lambda env, answer: answer[1].pop("a") and None),
            "warning",
            r"no rewards for \['a'\]",
        ),
        (
            with_step(set_in(2, a=True)),
            "warning",
            r"\['a'\] are terminated or truncated, and still",
        ),
        (
            with_step(lambda env, answer: env.agents.clear()),
            "warning",
            "left `agents` without being",
        ),
        (with_step(lambda env, answer: tuple(answer[:4])), "error", "step returns 4 and not five"),
        (
            with_state(lambda env: np.zeros(2 + env.t % 2)),
            "error",
            r"state\(\) has shape \(3,\), and had \(2,\)",
        ),
        (with_state(lambda env: np.full(2, np.nan)), "error", r"state\(\) is not finite"),
        (with_state(lambda env: 1 / (env.t - 4)), "error", r"state\(\) raises ZeroDivisionError"),
        (Restarting, "error", "every reset without a seed gives the same start"),
        (Unseeded, "warning", "the same seed and actions give different episodes"),
        (
            Reusing,
            "error",
            "agent 'a': the next step changes the observation that was returned before",
        ),
        (Growing, "error", "agent 'a': its spaces change"),
        (Parallel, "error", "reset returns nothing, as an AECEnv's"),
        (Turning, "error", "reset returns something, as a ParallelEnv's"),
        (Selecting, "warning", "`agent_selection`"),
        (Single, "error", "derives from gymnasium.Env, but has `possible_agents`"),
        (object, "error", "neither a PettingZoo nor a Gymnasium env"),
        (Failing, "error", "playing the env at random raises KeyError: 'wheel'"),
        (Infinite, "error", "agent 'a' has an infinite Box action space"),
        (Fighting, "warning", r"'a' and 'b' oppose each other \(correlation -1.00\)"),
        (lambda: with_observation(X)(length=10_000), "note", "no episode ended within 100 steps"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_is_wrong_is_found(make: Callable[[], Any], level: str, what: str) -> None:
    report = check_marl_env(make, n_steps=100)
    found = [finding for finding in report.findings if re.search(what, finding.what)]
    assert [finding.level for finding in found][:1] == [level], str(report)
    assert all(finding.remedy for finding in report.findings)
    if level == "error":
        assert not report.ok


def test_a_state_that_is_not_used_may_fail() -> None:
    report = check_marl_env(
        JointEnv(with_state(lambda env: 1 / (env.t - 4))(), state="observations"), n_steps=20
    )
    assert [finding.level for finding in report.findings if "state()" in finding.what] == [
        "warning"
    ]


def test_a_side_that_is_trained_alone_does_not_oppose_itself() -> None:
    report = check_marl_env(JointEnv(Fighting(), agents=["a"], other_agents="random"), n_steps=50)
    assert not any("oppose" in finding.what for finding in report.findings)
    assert "agents       1: a" in str(report)


def test_the_command(
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "doctored").mkdir()
    (tmp_path / "doctored" / "good_v0.py").write_text(
        "from tests.envs import MatrixGame\n\nparallel_env = MatrixGame\n"
    )
    (tmp_path / "doctored" / "bad_v0.py").write_text(
        "from tests.test_checker import Infinite\n\nparallel_env = Infinite\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["doctored/good_v0", "n_agents=3", "--n-steps", "20"]) == 0
    assert "agents       3: agent_0, agent_1, agent_2" in capsys.readouterr().out
    assert main(["doctored/bad_v0", "--n-steps", "20"]) == 1
    assert "ERROR: " in capsys.readouterr().out
    with pytest.raises(ValueError, match="does not resolve"):
        main(["doctored/god_v0"])
    with pytest.raises(SystemExit):
        main(["doctored/good_v0", "n_agents"])
