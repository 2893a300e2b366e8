"""MASAC: Multi-Agent Soft Actor-Critic."""

from typing import ClassVar

from sb3_happo.hasac.hasac import HASAC


class MASAC(HASAC):
    """
    Multi-Agent Soft Actor-Critic: :class:`~sb3_happo.HASAC` with simultaneous updates. Every agent
    ascends against the actions that the others' policies took before the update, so that
    ``agent_order`` decides only the order of the computation.

    :param args: As for ``HASAC``
    :param kwargs: As for ``HASAC``
    """

    sequential: ClassVar[bool] = False
