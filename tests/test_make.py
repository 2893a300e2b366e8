"""Ids, wrappers and vectorised environments."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from pettingzoo.utils.wrappers import BaseParallelWrapper
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

from sb3_happo import make_joint_vec_env
from sb3_happo.envs import JointEnv, joint_action_dtype, make_joint_env
from sb3_happo.envs.make import VECTORISED_FAMILIES, one_agent_per_joint
from sb3_happo.envs.spaces import split_mask
from sb3_happo.vec_env import JointDummyVecEnv, JointSubprocVecEnv
from tests.envs import MatrixGame, RandomTeam, TupleTeam


@pytest.fixture
def own_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    package = tmp_path / "my_pkg"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "game_v0.py").write_text(
        "from tests.envs import MatrixGame\n\n\n"
        "def parallel_env(n_agents=2):\n    return MatrixGame(n_agents)\n"
    )
    (package / "turns_v0.py").write_text(
        "from tests.envs import TurnGame\n\n\ndef env(**kwargs):\n    return TurnGame(**kwargs)\n"
    )
    (package / "empty_v0.py").touch()
    (package / "needy_v0.py").write_text("import a_simulator_that_nobody_has\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "my_pkg"


def test_modules_are_ids(own_package: str) -> None:
    env = make_joint_env("my_pkg/game_v0", n_agents=4, joint_kwargs={"team_reward": "sum"})
    assert isinstance(env, JointEnv)
    assert len(env.agents) == 4
    env.reset()
    assert env.step(dict(zip(env.agents, [0, 0, 1, 1], strict=True)))[1] == 4
    turns = make_joint_env("my_pkg/turns_v0", n_players=5)
    assert turns.unwrapped.n_agents == 5  # type: ignore[attr-defined]
    assert turns.reset()[1]["active"].sum() == 1


def test_ids_that_do_not_resolve(own_package: str) -> None:
    for id, hint in [
        ("my_pkg/gane_v0", "'my_pkg/game_v0'"),
        ("CartPol-v1", "'CartPole-v1'"),
        ("HalfCheetah-2x3-v1", "'mamujoco/HalfCheetah-2x3-v1'"),
        ("mamujoco/HalfCheetah-2x4-v1", "'mamujoco/HalfCheetah-2x3-v1'"),
        ("nobody_has_this/env_v0", "install the package"),
        ("nobody_has_this:Env-v0", "install the package"),
    ]:
        with pytest.raises(ValueError, match=f"{id!r} does not resolve.*{hint}"):
            make_joint_env(id)
    with pytest.raises(ValueError, match="neither `parallel_env` nor `env`"):
        make_joint_env("my_pkg/empty_v0")
    with pytest.raises(ImportError, match="pip install a_simulator_that_nobody_has"):
        make_joint_env("my_pkg/needy_v0")


def test_gymnasium_ids() -> None:
    env = make_joint_env("CartPole-v1", max_episode_steps=3, render_mode="rgb_array")
    assert isinstance(env, JointEnv)
    assert env.agents == ("agent_0",)
    assert env.render_mode == "rgb_array"
    env.reset(seed=0)
    ends = [env.step({"agent_0": t % 2})[2:4] for t in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]
    gym.register("tests/Tuple-v0", entry_point="tests.envs:TupleTeam")
    try:
        assert make_joint_env("tests/Tuple-v0", length=2).unwrapped.n_agents == 2  # type: ignore[attr-defined]
    finally:
        gym.registry.pop("tests/Tuple-v0")


def test_wrappers_come_before_the_joining() -> None:
    supersuit = pytest.importorskip("supersuit")
    pytest.importorskip("mpe2")

    def stack(env: Any) -> Any:
        return supersuit.frame_stack_v1(env, 4)

    env = make_joint_env(
        "mpe2/simple_spread_v3", wrappers=[stack, supersuit.black_death_v3], N=2, max_cycles=4
    )
    assert env.observation_space["agent_0"].shape == (48,)  # type: ignore[index]
    assert env.observation_space["state"].shape == (24,), "the env's own state"  # type: ignore[index]
    observation, _ = env.reset(seed=0)
    ended = False
    for _ in range(6):  # black_death ends an episode one step late
        assert env.observation_space.contains(observation)
        observation, _, *ends, _ = env.step(env.action_space.sample())
        ended = ended or any(ends)
    assert ended


def test_continuous_mpe() -> None:
    pytest.importorskip("mpe2")
    env = make_joint_env("mpe2/simple_spread_continuous_v3", max_cycles=10)
    assert all(space == spaces.Box(0.0, 1.0, (5,)) for space in env.action_space.spaces.values())  # type: ignore[attr-defined]
    for wrong in ("mpe2/simple_spred_continuous_v3", "mpe2/simple_spread_continous_v3"):
        with pytest.raises(
            ValueError, match=f"'{wrong}' does not resolve.*'mpe2/simple_spread_continuous_v3'"
        ):
            make_joint_env(wrong)
    with pytest.raises(ValueError, match="with discrete ones it is mpe2/simple_spread_v3"):
        make_joint_env("mpe2/simple_spread_continuous_v3", continuous_actions=False)


@pytest.fixture(scope="module")
def mamujoco() -> None:
    pytest.importorskip("mujoco")
    pytest.importorskip("gymnasium_robotics")


@pytest.mark.usefixtures("mamujoco")
def test_multi_agent_mujoco() -> None:
    assert "mamujoco/HalfCheetah-2x3-v1" in gym.registry
    env = make_joint_env("mamujoco/HalfCheetah-2x3-v1", agent_obsk=0, max_episode_steps=3)
    assert isinstance(env, JointEnv)
    assert env.observation_space["agent_0"].dtype == np.float32
    assert env.observation_space["agent_0"].shape == (11,)
    assert make_joint_env("mamujoco/HalfCheetah-2x3-v1").observation_space["agent_0"].shape == (12,)  # type: ignore[index]
    env.reset(seed=0)
    for _ in range(3):
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
    assert (terminated, truncated) == (False, True)
    assert env.observation_space.contains(observation)
    assert info["agent_rewards"].tolist() == pytest.approx([reward] * 2)
    made = gym.make(
        "mamujoco/HalfCheetah-2x3-v1", render_mode="rgb_array", joint_kwargs={"team_reward": "sum"}
    )
    assert isinstance(made, JointEnv), "Gymnasium makes it, too"
    assert made.render_mode == "rgb_array"
    assert made.team_reward == "sum"


@pytest.mark.usefixtures("mamujoco")
@pytest.mark.parametrize(
    ("id", "sizes"),
    [
        ("mamujoco/Ant-4x2-v1", [2] * 4),
        ("mamujoco/Humanoid-9|8-v1", [9, 8]),
        ("mamujoco/Hopper-3x1-v1", [1] * 3),
        ("mamujoco/Walker2d-v1", [6]),
        ("mamujoco/ManySegmentSwimmer-5x2-v1", [2] * 5),
    ],
)
def test_factorisations(id: str, sizes: list[int]) -> None:
    env = make_joint_env(id)
    assert [space.shape[0] for space in env.action_space.values()] == sizes  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("scenario", "n_joints"),
    [("Ant", 8), ("Humanoid", 17), ("HumanoidStandup", 17), ("Walker2d", 6)],
)
def test_one_agent_per_joint(scenario: str, n_joints: int) -> None:
    """
    Each agent's action moves the same joint as in the single-agent env, and each agent observes its
    own joint.
    """
    obsk = pytest.importorskip("gymnasium_robotics.envs.multiagent_mujoco.obsk")
    env = make_joint_env(f"mamujoco/{scenario}-{n_joints}x1-v1")
    assert isinstance(env, JointEnv)
    assert env.n_agents == n_joints
    (joints,) = obsk.get_parts_and_edges(scenario, None)[0]
    assert sorted(joint.act_ids for joint in joints) == list(range(n_joints))
    single = gym.make(f"{scenario}-v5")
    single.reset(seed=0)
    observations, _ = env.reset(seed=0)
    actions = {agent: env.action_space[agent].sample() for agent in env.agents}
    joint_action = np.empty(n_joints, np.float32)
    for joint, action in zip(joints, actions.values(), strict=True):
        joint_action[joint.act_ids] = action[0]
    observation = single.step(joint_action)[0]
    observations = env.step(actions)[0]
    np.testing.assert_allclose(observations["state"], observation.astype(np.float32), atol=1e-6)
    data = single.unwrapped.data  # type: ignore[attr-defined]
    for joint, agent in zip(joints, env.agents, strict=True):
        np.testing.assert_allclose(observations[agent][0], data.qpos[joint.qpos_ids], atol=1e-6)


def test_custom_factorisation() -> None:
    pytest.importorskip("gymnasium_robotics")
    factorisation = one_agent_per_joint("Walker2d")
    first, *others = factorisation["partition"]
    factorisation["partition"] = [first, tuple(joint for (joint,) in others)]
    venv = make_joint_vec_env(
        "mamujoco/Walker2d-v1", env_kwargs={"agent_factorization": factorisation}
    )
    assert isinstance(venv.action_space, gym.spaces.Dict)
    assert [space.shape for space in venv.action_space.values()] == [(1,), (5,)]
    venv.close()


# ---------------------------------------------------------------- vectorised


def trajectory(venv: Any, steps: int = 12) -> np.ndarray:
    actions = np.zeros(venv.num_envs, joint_action_dtype(venv.action_space))
    states = [venv.reset()["state"]]
    for _ in range(steps):
        observation = venv.step(actions)[0]
        states.append(observation["state"])
    return np.array(states)  # (steps + 1, n_envs, ...)


def random_team(length: int = 5) -> RandomTeam:
    return RandomTeam(
        {"a": gym.spaces.Discrete(3), "b": gym.spaces.Box(-1, 1, (2,), np.float32)}, length
    )


def test_copies_are_seeded_one_by_one() -> None:
    venv = make_joint_vec_env(random_team, 3, seed=1)
    first = trajectory(venv)
    assert not np.array_equal(first[:, 0], first[:, 1])
    assert np.array_equal(first, trajectory(make_joint_vec_env(random_team, 3, seed=1)))
    alone: Any = make_joint_vec_env(random_team, 1, seed=3).reset()
    assert np.array_equal(first[0, 2], alone["state"][0])


def test_numbers_of_numpy_are_numbers() -> None:
    plain = make_joint_vec_env(random_team, 2, seed=3, start_index=1)
    numpy: Any = (np.int64(2), np.int64(3), np.int64(1))
    given = make_joint_vec_env(random_team, numpy[0], seed=numpy[1], start_index=numpy[2])
    assert np.array_equal(trajectory(plain), trajectory(given))


def test_a_start_index_is_a_later_seed() -> None:
    first, second = (
        make_joint_vec_env(lambda: gym.make("CartPole-v1"), 1, seed=seed, start_index=start_index)
        for seed, start_index in ((3, 2), (5, 0))
    )
    assert np.array_equal(first.reset()["state"], second.reset()["state"])  # type: ignore[call-overload]


def test_monitors_that_continue_files_see_no_trial(tmp_path: Path) -> None:
    kwargs: dict[str, Any] = dict(
        monitor_dir=str(tmp_path), monitor_kwargs=dict(override_existing=False)
    )
    for _ in range(2):
        make_joint_vec_env("mpe2/simple_spread_v3", 2, seed=0, vec_env_cls="auto", **kwargs).close()
    for file in tmp_path.iterdir():
        assert len(file.read_text().splitlines()) <= 2 * 2, (
            "two headers of two lines, and no episode"
        )


def test_measuring_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []

    def choose(env_fns: Any, **kwargs: Any) -> JointDummyVecEnv:
        chosen.append(len(env_fns))
        return JointDummyVecEnv(env_fns)

    monkeypatch.setattr("sb3_happo.vec_env.make.choose_vec_env", choose)
    venv = make_joint_vec_env(random_team, 3)
    assert type(venv) is JointDummyVecEnv
    assert venv.choice is None
    assert not chosen
    make_joint_vec_env(random_team, 2, vec_env_cls="auto")
    assert chosen == [2]
    with pytest.raises(ValueError, match="neither a class of VecEnv nor 'auto'"):
        make_joint_vec_env(random_team, 2, vec_env_cls="quick")  # type: ignore[arg-type]


def test_processes_give_the_same() -> None:
    here = make_joint_vec_env(random_team, 2, seed=0)
    there = make_joint_vec_env(random_team, 2, seed=0, vec_env_cls=SubprocVecEnv)
    try:
        assert np.array_equal(trajectory(here), trajectory(there))
    finally:
        there.close()


def test_arguments_of_make_vec_env(tmp_path: Path) -> None:
    venv = make_joint_vec_env(
        random_team,
        2,
        monitor_dir=str(tmp_path / "monitor"),
        env_kwargs={"length": 3},
        wrapper_class=gym.wrappers.TimeLimit,  # type: ignore[arg-type]
        wrapper_kwargs={"max_episode_steps": 2},
        joint_kwargs={"team_reward": "a"},
    )
    venv.reset()
    row = np.zeros(2, joint_action_dtype(venv.action_space))  # type: ignore[arg-type]
    venv.step(row)
    _, rewards, dones, infos = venv.step(row)
    assert dones.all()
    assert infos[0]["TimeLimit.truncated"]
    assert rewards[0] == np.float32(infos[0]["agent_rewards"][0])
    assert venv.env_is_wrapped(Monitor) == [True, True]
    venv.close()
    assert sorted(path.name for path in (tmp_path / "monitor").iterdir()) == [
        "0.monitor.csv",
        "1.monitor.csv",
    ]


@pytest.mark.parametrize("id", ["my_pkg/game_v0", "CartPole-v1"])
def test_wrong_env_kwargs(own_package: str, id: str) -> None:
    name = "agent" if id.startswith("my") else "render_mod"
    with pytest.raises(TypeError, match=rf"'{name}'.* Did you mean '(n_agents|render_mode)'\?"):
        make_joint_env(id, **{name: 3})  # type: ignore[arg-type]


@pytest.mark.parametrize("env", ["CartPole-v1", random_team])
def test_wrong_joint_kwargs(env: Any) -> None:
    with pytest.raises(
        ValueError, match=r"JointEnv knows no 'team_rewards'\. Did you mean 'team_reward'\?"
    ):
        make_joint_vec_env(env, 2, joint_kwargs={"team_rewards": "sum"})


@pytest.mark.parametrize(
    "make", [lambda: MatrixGame(4), TupleTeam, random_team, lambda: JointEnv(MatrixGame(2))]
)
def test_any_env_can_be_vectorised(make: Any) -> None:
    assert trajectory(VecNormalize(make_joint_vec_env(make, 2), norm_obs_keys=["state"])).shape[
        :2
    ] == (13, 2)


@pytest.mark.parametrize("family", VECTORISED_FAMILIES)
def test_simulators_of_many_environments_are_no_single_env(family: str) -> None:
    with pytest.raises(ValueError, match=rf"make_joint_vec_env\('{family}/task', n_envs\)"):
        make_joint_env(f"{family}/task")
    with pytest.raises(ValueError, match=r"'wrappers', 'monitor_dir' cannot apply.*VecMonitor"):
        make_joint_vec_env(f"{family}/task", 2, wrappers=[Monitor], monitor_dir="logs")


# ---------------------------------------------------------------- other people's envs

FAMILIES = [
    ("mpe2/simple_speaker_listener_v4", {}),
    (
        "mpe2/simple_tag_v3",
        {
            "joint_kwargs": {
                "agents": [f"adversary_{i}" for i in range(3)],
                "other_agents": "random",
            }
        },
    ),
    ("mpe2/simple_spread_v3", {"continuous_actions": True, "joint_kwargs": {"state": "agent"}}),
    ("mamujoco/Ant-2x4-v1", {}),
    ("pettingzoo.sisl/multiwalker_v9", {"terminate_on_fall": False}),
    ("pettingzoo.sisl/pursuit_v5", {}),
    ("pettingzoo.butterfly/knights_archers_zombies_v11", {}),
    ("pettingzoo.butterfly/cooperative_pong_v6", {}),
    ("pettingzoo.butterfly/pistonball_v6", {"n_pistons": 4}),
    (
        "pettingzoo.classic/tictactoe_v3",
        {"joint_kwargs": {"agents": ["player_2"], "other_agents": "random"}},
    ),
    ("pettingzoo.classic/connect_four_v3", {}),
    ("pettingzoo.classic/leduc_holdem_v4", {}),
    ("lbforaging:Foraging-8x8-2p-2f-coop-v3", {}),
    ("rware:rware-tiny-2ag-v2", {}),
]


@pytest.mark.parametrize(("id", "kwargs"), FAMILIES, ids=[id for id, _ in FAMILIES])
def test_families_run_from_their_ids(id: str, kwargs: dict[str, Any]) -> None:
    try:
        env = make_joint_env(id, **kwargs).unwrapped
    except (ImportError, ValueError) as error:
        if isinstance(error, ValueError) and "does not resolve" not in str(error):
            raise
        pytest.skip(f"not installed: {error}")
    assert isinstance(env, JointEnv)
    env.action_space.seed(0)
    observation, info = env.reset(seed=0)
    for step in range(100):
        if step % 10 == 0:
            assert all(
                space.contains(np.asarray(observation[key]))
                for key, space in env.observation_space.items()
            )
        active = info.get("active", np.ones(env.n_agents, bool))
        actions = {}
        for (agent, space), is_active in zip(env.action_space.items(), active, strict=True):
            mask = observation.get(f"{agent}/action_mask")
            if is_active:
                actions[agent] = space.sample(None if mask is None else split_mask(space, mask))
        observation, reward, terminated, truncated, info = env.step(actions)
        assert np.isfinite(reward)
        if terminated or truncated:
            observation, info = env.reset()
    env.close()


class Adjustable(MatrixGame):
    """With a method and an attribute that a curriculum wants to reach."""

    level = 1

    def set_level(self, level: int) -> int:
        self.level = level
        return level


@pytest.mark.parametrize("vec_env_cls", [JointDummyVecEnv, JointSubprocVecEnv])
@pytest.mark.parametrize("wrapper", [lambda env: env, BaseParallelWrapper], ids=["bare", "wrapped"])
def test_methods_and_attributes_of_the_env_itself(vec_env_cls: Any, wrapper: Any) -> None:
    venv = make_joint_vec_env(Adjustable, 2, wrappers=[wrapper], vec_env_cls=vec_env_cls)
    try:
        assert venv.has_attr("level") and not venv.has_attr("levels")
        assert venv.env_method("set_level", 3) == [3, 3]
        assert venv.get_attr("level") == [3, 3]
        venv.env_method("set_wrapper_attr", "level", 5, indices=1)
        assert venv.get_attr("level") == [3, 5]
        with pytest.raises(AttributeError):
            venv.get_attr("levels")
    finally:
        venv.close()
