"""Temperatures of the soft actor-critic algorithms."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.utils import update_learning_rate

from sb3_happo.common.frozen_rows import frozen_rows
from sb3_happo.common.heads import Expansion
from sb3_happo.common.leaf_heads import BoxHead
from sb3_happo.common.off_policy_algorithm import MultiAgentOffPolicyAlgorithm

#: Share of the largest entropy of discrete actions in the default target
DISCRETE_SHARE = 0.5


class Temperatures(MultiAgentOffPolicyAlgorithm):
    """
    Base of the algorithms that reward entropy, with a temperature for each agent.

    :param args: Arguments of
        :class:`~sb3_happo.common.off_policy_algorithm.MultiAgentOffPolicyAlgorithm`
    :param ent_coef: Temperature; "auto" to learn one per agent, "auto_0.1" with an initial value
    :param target_entropy: Entropy that learned temperatures aim at, one for all agents or
        ``{agent: entropy}``; "auto" for minus the number of continuous actions plus half the
        largest entropy of the discrete ones
    :param kwargs: Keyword arguments of ``MultiAgentOffPolicyAlgorithm``
    """

    # Made again of `ent_coef`
    other_attributes: ClassVar[tuple[str, ...]] = (
        *MultiAgentOffPolicyAlgorithm.other_attributes,
        "_fixed_coefs",
    )
    ent_coef: str | float
    target_entropy: Any
    log_ent_coef: th.Tensor | None
    ent_coef_optimizer: th.optim.Adam | None

    def __init__(
        self,
        *args: Any,
        ent_coef: str | float = "auto",
        target_entropy: str | float | Mapping[str, float] = "auto",
        **kwargs: Any,
    ) -> None:
        self.ent_coef = ent_coef
        self.target_entropy = target_entropy
        super().__init__(*args, **kwargs)

    def _setup_model(self) -> None:
        initial = initial_temperature(self.ent_coef)
        super()._setup_model()
        self._check_target_entropy()
        self.log_ent_coef = self.ent_coef_optimizer = None
        values = th.full((len(self.agents),), initial, device=self.device)
        if isinstance(self.ent_coef, str):
            self.log_ent_coef = values.log().requires_grad_(True)
            self.ent_coef_optimizer = th.optim.Adam([self.log_ent_coef], lr=self.lr_schedule(1))
        self._fixed_coefs = values

    def _check_target_entropy(self) -> None:
        target = self.target_entropy
        if isinstance(target, Mapping):
            if set(target) != set(self.agents):
                raise ValueError(
                    f"target_entropy must have one entry for each of {list(self.agents)}, not "
                    f"{list(target)}"
                )
            values = list(target.values())
        else:
            values = [] if target == "auto" else [target]
        for value in values:
            if isinstance(value, (bool, str)) or not math.isfinite(value):
                raise ValueError(f"target_entropy must be 'auto' or finite, not {value!r}")

    def _begin_training(self) -> None:
        super()._begin_training()
        if self.ent_coef_optimizer is not None:
            rate = self.lr_schedule(self._current_progress_remaining)
            update_learning_rate(self.ent_coef_optimizer, rate)

    def _target_of(self, agent: str, choices: Expansion) -> th.Tensor | float:
        """Target entropy of an agent, of each row where its masks differ."""
        if self.target_entropy != "auto":
            target = self.target_entropy
            return float(target[agent] if isinstance(target, Mapping) else target)
        head = self.policies[agent].action_head
        n_box = sum(part.n_encoded for part in head.parts if isinstance(part, BoxHead))
        if head.masked and choices.actions.shape[1] > 1:
            # Illegal choices cannot add to the entropy
            legal = (choices.probs.detach() > 0).sum(dim=1, keepdim=True)
            return DISCRETE_SHARE * legal.log() - float(n_box)
        return DISCRETE_SHARE * sum(map(math.log, head.factors)) - float(n_box)

    def _temperatures(self) -> th.Tensor:
        """Present temperatures, ``(n_agents,)``."""
        coefs = self._fixed_coefs
        if self.log_ent_coef is not None:
            coefs = self.log_ent_coef.detach().exp()
        self._record("train/ent_coef", coefs.mean())
        return coefs

    def _excess(self, agent: str, choices: Expansion, active: th.Tensor | None) -> th.Tensor:
        """
        :param agent: Name of the agent
        :param choices: All choices of the agent
        :param active: Mask of the transitions at which it acted, ``(batch,)``; None for all
        :return: Target entropy minus the present one at these transitions, ``(n_acted, 1)``
        """
        log_probs = (choices.probs * choices.log_probs).sum(dim=1, keepdim=True).detach()
        excess = log_probs + self._target_of(agent, choices)
        return excess if active is None else excess[active]

    def _update_temperatures(self, excess: Mapping[str, th.Tensor]) -> None:
        """
        One gradient step of the temperatures.

        :param excess: Result of :meth:`_excess` for the agents that acted in the minibatch; the
            temperatures of the others stay
        """
        if self.log_ent_coef is None or self.ent_coef_optimizer is None or not excess:
            return
        idle = th.ones(len(self.agents), dtype=th.bool, device=self.device)
        losses = []
        for agent, own in excess.items():
            index = self.agents.index(agent)
            idle[index] = False
            losses.append(-(self.log_ent_coef[index : index + 1] * own).mean())
        loss = th.stack(losses).sum()
        self.ent_coef_optimizer.zero_grad()
        loss.backward()
        with frozen_rows(self.ent_coef_optimizer, [self.log_ent_coef], idle):
            self.ent_coef_optimizer.step()
        self._record("train/ent_coef_loss", loss)

    def _checkpoint_state(self) -> dict[str, Any]:
        coefs = None if self.log_ent_coef is None else self.log_ent_coef.detach().clone()
        return super()._checkpoint_state() | {"log_ent_coef": coefs}

    def _restore_checkpoint_state(self, state: dict[str, Any]) -> None:
        super()._restore_checkpoint_state(state)
        if self.log_ent_coef is not None:
            with th.no_grad():
                self.log_ent_coef.copy_(state["log_ent_coef"])

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_fixed_coefs"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, tensors = super()._get_torch_save_params()
        if self.log_ent_coef is None:
            return state_dicts, tensors
        return [*state_dicts, "ent_coef_optimizer"], [*tensors, "log_ent_coef"]


def initial_temperature(ent_coef: str | float) -> float:
    """
    :param ent_coef: Setting of the user: "auto", "auto_0.1" or a number
    :return: Initial or fixed temperature
    :raises ValueError: If the setting is none of these
    """
    learned = isinstance(ent_coef, str) and ent_coef.startswith("auto")
    text = "1.0" if ent_coef == "auto" else str(ent_coef).removeprefix("auto_")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    is_number = learned or not isinstance(ent_coef, (str, bool))
    if not (is_number and math.isfinite(value) and value >= 0 and (value > 0 or not learned)):
        raise ValueError(
            f"ent_coef must be 'auto', 'auto_' with a positive initial value such as 'auto_0.1', "
            f"or a number >= 0, not {ent_coef!r}"
        )
    return value
