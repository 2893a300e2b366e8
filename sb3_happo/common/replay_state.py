"""State of the collection of transitions between two steps."""

from typing import Any, ClassVar

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import RolloutReturn

from sb3_happo.common.action_noise import TeamActionNoise
from sb3_happo.common.agent_returns import AgentReturns
from sb3_happo.common.bootstrap import Presence
from sb3_happo.common.checks import check_observations
from sb3_happo.common.last_good import LastGood, check_last_outputs
from sb3_happo.common.last_good_updates import LastGoodUpdate
from sb3_happo.common.multi_agent_algorithm import MultiAgentAlgorithm
from sb3_happo.common.replay_buffer import (
    Activity,
    JointReplayBuffer,
    TeamFacts,
    TransitionInfos,
)
from sb3_happo.vec_env.original_observations import OuterNormalizer, outer_normalizer
from sb3_happo.vec_env.step_facts import StepFacts, initial_facts, step_facts
from sb3_happo.vec_env.transitions import TransitionWatch

# Attributes that are not saved
_OF_RUNNING_EPISODES = (
    "_agent_returns",
    "_absent_agents",
    "_presence",
    "_watch",
    "_mark",
    "_outer_normalizer",
)


class _StepMark(BaseCallback):
    """
    Callback that is called before all others, and notes which step of the environment is the
    training's own.
    """

    def __init__(self, watch: TransitionWatch) -> None:
        super().__init__()
        self._watch = watch
        #: Number of the last step of the training
        self.number: int | None = None

    def _on_step(self) -> bool:
        self.number = self._watch.last
        return True


class ReplayState(MultiAgentAlgorithm, OffPolicyAlgorithm):
    """
    State from which an off-policy algorithm continues to collect transitions. Episodes begin anew
    if somebody else has reset or stepped the training environment.
    """

    last_good_class: ClassVar[type[LastGood]] = LastGoodUpdate
    replay_buffer: JointReplayBuffer | None
    action_noise: TeamActionNoise | None
    #: Watch of the training environment, and the number of the last step that training has made
    _watch: TransitionWatch | None = None
    _mark: _StepMark | None = None
    _last_transition: int | None = None
    #: Training environment and its normaliser
    _outer_normalizer: tuple[Any, OuterNormalizer | None] = (None, None)

    @property
    def normalizer(self) -> OuterNormalizer | None:
        """
        :return: ``VecNormalize`` of the training environment, for joint observations; None without
        :raises ValueError: If a wrapper around the ``VecNormalize`` changes observations
        """
        if self._outer_normalizer[0] is not self.env:
            self._outer_normalizer = (self.env, outer_normalizer(self.env))
        return self._outer_normalizer[1]

    def _check_normalisation(self) -> None:
        super()._check_normalisation()
        # Raises an error if observations cannot be stored before normalisation
        _ = self.normalizer

    def _make_agent_log(self) -> None:
        """Prepare the log of the agents' returns."""
        self._agent_returns = AgentReturns(self.agents, self.n_envs, self._stats_window_size)
        self._presence = Presence(None, None)

    def _prepare_collection(self) -> None:
        """Make noise for all environments, and watch the training environment."""
        assert self.env is not None
        self.action_noise = TeamActionNoise.wrap(
            self.action_noise, self.policy.team_spaces.action_space, self.env.num_envs
        )
        if self._watch is None or self._watch.env is not self.env:
            self._watch = TransitionWatch(self.env)

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        before, episodes = self._last_obs, self.ep_info_buffer
        self._prepare_collection()
        result = super()._setup_learn(*args, **kwargs)
        if self.ep_info_buffer is not episodes:
            self._agent_returns.clear()
        if self._last_obs is not before:
            # The environments were reset
            self._begin_episodes(self._last_obs)
        return result

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> RolloutReturn:
        """
        Collect experience as SB3's method of this name, and keep the weights that it is collected
        with, to which a training that fails goes back.

        :param args: Arguments of SB3's ``collect_rollouts``
        :param kwargs: Keyword arguments of it
        :return: Numbers of steps and episodes, and False if the callback asked to stop
        :raises NotFiniteError: If weights are NaN or infinite after the last update
        """
        if self._last_good is not None:
            self._last_good.begin_rollout(self)
        result = super().collect_rollouts(*args, **kwargs)
        if self._last_good is not None:
            self._last_good.end_rollout(self)
        return result

    def _check_result(self) -> None:
        """
        :raises NotFiniteError: If weights, or outputs of the networks, are NaN or infinite
        """
        super()._check_result()
        check_last_outputs(self)

    def _init_callback(self, callback: Any, progress_bar: bool = False) -> BaseCallback:
        assert self._watch is not None
        self._mark = _StepMark(self._watch)
        every = CallbackList([self._mark, super()._init_callback(callback, progress_bar)])
        every.init_callback(self)
        return every

    def _begin_episodes(self, obs: Any) -> None:
        """Continue from the observations ``obs`` that a reset of all environments returned."""
        assert self.env is not None and self._watch is not None
        self._last_obs = obs
        if self.normalizer is not None:
            self._last_original_obs = self.normalizer.original_obs(obs)
        facts = initial_facts(self.env, len(self.agents))
        self._presence = Presence(facts.active, facts.waiting)
        self._last_transition = self._watch.last
        self._agent_returns.restart()
        if self.replay_buffer is not None:
            self.replay_buffer.end_episodes()
        if self.action_noise is not None:
            self.action_noise.reset()
        no_rewards = th.zeros(self.n_envs, 1, device=self.device)
        self._check_step(self._to_tensors(obs), no_rewards, [])

    def _restart_if_moved(self) -> None:
        """Begin new episodes if somebody else has reset or stepped the training environment."""
        assert self.env is not None and self._watch is not None
        if self._watch.last != self._last_transition:
            self._begin_episodes(self.env.reset())

    def _store_transition(  # type: ignore[override]
        self,
        replay_buffer: JointReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: dict[str, np.ndarray],
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """
        Check a transition and store it with the facts of the team.

        :param replay_buffer: Buffer
        :param buffer_action: Raw actions of all agents, ``(n_envs, action_dim)``
        :param new_obs: Joint observation after the step, each entry ``(n_envs, ...)``
        :param reward: Team rewards, ``(n_envs,)``
        :param dones: Mask of the episodes that have ended, ``(n_envs,)``
        :param infos: Infos of the step
        :raises ValueError: If a number is NaN or infinite, or a mask allows nothing
        """
        assert self.env is not None and self._mark is not None
        facts = step_facts(infos, dones, self.env, len(self.agents))
        self._check_step(self._to_tensors(new_obs), th.as_tensor(reward), infos)
        self._agent_returns.add(facts.agent_rewards, facts.dones, self._presence.active)
        activity = self._activity(facts, infos)
        own = self._own_rewards(reward, facts)
        last_obs: Any = self._last_obs
        next_obs = new_obs
        if self.normalizer is not None:
            last_obs = self._last_original_obs
            next_obs = self.normalizer.original_obs(new_obs)
            reward = self.normalizer.original_reward()
            own = self.normalizer.original_agent_rewards(own)
        replay_buffer.add(
            last_obs,
            self._with_last_observations(next_obs, dones, infos),
            buffer_action,
            reward,
            dones,
            TransitionInfos(infos, TeamFacts(own, activity)),
        )
        self._last_obs, self._last_original_obs = new_obs, next_obs
        self._presence = Presence(facts.active, facts.waiting)
        self._last_transition = self._mark.number

    def _with_last_observations(
        self, next_obs: dict[str, np.ndarray], dones: np.ndarray, infos: list[dict[str, Any]]
    ) -> dict[str, np.ndarray]:
        """
        :param next_obs: Joint observation after the step, each entry ``(n_envs, ...)``, with the
            first observations of new episodes
        :param dones: Mask of the episodes that have ended, ``(n_envs,)``
        :param infos: Infos of the step
        :return: Observation with the last observations of the episodes that have ended, before
            normalisation
        """
        ended = []
        for env in np.flatnonzero(dones).tolist():
            if infos[env].get("terminal_observation") is not None:
                ended.append(env)
        if not ended:
            return next_obs
        result = {key: np.array(value) for key, value in next_obs.items()}
        for env in ended:
            last = infos[env]["terminal_observation"]
            if self.normalizer is not None:
                last = self.normalizer.unnormalize_obs(last)
            for key, value in result.items():
                value[env] = last[key]
        return result

    def _own_rewards(self, rewards: np.ndarray, facts: StepFacts) -> np.ndarray:
        """
        Hook: individual rewards to store.

        :param rewards: Team rewards as they arrived, ``(n_envs,)``
        :param facts: Facts of the step
        :return: Individual rewards before normalisation, ``(n_envs, n_agents)``
        """
        return np.asarray(facts.agent_rewards)

    def _activity(self, facts: StepFacts, infos: list[dict[str, Any]]) -> Activity | None:
        """
        :param facts: Facts of the step
        :param infos: Infos of the step, with the last observations of episodes
        :return: Activity of the agents, ``(n_envs, n_agents)``; None if all are active
        """
        n_agents = len(self.agents)
        ended = np.flatnonzero(facts.dones).tolist()
        last = Presence(None, None)
        if ended:
            self._check_last_observations(ended, infos)
            last = Presence.from_infos([infos[env] for env in ended], n_agents)
        before, after = self._presence, Presence(facts.active, facts.waiting)
        if before.active is None and after.active is None and last.active is None:
            return None
        shape = (len(infos), n_agents)
        active, alive = _masks(before, shape)
        next_active, next_alive = _masks(after, shape)
        if ended:
            next_active[ended], next_alive[ended] = _masks(last, (len(ended), n_agents))
        return Activity(active, alive, next_active, next_alive)

    def _check_last_observations(self, envs: list[int], infos: list[dict[str, Any]]) -> None:
        """Refuse NaN and infinities in the last observations of episodes."""
        for env in envs:
            last = infos[env].get("terminal_observation")
            if last is not None:
                rows = {key: np.asarray(value)[np.newaxis] for key, value in last.items()}
                check_observations(self._to_tensors(rows), [env], self.num_timesteps)

    def dump_logs(self) -> None:
        """Write the log, with the mean return of each agent's own rewards."""
        for agent, value in self._agent_returns.means().items():
            self.logger.record(f"rollout/{self._log_names[agent]}/ep_rew_mean", value)
        super().dump_logs()

    def _saved_attribute(self, name: str, value: Any) -> Any:
        own = super()._saved_attribute(name, value)
        # The user's noise, of which those of the environments are made
        return own.setting if isinstance(own, TeamActionNoise) else own

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), *_OF_RUNNING_EPISODES]


def _masks(presence: Presence, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """
    :param presence: State of the agents in a batch of observations
    :param shape: ``(n, n_agents)``
    :return: Masks of the active agents, and of those that are alive
    """
    if presence.active is None:
        return np.ones(shape, dtype=bool), np.ones(shape, dtype=bool)
    active = np.array(presence.active, dtype=bool)
    waiting = presence.waiting
    return active, active.copy() if waiting is None else active | waiting
