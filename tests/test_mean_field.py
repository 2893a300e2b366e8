"""MFQ and MFAC: neighbours, mean actions, the Boltzmann policy, and games with known answers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_happo import (
    MFAC,
    MFQ,
    JointEnv,
    evaluate_policy,
)
from sb3_happo.common.mean_field_actor import MeanFieldActor
from sb3_happo.envs.games import GaussianSqueeze, Ising
from tests.algorithms import alike_team
from tests.envs import MaskedGame, RandomTeam, TurnGame
from tests.off_policy import small

Algorithm = type[MFQ]
every_algorithm = pytest.mark.parametrize("algorithm", [MFQ, MFAC], ids=lambda cls: cls.__name__)
SPACES: dict[str, spaces.Space] = {
    "choice": spaces.Discrete(3, start=2),
    "like_it": spaces.Discrete(3, start=2),
    "choices": spaces.MultiDiscrete([3, 2]),
    "bits": spaces.MultiBinary(3),
    "nested": spaces.Dict(a=spaces.Discrete(2), b=spaces.MultiDiscrete([2, 2])),
}


def mean_action(model: MFQ, actions: dict[str, float], active: Any = None) -> np.ndarray:
    """Mean actions of the neighbours of Discrete agents after a step, ``(n_agents, n_mean)``."""
    raw = th.tensor([[actions[agent] for agent in model.agents]])
    mask = None if active is None else th.tensor([active])
    encoded = model.policy.encoded_by_group(raw)
    observations = {
        key: th.zeros(1, *space.shape)
        for key, space in model.observation_space.spaces.items()  # type: ignore[attr-defined]
    }
    return model.policy.mean_actions(encoded, observations, mask)[0].numpy()


# ---------------------------------------------------------------- neighbours

CHAIN = [[0, 1, 0], [1, 0, 1], [0, 1, 0]]
NAMES = {"agent_0": ["agent_1"], "agent_1": ["agent_0", "agent_2"], "agent_2": ["agent_1"]}
ACTIONS = {"agent_0": 0.0, "agent_1": 1.0, "agent_2": 2.0}


@pytest.mark.parametrize(
    "neighbors", [CHAIN, np.array(CHAIN), NAMES, NAMES.get], ids=["list", "array", "dict", "call"]
)
def test_a_chain_of_neighbours(neighbors: Any, tmp_path: Path) -> None:
    model = small(MFQ, alike_team(3), neighbors=neighbors)
    expected = np.array([[0, 1, 0], [0.5, 0, 0.5], [0, 1, 0]])
    assert np.allclose(mean_action(model, ACTIONS), expected)
    assert np.allclose(mean_action(model, ACTIONS, [True, False, True])[[0, 2]], 0.0)
    assert np.allclose(mean_action(model, ACTIONS, [False, True, True])[1], [0, 0, 1])
    model.save(tmp_path / "model")
    assert np.allclose(mean_action(MFQ.load(tmp_path / "model"), ACTIONS), expected)


def test_all_others_are_neighbours() -> None:
    expected = np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    assert np.allclose(mean_action(small(MFQ, alike_team(3)), ACTIONS), expected)


def test_a_radius() -> None:
    fixed = np.array([[0.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    expected = np.array([[0, 1, 0], [0.5, 0, 0.5], [0, 1, 0]])
    model = small(MFQ, alike_team(3), neighbors=1, positions=fixed)
    assert np.allclose(mean_action(model, ACTIONS), expected)

    def line(observations: dict[str, th.Tensor]) -> th.Tensor:
        n_rows = len(observations["agent_0"])
        return th.arange(3.0).reshape(1, 3, 1).repeat(n_rows, 1, 1)

    model = small(MFQ, alike_team(3), neighbors=1.5, positions=line)
    assert np.allclose(mean_action(model, ACTIONS), expected)
    model.learn(40)


def test_a_radius_by_columns_of_the_observations() -> None:
    model = small(MFQ, alike_team(3), neighbors=0.5, positions=[0]).learn(40)
    obs = {agent: th.zeros(1, 3) for agent in model.agents}
    obs["agent_2"] += 0.6
    actions = model.policy.encoded_by_group(th.tensor([[0.0, 1.0, 2.0]]))
    means = model.policy.mean_actions(actions, obs, None)[0]
    assert np.allclose(means.numpy(), [[0, 1, 0], [1, 0, 0], [0, 0, 0]])


def test_each_action_space_has_its_columns() -> None:
    model = small(MFQ, JointEnv(RandomTeam(SPACES)))
    assert model.policy.n_mean == 3 + 5 + 6 + 6
    assert [len(group) for group in model.policy.groups] == [2, 1, 1, 1]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"neighbors": {**NAMES, "agent_0": ["agent_7"]}},
            "agent_7.*neighbours of agent",
        ),
        ({"neighbors": {**NAMES, "agent_x": []}}, "Unknown agent 'agent_x'"),
        ({"neighbors": {"agent_0": ["agent_1"]}}, "no entry for agent 'agent_1'"),
        ({"neighbors": lambda agent: ["nobody"]}, "Unknown agent 'nobody'"),
        ({"neighbors": {**NAMES, "agent_2": ["agent_2"]}}, "'agent_2' a neighbour of itself"),
        ({"neighbors": np.ones((3, 3))}, "'agent_0' a neighbour of itself.*diagonal"),
        ({"neighbors": np.zeros((2, 2))}, r"shape \(2, 2\)"),
        ({"neighbors": [[0, 2, 0]] * 3}, "zeros and ones, and has 2"),
        ({"neighbors": "near"}, "neighbors='near' is unknown"),
        ({"neighbors": 2.0}, "needs `positions`"),
        ({"neighbors": -1.0, "positions": [0]}, "above 0"),
        ({"neighbors": 1.0, "positions": [9]}, "column 9.*'agent_0' has 3"),
        ({"neighbors": 1.0, "positions": np.zeros((2, 2))}, r"shape \(2, 2\)"),
        ({"positions": [0]}, "`positions` are for a radius"),
        ({"temperature": 0.0}, "temperature"),
        ({"n_iterations": -1}, "n_iterations"),
        ({"iteration_rate": 0.0}, "iteration_rate"),
        ({"start_rate": 2.0}, "start_rate"),
        ({"n_steps": 3}, "n_steps.*single steps"),
    ],
)
def test_bad_arguments_are_named(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(MFQ, alike_team(3), **kwargs)


def test_teams_that_are_refused() -> None:
    with pytest.raises(ValueError, match="'a' alone; use IQL"):
        small(MFQ, JointEnv(RandomTeam({"a": spaces.Discrete(2)})))
    box = {"a": spaces.Discrete(2), "b": spaces.Box(-1, 1, (2,))}
    with pytest.raises(TypeError, match=r"MFQ .* agent 'b'"):
        small(MFQ, JointEnv(RandomTeam(box)))
    team = VecNormalize(DummyVecEnv([lambda: alike_team(3)]), norm_obs_keys=["agent_0"])
    with pytest.raises(ValueError, match=r"VecNormalize.*norm_obs=False"):
        small(MFQ, team, neighbors=0.5, positions=[0])


# ---------------------------------------------------------------- teams of all kinds


@every_algorithm
@pytest.mark.parametrize("n_envs", [1, 2])
def test_all_discrete_spaces(algorithm: Algorithm, n_envs: int) -> None:
    team = DummyVecEnv([lambda: JointEnv(RandomTeam(SPACES))] * n_envs)
    model = small(algorithm, team, seed=0, n_iterations=1)
    before = {agent: policy.head.weight.clone() for agent, policy in model.policies.items()}
    model.learn(60)
    for agent, policy in model.policies.items():
        assert not th.equal(before[agent], policy.head.weight), agent
    assert model.policies["choice"].head is model.policies["like_it"].head


@every_algorithm
@pytest.mark.parametrize("team", [MaskedGame, TurnGame])
def test_masks_and_turns(algorithm: Algorithm, team: Any) -> None:
    """Illegal actions raise in these games."""
    model = small(algorithm, JointEnv(team()), seed=0, n_iterations=1, temperature=5.0).learn(80)
    for deterministic in (False, True):
        evaluate_policy(model, JointEnv(team()), 2, deterministic, warn=False)
    for policy in model.policies.values():
        assert all(param.abs().max() < 100 for param in policy.parameters())


@every_algorithm
def test_save_load_and_predict(algorithm: Algorithm, tmp_path: Path) -> None:
    env = JointEnv(RandomTeam(SPACES))
    kwargs = dict(append_agent_id=True)
    model = small(algorithm, env, kwargs, seed=0, temperature=0.7).learn(60)
    model.save(tmp_path / "model")
    model.policy.save(tmp_path / "team")
    loaded = algorithm.load(tmp_path / "model", env=JointEnv(RandomTeam(SPACES)))
    obs, _ = env.reset(seed=0)
    expected, state = model.predict(obs, deterministic=True)
    again, _ = type(model.policy).load(tmp_path / "team").predict(obs, deterministic=True)
    actions, _ = loaded.predict(obs, deterministic=True)
    for agent in ("choice", "choices", "bits"):
        assert np.array_equal(expected[agent], actions[agent])
        assert np.array_equal(expected[agent], again[agent])
    loaded.learn(40, reset_num_timesteps=False)
    # One agent alone, which is told the mean action of its neighbours
    both, _ = model.predict(obs, state, deterministic=True)
    policy: Any = model.policies["choices"]
    policy.save(tmp_path / "agent")
    alone = MeanFieldActor.load(tmp_path / "agent")
    assert float(alone.temperature.value) == float(policy.temperature.value)
    own, _ = alone.predict(obs["choices"], state["choices"], deterministic=True)
    assert np.array_equal(own, both["choices"])
    with pytest.raises(NotImplementedError, match="mean action"):
        alone.export_onnx(tmp_path / "agent.onnx")
    with pytest.raises(ValueError, match="mean action of the neighbours"):
        alone.predict(obs["choices"], (np.zeros((1, 1, 2)),))


def test_predict_carries_the_mean_actions_on() -> None:
    model = small(MFQ, alike_team(3), seed=0)
    obs = {agent: np.zeros(3, np.float32) for agent in model.agents}
    actions, state = model.predict(obs)
    chosen = {agent: float(action) for agent, action in actions.items()}
    expected = mean_action(model, chosen)
    for row, agent in zip(expected, model.agents, strict=True):
        assert np.allclose(state[agent][0], row)
    # Dead agents, without an observation, are in no mean action
    del obs["agent_1"]
    actions, state = model.predict(obs, state)
    assert set(actions) == {"agent_0", "agent_2"}
    assert state["agent_0"][0].sum() == 1.0
    assert state["agent_0"][0][0, 0, int(actions["agent_2"])] == 1.0
    batch = {agent: np.zeros((4, 3), np.float32) for agent in model.agents}
    joint, state = model.predict(batch, episode_start=np.ones(4, bool))
    assert joint.shape == (4,) and state["agent_0"][0].shape == (1, 4, 3)


@every_algorithm
def test_log(algorithm: Algorithm) -> None:
    class LogCallback(BaseCallback):
        def _on_step(self) -> bool:
            self.names = set(self.logger.name_to_value)
            return True

    callback = LogCallback()
    small(algorithm, alike_team(2), train_freq=1).learn(38, callback=callback)
    wanted = {"rollout/temperature", "train/loss", "train/policy_entropy", "agent_0/q_value"}
    wanted |= {"agent_1/actor_loss", "train/actor_loss"} if algorithm is MFAC else set()
    assert wanted <= callback.names, callback.names


# ---------------------------------------------------------------- the Boltzmann policy


def test_the_temperature_is_one() -> None:
    """The probabilities of ``predict`` are those of the values at the temperature."""
    model = small(MFQ, alike_team(3), seed=0, temperature=0.3)
    obs = {agent: np.zeros((4000, 3), np.float32) for agent in model.agents}
    actions, _ = model.predict(obs)
    tensors = {agent: th.zeros(1, 3) for agent in model.agents}
    means = model.policy.start_means.unsqueeze(0)
    values = model.policy.action_values(tensors, means)[0][0, 0]
    expected = (values / 0.3).softmax(0).detach().numpy()
    counts = np.bincount(actions["agent_0"], minlength=3) / 4000
    assert np.abs(counts - expected).max() < 0.03
    greedy, _ = model.predict(obs, deterministic=True)
    assert set(greedy["agent_0"]) == {int(values.argmax())}


def test_targets_have_the_value_of_the_policy() -> None:
    """Two actions that pay 0 and 1 for ever: the value is that of the policy, not the maximum."""

    class Pay(RandomTeam):
        def step(self, actions: Any) -> Any:
            obs, _, ends, cuts, infos = super().step(actions)
            return obs, {agent: float(actions[agent]) for agent in actions}, ends, cuts, infos

    spaces_ = dict.fromkeys(("a", "b"), spaces.Discrete(2))
    model = small(
        MFQ,
        JointEnv(Pay(spaces_)),
        seed=0,
        temperature=1.0,
        gamma=0.5,
        tau=0.3,
        learning_rate=3e-2,
        train_freq=1,
        value_loss="mse",
    ).learn(220)
    obs = {key: th.zeros(1, *space.shape) for key, space in model.observation_space.spaces.items()}  # type: ignore[attr-defined]
    values = model.policy.action_values(obs, th.full((1, 2, 2), 0.5))[0].mean(dim=(0, 1))
    share = float(1 / (1 + np.exp(-1.0)))
    # v = share + gamma v
    value = share / 0.5
    assert np.allclose(values.detach().numpy(), [0.5 * value, 1 + 0.5 * value], atol=0.2)


# ---------------------------------------------------------------- games with known answers


def lattice(size: int, length: int = 100_000) -> tuple[Ising, np.ndarray]:
    game = Ising(size, length, observe_neighbors=False, checkerboard=True)
    matrix = np.zeros((size**2, size**2))
    matrix[np.arange(size**2)[:, np.newaxis], game.neighbors] = 1
    return game, matrix


class Magnetization(BaseCallback):
    """Mean spin at every step."""

    def __init__(self, game: Ising) -> None:
        super().__init__()
        self.game = game
        self.values: list[float] = []

    def _on_step(self) -> bool:
        self.values.append(self.game.magnetization)
        return True


def spins(
    algorithm: Algorithm, size: int, temperature: float, n_steps: int, train_freq: int = 4
) -> tuple[MFQ, float]:
    """Model of a lattice that was cooled, and the mean spin in the last fifth of the training."""
    game, matrix = lattice(size)
    callback = Magnetization(game)
    model = algorithm(
        "MlpPolicy",
        game,
        neighbors=matrix,
        temperature=lambda progress: temperature + max(0.0, (progress - 0.6) / 0.4),
        gamma=0.0,
        batch_size=8,
        train_freq=train_freq,
        learning_starts=20,
        buffer_size=2000,
        learning_rate=1e-2,
        value_loss="mse",
        policy_kwargs=dict(net_arch=[16]),
        seed=0,
        device="cpu",
    ).learn(n_steps, callback, log_interval=None)
    return model, float(np.mean(callback.values[-n_steps // 5 :]))


def ising_outputs(networks: list[Any]) -> np.ndarray:
    """Outputs for both spins if k of four neighbours are up, ``(5, 2)``."""
    up = th.arange(5) / 4
    means = th.stack([1 - up, up], dim=1)
    return networks[0].parameters_of_actions(th.ones(5, 1), agent_ids=means)[0].detach().numpy()


@every_algorithm
def test_values_of_a_small_lattice(algorithm: Algorithm) -> None:
    """Half the sum of the products of the spins: -2, -1, 0, 1 and 2 for an upward spin."""
    model, _ = spins(algorithm, 4, 1.0, 220, train_freq=1)
    values = ising_outputs(model.policy.value_networks())
    assert np.allclose(values[:, 1], [-2, -1, 0, 1, 2], atol=0.3)
    assert np.allclose(values[:, 0], [2, 1, 0, -1, -2], atol=0.3)


@pytest.mark.slow
@every_algorithm
def test_ising_follows_onsager(algorithm: Algorithm) -> None:
    """Exact for an endless lattice: 0.957 at T = 0.9, and 0 at T = 2 (0.086 on 20 x 20)."""
    assert spins(algorithm, 20, 0.9, 600)[1] > 0.93
    assert spins(algorithm, 20, 2.0, 300)[1] < 0.15


class Regret(GaussianSqueeze):
    """The squeeze with rewards counted from the optimum: untried actions look good."""

    def payoff(self, total: Any) -> Any:
        return super().payoff(total) - 423.03


@pytest.mark.slow
def test_squeeze_of_500_agents() -> None:
    """
    Random play yields 0. Agents with one network and equal observations find the best common
    action, 1, which yields 389.4 of 423.03.
    """
    model = MFQ(
        "MlpPolicy",
        Regret(500),
        temperature=0.01,
        gamma=0.0,
        batch_size=8,
        train_freq=1,
        learning_starts=8,
        buffer_size=30,
        learning_rate=1e-2,
        value_loss="mse",
        policy_kwargs=dict(net_arch=[16]),
        seed=0,
        device="cpu",
    ).learn(300, log_interval=None)
    game = GaussianSqueeze(500)
    obs, _ = game.reset(seed=0)
    actions, _ = model.predict(obs)
    assert game.step(actions)[1]["agent_0"] > 380
