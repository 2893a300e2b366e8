"""Training of tables: steps of the environments, and the log."""

import time
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import LinearSchedule, safe_mean

from sb3_happo.common.agent_returns import AgentReturns
from sb3_happo.common.own_rewards import OwnRewards
from sb3_happo.envs.spaces import joint_action_dtype
from sb3_happo.tabular.situations import Situation, Transition, active_of
from sb3_happo.tabular.table_prediction import TablePrediction, draw
from sb3_happo.vec_env.step_facts import StepFacts, initial_facts, step_facts
from sb3_happo.vec_env.transitions import TransitionWatch

SelfTraining = TypeVar("SelfTraining", bound="TableTraining")

# Steps of each call of `learn` that are checked for wrappers that change the team's reward only;
# later one in so many
_CHECKED_STEPS = 1_000
_CHECK_INTERVAL = 100


class TableTraining(TablePrediction):
    """
    Part of :class:`~sb3_happo.tabular.tabular_algorithm.TabularAlgorithm` that learns.
    """

    rng: np.random.Generator
    learning_rate: Any
    visits_exponent: float
    exploration_rate: float
    exploration_schedule: LinearSchedule
    _returns: AgentReturns
    _watch: TransitionWatch | None = None
    _last_transition: int | None = None

    # ---------------------------------------------------------------- hooks

    def _update(self, transition: Transition) -> None:
        """
        Hook: update of the tables with one transition.

        :param transition: Step of one environment
        """
        raise NotImplementedError

    def _begin_episodes(self) -> None:
        """Hook: new episodes begin in all environments, unfinished ones are given up."""

    # ---------------------------------------------------------------- learning

    def learn(
        self: SelfTraining,
        total_timesteps: float,
        callback: MaybeCallback = None,
        log_interval: int = 100,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfTraining:
        """
        Train the tables, with one update for every step of every environment.

        :param total_timesteps: Joint environment steps to train for, at least
        :param callback: Callback, called at every step with the state of the algorithm
        :param log_interval: Episodes between two logs
        :param tb_log_name: Name of the run in TensorBoard; the algorithm's by default
        :param reset_num_timesteps: Restart of the count of timesteps; False to continue an earlier
            call
        :param progress_bar: Progress bar (needs tqdm and rich)
        :return: Trained model
        :raises ValueError: If there is no environment, or its rewards do not fit the algorithm
        :raises RuntimeError: If a table is full
        """
        own = type(self).__name__
        if self.env is None:
            raise ValueError(
                f"This {own} model has no environment to learn in; load it with "
                f"{own}.load(path, env=env), or call model.set_env(env) before learn."
            )
        total, callback = self._setup_learn(
            int(total_timesteps), callback, reset_num_timesteps, tb_log_name or own, progress_bar
        )
        self._own_rewards = OwnRewards(self.env, self.agents, own)
        self._start_collecting()
        callback.on_training_start(locals(), globals())
        callback.on_rollout_start()
        while self.num_timesteps < total:
            if not self._collect(callback, log_interval):
                break
        callback.on_rollout_end()
        callback.on_training_end()
        return self

    def _start_collecting(self) -> None:
        """Begin with the present observations, or anew if somebody else has stepped the env."""
        assert self.env is not None
        if self._watch is None or self._watch.env is not self.env:
            self._watch = TransitionWatch(self.env)
            self._last_transition = None
        if self._last_transition == self._watch.last:
            return
        # `_setup_learn` has reset the environment, or somebody else has moved it on
        self._reset_env()

    def _reset_env(self) -> None:
        assert self.env is not None and self._watch is not None
        obs: Any = self.env.reset()
        self._last_obs = obs
        facts = initial_facts(self.env, len(self.agents))
        self._situations = self._read(obs, facts)
        self._active = facts.active
        self._returns.restart()
        self._begin_episodes()
        self._last_transition = self._watch.last

    def _read(self, obs: Any, facts: StepFacts) -> list[Situation]:
        """Situations of all environments."""
        situations = []
        for index in range(self.n_envs):
            active = None if facts.active is None else facts.active[index]
            situations.append(self.reader.of_row(obs, index, active))
        return situations

    def _collect(self, callback: BaseCallback, log_interval: int) -> bool:
        """
        Make one step of all environments, and learn from it.

        :param callback: Callback
        :param log_interval: Episodes between two logs
        :return: False if the callback asked to stop
        """
        env = self.env
        assert env is not None and self._watch is not None
        if self._last_transition != self._watch.last:
            self._reset_env()
        self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
        self.exploration_rate = self.exploration_schedule(self._current_progress_remaining)
        chosen = [self._choose(situation) for situation in self._situations]
        actions = self._env_actions(chosen)
        new_obs: Any
        new_obs, rewards, dones, infos = env.step(actions)
        self._last_transition = self._watch.last
        self.num_timesteps += env.num_envs
        callback.update_locals(locals())
        go_on = callback.on_step()

        facts = step_facts(infos, dones, env, len(self.agents))
        own = self._rewards(rewards, facts)
        self._update_info_buffer(infos, dones)
        self._returns.add(facts.agent_rewards, facts.dones, self._active)
        after = self._read(new_obs, facts)
        for index in range(self.n_envs):
            final = self._after(index, after[index], facts, infos[index])
            self._update(
                Transition(
                    self._situations[index],
                    chosen[index],
                    own[index],
                    final,
                    bool(facts.dones[index]),
                    index,
                )
            )
            self._n_updates += 1
        self._last_obs, self._situations, self._active = new_obs, after, facts.active
        self._count_episodes(int(np.sum(dones)), log_interval)
        return bool(go_on)

    def _after(
        self, index: int, after: Situation, facts: StepFacts, info: dict[str, Any]
    ) -> Situation | None:
        """Situation whose value follows the step; None at the end of a game."""
        if not facts.dones[index]:
            return after
        last = info.get("terminal_observation")
        if not facts.truncated[index] or last is None:
            return None
        return self.reader.of_row(last, None, active_of(info))

    def _choose(self, situation: Situation) -> tuple[int, ...]:
        """Actions of all agents: random ones with the exploration rate, else of the strategies."""
        strategies: list[np.ndarray] | None = None
        actions = []
        for index, legal in enumerate(situation.legal):
            if self.rng.random() < self.exploration_rate:
                n = self.reader.actions[index].n if legal is None else len(legal)
                drawn = int(self.rng.integers(n))
                actions.append(drawn if legal is None else legal[drawn])
                continue
            if strategies is None:
                strategies = self._strategies(situation)
            actions.append(draw(strategies[index], self.rng))
        return tuple(actions)

    def _env_actions(self, chosen: Sequence[tuple[int, ...]]) -> np.ndarray:
        """Structured array of joint actions, ``(n_envs,)``."""
        joint = np.empty(len(chosen), joint_action_dtype(self.action_space))
        for index, agent in enumerate(self.agents):
            numbers = [actions[index] for actions in chosen]
            joint[agent] = self.reader.actions[index].values[numbers]
        return joint

    def _rewards(self, rewards: np.ndarray, facts: StepFacts) -> np.ndarray:
        """Own rewards of the agents, ``(n_envs, n_agents)``."""
        n_steps = self.num_timesteps - self._num_timesteps_at_start
        if n_steps > _CHECKED_STEPS and n_steps // self.n_envs % _CHECK_INTERVAL:
            # The check for wrappers takes a tenth of the time of a step
            normalized = facts.normalized_agent_rewards
            own = facts.agent_rewards if normalized is None else normalized
        else:
            own = self._own_rewards(rewards, facts)
        self._check_rewards(own)
        return own

    def _check_rewards(self, rewards: np.ndarray) -> None:
        """Refuse NaN and infinities."""
        if np.isfinite(rewards).all():
            return
        env, agent = np.argwhere(~np.isfinite(rewards))[0]
        raise ValueError(
            f"The reward of agent {self.agents[agent]!r} is {rewards[env, agent]} (environment "
            f"{env}, after {self.num_timesteps} timesteps); correct the environment's rewards."
        )

    def _step_size(self, visits: float) -> float:
        """
        :param visits: Number of visits of a state and actions, the present one included
        :return: Step size
        """
        if self.learning_rate is None:
            return float(visits**-self.visits_exponent)
        return float(self.lr_schedule(self._current_progress_remaining))

    # ---------------------------------------------------------------- log

    def _count_episodes(self, n_ended: int, log_interval: int | None) -> None:
        before = self._episode_num
        self._episode_num += n_ended
        if log_interval is not None and self._episode_num // log_interval > before // log_interval:
            self.dump_logs()

    def dump_logs(self) -> None:
        """Write the figures of the last episodes to the log."""
        assert self.ep_info_buffer is not None and self.ep_success_buffer is not None
        elapsed = max((time.time_ns() - self.start_time) / 1e9, 1e-9)
        record = self.logger.record
        if len(self.ep_info_buffer) > 0:
            record("rollout/ep_rew_mean", safe_mean([own["r"] for own in self.ep_info_buffer]))
            record("rollout/ep_len_mean", safe_mean([own["l"] for own in self.ep_info_buffer]))
        if len(self.ep_success_buffer) > 0:
            record("rollout/success_rate", safe_mean(self.ep_success_buffer))
        for agent, mean in self._returns.means().items():
            record(f"rollout/{agent}/ep_rew_mean", mean)
        record("rollout/exploration_rate", self.exploration_rate)
        record("train/n_updates", self._n_updates, exclude="tensorboard")
        record("train/n_states", sum(len(table) for table in self.tables.values()))
        record("time/episodes", self._episode_num, exclude="tensorboard")
        record("time/fps", int((self.num_timesteps - self._num_timesteps_at_start) / elapsed))
        record("time/time_elapsed", int(elapsed), exclude="tensorboard")
        record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(step=self.num_timesteps)
