"""Distance of strategies from an equilibrium, by exact best responses."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from sb3_happo.suggestions import did_you_mean
from sb3_happo.tabular.game_model import GameModel
from sb3_happo.tabular.matrix_games import solve_zero_sum, support_of

#: Function of the observations ``{agent: observation}`` that returns the probabilities of the
#: actions, ``{agent: (n_actions,)}``
Strategies: TypeAlias = Callable[[Any], Mapping[str, np.ndarray]]

_MAX_SWEEPS = 100_000


class ZeroSumGameSolution(NamedTuple):
    """
    Solution of a zero-sum game with states.

    :param values: Values of the states for the first agent, ``(n_states,)``
    :param policies: Optimal strategies of both agents, ``(n_states, n_actions)`` each
    :param n_sweeps: Number of sweeps over the states
    """

    values: np.ndarray
    policies: list[np.ndarray]
    n_sweeps: int


def exploitability(
    model: Any, env: Any, gamma: float | None = None, n_samples: int = 20_000
) -> float:
    """
    Mean gain of an agent that plays a best response to the strategies of the others, which is
    computed exactly. In a zero-sum game it is the mean over both sides of what an opponent that
    knows the strategy wins above the value. 0 at a Nash equilibrium.

    The best response knows the state of the game, also where the agents observe a part of it only.

    :param model: Model with ``action_probabilities(observations)``, such as
        :class:`~sb3_happo.tabular.NashQ`; or a function of this kind
    :param env: Environment of any form, or a :class:`~sb3_happo.tabular.GameModel`, see
        :meth:`~sb3_happo.tabular.GameModel.of`
    :param gamma: Discount factor; that of the model by default
    :param n_samples: Random steps by which an environment is learnt that does not know its dynamics
    :return: Mean over the agents, at the start of the game
    :raises ValueError: If ``gamma`` is missing, or the model and the environment do not fit
    """
    return float(np.mean(list(gains(model, env, gamma, n_samples).values())))


def nash_gap(model: Any, env: Any, gamma: float | None = None, n_samples: int = 20_000) -> float:
    """
    Largest gain of an agent that plays a best response, see :func:`exploitability`.

    :param model: As for :func:`exploitability`
    :param env: As for :func:`exploitability`
    :param gamma: Discount factor; that of the model by default
    :param n_samples: As for :func:`exploitability`
    :return: Largest gain over the agents, at the start of the game; 0 at a Nash equilibrium
    """
    return max(gains(model, env, gamma, n_samples).values())


def gains(
    model: Any, env: Any, gamma: float | None = None, n_samples: int = 20_000
) -> dict[str, float]:
    """
    Gain of each agent that plays a best response, see :func:`exploitability`.

    :param model: As for :func:`exploitability`
    :param env: As for :func:`exploitability`
    :param gamma: Discount factor; that of the model by default
    :param n_samples: As for :func:`exploitability`
    :return: Gains at the start of the game, ``{agent: gain}``
    """
    game, policies, gamma = _prepare(model, env, gamma, n_samples)
    differences = {}
    for index, agent in enumerate(game.agents):
        best = _best_response_values(game, policies, index, gamma)
        own = _values(game, policies, index, gamma)
        differences[agent] = max(0.0, float(game.start @ (best - own)))
    return differences


def policy_values(
    model: Any, env: Any, gamma: float | None = None, n_samples: int = 20_000
) -> dict[str, float]:
    """
    Expected discounted returns of the agents' strategies, computed exactly.

    :param model: As for :func:`exploitability`
    :param env: As for :func:`exploitability`
    :param gamma: Discount factor; that of the model by default
    :param n_samples: As for :func:`exploitability`
    :return: Values at the start of the game, ``{agent: value}``
    """
    game, policies, gamma = _prepare(model, env, gamma, n_samples)
    values = {}
    for index, agent in enumerate(game.agents):
        values[agent] = float(game.start @ _values(game, policies, index, gamma))
    return values


def worst_case(
    model: Any, env: Any, gamma: float | None = None, n_samples: int = 20_000
) -> dict[str, float]:
    """
    Value of each agent's strategy against the opponent that plays a best response to it, in a
    zero-sum game of two agents.

    :param model: As for :func:`exploitability`
    :param env: As for :func:`exploitability`
    :param gamma: Discount factor; that of the model by default
    :param n_samples: As for :func:`exploitability`
    :return: Values at the start of the game, ``{agent: value}``
    :raises ValueError: If the game is not one of two agents whose rewards add up to 0
    """
    game, policies, gamma = _prepare(model, env, gamma, n_samples)
    _check_zero_sum(game, "worst_case")
    values = {}
    for index, agent in enumerate(game.agents):
        values[agent] = -float(game.start @ _best_response_values(game, policies, 1 - index, gamma))
    return values


def shapley_iteration(
    env: Any, gamma: float, tolerance: float = 1e-6, n_samples: int = 20_000
) -> ZeroSumGameSolution:
    """
    Solve a zero-sum game with states exactly (Shapley 1953): the values of the states are those of
    their games, in sweeps over all states.

    :param env: Environment of any form, or a :class:`~sb3_happo.tabular.GameModel`
    :param gamma: Discount factor
    :param tolerance: Largest change of a value in the last sweep
    :param n_samples: As for :func:`exploitability`
    :return: Values and optimal strategies
    :raises ValueError: If the game is not one of two agents whose rewards add up to 0
    """
    game = env if isinstance(env, GameModel) else GameModel.of(env, n_samples)
    _check_zero_sum(game, "shapley_iteration")
    policies = _uniform_policies(game)
    values = np.zeros(game.n_states)
    n_sweeps = 0
    change = np.inf
    while change > tolerance and n_sweeps < _MAX_SWEEPS:
        q = game.action_values(values, 0, gamma).reshape(game.n_states, *game.n_actions)
        following = np.empty_like(values)
        for state, payoffs in enumerate(q):
            following[state] = _solve_state(game, state, payoffs, policies)
        change = float(np.abs(following - values).max())
        values = following
        n_sweeps += 1
    return ZeroSumGameSolution(values, policies, n_sweeps)


def _solve_state(
    game: GameModel, state: int, payoffs: np.ndarray, policies: list[np.ndarray]
) -> float:
    """Value of the game of a state; its strategies go into ``policies``."""
    first, second = policies[0][state], policies[1][state]
    rows, columns = (np.arange(len(own)) for own in (first, second))
    if game.legal is not None:
        rows, columns = (np.flatnonzero(mask[state]) for mask in game.legal)
    supports = support_of(first[rows]), support_of(second[columns])
    solution = solve_zero_sum(payoffs[rows[:, None], columns], supports)
    first[rows], second[columns] = solution.row, solution.column
    return solution.value


def _check_zero_sum(game: GameModel, name: str) -> None:
    if len(game.agents) != 2:
        raise ValueError(f"{name} is for two agents, and this game has {list(game.agents)}.")
    sums = game.rewards.sum(axis=2)
    wrong = np.argwhere(np.abs(sums) > 1e-5 * np.maximum(1.0, np.abs(game.rewards).max()))
    if len(wrong):
        state, joint = wrong[0]
        actions = tuple(int(own) for own in np.unravel_index(joint, game.n_actions))
        raise ValueError(
            f"{name} is for zero-sum games, and in the state with the observations "
            f"{game.observations[state]} the rewards of the actions {actions} are "
            f"{game.rewards[state, joint].tolist()}."
        )


def _prepare(
    model: Any, env: Any, gamma: float | None, n_samples: int
) -> tuple[GameModel, list[np.ndarray], float]:
    """Game, strategies in all its states, and discount factor."""
    gamma = getattr(model, "gamma", None) if gamma is None else gamma
    if gamma is None or not 0.0 <= gamma <= 1.0:
        raise ValueError(f"gamma={gamma!r} must be in [0, 1]; pass gamma= for this model.")
    strategies = getattr(model, "action_probabilities", model)
    if not callable(strategies):
        raise ValueError(
            f"{type(model).__name__} has no action_probabilities; pass a function of the "
            "observations that returns {agent: probabilities}."
        )
    if not isinstance(env, GameModel):
        env = GameModel.of(env, n_samples, getattr(model, "state_key", None))
    return env, _policies_of(strategies, env), float(gamma)


def _policies_of(strategies: Strategies, game: GameModel) -> list[np.ndarray]:
    """Probabilities of all agents' actions in all states, ``(n_states, n_actions)`` each."""
    policies = _uniform_policies(game)
    for state, observation in enumerate(game.observations):
        chosen = strategies(observation)
        for index, agent in enumerate(game.agents):
            if agent in chosen:
                _fill(policies[index][state], chosen[agent], agent)
            elif game.legal is None:
                hint = did_you_mean(agent, chosen, otherwise=f"There are {list(chosen)}.")
                raise ValueError(f"The model has no strategy for the agent {agent!r}. {hint}")
    return policies


def _fill(policy: np.ndarray, chosen: Any, agent: str) -> None:
    probabilities = np.asarray(chosen, np.float64)
    is_strategy = probabilities.shape == policy.shape and probabilities.min() >= 0.0
    if not is_strategy or abs(probabilities.sum() - 1.0) > 1e-6:
        raise ValueError(
            f"The strategy of agent {agent!r} is {probabilities.tolist()}; it needs "
            f"{len(policy)} probabilities that add up to 1."
        )
    policy[:] = probabilities


def _uniform_policies(game: GameModel) -> list[np.ndarray]:
    policies = []
    for index, n in enumerate(game.n_actions):
        allowed = np.ones((game.n_states, n)) if game.legal is None else game.legal[index]
        policies.append(allowed / allowed.sum(axis=1, keepdims=True))
    return policies


def _values(game: GameModel, policies: list[np.ndarray], agent: int, gamma: float) -> np.ndarray:
    """Values of the states for an agent, ``(n_states,)``, of the strategies of all."""
    weights = game.joint_probabilities(policies)

    def following(values: np.ndarray) -> np.ndarray:
        return (weights * game.action_values(values, agent, gamma)).sum(axis=1)

    return _fixed_point(following, np.zeros(game.n_states))


def _best_response_values(
    game: GameModel, policies: list[np.ndarray], agent: int, gamma: float
) -> np.ndarray:
    """Values of the states for an agent that plays a best response, ``(n_states,)``."""
    weights = game.joint_probabilities(policies, without=agent)

    def following(values: np.ndarray) -> np.ndarray:
        own = game.own_actions(weights * game.action_values(values, agent, gamma), agent)
        if game.legal is not None:
            own = np.where(game.legal[agent], own, -np.inf)
        return own.max(axis=1)

    return _fixed_point(following, np.zeros(game.n_states))


def _fixed_point(following: Callable[[np.ndarray], np.ndarray], values: np.ndarray) -> np.ndarray:
    """
    :param following: Function with a fixed point
    :param values: Values to begin with
    :return: Fixed point, up to 1e-10
    :raises ValueError: If the values do not settle, as those of endless games without discount
    """
    for _ in range(_MAX_SWEEPS):
        after = following(values)
        if np.abs(after - values).max() <= 1e-10 * max(1.0, float(np.abs(after).max())):
            return after
        values = after
    raise ValueError("The values of the game do not settle; use gamma < 1.")
