"""CommNet: messages among agents, who sends and receives, and what one agent cannot do alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_happo import (
    HAA2C,
    HAPPO,
    IPPO,
    MAPPO,
    JointEnv,
    ResumableCheckpointCallback,
    evaluate_policy,
    make_joint_vec_env,
)
from sb3_happo.common.commnet_policy import CommNetLstmPolicy, CommNetPolicy
from sb3_happo.common.communication import (
    CannotActAloneError,
    CommunicationRounds,
    mean_of_others,
    open_links,
)
from sb3_happo.envs.games import Levers
from tests.algorithms import PLAIN_SPACES, SMALL, alike_team, random_team
from tests.envs import MaskedGame, RandomTeam, TurnGame

every_policy = pytest.mark.parametrize("policy", ["CommNetPolicy", "CommNetLstmPolicy"])
every_algorithm = pytest.mark.parametrize(
    "algorithm", [MAPPO, HAA2C, IPPO], ids=lambda cls: cls.__name__
)


def small(env: Any, policy: Any = "CommNetPolicy", algorithm: Any = MAPPO, **kwargs: Any) -> Any:
    """A small model of agents that communicate."""
    own = {"net_arch": [8], **kwargs.pop("policy_kwargs", {})}
    if policy in ("CommNetLstmPolicy", CommNetLstmPolicy):
        own = {"lstm_hidden_size": 6, **own}
    return algorithm(policy, env, policy_kwargs=own, **{**SMALL, "seed": 0, **kwargs})


def outputs(model: Any, obs: dict[str, th.Tensor], active: Any = None) -> th.Tensor:
    """Outputs of all agents' networks, ``(n_rows, n_agents, n_params)``."""
    seen = model.policy.actor_observation(obs, active)
    by_agent = model.policy.outputs_by_agent(seen, {})
    return th.stack([by_agent[agent] for agent in model.agents], dim=1)


def open_channel(model: Any) -> None:
    """Weights of messages that are not 0, as after some training."""
    for layer in model.policy.rounds.others:
        th.nn.init.orthogonal_(layer.weight)


# ---------------------------------------------------------------- messages


def test_the_mean_is_that_of_the_others() -> None:
    hidden = th.tensor([[[1.0], [2.0], [6.0]]])
    links = open_links(None, 1, 3, hidden.device)
    assert mean_of_others(hidden, links).flatten().tolist() == [4.0, 3.5, 1.5]
    links = open_links(th.tensor([[1, 0, 1]]), 1, 3, hidden.device)
    assert mean_of_others(hidden, links).flatten().tolist() == [6.0, 0.0, 1.0]
    links = open_links(th.tensor([[0, 1, 0]]), 1, 3, hidden.device)
    assert mean_of_others(hidden, links).flatten().tolist() == [0.0, 0.0, 0.0]


def test_a_share_of_the_messages_is_lost() -> None:
    links = open_links(None, 2000, 3, th.device("cpu"), loss=0.25)
    assert abs(float(links.float().mean()) * 9 / 6 - 0.75) < 0.02
    assert not links.diagonal(dim1=1, dim2=2).any()


def test_rounds_by_hand() -> None:
    rounds: Any = CommunicationRounds(1, 2, th.nn.Identity)
    for own, others, first in zip(rounds.own, rounds.others, rounds.first, strict=True):
        th.nn.init.constant_(own.weight, 1.0)
        th.nn.init.zeros_(own.bias)
        th.nn.init.constant_(others.weight, 10.0)
        th.nn.init.constant_(first.weight, 100.0)
    links = open_links(None, 1, 2, th.device("cpu"))
    # (1, 2) -> 1 + 20 + 100, 2 + 10 + 200 -> 121 + 2120 + 100, 212 + 1210 + 200
    result = rounds(th.tensor([[[1.0], [2.0]]]), links)
    assert result.flatten().tolist() == [2341.0, 1622.0]


@every_policy
def test_every_agent_reads_the_others_and_the_dead_are_silent(policy: str) -> None:
    model = small(alike_team(3), policy)
    open_channel(model)
    obs = {agent: th.zeros(1, 3) for agent in model.agents}
    changed = {**obs, "agent_2": th.ones(1, 3)}
    before, after = outputs(model, obs), outputs(model, changed)
    assert not th.allclose(before[:, 0], after[:, 0])
    dead = np.array([[True, True, False]])
    before, after = outputs(model, obs, dead), outputs(model, changed, dead)
    assert th.equal(before[:, :2], after[:, :2])
    assert not th.allclose(before[:, 2], after[:, 2])


def test_gradients_flow_through_messages() -> None:
    model = small(alike_team(3))
    open_channel(model)
    obs = {agent: th.full((1, 3), 0.5, requires_grad=True) for agent in model.agents}
    outputs(model, obs)[:, 0].sum().backward()
    assert obs["agent_1"].grad is not None and bool(obs["agent_1"].grad.any())


# ---------------------------------------------------------------- training


@every_policy
@every_algorithm
def test_training_on_all_spaces(policy: str, algorithm: Any) -> None:
    """Agents of different spaces have encoders of their own, and common messages."""
    model = small(random_team(2), policy, algorithm, batch_size=16)
    before = {agent: own.head.weight.clone() for agent, own in model.policies.items()}
    messages = model.policy.rounds.others[0].weight.clone()
    model.learn(64)
    for agent, own in model.policies.items():
        assert not th.equal(before[agent], own.head.weight), agent
    assert not th.equal(messages, model.policy.rounds.others[0].weight)


@every_policy
@pytest.mark.parametrize("team", [MaskedGame, TurnGame])
def test_masks_and_turns(policy: str, team: Any) -> None:
    """Illegal actions raise in these games."""
    model = small(JointEnv(team(), observe_active=True), policy, batch_size=16).learn(64)
    evaluate_policy(model, JointEnv(team(), observe_active=True), 2, warn=False)


@every_policy
def test_ratios_are_one_before_the_first_step(policy: str) -> None:
    """The update sees the messages of the rollout, those that were lost and the memory too."""
    kwargs = dict(message_dropout=0.4)
    model = small(
        DummyVecEnv([lambda: alike_team(3)] * 2),
        policy,
        policy_kwargs=kwargs,
        learning_rate=0.0,
        n_epochs=1,
        batch_size=24,
    )
    open_channel(model)
    for _ in range(2):
        model.learn(64, reset_num_timesteps=False)
        assert abs(model.logger.name_to_value["agent_0/approx_kl"]) < 1e-6
        assert model.logger.name_to_value["agent_0/clip_fraction"] == 0.0


@every_policy
def test_a_resumed_training_is_the_unbroken_one(policy: str, tmp_path: Path) -> None:
    def saver(name: str) -> ResumableCheckpointCallback:
        return ResumableCheckpointCallback(1, tmp_path / name)

    unbroken = small(alike_team(3), policy).learn(96, saver("unbroken"))
    small(alike_team(3), policy).learn(64, saver("broken"))
    continued = MAPPO.load_checkpoint(tmp_path / "broken", alike_team(3))
    with pytest.warns(UserWarning, match="goes on to 96"):
        continued.learn(96, saver("broken"))
    ours, theirs = unbroken.policy.state_dict(), continued.policy.state_dict()
    assert all(th.equal(value, theirs[name]) for name, value in ours.items())


# ---------------------------------------------------------------- predict, save and load


@every_policy
def test_save_load_and_predict(policy: str, tmp_path: Path) -> None:
    env = JointEnv(RandomTeam(PLAIN_SPACES))
    model = small(env, policy).learn(32)
    open_channel(model)
    model.save(tmp_path / "model")
    model.policy.save(tmp_path / "team")
    loaded = MAPPO.load(tmp_path / "model", env=JointEnv(RandomTeam(PLAIN_SPACES)))
    team = type(model.policy).load(tmp_path / "team")
    obs, _ = env.reset(seed=0)
    expected, state = model.predict(obs, deterministic=True)
    for other in (loaded, team):
        actions, after = other.predict(obs, deterministic=True)
        for agent in PLAIN_SPACES:
            assert np.array_equal(expected[agent], actions[agent])
        assert (after is None) == (state is None)
    if state is not None:
        model.predict(obs, state, episode_start=np.array([False]), deterministic=True)
    loaded.learn(32, reset_num_timesteps=False)


def test_one_agent_alone_is_refused(tmp_path: Path) -> None:
    model = small(alike_team(3))
    own = np.zeros(3, np.float32)
    agent = model.policies["agent_1"]
    for refused in (
        lambda: agent.predict(own),
        lambda: agent.save(tmp_path / "agent"),
        lambda: agent.export_onnx(tmp_path / "agent.onnx"),
        lambda: model.predict({"agent_1": own}),
    ):
        with pytest.raises(CannotActAloneError, match=r"'agent_1' cannot .* alone.*messages"):
            refused()
    assert not list(tmp_path.iterdir())
    # The last survivor
    model.policy.act_alone = True
    assert set(model.predict({"agent_1": own})[0]) == {"agent_1"}


def test_predict_takes_absent_agents_for_dead() -> None:
    model = small(alike_team(3))
    open_channel(model)
    obs = {agent: np.full(3, index, np.float32) for index, agent in enumerate(model.agents)}
    tensors = {agent: th.as_tensor(own).unsqueeze(0) for agent, own in obs.items()}
    dead = np.array([[True, True, False]])
    best = outputs(model, tensors, dead).argmax(dim=2)[0]
    del obs["agent_2"]
    actions, _ = model.predict(obs, deterministic=True)
    assert [int(action) for action in actions.values()] == best[:2].tolist()


def test_messages_are_lost_on_request_in_predict() -> None:
    model = small(alike_team(3, spaces.Box(-1, 1, (1,))))
    open_channel(model)
    obs = {agent: np.ones((2, 3), np.float32) for agent in model.agents}
    first, _ = model.predict(obs, deterministic=True)
    assert first["agent_0"][0] == first["agent_0"][1]
    model.policy.message_loss = 1.0
    silent, _ = model.predict(obs, deterministic=True)
    assert silent["agent_0"][0] != first["agent_0"][0]


@pytest.mark.parametrize(
    ("env", "kwargs", "message"),
    [
        (
            JointEnv(RandomTeam({"lone": spaces.Discrete(2)})),
            {},
            "at least two agents: agent 'lone' is alone",
        ),
        (alike_team(2), {"n_rounds": 0}, "n_rounds"),
        (alike_team(2), {"message_dropout": 1.0}, "message_dropout"),
        (alike_team(2), {"agent_kwargs": {"agent_1": {"net_arch": [4]}}}, "'agent_1' cannot"),
        (alike_team(2), {"agent_kwargs": {"agent_1": {"learning_rate": 1e-3}}}, "one optimiser"),
        (alike_team(2), {"recurrent": "lstm", "shared_lstm": True}, "shared_lstm"),
    ],
)
def test_bad_arguments_are_named(env: Any, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(env, policy_kwargs=kwargs)


def test_sequential_updates_are_refused() -> None:
    with pytest.raises(ValueError, match=r"HAPPO updates the agents one after another.*MAPPO"):
        small(alike_team(2), CommNetPolicy, HAPPO)
    with pytest.raises(ValueError, match="Unknown policy 'CommNetPolicy'"):
        small(alike_team(2), "CommNetPolicy", HAPPO)


# ---------------------------------------------------------------- levers


def levers(policy: str, n_games: int, n_levers: int = 5, pool: int = 50) -> float:
    """Mean of (distinct levers - 1) / (levers - 1) after training, in 1280 deterministic games."""
    env = make_joint_vec_env("games/levers", 64, env_kwargs=dict(n_levers=n_levers, pool=pool))
    model = MAPPO(
        policy,
        env,
        learning_rate=3e-3 if n_levers == 5 else 1e-2,
        n_steps=8,
        batch_size=256,
        n_epochs=4,
        ent_coef=0.01,
        gamma=0.0,
        policy_kwargs=dict(net_arch=[64 if n_levers == 5 else 32], activation_fn=th.nn.Tanh),
        seed=0,
        device="cpu",
    ).learn(n_games, log_interval=None)
    obs: Any = env.reset()
    total = 0.0
    for _ in range(20):
        actions, _ = model.predict(obs, deterministic=True)
        obs, rewards, _, _ = env.step(actions)
        total += float(np.mean(rewards)) / 20
    return total


def test_two_levers_and_four_numbers() -> None:
    """The best play without messages yields 2/3."""
    assert Levers(2, 4).best_without_messages() == pytest.approx(2 / 3)
    assert levers("CommNetPolicy", 3_000, 2, 4) > 0.9


@pytest.mark.slow
def test_levers_need_messages() -> None:
    """Random play yields 0.5904, and the best play without messages 0.6118 with 50 numbers."""
    assert Levers(pool=50).best_without_messages() == pytest.approx(0.6118, abs=1e-4)
    assert levers("CommNetPolicy", 100_000) > 0.80
    assert levers("MlpPolicy", 100_000) < 0.65
