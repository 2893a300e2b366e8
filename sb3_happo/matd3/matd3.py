"""MATD3: Multi-Agent Twin Delayed Deep Deterministic Policy Gradient."""

from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import Schedule

from sb3_happo.common.replay_buffer import JointSamples
from sb3_happo.hatd3.hatd3 import HATD3
from sb3_happo.suggestions import did_you_mean

#: Whose actions the other agents take in an agent's loss
OTHER_ACTIONS = ("buffer", "policies")


class MATD3(HATD3):
    """
    Multi-Agent Twin Delayed Deep Deterministic Policy Gradient (Ackermann et al. 2019, "Reducing
    Overestimation Bias in Multi-Agent Domains Using Double Centralized Critics").

    The critics are those of :class:`~sb3_happo.HATD3`. Each agent ascends the critic's value of its
    own new action among the actions of the others, which are those of the replay buffer (Lowe et
    al. 2017) or those of their present policies. No agent sees the update of another one, so that
    the order has no effect on the losses. With one agent the numbers are those of SB3's ``TD3``.

    There is one critic where all agents get the same reward, and one for each agent's own reward
    where rewards differ. No environment says before training which it is: critics are the team's
    until a step at which rewards differ, and their copies are the agents' from then on, which the
    log names ("train/own_critics"). ``policy_kwargs=dict(own_critics=True)`` or ``False`` decides
    it beforehand.

    :param policy: As for ``HATD3``
    :param env: As for ``HATD3``
    :param learning_rate: As for ``HATD3``
    :param args: As for ``HATD3``
    :param other_actions: Actions of the other agents in an agent's loss: "buffer" or "policies"
    :param policy_kwargs: As for ``HATD3``; ``own_critics`` is "auto" by default
    :param kwargs: As for ``HATD3``
    :raises ValueError: If ``other_actions`` is neither of these
    """

    def __init__(
        self,
        policy: Any,
        env: Any = None,
        learning_rate: float | Schedule = 1e-3,
        *args: Any,
        other_actions: str = "buffer",
        policy_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.other_actions = other_actions
        policy_kwargs = {"own_critics": "auto"} | (policy_kwargs or {})
        super().__init__(policy, env, learning_rate, *args, policy_kwargs=policy_kwargs, **kwargs)

    def _setup_model(self) -> None:
        if self.other_actions not in OTHER_ACTIONS:
            hint = did_you_mean(
                str(self.other_actions), OTHER_ACTIONS, otherwise="Pass 'buffer' or 'policies'."
            )
            raise ValueError(f"other_actions={self.other_actions!r} is unknown. {hint}")
        super()._setup_model()

    def _update_actors(self, data: JointSamples) -> None:
        """
        Update every agent against the others' actions before the update.

        :param data: Transitions
        """
        features = self.critic.observe(data.observations).detach()
        others = self._other_actions(data)
        for agent in self.agents:
            # Agents with the same network are updated one after another
            self._ascend(agent, self._decide(agent, data), others, features, data)

    @th.no_grad()
    def _other_actions(self, data: JointSamples) -> dict[str, th.Tensor]:
        """Encoded actions of all agents in the losses of the others, ``(batch, n_encoded)``."""
        if self.other_actions == "buffer":
            encoded = self._encoded(data)
            return {agent: encoded[:, self.policy.columns[agent]] for agent in self.agents}
        return {agent: self._decide(agent, data).actions for agent in self.agents}
