"""Memory: what is remembered, for how long, by whom; and that it is worth something."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_happo import HAPPO, HATRPO, IPPO, MAPPO, JointEnv, make_joint_vec_env
from sb3_happo.common.memory import pack
from sb3_happo.vec_env import JointDummyVecEnv
from tests.algorithms import collect, small
from tests.envs import HeterogeneousTeam, MaskedGame, RandomTeam, Relay, TurnGame

MEMORY: dict[str, Any] = dict(lstm_hidden_size=8, n_lstm_layers=2)
KINDS = ["lstm", "gru"]


def remembering(team: Any, algorithm: type[HAPPO] = HAPPO, n_envs: int = 3, **kwargs: Any) -> HAPPO:
    """A small model with memory, whose rollout is no multiple of its chunks."""
    policy_kwargs = {**MEMORY, "recurrent": "lstm", **kwargs.pop("policy_kwargs", {})}
    joint_kwargs = kwargs.pop("joint_kwargs", {})
    env = DummyVecEnv([lambda: JointEnv(team(), **joint_kwargs)] * n_envs)
    settings: dict[str, Any] = dict(n_steps=33, chunk_length=5, seed=0, learning_rate=1e-2, policy_kwargs=policy_kwargs)
    return small(algorithm, env, **{**settings, **kwargs})


def log_probs_now(model: HAPPO, agent: str) -> tuple[th.Tensor, th.Tensor]:
    """Of an agent's actions in the rollout, as an update sees them and as collection did, in the order of its rows."""
    data = model.rollout_buffer.agent_data(agent, th.ones(model.rollout_buffer.n_rows))
    with th.no_grad():
        return model.policies[agent].evaluate_batch(data)[0], data.old_log_prob


TEAMS: list[Any] = [
    HeterogeneousTeam,  # images, Dict observations, masks, agents that die and return
    MaskedGame,
    partial(TurnGame, drops_out={"player_1": 2}, truncate=True),
    partial(RandomTeam, dict.fromkeys("abc", spaces.Box(-1, 1, (2,), np.float32))),  # stepped in one call
]
VARIANTS: list[tuple[type[HAPPO], dict[str, Any]]] = [
    (HAPPO, {}),
    (MAPPO, dict(policy_kwargs=dict(append_agent_id=True, layer_norm=True, input_layer_norm=True))),
    (IPPO, dict(batch_size=16, policy_kwargs=dict(lstm_kwargs=dict(bias=False)))),
    (HATRPO, dict(chunk_length=None)),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("team", TEAMS)
@pytest.mark.parametrize(("algorithm", "settings"), VARIANTS)
def test_an_update_begins_where_collection_ended(algorithm: type[HAPPO], settings: Any, team: Any, kind: str) -> None:
    """From the stored states the first forward pass gives collection's log-probabilities and values again."""
    policy_kwargs = {"recurrent": kind, **settings.get("policy_kwargs", {})}
    model = remembering(team, algorithm, **{**settings, "policy_kwargs": policy_kwargs}).learn(2 * 99)
    collect(model)  # with memories that go on from the rollouts before
    buffer = model.rollout_buffer
    assert buffer.episode_starts[1:].any(), "the rollout should cross the end of an episode"
    for agent in model.agents:
        now, before = log_probs_now(model, agent)
        assert len(now) == buffer.active[..., model.agents.index(agent)].sum()
        assert th.allclose(now, before, atol=1e-5), agent
    data = buffer.critic_data()
    with th.no_grad():
        values = model.critic.evaluate_batch(data)
    assert model.critic.value_norm is not None
    errors = (model.critic.value_norm.denormalize(values) - data.old_values).abs()
    assert (errors if data.active is None else errors[data.active]).max() < 1e-4


@pytest.mark.parametrize("team", TEAMS[1:])
def test_an_agent_specific_critic_remembers_for_each(team: Any) -> None:
    model = remembering(team, joint_kwargs=dict(state="agent")).learn(99)
    collect(model)
    data = model.rollout_buffer.critic_data()
    assert model.critic.value_norm is not None and data.sequences is not None
    with th.no_grad():
        values = model.critic.value_norm.denormalize(model.critic.evaluate_batch(data))
    errors = (values - data.old_values).abs()
    assert (errors if data.active is None else errors[data.active]).max() < 1e-4


def test_nothing_is_remembered_beyond_an_episode_nor_learned_beyond_a_chunk() -> None:
    """An observation has an effect on what comes after it in its episode; in the update, on its chunk."""
    model = remembering(partial(RandomTeam, {"a": spaces.Discrete(3)}), n_envs=2, policy_kwargs=dict(output_gain=1.0))
    collect(model)
    buffer = model.rollout_buffer
    data = buffer.agent_data("a", th.ones(66))
    assert data.rows is not None
    before = th.empty(66)
    before[data.rows] = log_probs_now(model, "a")[0]
    for step, last in ((0, 4), (3, 4), (5, 9), (9, 9), (12, 14), (30, 32)):  # episodes of 10 steps, chunks of 5
        seen = buffer.observations["a"][step, 1].clone()
        buffer.observations["a"][step, 1] += 1.0
        after = th.empty(66)
        after[data.rows] = log_probs_now(model, "a")[0]
        buffer.observations["a"][step, 1] = seen
        changed = (after != before).reshape(33, 2)
        assert not changed[:, 0].any(), "another environment"
        assert changed[step : last + 1, 1].all()
        assert changed.sum() == last + 1 - step


def test_an_absent_agent_keeps_its_memory() -> None:
    """In turns of three, what a player sees while others move is nothing, and the state it comes back with is its own."""
    model = remembering(TurnGame, n_envs=1, n_steps=12)
    collect(model)
    buffer = model.rollout_buffer
    for index, agent in enumerate(model.agents):
        policy = model.policies[agent]
        states = None
        for step in range(index, 12, 3):  # its own turns, one after the other
            obs = model.policy.agent_observation({key: value[step] for key, value in buffer.observations.items()}, agent)
            masks = buffer.observations[f"{agent}/action_mask"][step]
            with th.no_grad():
                states = policy.step(obs, states).states
                assert states is not None
                if step + 3 < 12:
                    continue
                kept = model._last_states.pi[agent]
        assert th.equal(kept, th.zeros_like(kept)), "a new episode has begun"
        assert masks.any()


def test_packed_order() -> None:
    rows, batch_sizes, owners = pack(th.tensor([4, 2, 4, 7, 4, 2]))
    assert batch_sizes.tolist() == [3, 2, 1]
    assert owners.tolist() == [4, 2, 7]
    assert rows.tolist() == [0, 1, 3, 2, 5, 4]


# ---------------------------------------------------------------- what it is good for


def relay(policy: str, total_timesteps: int) -> float:
    """The share of games of memory that a team wins after training."""
    env = make_joint_vec_env(Relay, 32, seed=0, vec_env_cls=JointDummyVecEnv)
    memory: dict[str, Any] = {} if policy == "MlpPolicy" else dict(lstm_hidden_size=32)
    model = HAPPO(
        policy,
        env,
        n_steps=44,
        batch_size=176,
        gamma=1.0,
        gae_lambda=1.0,
        learning_rate=1e-2,
        ent_coef=0.01,
        policy_kwargs=dict(net_arch=dict(pi=[], vf=[32]), output_gain=1.0, **memory),
        seed=0,
        device="cpu",
    ).learn(total_timesteps)
    reward, _ = evaluate_policy(model, env, n_eval_episodes=400)
    assert isinstance(reward, float)
    return reward


@pytest.mark.parametrize(("policy", "total_timesteps"), [("MlpLstmPolicy", 14_000), ("MlpGruPolicy", 14_000)])
def test_a_game_of_memory_is_won_by_those_who_remember(policy: str, total_timesteps: int) -> None:
    assert relay(policy, total_timesteps) >= 0.95


def test_a_game_of_memory_is_not_won_without() -> None:
    assert abs(relay("MlpPolicy", 14_000) - 0.5) < 0.1
