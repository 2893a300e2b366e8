"""Joint environments as Gymnasium environments: refused input, seeds, copies, VecEnvs."""

from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_happo.envs import (
    JointEnv,
    as_joint_env,
    joint_action_dtype,
)
from tests.envs import (
    ALL_KINDS,
    HeterogeneousTeam,
    MatrixGame,
    RandomTeam,
    Script,
    TupleTeam,
    episode,
    legal_actions,
    one,
)


def test_what_cannot_be_joined() -> None:
    env = JointEnv(MatrixGame())
    assert as_joint_env(env) is env
    wrapped = gym.wrappers.TimeLimit(env, 5)
    assert as_joint_env(wrapped) is wrapped
    assert isinstance(as_joint_env(MatrixGame(), team_reward="sum"), JointEnv)
    with pytest.raises(ValueError, match="team_reward"):
        as_joint_env(env, team_reward="sum")
    for twice in (env, wrapped):
        with pytest.raises(TypeError, match="already"):
            JointEnv(twice)
    for wrong in ("mpe2/simple_spread_v3", object()):
        with pytest.raises(TypeError, match="cannot be joined"):
            JointEnv(wrong)


def test_spaces_that_change_between_resets() -> None:
    team = Script([dict.fromkeys("ab", (one(), 0, False, False))] * 2, ["a", "b"])
    env = JointEnv(team)
    env.reset()
    team.space = spaces.Box(-10, 10, (1,), np.float32)
    env.reset()  # another object that says the same
    team.space = spaces.Box(-10, 10, (2,), np.float32)
    with pytest.raises(ValueError, match="observation space of agent 'a' has changed"):
        env.reset()


def test_observations_that_do_not_fit() -> None:
    start = dict.fromkeys("ab", (one(), 0, False, False))
    env = JointEnv(
        Script(
            [start, {"a": (one(), 0, False, False), "b": (np.float32(1), 0, False, False)}],
            ["a", "b"],
        )
    )
    env.reset()
    with pytest.raises(ValueError, match=r"agent 'b': an observation of shape \(\) .* \(1,\)"):
        env.step({"a": 0, "b": 0})
    env = JointEnv(Script([start, start | {"c": (one(), 0, False, False)}], ["a", "b"]))
    env.reset()
    with pytest.raises(ValueError, match=r"agents \['c'\]"):
        env.step({"a": 0, "b": 0})
    team = Script([{"a": ({"x": one()}, 0, False, False)}] * 2, ["a"])
    team.space = spaces.Dict({"x": spaces.Box(-1, 1, (1,)), "y": spaces.Box(-1, 1, (1,))})
    with pytest.raises(ValueError, match="agent 'a': its observation lacks 'y'"):
        JointEnv(team)
    text = RandomTeam({"a": spaces.Discrete(2)}, observation_spaces={"a": spaces.Text(5)})
    with pytest.raises(TypeError, match="agent 'a' has an unsupported observation space Text"):
        JointEnv(text)


@pytest.mark.parametrize(
    "make", [HeterogeneousTeam, lambda: RandomTeam(ALL_KINDS)], ids=["heterogeneous", "random"]
)
def test_seeds(make: Any) -> None:
    def trajectory(env: JointEnv, seed: int | None) -> list[np.ndarray]:
        observation, _ = env.reset(seed=seed)
        return [np.ravel(observation[key]) for key in env.observation_space]

    first, second = JointEnv(make()), JointEnv(make())
    for a, b in zip(trajectory(first, 3), trajectory(second, 3), strict=True):
        assert np.array_equal(a, b)
    unseeded = zip(
        trajectory(JointEnv(make()), None), trajectory(JointEnv(make()), None), strict=True
    )
    assert any(not np.array_equal(a, b) for a, b in unseeded), "copies without a seed differ"


def test_joint_envs_can_be_pickled() -> None:
    env = JointEnv(HeterogeneousTeam(), team_reward="sum")
    copy = cloudpickle.loads(cloudpickle.dumps(env))
    for ours, theirs in zip(episode(env), episode(copy), strict=True):
        assert ours[1] == theirs[1]


def test_sb3_vec_envs_take_structured_actions() -> None:
    venv = DummyVecEnv([lambda: JointEnv(TupleTeam(), team_reward="sum") for _ in range(3)])
    venv.reset()
    actions = np.zeros(3, joint_action_dtype(venv.action_space))  # type: ignore[arg-type]
    actions["agent_0"] = [0, 1, 2]
    actions["agent_1"] = [3, 2, 2]
    observation, rewards, _, infos = venv.step(actions)
    assert rewards.tolist() == [3, 3, 4]
    assert [info["agent_rewards"].tolist() for info in infos] == [[0, 3], [1, 2], [2, 2]]
    assert observation["state"].shape == (3, 5)  # type: ignore[call-overload]


def test_activity_passes_through_sb3_vec_envs() -> None:
    venv = DummyVecEnv([lambda: JointEnv(HeterogeneousTeam())])
    venv.seed(0)
    observation: Any = venv.reset()
    team = HeterogeneousTeam()
    for t in range(1, team.length + 1):
        env = venv.envs[0].unwrapped
        own = {key: value[0] for key, value in observation.items()}
        action = legal_actions(env, own)  # type: ignore[arg-type]
        observation, _, dones, infos = venv.step([action])  # type: ignore[arg-type]
        active = infos[0].get("active", np.ones(5, bool))
        assert active.tolist() == [agent in team.alive(t) for agent in team.possible_agents]
    assert dones[0]
    assert venv.reset_infos[0]["active"].tolist() == [
        agent in team.alive(0) for agent in team.possible_agents
    ]
    assert infos[0]["terminal_observation"]["arm/position"].any()


def test_rendering_and_closing() -> None:
    env = JointEnv(gym.make("CartPole-v1", render_mode="rgb_array"))
    assert env.render_mode == "rgb_array"
    assert env.metadata["render_fps"] == 50
    env.reset()
    assert env.render().ndim == 3
    env.close()
