"""
Share of the seeds with which Nash-Q ends in an equilibrium of a grid game, for each selection rule.

Both agents play at random, and every game starts in a random state. The updates are those of
``NashQ(...).learn`` with an exploration rate of 1; the game is stepped without the layers of an
environment, which take most of the time.
"""

import argparse
from collections import Counter
from typing import Any

import numpy as np

from sb3_happo.envs.games import GridGame
from sb3_happo.tabular import GameModel, NashQ, nash_gap, policy_values
from sb3_happo.tabular.matrix_games import SELECTIONS
from sb3_happo.tabular.situations import Situation, Transition

#: Gaps at the start below which strategies count as an equilibrium; the goal is worth 100, and a
#: lost move costs about 1
GAPS = (0.1, 0.5)


class DirectNashQ(NashQ):
    """Nash-Q that plays a game of known dynamics at random, without an environment."""

    def play(self, game: GridGame, n_steps: int) -> None:
        """
        :param game: Game
        :param n_steps: Number of steps
        """
        states: tuple[Any, ...] = game.states
        n_states, n_actions = len(states), self.n_actions
        known: dict[tuple[int, tuple[int, ...]], list] = {}
        index = {own: number for number, own in enumerate(states)}
        state = int(self.rng.integers(n_states))
        for _ in range(n_steps):
            actions = tuple(int(self.rng.integers(n)) for n in n_actions)
            if (state, actions) not in known:
                known[state, actions] = game.outcomes(states[state], actions)
            outcomes = known[state, actions]
            chosen = outcomes[0]
            if len(outcomes) > 1:
                chosen = outcomes[self.rng.choice(len(outcomes), p=[own[0] for own in outcomes])]
            over = chosen.state is None
            following = int(self.rng.integers(n_states)) if over else index[chosen.state]
            after = None if over else Situation((following, following), (None, None))
            before = Situation((state, state), (None, None))
            rewards = np.array(chosen.rewards)
            self._update(Transition(before, actions, rewards, after, over, 0))
            state = following


def train(rule: str, number: int, seed: int, n_steps: int) -> tuple[float, tuple[float, float]]:
    """
    :param rule: Selection rule
    :param number: Grid game, 1 or 2
    :param seed: Seed
    :param n_steps: Number of steps
    :return: Nash gap at the start, and the values of the strategies there
    """
    game = GridGame(number, random_starts=True)
    model = DirectNashQ(game, selection=rule, seed=seed)
    model.play(game, n_steps)
    dynamics = GameModel.of(game)
    values = policy_values(model, dynamics)
    return nash_gap(model, dynamics), (values["agent_0"], values["agent_1"])


def main() -> None:
    """Train with every rule and seed, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--game", type=int, default=2, choices=(1, 2), help="grid game")
    parser.add_argument("--seeds", type=int, default=20, help="number of seeds")
    parser.add_argument("--steps", type=int, default=36_000, help="steps of a training")
    parser.add_argument("--rules", nargs="+", default=list(SELECTIONS), choices=list(SELECTIONS))
    args = parser.parse_args()
    print(f"Grid game {args.game}, {args.steps} steps, {args.seeds} seeds")
    limits = " | ".join(f"Gap < {limit}" for limit in GAPS)
    print(f"| Rule | {limits} | Values (number of seeds) |")
    print("|---|---|---|---|")
    for rule in args.rules:
        gaps = []
        ends: Counter[str] = Counter()
        for seed in range(args.seeds):
            gap, values = train(rule, args.game, seed, args.steps)
            gaps.append(gap)
            ends[f"({values[0]:.2f}, {values[1]:.2f})"] += 1
        shares = " | ".join(f"{np.sum(np.array(gaps) < limit)} of {len(gaps)}" for limit in GAPS)
        listed = ", ".join(f"{pair}: {count}" for pair, count in ends.most_common(4))
        print(f"| `{rule}` | {shares} | {listed} |", flush=True)


if __name__ == "__main__":
    main()
