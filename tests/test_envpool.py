"""EnvPool: the team of multi-agent MuJoCo, and SB3's contract of a VecEnv."""

import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecNormalize

from sb3_happo import HAPPO, IPPO, make_joint_env, make_joint_vec_env
from sb3_happo.envs import joint_action_dtype
from sb3_happo.envs.make import one_agent_per_joint
from sb3_happo.vec_env import step_facts
from sb3_happo.vec_env.envpool_vec_env import EnvPoolVecEnv
from sb3_happo.vec_env.joint_dummy_vec_env import JointObs

envpool = pytest.importorskip("envpool", reason="EnvPool is not installed")
mujoco = pytest.importorskip("mujoco", reason="MuJoCo is not installed")
pytest.importorskip("gymnasium_robotics", reason="Gymnasium-Robotics is not installed")

CHEETAH = "envpool/HalfCheetah-2x3-v1"
HOPPER = "envpool/Hopper-3x1-v1"
ROBOTS = ("Ant", "HalfCheetah", "Hopper", "Humanoid", "HumanoidStandup", "Swimmer", "Walker2d")
TEAMS = [
    name
    for family, _, name in (id.partition("/") for id in gym.registry)
    if family == "mamujoco" and name.partition("-")[0] in ROBOTS
]
# EnvPool 1.2 contains MuJoCo 3.6. Other versions solve the dynamics of these robots slightly
# differently
SAME_MUJOCO = mujoco.__version__.startswith("3.6.")
SENSITIVE = ("Ant", "Humanoid", "HumanoidStandup")


def make(id: str = CHEETAH, n_envs: int = 1, **kwargs: Any) -> EnvPoolVecEnv:
    return EnvPoolVecEnv(id, n_envs, **kwargs)


def make_twin(id: str, **kwargs: Any) -> Any:
    return make_joint_env(id.replace("envpool", "mamujoco"), **kwargs)


def step(
    venv: EnvPoolVecEnv, actions: Any
) -> tuple[JointObs, np.ndarray, np.ndarray, list[dict[str, Any]]]:
    """`venv.step(actions)`, whose types SB3 keeps open."""
    venv.step_async(actions)
    return venv.step_wait()


def sample(venv: EnvPoolVecEnv) -> np.ndarray:
    """Random joint actions for all environments."""
    joint = np.empty(venv.num_envs, joint_action_dtype(venv.action_space))
    for agent, space in venv.action_space.items():
        joint[agent] = [space.sample() for _ in range(venv.num_envs)]
    return joint


def trajectory(venv: EnvPoolVecEnv, n_steps: int = 20) -> np.ndarray:
    """States, ``(n_steps + 1, n_envs, n_numbers)``, under actions that are always the same."""
    venv.action_space.seed(0)
    states = [venv.reset()["state"]]
    for _ in range(n_steps):
        states.append(step(venv, sample(venv))[0]["state"])
    venv.close()
    return np.stack(states)


# ---------------------------------------------------------------- the same team


def test_every_robot_is_there() -> None:
    assert {name.partition("-")[0] for name in TEAMS} == set(ROBOTS)
    assert "Humanoid-17x1-v1" in TEAMS


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        *((name, {}) for name in TEAMS),
        ("HalfCheetah-2x3-v1", {"agent_obsk": 0}),
        ("Ant-4x2-v1", {"agent_obsk": 2}),
        ("Walker2d-2x3-v1", {"agent_obsk": None}),
        (
            "Humanoid-9p8-v1",
            {"local_categories": [["qpos", "cvel"], ["cinert"]], "global_categories": ("qvel",)},
        ),
        ("Humanoid-v1", {"agent_factorization": one_agent_per_joint("Humanoid")}),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_same_team_and_observations(name: str, kwargs: dict[str, Any]) -> None:
    venv, twin = make(f"envpool/{name}", **kwargs), make_twin(f"envpool/{name}", **kwargs)
    assert venv.agents == twin.agents
    assert venv.action_space == twin.action_space
    assert list(venv.action_space) == list(twin.action_space)
    assert venv.observation_space == twin.observation_space
    assert list(venv.reset()) == list(twin.reset(seed=0)[0])
    simulation = twin.env.single_agent_env.unwrapped
    for _ in range(20):
        observation = twin.step(twin.action_space.sample())[0]
        numbers = simulation._get_obs()
        if name.startswith("Walker2d") and twin.env.agent_obsk is not None:
            numbers = np.concatenate(
                [simulation.data.qpos[1:], simulation.data.qvel]
            )  # EnvPool is asked not to clip
        ours = venv.factorise(numbers[None])
        for key, value in observation.items():
            np.testing.assert_array_equal(ours[key][0], value, err_msg=key)
    venv.close()


@pytest.mark.parametrize("robot", ROBOTS)
def test_same_physics(robot: str) -> None:
    """From one state, with the same actions, everything goes on alike."""
    team = {
        "Ant": "4x2",
        "HalfCheetah": "2x3",
        "Hopper": "3x1",
        "Humanoid": "17x1",
        "HumanoidStandup": "9p8",
        "Swimmer": "2x1",
        "Walker2d": "2x3",
    }[robot]
    id = f"envpool/{robot}-{team}-v1"
    # With a seed, EnvPool itself says in double precision where our environment begins
    start, info = envpool.make_gymnasium(f"{robot}-v5", num_envs=1, env_seed=[7]).reset()
    venv, twin = make(id, seed=7), make_twin(id)
    venv.reset()
    twin.reset(seed=0)
    simulation = twin.env.single_agent_env.unwrapped
    mujoco.mj_resetData(simulation.model, simulation.data)
    n_qpos, n_qvel = (simulation.observation_structure[key] for key in ("qpos", "qvel"))
    place = [info[key][0] if key in info else 0.0 for key in ("x_position", "y_position")]
    qpos = np.concatenate(
        [place[: simulation.observation_structure["skipped_qpos"]], start[0, :n_qpos]]
    )
    simulation.set_state(qpos, start[0, n_qpos : n_qpos + n_qvel])

    is_exact = SAME_MUJOCO or robot not in SENSITIVE
    rng = np.random.default_rng(0)
    limit = simulation.action_space.high[0]
    for _ in range(12 if is_exact else 3):
        # Actuators that are mixed up would move other joints
        action = {
            agent: (limit * rng.uniform(-1, 1, space.shape)).astype(np.float32)
            for agent, space in twin.action_space.items()
        }
        observations, rewards, dones, infos = step(venv, [action])
        observation, reward, terminated, truncated, info = twin.step(action)
        if is_exact:
            for key, value in observation.items():
                np.testing.assert_allclose(
                    observations[key][0], value, rtol=1e-6, atol=1e-6, err_msg=key
                )
            assert rewards[0] == pytest.approx(reward, rel=1e-6, abs=1e-6)
            assert infos[0]["agent_rewards"].tolist() == pytest.approx(
                info["agent_rewards"].tolist(), rel=1e-6, abs=1e-6
            )
        else:
            state, expected = (
                observations["state"][0, : n_qpos + n_qvel],
                observation["state"][: n_qpos + n_qvel],
            )
            np.testing.assert_allclose(state, expected, rtol=1e-2, atol=1e-2)
            assert rewards[0] == pytest.approx(reward, rel=1e-2, abs=1e-2)
        assert dones[0] == (terminated or truncated)
    venv.close()


def test_walkers_see_their_velocities_unclipped() -> None:
    venv = make("envpool/Walker2d-2x3-v1", 8, seed=0, terminate_when_unhealthy=False)
    venv.action_space.seed(0)
    venv.reset()
    own, state = [], []
    for _ in range(100):
        observations = step(venv, sample(venv))[0]
        own.append(observations["agent_0"])
        state.append(observations["state"][:, 8:])
    assert max(np.abs(values).max() for values in own) > 10
    assert max(np.abs(values).max() for values in state) == 10
    venv.close()


def test_arguments_reach_the_physics() -> None:
    plain, cheap = make(seed=0), make(seed=0, ctrl_cost_weight=0.0, max_episode_steps=2)
    actions = sample(plain)
    for venv in (plain, cheap):
        venv.reset()
    effort = sum(float(np.square(actions[agent]).sum()) for agent in plain.agents)
    assert step(cheap, actions)[1][0] - step(plain, actions)[1][0] == pytest.approx(
        0.1 * effort, abs=1e-5
    )
    assert step(cheap, actions)[2][0]
    assert not step(plain, actions)[2][0]


# ---------------------------------------------------------------- SB3's contract


def test_time_limit() -> None:
    venv = make(n_envs=3, seed=0, max_episode_steps=4)
    observations = venv.reset()
    rewards_of_episode = np.zeros(3)
    for n_steps in range(1, 13):  # three whole episodes: no step is lost to a reset
        before = observations
        observations, rewards, dones, infos = step(venv, sample(venv))
        rewards_of_episode += rewards
        assert rewards.dtype == np.float32
        assert all(
            venv.observation_space[key].contains(row)
            for key, rows in observations.items()
            for row in rows
        )
        assert dones.tolist() == [n_steps % 4 == 0] * 3
        assert [info["TimeLimit.truncated"] for info in infos] == dones.tolist()
        facts = step_facts(infos, dones, venv, len(venv.agents))
        assert facts.dones.tolist() == facts.truncated.tolist() == dones.tolist()
        own = np.stack([info["agent_rewards"] for info in infos])
        np.testing.assert_array_equal(facts.agent_rewards, own.astype(np.float32))
        assert facts.agent_rewards.dtype == np.float32
        assert facts.active is None and facts.waiting is None
        if not dones.any():
            assert not any("terminal_observation" in info or "episode" in info for info in infos)
            continue
        for row, info in enumerate(infos):
            assert venv.observation_space.contains(info["terminal_observation"])
            assert info["episode"]["l"] == 4
            assert info["episode"]["r"] == pytest.approx(rewards_of_episode[row], abs=1e-5)
            assert info["episode"]["t"] >= 0
            # The cheetah begins within 0.1 of its pose
            assert np.abs(observations["state"][row, :8]).max() <= 0.1
            assert not np.array_equal(
                info["terminal_observation"]["state"], observations["state"][row]
            )
            assert not np.array_equal(info["terminal_observation"]["state"], before["state"][row])
        rewards_of_episode[:] = 0
    venv.close()


def test_terminations_one_by_one() -> None:
    venv = make(HOPPER, 6, seed=0)
    venv.action_space.seed(0)
    venv.reset()
    lengths = np.zeros(6, dtype=int)
    n_episodes = 0
    for _ in range(150):
        observations, _, dones, infos = step(venv, sample(venv))
        lengths += 1
        for row in np.flatnonzero(dones):
            n_episodes += 1
            assert infos[row]["episode"]["l"] == lengths[row]
            assert not infos[row]["TimeLimit.truncated"]
            last = infos[row]["terminal_observation"]["state"]
            assert last[0] < 0.7 or abs(last[1]) > 0.2, "not healthy"
            np.testing.assert_allclose(observations["state"][row], [1.25, *[0.0] * 10], atol=0.0051)
            lengths[row] = 0
        running = np.flatnonzero(~dones)
        assert not any("terminal_observation" in infos[row] for row in running)
    assert n_episodes > 12
    assert len(set(lengths)) > 1, "the episodes ended at different steps"
    venv.close()


def test_arrays_belong_to_the_caller() -> None:
    venv = make(n_envs=2, seed=0, max_episode_steps=2)
    first = venv.reset()
    kept = {key: value.copy() for key, value in first.items()}
    actions = sample(venv)
    second, _, _, infos = step(venv, actions)
    actions["agent_0"] = 0
    infos[0]["agent_rewards"][:] = np.nan
    assert np.isfinite(infos[1]["agent_rewards"]).all()
    step(venv, actions)
    for key, value in first.items():
        np.testing.assert_array_equal(value, kept[key])
        assert not np.shares_memory(value, second[key])
    venv.close()


def test_seeds() -> None:
    first = trajectory(make(n_envs=3, seed=5))
    np.testing.assert_array_equal(first, trajectory(make(n_envs=3, seed=5, n_threads=1)))
    np.testing.assert_array_equal(first[0, 1:], make(n_envs=2, seed=6).reset()["state"])
    assert not np.array_equal(make().reset()["state"], make().reset()["state"])
    venv = make(n_envs=3)
    assert venv.seed(5) == [5, 6, 7]
    np.testing.assert_array_equal(first, trajectory(venv))
    later: Any = make_joint_vec_env(CHEETAH, 3, 3, start_index=2)
    np.testing.assert_array_equal(first[0], later.reset()["state"])
    venv.seed(2**32 - 1)  # SB3 draws seeds as large as that
    venv.reset()
    again = venv.reset()["state"]
    assert not np.array_equal(again, venv.reset()["state"]), "a seed is for one reset"
    venv.close()


def test_forms_of_actions() -> None:
    venv = make("envpool/Ant-4x2-v1", 2, seed=0)
    joint = sample(venv)
    names = list(venv.agents)
    forms: list[Any] = [
        joint,
        [{agent: joint[agent][row] for agent in reversed(names)} for row in range(2)],
        joint[names[::-1]].astype([(name, joint.dtype[name]) for name in reversed(names)]),
        np.repeat(joint, 2)[::2],
    ]
    states = []
    for form in forms:
        venv.seed(0)
        venv.reset()
        states.append(step(venv, form)[0]["state"])
    for state in states[1:]:
        np.testing.assert_array_equal(state, states[0])
    venv.close()


def test_order_of_calls() -> None:
    venv = make(n_envs=2, seed=0)
    with pytest.raises(RuntimeError, match="call reset"):
        venv.step_async(sample(venv))
    begin = venv.reset()["state"]
    with pytest.raises(RuntimeError, match="call step_async"):
        venv.step_wait()
    venv.step_async(sample(venv))
    with pytest.raises(RuntimeError, match="call step_wait"):
        venv.step_async(sample(venv))
    venv.seed(0)
    np.testing.assert_array_equal(venv.reset()["state"], begin)
    venv.step_async(sample(venv))
    assert np.abs(venv.reset()["state"][:, :8]).max() <= 0.1
    step(venv, sample(venv))
    venv.close()
    venv.close()


def test_what_can_be_asked() -> None:
    venv = make(n_envs=3, n_threads=64)
    assert venv.n_threads == 3
    assert venv.get_attr("agents", [0, 2]) == [("agent_0", "agent_1")] * 2
    assert venv.get_attr("render_mode") == [None] * 3
    assert venv.env_is_wrapped(Monitor) == [True] * 3
    assert venv.env_is_wrapped(gym.wrappers.TimeLimit, 0) == [False]
    assert not venv.has_attr("data")
    for call in (
        lambda: venv.get_attr("data"),
        lambda: venv.set_attr("gravity", 0),
        lambda: venv.env_method("state"),
        lambda: venv.get_images(),
    ):
        with pytest.raises(
            (AttributeError, NotImplementedError), match="mamujoco/HalfCheetah-2x3-v1"
        ):
            call()
    venv.set_options({"x": 1})
    with pytest.raises(ValueError, match="no options"):
        venv.reset()


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("id", "hint"),
    [
        ("envpool/HalfCheetah-2x4-v1", "'envpool/HalfCheetah-2x3-v1'"),
        ("envpool/HalfCheeta-2x3-v1", "'envpool/HalfCheetah-2x3-v1'"),
        ("envpool/Humanoid-17x1", "'envpool/Humanoid-17x1-v1'"),
        ("envpool/Pong-v5", "There are .*'envpool/Ant-2x4-v1'|Did you mean"),
        ("envpool/Reacher-2x1-v1", "'mamujoco/Reacher-2x1-v1'; make that one"),
    ],
)
def test_ids_that_do_not_resolve(id: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        make_joint_vec_env(id, 2)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        (
            {"xml_file": "my.xml"},
            r"cannot take \['xml_file'\].*'mamujoco/HalfCheetah-2x3-v1' instead",
        ),
        ({"render_mode": "rgb_array"}, r"cannot take \['render_mode'\]"),
        ({"global_categories": ("qfrc_actuator",)}, "agent_0 observes something that the joint"),
        ({"n_threads": 0}, "`n_threads` must be a whole number from 1 "),
        ({"n_envs": 0}, "`n_envs` must be a whole number from 1 "),
    ],
)
def test_arguments_that_cannot_apply(kwargs: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make(**kwargs)


def test_factorisations_that_cannot_apply() -> None:
    factorisation = one_agent_per_joint("Hopper")
    (joint,) = factorisation["partition"].pop()
    with pytest.raises(
        ValueError,
        match="cannot play 'envpool/Hopper-v1': Each actuator must be moved by one agent",
    ):
        make("envpool/Hopper-v1", agent_factorization=factorisation)
    factorisation["partition"].append((joint,))
    joint.extra_obs["qpos"] = lambda data: np.cos(data.qpos[-1:])
    with pytest.raises(
        ValueError, match="agent_1 observes something that the joint observation does not hold"
    ):
        make("envpool/Hopper-v1", agent_factorization=factorisation)


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(ImportError, match=r'pip install "sb3_happo\[envpool\]"'):
        make()


# ---------------------------------------------------------------- learning


def test_learning_saving_predicting(tmp_path: Path) -> None:
    model = HAPPO(CHEETAH, n_steps=16, batch_size=None, n_epochs=2, seed=0)
    model.learn(32)
    assert isinstance(model.env, EnvPoolVecEnv)
    venv = make_joint_vec_env(
        CHEETAH, 4, 0, env_kwargs={"max_episode_steps": 16}, vec_env_kwargs={"n_threads": 1}
    )
    assert isinstance(venv, EnvPoolVecEnv)
    model = HAPPO("MlpPolicy", VecNormalize(venv), n_steps=16, batch_size=None, n_epochs=2, seed=0)
    before = {key: value.clone() for key, value in model.policy.state_dict().items()}
    model.learn(128)
    assert model.num_timesteps == 128
    assert any(not value.equal(before[key]) for key, value in model.policy.state_dict().items())
    assert [episode["l"] for episode in model.ep_info_buffer or ()] == [16] * 8
    model.save(tmp_path / "model")
    loaded = HAPPO.load(tmp_path / "model", env=make(n_envs=4))
    observations = make(n_envs=4, seed=1).reset()
    np.testing.assert_array_equal(
        loaded.predict(observations, deterministic=True)[0],
        model.predict(observations, deterministic=True)[0],
    )
    loaded.learn(64)
    twin = make_twin(CHEETAH)
    action, _ = loaded.predict(twin.reset(seed=0)[0])
    twin.step(action)  # trained over EnvPool, shown in MuJoCo


def test_equal_seeds_learn_equally() -> None:
    def train(seed: int) -> np.ndarray:
        model = IPPO(make(n_envs=4), n_steps=16, batch_size=None, n_epochs=2, seed=seed)
        model.learn(128)
        return np.concatenate(
            [value.numpy().ravel() for value in model.policy.state_dict().values()]
        )

    np.testing.assert_array_equal(train(1), train(1))
    assert not np.array_equal(train(1), train(2))


def test_evaluation_needs_no_monitor() -> None:
    venv = make(HOPPER, 2, seed=0)
    model = HAPPO("MlpPolicy", venv, n_steps=8, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        returns, lengths = evaluate_policy(
            model, venv, n_eval_episodes=4, return_episode_rewards=True
        )
    assert isinstance(returns, list) and isinstance(lengths, list)
    assert len(returns) == 4
    assert min(lengths) > 1
