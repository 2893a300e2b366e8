"""Rollout of all agents, stored once, on the model's device."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_happo.common.formulas import generalised_advantages
from sb3_happo.common.joint_policy import JointPolicy
from sb3_happo.common.minibatches import TeamBatch, select_rows
from sb3_happo.common.recurrent import pack
from sb3_happo.common.rollout_memory import storage_dtype, stored_keys
from sb3_happo.common.state_critics import MEMORIES
from sb3_happo.common.type_aliases import ActorBatch, CriticBatch, JointStep, RNNStates, Sequences


class FlatRows(Mapping[str, th.Tensor]):
    """
    Observations of all rows of a rollout, each entry ``(n_rows, ...)``. An entry is flattened when
    it is read: the data of one agent take no time for the other agents' entries.

    :param stored: Observations, each entry ``(n_steps, n_envs, ...)``
    """

    def __init__(self, stored: Mapping[str, th.Tensor]) -> None:
        self._stored = stored

    def __getitem__(self, key: str) -> th.Tensor:
        return self._stored[key].flatten(end_dim=1)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


class MultiAgentRolloutBuffer:
    """
    ``n_steps`` of ``n_envs`` environments, for all agents at once, as tensors
    ``(n_steps, n_envs, ...)``.

    There is one buffer for the team, because HAPPO's factor connects the agents' samples row by
    row. The interface follows SB3's ``RolloutBuffer``; it is no subclass, for that class does not
    support Dict action spaces, stores NumPy arrays, and returns samples of a single policy.

    :param buffer_size: ``n_steps``
    :param policy: Team whose rollouts are stored
    :param n_values: Columns of the critic's values: 1, or one per agent
    :param device: Device of the tensors
    :param gae_lambda: Trade-off of bias against variance of the advantages, in [0, 1]
    :param gamma: Discount factor, in [0, 1]
    :param n_envs: Number of environments
    :param chunk_length: Longest sequence of steps for the training of recurrent layers, counted
        from the start of each episode (and rollout); None for no limit
    """

    def __init__(
        self,
        buffer_size: int,
        policy: JointPolicy,
        n_values: int = 1,
        device: th.device | str = "cpu",
        gae_lambda: float = 1.0,
        gamma: float = 0.99,
        n_envs: int = 1,
        chunk_length: int | None = None,
    ) -> None:
        assert isinstance(policy.observation_space, spaces.Dict)
        self.buffer_size = buffer_size
        self.policy = policy
        self.observation_space = policy.observation_space
        self.action_space = policy.action_space
        self.n_values = n_values
        self.device = th.device(device)
        self.gae_lambda = gae_lambda
        self.gamma = gamma
        self.n_envs = n_envs
        self.chunk_length = chunk_length or buffer_size
        self._columns = {agent: column for column, agent in enumerate(policy.agents)}

        self.observations: dict[str, th.Tensor] = {}
        for key in stored_keys(policy):
            space = self.observation_space.spaces[key]
            dtype = storage_dtype(key, space)
            self.observations[key] = self._zeros(*(space.shape or ()), dtype=dtype)
        if policy.agents_read_by_critic:
            memories = policy.critic_observation({}, policy.initial_states(1).pi)[MEMORIES]
            self.observations[MEMORIES] = self._zeros(memories.shape[1])
        for key, shape in policy.further_entries().items():
            self.observations[key] = self._zeros(*shape, dtype=th.bool)
        self.actions: dict[str, th.Tensor] = {}
        self.log_probs: dict[str, th.Tensor] = {}
        for agent, actor in policy.policies.items():
            action_dim = sum(leaf.n_actions for leaf in actor.env_actions.leaves)
            self.actions[agent] = self._zeros(action_dim)
            self.log_probs[agent] = self._zeros()
        self.active = self._zeros(len(policy.agents), dtype=th.bool)
        self.rewards = self._zeros(n_values)
        self.values = self._zeros(n_values)
        self.returns = self._zeros(n_values)
        self.advantages = self._zeros(n_values)
        self.episode_starts = self._zeros()
        #: First steps of sequences, with an episode, a chunk or the rollout
        self.begins = self._zeros(dtype=th.bool)
        self.reset()

    def _zeros(self, *shape: int, dtype: th.dtype = th.float32) -> th.Tensor:
        size = (self.buffer_size, self.n_envs, *shape)
        return th.zeros(size, dtype=dtype, device=self.device)

    def reset(self) -> None:
        """Begin a new rollout; the tensors are used again."""
        self.pos = 0
        self.full = False
        self.begins.fill_(False)
        #: Values as the critic predicted them, where :meth:`clip_values` has changed ``values``
        self.unclipped_values: th.Tensor | None = None
        #: Hidden states before each sequence, in the order of their first rows
        self.states: list[RNNStates] = []
        self._sequence_lengths = np.full(self.n_envs, self.chunk_length)
        self.active.fill_(True)

    def add(
        self,
        obs: dict[str, th.Tensor],
        step: JointStep,
        rewards: th.Tensor,
        episode_starts: np.ndarray,
        active: np.ndarray | None,
        states: RNNStates | None = None,
    ) -> None:
        """
        Append one vectorised step.

        :param obs: Joint observation before the step, each entry ``(n_envs, ...)``
        :param step: Decision of the team
        :param rewards: ``(n_envs, n_values)``
        :param episode_starts: 1 where ``obs`` began an episode, ``(n_envs,)``
        :param active: Active mask of ``obs``, ``(n_envs, n_agents)``; None for all
        :param states: Hidden states before the step, zeros where ``obs`` began an episode
        """
        if states is not None:
            self._begin_sequences(np.asarray(episode_starts, dtype=bool), states)
        read = self.policy.critic_observation(obs, step.states.pi)
        for key, stored in self.observations.items():
            stored[self.pos] = read[key]
        for agent, actions in step.actions.items():
            self.actions[agent][self.pos] = actions
            self.log_probs[agent][self.pos] = step.log_probs[agent]
        self.values[self.pos] = step.values
        self.rewards[self.pos] = rewards
        self.episode_starts[self.pos] = th.as_tensor(episode_starts)
        if active is not None:
            self.active[self.pos] = th.as_tensor(active)
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def _begin_sequences(self, episode_starts: np.ndarray, states: RNNStates) -> None:
        if not (states.pi or states.vf is not None):
            return
        begins = episode_starts | (self._sequence_lengths == self.chunk_length)
        self._sequence_lengths = np.where(begins, 1, self._sequence_lengths + 1)
        if begins.any():
            rows = th.as_tensor(begins, device=self.device)
            self.begins[self.pos] = rows
            pi = {agent: state[rows] for agent, state in states.pi.items()}
            self.states.append(RNNStates(pi, None if states.vf is None else states.vf[rows]))

    def clip_values(self, clip: Callable[[th.Tensor], th.Tensor]) -> None:
        """
        Clip the values, before advantages are computed. The critic's loss compares with its own
        predictions, which are kept.

        :param clip: Function of values ``(n_steps, n_envs, n_values)`` that returns clipped ones
        """
        self.unclipped_values = self.values.clone()
        self.values.copy_(clip(self.values))

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: np.ndarray) -> None:
        """
        Generalised advantage estimation, with TD(lambda) returns as the targets of the critic; see
        :func:`~sb3_happo.common.formulas.generalised_advantages`.

        :param last_values: Values of the observations after the last step, ``(n_envs, n_values)``
        :param dones: True where the last step ended an episode, ``(n_envs,)``
        """
        advantages, values = generalised_advantages(
            self.rewards,
            self.values,
            self.episode_starts,
            last_values,
            th.as_tensor(dones, dtype=th.float32, device=self.device),
            self.gamma,
            self.gae_lambda,
            self.active if self.n_values > 1 else None,
        )
        self.advantages.copy_(advantages)
        self.values.copy_(values)
        th.add(self.advantages, self.values, out=self.returns)

    @property
    def n_rows(self) -> int:
        """
        :return: Number of joint transitions, ``n_steps * n_envs``. Row ``step * n_envs + env`` of
            every flat tensor is the transition of ``env`` at ``step``
        """
        return self.buffer_size * self.n_envs

    def active_rows(self, agent: str) -> th.Tensor | None:
        """
        :param agent: Name of an agent
        :return: Rows at which the agent was alive and on turn, ``(n,)``; None for all rows
        """
        column = self._columns[agent]
        active = self.active[..., column].flatten()  # (n_steps, n_envs) -> (n_rows,)
        return None if bool(active.all()) else active.nonzero().flatten()

    def active_agents(self) -> list[str]:
        """
        :return: Agents that were active at some step of the rollout
        """
        present = self.active.flatten(end_dim=1).any(dim=0).tolist()
        pairs = zip(self.policy.agents, present, strict=True)
        return [agent for agent, is_present in pairs if is_present]

    def agent_advantages(self, agent: str) -> th.Tensor:
        """
        :param agent: Name of an agent
        :return: Advantages of the agent, ``(n_rows,)``; without individual values, the team's
        """
        column = self._columns[agent] if self.n_values > 1 else 0
        return self.advantages[..., column].flatten()

    def _all_rows(self, agent: str, factor: th.Tensor) -> ActorBatch:
        """Batch of all rows in order, with those at which the agent was inactive."""
        observations = FlatRows(self.observations)
        return ActorBatch(
            self.policy.agent_observation(observations, agent),
            self.actions[agent].flatten(end_dim=1),
            self.policy.action_masks(observations, agent),
            self.log_probs[agent].flatten(),
            self.agent_advantages(agent),
            factor,
        )

    def agent_data(self, agent: str, factor: th.Tensor) -> ActorBatch:
        """
        Data for the update of one agent.

        :param agent: Name of an agent
        :param factor: Product of the ratios of the agents updated before, ``(n_rows,)``
        :return: Rows at which the agent was active
        """
        rows, sequences = self.active_rows(agent), None
        if self.policy.policies[agent].memory is not None:
            rows, sequences = self._sequences([states.pi[agent] for states in self.states], rows)
        everything = self._all_rows(agent, factor)
        return select_rows(everything, rows)._replace(rows=rows, sequences=sequences)

    def team_data(self, factor: th.Tensor) -> TeamBatch:
        """
        Data for the joint update of agents that read one another, for
        :func:`~sb3_happo.common.minibatches.aligned_minibatches`.

        :param factor: Weights of the advantages, ``(n_rows,)``
        :return: All rows of all agents, with their active mask
        """
        agents = {agent: self._all_rows(agent, factor) for agent in self.policy.agents}
        return TeamBatch(agents, self.active.flatten(end_dim=1))

    def team_sequences(self) -> tuple[th.Tensor, Sequences]:
        """
        Sequences of all agents with recurrent layers side by side, for agents that read one
        another.

        :return: All rows in the order of the sequences, ``(n_rows,)``; and the sequences, whose
            states are ``(n_sequences, n_agents, ...)``
        """
        pieces = []
        for states in self.states:
            pieces.append(th.stack(list(states.pi.values()), dim=1))
        return self._sequences(pieces)

    def _sequences(
        self, states: list[th.Tensor], active_rows: th.Tensor | None = None
    ) -> tuple[th.Tensor, Sequences]:
        """
        Sequences of the rollout, each of one environment and within one chunk and one episode.

        :param states: Hidden states before each sequence, in pieces ``(n, ...)``
        :param active_rows: Rows that change the hidden states; None for all
        :return: These rows, in the order of the sequences, and the sequences
        """
        numbers = (self.begins.flatten().cumsum(0) - 1).view_as(self.begins)
        # The number of a sequence holds until the next one begins in its environment
        owners = numbers.where(self.begins, -1).cummax(dim=0).values.flatten()
        rows, batch_sizes, present = pack(owners if active_rows is None else owners[active_rows])
        sequences = Sequences(batch_sizes, th.cat(states)[present])
        return rows if active_rows is None else active_rows[rows], sequences

    def critic_data(self) -> CriticBatch:
        """
        Data for the update of the critic.

        :return: All rows
        """
        every_value_counts = self.n_values == 1 or bool(self.active.all())
        keys = self.policy.critic.keys
        values = self.values if self.unclipped_values is None else self.unclipped_values
        data = CriticBatch(
            {key: self.observations[key].flatten(end_dim=1) for key in keys},
            values.flatten(end_dim=1),
            self.returns.flatten(end_dim=1),
            None if every_value_counts else self.active.flatten(end_dim=1),
        )
        if not self.policy.critic.recurrent:
            return data
        states = [states.vf for states in self.states if states.vf is not None]
        rows, sequences = self._sequences(states)
        return select_rows(data, rows)._replace(sequences=sequences)
