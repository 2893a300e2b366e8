"""Base of the algorithms that learn tables."""

import time
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule, safe_mean
from stable_baselines3.common.vec_env import VecEnv

from sb3_happo.common.agent_returns import AgentReturns
from sb3_happo.common.checks import check_env_of_model
from sb3_happo.common.hyperparameters import (
    COUNT,
    LEARNING_RATE,
    SHARE,
    Setting,
    check_settings,
    optional,
    plain_number,
    plain_numbers,
)
from sb3_happo.common.multi_agent_algorithm import MultiAgentAlgorithm
from sb3_happo.common.own_rewards import OwnRewards
from sb3_happo.common.team_spaces import TeamSpaces
from sb3_happo.envs import as_joint_env
from sb3_happo.envs.spaces import as_sampled, joint_action_dtype
from sb3_happo.tabular.situations import Situation, SituationReader, Transition, active_of
from sb3_happo.tabular.state_keys import StateKey
from sb3_happo.tabular.table import Table
from sb3_happo.tabular.table_files import SavedTables
from sb3_happo.vec_env.make import make_from_id
from sb3_happo.vec_env.step_facts import StepFacts, initial_facts, step_facts
from sb3_happo.vec_env.transitions import TransitionWatch

SelfTabular = TypeVar("SelfTabular", bound="TabularAlgorithm")

#: Name that stands for the policy, as the first argument of SB3's algorithms
POLICY = "TabularPolicy"
# Steps of each call of `learn` that are checked for wrappers that change the team's reward only;
# later one in so many
_CHECKED_STEPS = 1_000
_CHECK_INTERVAL = 100


class TabularAlgorithm(SavedTables):
    """
    Base of the algorithms that learn tables, on SB3's ``BaseAlgorithm``. A subclass makes its
    tables, gives the agents' strategies and updates the tables.

    An agent's observation is the key of its state: whole numbers as they are, or the result of
    ``state_key``. The arrays of a table grow with the states that are met.

    :param policy: "TabularPolicy", which may be left out: ``NashQ(env)``
    :param env: PettingZoo or Gymnasium environment, ``JointEnv``, ``VecEnv``, or id
    :param learning_rate: Step size, a number or a schedule of the remaining progress. None:
        ``n ** -visits_exponent`` at the n-th visit of a state with these actions
    :param gamma: Discount factor
    :param visits_exponent: Exponent of the step size that falls with the visits
    :param exploration_fraction: Share of the training over which the exploration rate falls
    :param exploration_initial_eps: Exploration rate at the start: the probability of a random
        action, drawn for each agent and environment
    :param exploration_final_eps: Exploration rate afterwards
    :param initial_value: Value of actions that were never tried
    :param state_key: Function from an agent's observation to a hashable value made of strings,
        numbers, None and tuples; "exact" for the numbers of the observation as they are. None:
        observations of whole numbers, and none else
    :param max_states: Number of states after which a table is full, which is an error
    :param stats_window_size: Episodes over which the log averages
    :param tensorboard_log: Folder of the TensorBoard log, or None
    :param verbose: 0 for no output, 1 for the log, 2 for debug messages
    :param seed: Seed for the pseudo-random generators
    :param device: Not used; for SB3's signature
    :param _init_setup_model: Whether to make the tables
    :raises ValueError: If a space is continuous, a table cannot hold the actions, or a setting is
        not allowed
    """

    settings: ClassVar[dict[str, Setting]] = {
        "learning_rate": optional(LEARNING_RATE),
        "gamma": SHARE,
        "visits_exponent": SHARE,
        "exploration_fraction": SHARE,
        "exploration_initial_eps": SHARE,
        "exploration_final_eps": SHARE,
        "initial_value": Setting("a finite number", lambda value: abs(value) < float("inf")),
        "max_states": COUNT,
    }
    observation_space: spaces.Dict  # type: ignore[assignment]
    action_space: spaces.Dict  # type: ignore[assignment]
    _watch: TransitionWatch | None = None
    _last_transition: int | None = None

    def __init__(
        self,
        policy: Any,
        env: Any = None,
        learning_rate: float | Schedule | None = None,
        gamma: float = 0.99,
        visits_exponent: float = 0.6,
        exploration_fraction: float = 0.5,
        exploration_initial_eps: float = 1.0,
        exploration_final_eps: float = 0.05,
        initial_value: float = 0.0,
        state_key: StateKey = None,
        max_states: int = 1_000_000,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: Any = "cpu",
        _init_setup_model: bool = True,
    ) -> None:
        env = self._env_argument(policy, env)
        super().__init__(
            POLICY,
            env=env,
            learning_rate=0.0 if learning_rate is None else learning_rate,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device="cpu",
            support_multi_env=True,
            seed=seed,
        )
        self.learning_rate = learning_rate  # type: ignore[assignment]
        self.gamma = gamma
        self.visits_exponent = visits_exponent
        self.exploration_fraction = exploration_fraction
        self.exploration_initial_eps = exploration_initial_eps
        self.exploration_final_eps = exploration_final_eps
        #: Probability of a random action at the present progress
        self.exploration_rate = exploration_initial_eps
        self.initial_value = initial_value
        self.state_key = state_key
        self.max_states = max_states
        if _init_setup_model:
            self._setup_model()

    # ---------------------------------------------------------------- set-up

    def _env_argument(self, policy: Any, env: Any) -> Any:
        """Environment among the arguments: ``NashQ(env)`` means ``NashQ("TabularPolicy", env)``."""
        own = type(self).__name__
        if env is None and policy is not None and policy != POLICY:
            policy, env = POLICY, policy
        if policy not in (None, POLICY):
            raise ValueError(
                f"{own} has tables and no networks, and knows no policy {policy!r}; "
                f"leave it out, {own}(env), or pass {POLICY!r}."
            )
        return make_from_id(env) if isinstance(env, str) else env

    def _get_policy_from_name(self, policy_name: str) -> Any:
        # The tables are the policy; SB3 keeps the class for models that it builds
        return type(None)

    @staticmethod
    def _wrap_env(env: Any, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        """
        Turn any environment into a vectorised joint one.

        :param env: PettingZoo or Gymnasium environment, ``JointEnv``, id, or ``VecEnv``
        :param verbose: Verbosity level
        :param monitor_wrapper: Wrapping of a single environment in SB3's ``Monitor``
        :return: ``VecEnv`` with a joint observation and action space
        """
        if isinstance(env, str):
            env = make_from_id(env)
        if not isinstance(env, (VecEnv, gym.Env)):
            # No critic reads the state, and that made of large Discrete observations takes time
            env = as_joint_env(env, state=_no_state)
        return MultiAgentAlgorithm._wrap_env(env, verbose, monitor_wrapper)

    def _setup_model(self) -> None:
        own = type(self).__name__
        if getattr(self, "observation_space", None) is None:
            raise ValueError(f"{own} needs an environment to learn its spaces from: {own}(env).")
        names = [*self.settings, "seed", "_stats_window_size"]
        vars(self).update(plain_numbers({name: getattr(self, name) for name in names}))
        check_settings(vars(self), self.settings)
        self.set_random_seed(self.seed)
        if self.learning_rate is not None:
            self.lr_schedule = FloatSchedule(self.learning_rate)
        self.exploration_schedule = LinearSchedule(
            self.exploration_initial_eps,
            self.exploration_final_eps,
            max(self.exploration_fraction, 1e-9),
        )
        self._team = TeamSpaces(self.observation_space, self.action_space)
        self.reader = SituationReader(self._team, self.state_key, own)
        self._check_team()
        #: Tables by name
        self.tables: dict[str, Table] = self._make_tables()
        self._returns = AgentReturns(self.agents, self.n_envs, self._stats_window_size)

    def set_random_seed(self, seed: int | None = None) -> None:
        """
        Seed the pseudo-random generators of this model, of Python, NumPy, PyTorch and the
        environment.

        :param seed: Seed; None for a random start of the model's own generator
        """
        seed = plain_number(seed)
        super().set_random_seed(seed)
        #: Generator of the random numbers of the training
        seeds = np.random.SeedSequence(seed).spawn(2)
        self.rng = np.random.default_rng(seeds[0])
        #: Generator of the samples of ``predict``, which do not change a training
        self.prediction_rng = np.random.default_rng(seeds[1])

    @property
    def agents(self) -> tuple[str, ...]:
        """
        :return: Names of the agents, in the environment's order
        """
        return self._team.agents

    @property
    def n_actions(self) -> tuple[int, ...]:
        """
        :return: Number of actions of each agent
        """
        return tuple([actions.n for actions in self.reader.actions])

    # ---------------------------------------------------------------- hooks

    def _check_team(self) -> None:
        """Hook: refuse teams that the algorithm cannot learn."""

    def _make_tables(self) -> dict[str, Table]:
        """
        Hook: new tables.

        :return: Tables by name
        """
        raise NotImplementedError

    def _strategies(self, situation: Situation) -> list[np.ndarray]:
        """
        Hook: strategies of the agents.

        :param situation: Situation, known or not
        :return: Probabilities of each agent's actions, ``(n_actions,)``
        """
        raise NotImplementedError

    def _update(self, transition: Transition) -> None:
        """
        Hook: update of the tables with one transition.

        :param transition: Step of one environment
        """
        raise NotImplementedError

    def _begin_episodes(self) -> None:
        """Hook: new episodes begin in all environments, unfinished ones are given up."""

    def _complete(self, situation: Situation, given: Sequence[str]) -> Situation:
        """
        Hook: situation of observations of some agents only.

        :param situation: Situation, with absent agents in the place of the others
        :param given: Agents with an observation
        :return: Situation to look up
        """
        return situation

    # ---------------------------------------------------------------- learning

    def learn(
        self: SelfTabular,
        total_timesteps: float,
        callback: MaybeCallback = None,
        log_interval: int = 100,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfTabular:
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
        obs = self.env.reset()
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

    # ---------------------------------------------------------------- prediction

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: dict[str, np.ndarray] | None = None,
    ) -> tuple[Any, Any]:
        """
        Actions of the agents whose observations are given. In a state that was never met, all legal
        actions have equal probabilities.

        :param observation: ``{agent: observation}`` in the environment's own form, or the
            observation of a ``JointEnv`` or of a vectorised one
        :param state: Not used; returned as it is
        :param episode_start: Not used
        :param deterministic: Most likely actions, of equal ones the first, instead of samples. An
            equilibrium in mixed strategies needs samples
        :param action_masks: ``{agent: mask}``, where masks do not come within the observations
        :return: ``{agent: action}``, or for a batch a structured array with one field per agent;
            and ``state``
        :raises ValueError: If an agent is unknown, or an observation that is needed is missing
        """
        situations, own, batched = self._situations_of(observation, action_masks)
        indices = [self.agents.index(agent) for agent in own]
        numbers = np.empty((len(situations), len(indices)), np.int64)
        for row, situation in enumerate(situations):
            strategies = self._strategies(situation)
            for column, index in enumerate(indices):
                strategy = strategies[index]
                choice = int(strategy.argmax()) if deterministic else draw(strategy, self.prediction_rng)
                numbers[row, column] = choice
        if batched:
            spaces_of_given = {agent: self.action_space.spaces[agent] for agent in own}
            joint = np.empty(len(situations), joint_action_dtype(spaces.Dict(spaces_of_given)))
            for column, (agent, index) in enumerate(zip(own, indices, strict=True)):
                joint[agent] = self.reader.actions[index].values[numbers[:, column]]
            return joint, state
        names = {str(name): name for name in observation}
        actions = {}
        for column, (agent, index) in enumerate(zip(own, indices, strict=True)):
            action_set = self.reader.actions[index]
            value = as_sampled(action_set.space, action_set.values[numbers[0, column]])
            actions[names.get(agent, agent)] = value
        return actions, state

    def action_probabilities(
        self, observation: Any, action_masks: dict[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """
        :param observation: ``{agent: observation}``, or the observation of a ``JointEnv``
        :param action_masks: ``{agent: mask}``, where masks do not come within the observations
        :return: Probabilities of the actions that :meth:`predict` samples, ``{agent:
            (n_actions,)}``, MultiDiscrete actions counted row by row
        :raises ValueError: If it is a batch, or as for :meth:`predict`
        """
        situations, own, batched = self._situations_of(observation, action_masks)
        if batched:
            raise ValueError("action_probabilities takes one observation, not a batch of them.")
        strategies = self._strategies(situations[0])
        return {agent: strategies[self.agents.index(agent)] for agent in own}

    def _situations_of(
        self, observation: Any, action_masks: dict[str, np.ndarray] | None
    ) -> tuple[list[Situation], dict[str, Any], bool]:
        """Situations to look up, own observations by agent, and whether they were a batch."""
        if len(self.agents) == 1 and self._team.is_bare(observation):
            observation = {self.agents[0]: observation}
        if not isinstance(observation, dict):
            raise ValueError(
                f"The observation is {observation!r}; pass a dict {{agent: observation}} of the "
                f"agents {list(self.agents)}."
            )
        situations, own, batched = self.reader.of_agents(observation, action_masks)
        given = list(own)
        completed = [self._complete(situation, given) for situation in situations]
        return completed, own, batched

    # ---------------------------------------------------------------- environment

    def set_env(self, env: Any, force_reset: bool = True) -> None:
        """
        Train on another environment from now on.

        :param env: Environment of any form that the constructor takes, with the same team and
            number of environments
        :param force_reset: Reset of the environment before training
        :raises ValueError: If its team or the number of environments differs
        """
        env = self._wrap_env(env, self.verbose)
        check_env_of_model(env, self.observation_space, self.action_space)
        self._check_n_envs(env)
        super().set_env(env, force_reset)
        self._watch = None

    def _check_n_envs(self, env: VecEnv) -> None:
        if env.num_envs != self.n_envs:
            own = type(self).__name__
            raise ValueError(
                f"The model has {self.n_envs} environments, and {env.num_envs} are given; load it "
                f"with {own}.load(path, env=env) for another number."
            )


def draw(probabilities: np.ndarray, rng: np.random.Generator) -> int:
    """
    :param probabilities: Probabilities, ``(n,)``
    :param rng: Generator
    :return: Index drawn with these probabilities
    """
    point = rng.random()
    index = int(np.searchsorted(np.cumsum(probabilities), point, side="right"))
    # Rounding may leave the sum below 1
    return min(index, int(np.flatnonzero(probabilities)[-1]))


def uniform(n: int, legal: tuple[int, ...] | None) -> np.ndarray:
    """
    :param n: Number of actions
    :param legal: Numbers of the legal ones; None for all
    :return: Equal probabilities of the legal actions, ``(n,)``
    """
    if legal is None:
        return np.full(n, 1.0 / n)
    strategy = np.zeros(n)
    strategy[list(legal)] = 1.0 / len(legal)
    return strategy


def _no_state(env: Any, observations: Any) -> np.ndarray:
    return np.zeros(1, np.float32)
