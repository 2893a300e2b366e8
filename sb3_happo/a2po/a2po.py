"""A2PO: Agent-by-agent Policy Optimisation."""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch as th

from sb3_happo.common.corrected_buffer import CorrectedRolloutBuffer
from sb3_happo.common.formulas import clipped_joint_loss
from sb3_happo.common.hyperparameters import SHARE, Setting
from sb3_happo.common.type_aliases import ActorBatch, AgentOrder
from sb3_happo.happo.happo import HAPPO


class A2PO(HAPPO):
    """
    Agent-by-agent Policy Optimisation (Wang et al. 2023, "Order Matters: Agent-by-Agent Policy
    Optimization", https://arxiv.org/abs/2302.06205).

    Like :class:`~sb3_happo.HAPPO`, the agents are updated one by one. Three things are different:

    * Before each agent the advantages are estimated again at the new policies of the agents before
      it (preceding-agent off-policy correction): the traces of GAE are multiplied by
      ``min(1, factor)`` of each later step.
    * The clip range of the k-th of n agents is ``clip_range * (c + (1 - c) * k / n)``, with ``c``
      the ``first_clip_share``: early agents leave room for later ones. It bounds the joint ratio of
      the agent and those before it, whose factor is clipped to half the clip range first.
    * The order is semi-greedy: the agent with the steepest surrogate advantage, then a random one,
      then the steepest again, and so on.

    Differences from the paper: one critic of the team, which learns the returns of the rollout, and
    an order by the gradient's norm, because a shared advantage cannot rank agents. With one agent
    the numbers are those of ``HAPPO``.

    :param policy: As for ``HAPPO``
    :param env: As for ``HAPPO``
    :param args: As for ``HAPPO``
    :param first_clip_share: Share ``c`` of the clip range from which the agents' clip ranges rise,
        in [0, 1]; 1 for equal clip ranges
    :param agent_order: As for ``HAPPO``
    :param rollout_buffer_class: Subclass of
        :class:`~sb3_happo.common.corrected_buffer.CorrectedRolloutBuffer`
    :param kwargs: As for ``HAPPO``
    :raises ValueError: If the buffer's class does not correct advantages
    """

    settings: ClassVar[dict[str, Setting]] = HAPPO.settings | {"first_clip_share": SHARE}
    #: Position of the agent that is updated, from 1 to the number of agents
    position: int | None = None

    def __init__(
        self,
        policy: Any,
        env: Any = None,
        *args: Any,
        first_clip_share: float = 0.5,
        agent_order: AgentOrder = "semi_greedy",
        rollout_buffer_class: type[CorrectedRolloutBuffer] | None = None,
        **kwargs: Any,
    ) -> None:
        self.first_clip_share = first_clip_share
        kwargs |= {
            "agent_order": agent_order,
            "rollout_buffer_class": rollout_buffer_class or CorrectedRolloutBuffer,
        }
        super().__init__(policy, env, *args, **kwargs)

    def _setup_model(self) -> None:
        chosen: Any = self.rollout_buffer_class
        if not (isinstance(chosen, type) and issubclass(chosen, CorrectedRolloutBuffer)):
            raise ValueError(
                f"rollout_buffer_class={chosen!r}: A2PO estimates the advantages again before each "
                "agent; pass a subclass of "
                "sb3_happo.common.corrected_buffer.CorrectedRolloutBuffer."
            )
        super()._setup_model()

    def _update_order(self, factor: th.Tensor) -> Iterator[tuple[str, ...]]:
        """
        :param factor: Factor of the agents updated so far, ``(n_rows,)``
        :return: Iterator over the agents to update next, one at a time
        """
        order = super()._update_order(factor)
        for position in range(1, len(self.agents) + 1):
            # Before the next agent is chosen: the ranking of a greedy order reads the clip range
            self.position = position
            yield next(order)
        self.position = None

    def _clip_range(self) -> float:
        """Clip range of the agent that is updated; between updates that of the last one."""
        if self.position is None:
            return super()._clip_range()
        first, share = self.first_clip_share, self.position / len(self.agents)
        return super()._clip_range() * (first + (1.0 - first) * share)

    def _policy_loss(self, log_prob: th.Tensor, batch: ActorBatch) -> th.Tensor:
        """
        :param log_prob: Log-probabilities of the actions under the present policy, ``(batch,)``
        :param batch: Minibatch with corrected (normalised) advantages and factor
        :return: Loss, a scalar
        """
        return clipped_joint_loss(
            log_prob,
            batch.old_log_prob,
            batch.advantages,
            batch.factor,
            self._clip_range(),
            super()._clip_range() / 2,
        )
