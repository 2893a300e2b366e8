"""Normalisation of observations and rewards for teams whose agents may be absent."""

import inspect
import os
from collections.abc import Mapping
from typing import IO, Any, TypeAlias

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize

from sb3_happo.envs.spaces import ACTIVE, is_flag
from sb3_happo.envs.state import StateLayout
from sb3_happo.vec_env.normalizer_files import (
    SavedStatistics,
    read_normalizer,
    save_normalizer,
)
from sb3_happo.vec_env.single_agent import VecTeamOfOne
from sb3_happo.vec_env.step_facts import (
    NORMALIZED_REWARDS,
    StepFacts,
    StepInfos,
    initial_facts,
    step_facts,
)

#: Mask of the numbers that an environment shows, by the key of the entry, ``(n, ...)`` each; an
#: entry that is always shown has none
Masks: TypeAlias = dict[str, np.ndarray]
JointObs: TypeAlias = dict[str, np.ndarray]


class Presence:
    """
    Agents whose observations the entries of a joint observation hold.

    :param active: Active mask, ``(n, n_agents)``; None if all agents are active
    :param waiting: Mask of the agents that wait for their turn, ``(n, n_agents)``; None for none
    :param knows_waiting: False if ``waiting`` is unknown
    """

    def __init__(
        self,
        active: np.ndarray | None,
        waiting: np.ndarray | None = None,
        knows_waiting: bool = True,
    ) -> None:
        self.active = active
        self._waiting = waiting
        self._knows_waiting = knows_waiting

    @classmethod
    def of_info(cls, info: Mapping[str, Any]) -> "Presence":
        """
        :param info: Info of one environment
        :return: Agents in its observation, as a batch of one
        """
        active, waiting = info.get("active"), info.get("waiting_agents")
        return cls(
            None if active is None else np.asarray(active)[np.newaxis],
            None if waiting is None else np.asarray(waiting)[np.newaxis],
        )

    def in_state(self, shows_waiting: bool) -> np.ndarray | None:
        """
        :param shows_waiting: True if the critic's state shows the waiting agents
        :return: Mask of the agents that the state shows, ``(n, n_agents)``; None for all
        """
        if self.active is None or (shows_waiting and not self._knows_waiting):
            return None
        if not shows_waiting or self._waiting is None:
            return self.active
        return self.active | self._waiting


class VecNormalizeTeam(VecNormalize):
    """
    SB3's ``VecNormalize`` for teams. The entries of an absent agent (dead, not there yet, or not on
    turn) are zeros, which are no observations: they are left out of the statistics, and they stay
    zeros. This holds for the agents' own entries, and for their numbers in a critic's state that is
    made of observations. With agents that are always active it equals ``VecNormalize``.

    Individual rewards are normalised by statistics of each agent's own discounted returns, in the
    same way as the team's reward. They are in ``info["normalized_agent_rewards"]``, float32
    ``(n_agents,)``, and :class:`~sb3_happo.IPPO` learns from them; ``info["agent_rewards"]`` stay
    as they are.

    The algorithms turn a ``VecNormalize`` into this class (:func:`as_team_normalizer`). Files hold
    no pickles; SB3's ``VecNormalize.load`` does not read them, and :meth:`load` reads SB3's with
    ``trust_pickle=True``.

    :param venv: Joint vectorised environment
    :param args: Arguments of ``VecNormalize``. ``norm_obs_keys`` are by default all Box entries
        except images, action masks and the active mask
    :param kwargs: Keyword arguments of ``VecNormalize``
    """

    def __init__(self, venv: VecEnv, *args: Any, **kwargs: Any) -> None:
        super().__init__(venv, *args, **kwargs)
        self._prepare()

    def _sanity_checks(self) -> None:
        if isinstance(self.observation_space, spaces.Dict) and self.norm_obs_keys is None:
            items = self.observation_space.spaces.items()
            self.norm_obs_keys = [key for key, space in items if is_quantity(key, space)]
        super()._sanity_checks()

    def _prepare(self) -> None:
        """Set the attributes that depend on the environment."""
        action_space = self.venv.action_space
        agents = tuple(action_space.spaces) if isinstance(action_space, spaces.Dict) else ()
        self._n_agents = len(agents)
        self._agent_returns = np.zeros((self.num_envs, self._n_agents))
        self._presence = Presence(None)
        self._last_normalized: Any = None
        # Observation of the last step; SB3 has none before the first reset
        self.old_obs: Any = None
        self._shows_waiting = False
        #: Index of the agent that an entry belongs to, or of the agent of each number in it
        self._owners: dict[str, int | np.ndarray] = {}
        if not agents or not isinstance(self.observation_space, spaces.Dict):
            return
        layout = _state_layout(self.venv)
        self._shows_waiting = layout.shows_waiting
        for key, space in self.observation_space.spaces.items():
            if key in layout.owners:
                owners = _stacked(layout.owners[key], space.shape or ())
                if owners is not None:
                    self._owners[key] = owners
                continue
            for index, agent in enumerate(agents):
                if key == agent or key.startswith(f"{agent}/"):
                    self._owners[key] = index

    # ---------------------------------------------------------------- saving

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        for name in ("_agent_returns", "_presence", "_last_normalized", "_owners"):
            state.pop(name, None)
        return state

    def set_venv(self, venv: VecEnv) -> None:
        """
        Set the environment of a normaliser that was loaded.

        :param venv: Joint vectorised environment
        :raises ValueError: If there is an environment already
        """
        super().set_venv(venv)
        self._prepare()

    def save(self, save_path: str | os.PathLike[str] | IO[bytes]) -> None:
        """
        Save the statistics and settings, without the environment and without pickles. A model's
        file holds them, too, if the model's environment is normalised.

        :param save_path: Path of the file, or an open file
        """
        save_normalizer(self, save_path)

    @staticmethod
    def load(
        load_path: str | os.PathLike[str] | IO[bytes], venv: VecEnv, trust_pickle: bool = False
    ) -> "VecNormalizeTeam":
        """
        Load statistics. Nothing in the file is run.

        :param load_path: Path of a file that :meth:`save` has written, or of a model that was
            trained with these statistics, or an open file
        :param venv: Joint vectorised environment to normalise
        :param trust_pickle: Whether files of earlier versions and of SB3's ``VecNormalize``, which
            are pickles, are loaded. Loading a pickle can run any code that its author has put into
            it
        :return: Normaliser with the statistics of the file
        :raises ValueError: If the file holds something else, is damaged, or is a pickle
        """
        state = read_normalizer(load_path, "VecNormalizeTeam", trust_pickle)
        normalizer = VecNormalizeTeam.__new__(VecNormalizeTeam)
        normalizer.__setstate__(state)
        normalizer.set_venv(venv)
        return normalizer

    @staticmethod
    def load_statistics(
        load_path: str | os.PathLike[str] | IO[bytes], trust_pickle: bool = False
    ) -> SavedStatistics:
        """
        Load statistics to normalise observations without an environment, on a robot for example.

        :param load_path: Path of a file, as for :meth:`load`, or an open file
        :param trust_pickle: Whether pickles are loaded, as for :meth:`load`
        :return: Statistics with ``normalize_obs`` and ``normalize_agent_obs``
        :raises ValueError: If the file holds something else, is damaged, or is a pickle
        """
        return SavedStatistics(read_normalizer(load_path, "VecNormalizeTeam", trust_pickle))

    # ---------------------------------------------------------------- steps and resets

    def reset(self) -> JointObs:
        """
        Start an episode in every environment.

        :return: Normalised joint observation, each entry ``(n_envs, ...)``
        """
        obs: Any = self.venv.reset()
        self.returns = np.zeros(self.num_envs)
        self._agent_returns[:] = 0.0
        presence = Presence(None)
        if self._n_agents:
            facts = initial_facts(self.venv, self._n_agents)
            presence = Presence(facts.active, facts.waiting)
        return self._take(obs, presence)

    def step_wait(self) -> tuple[JointObs, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """
        Wait for the step that ``step_async`` began.

        :return: Normalised joint observation, each entry ``(n_envs, ...)``; normalised team
            rewards, ``(n_envs,)``; dones, ``(n_envs,)``; infos
        """
        obs: Any
        obs, rewards, dones, infos = self.venv.step_wait()
        presence = Presence(None)
        if self._n_agents:
            facts = step_facts(infos, dones, self.venv, self._n_agents)
            presence = Presence(facts.active, facts.waiting)
        obs = self._take(obs, presence)
        self.old_reward = rewards
        if self._n_agents:
            # First, since new statistics begin with those of the team
            self._normalize_agent_rewards(infos, facts)
        if self.training:
            self._update_reward(rewards)
        for index in np.flatnonzero(dones).tolist():
            last = infos[index].get("terminal_observation")
            if last is not None:
                last = self._normalize(last, Presence.of_info(infos[index]))
                infos[index]["terminal_observation"] = last
        self.returns[dones] = 0.0
        self._agent_returns[dones] = 0.0
        return obs, self.normalize_reward(rewards), dones, infos

    def _take(self, obs: Any, presence: Presence) -> JointObs:
        """Update the statistics with the observations of all environments, and normalise them."""
        self.old_obs = obs
        self._presence = presence
        if self.training and self.norm_obs:
            every: Any = self.obs_rms  # statistics of one array for a single agent
            masks = self._masks(presence)
            if isinstance(every, RunningMeanStd):
                every.update(obs)
            else:
                for key, statistics in every.items():
                    _update(statistics, obs[key], masks.get(key))
        self._last_normalized = self._normalize(obs, presence)
        return self._last_normalized

    # ---------------------------------------------------------------- observations

    def normalize_obs(self, obs: Any, active: np.ndarray | None = None) -> Any:
        """
        Normalise an observation without an update of the statistics.

        :param obs: Joint observation of one environment or of a batch
        :param active: Active mask of it, ``(n_agents,)`` or ``(n, n_agents)``, whose absent agents
            keep their zeros. By default the observation's entry "active", or the mask of the last
            step if this is its observation, or else all agents
        :return: Normalised observation, a copy
        """
        return self._normalize(obs, self._presence_in(obs, active, self.old_obs))

    def unnormalize_obs(self, obs: Any, active: np.ndarray | None = None) -> Any:
        """
        Undo the normalisation of an observation, up to the clipping.

        :param obs: Normalised joint observation of one environment or of a batch
        :param active: Active mask of it, as for :meth:`normalize_obs`
        :return: Observation, a copy
        """
        presence = self._presence_in(obs, active, self._last_normalized)
        return _with_zeros(super().unnormalize_obs(obs), self._masks(presence))

    def _normalize(self, obs: Any, presence: Presence) -> Any:
        return _with_zeros(super().normalize_obs(obs), self._masks(presence))

    def _presence_in(self, obs: Any, active: np.ndarray | None, last: Any) -> Presence:
        """Agents in a given observation, where ``last`` is the observation of the last step."""
        if active is None and isinstance(obs, dict) and ACTIVE in obs:
            active = obs[ACTIVE]
        if active is not None:
            mask = np.asarray(active, dtype=bool).reshape(-1, self._n_agents)
            return Presence(mask, knows_waiting=False)
        if isinstance(obs, dict) and isinstance(last, dict) and _are_equal(obs, last):
            return self._presence
        return Presence(None)

    def _masks(self, presence: Presence) -> Masks:
        """Masks of the entries to normalise."""
        masks: Masks = {}
        if presence.active is None:
            return masks
        in_state = presence.in_state(self._shows_waiting)
        for key in self.norm_obs_keys or ():
            owner = self._owners.get(key)
            if isinstance(owner, int):
                n_axes = len(self.observation_space[key].shape)  # type: ignore[index]
                column = presence.active[:, owner]
                masks[key] = column.reshape(-1, *[1] * n_axes)
            elif owner is not None and in_state is not None:
                # Index -1 stands for numbers that come from no agent
                always = np.ones((len(in_state), 1), dtype=bool)
                masks[key] = np.concatenate([in_state, always], axis=1)[:, owner]
        return masks

    # ---------------------------------------------------------------- rewards

    @property
    def agent_ret_rms(self) -> RunningMeanStd:
        """
        :return: Statistics of the agents' own discounted returns, ``(n_agents,)``. They are kept
            with those of the team's returns, which SB3 saves and synchronises
        """
        kept = vars(self.ret_rms)
        if "agents" not in kept:
            own = RunningMeanStd(shape=(self._n_agents,))
            own.mean = np.full(self._n_agents, self.ret_rms.mean)
            own.var = np.full(self._n_agents, self.ret_rms.var)
            own.count = self.ret_rms.count
            kept["agents"] = own
        return kept["agents"]

    def _normalize_agent_rewards(self, infos: list[dict[str, Any]], facts: StepFacts) -> None:
        """Add the normalised individual rewards to the infos and their facts."""
        if not self.norm_reward and not self.training:
            return
        statistics = self.agent_ret_rms
        own = facts.agent_rewards
        # NaN stands for missing rewards, and a faulty reward is reported by the algorithm
        if self.training and np.isfinite(own).all():
            self._agent_returns = self._agent_returns * self.gamma + own
            statistics.update(self._agent_returns)
        if not self.norm_reward:
            return
        scaled = own / np.sqrt(statistics.var + self.epsilon)
        scaled = np.clip(scaled, -self.clip_reward, self.clip_reward).astype(np.float32)
        for info, row in zip(infos, scaled, strict=True):
            info[NORMALIZED_REWARDS] = row
        if isinstance(infos, StepInfos):
            infos.facts = facts._replace(normalized_agent_rewards=scaled)


def is_quantity(key: str, space: spaces.Space) -> bool:
    """
    :param key: Key of the joint observation
    :param space: Space of the entry
    :return: True if its numbers can be normalised: it is neither an image nor a mask
    """
    return isinstance(space, spaces.Box) and not is_image_space(space) and not is_flag(key)


def as_team_normalizer(env: VecEnv) -> None:
    """
    Turn the ``VecNormalize`` around a joint environment, wherever it is in the chain of wrappers,
    into a :class:`VecNormalizeTeam`, in place: the statistics of the caller's object are then
    those of the observations that the agents make. Subclasses of ``VecNormalize`` stay as they are.

    :param env: Vectorised environment
    """
    # Inside a VecTeamOfOne the environments are not joint, though an action may be a dict
    while isinstance(env, VecEnvWrapper) and not isinstance(env, VecTeamOfOne):
        if type(env) is VecNormalize and isinstance(env.venv.action_space, spaces.Dict):
            env.__class__ = VecNormalizeTeam
            env.class_attributes = dict(inspect.getmembers(VecNormalizeTeam))
            env._prepare()
        env = env.venv


def _state_layout(venv: VecEnv) -> StateLayout:
    """Layout of the critic's state; an empty one where the environments do not tell it."""
    try:
        # Asked first, because a worker of SB3's SubprocVecEnv ends after an AttributeError
        if venv.has_attr("state_layout"):
            return venv.get_attr("state_layout", 0)[0]
    except NotImplementedError:
        pass
    return StateLayout({}, shows_waiting=False)


def _stacked(owners: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """Owners of the numbers of stacked frames; None for an entry of another form."""
    if owners.shape == shape:
        return owners
    is_stack = len(shape) == owners.ndim > 0 and owners.shape[:-1] == shape[:-1]
    if not is_stack or shape[-1] % owners.shape[-1]:
        return None
    return np.concatenate([owners] * (shape[-1] // owners.shape[-1]), axis=-1)


def _update(statistics: RunningMeanStd, values: np.ndarray, mask: np.ndarray | None) -> None:
    """
    Update statistics with the numbers that are shown.

    :param statistics: Statistics of an entry
    :param values: Entry, ``(n_envs, ...)``
    :param mask: Mask of the numbers that are shown, of a shape that broadcasts to that of
        ``values``; None for all
    """
    if mask is None or mask.all():
        statistics.update(values)
        return
    if mask.size == len(values):
        shown = values[mask.reshape(-1)]
        if len(shown):
            statistics.update(shown)
        return
    # Numbers of one entry are shown in different numbers of environments
    counts = mask.sum(axis=0)
    divisor = np.maximum(counts, 1)
    mean = np.where(mask, values, 0.0).sum(axis=0) / divisor
    deviations = np.where(mask, values - mean, 0.0)
    variance = np.square(deviations).sum(axis=0) / divisor
    statistics.update_from_moments(mean, variance, counts)


def _with_zeros(obs: Any, masks: Masks) -> Any:
    """Set the numbers that are not shown to zero, in place where the observation is a batch."""
    for key, mask in masks.items():
        shown = mask if obs[key].ndim == mask.ndim else mask[0]
        obs[key] = np.where(shown, obs[key], np.zeros((), obs[key].dtype))
    return obs


def _are_equal(first: JointObs, second: JointObs) -> bool:
    if first.keys() != second.keys():
        return False
    return all(np.array_equal(first[key], second[key]) for key in first)
