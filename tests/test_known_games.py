"""Grid games and soccer: rules, dynamics, exact solutions."""

import numpy as np
import pytest
from gymnasium import spaces
from pettingzoo.test import parallel_api_test

from sb3_happo.envs.games import GridGame, Soccer
from sb3_happo.tabular import (
    GameModel,
    exploitability,
    gains,
    nash_gap,
    policy_values,
    shapley_iteration,
    worst_case,
)
from tests.envs.normal_form import NormalForm

AGENTS = ("agent_0", "agent_1")
MAKERS = [
    lambda **kwargs: GridGame(1, **kwargs),
    lambda **kwargs: GridGame(2, **kwargs),
    lambda **kwargs: Soccer(**kwargs),
    lambda **kwargs: Soccer(2, 3, **kwargs),
]
GRID, BARRIERS, SOCCER, SMALL = range(4)


@pytest.mark.parametrize("make", MAKERS)
def test_pettingzoo_interface(make) -> None:  # type: ignore[no-untyped-def]
    parallel_api_test(make(max_steps=20), num_cycles=200)


@pytest.mark.parametrize("make", MAKERS)
def test_outcomes_are_distributions_over_states(make) -> None:  # type: ignore[no-untyped-def]
    env = make()
    for state in env.states[:: max(1, len(env.states) // 40)]:
        for actions in np.ndindex(*(int(env.action_space(agent).n) for agent in AGENTS)):
            outcomes = env.outcomes(state, actions)
            assert sum(own.probability for own in outcomes) == pytest.approx(1.0)
            assert all(own.state is None or own.state in env.states for own in outcomes)


@pytest.mark.parametrize("make", MAKERS)
def test_seeds_starts_and_pictures(make) -> None:  # type: ignore[no-untyped-def]
    def play(seed: int) -> list:
        env = make(random_starts=True, render_mode="rgb_array")
        env.reset(seed=seed)
        seen = []
        for step in range(40):
            if not env.agents:
                env.reset()
            actions = {agent: (step * 7 + 3 * index) % 4 for index, agent in enumerate(AGENTS)}
            seen.append(env.step(actions)[:2])
        image = env.render()
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert len(np.unique(image.reshape(-1, 3), axis=0)) > 3
        return seen

    assert play(0) == play(0)
    assert play(0) != play(1)
    assert make().render() is None


def test_number_of_states() -> None:
    assert len(Soccer().states) == 760
    assert len(Soccer(2, 3).states) == 60
    assert Soccer().observation_space("agent_0") == spaces.Discrete(760)


def test_rules_of_the_grid_games() -> None:
    env = GridGame(1)
    up, right, down, left = range(4)
    corners = ((2, 0), (2, 2))
    # Both want the middle of the lower row: both stay, and pay
    assert env.outcomes(corners, (right, left)) == [(1.0, corners, (-1.0, -1.0))]
    # Off the grid
    assert env.outcomes(corners, (down, down)) == [(1.0, corners, (0.0, 0.0))]
    assert env.outcomes(((0, 1), (2, 2)), (right, up)) == [(1.0, None, (100.0, 0.0))]
    both = GridGame(2)
    assert both.outcomes(((0, 0), (0, 2)), (right, left)) == [(1.0, None, (100.0, 100.0))]
    barrier = both.outcomes(corners, (up, left))
    assert [(own.probability, own.state) for own in barrier] == [
        (0.5, ((1, 0), (2, 1))),
        (0.5, ((2, 0), (2, 1))),
    ]


def test_rules_of_soccer() -> None:
    env = Soccer()
    _north, east, _south, west, stand = range(5)
    # The owner of the ball runs into the other one and loses it
    assert env.outcomes(((1, 3), (1, 2), 0), (west, stand)) == [
        (1.0, ((1, 3), (1, 2), 1), (0.0, 0.0))
    ]
    # Goals are in the middle rows
    assert env.outcomes(((1, 0), (3, 3), 0), (west, stand)) == [(1.0, None, (1.0, -1.0))]
    assert env.outcomes(((0, 0), (3, 3), 0), (west, stand))[0].state is not None
    assert env.outcomes(((1, 1), (2, 4), 1), (stand, east)) == [(1.0, None, (-1.0, 1.0))]
    # Without the ball nobody scores
    assert env.outcomes(((1, 0), (3, 3), 1), (west, stand))[0].state is not None
    # The order of the moves decides who gets a cell
    cells = {own.state for own in env.outcomes(((1, 1), (1, 3), 0), (east, west))}
    assert cells == {((1, 2), (1, 3), 0), ((1, 1), (1, 2), 1)}


def test_games_are_symmetric() -> None:
    """Both sides of the field have the same chances."""
    env = Soccer(2, 3)
    solution = shapley_iteration(env, 0.9)
    starts = [solution.values[env.states.index(state)] for _, state in env.initial_states()]
    assert starts == pytest.approx([0.2594, -0.2594], abs=1e-4)


@pytest.mark.slow
def test_exact_solution_of_soccer() -> None:
    env = Soccer()
    model = GameModel.of(env)
    solution = shapley_iteration(model, 0.9, tolerance=1e-6)
    starts = [solution.values[env.states.index(state)] for _, state in env.initial_states()]
    assert starts == pytest.approx([0.21848, -0.21848], abs=1e-4)

    def optimal(observation: dict) -> dict[str, np.ndarray]:
        row = observation["agent_0"]
        return {agent: solution.policies[index][row] for index, agent in enumerate(AGENTS)}

    assert exploitability(optimal, model, 0.9) < 1e-4
    assert worst_case(optimal, model, 0.9)["agent_0"] == pytest.approx(0.0, abs=1e-4)
    assert worst_case(uniform(5), model, 0.9)["agent_0"] == pytest.approx(-0.5537, abs=1e-3)


def uniform(n: int):  # type: ignore[no-untyped-def]
    return lambda observation: {agent: np.full(n, 1 / n) for agent in AGENTS}


# ---------------------------------------------------------------- gaps


def path(env: GridGame, first: list, second: list):  # type: ignore[no-untyped-def]
    """Strategies that follow paths from the start, and go up elsewhere."""
    moves = {}
    state = env.initial_states()[0][1]
    for actions in zip(first, second, strict=True):
        moves[env.observe(state)["agent_0"]] = actions
        # The next cells if every move succeeds
        state = max(env.outcomes(state, actions), key=lambda own: own.state != state).state
        if state is None:
            break

    def strategies(observation: dict) -> dict[str, np.ndarray]:
        actions = moves.get(observation["agent_0"], (0, 0))
        return {agent: np.eye(4)[own] for agent, own in zip(AGENTS, actions, strict=True)}

    return strategies


def test_an_equilibrium_of_grid_game_1_has_no_gap() -> None:
    env = GridGame(1)
    up, right, _, left = range(4)
    strategies = path(env, [up, up, right, right], [left, left, up, up])
    values = policy_values(strategies, env, 0.99)
    assert list(values.values()) == pytest.approx([97.0299, 97.0299])
    assert nash_gap(strategies, env, 0.99) == pytest.approx(0.0, abs=1e-6)
    # Without an aim: a better response is worth what the goal is
    idle = gains(lambda observation: {agent: np.eye(4)[2] for agent in AGENTS}, env, 0.99)
    assert idle["agent_0"] == pytest.approx(97.0299)


def test_gap_of_a_matrix_game_that_is_played() -> None:
    payoffs = np.array([[3.0, -1.0], [-2.0, 1.0]])
    env = NormalForm([payoffs, -payoffs])
    rows, columns = np.array([3 / 7, 4 / 7]), np.array([2 / 7, 5 / 7])
    optimal = {"agent_0": rows, "agent_1": columns}
    assert nash_gap(lambda _: optimal, env, 1.0, n_samples=200) == pytest.approx(0.0, abs=1e-6)
    pure = {"agent_0": np.array([1.0, 0.0]), "agent_1": columns}
    # 3 * 2/7 - 5/7 = 1/7 as it is; the opponent's best answer is worth 1
    own = gains(lambda _: pure, env, 1.0, n_samples=200)
    assert own["agent_0"] == pytest.approx(0.0, abs=1e-6)
    assert own["agent_1"] == pytest.approx(1.0 + 1 / 7, abs=1e-6)
    assert exploitability(lambda _: pure, env, 1.0, n_samples=200) == pytest.approx(4 / 7)
    assert worst_case(lambda _: pure, env, 1.0, n_samples=200)["agent_0"] == pytest.approx(-1.0)


def test_errors_of_gaps() -> None:
    env = NormalForm([np.ones((2, 2)), np.ones((2, 2))])
    with pytest.raises(ValueError, match="zero-sum"):
        worst_case(uniform(2), env, 1.0, n_samples=100)
    with pytest.raises(ValueError, match="gamma"):
        nash_gap(uniform(2), env)
    with pytest.raises(ValueError, match="action_probabilities"):
        nash_gap(object(), env, 1.0)
    with pytest.raises(ValueError, match="'agent_0'"):
        nash_gap(uniform(3), env, 1.0, n_samples=100)
    with pytest.raises(ValueError, match="n_samples"):
        nash_gap(uniform(2), NormalForm(np.zeros((2, 9, 9))), 1.0, n_samples=10)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GridGame(3), "1 or 2"),
        (lambda: Soccer(1, 3), "rows"),
        (lambda: Soccer(max_steps=0), "max_steps"),
        (lambda: GridGame(render_mode="human"), "rgb_array"),
        (lambda: Soccer().reset(options={"state": 3}), "no state"),
    ],
)
def test_wrong_arguments(make, words) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=words):
        make()
