"""Success and other results of a team, its evaluation, and errors that name the agent."""

import inspect
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common import callbacks, evaluation
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from sb3_happo import HAPPO, EvalCallback, JointEnv, evaluate_policy, make_joint_vec_env
from tests.algorithms import ALGORITHMS, small
from tests.envs import MatrixGame, RandomTeam, TupleTeam

TEAM = dict.fromkeys(["a", "b"], spaces.Discrete(3))


class Reports(RandomTeam):
    """Agents that report results: "b" succeeds as given, "a" always."""

    def __init__(self, success: bool = True, **kwargs: Any) -> None:
        super().__init__(TEAM, **kwargs)
        self.success = success

    def step(self, actions: dict[Any, Any]) -> Any:
        *rest, infos = super().step(actions)
        for energy, agent in enumerate(infos):
            success = self.success or agent == "a"
            infos[agent] = {
                "is_success": success,
                "energy": float(energy),
                "level": "hard",
                "path": [1, 2],
            }
        return *rest, infos


class OneReports(Reports):
    """Only "b" reports a success, and leaves before the end."""

    def step(self, actions: dict[Any, Any]) -> Any:
        parts = super().step(actions)
        parts[-1].get("a", {}).pop("is_success", None)
        if self.t < 5:
            return parts
        if self.t == 5:
            parts[2]["b"] = True
            self.agents = ["a"]
            return parts
        return tuple({"a": part["a"]} for part in parts)


@pytest.mark.parametrize("success", [True, False])
@pytest.mark.parametrize("cls", [Reports, OneReports])
def test_success_of_the_team(cls: type[Reports], success: bool) -> None:
    make = lambda: cls(success)  # noqa: E731
    for env in (make(), make_joint_vec_env(make, 2), DummyVecEnv([lambda: JointEnv(make())])):
        model = small(HAPPO, env)
        evaluate = EvalCallback(make(), eval_freq=16, n_eval_episodes=1, verbose=0)
        model.learn(64, evaluate)
        assert model.ep_success_buffer is not None and set(model.ep_success_buffer) == {success}
        assert evaluate.logger.name_to_value.get("eval/success_rate", success) == success


def test_no_success_without_a_report() -> None:
    model = small(HAPPO, RandomTeam(TEAM)).learn(64)
    assert not model.ep_success_buffer


def test_results_at_the_end_of_an_episode() -> None:
    env = JointEnv(Reports(length=3))
    env.reset()
    actions = dict.fromkeys(TEAM, 0)
    infos = [env.step(actions)[-1] for _ in range(3)]
    assert all(info["is_success"] is True for info in infos)
    assert "energy" not in infos[1]
    last = infos[2]
    assert last["energy"] == 0.5 and last["a/energy"] == 0.0 and last["b/energy"] == 1.0
    assert last["level"] == last["b/level"] == "hard"
    assert "path" not in last and last["agent_infos"]["b"]["path"] == [1, 2]
    # Nothing is left of the last episode
    _, info = env.reset()
    assert "is_success" not in info and "energy" not in info


def test_keywords_of_monitors(tmp_path: Path) -> None:
    keywords = ("energy", "b/energy", "is_success")
    make = lambda: Reports()  # noqa: E731
    for env in (
        Monitor(JointEnv(make()), str(tmp_path / "one"), info_keywords=keywords),
        VecMonitor(DummyVecEnv([lambda: JointEnv(make())]), info_keywords=keywords),
        make_joint_vec_env(make, 2, monitor_kwargs=dict(info_keywords=keywords)),
    ):
        model = small(HAPPO, env).learn(64)
        assert model.ep_info_buffer
        for info in model.ep_info_buffer:
            assert info["energy"] == 0.5 and info["b/energy"] == 1.0 and info["is_success"]


class GymTeam(TupleTeam):
    """A Gymnasium team whose info has a dict for each agent."""

    def step(self, action: Any) -> Any:
        *rest, info = super().step(action)
        return *rest, {**info, "agent_0": {"is_success": True}, "agent_1": {"is_success": False}}


def test_success_of_gymnasium_teams() -> None:
    env = JointEnv(GymTeam())
    env.reset()
    actions = {agent: space.sample() for agent, space in env.action_space.spaces.items()}
    assert env.step(actions)[-1]["is_success"] is False


# Evaluation


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_evaluation_of_any_environment(algorithm: type[HAPPO]) -> None:
    model = small(algorithm, MatrixGame())
    expected = None
    for env in (
        JointEnv(MatrixGame()),
        MatrixGame(),
        Monitor(JointEnv(MatrixGame())),
        DummyVecEnv([lambda: JointEnv(MatrixGame())] * 2),
        make_joint_vec_env(MatrixGame, 2),
    ):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Evaluation environment is not wrapped")
            answer = evaluate_policy(model, env, n_eval_episodes=4)
        expected = expected or answer
        assert answer == expected
    returns, lengths = evaluate_policy(
        model.policy, MatrixGame(), 3, return_episode_rewards=True, warn=True
    )
    assert len(returns) == len(lengths) == 3  # type: ignore[arg-type]


def test_evaluation_on_ids_and_of_other_models() -> None:
    mean, _ = evaluate_policy(small(HAPPO, "CartPole-v1"), "CartPole-v1", 2)
    assert isinstance(mean, float) and mean > 0
    ppo = PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8)
    env = Monitor(gym.make("CartPole-v1"))
    assert evaluate_policy(ppo, env, 2)[0] > 0  # type: ignore[operator]


class Uniform:
    """An object with `predict`, no team of the package."""

    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> Any:
        return [{"agent_0": 0, "agent_1": 0}], None


def test_evaluation_of_any_object() -> None:
    assert isinstance(evaluate_policy(Uniform(), MatrixGame(), 2)[0], float)


def test_the_signature_is_that_of_sb3() -> None:
    own = inspect.signature(evaluate_policy).parameters
    theirs = inspect.signature(evaluation.evaluate_policy).parameters
    assert [(name, value.default) for name, value in own.items()] == [
        (name, value.default) for name, value in theirs.items()
    ]


def test_evaluation_during_training(tmp_path: Path) -> None:
    for env in (MatrixGame(), "CartPole-v1"):
        callback = EvalCallback(
            env,
            n_eval_episodes=2,
            eval_freq=16,
            best_model_save_path=str(tmp_path),
            verbose=0,
        )
        assert isinstance(callback, callbacks.EvalCallback)
        small(HAPPO, env if isinstance(env, str) else MatrixGame()).learn(32, callback)
        assert callback.last_mean_reward > -np.inf
        HAPPO.load(tmp_path / "best_model.zip")


# Errors name the agent


class Off(RandomTeam):
    """The observation of "b" is not in its space."""

    value: Any = None

    def _observations(self) -> dict[Any, Any]:
        return super()._observations() | {"b": self.value}


OFF = [
    (spaces.Discrete(3), 3),
    (spaces.Discrete(3), -1),
    (spaces.Discrete(3), np.float64(0.5)),
    (spaces.Discrete(3), float("nan")),
    (spaces.MultiDiscrete([3, 4]), np.array([3, 1])),
    (spaces.MultiDiscrete([3, 4]), np.array([0, -1])),
    (spaces.MultiBinary(2), np.array([0, 2])),
]


@pytest.mark.parametrize(("space", "value"), OFF, ids=str)
def test_values_off_their_space_name_the_agent(space: spaces.Space, value: Any) -> None:
    env = Off(TEAM, observation_spaces=dict.fromkeys(TEAM, space))
    env.value = value
    with pytest.raises(ValueError, match=r"agent 'b'.*entry 'b'.* is not in .*correct"):
        HAPPO(env).learn(8)
    nested = spaces.Dict({"x": space})
    env = Off(TEAM, observation_spaces=dict.fromkeys(TEAM, nested))
    env.value = {"x": value}
    with pytest.raises(ValueError, match=r"agent 'b'.*entry 'b/x'.* is not in "):
        HAPPO(env).learn(8)


class ShortMask(RandomTeam):
    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        observations, _ = super().reset(seed, options)
        sizes = {"a": 3, "b": 2}
        return observations, {agent: {"action_mask": np.ones(n)} for agent, n in sizes.items()}


def test_masks_and_action_spaces_name_the_agent() -> None:
    with pytest.raises(ValueError, match=r"agent 'b'.*shape \(2,\).*needs 3 entries"):
        HAPPO(ShortMask(TEAM))
    spaces_of_team = {"a": spaces.Discrete(2), "b": spaces.Sequence(spaces.Discrete(2))}
    with pytest.raises(TypeError, match=r"agent 'b'.*Unsupported action space Sequence"):
        HAPPO(RandomTeam(spaces_of_team))
