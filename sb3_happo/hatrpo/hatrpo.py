"""HATRPO: Heterogeneous-Agent Trust Region Policy Optimisation."""

import math
from typing import Any

import torch as th
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.type_aliases import Schedule

from sb3_happo.common.distributions import kl_divergence, unvalidated
from sb3_happo.common.finite import count_left_out
from sb3_happo.common.formulas import surrogate
from sb3_happo.common.hyperparameters import COUNT, FRACTION, NOT_NEGATIVE, POSITIVE, SHARE
from sb3_happo.common.recurrent import twice_differentiable
from sb3_happo.common.trust_region import (
    TrustRegionStep,
    flat_gradient,
    hessian_vector_product,
    line_search,
    natural_step,
)
from sb3_happo.common.type_aliases import ActorBatch
from sb3_happo.common.warn_once import warn_once
from sb3_happo.happo.happo import HAPPO, normalize_advantages


class HATRPO(HAPPO):
    """
    Heterogeneous-Agent Trust Region Policy Optimisation (Algorithm 2 of Kuba et al. 2021, "Trust
    Region Policy Optimisation in Multi-Agent Reinforcement Learning",
    https://arxiv.org/abs/2109.11251).

    Like :class:`~sb3_happo.HAPPO`, but each agent makes one natural gradient step of the objective
    ``mean(ratio * M)`` under a bound on its mean KL divergence, in place of PPO's epochs. The step
    is found by conjugate gradients and a backtracking line search. The actors take the whole
    rollout at once and get no entropy bonus: ``ent_coef``, ``clip_range`` and ``batch_size`` have
    no effect on them, and ``learning_rate`` and ``n_epochs`` are the critic's.

    Differences from the paper: advantages are normalised; the Hessian is damped. Differences from
    sb3-contrib's ``TRPO``: the divergence is that of whole actions (summed over their dimensions,
    not averaged), and the line search asks for a share of the expected improvement, as the paper
    does, not for any improvement. Differences from HARL: the exact KL divergence of discrete
    actions, while HARL's is not weighted by their probabilities, so that steps at the same
    ``target_kl`` are longer here (2.1 to 2.3 times with 5 actions); dead steps do not count in the
    divergence; all action spaces. Those of ``HAPPO`` apply too, see ``docs/harl.md``.

    A step that is NaN or infinite is refused: the parameters stay as they are, and one warning
    names the agent.

    :param policy: As for ``HAPPO``
    :param env: As for ``HAPPO``
    :param learning_rate: Learning rate of the critic, > 0, constant or a schedule
    :param target_kl: Bound on each agent's mean KL divergence per update, > 0
    :param cg_max_steps: Iterations of the conjugate gradients, >= 1
    :param cg_damping: Number added to the diagonal of the Hessian, >= 0
    :param line_search_shrinking_factor: Factor by which a refused step is shortened, in (0, 1)
    :param line_search_max_iter: Largest number of steps that the line search tries, >= 1
    :param accept_ratio: Share of the expected improvement that a step must bring (the paper's
        kappa), in [0, 1]
    :param kwargs: As for ``HAPPO``
    """

    settings = HAPPO.settings | {
        "target_kl": POSITIVE,  # the bound of every step: not None, as in HAPPO
        "cg_max_steps": COUNT,
        "cg_damping": NOT_NEGATIVE,
        "line_search_shrinking_factor": FRACTION,
        "line_search_max_iter": COUNT,
        "accept_ratio": SHARE,
    }

    def __init__(
        self,
        policy: Any,
        env: Any = None,
        learning_rate: float | Schedule = 1e-3,
        target_kl: float = 0.01,
        cg_max_steps: int = 15,
        cg_damping: float = 0.1,
        line_search_shrinking_factor: float = 0.8,
        line_search_max_iter: int = 10,
        accept_ratio: float = 0.5,
        **kwargs: Any,
    ) -> None:
        self.cg_max_steps = cg_max_steps
        self.cg_damping = cg_damping
        self.line_search_shrinking_factor = line_search_shrinking_factor
        self.line_search_max_iter = line_search_max_iter
        self.accept_ratio = accept_ratio
        super().__init__(policy, env, learning_rate, target_kl=target_kl, **kwargs)

    def _update_actors(self, data: dict[str, ActorBatch]) -> None:
        """
        One trust-region step (lines 11 to 13 of Algorithm 2).

        :param data: Rows of the rollout of each agent that is updated, with the factor of the
            agents before
        """
        data = {agent: batch for agent, batch in data.items() if len(batch.advantages)}
        if not data:
            return
        if self.normalize_advantage:
            data = {agent: normalize_advantages(batch) for agent, batch in data.items()}
        # PyTorch's own check of NaN logits would end the training, and names no agent
        with unvalidated():
            result = self._trust_region_step(data)
        names = ", ".join(map(repr, data))
        if result.fraction == 0 and not result.finite:
            warn_once(
                self,
                names,
                f"agent {names}: the trust-region step was NaN or infinite and was left out. "
                "Lower `target_kl`, raise `cg_damping`, or normalise observations and rewards "
                "(VecNormalize). Further cases are left out without a warning.",
            )
        count_left_out(self, f"agent {names}", learned=result.fraction > 0 or result.finite)
        figures = {"kl": result.kl, "step_fraction": result.fraction}
        for agent in data:
            self._log_agent(agent, figures | {"policy_objective": result.objective})

    def _trust_region_step(self, data: dict[str, ActorBatch]) -> TrustRegionStep:
        """
        Change the parameters of agents that share them, if an acceptable step is found.

        :param data: Rows of each agent, with (normalised) advantages and the factor
        :return: Step that was taken
        """
        leader = next(iter(data))
        params = [param for param in self.policies[leader].parameters() if param.requires_grad]
        with th.no_grad():
            old = self._distributions(data)
        # Line 11: gradient of the objective; line 12: natural step up to the bound
        with twice_differentiable():
            objective, divergence = self._objective_and_divergence(data, old)
        gradient = flat_gradient(objective, params)
        product = hessian_vector_product(divergence, params, self.cg_damping)
        target_kl = self.target_kl
        assert target_kl is not None
        step = natural_step(gradient, product, target_kl, self.cg_max_steps)
        expected = (gradient @ step).item()
        before = objective.item()
        tried = [TrustRegionStep(before, 0.0, 0.0, math.isfinite(expected))]

        def accept(fraction: float) -> bool:
            gain, kl = (value.item() for value in self._objective_and_divergence(data, old))
            finite = math.isfinite(gain) and math.isfinite(kl)
            tried.append(TrustRegionStep(gain, kl, fraction, finite))
            enough = gain > before and gain - before >= self.accept_ratio * fraction * expected
            # A divergence is negative by rounding only
            return finite and enough and abs(kl) <= target_kl

        # Line 13: the largest step that keeps to the bound and improves the objective enough
        fraction = line_search(
            params, step, accept, self.line_search_shrinking_factor, self.line_search_max_iter
        )
        if fraction:
            return tried[-1]
        return tried[0]._replace(finite=all(step.finite for step in tried))

    def _distributions(self, data: dict[str, ActorBatch]) -> dict[str, Distribution]:
        """
        :param data: Rows of each agent
        :return: Each agent's present distribution over the actions of its rows
        """
        return {
            agent: self.policies[agent].batch_distribution(batch) for agent, batch in data.items()
        }

    def _objective_and_divergence(
        self, data: dict[str, ActorBatch], old: dict[str, Distribution]
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        :param data: Rows of each agent, with (normalised) advantages and the factor
        :param old: Each agent's distributions at collection
        :return: Objective and mean KL divergence at the present parameters, scalars
        """
        gains, divergences = [], []
        for agent, distribution in self._distributions(data).items():
            batch = data[agent]
            log_prob = self.policies[agent].log_prob(distribution, batch.actions)
            gains.append(surrogate(log_prob, batch.old_log_prob, batch.advantages, batch.factor))
            divergences.append(kl_divergence(old[agent], distribution))
        return th.cat(gains).mean(), th.cat(divergences).mean()
