"""The rollout of a whole team, laid out once, on the model's device."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_happo.common.critics import MEMORIES
from sb3_happo.common.policies import JointPolicy
from sb3_happo.common.recurrent import owners_of, pack, select
from sb3_happo.common.type_aliases import ActorBatch, CriticBatch, JointStep, RNNStates, Sequences
from sb3_happo.envs.spaces import is_flag

_DTYPES = {np.dtype(np.uint8): th.uint8, np.dtype(np.int8): th.int8, np.dtype(np.int64): th.int64}


def _storage_dtype(key: str, space: spaces.Space) -> th.dtype:
    # VecNormalize makes fractions of whole numbers, and leaves the space's dtype as it is
    quantity = isinstance(space, spaces.Box) and not is_image_space(space) and not is_flag(key)
    return th.float32 if quantity else _DTYPES.get(np.dtype(space.dtype), th.float32)


class MultiAgentRolloutBuffer:
    """
    ``n_steps`` of ``n_envs`` environments, for all agents at once, as tensors ``(n_steps, n_envs, ...)``.

    There is one buffer and not one per agent, because the factor of HAPPO ties the agents' samples together row by row.
    It follows SB3's ``RolloutBuffer`` without being one: that class knows no Dict action spaces, keeps NumPy arrays, and hands
    out samples of a single policy.

    :param buffer_size: ``n_steps``
    :param policy: The team whose rollouts are kept; it says which entries of an observation are whose
    :param n_values: Columns of the critic's values: 1, or one per agent
    :param device: Where the tensors live
    :param gae_lambda: Trade-off of bias against variance of the advantages, in [0, 1]
    :param gamma: Discount factor, in [0, 1]
    :param n_envs: Number of environments
    :param chunk_length: Longest sequence of steps through which a memory is trained, counted from the start of each episode
        (and rollout); None for no limit
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

        def zeros(*shape: int, dtype: th.dtype = th.float32) -> th.Tensor:
            return th.zeros(buffer_size, n_envs, *shape, dtype=dtype, device=self.device)

        self.observations = {
            key: zeros(*(space.shape or ()), dtype=_storage_dtype(key, space))
            for key, space in self.observation_space.spaces.items()
        }
        policies = policy.policies
        if policy.agents_read_by_critic:
            memories = policy.critic_observation({}, policy.initial_states(1).pi)[MEMORIES]
            self.observations[MEMORIES] = zeros(memories.shape[1])
        self.actions = {
            agent: zeros(sum(leaf.n_actions for leaf in actor.leaves))
            for agent, actor in policies.items()
        }
        self.log_probs = {agent: zeros() for agent in policies}
        self.active = zeros(len(policies), dtype=th.bool)
        self.rewards = zeros(n_values)
        self.values = zeros(n_values)
        self.returns = zeros(n_values)
        self.advantages = zeros(n_values)
        self.episode_starts = zeros()
        #: Where a sequence begins, with an episode, a chunk or the rollout
        self.begins = zeros(dtype=th.bool)
        self.reset()

    def reset(self) -> None:
        """Begin a new rollout; the tensors are used again."""
        self.pos = 0
        self.full = False
        self.begins.fill_(False)
        #: What the team remembered before each sequence, in the order of their first rows
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

        :param obs: Joint observation that the team answered, each entry ``(n_envs, ...)``
        :param step: What it answered
        :param rewards: ``(n_envs, n_values)``
        :param episode_starts: Whether ``obs`` began an episode, ``(n_envs,)``
        :param active: Which agents were alive and on turn, ``(n_envs, n_agents)``; None for all
        :param states: What the team remembered before it, with nothing where ``obs`` began an episode
        """
        if states is not None:
            self._begin_sequences(np.asarray(episode_starts, dtype=bool), states)
        seen = self.policy.critic_observation(obs, step.states.pi)
        for key, stored in self.observations.items():
            stored[self.pos] = seen[key]
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
            here = th.as_tensor(begins, device=self.device)
            self.begins[self.pos] = here
            pi = {agent: state[here] for agent, state in states.pi.items()}
            self.states.append(RNNStates(pi, None if states.vf is None else states.vf[here]))

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: np.ndarray) -> None:
        """
        Generalised advantage estimation (Schulman et al. 2016), with TD(lambda) returns as the critic's targets.

        With a value for each agent, the value of a step at which the agent was absent is what followed: the critic never
        learns such steps, and its guess would make death look like an average life.

        :param last_values: Values of what follows the last step, ``(n_envs, n_values)``
        :param dones: Whether the last step ended an episode, ``(n_envs,)``
        """
        next_values = last_values
        next_continues = 1.0 - th.as_tensor(dones, dtype=th.float32, device=self.device).unsqueeze(
            1
        )
        advantage = th.zeros_like(last_values)
        for step in reversed(range(self.buffer_size)):
            target = self.rewards[step] + self.gamma * next_values * next_continues
            if self.n_values > 1:
                self.values[step] = th.where(self.active[step], self.values[step], target)
            delta = target - self.values[step]
            advantage = delta + self.gamma * self.gae_lambda * next_continues * advantage
            self.advantages[step] = advantage
            next_values = self.values[step]
            next_continues = 1.0 - self.episode_starts[step].unsqueeze(1)
        th.add(self.advantages, self.values, out=self.returns)

    @property
    def n_rows(self) -> int:
        """
        :return: Number of joint transitions, ``n_steps * n_envs``; row ``step * n_envs + env`` in every flat tensor
        """
        return self.buffer_size * self.n_envs

    def active_rows(self, agent: str) -> th.Tensor | None:
        """
        :param agent: An agent
        :return: Rows at which it was alive and on turn, or None for all of them
        """
        active = self.active[
            ..., self.policy.agents.index(agent)
        ].flatten()  # (n_steps, n_envs) -> (n_rows,)
        return None if bool(active.all()) else active.nonzero().flatten()

    def agent_advantages(self, agent: str) -> th.Tensor:
        """
        :param agent: An agent
        :return: Its advantages, which without individual values are the team's, ``(n_rows,)``
        """
        column = self.policy.agents.index(agent) if self.n_values > 1 else 0
        return self.advantages[..., column].flatten()

    def agent_data(self, agent: str, factor: th.Tensor) -> ActorBatch:
        """
        Everything an agent learns from in this rollout.

        :param agent: An agent
        :param factor: Product of the ratios of the agents before it, ``(n_rows,)``
        :return: The rows at which it was active
        """
        rows, sequences = self.active_rows(agent), None
        if self.policy.policies[agent].memory is not None:
            rows, sequences = self._sequences([states.pi[agent] for states in self.states], rows)
        flat = {key: stored.flatten(end_dim=1) for key, stored in self.observations.items()}
        data = select_rows(
            ActorBatch(
                self.policy.agent_observation(flat, agent),
                self.actions[agent].flatten(end_dim=1),
                self.policy.action_masks(flat, agent),
                self.log_probs[agent].flatten(),
                self.agent_advantages(agent),
                factor,
            ),
            rows,
        )
        return data._replace(rows=rows, sequences=sequences)

    def _sequences(
        self, states: list[th.Tensor], active_rows: th.Tensor | None = None
    ) -> tuple[th.Tensor, Sequences]:
        """
        Lay out the rollout in sequences, each of one environment and within one chunk and one episode.

        :param states: RecurrentLayers before each sequence, in pieces ``(n, ...)``
        :param active_rows: Rows at which something happened; None for all of them. The memory passes over the others
        :return: These rows, in the order of the sequences, and the sequences
        """
        numbers = (self.begins.flatten().cumsum(0) - 1).view_as(self.begins)
        owners = (
            numbers.where(self.begins, -1).cummax(dim=0).values.flatten()
        )  # until the environment's next one begins
        rows, batch_sizes, present = pack(owners if active_rows is None else owners[active_rows])
        return rows if active_rows is None else active_rows[rows], Sequences(
            batch_sizes, th.cat(states)[present]
        )

    def critic_data(self) -> CriticBatch:
        """
        Everything the critic learns from in this rollout.

        :return: All rows
        """
        every_value_counts = self.n_values == 1 or bool(self.active.all())
        data = CriticBatch(
            {key: self.observations[key].flatten(end_dim=1) for key in self.policy.critic.keys},
            self.values.flatten(end_dim=1),
            self.returns.flatten(end_dim=1),
            None if every_value_counts else self.active.flatten(end_dim=1),
        )
        if not self.policy.critic.recurrent:
            return data
        rows, sequences = self._sequences(
            [states.vf for states in self.states if states.vf is not None]
        )
        return select_rows(data, rows)._replace(sequences=sequences)


def select_rows(batch: Any, rows: th.Tensor | slice | None) -> Any:
    """
    Rows of a batch.

    :param batch: A NamedTuple of tensors, dicts of tensors, and None; its sequences, if any, are left as they are
    :param rows: Indices; None for all rows, without a copy; a slice for some, without a copy
    :return: A batch of the same type
    """
    if rows is None:
        return batch

    def pick(part: PyTorchObs | Sequences | None) -> PyTorchObs | Sequences | None:
        if isinstance(part, dict):
            return {key: value[rows] for key, value in part.items()}
        return part if part is None or isinstance(part, Sequences) else part[rows]

    return type(batch)(*(pick(part) for part in batch))


def divide_sequences(batch: Any, numbers: th.Tensor) -> Iterator[Any]:
    """
    :param batch: A batch with sequences
    :param numbers: To which part each sequence goes, ``(n_sequences,)``
    :return: An iterator over the parts
    """
    owners = owners_of(batch.sequences)
    for number in numbers.unique():
        rows, sequences = select(batch.sequences, (numbers == number)[owners])
        yield select_rows(batch, rows)._replace(sequences=sequences)


def minibatches(batch: Any, batch_size: int | None) -> Iterator[Any]:
    """
    Shuffle a batch and cut it up, as SB3 does; the last piece may be smaller. Sequences stay whole, so that minibatches of
    them have at most about ``batch_size`` rows.

    :param batch: A NamedTuple as for :func:`select_rows`
    :param batch_size: Rows per minibatch; None for all at once
    :return: An iterator over batches of the same type
    """
    n_rows = len(batch[1])
    if batch_size is None or batch_size >= n_rows:
        # In one piece the order has no meaning, so nothing is shuffled or copied
        yield batch
        return
    if batch.sequences is not None:
        lengths = owners_of(batch.sequences).bincount()
        order = th.from_numpy(np.random.permutation(len(lengths))).to(lengths.device)
        numbers = th.empty_like(order)
        numbers[order] = (lengths[order].cumsum(0) - 1) // batch_size
        yield from divide_sequences(batch, numbers)
        return
    for rows in th.from_numpy(np.random.permutation(n_rows)).to(batch[1].device).split(batch_size):
        yield select_rows(batch, rows)


def joint_minibatches(
    data: dict[str, ActorBatch], batch_size: int | None
) -> Iterator[dict[str, ActorBatch]]:
    """
    Minibatches of several agents side by side. An agent that was active less often has fewer of them.

    :param data: Per agent, its rows
    :param batch_size: Rows of each agent per minibatch; None for all at once
    :return: An iterator over dicts of the agents that have rows left
    """
    iterators = {
        agent: minibatches(rows, batch_size) for agent, rows in data.items() if len(rows.advantages)
    }
    while iterators:
        drawn = ((agent, next(iterator, None)) for agent, iterator in iterators.items())
        batch = {agent: rows for agent, rows in drawn if rows is not None}
        iterators = {agent: iterators[agent] for agent in batch}
        if batch:
            yield batch
