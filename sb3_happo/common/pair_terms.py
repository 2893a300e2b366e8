"""Values of joint actions as sums over agents and pairs of agents, and their best joint action."""

from collections.abc import Mapping
from typing import NamedTuple

import torch as th
from torch.nn import functional as F

#: Values below this one belong to illegal options
_ILLEGAL = -1e7
#: Seed of the random starts, so that equal observations give equal joint actions
_SEED = 0


class PairTerms(NamedTuple):
    """
    Terms of ``Q(a) = sum_i q_i(a_i) + sum_{i < j} <u_i(a_i), v_j(a_j)>`` of a batch.

    :param values: Own values ``q`` of each agent's options, ``(batch, n_options)``
    :param left: Factors ``u`` of each agent's options, ``(batch, n_options, rank)``
    :param right: Factors ``v`` of each agent's options, ``(batch, n_options, rank)``
    :param choices: Sizes of each agent's choices, which add up to ``n_options``
    :param pairs: 1 for the pairs i < j that have a term, ``(n_agents, n_agents)``
    """

    values: dict[str, th.Tensor]
    left: dict[str, th.Tensor]
    right: dict[str, th.Tensor]
    choices: dict[str, list[int]]
    pairs: th.Tensor

    def only(self, active: th.Tensor | None) -> "PairTerms":
        """
        :param active: Active mask, ``(batch, n_agents)``; None for all
        :return: Terms without those of inactive agents
        """
        if active is None:
            return self
        values, left, right = {}, {}, {}
        columns = active.to(next(iter(self.values.values())).dtype).unbind(dim=1)
        for agent, own in zip(self.values, columns, strict=True):
            parts = self.values[agent], self.left[agent], self.right[agent]
            if not bool(own.any()):
                # Without a gradient: one of zero would leave the networks to Adam's momentum
                parts = tuple(map(th.Tensor.detach, parts))  # type: ignore[assignment]
            values[agent] = parts[0] * own[:, None]
            left[agent] = parts[1] * own[:, None, None]
            right[agent] = parts[2] * own[:, None, None]
        return self._replace(values=values, left=left, right=right)

    def joint_value(self, chosen: Mapping[str, th.Tensor]) -> th.Tensor:
        """
        :param chosen: Encoded actions of each agent, ``(batch, n_starts, n_options)``
        :return: Values of the joint actions, ``(batch, n_starts)``
        """
        lefts, rights, total = [], [], th.zeros(())
        for agent, own in chosen.items():
            total = total + th.einsum("bn,bsn->bs", self.values[agent], own)
            lefts.append(th.einsum("bnk,bsn->bsk", self.left[agent], own))
            rights.append(th.einsum("bnk,bsn->bsk", self.right[agent], own))
        left, right = th.stack(lefts, dim=2), th.stack(rights, dim=2)
        # (batch, n_starts, n_agents, rank): for each agent the sum over those before it
        before = th.einsum("ij,bsik->bsjk", self.pairs, left)
        return total + (before * right).sum(dim=(2, 3))

    @th.no_grad()
    def best(self, n_restarts: int, n_sweeps: int) -> dict[str, th.Tensor]:
        """
        Best joint action that coordinate ascent finds: each agent in turn takes its best options
        given those of the others. It begins with the options of the highest own values, and again
        with random ones, for it stops at local optima.

        :param n_restarts: Number of random starts beside the first
        :param n_sweeps: Largest number of turns of each agent
        :return: Encoded actions of each agent, ``(batch, n_options)``
        """
        chosen = self._starts(n_restarts)
        lefts, rights = [], []
        for agent, own in chosen.items():
            lefts.append(th.einsum("bnk,bsn->bsk", self.left[agent], own))
            rights.append(th.einsum("bnk,bsn->bsk", self.right[agent], own))
        left, right = th.stack(lefts, dim=2), th.stack(rights, dim=2)
        for _ in range(n_sweeps):
            changed = False
            for index, agent in enumerate(chosen):
                # What the pairs with the others pay for this agent's factors
                after = th.einsum("j,bsjk->bsk", self.pairs[index], right)
                before = th.einsum("j,bsjk->bsk", self.pairs[:, index], left)
                scores = self.values[agent].unsqueeze(1)
                scores = scores + th.einsum("bnk,bsk->bsn", self.left[agent], after)
                scores = scores + th.einsum("bnk,bsk->bsn", self.right[agent], before)
                own = one_hots(scores, self.choices[agent])
                changed |= not th.equal(own, chosen[agent])
                chosen[agent] = own
                left[:, :, index] = th.einsum("bnk,bsn->bsk", self.left[agent], own)
                right[:, :, index] = th.einsum("bnk,bsn->bsk", self.right[agent], own)
            if not changed:
                break
        winner = self.joint_value(chosen).argmax(dim=1)
        rows = th.arange(len(winner), device=winner.device)
        return {agent: own[rows, winner] for agent, own in chosen.items()}

    def _starts(self, n_restarts: int) -> dict[str, th.Tensor]:
        """Encoded actions of each agent to begin with, ``(batch, 1 + n_restarts, n_options)``."""
        generator = th.Generator().manual_seed(_SEED)
        starts = {}
        for agent, values in self.values.items():
            # The same random options in each row, so that a batch has the answers of its rows
            noise = th.rand(n_restarts, values.shape[1], generator=generator).to(values)
            random = noise.expand(len(values), -1, -1)
            random = random.masked_fill((values < _ILLEGAL).unsqueeze(1), -1.0)
            scores = th.cat([values.unsqueeze(1), random], dim=1)
            starts[agent] = one_hots(scores, self.choices[agent])
        return starts


def one_hots(scores: th.Tensor, choices: list[int]) -> th.Tensor:
    """
    :param scores: Scores of the options, ``(..., n_options)``
    :param choices: Sizes of the choices
    :return: 1 for the best option of each choice, 0 for the others, ``(..., n_options)``
    """
    parts = []
    for own in scores.split(choices, dim=-1):
        parts.append(F.one_hot(own.argmax(dim=-1), own.shape[-1]))
    return th.cat(parts, dim=-1).to(scores.dtype)
