"""Memory: what is remembered, for how long, by whom; and that it is worth something."""

import itertools
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_happo import HAA2C, HAPPO, HATRPO, IPPO, MAPPO, JointEnv, make_joint_vec_env
from sb3_happo.common.agent_policy import AgentPolicy
from sb3_happo.common.batched_actors import BatchedActors
from sb3_happo.common.recurrent import RecurrentLayers, pack, reset_states, twice_differentiable
from sb3_happo.common.type_aliases import Sequences
from sb3_happo.common.value_learning import update_critic
from sb3_happo.vec_env import JointDummyVecEnv
from sb3_happo.vec_env.step_facts import initial_facts, step_facts
from tests.algorithms import collect, small
from tests.envs import HeterogeneousTeam, MaskedGame, RandomTeam, Relay, TurnGame

MEMORY: dict[str, Any] = dict(lstm_hidden_size=8, n_lstm_layers=2)
KINDS = ["lstm", "gru"]
SHARED: dict[str, Any] = dict(shared_lstm=True, enable_critic_lstm=False)


def remembering(team: Any, algorithm: type[HAPPO] = HAPPO, n_envs: int = 3, **kwargs: Any) -> HAPPO:
    """A small model with memory, whose rollout is no multiple of its chunks."""
    policy_kwargs = {**MEMORY, "recurrent": "lstm", **kwargs.pop("policy_kwargs", {})}
    joint_kwargs = kwargs.pop("joint_kwargs", {})
    env = DummyVecEnv([lambda: JointEnv(team(), **joint_kwargs)] * n_envs)
    settings: dict[str, Any] = dict(
        n_steps=33, chunk_length=5, seed=0, learning_rate=1e-2, policy_kwargs=policy_kwargs
    )
    return small(algorithm, env, **{**settings, **kwargs})


def log_probs_now(model: HAPPO, agent: str) -> tuple[th.Tensor, th.Tensor]:
    """Log-probabilities of an agent's actions as the update and as collection computed them."""
    data = model.rollout_buffer.agent_data(agent, th.ones(model.rollout_buffer.n_rows))
    with th.no_grad():
        return model.policies[agent].evaluate_batch(data)[0], data.old_log_prob


TEAMS: list[Any] = [
    HeterogeneousTeam,  # images, Dict observations, masks, agents that die and return
    MaskedGame,
    partial(TurnGame, drops_out={"player_1": 2}, truncate=True),
    partial(
        RandomTeam, dict.fromkeys("abc", spaces.Box(-1, 1, (2,), np.float32))
    ),  # stepped in one call
]
VARIANTS: list[tuple[type[HAPPO], dict[str, Any]]] = [
    (HAPPO, {}),
    (MAPPO, dict(policy_kwargs=dict(append_agent_id=True, layer_norm=True, input_layer_norm=True))),
    (IPPO, dict(batch_size=33, policy_kwargs=dict(lstm_kwargs=dict(bias=False)))),
    (HATRPO, dict(chunk_length=None)),
    (HAA2C, dict(policy_kwargs=dict(enable_critic_lstm=False))),
    (HAPPO, dict(policy_kwargs=SHARED)),
    (IPPO, dict(policy_kwargs=SHARED)),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("team", TEAMS)
@pytest.mark.parametrize(("algorithm", "settings"), VARIANTS)
def test_an_update_begins_where_collection_ended(
    algorithm: type[HAPPO], settings: Any, team: Any, kind: str
) -> None:
    """A forward pass from stored states repeats collection's log-probabilities and values."""
    policy_kwargs = {"recurrent": kind, **settings.get("policy_kwargs", {})}
    model = remembering(team, algorithm, **{**settings, "policy_kwargs": policy_kwargs}).learn(
        2 * 99
    )
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


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("team", TEAMS[1:])
def test_an_agent_specific_critic_remembers_for_each(team: Any, shared: bool) -> None:
    model = remembering(
        team, joint_kwargs=dict(state="agent"), policy_kwargs=SHARED if shared else {}
    ).learn(99)
    collect(model)
    data = model.rollout_buffer.critic_data()
    assert model.critic.value_norm is not None and (data.sequences is None) == shared
    with th.no_grad():
        values = model.critic.value_norm.denormalize(model.critic.evaluate_batch(data))
    errors = (values - data.old_values).abs()
    assert (errors if data.active is None else errors[data.active]).max() < 1e-4


def test_nothing_is_remembered_beyond_an_episode_nor_learned_beyond_a_chunk() -> None:
    """An observation affects what follows in its episode; in the update, in its chunk."""
    model = remembering(
        partial(RandomTeam, {"a": spaces.Discrete(3)}),
        n_envs=2,
        policy_kwargs=dict(output_gain=1.0),
    )
    collect(model)
    buffer = model.rollout_buffer
    data = buffer.agent_data("a", th.ones(66))
    assert data.rows is not None
    before = th.empty(66)
    before[data.rows] = log_probs_now(model, "a")[0]
    for step, last in (
        (0, 4),
        (3, 4),
        (5, 9),
        (9, 9),
        (12, 14),
        (30, 32),
    ):  # episodes of 10 steps, chunks of 5
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
    """In turns of three: a player's state after its turn is its state before the next."""
    model = remembering(TurnGame, n_envs=1, n_steps=12, chunk_length=1)  # every state is stored
    collect(model)
    before = {
        agent: th.cat([states.pi[agent] for states in model.rollout_buffer.states])
        for agent in model.agents
    }
    for index, agent in enumerate(model.agents):
        turns = range(index, 12, 3)
        assert (before[agent][: turns[0] + 1] == 0).all(), "nothing has happened yet"
        for turn, following in itertools.pairwise(turns):
            kept = before[agent][turn + 1]
            assert not th.equal(kept, before[agent][turn])
            assert all(
                th.equal(before[agent][step], kept) for step in range(turn + 1, following + 1)
            )


def test_packed_order() -> None:
    rows, batch_sizes, owners = pack(th.tensor([4, 2, 4, 7, 4, 2]))
    assert batch_sizes.tolist() == [3, 2, 1]
    assert owners.tolist() == [4, 2, 7]
    assert rows.tolist() == [0, 1, 3, 2, 5, 4]


def test_padding_and_packing_are_the_same() -> None:
    """Outputs and gradients of sequences of several lengths, padded and packed."""
    for kind in KINDS:
        memory = RecurrentLayers(kind, 3, 8, n_layers=2)  # type: ignore[arg-type]
        owners = th.tensor(
            [sequence for step in range(6) for sequence in range(4) if step < 6 - sequence % 2]
        )
        rows, batch_sizes, _ = pack(owners)
        sequences = Sequences(batch_sizes, th.randn(4, *memory.state_shape))
        features = th.randn(len(rows), 3)
        found = []
        for context in (nullcontext(), twice_differentiable()):
            with context:
                output, _ = memory(features, sequences)
            found.append([output, *th.autograd.grad((output**2).sum(), list(memory.parameters()))])
        for mine, theirs in zip(*found, strict=True):
            assert th.allclose(mine, theirs, atol=1e-5)


# ---------------------------------------------------------------- predict


def same_as_the_model(model: HAPPO, env: Any, n_steps: int) -> None:
    """Compare `predict` with the team's own steps, which are told the active masks."""
    obs, starts, active = (
        env.reset(),
        np.ones(env.num_envs, bool),
        initial_facts(env, len(model.agents)).active,
    )
    state, states = None, model.policy.initial_states(env.num_envs)
    for _ in range(n_steps):
        actions, state = model.predict(obs, state, starts, deterministic=True)
        tensors = {key: th.as_tensor(value) for key, value in obs.items()}
        states = reset_states(states, th.as_tensor(starts))
        with th.no_grad():
            step = model.policy(tensors, True, states)
        expected = BatchedActors(model.policy).to_env_actions(step.actions)
        here = np.ones((env.num_envs, len(model.agents)), bool) if active is None else active
        for index, agent in enumerate(model.agents):
            assert (actions[agent] == expected[agent])[here[:, index]].all(), agent
        states = model.policy.advance_memory(states, step.states, active)
        for agent, parts in (state or {}).items():
            assert np.allclose(
                np.stack(parts), states.pi[agent].permute(1, 2, 0, 3).numpy(), atol=1e-5
            ), agent
        obs, _, starts, infos = env.step(actions)
        active = step_facts(infos, starts, env, len(model.agents)).active


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("team", "joint_kwargs"),
    [(HeterogeneousTeam, dict(observe_active=True)), (TurnGame, {}), (MaskedGame, {})],
)
def test_predict_remembers_as_in_training(team: Any, joint_kwargs: Any, kind: str) -> None:
    """Several episodes, with agents that are inactive for a while, as the observation says."""
    policy_kwargs = dict(recurrent=kind, output_gain=1.0)
    model = remembering(team, joint_kwargs=joint_kwargs, policy_kwargs=policy_kwargs).learn(99)
    assert model.env is not None
    same_as_the_model(model, model.env, 30)


def test_predict_in_a_loop_of_turns() -> None:
    """Agents that are not asked keep their state; a new episode resets the states of all."""
    model = remembering(TurnGame, policy_kwargs=dict(output_gain=1.0), n_envs=1).learn(99)
    env, joint = TurnGame(), JointEnv(TurnGame())
    state = joint_state = None
    for _ in range(2):
        env.reset(seed=0)
        obs, _ = joint.reset(seed=0)
        start = np.ones(1, bool)
        for agent in env.agent_iter():
            own, _, terminated, truncated, _ = env.last()
            if terminated or truncated:
                env.step(None)
                continue
            action, state = model.predict({agent: own}, state, start, deterministic=True)
            joint_action, joint_state = model.predict(obs, joint_state, start, deterministic=True)
            assert action[agent] == joint_action[agent]
            assert np.allclose(state[agent], joint_state[agent], atol=1e-6)
            start = np.zeros(1, bool)
            env.step(action[agent])
            obs, *_ = joint.step(joint_action)


@pytest.mark.parametrize("kind", KINDS)
def test_one_agent_alone(kind: str, tmp_path: Path) -> None:
    """sb3-contrib's form: a tuple of arrays (n_layers, n_envs, hidden_size), None at the start."""
    team = partial(RandomTeam, dict.fromkeys("ab", spaces.Box(-1, 1, (2,), np.float32)))
    model = remembering(team, policy_kwargs=dict(recurrent=kind, output_gain=1.0)).learn(99)
    model.policies["b"].save(str(tmp_path / "b"))
    alone = AgentPolicy.load(str(tmp_path / "b"))
    rng = np.random.default_rng(0)
    state = team_state = None
    for step in range(5):
        obs = rng.normal(size=(4, 3)).astype(np.float32)
        start = np.full(4, step == 0) | (np.arange(4) == step)
        action, state = alone.predict(obs, state, start, deterministic=True)
        actions, team_state = model.predict({"b": obs}, team_state, start, deterministic=True)
        assert np.allclose(action, actions["b"], atol=1e-6)
        assert state is not None and [part.shape for part in state] == [(2, 4, 8)] * (
            2 if kind == "lstm" else 1
        )
    first, _ = alone.predict(obs, None, deterministic=True)
    forgotten, _ = alone.predict(obs, state, np.ones(4, bool), deterministic=True)
    assert np.allclose(first, forgotten, atol=1e-6) and not np.allclose(first, action, atol=1e-3)
    single, after = alone.predict(obs[0], deterministic=True)
    assert (
        np.allclose(single, first[0], atol=1e-6)
        and after is not None
        and after[0].shape == (2, 1, 8)
    )


@pytest.mark.parametrize("algorithm", [HAPPO, HATRPO, HAA2C, MAPPO, IPPO])
def test_a_loaded_team_remembers_alike_and_starts_afresh(
    algorithm: type[HAPPO], tmp_path: Path
) -> None:
    model = remembering(MaskedGame, algorithm).learn(99)
    sequences = model.rollout_buffer.states
    assert any(state.any() for states in sequences for state in states.pi.values())
    model.save(tmp_path / "model")
    env = DummyVecEnv([lambda: JointEnv(MaskedGame())] * 2)
    loaded = algorithm.load(tmp_path / "model", env=env)
    assert loaded.chunk_length == 5 and loaded.policies["agent_0"].memory is not None
    obs: Any = env.reset()
    state = other = None
    for _ in range(3):
        actions, state = model.predict(obs, state, deterministic=True)
        others, other = loaded.predict(obs, other, deterministic=True)
        assert np.array_equal(actions, others)
        obs = env.step(actions)[0]
    loaded.learn(66, reset_num_timesteps=False)  # one rollout
    assert loaded.num_timesteps == 99 + 66
    first = loaded.rollout_buffer.states[0].pi
    assert first and not any(state.any() for state in first.values())


# ---------------------------------------------------------------- who remembers


def test_each_agent_may_choose() -> None:
    own = {
        "arm": dict(recurrent=None),
        "camera": dict(recurrent="gru", lstm_hidden_size=5),
        "crane": dict(n_lstm_layers=1),
    }
    model = remembering(
        HeterogeneousTeam, policy_kwargs=dict(agent_kwargs=own, critic_kwargs=dict(recurrent="gru"))
    )
    model.learn(99)
    shapes = {
        agent: policy.memory and policy.memory.state_shape
        for agent, policy in model.policies.items()
    }
    assert shapes == {
        "camera": (1, 2, 5),
        "arm": None,
        "crane": (2, 1, 8),
        "console": (2, 2, 8),
        "switch": (2, 2, 8),
    }
    first = model.rollout_buffer.states[0]
    assert set(first.pi) == {"camera", "crane", "console", "switch"}
    assert first.vf is not None and first.vf.shape == (3, 1, 1, 2, 8)
    assert model.env is not None
    _, state = model.predict(model.env.reset())  # type: ignore[arg-type]
    assert set(state) == {"camera", "crane", "console", "switch"}


def test_a_critic_without_memory() -> None:
    for policy_kwargs in (dict(enable_critic_lstm=False), dict(critic_kwargs=dict(recurrent=None))):
        model = remembering(MaskedGame, policy_kwargs=policy_kwargs).learn(99)
        assert not model.critic.recurrent and model.rollout_buffer.states[0].vf is None
        assert model.policies["agent_0"].memory is not None


@pytest.mark.parametrize("algorithm", [HAPPO, IPPO])
def test_a_critic_reads_what_actors_remember(algorithm: type[HAPPO], tmp_path: Path) -> None:
    """All of them beside the state, or its own agent's; without teaching them."""
    agent_kwargs = {"a": dict(lstm_hidden_size=5, n_lstm_layers=1), "b": dict(recurrent=None)}
    team = partial(RandomTeam, dict.fromkeys("abc", spaces.Discrete(3)))
    model = remembering(
        team, algorithm, policy_kwargs=dict(**SHARED, agent_kwargs=agent_kwargs)
    ).learn(99)
    assert not model.critic.recurrent and model.rollout_buffer.states[0].vf is None
    before = {name: value.clone() for name, value in model.policy.actors.state_dict().items()}
    critic = [value.clone() for value in model.critic.parameters()]
    update_critic(model.critic, model.rollout_buffer.critic_data(), model.value_loss, 2, None, 0.5)
    assert not all(map(th.equal, model.critic.parameters(), critic))
    assert all(
        th.equal(value, before[name]) for name, value in model.policy.actors.state_dict().items()
    )

    model.policy.set_training_mode(False)
    assert model.env is not None
    obs = {key: th.as_tensor(value) for key, value in model.env.reset().items()}  # type: ignore[union-attr]
    zeros = model.policy.initial_states(model.n_envs)
    states = zeros._replace(pi={name: th.randn_like(state) for name, state in zeros.pi.items()})
    step = BatchedActors(model.policy)(obs, states.pi)
    with th.no_grad():
        values = model.policy.predict_values(obs, states)
        seen = model.policy.critic_observation(obs, step.states)
        assert th.allclose(values, model.critic.predict_values(seen, states.vf), atol=1e-5)
        assert th.allclose(values, model.policy.forward(obs, states=states).values, atol=1e-5)
        assert model.policy.predict_values(obs).shape == values.shape  # at the start of an episode
        for agent, columns in {"a": [0], "c": [2]}.items():
            changed = {name: state + (name == agent) for name, state in states.pi.items()}
            moved = (
                model.policy.predict_values(obs, states._replace(pi=changed)) - values
            ).abs().max(dim=0).values > 1e-6
            assert moved.nonzero().flatten().tolist() == (columns if algorithm is IPPO else [0]), (
                agent
            )
        model.save(tmp_path / "model")
        loaded = algorithm.load(tmp_path / "model", env=model.env)
        assert th.allclose(loaded.policy.predict_values(obs, states), values)
    loaded.learn(99)


def test_settings_that_cannot_work_are_refused() -> None:
    for policy_kwargs, message in (
        (dict(shared_lstm=True), "enable_critic_lstm=False"),
        (dict(**SHARED, recurrent=None), "MlpLstmPolicy"),
        (dict(**SHARED, critic_kwargs=dict(recurrent="gru")), "instead of having recurrent layers"),
        (dict(recurrent="rnn"), "'lstm', 'gru' or None"),
        (dict(lstm_kwargs=dict(bidirectional=True)), "bidirectional"),
    ):
        with pytest.raises(ValueError, match=message):
            remembering(MaskedGame, policy_kwargs=policy_kwargs)
    with pytest.raises(ValueError, match="chunk_length must be a whole number, at least 1"):
        remembering(MaskedGame, chunk_length=0)


# ---------------------------------------------------------------- a team of one


class BlindCartPole(gym.ObservationWrapper):
    """CartPole without its velocities."""

    def __init__(self) -> None:
        super().__init__(gym.make("CartPole-v1"))
        self.observation_space = spaces.Box(-5.0, 5.0, (2,), np.float32)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return observation[[0, 2]]


def test_observations_that_sb3_counts_in_numpys_integers() -> None:
    env = RandomTeam(
        {"a": spaces.Discrete(2)}, observation_spaces={"a": spaces.MultiDiscrete([2, 3])}
    )
    small(HAPPO, env, policy_kwargs=dict(recurrent="lstm")).learn(32)


def test_team_of_one_is_recurrent_ppo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Same weights and random numbers, whole rollouts as minibatches: sb3-contrib's numbers."""
    settings: dict[str, Any] = dict(
        n_steps=64, batch_size=256, n_epochs=2, learning_rate=1e-3, gamma=0.98, ent_coef=0.01
    )
    net: dict[str, Any] = dict(net_arch=[16], activation_fn=th.nn.Tanh, lstm_hidden_size=8)
    ppo = RecurrentPPO(
        "MlpLstmPolicy",
        make_vec_env(BlindCartPole, 4),
        max_grad_norm=float("inf"),
        policy_kwargs=net,
        device="cpu",
        **settings,
    )
    model = HAPPO(
        "MlpLstmPolicy",
        make_vec_env(BlindCartPole, 4),
        max_grad_norm=None,
        normalize_value=False,
        chunk_length=None,
        policy_kwargs=net,
        device="cpu",
        **settings,
    )
    actor, critic, theirs = model.policies["agent_0"], model.critic.networks[0], ppo.policy
    assert actor.memory is not None
    pairs: list[tuple[Any, Any]] = [
        (actor.memory.rnn, theirs.lstm_actor),
        (actor.body, theirs.mlp_extractor.policy_net),
        (actor.head, theirs.action_net),
        (critic.memory.rnn, theirs.lstm_critic),
        (critic.body, theirs.mlp_extractor.value_net),
        (critic.head, theirs.value_net),
    ]
    for mine, other in pairs:
        mine.load_state_dict(other.state_dict())
    # It cuts one sequence in two, at a random place, to shuffle
    monkeypatch.setattr(np.random, "randint", lambda *args: 0)
    before = [param.detach().clone() for param in ppo.policy.parameters()]
    for which in (ppo, model):
        which.set_random_seed(0)
        which.learn(5 * 256)
    assert all(
        (old - new).abs().max() > 1e-4
        for old, new in zip(before, ppo.policy.parameters(), strict=True)
    )
    for mine, other in pairs:
        for param, target in zip(mine.parameters(), other.parameters(), strict=True):
            assert th.allclose(param, target, atol=1e-5), (param - target).abs().max()


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
        # With some seeds, such as 0, a team settles for constant play, 0.5
        seed=1,
        device="cpu",
    ).learn(total_timesteps)
    reward, _ = evaluate_policy(model, env, n_eval_episodes=400)
    assert isinstance(reward, float)
    return reward


@pytest.mark.parametrize(
    ("policy", "total_timesteps"), [("MlpLstmPolicy", 20_000), ("MlpGruPolicy", 20_000)]
)
def test_a_game_of_memory_is_won_by_those_who_remember(policy: str, total_timesteps: int) -> None:
    assert relay(policy, total_timesteps) >= 0.95


def test_a_game_of_memory_is_not_won_without() -> None:
    assert abs(relay("MlpPolicy", 20_000) - 0.5) < 0.1
