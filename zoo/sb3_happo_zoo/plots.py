"""Plots that several scripts of the zoo share."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

Curve = Sequence[tuple[int, float]]


def draw_seeds(axes: Axes, curves: Sequence[Curve], label: str) -> None:
    """
    Draw the learning curves of one setting: a line for the mean over seeds, a band from the lowest
    seed to the highest.

    :param axes: Axes to draw on
    :param curves: One curve per seed, ``(steps, return)`` sorted by steps. The range that all of
        them cover is drawn, with linear interpolation between the points of a curve
    :param label: Label in the legend
    """
    points = [np.asarray(curve, dtype=float) for curve in curves]
    grid = np.unique(np.concatenate([curve[:, 0] for curve in points]))
    first, last = max(curve[0, 0] for curve in points), min(curve[-1, 0] for curve in points)
    grid = grid[(grid >= first) & (grid <= last)]
    returns = [np.interp(grid, curve[:, 0], curve[:, 1]) for curve in points]
    values = np.stack(returns)  # (n_seeds, n_points)
    (line,) = axes.plot(grid, values.mean(axis=0), label=label)
    axes.fill_between(
        grid, values.min(axis=0), values.max(axis=0), color=line.get_color(), alpha=0.2, linewidth=0
    )
