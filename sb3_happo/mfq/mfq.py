"""MFQ: mean-field Q-learning."""

import torch as th

from sb3_happo.common.boltzmann import entropy
from sb3_happo.common.off_policy_learning import mean_over
from sb3_happo.common.replay_buffer import JointSamples
from sb3_happo.mfq.mean_field_algorithm import MeanFieldAlgorithm


class MFQ(MeanFieldAlgorithm):
    """
    Mean-field Q-learning (Yang et al. 2018, "Mean Field Multi-Agent Reinforcement Learning", arXiv
    1802.05438): each agent learns the values of its own actions, given its observation and the mean
    action of its neighbours, from its own reward. Agents whose spaces are equal share one network.

    The policy is Boltzmann's, in training and in ``predict``: an action's probability is
    proportional to ``exp(Q / temperature)``. (``deterministic=True`` takes the highest value.)
    Targets hold the value of this policy, ``sum_a pi(a) Q(a)``, not a maximum.

    Agents decide given the mean action of the step before, and at the start of an episode given the
    running mean of the first steps in training. With ``n_iterations`` this is a start from which
    mean actions and policies are iterated, towards a fixed point of both.

    Dead agents learn nothing and are in no mean action. Agents that wait for their turn are in no
    mean action, and have the value of their policy.

    :param policy: Name of a policy, "MlpPolicy", "CnnPolicy" or "MultiInputPolicy", or a class
    :param env: Environment of any form that ``HAPPO`` takes, whose actions are not continuous
    :param learning_rate: Learning rate, >= 0, constant or a schedule
    :param buffer_size: Number of transitions in the replay buffer, of all environments together
    :param learning_starts: Number of timesteps of random actions before the first update
    :param batch_size: Transitions per gradient step, each with all agents
    :param tau: Weight of the networks in each update of their target networks, in [0, 1]
    :param gamma: Discount factor
    :param train_freq: Steps of each environment between two updates
    :param gradient_steps: Gradient steps per update; -1 for as many as transitions were collected
    :param neighbors: "all" for all other agents; a radius, with ``positions``; an adjacency matrix
        of zeros and ones, ``(n_agents, n_agents)``; ``{agent: [neighbours]}``; or a function of an
        agent's name that returns its neighbours, called once for each agent
    :param positions: Positions for a radius: columns of each agent's own observation; fixed
        coordinates, ``(n_agents, n_dims)``; or a function of the joint observation, tensors
        ``(batch, ...)`` by key, that returns ``(batch, n_agents, n_dims)``
    :param temperature: Temperature of the policy in units of reward, > 0, constant or a schedule of
        the remaining progress
    :param n_iterations: Iterations of mean actions and policies before a decision and in targets; 0
        for the mean action of the step before
    :param iteration_rate: Weight of the new mean action in each iteration, in (0, 1]. Where agents
        avoid what the others do, a small weight keeps the iteration from oscillating
    :param start_rate: Weight of each first step in the running mean of mean actions, in [0, 1]
    :param target_update_interval: Timesteps between two updates of the target networks
    :param exploration_initial_eps: Probability of a random action at the start, beside the
        exploration of the Boltzmann policy
    :param exploration_final_eps: Probability of a random action at the end
    :param policy_kwargs: As for ``IQL``, with ``share_parameters=True`` by default
    :param kwargs: As for ``IQL``; with ``double_q`` the networks choose the policy of the targets
    :raises ValueError: If a neighbour is unknown, or the team is one agent
    :raises TypeError: If an action space has a continuous part
    """

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """
        Gradient steps of the values: the loop of Algorithm 1 over minibatches.

        :param gradient_steps: Number of gradient steps
        :param batch_size: Transitions per gradient step
        """
        self._begin_training()
        for _ in range(gradient_steps):
            data = self._sample(batch_size)
            # Equation 8: mean action of the neighbours
            means = self._mean_actions(data)
            # Equations 10 and 12: v(s') = sum_a pi(a | s', mean') Q'(s', a, mean')
            next_values = self._next_policy_values(data, means)
            # y = r + gamma v(s')
            targets = data.agent_rewards + (1.0 - data.dones) * data.discounts * next_values
            # Minimise the error of Q(s, a, mean)
            self._update_values(data, means, targets)
        self._n_updates += gradient_steps
        self._log_training()

    @th.no_grad()
    def _next_policy_values(self, data: JointSamples, means: th.Tensor) -> th.Tensor:
        """
        :param data: Transitions
        :param means: Mean actions of the steps, ``(batch, n_agents, n_mean)``
        :return: Target networks' values of the policies' next actions, ``(batch, n_agents)``
        """
        policy, observations = self.policy, data.next_observations
        active = None if data.activity is None else data.activity.next_active
        means = policy.settle(means, observations, active, targets=True)
        values = policy.action_values(observations, means, targets=True)
        probabilities = policy.probabilities(observations, means, targets=not self.double_q)
        columns = means.new_empty(means.shape[:2])
        rows = zip(policy.group_indices, values, probabilities, strict=True)
        for indices, own, shares in rows:
            columns[:, indices] = (own * shares).sum(dim=2).T
        # A dead agent gets no further rewards
        return columns if data.activity is None else columns * data.activity.next_alive

    def _update_values(self, data: JointSamples, means: th.Tensor, targets: th.Tensor) -> None:
        """
        Fit the values of each group of agents to targets by a gradient step.

        :param data: Transitions
        :param means: Mean actions of the steps, ``(batch, n_agents, n_mean)``
        :param targets: Targets of the values, ``(batch, n_agents)``
        """
        policy = self.policy
        values = policy.action_values(data.observations, means)
        with th.no_grad():
            shares = self._probabilities(data, means, values)
        actions = policy.encoded_by_group(data.actions)
        losses = {}
        rows = zip(policy.groups, policy.group_indices, values, actions, shares, strict=True)
        for group, indices, own, taken, probabilities in rows:
            active = alive = counts = None
            if data.activity is not None:
                active = data.activity.active[:, indices].T
                alive = data.activity.alive[:, indices].T
                counts = alive.flatten()
                # The action of an agent that waits has no effect
                taken = taken.where(active.unsqueeze(2), probabilities)
            q_values = (own * taken).sum(dim=2)  # (n_group, batch)
            errors = self._losses(q_values, targets[:, indices].T)
            loss = mean_over(errors.flatten(), counts, dim=0)
            if alive is None or bool(alive.any()):
                losses[group[0]] = loss
            self._record("train/loss", loss)
            self._record("train/policy_entropy", entropy(probabilities).mean())
            self._record_agents("q_value", group, mean_over(q_values, active, dim=1))
        self._step_on_values(losses)

    def _probabilities(
        self, data: JointSamples, means: th.Tensor, values: list[th.Tensor]
    ) -> list[th.Tensor]:
        """
        Hook: present policies.

        :param data: Transitions
        :param means: Mean actions of the steps, ``(batch, n_agents, n_mean)``
        :param values: Values of the options of each group
        :return: Probabilities of the options of each group, ``(n_group, batch, n_options)``
        """
        pairs = zip(self.policy.groups, values, strict=True)
        return [self.policy.boltzmann(own, group[0]) for group, own in pairs]

    def _step_on_values(self, losses: dict[str, th.Tensor]) -> None:
        """
        Hook: gradient steps of the values.

        :param losses: Loss of each group that was alive, by its first agent
        """
        for agent, loss in losses.items():
            self._descend(loss, self.policies[agent].optimizer, f"agent {agent!r}")
