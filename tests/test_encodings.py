"""Observations of any plain space, and actions of the types of ``action_space.sample()``."""

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecMonitor

from sb3_happo import HAPPO, make_joint_vec_env
from sb3_happo.common.policies import AgentPolicy
from sb3_happo.envs import JointEnv, make_joint_env
from sb3_happo.envs.checker import check_marl_env
from sb3_happo.envs.state import FlatObservations, Leaf
from sb3_happo.vec_env import JointDummyVecEnv, JointSubprocVecEnv
from tests.envs import RandomTeam

SMALL: dict[str, Any] = {"n_steps": 8, "batch_size": 8, "n_epochs": 1, "seed": 0}
BOX = spaces.Box(-1, 1, (2,), np.float32)
OBSERVED: dict[str, spaces.Space] = {
    "from five": spaces.Discrete(4, start=5),
    "from below": spaces.Discrete(4, start=-2),
    "matrix": spaces.MultiDiscrete(np.array([[4, 11], [2, 3]])),
    "heads from elsewhere": spaces.MultiDiscrete([3, 4], start=[1, -1]),
    "number": spaces.Box(0, 10, (), np.float32),
    "double number": spaces.Box(0, 10, (), np.float64),
    "bits": spaces.MultiBinary((2, 3)),
    "empty": spaces.Box(-1, 1, (0,), np.float32),
    "nothing": spaces.Dict({}),
    "small image": spaces.Box(0, 255, (7, 7, 3), np.uint8),
    "nested": spaces.Dict(
        n=spaces.Discrete(2, start=3), t=spaces.Tuple([spaces.Box(0, 1, ()), BOX]), e=spaces.Dict()
    ),
}
DISCRETE = spaces.Discrete(3)


def team(space: spaces.Space, action_space: spaces.Space = DISCRETE) -> Any:
    return RandomTeam({"a": action_space, "b": DISCRETE}, observation_spaces={"a": space, "b": BOX})


@pytest.mark.filterwarnings("ignore:Images of the shapes")
@pytest.mark.parametrize("space", OBSERVED.values(), ids=OBSERVED)
def test_all_plain_observations_are_learned_from(space: spaces.Space, tmp_path: Any) -> None:
    model = HAPPO(team(space), **SMALL).learn(8)
    assert check_marl_env(team(space), n_steps=20).ok
    env = JointEnv(team(space))
    joint, _ = env.reset(seed=0)
    assert env.observation_space.contains(joint)
    # The environment's own form and the joint observation's give the same action
    own, _ = env.env.reset(seed=0)
    model.policies["a"].save(tmp_path / "a")
    saved = AgentPolicy.load(tmp_path / "a")
    expected = model.predict(joint, deterministic=True)[0]["a"]
    assert model.predict(own, deterministic=True)[0]["a"] == expected
    for policy in (model.policies["a"], saved):
        assert policy.predict(own["a"], deterministic=True)[0] == expected


def test_batches_of_own_observations() -> None:
    model = HAPPO(team(spaces.Discrete(4, start=5)), **SMALL)
    policy = model.policies["a"]
    single = [policy.predict(np.int64(n), deterministic=True)[0] for n in (5, 8)]
    assert policy.predict(np.array([5, 8]), deterministic=True)[0].tolist() == single
    with pytest.raises(ValueError, match="value 4 is not in Discrete"):
        policy.predict(np.array([4]))
    with pytest.raises(ValueError, match="agent 'a': the value 0 is not in Discrete"):
        model.predict({"a": 0, "b": np.zeros(2, np.float32)})


@pytest.mark.parametrize(
    ("space", "value"),
    [
        (spaces.Discrete(3), 3),
        (spaces.Discrete(3), -1),
        (spaces.Discrete(3), 0.5),
        (spaces.Discrete(3, start=2), 1),
        (spaces.MultiDiscrete([3, 4]), [3, 1]),
        (spaces.MultiBinary(2), [0, 2]),
        (spaces.Box(0, 255, (2,), np.uint8), [0, 300]),
        (spaces.Box(0, 255, (2,), np.uint8), [0, -1]),
        (spaces.Box(0, 255, (2,), np.uint8), [0, 0.9]),
        (spaces.Box(0, 9, (2,), np.int32), [0, np.nan]),
    ],
)
def test_values_off_their_space_are_refused(space: spaces.Space, value: Any) -> None:
    env = team(spaces.Dict(x=space))
    original = env.reset

    def reset(**kwargs: Any) -> Any:
        seen, infos = original(**kwargs)
        return seen | {"a": {"x": np.array(value)}}, infos

    env.reset = reset
    with pytest.raises(ValueError, match=r"agent 'a': .*entry 'a/x'.* is not in "):
        JointEnv(env)


@pytest.mark.parametrize(
    ("space", "value"), [(spaces.Discrete(5), -1), (spaces.MultiDiscrete([3, 4]), [3, 1])]
)
def test_the_critic_encodes_no_values_off_their_space(space: Any, value: Any) -> None:
    with pytest.raises(ValueError, match=r"agent 'a': .* is not in"):
        FlatObservations([Leaf("a", 0, space)])({"a": np.array(value)}, None)


STATES = {
    "number": (3.0, (1,)),
    "list": ([1, 2, 3], (3,)),
    "nested": ({"x": np.zeros((2, 2)), "y": (1, [2.0])}, (6,)),
    "map": (np.zeros((20, 20, 3), np.uint8), (20, 20, 3)),
    "nothing": (np.zeros(0, np.float32), (5,)),  # the observations
}


@pytest.mark.parametrize(("state", "shape"), STATES.values(), ids=STATES)
def test_states_of_any_form(state: Any, shape: tuple[int, ...]) -> None:
    env = team(spaces.Box(-1, 1, (3,), np.float32))
    env.state = lambda: state
    joint = JointEnv(env)
    assert joint.observation_space["state"].shape == shape
    assert joint.reset()[0]["state"].shape == shape


# ---------------------------------------------------------------- actions

ACTIONS: dict[str, spaces.Space] = {
    "discrete": spaces.Discrete(3, start=4),
    "bytes": spaces.Discrete(3, dtype=np.int8),
    "matrix": spaces.MultiDiscrete(np.array([[2, 3], [3, 4]]), dtype=np.int32),
    "bits": spaces.MultiBinary((2, 3)),
    "number": spaces.Box(0, 1, (), np.float32),
    "double": spaces.Box(0, 0.1, (2,), np.float64),
    "nested": spaces.Dict(
        n=spaces.Discrete(2, start=1),
        t=spaces.Tuple([spaces.Box(0, 1, (), np.float64), spaces.MultiBinary(2)]),
    ),
}


def types(action: Any) -> Any:
    """Types, dtypes and shapes inside an action."""
    if isinstance(action, dict):
        return {key: types(part) for key, part in action.items()}
    if isinstance(action, tuple):
        return tuple(map(types, action))
    return type(action), getattr(action, "dtype", None), np.shape(action)


class Checking(RandomTeam):
    """Team that demands actions of the types of samples."""

    def __init__(self, space: spaces.Space) -> None:
        super().__init__({"a": space, "b": DISCRETE})

    def step(self, actions: dict[str, Any]) -> Any:
        for agent, action in actions.items():
            space = self.action_space(agent)
            assert types(action) == types(space.sample()), (action, agent)
            assert space.contains(action)
        return super().step(actions)


@pytest.mark.parametrize("space", ACTIONS.values(), ids=ACTIONS)
def test_actions_have_the_types_of_samples(space: spaces.Space) -> None:
    model = HAPPO(Checking(space), **SMALL).learn(8)
    env = JointEnv(Checking(space))
    joint, _ = env.reset()
    action = model.predict(joint)[0]
    env.step(action)
    assert types(action["a"]) == types(space.sample())
    venv = JointDummyVecEnv([lambda: JointEnv(Checking(space))] * 2)
    venv.step(model.predict(venv.reset())[0])


def test_actions_in_workers_have_the_types_of_samples() -> None:
    space = spaces.Dict(ACTIONS)
    venv = JointSubprocVecEnv([lambda: JointEnv(Checking(space))] * 2)
    try:
        model = HAPPO(venv, **SMALL)
        venv.step(model.predict(venv.reset())[0])
    finally:
        venv.close()


# ---------------------------------------------------------------- masks, rows, ids


class Orders(RandomTeam):
    """Masks over the combinations of two choices."""

    def __init__(self) -> None:
        parts = spaces.Dict(cell=spaces.Discrete(3), direction=spaces.Discrete(4))
        masked = spaces.Dict(observation=BOX, action_mask=spaces.MultiBinary((3, 4)))
        super().__init__(dict.fromkeys("ab", parts), observation_spaces=dict.fromkeys("ab", masked))


def test_masks_over_combinations() -> None:
    with pytest.raises(ValueError, match=r"agent 'a': .*combinations.*ignore_masks=True"):
        JointEnv(Orders())
    env = JointEnv(Orders(), ignore_masks=True)
    assert "a/action_mask" not in env.observation_space.spaces
    HAPPO(env, **SMALL).learn(8)


@pytest.mark.parametrize("base_class", ["gymnasium", "stable_baselines3"])
def test_rows_of_agents_are_refused(base_class: str) -> None:
    supersuit = pytest.importorskip("supersuit")
    simple_spread = pytest.importorskip("mpe2.simple_spread_v3")
    rows = supersuit.pettingzoo_env_to_vec_env_v1(simple_spread.parallel_env())
    several = supersuit.concat_vec_envs_v1(rows, 2, base_class=base_class)
    venvs = [rows, several]
    if base_class == "stable_baselines3":
        venvs.append(VecMonitor(several))
    for venv in venvs:
        with pytest.raises(TypeError, match=r"are agents.*make_joint_vec_env"):
            HAPPO(venv)
    HAPPO(make_joint_vec_env(simple_spread.parallel_env, 2), **SMALL)


@pytest.mark.parametrize(
    "id", ["pettingzoo.mpe/simple_spread_v3", "pettingzoo/mpe/simple_spread_v3"]
)
def test_ids_of_packages_that_moved(id: str) -> None:
    with pytest.raises(ImportError, match=r"pip install mpe2, .* 'mpe2/simple_spread_v3'"):
        make_joint_env(id)
