"""MADDPG: Multi-Agent Deep Deterministic Policy Gradient."""

from sb3_happo.haddpg.haddpg import HADDPG
from sb3_happo.matd3.matd3 import MATD3


class MADDPG(HADDPG, MATD3):
    """
    Multi-Agent Deep Deterministic Policy Gradient (Lowe et al. 2017, "Multi-Agent Actor-Critic for
    Mixed Cooperative-Competitive Environments", arXiv 1706.02275).

    :class:`~sb3_happo.MATD3` with the defaults of :class:`~sb3_happo.HADDPG`: one critic, no delay
    of the actors, and no noise of the target actions. With one agent and the same settings the
    numbers are those of SB3's ``DDPG``. The paper has a critic for each agent, as here where
    rewards differ; with a reward of the team one critic learns the same.

    :param args: As for ``HADDPG``
    :param kwargs: As for ``HADDPG`` and ``MATD3``
    """
