"""Base of the algorithms that learn tables."""

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule
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
from sb3_happo.common.team_spaces import TeamSpaces
from sb3_happo.envs import as_joint_env
from sb3_happo.tabular.situations import SituationReader
from sb3_happo.tabular.state_keys import StateKey
from sb3_happo.tabular.table import Table
from sb3_happo.tabular.table_training import TableTraining
from sb3_happo.vec_env.make import make_from_id

#: Name that stands for the policy, as the first argument of SB3's algorithms
POLICY = "TabularPolicy"


class TabularAlgorithm(TableTraining):
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
        self.learning_rate = learning_rate
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

    # ---------------------------------------------------------------- hooks

    def _check_team(self) -> None:
        """Hook: refuse teams that the algorithm cannot learn."""

    def _make_tables(self) -> dict[str, Table]:
        """
        Hook: new tables.

        :return: Tables by name
        """
        raise NotImplementedError

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


def _no_state(env: Any, observations: Any) -> np.ndarray:
    return np.zeros(1, np.float32)
