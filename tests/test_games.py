"""Games with known answers: the answers, by enumeration or exact arithmetic; the interface."""

import itertools
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from pettingzoo.test import parallel_api_test

from sb3_happo import HAPPO, make_joint_env, make_joint_vec_env
from sb3_happo.envs.checker import check_marl_env
from sb3_happo.envs.games import (
    GAMES,
    Climbing,
    Game,
    GaussianSqueeze,
    Halves,
    Ising,
    Levers,
    LQTeam,
    MatchingPennies,
    MatrixGame,
    Penalty,
    Qtran,
    Recall,
    Relay,
    RockPaperScissors,
    Tennis,
    TwoStep,
    game_class,
)
from sb3_happo.vec_env import JointDummyVecEnv

# Arguments without which a game cannot be made, or with which it is small
ARGUMENTS: dict[str, dict[str, Any]] = {
    "gaussian_squeeze": {"n_agents": 8},
    "ising": {"size": 4, "length": 10, "checkerboard": True},
    "levers": {"n_levers": 3, "pool": 7},
    "matrix": {"payoffs": [[1, 2, 0], [3, 4, -1]]},
}


def make(name: str, **kwargs: Any) -> Game:
    """Game by its name, small."""
    return game_class(name)(**{**ARGUMENTS.get(name, {}), **kwargs})


def play(game: Game, *joint_actions: tuple) -> list[dict[str, float]]:
    """Rewards of one episode with these joint actions."""
    game.reset(seed=0)
    rewards = []
    for actions in joint_actions:
        rewards.append(game.step(dict(zip(game.possible_agents, actions, strict=True)))[1])
    return rewards


def best_replies_hold(payoffs: np.ndarray, strategies: np.ndarray) -> bool:
    """Whether no action of either of two agents pays more than its strategy: an equilibrium."""
    first, second = strategies
    values = first @ payoffs @ second  # (2,)
    return bool(
        (payoffs[0] @ second <= values[0] + 1e-12).all()
        and (first @ payoffs[1] <= values[1] + 1e-12).all()
    )


def pure_equilibria(payoffs: np.ndarray) -> list[float]:
    """Payoffs of the first agent in all pure equilibria of a game of two."""
    found = []
    for row, column in np.ndindex(*payoffs.shape[1:]):
        is_best = payoffs[0, row, column] >= payoffs[0, :, column].max()
        if is_best and payoffs[1, row, column] >= payoffs[1, row].max():
            found.append(float(payoffs[0, row, column]))
    return sorted(found)


# ---------------------------------------------------------------- interface


def legal_actions(game: Game, observations: dict[str, Any]) -> dict[str, Any]:
    """Random actions of all agents that keep to the masks."""
    actions = {}
    for agent in game.agents:
        own = observations[agent]
        mask = own["action_mask"] if isinstance(own, dict) else None
        actions[agent] = game.action_space(agent).sample(mask)
    return actions


def random_episodes(game: Game, seed: int, n_steps: int = 60) -> list[Any]:
    """Everything that random play returns, resets included."""
    for space in game.action_spaces.values():
        space.seed(seed)
    record: list[Any] = [game.reset(seed=seed)]
    for _ in range(n_steps):
        if not game.agents:
            record.append(game.reset())
        record.append(game.step(legal_actions(game, record[-1][0])))
    return record


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("name", sorted(GAMES))
def test_every_game_keeps_to_pettingzoos_interface(name: str) -> None:
    parallel_api_test(make(name), num_cycles=200)


@pytest.mark.parametrize("name", sorted(GAMES))
def test_the_checker_finds_nothing_in_any_game(name: str) -> None:
    report = check_marl_env(make(name), n_steps=50)
    worse = [
        finding
        for finding in report.findings
        if finding.level != "note" and "oppose" not in finding.what
    ]
    assert not worse and report.ok


@pytest.mark.parametrize("name", sorted(GAMES))
def test_seeds_repeat_and_instances_are_apart(name: str) -> None:
    first = random_episodes(make(name), 3)
    game, other = make(name), make(name)
    for space in other.action_spaces.values():
        space.seed(9)
    other.reset(seed=9)
    second = random_episodes(game, 3)
    np.testing.assert_equal(first, second)
    np.testing.assert_equal(random_episodes(game, 3), first)


@pytest.mark.parametrize("name", sorted(GAMES))
def test_every_game_renders(name: str) -> None:
    game = make(name, render_mode="rgb_array")
    observations, _ = game.reset(seed=0)
    before = game.render()
    assert before is not None and before.dtype == np.uint8 and before.shape[2] == 3
    shown = [before]
    for _ in range(12):
        if not game.agents:
            observations, _ = game.reset()
        observations = game.step(legal_actions(game, observations))[0]
        frame = game.render()
        assert frame is not None and frame.shape == before.shape
        shown.append(frame)
    assert any((frame != before).any() for frame in shown), "the picture shows what is played"
    with pytest.raises(ValueError, match="render_mode='human' is unknown"):
        make(name, render_mode="human")


@pytest.mark.parametrize("name", sorted(GAMES))
def test_every_game_has_an_id(name: str) -> None:
    arguments = ARGUMENTS.get(name, {})
    env = make_joint_env(f"games/{name}", **arguments)
    assert type(env.env) is game_class(name)  # type: ignore[attr-defined]
    assert type(gym.make(f"games/{name}", **arguments).unwrapped.env) is game_class(name)  # type: ignore[attr-defined]


def test_ids_work_everywhere() -> None:
    settings: dict[str, Any] = dict(n_steps=8, batch_size=8, device="cpu")
    HAPPO("MlpPolicy", "games/climbing", **settings).learn(8)
    env = make_joint_vec_env(
        "games/penalty", 2, env_kwargs={"k": -30}, vec_env_cls=JointDummyVecEnv
    )
    assert env.get_attr("k") == [-30.0, -30.0]
    env.close()
    for wrong, hint in [
        ("games/climing", "'games/climbing'"),
        ("climbing", "'games/climbing'"),
        ("games/penalty-v0", "'games/penalty'"),
    ]:
        with pytest.raises(ValueError, match=f"{wrong!r} does not resolve.*{hint}"):
            make_joint_env(wrong)
    with pytest.raises(TypeError, match=r"'kk'\. Did you mean 'k'"):
        make_joint_env("games/penalty", kk=-1)


def test_wrong_actions_are_named() -> None:
    game = Climbing()
    with pytest.raises(RuntimeError, match="call reset"):
        game.step({"agent_0": 0, "agent_1": 0})
    game.reset()
    for wrong in (3, -1, 0.5, "1", None, [0, 1]):
        with pytest.raises(ValueError, match="of agent 'agent_1' is not in its space Discrete"):
            game.step({"agent_0": 0, "agent_1": wrong})
    with pytest.raises(ValueError, match="No action for agent 'agent_1'"):
        game.step({"agent_0": 0})
    game.step({"agent_0": np.int64(0), "agent_1": np.array(0)})
    team = LQTeam()
    team.reset()
    for far in ([1.0, 2.0], [np.nan], "left"):
        with pytest.raises(ValueError, match="of agent 'agent_0' is not in its space Box"):
            team.step({"agent_0": far, "agent_1": [0.0]})


# ---------------------------------------------------------------- games in normal form


def test_climbing() -> None:
    game = Climbing()
    assert play(game, (0, 0)) == [{"agent_0": 11.0, "agent_1": 11.0}]
    assert play(game, (1, 2)) == [{"agent_0": 6.0, "agent_1": 6.0}]
    assert game.optimum == 11 == game.payoffs.max()
    assert pure_equilibria(game.payoffs) == [7, 11]
    assert [float(game.payoffs[0][c, c]) for c in range(3)] == [11, 7, 5]


@pytest.mark.parametrize("k", [0, -30, -100])
def test_penalty(k: float) -> None:
    game = Penalty(k)
    assert game.optimum == 10
    assert pure_equilibria(game.payoffs)[-2:] == [10, 10] and pure_equilibria(game.payoffs)[0] == 2
    assert play(game, (0, 2)) == [{"agent_0": k, "agent_1": k}]
    with pytest.raises(ValueError, match="k is a penalty"):
        Penalty(1)


def test_what_factorisations_can_represent() -> None:
    """Best choices of additive fits, and of fits with a factorisation of the rest, by the SVD."""

    def best_of_fit(payoffs: np.ndarray, rank: int) -> float:
        additive = payoffs.mean(axis=0) + payoffs.mean(axis=1, keepdims=True) - payoffs.mean()
        left, values, right = np.linalg.svd(payoffs - additive)
        fit = additive + (left[:, :rank] * values[:rank]) @ right[:rank]
        return float(payoffs[np.unravel_index(fit.argmax(), fit.shape)])

    for game, answers in [
        (Climbing(), [5, 11, 11]),
        (Penalty(), [2, 2, 10]),
        (Qtran(), [0, 8, 8]),
    ]:
        assert [best_of_fit(game.payoffs[0], rank) for rank in range(3)] == answers
    assert Qtran().optimum == 8


def test_matching_pennies_and_rock_paper_scissors() -> None:
    assert play(MatchingPennies(), (0, 0)) == [{"agent_0": 1.0, "agent_1": -1.0}]
    for game in (MatchingPennies(), RockPaperScissors(), RockPaperScissors(rock=2, paper=0.5)):
        assert np.array_equal(game.payoffs[0], -game.payoffs[1])
        assert best_replies_hold(game.payoffs, game.equilibrium)
        assert not pure_equilibria(game.payoffs)
        first, second = game.equilibrium
        assert first @ game.payoffs[0] @ second == pytest.approx(0, abs=1e-15)
    assert RockPaperScissors().equilibrium.tolist() == [[1 / 3] * 3] * 2
    assert RockPaperScissors(rock=2).equilibrium.tolist() == [[0.25, 0.5, 0.25]] * 2
    rock, paper, scissors = range(3)
    assert play(RockPaperScissors(rock=2), (rock, scissors))[0]["agent_0"] == 2
    assert play(RockPaperScissors(rock=2), (rock, paper))[0]["agent_0"] == -1
    with pytest.raises(ValueError, match="scissors must be above 0"):
        RockPaperScissors(scissors=0)


def test_custom_payoffs() -> None:
    three = np.arange(12.0).reshape(2, 3, 2)
    game = MatrixGame(three, length=3)
    assert [game.action_space(agent).n for agent in game.possible_agents] == [2, 3, 2]  # type: ignore[attr-defined]
    rewards = play(game, (1, 2, 1), (0, 0, 0), (1, 0, 1))
    assert [step["agent_2"] for step in rewards] == [11, 0, 7]
    assert not game.agents and game.optimum == 33

    rivals = MatrixGame({"left": [[0, -2], [1, -1]], "right": [[0, 1], [-2, -1]]})
    assert rivals.possible_agents == ["left", "right"]
    assert play(rivals, (1, 0)) == [{"left": 1.0, "right": -2.0}]
    assert pure_equilibria(rivals.payoffs) == [-1], "a dilemma"

    value = MatrixGame([[3, -1], [-2, 1]], zero_sum=True)
    mixed = np.array([[3 / 7, 4 / 7], [2 / 7, 5 / 7]])
    assert best_replies_hold(value.payoffs, mixed)
    assert mixed[0] @ value.payoffs[0] @ mixed[1] == pytest.approx(1 / 7)

    other = MatrixGame({"a": [[0, 3], [1, 2]], "b": [[3, 2], [0, 1]]})  # of the PR2 paper
    assert not pure_equilibria(other.payoffs)
    assert best_replies_hold(other.payoffs, np.full((2, 2), 0.5))
    with pytest.raises(ValueError, match="read-only"):
        other.payoffs[0] = 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(payoffs=5), "needs one axis per agent"),
        (dict(payoffs=[]), "needs one axis per agent"),
        (dict(payoffs=[[1, np.nan]]), r"entry nan at \(0, 1\)"),
        (dict(payoffs=[[1, 2], [3]]), "no array of numbers"),
        (dict(payoffs="climbing"), "no array of numbers"),
        (dict(payoffs=np.zeros((2, 2, 2)), zero_sum=True), "needs payoffs of two agents"),
        (dict(payoffs={"a": [1]}, zero_sum=True), "first agent only"),
        (dict(payoffs={"a": [[1]], "b": [[1, 2]]}), "need one shape"),
        (dict(payoffs={"a": [[1]], "b": [["x"]]}), r"payoffs\['b'\] is no array of numbers"),
        (dict(payoffs={"a": [[1]], "b": [[1]]}, agents=["a", "c"]), "the agents are"),
        (dict(payoffs=[[1]], agents=["a"]), "those of 2 agents"),
        (dict(payoffs=[[1]], agents=["a", "a"]), "different names"),
        (dict(payoffs=[[1]], length=0), "length must be an integer of at least 1"),
        (dict(payoffs=[[1]], length=1.5), "length must be an integer of at least 1"),
    ],
)
def test_wrong_payoffs_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MatrixGame(**arguments)


@pytest.mark.parametrize("n_agents", [2, 4, 6])
def test_halves(n_agents: int) -> None:
    """All joint actions; the best common probability on a grid."""
    game = Halves(n_agents)
    winners = []
    for actions in itertools.product(range(2), repeat=n_agents):
        (rewards,) = play(game, actions)
        assert len(set(rewards.values())) == 1
        if rewards["agent_0"]:
            winners.append(actions)
    half = n_agents // 2
    assert winners == [(0,) * half + (1,) * half, (1,) * half + (0,) * half]
    p = np.linspace(0, 1, 1001)
    shared = sum(
        (p ** sum(actions) * (1 - p) ** (n_agents - sum(actions)) for actions in winners),
        np.zeros_like(p),
    )
    assert shared.max() == pytest.approx(game.shared_optimum) == pytest.approx(2 / 2**n_agents)
    assert game.optimum == 1
    with pytest.raises(ValueError, match="n_agents must be even"):
        Halves(n_agents + 1)


# ---------------------------------------------------------------- two-step game


def test_two_step() -> None:
    game = TwoStep()
    returns = {}
    for first in itertools.product(range(2), repeat=2):
        for second in itertools.product(range(2), repeat=2):
            steps = play(game, first, second)
            assert steps[0] == {"agent_0": 0.0, "agent_1": 0.0}
            returns[first, second] = steps[1]["agent_1"]
    assert max(returns.values()) == 8 == game.optimum
    assert {returns[(0, other), second] for other in (0, 1) for second in np.ndindex(2, 2)} == {7}
    assert [returns[(1, 0), second] for second in np.ndindex(2, 2)] == [0, 1, 1, 8]

    second_matrix = game.payoffs[1]
    assert second_matrix.mean(axis=1).max() == 4.5
    rows, columns = second_matrix.mean(axis=1), second_matrix.mean(axis=0)
    additive = rows[:, None] + columns[None] - second_matrix.mean()
    assert additive.tolist() == [[-1.5, 2.5], [2.5, 6.5]]

    observations, _ = game.reset()
    assert observations["agent_0"].tolist() == [1, 0, 0]
    assert game.step({"agent_0": 1, "agent_1": 0})[0]["agent_1"].tolist() == [0, 0, 1]


# ---------------------------------------------------------------- uneven LQ team


def lq_return(team: LQTeam, gains: np.ndarray, x: float) -> float:
    """Return of an episode from ``x``, from the environment itself."""
    team.reset(seed=0)
    start = team.state()[0]
    total = 0.0
    while team.agents:
        action = -gains * float(team.state()[0])
        rewards = team.step(
            {agent: [one] for agent, one in zip(team.possible_agents, action, strict=True)}
        )[1]
        total += rewards["agent_0"]
    return total * (x / start) ** 2  # the return is a multiple of x^2


def test_lq_team() -> None:
    team = LQTeam()
    gains = team.optimal_gains()
    assert gains == pytest.approx([1.0673, 0.3558], abs=1e-4)
    assert gains[0] / gains[1] == pytest.approx(3), "the ratio of the costs"
    # The mean of x^2 over U(-1, 1) is 1/3
    for policy, answer in [
        (gains, -0.3981),
        (np.zeros(2), -1.7285),
        (np.full(2, gains.mean()), -0.4156),
    ]:
        assert team.expected_return(policy) == pytest.approx(answer, abs=1e-4)
        assert lq_return(team, policy, 1.0) / 3 == pytest.approx(answer, abs=1e-4)
    assert team.optimum == team.expected_return(gains)

    # No other pair of gains has a larger discounted return, over a horizon that is nearly endless
    long = LQTeam(length=2000)
    best = long.expected_return(gains, 0.95)
    for first, second in itertools.product(np.linspace(-0.3, 0.3, 7), repeat=2):
        other = gains + np.array([first, second])
        assert long.expected_return(other, 0.95) <= best + 1e-12

    steps = random_episodes(team, 0, 20)
    assert steps[-1][3] == {"agent_0": True, "agent_1": True}, "a time limit"
    wrong: dict[str, Any] = {"costs": [1, 0], "x_range": 0, "a": np.nan, "max_action": -1}
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=name):
            LQTeam(**{name: value})
    with pytest.raises(ValueError, match="costs is empty"):
        LQTeam([])


# ---------------------------------------------------------------- levers


def test_levers_by_enumeration() -> None:
    """All draws of three numbers out of seven, and all fixed levers for each number."""
    game = Levers(n_levers=3, pool=7)
    draws = list(itertools.combinations(range(7), 3))
    best = 0.0
    for levers in itertools.product(range(3), repeat=7):
        pulled = [game.payoff(len({levers[number] for number in draw})) for draw in draws]
        best = max(best, sum(pulled) / len(pulled))
    assert best == pytest.approx(game.best_without_messages())
    random = [game.payoff(len(set(pulled))) for pulled in itertools.product(range(3), repeat=3)]
    assert np.mean(random) == pytest.approx(game.random_play())

    for actions, reward in [((0, 1, 2), 1.0), ((2, 2, 0), 0.5), ((1, 1, 1), 0.0)]:
        assert play(game, actions) == [dict.fromkeys(game.possible_agents, reward)]
    share = Levers(n_levers=3, pool=7, reward="share")
    assert play(share, (2, 2, 0))[0]["agent_1"] == pytest.approx(2 / 3)


def test_levers_of_the_paper() -> None:
    game = Levers()
    assert game.random_play() == pytest.approx(0.5904, abs=1e-4)
    assert game.best_without_messages() == pytest.approx(0.5925, abs=1e-4)
    share = Levers(reward="share")
    assert share.random_play() == pytest.approx(0.6723, abs=1e-4)
    assert share.best_without_messages() == pytest.approx(0.6740, abs=1e-4)
    seen: set[int] = set()
    numbers: list[int] = []
    for seed in range(200):
        observations, _ = game.reset(seed=seed)
        numbers = [int(own) for own in observations.values()]
        assert len(set(numbers)) == 5, "each number once"
        seen.update(numbers)
    assert min(seen) < 10 and max(seen) >= 490
    # Agents who know all numbers sort them
    ranks = np.argsort(np.argsort(numbers))
    rewards = game.step(dict(zip(game.possible_agents, ranks, strict=True)))[1]
    assert set(rewards.values()) == {1.0} == {game.optimum}
    with pytest.raises(ValueError, match="pool must be an integer of at least 5"):
        Levers(pool=4)
    with pytest.raises(ValueError, match="reward must be"):
        Levers(reward="sum")


# ---------------------------------------------------------------- squeeze


def test_gaussian_squeeze() -> None:
    game = GaussianSqueeze()
    # The derivative of G vanishes at x = (mu + sqrt(mu^2 + 2 sigma^2)) / 2, which is 444.9
    assert round((400 + np.sqrt(400**2 + 2 * 200**2)) / 2) == game.best_sum == 445
    assert game.optimum == pytest.approx(423.03, abs=0.005)
    numbers = [1] * 445 + [0] * 55
    assert play(game, tuple(numbers))[0]["agent_7"] == pytest.approx(423.03, abs=0.005)
    assert play(game, (4,) * 250 + (5,) * 250)[0]["agent_0"] == pytest.approx(0, abs=1e-9)
    small = GaussianSqueeze(3, n_choices=3, mu=2, sigma=1)
    returns = {}
    for actions in itertools.product(range(3), repeat=3):
        returns[actions] = play(small, actions)[0]["agent_0"]
    assert max(returns.values()) == pytest.approx(small.optimum)
    assert {sum(one) for one in returns if returns[one] == small.optimum} == {small.best_sum}
    with pytest.raises(ValueError, match="sigma must be above 0"):
        GaussianSqueeze(sigma=0)


# ---------------------------------------------------------------- Ising lattice


def test_ising_by_enumeration() -> None:
    """
    All 512 states of 3 x 3 spins: the optimum, and the heat bath. The choices' softmax at
    temperature T must be the Boltzmann distribution of one spin, the others fixed, at 2 T.
    """
    game = Ising(3)
    states = list(itertools.product((0, 1), repeat=9))
    team = {}
    for state in states:
        team[state] = list(play(game, state)[0].values())
        assert game.spins.ravel().tolist() == [2 * one - 1 for one in state]
    totals = {state: sum(rewards) for state, rewards in team.items()}
    best = max(totals.values())
    assert best / 9 == 2 == game.optimum / game.length
    assert [state for state in states if totals[state] == best] == [(0,) * 9, (1,) * 9]

    temperature = 0.9
    for state in states[::7]:
        for site in range(9):
            down, up = ((*state[:site], one, *state[site + 1 :]) for one in (0, 1))
            gain = (team[up][site] - team[down][site]) / temperature
            # The sum of the rewards has half of s_i s_j twice for each pair: minus the energy
            boltzmann = (totals[up] - totals[down]) / (2 * temperature)
            assert gain == pytest.approx(boltzmann)


def test_ising_follows_onsager() -> None:
    """Heat-bath play of the game itself, in checkerboard order, from an aligned start."""
    assert pytest.approx(1.1346, abs=1e-4) == Ising.CRITICAL_TEMPERATURE
    for temperature, exact in [(0.9, 0.957), (1.0, 0.911), (1.1, 0.785), (1.2, 0.0)]:
        assert Ising.exact_magnetization(temperature) == pytest.approx(exact, abs=1e-3)
    assert Ising.exact_magnetization(0.001) == 1

    game = Ising(20, length=200, checkerboard=True)
    rng = np.random.default_rng(0)
    for temperature, low, high in [(0.9, 0.94, 0.975), (2.0, 0.0, 0.15)]:
        observations, _ = game.reset(seed=1)
        probabilities = np.ones(400)  # the first two steps align all spins
        measured = []
        while game.agents:
            legal = np.stack([own["action_mask"] for own in observations.values()])
            chosen = rng.random(400) < probabilities
            actions = np.where(legal.all(axis=1), chosen, legal[:, 1]).astype(int)
            observations = game.step(dict(zip(game.agents, actions, strict=True)))[0]
            measured.append(game.magnetization)
            if len(measured) >= 2:
                fields = np.stack([own["observation"] for own in observations.values()])
                probabilities = 1 / (1 + np.exp(-fields.sum(axis=1) / temperature))
        assert measured[1] == 1
        assert low < np.mean(measured[80:]) < high


def test_ising_neighbours_and_phases() -> None:
    game = Ising(4, observe_neighbors=False)
    assert game.neighbors[0].tolist() == [12, 4, 3, 1]
    counts = np.bincount(game.neighbors.ravel())
    assert (counts == 4).all() and not (game.neighbors == np.arange(16)[:, None]).any()
    observations, _ = game.reset(seed=0)
    assert observations["agent_0"].tolist() == [1]
    checks = np.indices((4, 4)).sum(axis=0).ravel() % 2
    game.step(dict(zip(game.agents, checks, strict=True)))
    assert game.magnetization == 0 and game.staggered_magnetization == 1
    with pytest.raises(ValueError, match="even size"):
        Ising(5, checkerboard=True)
    turns = Ising(4, checkerboard=True)
    turns.reset(seed=0)
    flipped = (turns.spins.ravel() < 0).astype(int)
    with pytest.raises(ValueError, match="'agent_1' is not on turn"):
        turns.step(dict(zip(turns.agents, flipped, strict=True)))


# ---------------------------------------------------------------- memory


def test_recall_by_enumeration() -> None:
    """All policies of one agent that map an observation to an action, and one with a memory."""
    game = Recall(1, n_cues=3, delay=2)
    cues: dict[int, int] = {}
    for seed in range(30):
        cues.setdefault(int(game.reset(seed=seed)[0]["agent_0"].argmax()), seed)
    assert sorted(cues) == [0, 1, 2]

    def expected(policy: Any) -> float:
        total = 0.0
        for seed in cues.values():
            observations, _ = game.reset(seed=seed)
            memory = tuple(observations["agent_0"])
            while game.agents:
                action = policy(tuple(observations["agent_0"]), memory)
                observations, rewards, *_ = game.step({"agent_0": action})
                total += rewards["agent_0"]
        return total / len(cues)

    seen = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)]
    best = 0.0
    for actions in itertools.product(range(3), repeat=4):
        table = dict(zip(seen, actions, strict=True))
        best = max(best, expected(lambda own, memory, table=table: table[own]))
    assert best == pytest.approx(game.best_without_memory) == pytest.approx(1 / 3)
    assert expected(lambda own, memory: int(np.argmax(memory))) == 1 == game.optimum

    team = Recall(4, delay=3)
    observations, _ = team.reset(seed=0)
    answers = {agent: int(own.argmax()) for agent, own in observations.items()}
    answers["agent_2"] = 1 - answers["agent_2"]
    paid = [team.step(answers)[1]["agent_0"] for _ in range(4)]
    assert paid == [0, 0, 0, 0.75] and not team.agents


def test_relay_passes_one_message() -> None:
    game = Relay()
    assert game.optimum == 1 and game.delay == 10
    for seed, inverted in itertools.product(range(4), (False, True)):
        observations, _ = game.reset(seed=seed)
        cue = int(observations["scout"].argmax())
        assert not observations["runner"].any()
        observations = game.step({"scout": cue ^ inverted, "runner": 0})[0]
        message = int(observations["runner"].argmax())
        assert not observations["scout"].any() and message == cue ^ inverted
        rewards: dict[str, float] = {}
        for _ in range(10):
            assert game.agents
            observations, rewards, *_ = game.step({"scout": 0, "runner": message ^ inverted})
            assert not any(own.any() for own in observations.values())
        assert rewards == {"scout": 1.0, "runner": 1.0} and not game.agents


# ---------------------------------------------------------------- tennis


def tennis_scores(game: Tennis, policy: Any, n_episodes: int) -> list[float]:
    """Scores of episodes in which both agents act by one policy."""
    scores = []
    for seed in range(n_episodes):
        observations, _ = game.reset(seed=seed)
        infos: dict[str, Any] = {}
        while game.agents:
            actions = {agent: policy(own) for agent, own in observations.items()}
            observations, *_, infos = game.step(actions)
        scores.append(infos["left"]["score"])
    return scores


def test_tennis_is_won_by_who_follows_the_ball() -> None:
    game = Tennis()
    assert tennis_scores(game, Tennis.follow, 4) == pytest.approx([1.0] * 4)
    assert game.optimum == pytest.approx(1.0)
    assert tennis_scores(Tennis(7), Tennis.follow, 3) == pytest.approx([0.4] * 3)
    assert Tennis(7).optimum == pytest.approx(0.4)
    rng = np.random.default_rng(0)
    assert np.mean(tennis_scores(game, lambda own: rng.uniform(-1, 1, 2), 40)) < 0.1


def test_tennis_pays_returns_and_misses() -> None:
    game = Tennis()
    observations, _ = game.reset(seed=0)
    own = observations["left"]
    assert own.shape == (24,) and np.array_equal(own[:8], own[16:]), "three equal frames"
    # The court is seen from the own side: the ball above the net, its velocity mirrored
    assert own[4] == 0 and own[6] == -observations["right"][6]
    totals = {"left": 0.0, "right": 0.0}
    terminations: dict[str, bool] = {}
    while game.agents:  # rackets stay away from the ball
        actions = dict.fromkeys(game.agents, np.array([1.0, 1.0]))
        observations, rewards, terminations, *_ = game.step(actions)
        assert np.array_equal(observations["left"][:8], own[8:16]), "frames move up"
        own = observations["left"]
        for agent, reward in rewards.items():
            totals[agent] += reward
    assert terminations == {"left": True, "right": True}
    assert min(totals.values()) == pytest.approx(-0.01)


def test_the_score_is_in_the_info_at_the_end() -> None:
    env = make_joint_env("games/tennis")
    observation, info = env.reset(seed=1)
    ended = False
    while not ended:
        assert "score" not in info
        actions = {agent: Tennis.follow(observation[agent]) for agent in ("left", "right")}
        observation, _, ended, _, info = env.step(actions)
    assert info["score"] == pytest.approx(1.0)
