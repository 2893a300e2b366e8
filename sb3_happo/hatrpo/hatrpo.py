"""HATRPO: Heterogeneous-Agent Trust Region Policy Optimisation."""

from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import Schedule

from sb3_happo.common.distributions import kl_divergence
from sb3_happo.common.hyperparameters import COUNT, FRACTION, NOT_NEGATIVE, POSITIVE, SHARE
from sb3_happo.common.recurrent import twice_differentiable
from sb3_happo.common.trust_region import (
    flat_gradient,
    hessian_vector_product,
    line_search,
    natural_step,
)
from sb3_happo.common.type_aliases import ActorBatch
from sb3_happo.happo.happo import HAPPO, normalize_advantages


class HATRPO(HAPPO):
    """
    Heterogeneous-Agent Trust Region Policy Optimisation (Algorithm 2 of Kuba et al. 2021,
    https://arxiv.org/abs/2109.11251).

    Like :class:`~sb3_happo.HAPPO`, but each agent makes one natural gradient step of the objective ``mean(ratio * M)`` under a
    bound on its mean KL divergence, found by conjugate gradients and a backtracking line search, in place of PPO's epochs.
    Without an entropy bonus: ``ent_coef``, ``clip_range`` and ``batch_size`` have no effect on the actors, which take the
    whole rollout at once, and ``learning_rate`` and ``n_epochs`` are the critic's.

    Knowingly different from the paper: advantages are normalised; the Hessian is damped. From sb3-contrib's ``TRPO``: the
    divergence is that of whole actions (summed over their dimensions, not averaged), and the line search asks for a share of
    the expected improvement, as the paper does, not for any improvement.

    :param policy: As for ``HAPPO``
    :param env: As for ``HAPPO``
    :param learning_rate: Of the critic
    :param target_kl: Bound on each agent's mean KL divergence per update, > 0
    :param cg_max_steps: Iterations of the conjugate gradients, >= 1
    :param cg_damping: Added to the diagonal of the Hessian, >= 0
    :param line_search_shrinking_factor: By which a refused step is shortened, in (0, 1)
    :param line_search_max_iter: Steps that the line search tries, >= 1
    :param accept_ratio: Share of the expected improvement that a step must bring (the paper's kappa), in [0, 1]
    :param kwargs: As for ``HAPPO``
    """

    settings = HAPPO.settings | {
        "target_kl": POSITIVE,  # it bounds every step, so that it cannot be None
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

        :param data: Per agent that is updated, its rows of the rollout with the factor of the agents before
        """
        data = {agent: rows for agent, rows in data.items() if len(rows.advantages)}
        if not data:
            return
        agents = list(data)
        params = [param for param in self.policies[agents[0]].parameters() if param.requires_grad]
        with th.no_grad():
            old = {
                agent: self.policies[agent].batch_distribution(rows) for agent, rows in data.items()
            }
        if self.normalize_advantage:
            data = {agent: normalize_advantages(rows) for agent, rows in data.items()}

        def evaluate() -> tuple[th.Tensor, th.Tensor]:
            """The objective and the mean divergence at the present parameters."""
            gains, divergences = [], []
            for agent, rows in data.items():
                policy = self.policies[agent]
                distribution = policy.batch_distribution(rows)
                ratio = th.exp(policy.log_prob(distribution, rows.actions) - rows.old_log_prob)
                gains.append(ratio * rows.factor * rows.advantages)
                divergences.append(kl_divergence(old[agent], distribution))
            return th.cat(gains).mean(), th.cat(divergences).mean()

        with twice_differentiable():
            objective, divergence = evaluate()
        gradient = flat_gradient(objective, params)
        product = hessian_vector_product(divergence, params, self.cg_damping)
        assert self.target_kl is not None
        step = natural_step(gradient, product, self.target_kl, self.cg_max_steps)
        expected = (gradient @ step).item()
        reached = [objective.item(), 0.0]

        def accept(fraction: float) -> bool:
            gain, kl = (value.item() for value in evaluate())
            improvement = gain - objective.item()
            enough = improvement > 0 and improvement >= self.accept_ratio * fraction * expected
            if enough and kl <= self.target_kl:  # type: ignore[operator]
                reached[:] = gain, kl
                return True
            return False

        fraction = line_search(
            params, step, accept, self.line_search_shrinking_factor, self.line_search_max_iter
        )
        for agent in agents:
            name = self._log_names[agent]
            self.logger.record(f"{name}/policy_objective", reached[0])
            self.logger.record(f"{name}/kl", reached[1])
            self.logger.record(f"{name}/step_fraction", fraction)
            log_std = self.policies[agent].effective_log_std()
            if log_std is not None:
                self.logger.record(f"{name}/std", log_std.exp().mean().item())
