"""Learning of a state critic from a rollout."""

from concurrent.futures import Executor
from typing import NamedTuple

import torch as th

from sb3_happo.common.finite import count_left_out
from sb3_happo.common.formulas import explained_variance, value_losses
from sb3_happo.common.gradient_step import gradient_step
from sb3_happo.common.minibatches import minibatches
from sb3_happo.common.state_critics import Critic
from sb3_happo.common.type_aliases import CriticBatch


class ValueLoss(NamedTuple):
    """
    Form of the value loss, see :func:`~sb3_happo.common.formulas.value_losses`.

    :param vf_coef: Weight of the loss, >= 0
    :param clip_range: Largest change of a value per update, in the critic's units; None for no
        limit
    :param clipped_maximum: With ``clip_range``, the larger of the clipped and the unclipped loss
    :param huber_delta: Error at which the loss turns from quadratic to linear; None for the squared
        error
    """

    vf_coef: float = 1.0
    clip_range: float | None = None
    clipped_maximum: bool = False
    huber_delta: float | None = None

    def of_batch(self, critic: Critic, batch: CriticBatch) -> th.Tensor:
        """
        :param critic: Critic
        :param batch: Minibatch, in the critic's own units
        :return: Loss of each value that counts, ``(n,)`` or ``(batch, n_values)``
        """
        losses = value_losses(
            critic.evaluate_batch(batch),
            batch.returns,
            batch.old_values,
            self.clip_range,
            self.clipped_maximum,
            self.huber_delta,
        )
        return losses if batch.active is None else losses[batch.active]


class CriticUpdate(NamedTuple):
    """
    Figures of an update of the critic.

    :param value_loss: Mean loss over all minibatches
    :param explained_variance: Share of the variance of the returns that the values explain, before
        the update; NaN where the returns do not vary
    """

    value_loss: float
    explained_variance: float


def critic_targets(
    critic: Critic, data: CriticBatch, target_critic: Critic | None = None
) -> CriticBatch:
    """
    Targets in the units in which the critic predicts. With normalised values, the returns are first
    added to the running statistics, and the output layer changes with these, so that the values
    stay as they are.

    :param critic: Critic, whose statistics and output layers change
    :param data: Rollout, in units of reward
    :param target_critic: Target network of the critic with the same statistics, whose output layers
        change too; None for none
    :return: Rollout, in the critic's units
    """
    norm = critic.value_norm
    if norm is None:
        return data
    # The network's outputs at collection: normalised before the statistics change
    old_outputs = norm.normalize(data.old_values)
    change = norm.update(data.returns, data.active)
    critic.change_outputs(change)
    if target_critic is not None:
        target_critic.change_outputs(change)
    old_values = change.apply_to(old_outputs)
    return data._replace(old_values=old_values, returns=norm.normalize(data.returns))


def update_critic(
    critic: Critic,
    data: CriticBatch,
    loss: ValueLoss,
    n_epochs: int,
    batch_size: int | None,
    max_grad_norm: float,
    executor: Executor | None = None,
    target_critic: Critic | None = None,
) -> CriticUpdate:
    """
    Fit a critic to the TD(lambda) returns of a rollout (the last line of Algorithm 3 of Kuba et
    al. 2021).

    :param critic: Critic, changed in place
    :param data: Rollout, in units of reward
    :param loss: Form of the value loss
    :param n_epochs: Passes over the rollout
    :param batch_size: Rows per minibatch; None for all rows at once
    :param max_grad_norm: Largest norm of the gradient; infinity for no clipping
    :param executor: Threads for large minibatches
    :param target_critic: Target network of the critic, whose units change with the critic's; None
        for none
    :return: Figures for the log
    """
    targets = critic_targets(critic, data, target_critic)
    losses = []
    learned = False
    for batch in minibatches(targets, batch_size, n_epochs):
        n_values = batch.returns.numel()
        if batch.active is not None:
            n_values = max(1, int(batch.active.sum()))

        def loss_of(_: str, shard: CriticBatch, n: int = n_values) -> tuple[th.Tensor, th.Tensor]:
            mean = loss.of_batch(critic, shard).sum() / n
            return loss.vf_coef * mean, mean

        batches = {"critic": batch}
        step = gradient_step(
            loss_of, batches, critic.optimizer, max_grad_norm, "the critic", executor
        )
        losses.append(step.figures)
        learned = learned or step.finite
    count_left_out(critic, "the critic", learned)
    # Values that do not count are not learned, and would spoil the figure
    values, returns = critic.clip(data.old_values), data.returns
    if data.active is not None:
        values, returns = values[data.active], returns[data.active]
    explained = explained_variance(values, returns)
    return CriticUpdate(th.stack(losses).mean().item(), explained.item())
