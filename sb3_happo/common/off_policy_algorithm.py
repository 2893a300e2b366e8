"""Training loop of the off-policy algorithms: transitions of a team, and critics of actions."""

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import MaybeCallback, Schedule, TrainFrequencyUnit
from stable_baselines3.common.utils import FloatSchedule

from sb3_happo.common.action_noise import NoiseSetting, TeamActionNoise
from sb3_happo.common.checks import describe_masks
from sb3_happo.common.critic_choice import rewards_differ
from sb3_happo.common.hyperparameters import (
    COUNT,
    LEARNING_RATE,
    POSITIVE,
    SHARE,
    Setting,
    optional,
)
from sb3_happo.common.last_good import check_last_outputs
from sb3_happo.common.off_policy_learning import OffPolicyLearning
from sb3_happo.common.off_policy_policy import OffPolicyJointPolicy
from sb3_happo.common.random_actions import RandomActions
from sb3_happo.common.replay_buffer import JointReplayBuffer
from sb3_happo.common.replay_checks import (
    check_buffer_class,
    check_learning_starts,
    check_loaded_buffer,
    check_policy_name,
    refuse_sde,
)
from sb3_happo.common.replay_files import (
    check_saved_team,
    fill_replay_buffer,
    read_replay_buffer,
)
from sb3_happo.common.replay_memory import check_replay_memory, replay_bytes
from sb3_happo.common.rollout_memory import describe
from sb3_happo.common.safe_files import SafeFile
from sb3_happo.common.saved_files import Location
from sb3_happo.common.threads import torch_threads
from sb3_happo.envs import check_team_spaces

SelfOffPolicy = TypeVar("SelfOffPolicy", bound="MultiAgentOffPolicyAlgorithm")


class MultiAgentOffPolicyAlgorithm(OffPolicyLearning):
    """
    Base of the off-policy algorithms: SB3's ``learn`` and ``collect_rollouts`` for a team, whose
    transitions are kept in a :class:`~sb3_happo.common.replay_buffer.JointReplayBuffer`. A subclass
    defines in :meth:`train` how critics and actors learn.

    :param policy: Name of a policy, "MlpPolicy", "CnnPolicy" or "MultiInputPolicy", or a class
    :param env: Environment of any form that ``HAPPO`` takes
    :param learning_rate: Learning rate of the actors, >= 0, constant or a schedule
    :param buffer_size: Number of transitions in the replay buffer, of all environments together
    :param learning_starts: Number of timesteps of random actions before the first update
    :param batch_size: Transitions per gradient step
    :param tau: Weight of the networks in each update of their target networks, in [0, 1]
    :param gamma: Discount factor
    :param train_freq: Steps of each environment between two updates, or ``(n, "step")`` or, with
        one environment, ``(n, "episode")``
    :param gradient_steps: Gradient steps per update; -1 for as many as transitions were collected
    :param action_noise: SB3's noise for the continuous actions of all agents side by side; or
        ``{agent: noise}``; or None. Actions are in [-1, 1] there
    :param replay_buffer_class: Subclass of ``JointReplayBuffer``
    :param replay_buffer_kwargs: Keyword arguments of the replay buffer
    :param optimize_memory_usage: Not supported
    :param n_steps: Number of steps whose rewards are added before the critic's value is used
    :param critic_learning_rate: Learning rate of the critic; the actors' by default
    :param max_grad_norm: Largest norm of a gradient; None for no clipping, as in SB3
    :param use_sde: Not supported: gSDE is for the on-policy algorithms
    :param policy_kwargs: Keyword arguments of the policy
    :param stats_window_size: Episodes over which the log averages
    :param tensorboard_log: Folder of TensorBoard's log
    :param verbose: Verbosity level: 0 for nothing, 1 for information, 2 for debugging
    :param seed: Seed for the pseudo-random generators
    :param device: Device of the networks
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": OffPolicyJointPolicy,
        "CnnPolicy": OffPolicyJointPolicy,
        "MultiInputPolicy": OffPolicyJointPolicy,
    }
    settings: ClassVar[dict[str, Setting]] = {
        "learning_rate": LEARNING_RATE,
        "critic_learning_rate": optional(LEARNING_RATE),
        "buffer_size": COUNT,
        "learning_starts": Setting("a whole number, at least 0", lambda n: n >= 0, whole=True),
        "batch_size": COUNT,
        "tau": SHARE,
        "gamma": SHARE,
        "gradient_steps": Setting(
            "a whole number, at least 0, or -1 for as many as transitions were collected",
            lambda n: n >= -1,
            whole=True,
        ),
        "n_steps": COUNT,
        "max_grad_norm": optional(POSITIVE),
    }

    def __init__(
        self,
        policy: Any,
        env: Any = None,
        learning_rate: float | Schedule = 1e-3,
        buffer_size: int = 1_000_000,
        learning_starts: int = 100,
        batch_size: int = 256,
        tau: float = 0.005,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        action_noise: NoiseSetting = None,
        replay_buffer_class: type[JointReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        critic_learning_rate: float | Schedule | None = None,
        max_grad_norm: float | None = None,
        use_sde: bool = False,
        policy_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        refuse_sde(use_sde, policy_kwargs, type(self).__name__)
        policy, env = self._policy_and_env(policy, env)
        super().__init__(
            policy,
            env,
            learning_rate,
            buffer_size,
            learning_starts,
            batch_size,
            tau,
            gamma,
            train_freq,
            gradient_steps,
            action_noise=action_noise,  # type: ignore[arg-type]
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            optimize_memory_usage=optimize_memory_usage,
            n_steps=n_steps,
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            support_multi_env=True,
            seed=seed,
            sde_support=False,
            supported_action_spaces=(spaces.Dict,),
        )
        self.critic_learning_rate = critic_learning_rate
        self.max_grad_norm = max_grad_norm
        check_buffer_class(replay_buffer_class, optimize_memory_usage)
        if self.env is not None:
            check_team_spaces(self.observation_space, self.action_space)
            self._check_normalisation()
        if _init_setup_model:
            self._setup_model()
        if verbose >= 1 and self.env is not None:
            print(describe_masks(self.env, self.observation_space, self.action_space))

    # ---------------------------------------------------------------- set-up

    def _policy_and_env(self, policy: Any, env: Any) -> tuple[type[BasePolicy], Any]:
        check_policy_name(policy, type(self).__name__, self.policy_aliases)
        return super()._policy_and_env(policy, env)

    def _setup_model(self) -> None:
        self._check_settings()
        self._convert_train_freq()
        self._check_train_freq()
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        rate = self.critic_learning_rate
        self.critic_lr_schedule = FloatSchedule(self.learning_rate if rate is None else rate)
        self._make_policy()
        self._make_log_names()
        self._random_actions = RandomActions(self.policy.team_spaces)
        if self.env is not None and self.replay_buffer is None:
            # A model that is loaded without an environment may be for `predict` alone
            self._make_replay_buffer()
        TeamActionNoise.wrap(self.action_noise, self.policy.team_spaces.action_space, self.n_envs)
        self._make_agent_log()
        self._figures = {}

    def _make_policy(self) -> None:
        policy = self.policy_class(
            self.observation_space,
            self.action_space,
            self.lr_schedule,
            critic_lr_schedule=self.critic_lr_schedule,
            **self.policy_kwargs,
        )
        self.policy = policy.to(self.device)  # type: ignore[assignment]

    def _check_train_freq(self) -> None:
        frequency = self.train_freq.frequency  # type: ignore[union-attr]
        if frequency < 1:
            raise ValueError(f"train_freq must be at least 1, not {frequency}")
        is_episodic = self.train_freq.unit == TrainFrequencyUnit.EPISODE  # type: ignore[union-attr]
        if is_episodic and self.n_envs > 1:
            raise ValueError(
                f"train_freq=({frequency}, 'episode') needs one environment, and there are "
                f"{self.n_envs}, whose episodes end at different steps; count in steps."
            )

    def set_random_seed(self, seed: int | None = None) -> None:
        """
        Seed the pseudo-random generators of Python, NumPy, PyTorch and the environment.

        :param seed: Seed, a NumPy scalar too; None to leave the generators as they are
        """
        super().set_random_seed(seed)
        if seed is not None and len(self.action_space.spaces) == 1:  # type: ignore[attr-defined]
            # A Dict would seed its only part with another number: a team of one acts as in SB3
            for space in self.action_space.spaces.values():  # type: ignore[attr-defined]
                space.seed(int(seed))

    def _make_replay_buffer(self) -> None:
        """Announce the memory of the replay buffer, refuse more than there is, and allocate it."""
        assert isinstance(self.observation_space, spaces.Dict)
        assert isinstance(self.action_space, spaces.Dict)
        keys = self._stored_keys()
        sizes = replay_bytes(self.observation_space, self.action_space, self.buffer_size, keys)
        if self.verbose >= 1:
            print(f"The replay buffer takes {describe(sizes)} when it is full")
        check_replay_memory(sizes, self.buffer_size)
        self.replay_buffer = self._new_buffer(self.buffer_size)

    def _new_buffer(self, buffer_size: int) -> Any:
        """
        :param buffer_size: Number of transitions, of all environments together
        :return: Empty replay buffer
        """
        buffer_class = self.replay_buffer_class or JointReplayBuffer
        kwargs = {"n_steps": self.n_steps, "gamma": self.gamma, "keys": self._stored_keys()}
        return buffer_class(
            buffer_size,
            self.observation_space,
            self.action_space,
            self.device,
            self.n_envs,
            **kwargs | self.replay_buffer_kwargs,  # type: ignore[arg-type]
        )

    def _stored_keys(self) -> list[str]:
        """Entries of the joint observation that an actor or the critic reads."""
        team = self.policy.team_spaces
        read = {*getattr(self.critic, "keys", ()), *team.mask_keys.values()}
        for own in team.keys.values():
            read.update(own)
        return [key for key in team.observation_space.spaces if key in read]

    def set_env(self, env: Any, force_reset: bool = True) -> None:
        """
        Train on another environment from now on.

        :param env: Environment of any form that the constructor takes, with the same team and
            number of environments
        :param force_reset: Reset of the environment before training
        :raises ValueError: If its team differs
        """
        super().set_env(env, force_reset)
        if self.replay_buffer is None:
            self._make_replay_buffer()

    def load_replay_buffer(  # type: ignore[override]
        self,
        path: Location,
        truncate_last_traj: bool = True,
        trust_pickle: bool = False,
    ) -> None:
        """
        Load a replay buffer that :meth:`save_replay_buffer` has saved. Nothing in the file is run.

        :param path: Path of the file, or an open file
        :param truncate_last_traj: Without effect: running episodes are always cut off
        :param trust_pickle: Whether files of earlier versions, which are pickles, are loaded.
            Loading a pickle can run any code that its author has put into it
        :raises ValueError: If it is a buffer of another team or of another number of environments,
            if the file is damaged, or if it is a pickle
        """
        file = read_replay_buffer(path, trust_pickle)
        if isinstance(file, SafeFile):
            check_saved_team(file, self.observation_space, self.action_space, self.n_envs)
            buffer = self._new_buffer(file.value("buffer")["buffer_size"] * self.n_envs)
            fill_replay_buffer(buffer, file)
        else:
            buffer = file
            check_loaded_buffer(buffer, self.observation_space, self.action_space, self.n_envs)
        buffer.device = self.device
        buffer.n_steps, buffer.gamma = self.n_steps, self.gamma
        buffer.end_episodes()
        self.replay_buffer = buffer
        if self._chooses_critics:
            seen = slice(0, buffer.size())
            alive = None if buffer.activity is None else buffer.activity[seen, :, 1]
            self._rewards_differ |= rewards_differ(buffer.agent_rewards[seen], alive)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_figures", "_random_actions"]

    # ---------------------------------------------------------------- collection

    def learn(
        self: SelfOffPolicy,
        total_timesteps: float,
        callback: MaybeCallback = None,
        log_interval: int | None = 4,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfOffPolicy:
        """
        Train the team.

        :param total_timesteps: Joint environment steps to train for, at least; floats such as
            ``1e6`` are accepted
        :param callback: Callback, called at every step with the state of the algorithm
        :param log_interval: Episodes between two logs
        :param tb_log_name: Name of the run in TensorBoard; the algorithm's by default
        :param reset_num_timesteps: Restart of the count of timesteps; False to continue an earlier
            call
        :param progress_bar: Progress bar (needs tqdm and rich)
        :return: Trained model
        :raises ValueError: If ``learning_starts`` is not below the number of timesteps
        """
        before = 0 if reset_num_timesteps else self.num_timesteps
        check_learning_starts(self.learning_starts, before + int(total_timesteps))
        if self.env is not None and self.replay_buffer is None:
            self._make_replay_buffer()
        return super().learn(
            total_timesteps,
            callback,
            log_interval,
            tb_log_name,
            reset_num_timesteps,
            progress_bar,
        )

    @torch_threads(1)
    def _sample_action(
        self, learning_starts: int, action_noise: Any = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        Actions of the training: random ones before ``learning_starts``, else those of the policies
        with noise.

        :param learning_starts: Number of timesteps of random actions
        :param action_noise: Noise of all agents, or None
        :param n_envs: Number of environments
        :return: Joint actions, a structured array ``(n_envs,)``; and raw actions of all agents side
            by side, ``(n_envs, action_dim)``
        """
        self._restart_if_moved()
        obs: Any = self._last_obs
        if self.num_timesteps < learning_starts:
            raw = self._random_actions.draw(obs, n_envs)
        else:
            raw = self._explore(obs, n_envs)
            if not np.isfinite(raw).all():
                check_last_outputs(self)
        if action_noise is not None:
            noise = action_noise()
            noisy = np.clip(raw + noise, -1.0, 1.0)
            raw = np.where(self._random_actions.continuous, noisy, raw)
        joint = np.empty(n_envs, self.policy.action_dtype)
        for agent, policy in self.policies.items():
            own = raw[:, self.policy.raw_columns[agent]]
            policy.to_env_actions(own, out=joint[agent])
        return joint, raw

    def _explore(self, obs: Mapping[str, np.ndarray], n_envs: int) -> np.ndarray:
        """
        Hook: raw actions of the policies during training, before noise. Here samples.

        :param obs: Joint observation, each entry ``(n_envs, ...)``
        :param n_envs: Number of environments
        :return: Raw actions of all agents side by side, ``(n_envs, action_dim)``
        """
        return self.policy.explore(self._to_tensors(obs)).cpu().numpy()
