"""Replay buffer of a team."""

from collections.abc import Collection, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize

from sb3_happo.common.distributions import action_leaves
from sb3_happo.common.replay_entries import EntryArray, entry_dtype
from sb3_happo.common.replay_rows import NumberedRows
from sb3_happo.vec_env.original_observations import OuterNormalizer


class Activity(NamedTuple):
    """
    Activity of the agents before and after a step. Agents that are alive and not active wait for
    their turn.

    :param active: Mask of the agents that acted, ``(batch, n_agents)``
    :param alive: Mask of the agents that acted or waited, ``(batch, n_agents)``
    :param next_active: Mask of the agents that act next, ``(batch, n_agents)``
    :param next_alive: Mask of the agents that act or wait next, ``(batch, n_agents)``
    """

    active: Any
    alive: Any
    next_active: Any
    next_alive: Any


class TeamFacts(NamedTuple):
    """
    Facts of a step that a team's replay buffer stores beside SB3's.

    :param agent_rewards: Individual rewards before normalisation, ``(n_envs, n_agents)``; NaN where
        the environment gives none
    :param activity: Activity of the agents, masks of ``(n_envs, n_agents)``; None if all agents
        are active before and after the step
    """

    agent_rewards: np.ndarray
    activity: Activity | None = None


class TransitionInfos(list[dict[str, Any]]):
    """
    Infos of a step on their way through SB3's ``_store_transition`` to the buffer.

    :param infos: Info of each environment
    :param facts: Facts of the step
    """

    def __init__(self, infos: Sequence[dict[str, Any]], facts: TeamFacts) -> None:
        super().__init__(infos)
        self.facts = facts


class JointSamples(NamedTuple):
    """
    Joint transitions of a team.

    :param observations: Joint observations, ``(batch, ...)`` each
    :param actions: Raw actions of all agents side by side, ``(batch, action_dim)``
    :param next_observations: Joint observations after ``n_steps`` steps, or at the end of the
        episode, ``(batch, ...)`` each
    :param dones: 1 where the episode terminated, not where a time limit cut it off, ``(batch, 1)``
    :param rewards: Team rewards, over several steps discounted and added, ``(batch, 1)``
    :param agent_rewards: Individual rewards, added in the same way, ``(batch, n_agents)``
    :param discounts: Factor of the value of the next observation, ``(batch, 1)``
    :param activity: Activity of the agents, masks of ``(batch, n_agents)``; None if all agents are
        always active
    """

    observations: dict[str, th.Tensor]
    actions: th.Tensor
    next_observations: dict[str, th.Tensor]
    dones: th.Tensor
    rewards: th.Tensor
    agent_rewards: th.Tensor
    discounts: th.Tensor
    activity: Activity | None

    def select(self, rows: th.Tensor) -> "JointSamples":
        """
        :param rows: Mask or indices of the transitions to take
        :return: These transitions
        """
        fields: list[Any] = []
        for value in self:
            if isinstance(value, dict):
                fields.append({key: own[rows] for key, own in value.items()})
            elif isinstance(value, Activity):
                fields.append(Activity(*(own[rows] for own in value)))
            else:
                fields.append(None if value is None else value[rows])
        return JointSamples(*fields)


class JointReplayBuffer(NumberedRows):
    """
    Replay buffer of a team, with the agents' own rewards and activity, and n-step returns.

    Like SB3's buffers it draws transitions with replacement, keeps time limits apart from
    terminations, and normalises observations and rewards when they are drawn. With ``n_steps`` > 1
    the returns are those of SB3's ``NStepReplayBuffer``.

    :param buffer_size: Number of transitions, of all environments together
    :param observation_space: Joint observation space
    :param action_space: Joint action space, one entry per agent
    :param device: Device of the samples
    :param n_envs: Number of environments
    :param optimize_memory_usage: Not supported
    :param handle_timeout_termination: Time limits apart from terminations
    :param n_steps: Number of steps whose rewards are added, >= 1
    :param gamma: Discount factor
    :param keys: Entries of the joint observation to store; None for all
    :raises ValueError: If ``optimize_memory_usage`` is set
    """

    optional: ClassVar[frozenset[str]] = frozenset(("activity",))

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Dict,
        action_space: spaces.Dict,
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        n_steps: int = 1,
        gamma: float = 0.99,
        keys: Sequence[str] | None = None,
    ) -> None:
        if optimize_memory_usage:
            raise ValueError(
                "optimize_memory_usage=True is not supported by a team's replay buffer, which "
                "keeps time limits apart from terminations; reduce buffer_size instead."
            )
        self.team_action_space = action_space
        self.agents = tuple(action_space.spaces)
        n_columns = 0
        for space in action_space.spaces.values():
            n_columns += sum(leaf.n_actions for leaf in action_leaves(space))
        # SB3's base class knows no Dict of actions
        raw_space = spaces.Box(-1.0, 1.0, (n_columns,))
        super(ReplayBuffer, self).__init__(
            max(buffer_size // n_envs, 1), observation_space, raw_space, device, n_envs
        )
        self.optimize_memory_usage = False
        self.handle_timeout_termination = handle_timeout_termination
        self.n_steps = n_steps
        self.gamma = gamma
        self.keys = list(observation_space.spaces if keys is None else keys)
        self._allocate()

    def _allocate(self) -> None:
        shape = (self.buffer_size, self.n_envs)
        self.entries = []
        assert isinstance(self.observation_space, spaces.Dict)
        by_dtype: dict[np.dtype, list[str]] = {}
        for key in self.keys:
            dtype = entry_dtype(key, self.observation_space.spaces[key])
            by_dtype.setdefault(dtype, []).append(key)
        for dtype, keys in by_dtype.items():
            self.entries.append(EntryArray(keys, self.observation_space, dtype, *shape))
        self.actions = np.zeros((*shape, self.action_dim), np.float32)
        self.rewards = np.zeros(shape, np.float32)
        self.agent_rewards = np.zeros((*shape, len(self.agents)), np.float32)
        self.dones = np.zeros(shape, np.float32)
        self.timeouts = np.zeros(shape, np.float32)
        #: Masks in the order of :class:`Activity`, ``(size, n_envs, 4, n_agents)``; None as long as
        #: all agents have been active at all steps
        self.activity: np.ndarray | None = None

    # ---------------------------------------------------------------- writing

    def add(  # type: ignore[override]
        self,
        obs: dict[str, np.ndarray],
        next_obs: dict[str, np.ndarray],
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """
        Store one transition of every environment.

        :param obs: Joint observation, each entry ``(n_envs, ...)``
        :param next_obs: Joint observation after the step; of an episode that has ended its last one
        :param action: Raw actions of all agents side by side, ``(n_envs, action_dim)``
        :param reward: Team rewards, ``(n_envs,)``
        :param done: Mask of the episodes that have ended, ``(n_envs,)``
        :param infos: Infos of the step; :class:`TransitionInfos` carry the team's facts. Without
            them all agents are active, and their rewards are the info's ``"agent_rewards"``
        """
        facts = getattr(infos, "facts", None)
        if not isinstance(facts, TeamFacts):
            missing = np.full(len(self.agents), np.nan, np.float32)
            facts = TeamFacts(np.stack([info.get("agent_rewards", missing) for info in infos]))
        position = self.pos
        for entries in self.entries:
            entries.write(position, obs, next_obs)
        self.actions[position] = action
        self.rewards[position] = reward
        self.agent_rewards[position] = facts.agent_rewards
        self.dones[position] = done
        if self.handle_timeout_termination:
            limits = [info.get("TimeLimit.truncated", False) for info in infos]
            self.timeouts[position] = limits
        self._add_activity(facts.activity)
        self.n_added += 1
        self.pos += 1
        if self.pos == self.buffer_size:
            self.full = True
            self.pos = 0

    def _add_activity(self, activity: Activity | None) -> None:
        if activity is not None:
            self._allocate_activity()
        if self.activity is not None:
            masks = 1 if activity is None else np.stack(activity, axis=1)
            self.activity[self.pos] = masks

    def _allocate_activity(self) -> None:
        if self.activity is None:
            shape = (self.buffer_size, self.n_envs, len(Activity._fields), len(self.agents))
            self.activity = np.ones(shape, dtype=bool)

    def end_episodes(self) -> None:
        """
        Cut off the running episodes after the last stored step, as a time limit does: the
        environments were reset by somebody else, and n-step returns must not lead across.
        """
        if not (self.full or self.pos):
            return
        last = self.pos - 1
        self.timeouts[last] = np.maximum(self.timeouts[last], 1.0 - self.dones[last])
        self.dones[last] = 1.0

    # ---------------------------------------------------------------- rows in files

    def arrays(self) -> dict[str, np.ndarray]:
        arrays = {
            "actions": self.actions,
            "rewards": self.rewards,
            "agent_rewards": self.agent_rewards,
            "dones": self.dones,
            "timeouts": self.timeouts,
        }
        for index, entries in enumerate(self.entries):
            arrays[f"observations.{index}"] = entries.observations
            arrays[f"next_observations.{index}"] = entries.next_observations
        if self.activity is not None:
            arrays["activity"] = self.activity
        return arrays

    def allocate(self, names: Collection[str]) -> None:
        if "activity" in names:
            self._allocate_activity()

    def forget(self, origin: int = 0) -> None:
        super().forget(origin)
        self.activity = None

    # ---------------------------------------------------------------- reading

    def active_agents(self) -> list[str]:
        """
        :return: Agents that were active at some stored step
        """
        if self.activity is None:
            return list(self.agents)
        present: np.ndarray = np.any(self.activity[: self.size(), :, 0], axis=(0, 1))
        return [agent for agent, own in zip(self.agents, present, strict=True) if own]

    def sample(  # type: ignore[override]
        self, batch_size: int, env: VecNormalize | OuterNormalizer | None = None
    ) -> JointSamples:
        """
        Draw transitions, with replacement.

        :param batch_size: Number of transitions
        :param env: Normaliser of observations and rewards, if any
        :return: Transitions
        """
        if isinstance(env, VecNormalize):
            env = OuterNormalizer(env, env)
        return super(ReplayBuffer, self).sample(batch_size, env)  # type: ignore[arg-type]

    def _get_samples(  # type: ignore[override]
        self, batch_inds: np.ndarray, env: OuterNormalizer | None = None
    ) -> JointSamples:
        # In SB3's order of random numbers
        env_indices = np.random.randint(0, high=self.n_envs, size=(len(batch_inds),))
        rows = batch_inds * self.n_envs + env_indices
        last_rows = rows
        if self.n_steps == 1:
            rewards = self._normalized_rewards(self._take(self.rewards, rows), env)[:, np.newaxis]
            own = self._own_rewards(self._take(self.agent_rewards, rows), env)
            discounts = np.full((len(rows), 1), self.gamma, np.float32)
            dones = self._take(self.dones, rows) * (1.0 - self._take(self.timeouts, rows))
        else:
            rewards, own, discounts, dones, last_rows = self._n_step_returns(
                batch_inds, env_indices, env
            )
        activity = self._activity(rows, last_rows)
        masks = (None, None) if activity is None else (activity.active, activity.next_active)
        return JointSamples(
            self._observations(rows, False, masks[0], env),
            self._to_tensor(self._take(self.actions, rows)),
            self._observations(last_rows, True, masks[1], env),
            self._to_tensor(dones[:, np.newaxis]),
            self._to_tensor(rewards),
            self._to_tensor(own),
            self._to_tensor(discounts),
            None if activity is None else Activity(*map(self._to_tensor, activity)),
        )

    def _take(self, array: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Rows ``step * n_envs + env`` of an array ``(size, n_envs, ...)``, as a copy."""
        return np.take(array.reshape(-1, *array.shape[2:]), rows, axis=0)

    def _to_tensor(self, array: np.ndarray) -> th.Tensor:
        # The arrays are copies already
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        return th.as_tensor(array, device=self.device)

    def _activity(self, rows: np.ndarray, last_rows: np.ndarray) -> Activity | None:
        if self.activity is None:
            return None
        first, last = self._take(self.activity, rows), self._take(self.activity, last_rows)
        return Activity(first[:, 0], first[:, 1], last[:, 2], last[:, 3])

    def _observations(
        self, rows: np.ndarray, of_next: bool, active: Any, env: OuterNormalizer | None
    ) -> dict[str, th.Tensor]:
        """Observations at rows, normalised, as tensors."""
        obs: Any = {}
        for entries in self.entries:
            obs.update(entries.read(rows, of_next))
        if env is not None:
            obs = self._normalized(obs, active, env)
        return {key: self._to_tensor(obs[key]) for key in self.keys}

    def _normalized(self, obs: dict[str, np.ndarray], active: Any, env: OuterNormalizer) -> Any:
        # The normaliser expects all its entries, of which some may not be stored
        assert isinstance(self.observation_space, spaces.Dict)
        n_rows = len(next(iter(obs.values())))
        for key in env.norm_obs_keys:
            if key not in obs:
                shape = self.observation_space.spaces[key].shape or ()
                obs[key] = np.zeros((n_rows, *shape), np.float32)
        return env.normalize_obs(obs, active)

    def _normalized_rewards(self, rewards: np.ndarray, env: OuterNormalizer | None) -> np.ndarray:
        """Team rewards, normalised."""
        return rewards if env is None else env.normalize_reward(rewards)

    def _own_rewards(self, own: np.ndarray, env: OuterNormalizer | None) -> np.ndarray:
        """Individual rewards ``(..., n_agents)``, normalised by the agents' own statistics."""
        return own if env is None else env.normalize_agent_rewards(own)

    def _n_step_returns(
        self, batch_inds: np.ndarray, env_indices: np.ndarray, env: OuterNormalizer | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """
        Returns over ``n_steps`` steps, which end with the episode and at the newest step.

        :param batch_inds: Indices of the first steps, ``(batch,)``
        :param env_indices: Indices of the environments, ``(batch,)``
        :param env: Normaliser of rewards
        :return: Returns ``(batch, 1)``, individual returns ``(batch, n_agents)``, discounts
            ``(batch, 1)``, terminations ``(batch,)``, and the rows of the last steps ``(batch,)``
        """
        newest = (self.pos - 1) % self.buffer_size
        indices, counts = window(self.dones, batch_inds, env_indices, self.n_steps, newest)
        rows = indices * self.n_envs + env_indices[:, np.newaxis]  # (batch, n_steps)
        weights = self.gamma ** np.arange(self.n_steps, dtype=np.float32) * counts
        rewards = self._normalized_rewards(self._take(self.rewards, rows), env) * weights
        own = self._own_rewards(self._take(self.agent_rewards, rows), env)
        own = (own * weights[:, :, np.newaxis]).sum(axis=1)
        lengths = counts.sum(axis=1)
        discounts = self.gamma ** lengths[:, np.newaxis].astype(np.float32)
        last_rows = rows[np.arange(len(rows)), lengths - 1]
        dones = self._take(self.dones, last_rows) * (1.0 - self._take(self.timeouts, last_rows))
        return rewards.sum(axis=1, keepdims=True), own, discounts, dones, last_rows


def window(
    dones: np.ndarray,
    batch_inds: np.ndarray,
    env_indices: np.ndarray,
    n_steps: int,
    newest: int,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Steps whose rewards are added to a return: ``n_steps``, or fewer at the end of an episode and
    at the newest step, after which older episodes stand in the buffer.

    :param dones: Ends of episodes, ``(size, n_envs)``
    :param batch_inds: Indices of the first steps, ``(batch,)``
    :param env_indices: Indices of the environments, ``(batch,)``
    :param n_steps: Largest number of steps
    :param newest: Index of the newest step
    :return: Indices of the steps, and mask of those that count, both ``(batch, n_steps)``
    """
    indices = (batch_inds[:, np.newaxis] + np.arange(n_steps)) % len(dones)
    ends = (dones[indices, env_indices[:, np.newaxis]] > 0) | (indices == newest)
    # A step counts if no step before it was an end
    counts = np.ones_like(ends)
    counts[:, 1:] = ~np.logical_or.accumulate(ends[:, :-1], axis=1)
    return indices, counts
