"""Choice between critics of the team's reward and critics of the agents' own rewards."""

import numpy as np

# Share of a reward by which rounding in float32 may make equal ones differ
_TOLERANCE = 1e-5


def rewards_differ(own: np.ndarray, alive: np.ndarray | None) -> bool:
    """
    :param own: Individual rewards, ``(..., n_agents)``; NaN where the environment gives none
    :param alive: Mask of the agents that were there, of the same shape; None for all
    :return: True if two agents that were there at the same step got different rewards
    """
    lowest = highest = np.asarray(own, dtype=np.float64)
    if alive is not None:
        lowest = np.where(alive, lowest, np.inf)
        highest = np.where(alive, highest, -np.inf)
    gaps = highest.max(axis=-1) - lowest.min(axis=-1)
    size = np.abs(np.where(np.isfinite(own), own, 0.0)).max(axis=-1)
    # A gap is NaN without own rewards, and minus infinity where nobody is there
    return bool((gaps > _TOLERANCE * (1.0 + size)).any())
