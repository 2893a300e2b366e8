"""HAA2C: Heterogeneous-Agent Advantage Actor-Critic."""

from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import Schedule

from sb3_happo.common.commnet_policy import CommNetLstmPolicy, CommNetPolicy
from sb3_happo.common.formulas import policy_gradient_loss
from sb3_happo.common.type_aliases import ActorBatch
from sb3_happo.happo.happo import HAPPO


class HAA2C(HAPPO):
    """
    Heterogeneous-Agent Advantage Actor-Critic (Zhong et al. 2024, "Heterogeneous-Agent
    Reinforcement Learning", JMLR 25).

    Like :class:`~sb3_happo.HAPPO`, but each agent follows the plain policy gradient of
    ``M = factor * A``, without ratio and clipping, and passes over the rollout once. Difference
    from HARL: its HAA2C makes several passes with an unclipped ratio. Those of ``HAPPO`` apply too,
    see ``docs/harl.md``. With one agent, one pass and the same settings (Adam), the numbers are
    those of SB3's ``A2C``.

    :param policy: As for ``HAPPO``
    :param env: As for ``HAPPO``
    :param learning_rate: Learning rate of the actors, >= 0, constant or a schedule
    :param n_steps: Steps per environment and update; short rollouts and many updates suit a single
        pass
    :param batch_size: Rows of a minibatch; None for the whole rollout at once, as A2C does
    :param n_epochs: Passes over the rollout
    :param kwargs: As for ``HAPPO``; ``clip_range`` affects only the logged ``clip_fraction``
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = HAPPO.policy_aliases | {
        "CommNetPolicy": CommNetPolicy,
        "CommNetLstmPolicy": CommNetLstmPolicy,
    }

    def __init__(
        self,
        policy: Any,
        env: Any = None,
        learning_rate: float | Schedule = 7e-4,
        n_steps: int = 16,
        batch_size: int | None = None,
        n_epochs: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(policy, env, learning_rate, n_steps, batch_size, n_epochs, **kwargs)

    def _policy_loss(self, log_prob: th.Tensor, batch: ActorBatch) -> th.Tensor:
        """
        :param log_prob: Log-probabilities of the actions under the present policy, ``(batch,)``
        :param batch: Rows with their (normalised) advantages and factor
        :return: Loss of the policy gradient, a scalar
        """
        return policy_gradient_loss(log_prob, batch.advantages, batch.factor)
