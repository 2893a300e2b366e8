"""Orders in which the agents of a team are updated one after the other."""

from collections.abc import Callable, Iterator, Sequence
from typing import get_args

import numpy as np
import torch as th

from sb3_happo.common.agent_policy import AgentPolicy
from sb3_happo.common.trust_region import flat_gradient
from sb3_happo.common.type_aliases import (
    ActorBatch,
    AgentOrder,
    AgentOrderFn,
    AgentOrderName,
)

#: Orders that rank the agents, and the number of choices of which the first is greedy
GREEDY_ORDERS = {"greedy": 1, "semi_greedy": 2}


def check_agent_order(
    agent_order: AgentOrder, agents: tuple[str, ...], greedy: bool = True
) -> None:
    """
    :param agent_order: Setting of the user
    :param agents: Names of the agents
    :param greedy: Whether the algorithm can rank agents, for "greedy" and "semi_greedy"
    :raises ValueError: If the setting is unknown, or a callable does not return every agent once
    """
    names = [name for name in get_args(AgentOrderName) if greedy or name not in GREEDY_ORDERS]
    if callable(agent_order):
        call_order(agent_order, agents)
    elif agent_order not in names:
        raise ValueError(
            f"agent_order must be one of {tuple(names)} or a callable, not {agent_order!r}"
        )


def call_order(agent_order: AgentOrderFn, agents: tuple[str, ...]) -> list[str]:
    """
    :param agent_order: Function of the user
    :param agents: Names of the agents
    :return: Order that the function returns
    :raises ValueError: If it does not return every agent once
    """
    order = list(agent_order(agents))
    if sorted(order) != sorted(agents):
        raise ValueError(
            f"agent_order must return every agent once; it returned {order} for {list(agents)}"
        )
    return order


def fixed_order(agent_order: AgentOrder, agents: tuple[str, ...]) -> Sequence[str]:
    """
    Order that does not depend on the updates.

    :param agent_order: "random" for a new permutation, drawn from NumPy's generator as SB3's
        minibatches are; "fixed"; "reverse"; or a callable
    :param agents: Names of the agents, in the environment's order
    :return: Order of the next update
    """
    if callable(agent_order):
        return call_order(agent_order, agents)
    if agent_order == "random":
        return [agents[index] for index in np.random.permutation(len(agents))]
    return agents[::-1] if agent_order == "reverse" else agents


def greedy_order(
    agents: tuple[str, ...], score: Callable[[str], float], every: int = 1
) -> Iterator[str]:
    """
    Order by a score that may change with every update, highest first.

    :param agents: Names of the agents
    :param score: Score of an agent that was not updated yet
    :param every: Number of choices of which the first is by the score, and the others are random;
        1 for the score alone, 2 for the semi-greedy order of A2PO
    :return: Iterator over the agents; the scores are computed again before each of them
    """
    remaining = list(agents)
    while remaining:
        n_before = len(agents) - len(remaining)
        if len(remaining) > 1 and n_before % every == 0:
            best = max(remaining, key=score)
        elif len(remaining) > 1:
            best = remaining[np.random.randint(len(remaining))]
        else:
            best = remaining[0]
        remaining.remove(best)
        yield best


def steepness(
    policy: AgentPolicy,
    data: ActorBatch,
    policy_loss: Callable[[th.Tensor, ActorBatch], th.Tensor],
) -> float:
    """
    Norm of the gradient of an agent's objective at the policy of the rollout.

    The surrogate advantages themselves, ``mean(ratio * factor * A)``, cannot rank agents that
    share one advantage: before its own update every agent's ratio is 1.

    :param policy: Policy of an agent that was not updated yet
    :param data: Samples of the agent, with (normalised) advantages and the factor of the agents
        updated so far
    :param policy_loss: Loss of the log-probabilities of the samples, ``(batch,)``, and the samples
    :return: Norm, >= 0
    """
    if not len(data.advantages):
        return 0.0
    log_prob, _ = policy.evaluate_batch(data)
    params = [param for param in policy.parameters() if param.requires_grad]
    return flat_gradient(policy_loss(log_prob, data), params).norm().item()
