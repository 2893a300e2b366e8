"""QMIX: monotonic value function factorisation."""

from typing import ClassVar

from stable_baselines3.common.policies import BasePolicy

from sb3_happo.common.value_policy import MixedValuePolicy
from sb3_happo.vdn.vdn import VDN


class QMIX(VDN):
    """
    QMIX (Rashid et al. 2018, arXiv 1803.11485): the value of a joint action is a monotonic function
    of the agents' values, which depends on the state, see
    :class:`~sb3_happo.common.mixers.MonotonicMixer`. The best joint action therefore consists of
    the agents' own best actions.

    ``policy_kwargs=dict(critic_kwargs=dict(mixing_dim=32, hypernet_dim=64))`` are the sizes of the
    mixing network; ``critic_learning_rate`` is its learning rate. See :class:`~sb3_happo.VDN` for
    the parameters.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MixedValuePolicy,
        "CnnPolicy": MixedValuePolicy,
        "MultiInputPolicy": MixedValuePolicy,
    }
