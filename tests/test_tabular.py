"""Algorithms with tables: known answers, SB3's interface, files, bad input."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from gymnasium import spaces
from pettingzoo import ParallelEnv
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.logger import configure

from sb3_happo import HAPPO, make_joint_vec_env
from sb3_happo.envs import as_joint_env
from sb3_happo.envs.games import GridGame, Soccer
from sb3_happo.envs.games.soccer import WEST
from sb3_happo.tabular import (
    JAL,
    MinimaxQ,
    NashQ,
    TabularAlgorithm,
    TabularIQL,
    gains,
    nash_gap,
    policy_values,
    worst_case,
)
from sb3_happo.vec_env import JointDummyVecEnv
from tests.envs.normal_form import NormalForm

PENNIES = np.array([[1.0, -1.0], [-1.0, 1.0]])
ROCK_PAYS_2 = np.array([[0.0, -1.0, 2.0], [1.0, 0.0, -1.0], [-2.0, 1.0, 0.0]])
CLIMBING = np.array([[11.0, -30.0, 0.0], [-30.0, 7.0, 6.0], [0.0, 0.0, 5.0]])
ONLY = {"agent_0": 0, "agent_1": 0}
#: Random play, from random starts
RANDOM: dict[str, Any] = dict(exploration_initial_eps=1.0, exploration_final_eps=1.0)
ALL = [NashQ, MinimaxQ, TabularIQL, JAL]
Algorithm = type[TabularAlgorithm]


def zero_sum(payoffs: Any, **kwargs: Any) -> NormalForm:
    payoffs = np.array(payoffs, float)
    return NormalForm([payoffs, -payoffs], **kwargs)


def team_game(payoffs: np.ndarray) -> NormalForm:
    return NormalForm([payoffs, payoffs])


def start_of(env: Any) -> dict[str, Any]:
    return env.observe(env.initial_states()[0][1])


# ---------------------------------------------------------------- right answers


def test_nash_q_solves_matching_pennies() -> None:
    model = NashQ(zero_sum(PENNIES), seed=0).learn(200)
    for strategy in model.action_probabilities(ONLY).values():
        assert strategy == pytest.approx([0.5, 0.5], abs=0.02)


@pytest.mark.parametrize(
    ("payoffs", "row", "value"),
    [
        (PENNIES, (1 / 2, 1 / 2), 0.0),
        (ROCK_PAYS_2, (1 / 4, 1 / 2, 1 / 4), 0.0),
        ([[3, -1], [-2, 1]], (3 / 7, 4 / 7), 1 / 7),
    ],
)
def test_minimax_q_solves_matrix_games(payoffs: Any, row: Any, value: float) -> None:
    model = MinimaxQ(zero_sum(payoffs), seed=0).learn(300)
    assert model.action_probabilities(ONLY)["agent_0"] == pytest.approx(row, abs=0.02)
    assert model.state_value(ONLY) == pytest.approx([value, -value], abs=0.02)


def test_nash_q_solves_grid_game_1() -> None:
    env = GridGame(1, random_starts=True)
    # The game is deterministic, so that a step size of 1 is right
    model = NashQ(env, learning_rate=1.0, seed=0, **RANDOM).learn(4_000)
    assert model.state_value(start_of(env)) == pytest.approx([97.03, 97.03], abs=0.5)
    assert nash_gap(model, env) < 0.5
    assert list(policy_values(model, env).values()) == pytest.approx([97.03, 97.03], abs=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("selection", ["stable", "first", "second", "largest_sum"])
def test_nash_q_solves_grid_game_1_with_every_rule(selection: str) -> None:
    env = GridGame(1, random_starts=True)
    model = NashQ(env, selection=selection, seed=0, **RANDOM).learn(36_000)
    assert model.state_value(start_of(env)) == pytest.approx([97.03, 97.03], abs=0.5)
    assert nash_gap(model, env) < 0.5


@pytest.mark.slow
def test_nash_q_solves_grid_game_2() -> None:
    """The default rule reaches one of the equilibria with most seeds; see docs/tabular.md."""
    env = GridGame(2, random_starts=True)
    n_solved = 0
    for seed in range(5):
        model = NashQ(env, seed=seed, **RANDOM).learn(20_000)
        n_solved += nash_gap(model, env) < 0.5
    assert n_solved >= 3


class BeforeTheGoal(Soccer):
    """Starts with the ball one step before the goal; a time limit cuts the game off."""

    def initial_states(self) -> list[tuple[float, Any]]:
        return [(1.0, ((0, 0), (1, 2), 0))]


def test_minimax_q_scores_in_soccer() -> None:
    env = BeforeTheGoal(2, 3, max_steps=1)
    model = MinimaxQ(env, gamma=0.9, seed=0, **RANDOM).learn(200)
    assert model.state_value(start_of(env)) == pytest.approx([1.0, -1.0])
    assert model.action_probabilities(start_of(env))["agent_0"][WEST] == 1.0


@pytest.mark.slow
def test_minimax_q_defends_in_soccer() -> None:
    env = Soccer(2, 3, random_starts=True)
    model = MinimaxQ(env, gamma=0.9, seed=0, **RANDOM).learn(60_000)
    assert min(worst_case(model, env).values()) >= -0.2


def test_independent_learners_fail_where_hysteretic_ones_do_not() -> None:
    def payoff(model: TabularAlgorithm) -> float:
        actions, _ = model.predict(ONLY, deterministic=True)
        return CLIMBING[actions["agent_0"], actions["agent_1"]]

    assert payoff(TabularIQL(team_game(CLIMBING), seed=0).learn(600)) == 5.0
    hysteretic = TabularIQL(
        team_game(CLIMBING), learning_rate=0.1, negative_learning_rate=0.01, seed=0
    )
    assert payoff(hysteretic.learn(1_000)) == 11.0


def test_joint_action_learners_know_the_payoffs() -> None:
    model = JAL(team_game(CLIMBING), seed=0).learn(300)
    assert model.tables["joint"]["q"][0] == pytest.approx(np.array([CLIMBING, CLIMBING]))
    # Three agents, too
    three = np.zeros((3, 2, 2, 2))
    three[:, 1, 1, 1] = 1.0
    actions, _ = (
        JAL(NormalForm(three), seed=0)
        .learn(500)
        .predict(dict.fromkeys(["agent_0", "agent_1", "agent_2"], 0), deterministic=True)
    )
    assert set(actions.values()) == {1}


class Corridor(ParallelEnv):
    """
    One agent on a line of 4, to the right for 1 in the end. For the reward 0 it may stay. The
    first step has a mask, and the time limit is a truncation.
    """

    metadata: ClassVar[dict[str, Any]] = {"name": "corridor", "render_modes": []}
    render_mode = None

    def __init__(self, length: int = 50, start: int = 0) -> None:
        self.possible_agents = ["walker"]
        self.agents: list[str] = []
        self.length = length
        self.start = start

    def observation_space(self, agent: str) -> spaces.Space:
        cells = spaces.MultiDiscrete([5, 2])
        return spaces.Dict(observation=cells, action_mask=spaces.MultiBinary(2))

    def action_space(self, agent: str) -> spaces.Space:
        return spaces.Discrete(2, start=self.start)

    def _observe(self) -> dict[str, Any]:
        # At the start only the way to the right is open
        mask = np.array([self.cell > 0, 1], np.int8)
        return {"walker": {"observation": np.array([self.cell, 0]), "action_mask": mask}}

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        self.agents = ["walker"]
        self.cell = self.t = 0
        return self._observe(), {"walker": {}}

    def step(self, actions: dict[str, Any]) -> tuple[dict, dict, dict, dict, dict]:
        right = int(actions["walker"]) == self.start + 1
        assert right or self.cell > 0, "an illegal action"
        self.t += 1
        self.cell += 1 if right else -1
        over, late = self.cell == 4, self.t == self.length
        if over or late:
            self.agents = []
        return (
            self._observe(),
            {"walker": float(over)},
            {"walker": over},
            {"walker": late and not over},
            {"walker": {}},
        )


@pytest.mark.parametrize("algorithm", [TabularIQL, JAL])
@pytest.mark.parametrize("start", [0, 5])
def test_masks_starts_and_time_limits(algorithm: Algorithm, start: int) -> None:
    """Values are discounted powers, and those of the last state before a time limit go on."""
    env = Corridor(length=6, start=start)
    model = algorithm(env, learning_rate=1.0, gamma=0.9, seed=0, **RANDOM).learn(600)
    observation = {"observation": np.array([1, 0]), "action_mask": np.array([1, 1])}
    action, _ = model.predict({"walker": observation}, deterministic=True)
    assert action == {"walker": start + 1}
    closed = {"observation": np.array([0, 0]), "action_mask": np.array([0, 1])}
    probabilities = model.action_probabilities({"walker": closed})
    assert probabilities["walker"] == pytest.approx([0.0, 1.0])
    values = np.concatenate([table["q"][: len(table)].ravel() for table in model.tables.values()])
    assert values.max() == pytest.approx(1.0)
    assert values[values > 0].min() == pytest.approx(0.9**4)


class Turns(Corridor):
    """Two agents in turns; the second repeats the first one's bit, for 1 to both."""

    def __init__(self) -> None:
        super().__init__()
        self.possible_agents = ["speaker", "listener"]

    def observation_space(self, agent: str) -> spaces.Space:
        return spaces.Discrete(3)

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        self.agents = self.possible_agents[:]
        self.bit: int | None = None
        return {"speaker": 2}, {"speaker": {}, "listener": {}}

    def step(self, actions: dict[str, Any]) -> tuple[dict, dict, dict, dict, dict]:
        over = self.bit is not None
        reward = 0.0
        observations = {"listener": 0}
        if over:
            reward = float(int(actions["listener"]) == self.bit)
            observations = {"speaker": 2, "listener": 2}
            self.agents = []
        else:
            self.bit = int(actions["speaker"])
            observations = {"listener": self.bit}
        everyone = self.possible_agents
        return (
            observations,
            dict.fromkeys(everyone, reward),
            dict.fromkeys(everyone, over),
            dict.fromkeys(everyone, False),
            {agent: {} for agent in everyone},
        )


@pytest.mark.parametrize("algorithm", [NashQ, TabularIQL, JAL])
def test_agents_that_wait(algorithm: Algorithm) -> None:
    env = Turns()
    model = algorithm(env, learning_rate=0.5, gamma=0.9, seed=0, **RANDOM).learn(400)
    for bit in (0, 1):
        assert model.predict({"listener": bit}, deterministic=True)[0] == {"listener": bit}
    assert policy_values(model, env, n_samples=300)["speaker"] == pytest.approx(0.9)


# ---------------------------------------------------------------- SB3's interface


@pytest.mark.parametrize("algorithm", ALL)
def test_several_environments_and_callbacks(algorithm: Algorithm, tmp_path: Path) -> None:
    class Counter(BaseCallback):
        events: ClassVar[list[str]] = []

        def _on_training_start(self) -> None:
            self.events.append("start")

        def _on_step(self) -> bool:
            assert len(self.locals["rewards"]) == 3
            return self.num_timesteps < 60

        def _on_training_end(self) -> None:
            self.events.append("end")

    env = JointDummyVecEnv([lambda: as_joint_env(zero_sum(ROCK_PAYS_2)) for _ in range(3)])
    model = algorithm(env, seed=0)
    evaluation = EvalCallback(
        JointDummyVecEnv([lambda: as_joint_env(zero_sum(ROCK_PAYS_2))]),
        n_eval_episodes=2,
        eval_freq=5,
        verbose=0,
        warn=False,
        best_model_save_path=str(tmp_path),
    )
    counter = Counter()
    checkpoints = CheckpointCallback(10, str(tmp_path / "checkpoints"))
    model.learn(300, callback=[counter, evaluation, checkpoints])
    assert model.num_timesteps == 60
    assert counter.events[-2:] == ["start", "end"]
    assert np.isfinite(evaluation.last_mean_reward)
    assert algorithm.load(tmp_path / "best_model").agents == ("agent_0", "agent_1")
    (last,) = (tmp_path / "checkpoints").glob("*_60_steps*")
    assert algorithm.load(last).num_timesteps == 60
    # A batch gives a structured array
    joint, state = model.predict(env.reset())
    assert joint.shape == (3,)
    assert joint.dtype.names == ("agent_0", "agent_1")
    assert state is None


def test_log(tmp_path: Path) -> None:
    model = MinimaxQ(zero_sum([[3, -1], [-2, 1]]), seed=0)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(300, log_interval=100, progress_bar=False)
    columns, *rows = (tmp_path / "progress.csv").read_text().splitlines()
    assert len(rows) == 3
    assert "rollout/agent_0/ep_rew_mean" in columns
    assert "rollout/ep_len_mean" in columns
    assert "train/n_states" in columns


@pytest.mark.parametrize("algorithm", ALL)
def test_equal_seeds_give_equal_tables(algorithm: Algorithm) -> None:
    def tables(seed: int, predicts: bool = False) -> list[np.ndarray]:
        model = algorithm(Soccer(2, 3), seed=seed, gamma=0.9)
        model.learn(80)
        if predicts:
            model.predict({"agent_0": 3, "agent_1": 3})
        model.learn(80, reset_num_timesteps=False)
        return [table["q"][: len(table)].copy() for table in model.tables.values()]

    def equal(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
        return all(np.array_equal(*pair) for pair in zip(first, second, strict=True))

    assert equal(tables(0), tables(0))
    assert equal(tables(0), tables(0, predicts=True))
    assert not equal(tables(0), tables(1))


def test_predict_takes_one_agent_where_all_observe_the_same() -> None:
    model = MinimaxQ(Soccer(2, 3), seed=0, gamma=0.9).learn(100)
    both = model.action_probabilities({"agent_0": 7, "agent_1": 7})
    alone = model.action_probabilities({"agent_1": 7})
    assert list(alone) == ["agent_1"]
    assert alone["agent_1"] == pytest.approx(both["agent_1"])
    action, _ = model.predict({"agent_1": 7})
    assert action["agent_1"] in range(5)


class Secrets(NormalForm):
    """Each agent observes a bit of its own."""

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        super().reset()
        return {"agent_0": 0, "agent_1": 1}, {"agent_0": {}, "agent_1": {}}


def test_predict_names_missing_agents() -> None:
    env = Secrets([PENNIES, -PENNIES], spaces.Discrete(2))
    model = MinimaxQ(env, seed=0).learn(50)
    assert set(model.predict({"agent_0": 0, "agent_1": 1})[0]) == {"agent_0", "agent_1"}
    with pytest.raises(ValueError, match="'agent_1'"):
        model.predict({"agent_0": 0})
    with pytest.raises(ValueError, match="Unknown agent 'nobody'"):
        model.predict({"nobody": 0})
    # Independent learners act alone
    assert set(TabularIQL(env, seed=0).learn(50).predict({"agent_0": 0})[0]) == {"agent_0"}


def test_ids_and_policy_names() -> None:
    assert MinimaxQ("TabularPolicy", Soccer(2, 3)).agents == ("agent_0", "agent_1")
    with pytest.raises(ValueError, match="no policy 'MlpPolicy'"):
        NashQ("MlpPolicy", GridGame())
    env = make_joint_vec_env("CartPole-v1", n_envs=2)

    def rounded(observation: np.ndarray) -> tuple:
        return tuple(np.round(observation, 0).tolist())

    model = TabularIQL(env, state_key=rounded, seed=0).learn(100)
    assert model.agents == ("agent_0",)
    assert model.predict(np.zeros(4, np.float32))[0]["agent_0"] in (0, 1)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("algorithm", ALL)
def test_save_and_load(algorithm: Algorithm, tmp_path: Path) -> None:
    env = Soccer(2, 3)
    model = algorithm(env, seed=0, gamma=0.9, max_states=500).learn(200)
    model.save(tmp_path / "model")
    assert (tmp_path / "model.zip").exists()
    loaded = algorithm.load(tmp_path / "model", env=Soccer(2, 3))
    assert (loaded.gamma, loaded.max_states, loaded.num_timesteps) == (0.9, 500, 200)
    for number in range(60):
        observation = {"agent_0": number, "agent_1": number}
        before = model.action_probabilities(observation)
        after = loaded.action_probabilities(observation)
        assert all(np.array_equal(before[agent], after[agent]) for agent in before)
    assert model.predict({"agent_0": 3, "agent_1": 3}) == loaded.predict(
        {"agent_0": 3, "agent_1": 3}
    )


@pytest.mark.parametrize("algorithm", ALL)
def test_training_resumes_from_a_file(algorithm: Algorithm, tmp_path: Path) -> None:
    """On the same environment, the loaded model learns what the saved one does."""
    model = algorithm(zero_sum(ROCK_PAYS_2), seed=0).learn(100)
    model.save(tmp_path / "model.zip")
    loaded = algorithm.load(tmp_path / "model.zip", env=zero_sum(ROCK_PAYS_2))
    for own in (model, loaded):
        own.learn(100, reset_num_timesteps=False)
        assert own.num_timesteps == 200
    for name, table in model.tables.items():
        assert table.rows == loaded.tables[name].rows
        assert np.array_equal(table["q"][:1], loaded.tables[name]["q"][:1])


def test_functions_are_asked_for(tmp_path: Path) -> None:
    def own_key(observation: np.ndarray) -> int:
        return 0

    model = MinimaxQ(
        zero_sum(PENNIES, observation_space=spaces.Box(0, 1, (1,), np.float32)),
        state_key=own_key,
        learning_rate=lambda progress: 0.5 * progress,
        seed=0,
    ).learn(50)
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"learning_rate=\.\.\., state_key=\.\.\."):
        MinimaxQ.load(tmp_path / "model")
    loaded = MinimaxQ.load(tmp_path / "model", state_key=own_key, learning_rate=0.1)
    assert loaded.learning_rate == 0.1
    observation = {"agent_0": np.zeros(1, np.float32), "agent_1": np.zeros(1, np.float32)}
    assert loaded.state_value(observation) == pytest.approx(model.state_value(observation))


def test_wrong_files(tmp_path: Path) -> None:
    model = NashQ(zero_sum(PENNIES), seed=0)
    model.save(tmp_path / "nash")
    with pytest.raises(ValueError, match="NashQ"):
        MinimaxQ.load(tmp_path / "nash")
    with pytest.raises(ValueError, match="gama"):
        NashQ.load(tmp_path / "nash", gama=0.5)
    with pytest.raises(ValueError, match=r"team|action spaces"):
        NashQ.load(tmp_path / "nash", env=GridGame())
    with pytest.raises(FileNotFoundError):
        NashQ.load(tmp_path / "none")
    whole = (tmp_path / "nash.zip").read_bytes()
    (tmp_path / "broken.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="broken"):
        NashQ.load(tmp_path / "broken")
    with pytest.raises(ValueError, match=r"model.set_env"):
        NashQ.load(tmp_path / "nash").learn(10)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("make", "words"),
    [
        # Continuous spaces
        (
            lambda: NashQ(zero_sum(PENNIES, observation_space=spaces.Box(0, 1, (2,)))),
            "agent 'agent_0' are continuous",
        ),
        (lambda: TabularIQL("Pendulum-v1", state_key="exact"), "actions of agent 'agent_0'"),
        # Numbers of agents and actions
        (lambda: NashQ(NormalForm(np.zeros((3, 2, 2, 2)))), "two agents, and this team has 3"),
        (lambda: MinimaxQ(NormalForm(np.zeros((3, 2, 2, 2)))), "two agents, and this team has 3"),
        (lambda: MinimaxQ("CartPole-v1", state_key="exact"), "two agents, and this team has 1"),
        (lambda: NashQ(zero_sum(np.zeros((12, 12)))), "pairs of supports"),
        (lambda: JAL(NormalForm(np.zeros((20, *(2,) * 20), np.int8))), "joint"),
        # Settings
        (lambda: NashQ(zero_sum(PENNIES), selection="stabel"), "Did you mean 'stable'"),
        (lambda: NashQ(zero_sum(PENNIES), gamma=1.5), "gamma"),
        (lambda: NashQ(zero_sum(PENNIES), learning_rate=-1.0), "learning_rate"),
        (lambda: NashQ(zero_sum(PENNIES), max_states=0), "max_states"),
        (lambda: NashQ(zero_sum(PENNIES), state_key="round"), "state_key"),
        (lambda: TabularIQL(None), "needs an environment"),
    ],
)
def test_refused_before_training(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_games_that_are_not_zero_sum_are_refused() -> None:
    env = NormalForm([PENNIES, PENNIES])
    with pytest.raises(ValueError, match=r"the state \(0, 0\) .* 'agent_0': -?1 and 'agent_1'"):
        MinimaxQ(env, seed=0).learn(10)
    # The dynamics of the grid games are known, so that the constructor refuses them
    with pytest.raises(ValueError, match="zero-sum"):
        MinimaxQ(GridGame())


def test_a_full_table_is_named() -> None:
    model = MinimaxQ(Soccer(2, 3, random_starts=True), max_states=10, seed=0)
    with pytest.raises(RuntimeError, match="max_states=10"):
        model.learn(500)


def test_wrong_keys_and_rewards_are_named() -> None:
    model = TabularIQL(
        zero_sum(PENNIES, observation_space=spaces.Box(0, 1, (2,))), state_key=lambda obs: obs
    )
    with pytest.raises(ValueError, match=r"state_key returned .* 'agent_0'"):
        model.learn(10)
    with pytest.raises(ValueError, match="reward of agent 'agent_"):
        TabularIQL(zero_sum([[np.nan, np.nan], [0, 0]]), seed=0).learn(50)


def test_another_environment() -> None:
    model = MinimaxQ(zero_sum(PENNIES), seed=0)
    model.set_env(zero_sum(2 * PENNIES))
    model.learn(100)
    assert np.abs(model.tables["joint"]["q"][0]).max() == 2.0
    with pytest.raises(ValueError, match="action spaces"):
        model.set_env(zero_sum(ROCK_PAYS_2))
    two = JointDummyVecEnv([lambda: as_joint_env(zero_sum(PENNIES)) for _ in range(2)])
    with pytest.raises(ValueError, match=r"1 environments|observation spaces"):
        model.set_env(two)


def test_networks_do_not_load_tables(tmp_path: Path) -> None:
    NashQ(zero_sum(PENNIES)).save(tmp_path / "tables")
    with pytest.raises(ValueError):
        HAPPO.load(tmp_path / "tables")


def test_gains_of_an_untrained_model() -> None:
    model = NashQ(zero_sum(PENNIES))
    env = zero_sum(PENNIES)
    assert gains(model, env, n_samples=100) == pytest.approx({"agent_0": 0.0, "agent_1": 0.0})


@pytest.mark.parametrize("algorithm", [MinimaxQ, NashQ, TabularIQL, JAL])
def test_tables_grow_in_a_game_of_many_states(algorithm: Any) -> None:
    model = algorithm("games/soccer", seed=0).learn(600)
    (table, *_) = model.tables.values()
    assert len(table) > 64, "the first capacity"
    assert np.isfinite(table["q"][: len(table)]).all()
