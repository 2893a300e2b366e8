"""Log of each agent: its own return, agents that are absent, and the names that callbacks read."""

import sys
import warnings
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import HumanOutputFormat, Logger
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from sb3_happo import HAPPO, JointEnv, make_joint_vec_env
from sb3_happo.common.agent_returns import AgentReturns
from tests.algorithms import ALGORITHMS, GruHAPPO, LstmHAPPO, StopAfter, small
from tests.envs import MatrixGame, RandomTeam, TurnGame

PLAIN = dict.fromkeys(["first", "second", "third"], spaces.Discrete(3))
BOXES = dict.fromkeys(["first", "second", "third"], spaces.Box(-1, 1, (2,), np.float32))


class Absent(RandomTeam):
    """Agents that are listed, of which some never come."""

    never: tuple[str, ...] = ("second",)

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        observations, infos = super().reset(seed, options)
        self.agents = [agent for agent in self.agents if agent not in self.never]
        return self._present(observations), self._present(infos)

    def step(self, actions: dict[Any, Any]) -> Any:
        parts = super().step(actions)
        return tuple(self._present(part) for part in parts)

    def _present(self, part: dict[Any, Any]) -> dict[Any, Any]:
        return {agent: value for agent, value in part.items() if agent not in self.never}


class Late(Absent):
    """The second agent comes in later episodes."""

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        self.episode = getattr(self, "episode", 0) + 1
        self.never = ("second",) if self.episode < 6 else ()
        return super().reset(seed, options)


class Paid(RandomTeam):
    """Each agent gets its number in every step."""

    def step(self, actions: dict[Any, Any]) -> Any:
        observations, rewards, *rest = super().step(actions)
        rewards = {agent: float(i + 1) for i, agent in enumerate(rewards)}
        return observations, rewards, *rest


def logged(model: HAPPO, n_timesteps: int = 64, **kwargs: Any) -> dict[str, Any]:
    """Figures of a training, before they are written."""
    return model.learn(n_timesteps, log_interval=1000, **kwargs).logger.name_to_value


class Written(BaseCallback):
    """Keeps the figures that are logged."""

    def _on_training_start(self) -> None:
        self.figures: list[dict[str, Any]] = []
        dump = self.logger.dump

        def keep(step: int = 0) -> None:
            self.figures.append(dict(self.logger.name_to_value))
            dump(step)

        self.logger.dump = keep  # type: ignore[method-assign]

    def _on_step(self) -> bool:
        return True


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("actions", [PLAIN, BOXES], ids=["discrete", "box"])
@pytest.mark.parametrize("algorithm", [*ALGORITHMS, LstmHAPPO])
def test_an_agent_that_never_comes(
    algorithm: type[HAPPO], actions: dict[str, spaces.Space], shared: bool
) -> None:
    model = small(algorithm, Absent(actions), policy_kwargs=dict(share_parameters=shared))
    written = Written()
    with pytest.warns(UserWarning, match=r"No observation of 'second' came in the first rollout"):
        model.learn(32, written)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(64, written, reset_num_timesteps=False)  # said once
    last = model.logger.name_to_value
    assert [key for key in last if key.startswith("third/")]
    assert "first/std" in last or actions is PLAIN
    for figures in (*written.figures, last):
        assert not [key for key in figures if "second" in key]
        assert figures is last or "rollout/third/ep_rew_mean" in figures
        for key, value in figures.items():
            assert not isinstance(value, float) or np.isfinite(value), key


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_agent_that_comes_late_is_logged_then(algorithm: type[HAPPO]) -> None:
    model = small(algorithm, Late(PLAIN, length=8))
    with pytest.warns(UserWarning, match="'second'"):
        assert not [key for key in logged(model, 32) if "second" in key]
    figures = logged(model, 32, reset_num_timesteps=False)
    assert [key for key in figures if key.startswith("second/")]


@pytest.mark.parametrize("order", ["random", "fixed", "reverse", "greedy"])
def test_absent_agents_in_every_order(order: Any) -> None:
    with pytest.warns(UserWarning, match="'second'"):
        logged(small(HAPPO, Absent(PLAIN), agent_order=order))


def test_nobody_is_absent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logged(small(HAPPO, TurnGame()))
        logged(small(HAPPO, RandomTeam(PLAIN)))


# Returns


VEC_ENVS = {
    "ours": lambda make: make_joint_vec_env(make, 2),
    "sb3": lambda make: DummyVecEnv([lambda: JointEnv(make())] * 2),
    "monitor": lambda make: VecMonitor(make_joint_vec_env(make, 2)),
}


@pytest.mark.parametrize("kind", VEC_ENVS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_own_returns(algorithm: type[HAPPO], kind: str) -> None:
    model = small(algorithm, VEC_ENVS[kind](lambda: Paid(PLAIN, length=10)))
    written = Written()
    model.learn(128, written)
    figures = written.figures[-1]
    for number, agent in enumerate(PLAIN):
        assert figures[f"rollout/{agent}/ep_rew_mean"] == 10.0 * (number + 1)


def test_own_returns_of_a_single_environment_agree_with_the_monitor() -> None:
    written = Written()
    small(HAPPO, MatrixGame()).learn(64, written)
    figures = written.figures[-1]
    own = [value for key, value in figures.items() if key.count("/") == 2]
    assert len(own) == 2 and np.mean(own) == pytest.approx(figures["rollout/ep_rew_mean"])


def test_gymnasium_environments_have_returns_too() -> None:
    for env in ("CartPole-v1", DummyVecEnv([lambda: JointEnv(MatrixGame())])):
        written = Written()
        small(HAPPO, env).learn(64, written)
        assert [key for key in written.figures[-1] if key.count("/") == 2]


def test_returns_run_on_over_calls_of_learn() -> None:
    """Episodes of 50 steps, rollouts of 32, and a callback that stops in the middle."""
    model = small(HAPPO, Paid(PLAIN, length=50), n_steps=32)
    model.learn(32)
    model.learn(1000, StopAfter(40), reset_num_timesteps=False)
    written = Written()
    model.learn(32, written, reset_num_timesteps=False)
    assert written.figures[-1]["rollout/second/ep_rew_mean"] == 100.0
    # A reset begins new episodes and forgets the old ones
    model.learn(32, written)
    assert "rollout/second/ep_rew_mean" not in written.figures[-1]
    model.learn(32, written, reset_num_timesteps=False)
    assert written.figures[-1]["rollout/second/ep_rew_mean"] == 100.0


def test_returns_of_single_episodes() -> None:
    returns = AgentReturns(("a", "b", "c"), 2, window=2)
    assert returns.means() == {}
    steps = [
        ([[1, 5, 0], [2, 0, 0]], [False, False], [[1, 1, 0], [1, 0, 0]]),
        ([[1, 5, 0], [2, 0, 0]], [True, False], [[1, 1, 0], [1, 0, 0]]),
        ([[1, 0, 0], [2, 7, 0]], [False, True], [[1, 1, 0], [1, 0, 0]]),
    ]
    for rewards, dones, active in steps:
        returns.add(np.array(rewards, np.float32), np.array(dones), np.array(active, bool))
    # "b" has never acted in the second environment, but was rewarded; "c" was never there
    assert returns.means() == {"a": 4.0, "b": 8.5}
    returns.add(np.ones((2, 3), np.float32), np.array([True, True]), None)
    assert returns.means() == {"a": 1.5, "b": 1.0, "c": 1.0}


def test_returns_of_tensors() -> None:
    returns = AgentReturns(("a", "b"), 2, window=10)
    for dones in ([False, False], [True, False]):
        returns.add(th.tensor([[1.0, 2.0], [3.0, 4.0]]), np.array(dones), None)
    assert returns.means() == {"a": 2.0, "b": 4.0}


def test_the_console_prints_returns_of_long_names(capsys: pytest.CaptureFixture[str]) -> None:
    agents = [f"an_agent_with_quite_a_long_name_{index}" for index in range(12)]
    model = small(HAPPO, RandomTeam(dict.fromkeys(agents, spaces.Discrete(2))))
    model.set_logger(Logger(None, [HumanOutputFormat(sys.stdout)]))
    model.learn(64)
    assert "an_agent_wit~11/ep_rew_mean" in capsys.readouterr().out


# Names of the collection


class Locals(BaseCallback):
    """Keeps the names of the collection that SB3's callbacks read."""

    def _on_step(self) -> bool:
        names = ("rewards", "dones", "infos", "new_obs", "actions", "clipped_actions", "values")
        self.seen = {name: self.locals[name] for name in (*names, "log_probs", "obs_tensor")}
        return True


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, GruHAPPO])
def test_callbacks_find_the_names_of_sb3(algorithm: type[HAPPO]) -> None:
    model = small(algorithm, make_joint_vec_env(lambda: RandomTeam(BOXES), 2))
    callback = Locals()
    model.learn(64, callback)
    seen = callback.seen
    assert list(seen["actions"]) == list(seen["log_probs"]) == list(BOXES)
    for agent in BOXES:
        raw = seen["actions"][agent]
        assert raw.shape == (2, 2) and seen["log_probs"][agent].shape == (2,)
        clipped = seen["clipped_actions"][agent]
        assert np.allclose(clipped, raw.clamp(-1, 1), atol=1e-5)
        assert seen["obs_tensor"][agent].shape == (2, 3)
    assert seen["values"].shape in ((2, 1), (2, 3))
    assert set(seen["obs_tensor"]) == set(seen["new_obs"])
