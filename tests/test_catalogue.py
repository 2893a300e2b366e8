"""Every family of the catalogue in ``docs/environments.md`` trains from its id, without an edit."""

import importlib.util
from functools import partial
from typing import Any

import pytest
import torch as th
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_happo import HAPPO, make_joint_vec_env
from sb3_happo.vec_env import JointDummyVecEnv


def shrunken_images() -> list[Any]:
    """
    One colour, 42 x 42 pixels, the last four frames as channels: the form that SB3's CNN needs,
    with a hundredth of the pixels.
    """
    supersuit = pytest.importorskip("supersuit")
    return [
        partial(supersuit.color_reduction_v0, mode="B"),
        partial(supersuit.resize_v1, x_size=42, y_size=42),
        partial(supersuit.frame_stack_v1, stack_size=4),
    ]


def one_side(*agents: str) -> dict[str, Any]:
    return {"joint_kwargs": {"agents": list(agents), "other_agents": "random"}}


# For each family: the package that it needs, an id, arguments of make_joint_vec_env
FAMILIES: list[tuple[str, str, dict[str, Any]]] = [
    ("mpe2", "mpe2/simple_spread_v3", {}),
    ("mpe2", "mpe2/simple_speaker_listener_v4", {}),
    ("mpe2", "mpe2/simple_tag_v3", one_side("adversary_0", "adversary_1", "adversary_2")),
    ("gymnasium_robotics", "mamujoco/HalfCheetah-2x3-v1", {}),
    ("gymnasium_robotics", "mamujoco/Ant-4x2-v1", {"env_kwargs": {"agent_obsk": 1}}),
    ("envpool", "envpool/HalfCheetah-2x3-v1", {}),
    ("Box2D", "pettingzoo.sisl/multiwalker_v9", {}),
    ("pygame", "pettingzoo.sisl/pursuit_v5", {}),
    (
        "pymunk",
        "pettingzoo.butterfly/pistonball_v6",
        {
            "env_kwargs": {"n_pistons": 5},
            "wrappers": shrunken_images,
            "joint_kwargs": {"state": "observations"},
        },
    ),
    (
        "pygame",
        "pettingzoo.butterfly/cooperative_pong_v6",
        {"wrappers": shrunken_images, "joint_kwargs": {"state": "observations"}},
    ),
    ("pymunk", "pettingzoo.butterfly/knights_archers_zombies_v11", {}),
    ("pygame", "pettingzoo.classic/connect_four_v3", one_side("player_0")),
    ("pygame", "pettingzoo.classic/tictactoe_v3", one_side("player_2")),
    ("rlcard", "pettingzoo.classic/leduc_holdem_v4", one_side("player_0")),
    ("rlcard", "pettingzoo.classic/texas_holdem_v4", one_side("player_1")),
    (
        "lbforaging",
        "lbforaging:Foraging-8x8-2p-2f-coop-v3",
        {"joint_kwargs": {"team_reward": "sum"}},
    ),
    ("rware", "rware:rware-tiny-2ag-v2", {"joint_kwargs": {"team_reward": "sum"}}),
    (
        "magent2",
        "magent2.environments/battle_v4",
        {"env_kwargs": {"map_size": 16}, **one_side(*(f"red_{index}" for index in range(6)))},
    ),
    ("magent2", "magent2.environments/adversarial_pursuit_v4", {"env_kwargs": {"map_size": 18}}),
    ("vmas", "vmas/navigation", {}),
    ("vmas", "vmas/balance", {}),
]


def train(env: Any) -> None:
    """5,000 steps with small networks; the whole team learns, and acts afterwards."""
    model = HAPPO(
        "MlpPolicy",
        env,
        n_steps=250,
        batch_size=None,
        n_epochs=1,
        policy_kwargs=dict(net_arch=[32]),
        seed=0,
        device="cpu",
    )
    before = {
        agent: [p.detach().clone() for p in policy.parameters()]
        for agent, policy in model.policies.items()
    }
    assert model.env is not None
    try:
        model.learn(5_000)
        assert model.num_timesteps == 5_000
        for agent, policy in model.policies.items():
            parameters = list(policy.parameters())
            assert all(parameter.isfinite().all() for parameter in parameters), agent
            assert not all(
                th.equal(old, new) for old, new in zip(before[agent], parameters, strict=True)
            ), agent
        evaluate_policy(model, model.env, n_eval_episodes=1, warn=False)
    finally:
        model.env.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of other people's envs
@pytest.mark.parametrize(("package", "id", "kwargs"), FAMILIES, ids=[id for _, id, _ in FAMILIES])
def test_a_family_trains_from_its_id(package: str, id: str, kwargs: dict[str, Any]) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    if callable(kwargs.get("wrappers")):
        kwargs = kwargs | {"wrappers": kwargs["wrappers"]()}
    train(
        make_joint_vec_env(id, 2, seed=0, vec_env_cls=JointDummyVecEnv, **kwargs) if kwargs else id
    )
