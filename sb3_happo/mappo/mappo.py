"""MAPPO: Multi-Agent PPO."""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy

from sb3_happo.common.commnet_policy import CommNetLstmPolicy, CommNetPolicy
from sb3_happo.common.type_aliases import ActorBatch
from sb3_happo.happo.happo import HAPPO


class MAPPO(HAPPO):
    """
    Multi-Agent Proximal Policy Optimisation (Yu et al. 2022, "The Surprising Effectiveness of PPO
    in Cooperative Multi-Agent Games", https://arxiv.org/abs/2103.01955).

    Like :class:`~sb3_happo.HAPPO`, but all agents learn from the same joint advantage at once: the
    factor stays 1, and agents with equal spaces share one network, which learns from all their
    samples together. ``policy_kwargs["share_parameters"]`` takes False or groups of agents instead,
    and ``policy_kwargs["append_agent_id"]`` adds a one-hot of the agent to the input of a shared
    network. A minibatch of ``batch_size`` joint transitions holds ``batch_size`` samples of every
    agent that shares.

    :param policy: As for ``HAPPO``
    :param env: As for ``HAPPO``
    :param args: As for ``HAPPO``
    :param policy_kwargs: As for ``HAPPO``, with ``share_parameters=True`` by default
    :param kwargs: As for ``HAPPO``; ``agent_order`` has no effect on the objective
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = HAPPO.policy_aliases | {
        "CommNetPolicy": CommNetPolicy,
        "CommNetLstmPolicy": CommNetLstmPolicy,
    }

    def __init__(
        self,
        policy: Any,
        env: Any = None,
        *args: Any,
        policy_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs["policy_kwargs"] = {"share_parameters": True} | (policy_kwargs or {})
        super().__init__(policy, env, *args, **kwargs)

    def _update_order(self, factor: th.Tensor) -> Iterator[tuple[str, ...]]:
        """
        :param factor: Ones, ``(n_rows,)``
        :return: Groups of agents that share parameters, which are updated together
        """
        return iter(self.policy.groups)

    def _next_factor(self, data: dict[str, ActorBatch], factor: th.Tensor) -> th.Tensor:
        """
        :param data: Rows of the agents just updated
        :param factor: Ones, ``(n_rows,)``
        :return: The same: the ratios of other agents are not part of the objective
        """
        return factor
