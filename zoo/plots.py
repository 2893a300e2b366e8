"""What the zoo's scripts draw alike."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

Curve = Sequence[tuple[int, float]]


def draw_seeds(axes: Axes, curves: Sequence[Curve], label: str) -> None:
    """
    Learning curves of one setting: the mean over seeds as a line, and from the lowest seed to the highest as a band.

    :param axes: Where
    :param curves: One per seed, ``(steps, return)`` in the order of steps; the stretch that all of them cover is drawn, with
        straight lines between a curve's points
    :param label: In the legend
    """
    points = [np.asarray(curve, dtype=float) for curve in curves]
    grid = np.unique(np.concatenate([curve[:, 0] for curve in points]))
    first, last = max(curve[0, 0] for curve in points), min(curve[-1, 0] for curve in points)
    grid = grid[(grid >= first) & (grid <= last)]
    values = np.stack(
        [np.interp(grid, curve[:, 0], curve[:, 1]) for curve in points]
    )  # (n_seeds, n_points)
    (line,) = axes.plot(grid, values.mean(axis=0), label=label)
    axes.fill_between(
        grid, values.min(axis=0), values.max(axis=0), color=line.get_color(), alpha=0.2, linewidth=0
    )
