"""HACrossQ: Heterogeneous-Agent CrossQ."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import Schedule

from sb3_happo.common.agent_order import fixed_order
from sb3_happo.common.batch_norm import batch_statistics
from sb3_happo.common.crossq_policy import CrossQJointPolicy
from sb3_happo.common.hyperparameters import COUNT, Setting
from sb3_happo.common.replay_buffer import JointSamples
from sb3_happo.common.soft_learning import SoftLearning


class HACrossQ(SoftLearning):
    """
    CrossQ (Bhatt et al. 2024, "CrossQ: Batch Normalization in Deep Reinforcement Learning for
    Greater Sample Efficiency and Simplicity") for a team: :class:`~sb3_happo.HASAC` without target
    networks. Critics and actors have sb3-contrib's batch renormalisation, and critics value stored
    and next joint actions in one minibatch, so that the statistics cover both.

    The agents are updated one after another, in view of the new actions of those before. An agent
    takes the moments of the transitions in which it acted, for its own update only. With one agent
    and the same settings the numbers are those of sb3-contrib's ``CrossQ``.

    :param policy: Name of a policy, "MlpPolicy", "CnnPolicy" or "MultiInputPolicy", or a class
    :param env: Environment of any form that ``HAPPO`` takes
    :param learning_rate: Learning rate of actors and temperatures, >= 0, constant or a schedule
    :param buffer_size: Number of transitions in the replay buffer, of all environments together
    :param learning_starts: Number of timesteps of random actions before the first update
    :param batch_size: Transitions per gradient step
    :param gamma: Discount factor
    :param train_freq: Steps of each environment between two updates
    :param gradient_steps: Gradient steps per update; -1 for as many as transitions were collected
    :param policy_delay: Gradient steps of the critics per update of actors and temperatures
    :param kwargs: ``agent_order`` of :class:`~sb3_happo.common.soft_learning.SoftLearning`,
        ``ent_coef`` and ``target_entropy`` of
        :class:`~sb3_happo.common.temperatures.Temperatures`, and keyword arguments of
        ``MultiAgentOffPolicyAlgorithm``
    :raises ValueError: If ``tau`` is given, for there are no target networks
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": CrossQJointPolicy,
        "CnnPolicy": CrossQJointPolicy,
        "MultiInputPolicy": CrossQJointPolicy,
    }
    settings: ClassVar[dict[str, Setting]] = SoftLearning.settings | {
        "policy_delay": COUNT,
        "batch_size": Setting("a whole number, at least 2", lambda n: n >= 2, whole=True),
    }
    policy: CrossQJointPolicy

    def __init__(
        self,
        policy: Any,
        env: Any = None,
        learning_rate: float | Schedule = 1e-3,
        buffer_size: int = 1_000_000,
        learning_starts: int = 100,
        batch_size: int = 256,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        *,
        policy_delay: int = 3,
        **kwargs: Any,
    ) -> None:
        if "tau" in kwargs:
            raise ValueError(
                f"tau={kwargs['tau']!r}: HACrossQ has no target networks; omit it, or use HASAC."
            )
        self.policy_delay = policy_delay
        super().__init__(
            policy,
            env,
            learning_rate,
            buffer_size,
            learning_starts,
            batch_size,
            gamma=gamma,
            train_freq=train_freq,
            gradient_steps=gradient_steps,
            tau=1.0,
            **kwargs,
        )

    def _explore(self, obs: Mapping[str, np.ndarray], n_envs: int) -> np.ndarray:
        raw = super()._explore(obs, n_envs)
        for agent, policy in self.policies.items():
            columns = self.policy.raw_columns[agent]
            # Batch normalisation magnifies rounding: SB3's is needed for CrossQ's numbers
            raw[:, columns] = policy.env_actions.rounded(raw[:, columns])
        return raw

    def train(self, gradient_steps: int, batch_size: int = 256) -> None:
        """
        Gradient steps of the critics, and of actors and temperatures at every ``policy_delay``-th.

        :param gradient_steps: Number of gradient steps of the critics
        :param batch_size: Transitions per gradient step
        """
        self._begin_training()
        for _ in range(gradient_steps):
            self._n_updates += 1
            data = self._sample(batch_size)
            coefs = self._temperatures()
            self._update_critics(data, coefs)
            if self._n_updates % self.policy_delay == 0:
                self._update_actors(data, coefs)
        self._log_training()

    def _update_critics(self, data: JointSamples, coefs: th.Tensor) -> None:
        """
        Gradient step of the critics on stored and next joint actions in one minibatch.

        :param data: Transitions
        :param coefs: Temperatures, ``(n_agents,)``
        """
        with th.no_grad():
            next_actions, log_probs = self._next_actions(data)
        observations = {}
        for key in self.critic.keys:
            observations[key] = th.cat([data.observations[key], data.next_observations[key]])
        with batch_statistics(self.critic):
            both = self.critic(observations, th.cat([self._encoded(data), next_actions]))
        # (n_critics, 2 * batch, n_values) -> (2 * batch, n_critics, n_values): gradients are summed
        # over the layout of `chunk`, here in CrossQ's order
        values, next_values = both.transpose(0, 1).chunk(2)
        next_least = next_values.detach().amin(dim=1)
        targets = self._soft_targets(data, next_least, log_probs, coefs)
        self._fit_critic(values.transpose(0, 1), targets, data)

    def _update_actors(self, data: JointSamples, coefs: th.Tensor) -> None:
        """
        Update the agents one after another, and then the temperatures.

        :param data: Transitions
        :param coefs: Temperatures, ``(n_agents,)``
        """
        features = self.critic.observe(data.observations).detach()
        remaining = list(fixed_order(self.agent_order, self.agents))
        actions = self._draw(remaining[1:], data)
        excess = {}
        while remaining:
            agent = remaining.pop(0)
            own = self._update_actor(agent, data, actions, features, coefs)
            if own is not None:
                excess[agent] = own
            if remaining:
                # The new policy acts for those that follow, also in agents with the same network
                actions |= self._draw(self.policy.group_of(agent), data)
        self._update_temperatures(excess)

    @th.no_grad()
    def _draw(self, agents: Sequence[str], data: JointSamples) -> dict[str, th.Tensor]:
        """Samples of the present policies, encoded, ``(batch, n_encoded)`` each."""
        return {agent: self._decide(agent, data)[1] for agent in agents}

    def _update_actor(
        self,
        agent: str,
        data: JointSamples,
        others: dict[str, th.Tensor],
        features: th.Tensor,
        coefs: th.Tensor,
    ) -> th.Tensor | None:
        """
        :param agent: Name of the agent
        :param data: Transitions, of which those at which the agent acted are used
        :param others: Encoded actions of the other agents, ``(batch, n_encoded)`` each
        :param features: Features of the state, ``(batch, n_features)``
        :param coefs: Temperatures, ``(n_agents,)``
        :return: Target entropy minus the one before the step, ``(n_acted, 1)``; None without an
            update
        """
        active = self._active(agent, data)
        if active is not None:
            if active.sum() < 2:
                # A single transition has no variance
                return None
            data, features = data.select(active), features[active]
            others = {name: own[active] for name, own in others.items()}
        with batch_statistics(self.policies[agent]):
            choices, sample = self._decide(agent, data)
        coef = coefs[self.agents.index(agent)]
        self._ascend(agent, choices, others | {agent: sample}, features, data, coef)
        return self._excess(agent, choices, None)
