"""FQL: factorised Q-learning."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy

from sb3_happo.common.hyperparameters import COUNT, Setting
from sb3_happo.common.pairwise_policy import PairwiseValuePolicy
from sb3_happo.common.replay_buffer import JointSamples
from sb3_happo.vdn.vdn import VDN


class FQL(VDN):
    """
    Factorised Q-learning (Zhou et al. 2018, "Factorized Q-Learning for Large-Scale Multi-Agent
    Systems", https://arxiv.org/abs/1809.03738): the value of a joint action is the sum of the
    agents' own values and of a low-rank term of each pair of agents,
    ``sum_i q_i(a_i) + sum_{i < j} <u_i(a_i), v_j(a_j)>``. It is learned from the team's reward, and
    represents any common payoff of two agents if the rank is large enough, where the sums of VDN
    and the monotonic functions of QMIX do not.

    The best joint action, in acting and in the targets, is found by coordinate ascent with
    restarts. Execution is therefore central: agents choose in view of one another.

    :param policy: As for :class:`~sb3_happo.VDN`
    :param env: As for ``VDN``
    :param args: As for ``VDN``
    :param rank: Number of factors of each agent's options in a pair, >= 1
    :param neighbors: Pairs of agents that have a term, ``[("agent_0", "agent_1"), ...]``; None for
        all pairs
    :param n_restarts: Number of random starts of the coordinate ascent beside the own values' best
        options, >= 0
    :param n_sweeps: Largest number of turns of each agent in the coordinate ascent, >= 1
    :param policy_kwargs: Keyword arguments of the policy
    :param kwargs: As for ``VDN``
    :raises ValueError: If a pair is not one of two different agents of the team
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": PairwiseValuePolicy,
        "CnnPolicy": PairwiseValuePolicy,
        "MultiInputPolicy": PairwiseValuePolicy,
    }
    settings: ClassVar[dict[str, Setting]] = VDN.settings | {
        "rank": COUNT,
        "n_restarts": Setting("a whole number, at least 0", lambda n: n >= 0, whole=True),
        "n_sweeps": COUNT,
    }
    policy: PairwiseValuePolicy

    def __init__(
        self,
        policy: Any,
        env: Any = None,
        *args: Any,
        rank: int = 2,
        neighbors: Sequence[Sequence[str]] | None = None,
        n_restarts: int = 8,
        n_sweeps: int = 10,
        policy_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.rank = rank
        self.n_restarts = n_restarts
        self.n_sweeps = n_sweeps
        form = dict(rank=rank, neighbors=neighbors, n_restarts=n_restarts, n_sweeps=n_sweeps)
        super().__init__(policy, env, *args, policy_kwargs=form | (policy_kwargs or {}), **kwargs)

    def _joint_values(self, data: JointSamples) -> th.Tensor:
        """
        :param data: Transitions
        :return: Values of the joint actions of the buffer, differentiable, ``(batch, 1)``
        """
        active = None if data.activity is None else data.activity.active
        encoded = self.policy.encode(data.actions).unsqueeze(1)  # one joint action per row
        chosen = {agent: encoded[..., own] for agent, own in self.policy.columns.items()}
        return self.policy.terms(data.observations, active).joint_value(chosen)

    @th.no_grad()
    def _targets(self, data: JointSamples) -> th.Tensor:
        """
        :param data: Transitions
        :return: Targets of the values of the joint actions, ``(batch, 1)``
        """
        active = None if data.activity is None else data.activity.next_active
        terms = self.policy.terms(data.next_observations, active, target=True)
        choosing = terms
        if self.double_q:
            choosing = self.policy.terms(data.next_observations, active)
        best = self.policy.best_joint_action(choosing)
        following = terms.joint_value({agent: own.unsqueeze(1) for agent, own in best.items()})
        return data.rewards + (1.0 - data.dones) * data.discounts * following
