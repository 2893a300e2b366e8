"""Search for weights, statistics and outputs of networks that are NaN or infinite."""

from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch as th
from torch import nn

from sb3_happo.common.checks import all_finite
from sb3_happo.common.distributions import unvalidated
from sb3_happo.common.gradient_step import GradientStep

#: Remedy at the end of errors
ADVICE = (
    "Lower `learning_rate`, `max_grad_norm`, `n_epochs` or `clip_range`, set `target_kl`, or "
    "normalise observations and rewards (VecNormalize)."
)
#: Parameters that an error lists
_N_LISTED = 3


#: Updates in a row that may be left out because their gradients are not finite
MOST_LEFT_OUT = 3

# Updates left out in a row, by algorithm and network
_LEFT_OUT: "WeakKeyDictionary[object, dict[str, int]]" = WeakKeyDictionary()


class NotFiniteError(ValueError):
    """Weights, gradients or outputs of a network are NaN or infinite."""


def count_left_out(owner: object, network: str, learned: bool) -> None:
    """
    Count the updates in a row in which a network has learned nothing, because each of its gradients
    was NaN or infinite. Single ones may come from a probability ratio that overflows.

    :param owner: Algorithm
    :param network: Name of the network, such as ``"agent 'walker'"``
    :param learned: Whether a step of the present update was finite
    :raises NotFiniteError: At the third one
    """
    counts = _LEFT_OUT.setdefault(owner, {})
    counts[network] = 0 if learned else counts.get(network, 0) + 1
    if counts[network] >= MOST_LEFT_OUT:
        counts[network] = 0
        raise NotFiniteError(
            f"{network}: all gradients of {MOST_LEFT_OUT} updates in a row were NaN or infinite, "
            f"so that nothing was learned. {ADVICE}"
        )


def check_finite(model: Any) -> None:
    """
    Check the weights of a model, the statistics that it holds (such as those of normalised
    values), and the state of its optimisers.

    :param model: Model, its policy, or the policy of a single agent
    :raises NotFiniteError: If a number is NaN or infinite, naming the agent (or the critic) and the
        parameter
    """
    found = names_not_finite(model)
    if not found:
        return
    listed = ", ".join(found[:_N_LISTED])
    if len(found) > _N_LISTED:
        listed += f" and {len(found) - _N_LISTED} more"
    raise NotFiniteError(f"The model is not finite: NaN or infinity in {listed}.")


def names_not_finite(model: Any) -> list[str]:
    """
    :param model: Model, its policy, or the policy of a single agent
    :return: Tensors with NaN or infinity, such as ``"'body.0.weight' of agent 'arm'"``
    """
    policy = getattr(model, "policy", model)
    tensors = dict(_named_tensors(policy))
    if not tensors or all_finite(list(tensors.values())):
        return []
    return [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]


def _named_tensors(policy: nn.Module) -> Iterator[tuple[str, th.Tensor]]:
    """Tensors of floats of a policy by their names in errors. Shared ones come once."""
    seen: set[int] = set()
    for owner, module in _owners(policy):
        for name, tensor in module.state_dict(keep_vars=True).items():
            new = id(tensor) not in seen
            seen.add(id(tensor))
            if new and isinstance(tensor, th.Tensor) and tensor.is_floating_point():
                yield f"{name!r}{owner}", tensor.detach()
        optimizer = getattr(module, "optimizer", None)
        if isinstance(optimizer, th.optim.Optimizer) and id(optimizer) not in seen:
            seen.add(id(optimizer))
            yield from _optimizer_tensors(optimizer, owner)


def _owners(policy: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Networks of a team, and the words that name their owners."""
    policies = getattr(policy, "policies", None)
    if not isinstance(policies, dict):
        yield "", policy
        return
    for agent, member in policies.items():
        yield f" of agent {agent!r}", member
    critic = getattr(policy, "critic", None)
    if isinstance(critic, nn.Module):
        yield " of the critic", critic
    # Whatever else a subclass holds
    yield "", policy


def _optimizer_tensors(
    optimizer: th.optim.Optimizer, owner: str
) -> Iterator[tuple[str, th.Tensor]]:
    for index, state in enumerate(optimizer.state.values()):
        for name, tensor in state.items():
            # Counters of steps may be on another device
            if isinstance(tensor, th.Tensor) and tensor.is_floating_point() and tensor.dim():
                yield f"{name!r} of parameter {index} of the optimiser{owner}", tensor


def check_steps(owner: object, network: str, steps: Sequence[GradientStep]) -> None:
    """
    Check the gradient steps of an actor in one update.

    :param owner: Algorithm
    :param network: Name of the network, such as ``"agent 'walker'"``
    :param steps: Gradient steps of the update; the second of their figures is the mean entropy
    :raises NotFiniteError: If the network returns NaN, or if no gradient was finite in this update
        and those before
    """
    if not steps:
        return
    # The entropy depends on the network's outputs alone, and not on the ratios
    if not steps[-1].finite and bool(steps[-1].figures[1].isnan()):
        raise outputs_error([network])
    count_left_out(owner, network, any(step.finite for step in steps))


def outputs_error(owners: list[str]) -> NotFiniteError:
    """
    :param owners: Networks, such as ``"agent 'walker'"``
    :return: Error to raise, where they return NaN or infinity for finite observations
    """
    return NotFiniteError(
        f"{', '.join(owners)}: the network returns NaN or infinity for finite observations, "
        f"because its weights or the observations are too large. {ADVICE}"
    )


@th.no_grad()
def agents_without_outputs(policy: Any, obs: dict[str, th.Tensor], states: Any) -> list[str]:
    """
    Find agents whose networks return NaN or infinity. Nothing is sampled, so that random generators
    stay as they are.

    :param policy: The team
    :param obs: Joint observation, each entry ``(n_envs, ...)``, finite
    :param states: Hidden states of the team before it, with the agents' in ``pi``, or None
    :return: Names of the agents
    """
    training = {agent: member.training for agent, member in policy.policies.items()}
    for member in policy.policies.values():
        # Without dropout and the like
        member.set_training_mode(False)
    with unvalidated():
        outputs = policy.outputs_by_agent(obs, {} if states is None else states.pi)
    for agent, member in policy.policies.items():
        member.set_training_mode(training[agent])
    return [agent for agent, params in outputs.items() if not all_finite([params])]
