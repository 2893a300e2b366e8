"""Update of a team whose agents read one another: the same rows for all of them."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch as th

from sb3_happo.common.distributions import unvalidated
from sb3_happo.common.finite import check_steps
from sb3_happo.common.formulas import approx_kl, clip_fraction
from sb3_happo.common.gradient_step import GradientStep, gradient_step
from sb3_happo.common.minibatches import minibatches, select_rows
from sb3_happo.common.type_aliases import ActorBatch, Sequences
from sb3_happo.common.update_log import log_actors


class TeamRows(NamedTuple):
    """
    Rows of a rollout with all agents.

    :param observations: Joint observations, with the links of the messages, ``(batch, ...)`` each
    :param active: Active mask, ``(batch, n_agents)``
    :param actions: Raw actions of each agent, ``(batch, action_dim)``
    :param old_log_prob: Log-probabilities at collection, ``(batch, n_agents)``
    :param advantages: Advantages of each agent, ``(batch, n_agents)``
    :param sequences: Division of the rows into sequences; None without memory
    """

    observations: dict[str, th.Tensor]
    active: th.Tensor
    actions: dict[str, th.Tensor]
    old_log_prob: th.Tensor
    advantages: th.Tensor
    sequences: Sequences | None = None


def team_rows(buffer: Any) -> TeamRows:
    """
    :param buffer: Rollout buffer
    :return: All rows
    """
    agents = buffer.policy.agents
    observations = {key: stored.flatten(end_dim=1) for key, stored in buffer.observations.items()}
    actions = {agent: buffer.actions[agent].flatten(end_dim=1) for agent in agents}
    rows = TeamRows(
        observations,
        buffer.active.flatten(end_dim=1),
        actions,
        th.stack([buffer.log_probs[agent].flatten() for agent in agents], dim=1),
        th.stack([buffer.agent_advantages(agent) for agent in agents], dim=1),
    )
    if buffer.policy.policies[agents[0]].memory is None:
        return rows
    order, sequences = buffer.team_sequences()
    return select_rows(rows, order)._replace(sequences=sequences)


def normalize_rows(rows: TeamRows) -> TeamRows:
    """
    :param rows: Rows of all agents
    :return: Rows whose advantages have the mean 0 and the standard deviation 1 for each agent, over
        the rows at which it was active; those of an agent with fewer than two are unchanged
    """
    active = rows.active
    counts = active.sum(dim=0)
    present = rows.advantages.where(active, 0.0)
    means = present.sum(dim=0) / counts.clamp(min=1)
    errors = (rows.advantages - means).where(active, 0.0)
    deviations = (errors.square().sum(dim=0) / (counts - 1).clamp(min=1)).sqrt()
    normal = (rows.advantages - means) / (deviations + 1e-8)
    return rows._replace(advantages=normal.where(counts > 1, rows.advantages))


def active_batch(rows: TeamRows) -> ActorBatch:
    """
    :param rows: Rows of all agents
    :return: Log-probabilities and advantages of the active agents, ``(n,)``, and factors of 1, as a
        policy loss reads them; observations and actions are empty
    """
    active = rows.active
    advantages = rows.advantages[active]
    empty = advantages.new_empty(0)
    return ActorBatch(
        empty, empty, None, rows.old_log_prob[active], advantages, th.ones_like(advantages)
    )


@unvalidated()  # PyTorch's own error about NaN names no agent
def update_communicating_team(model: Any) -> Iterator[tuple[str, ...]]:
    """
    Gradient steps of all agents at once, over minibatches of joint transitions, by the algorithm's
    own loss of the policy. Every agent has the factor 1.

    :param model: On-policy model of agents that communicate
    :return: Agents that are left to update: none
    """
    agents = model.agents
    model._set_actor_rate(agents[0])
    ent_coef = model._ent_coef(model._current_progress_remaining)
    data = team_rows(model.rollout_buffer)
    if model.normalize_advantage == "rollout":
        data = normalize_rows(data)
    owner = f"agents {', '.join(map(repr, agents))}"
    steps: list[GradientStep] = []
    for batch in minibatches(data, model.batch_size, model.n_epochs):
        if not bool(batch.active.any()):
            continue
        if model.normalize_advantage in (True, "minibatch"):
            batch = normalize_rows(batch)
        n_active = batch.active.sum()

        def loss_of(
            name: str, rows: TeamRows, n_active: th.Tensor = n_active
        ) -> tuple[th.Tensor, th.Tensor]:
            terms = team_terms(model, rows) * (rows.active.sum() / n_active)
            return terms[0] - ent_coef * terms[1], terms

        step = gradient_step(
            loss_of,
            {"the team": batch},
            model.policies[agents[0]].optimizer,
            model.max_grad_norm,
            owner,
            model._executor,
            model._within_target_kl,
        )
        steps.append(step)
        if not step.accepted:
            break
    check_steps(model, owner, steps)
    log_actors(model, list(agents), [step.figures for step in steps])
    return iter(())


def team_terms(model: Any, rows: TeamRows) -> th.Tensor:
    """
    :param model: On-policy model
    :param rows: Rows of all agents
    :return: Policy loss, entropy, approximate KL divergence from the policy at collection, and
        share of clipped samples, ``(4,)``
    """
    log_probs, entropies = model.policy.evaluate(
        rows.observations, rows.actions, rows.sequences, rows.active
    )
    if not bool(rows.active.any()):
        return log_probs.sum() * log_probs.new_zeros(4)
    batch, log_prob = active_batch(rows), log_probs[rows.active]
    loss = model._policy_loss(log_prob, batch)
    with th.no_grad():
        kl = approx_kl(log_prob, batch.old_log_prob)
        clipped = clip_fraction(log_prob, batch.old_log_prob, model._clip_range())
    return th.stack([loss, entropies[rows.active].mean(), kl, clipped])
