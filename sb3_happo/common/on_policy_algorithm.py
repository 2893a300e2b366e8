"""The training loop that every algorithm of the family shares."""

import difflib
import io
import pathlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, TypeVar

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule, update_learning_rate
from stable_baselines3.common.vec_env import (
    VecEnv,
    VecNormalize,
    VecTransposeImage,
    is_vecenv_wrapped,
    unwrap_vec_normalize,
)
from torch import nn
from torch.nn import functional as F

from sb3_happo.common.batched_actors import BatchedActors
from sb3_happo.common.buffers import MultiAgentRolloutBuffer, minibatches
from sb3_happo.common.critics import Critic, critic_keys
from sb3_happo.common.gradients import add_up, pieces
from sb3_happo.common.hyperparameters import (
    BATCH_SIZE,
    COUNT,
    LEARNING_RATE,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    Setting,
    check_agent_learning_rates,
    check_settings,
    optional,
    plain_numbers,
    scheduled,
)
from sb3_happo.common.policies import AgentPolicy, GruJointPolicy, JointPolicy, LstmJointPolicy
from sb3_happo.common.recurrent import reset_states
from sb3_happo.common.threads import torch_threads
from sb3_happo.common.type_aliases import ActorsStep, CriticBatch, JointStep, RNNStates
from sb3_happo.envs import as_joint_env, check_team_spaces
from sb3_happo.envs.spaces import ACTION_MASK, is_flag
from sb3_happo.vec_env import JointDummyVecEnv, VecTeamOfOne
from sb3_happo.vec_env.make import make_from_id

SelfMultiAgent = TypeVar("SelfMultiAgent", bound="MultiAgentOnPolicyAlgorithm")


def is_joint(observation_space: spaces.Space, action_space: spaces.Space) -> bool:
    """
    :param observation_space: An environment's observation space
    :param action_space: Its action space
    :return: Whether they are those of a ``JointEnv``
    """
    return (
        isinstance(action_space, spaces.Dict)
        and isinstance(observation_space, spaces.Dict)
        and bool(critic_keys(observation_space))
    )


class MultiAgentOnPolicyAlgorithm(OnPolicyAlgorithm):
    """
    What the on-policy algorithms share: collecting rollouts of a team, learning the critic, predicting, saving, logging.
    A subclass says in :meth:`train` how the actors learn.

    See :class:`~sb3_happo.HAPPO` for the parameters.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": JointPolicy,
        "CnnPolicy": JointPolicy,
        "MultiInputPolicy": JointPolicy,
        "MlpLstmPolicy": LstmJointPolicy,
        "CnnLstmPolicy": LstmJointPolicy,
        "MultiInputLstmPolicy": LstmJointPolicy,
        "MlpGruPolicy": GruJointPolicy,
        "CnnGruPolicy": GruJointPolicy,
        "MultiInputGruPolicy": GruJointPolicy,
    }
    #: What the settings must be
    settings: ClassVar[dict[str, Setting]] = {
        "learning_rate": LEARNING_RATE,
        "critic_learning_rate": optional(LEARNING_RATE),
        "n_steps": COUNT,
        "gamma": SHARE,
        "gae_lambda": SHARE,
        "vf_coef": NOT_NEGATIVE,
        "max_grad_norm": optional(POSITIVE),
        "batch_size": optional(BATCH_SIZE),
        "clip_range_vf": optional(scheduled(POSITIVE)),
        "critic_n_epochs": optional(COUNT),
        "critic_batch_size": optional(BATCH_SIZE),
        "huber_delta": optional(POSITIVE),
        "chunk_length": optional(COUNT),
    }
    policy: JointPolicy  # type: ignore[assignment]
    rollout_buffer: MultiAgentRolloutBuffer  # type: ignore[assignment]
    ent_coef: float | Schedule  # type: ignore[assignment]
    n_epochs: int

    def __init__(
        self,
        policy: Any,
        env: Any,
        learning_rate: float | Schedule,
        n_steps: int,
        batch_size: int | None,
        gamma: float,
        gae_lambda: float,
        ent_coef: float | Schedule,
        vf_coef: float,
        max_grad_norm: float | None,
        clip_range_vf: float | Schedule | None = None,
        use_clipped_value_loss: bool = False,
        critic_learning_rate: float | Schedule | None = None,
        critic_n_epochs: int | None = None,
        critic_batch_size: int | None = None,
        normalize_value: bool = True,
        huber_delta: float | None = None,
        chunk_length: int | None = 32,
        rollout_buffer_class: type[MultiAgentRolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        policy, env = self._sort_out(policy, env)
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,  # type: ignore[arg-type]
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,  # type: ignore[arg-type]
            use_sde=False,
            sde_sample_freq=-1,
            rollout_buffer_class=rollout_buffer_class,  # type: ignore[arg-type]
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            device=device,
            seed=seed,
            _init_setup_model=False,
            supported_action_spaces=(spaces.Dict,),
        )
        self.batch_size = batch_size
        self.clip_range_vf = clip_range_vf
        self.use_clipped_value_loss = use_clipped_value_loss
        self.critic_learning_rate = critic_learning_rate
        self.critic_n_epochs = critic_n_epochs
        self.critic_batch_size = critic_batch_size
        self.normalize_value = normalize_value
        self.huber_delta = huber_delta
        self.chunk_length = chunk_length
        self._last_active: np.ndarray | None = None
        self._executor: ThreadPoolExecutor | None = None  # during `learn`, threads for gradients
        if self.env is not None:
            if verbose >= 1 and getattr(self.env.unwrapped, "choice", None) is not None:
                print(f"{self.env.num_envs} environments run in {self.env.unwrapped.choice}")  # type: ignore[attr-defined]
            check_team_spaces(self.observation_space, self.action_space)
            self._check_batch_sizes(self.env.num_envs)
            self._check_normalisation()
        if _init_setup_model:
            self._setup_model()

    # ---------------------------------------------------------------- set-up

    def _sort_out(self, policy: Any, env: Any) -> tuple[type[BasePolicy], Any]:
        """Both ``HAPPO(env)`` and ``HAPPO("MlpPolicy", env)``: tell the policy from the environment."""
        if env is None and not (
            isinstance(policy, type) or (isinstance(policy, str) and policy in self.policy_aliases)
        ):
            policy, env = "MlpPolicy", policy
        if isinstance(policy, str):
            if policy not in self.policy_aliases:
                near = difflib.get_close_matches(policy, self.policy_aliases, n=1, cutoff=0.0)
                raise ValueError(
                    f"Unknown policy {policy!r}; did you mean {near[0]!r}? There are {list(self.policy_aliases)}."
                )
            policy = self.policy_aliases[policy]
        return policy, make_from_id(env) if isinstance(env, str) else env

    @staticmethod
    def _wrap_env(env: Any, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        """
        Turn any environment into a vectorised joint one.

        :param env: A PettingZoo or Gymnasium environment, a ``JointEnv``, an id, or a ``VecEnv``
        :param verbose: Verbosity level
        :param monitor_wrapper: Whether to wrap a single environment in SB3's ``Monitor``
        :return: A ``VecEnv`` with a joint observation and action space
        """
        if isinstance(env, str):
            env = make_from_id(env)
        if isinstance(env, VecEnv):
            joint = env if is_joint(env.observation_space, env.action_space) else VecTeamOfOne(env)
        else:
            if not (isinstance(env, gym.Env) and is_joint(env.observation_space, env.action_space)):
                env = as_joint_env(env)
            if monitor_wrapper and not is_wrapped(env, Monitor):
                env = Monitor(env)
            joint = JointDummyVecEnv([lambda: env])
        check_channel_order(joint.observation_space)
        return OnPolicyAlgorithm._wrap_env(joint, verbose, monitor_wrapper)  # images channels first

    def _check_batch_sizes(self, n_envs: int) -> None:
        n_rows = n_envs * self.n_steps
        if n_rows < 2:
            raise ValueError(
                f"`n_steps * n_envs` must be greater than 1; here n_steps={self.n_steps} and n_envs={n_envs}."
            )
        sizes = {"batch_size": self.batch_size, "critic_batch_size": self.critic_batch_size}
        if self.critic_batch_size == self.batch_size:  # one warning is enough
            del sizes["critic_batch_size"]
        for name, size in sizes.items():
            if size is not None and size < 2:
                raise ValueError(
                    f"`{name}` must be greater than 1, not {size}: a single sample cannot be normalised."
                )
            if size is not None and size < n_rows and n_rows % size:
                warnings.warn(
                    f"`n_steps * n_envs = {n_rows}` is not a multiple of `{name}={size}`: the last minibatch of every epoch "
                    f"has only {n_rows % size} samples. We recommend a `{name}` that divides {n_rows} "
                    f"(n_steps={self.n_steps}, n_envs={n_envs}).",
                    stacklevel=4,
                )

    def _check_normalisation(self) -> None:
        normalize = None if self.env is None else unwrap_vec_normalize(self.env)
        if isinstance(normalize, VecNormalize) and normalize.norm_obs:
            keys = normalize.norm_obs_keys or []
            flags = [key for key in keys if is_flag(key)]
            if flags:
                others = [key for key in keys if key not in flags]
                raise ValueError(
                    f"VecNormalize would normalise {flags}, which are 0 or 1 and mean that; pass norm_obs_keys={others} to it."
                )

    def _setup_model(self) -> None:
        if getattr(self, "observation_space", None) is None:
            raise ValueError(
                f"{type(self).__name__} needs an environment to learn the team's spaces from: "
                f"{type(self).__name__}(env), or {type(self).__name__}('MlpPolicy', env)."
            )
        names = [*self.settings, "seed", "_stats_window_size", "policy_kwargs"]
        vars(self).update(plain_numbers({name: getattr(self, name) for name in names}))
        check_settings(vars(self), self.settings)
        check_agent_learning_rates(self.policy_kwargs.get("agent_kwargs"))
        self.max_grad_norm = float("inf") if self.max_grad_norm is None else self.max_grad_norm
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        rate = (
            self.learning_rate if self.critic_learning_rate is None else self.critic_learning_rate
        )
        self.critic_lr_schedule = FloatSchedule(rate)
        if self.clip_range_vf is not None:
            self.clip_range_vf = FloatSchedule(self.clip_range_vf)
        self.policy = self.policy_class(  # type: ignore[assignment]
            self.observation_space,
            self.action_space,
            self.lr_schedule,
            critic_lr_schedule=self.critic_lr_schedule,
            normalize_value=self.normalize_value,
            **self.policy_kwargs,
        )
        self.policy = self.policy.to(self.device)
        # SB3's console logger cuts keys at 36 characters, and refuses two that look alike then
        self._log_names = {
            agent: agent if len(agent) <= 16 else f"{agent[:12]}~{index}"
            for index, agent in enumerate(self.agents)
        }
        buffer_class: type[MultiAgentRolloutBuffer] = (
            self.rollout_buffer_class or MultiAgentRolloutBuffer
        )  # type: ignore[assignment]
        self.rollout_buffer = buffer_class(
            self.n_steps,
            self.policy,
            n_values=self.critic.n_values,
            device=self.device,
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
            n_envs=self.n_envs,
            chunk_length=self.chunk_length,
            **self.rollout_buffer_kwargs,
        )
        self._last_states = self.policy.initial_states(self.n_envs)
        #: What the critic said of each agent when it was last active in the running episodes
        self._own_values = th.zeros(self.n_envs, self.critic.n_values, device=self.device)

    # ---------------------------------------------------------------- the team

    @property
    def agents(self) -> tuple[str, ...]:
        """
        :return: Names of the agents, in the environment's order
        """
        return self.policy.agents

    @property
    def policies(self) -> dict[str, AgentPolicy]:
        """
        :return: Each agent's own policy
        """
        return self.policy.policies

    @property
    def critic(self) -> Critic:
        """
        :return: The critic that the whole team shares (IPPO: one for each agent, in one module)
        """
        return self.policy.critic

    def predict(
        self,
        observation: dict[str, Any] | np.ndarray,
        state: Any = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: dict[str, np.ndarray] | None = None,
    ) -> tuple[Any, Any]:
        """
        The actions of the agents whose observations are given; see :meth:`JointPolicy.predict`.

        :param observation: ``{agent: observation}``, or the observation of a joint environment, one or a batch
        :param state: Hidden states of recurrent policies
        :param episode_start: Where these must be reset
        :param deterministic: Take the most likely actions instead of samples
        :param action_masks: ``{agent: mask}``, where masks do not come within the observations
        :return: ``{agent: action}``, or for a batch a structured array with one field per agent; and the next hidden states
        """
        return self.policy.predict(observation, state, episode_start, deterministic, action_masks)

    # ---------------------------------------------------------------- rollouts

    def learn(
        self: SelfMultiAgent,
        total_timesteps: float,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfMultiAgent:
        """
        Train the team.

        :param total_timesteps: Joint environment steps to train for, at least; ``1e6`` is welcome
        :param callback: Called at every step with the state of the algorithm
        :param log_interval: Updates between two logs
        :param tb_log_name: Name of the run in TensorBoard; the algorithm's by default
        :param reset_num_timesteps: Count from zero, or go on from an earlier call
        :param progress_bar: Show a progress bar (needs tqdm and rich)
        :return: The trained model
        """
        name = tb_log_name or type(self).__name__
        n_threads = th.get_num_threads()
        convolutions = any(isinstance(module, nn.Conv2d) for module in self.policy.modules())
        with (
            torch_threads(n_threads if convolutions else 1),
            ThreadPoolExecutor(1 if convolutions else n_threads) as executor,
        ):
            self._executor = executor
            try:
                return super().learn(
                    int(total_timesteps),
                    callback,
                    log_interval,
                    name,
                    reset_num_timesteps,
                    progress_bar,
                )
            finally:
                self._executor = None

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        before = self._last_obs
        result = super()._setup_learn(*args, **kwargs)
        if self._last_obs is not before:
            assert self.env is not None and isinstance(self._last_obs, dict)
            self._last_active = self._present("active", np.ones(self.n_envs, dtype=bool), None)
            self._own_values.zero_()
            self._last_states = self.policy.initial_states(self.n_envs)
            self._check_step(
                self._to_tensors(self._last_obs), th.zeros(self.n_envs, 1, device=self.device), []
            )
        return result

    @torch_threads(1)
    def collect_rollouts(  # type: ignore[override]
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: MultiAgentRolloutBuffer,
        n_rollout_steps: int,
    ) -> bool:
        """
        Let the team act for ``n_rollout_steps`` and keep what happened.

        :param env: The training environment
        :param callback: Called at every step, and at the beginning and end of the rollout
        :param rollout_buffer: Filled with the rollout
        :param n_rollout_steps: Steps per environment
        :return: False if the callback asked to stop
        """
        assert isinstance(self._last_obs, dict), "No previous observation was provided"
        self.policy.set_training_mode(False)
        rollout_buffer.reset()
        team = BatchedActors(self.policy)
        # A simulator made of tensors, unless a wrapper stands in between, keeps all on its device
        to_env_actions: Callable[[Mapping[str, th.Tensor]], Any] = (
            team.to_env_tensors if takes_tensors(env) else team.to_env_actions
        )
        obs = self._to_tensors(self._last_obs)
        callback.on_rollout_start()

        for n_steps in range(n_rollout_steps):  # noqa: B007 (callbacks read `n_steps`)
            step = self._with_values(team(obs, self._last_states.pi), obs)
            new_obs, rewards, dones, infos = env.step(to_env_actions(step.actions))
            self.num_timesteps += env.num_envs

            callback.update_locals(locals())
            goes_on = callback.on_step()

            assert isinstance(new_obs, dict)
            next_obs = self._to_tensors(new_obs)
            returns = self._split_rewards(rewards, infos)
            self._check_step(next_obs, returns, infos)
            self._update_info_buffer(infos, dones)
            states = self.policy.advance_memory(self._last_states, step.states, self._last_active)
            if self.critic.n_values > 1:
                self._own_values = step.values.where(
                    self._as_flags(self._last_active), self._own_values
                )
            self._bootstrap_time_limits(returns, dones, infos, states)
            rollout_buffer.add(
                obs,
                step,
                returns,
                self._last_episode_starts,  # type: ignore[arg-type]
                self._last_active,
                self._last_states,
            )
            obs = next_obs
            self._last_obs = new_obs
            self._last_episode_starts = dones
            if dones.any():
                states = reset_states(states, th.as_tensor(dones, device=self.device))
                self._own_values[dones] = 0.0
            self._last_states = states
            self._last_active = self._present("active", dones, infos)
            if not goes_on:  # only now, so that another `learn` can go on from here
                return False

        with th.no_grad():
            last_values = self.policy.predict_values(obs, self._last_states)
        if self.critic.n_values > 1:
            waiting = self._present("waiting_agents", dones, infos)
            last_values = self._values_to_come(
                last_values, self._own_values, self._last_active, waiting
            )
        rollout_buffer.compute_returns_and_advantage(last_values, dones)

        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    @th.inference_mode()
    def _with_values(self, step: ActorsStep, obs: dict[str, th.Tensor]) -> JointStep:
        """
        :param step: Decision of the actors
        :param obs: Joint observation before it, each entry ``(n_envs, ...)``
        :return: The same decision with the critic's values and states
        """
        critic_obs = self.policy.critic_observation(obs, step.states)
        values, vf = self.critic.step(critic_obs, self._last_states.vf)
        return JointStep(step.actions, step.log_probs, values, RNNStates(step.states, vf))

    def _to_tensors(self, obs: Mapping[str, np.ndarray | th.Tensor]) -> dict[str, th.Tensor]:
        return {key: th.as_tensor(value, device=self.device) for key, value in obs.items()}

    def _split_rewards(
        self, rewards: np.ndarray | th.Tensor, infos: list[dict[str, Any]]
    ) -> th.Tensor:
        """
        What each of the critic's values is the value of: here, the team's reward for all of them.

        :param rewards: Team rewards, ``(n_envs,)``
        :param infos: Of the step
        :return: ``(n_envs, n_values)``, the caller's own
        """
        column = th.as_tensor(rewards, dtype=th.float32, device=self.device).unsqueeze(1)
        return column.repeat(1, self.critic.n_values)

    def _bootstrap_time_limits(
        self, rewards: th.Tensor, dones: np.ndarray, infos: list[dict[str, Any]], states: RNNStates
    ) -> None:
        """
        An episode cut short by a time limit goes on in principle: add the value of where it was cut (in place), as SB3 does.

        :param rewards: ``(n_envs, n_values)``
        :param dones: ``(n_envs,)``
        :param infos: With the terminal observations
        :param states: What the team remembers before these
        """
        cut = [
            int(index)
            for index in np.flatnonzero(dones)
            if infos[index].get("TimeLimit.truncated", False)
            and infos[index].get("terminal_observation") is not None
        ]
        if not cut:
            return
        last = [infos[index]["terminal_observation"] for index in cut]
        keys = self.observation_space.spaces  # type: ignore[attr-defined]
        # Arrays, or tensors where the environment is made of them
        join: Any = th.stack if isinstance(next(iter(last[0].values())), th.Tensor) else np.stack
        stacked = self._to_tensors({key: join([obs[key] for obs in last]) for key in keys})
        self._check_finite(stacked, cut)
        with th.no_grad():
            pi = {agent: before[cut] for agent, before in states.pi.items()}
            values = self.policy.predict_values(
                stacked, RNNStates(pi, None if states.vf is None else states.vf[cut])
            )
        if self.critic.n_values > 1:
            flags = [
                self._stack(name, [infos[index].get(name) for index in cut])
                for name in ("active", "waiting_agents")
            ]
            values = self._values_to_come(values, self._own_values[cut], *flags)
        rewards[cut] += self.gamma * values

    def _values_to_come(
        self,
        values: th.Tensor,
        own_values: th.Tensor,
        active: np.ndarray | None,
        waiting: np.ndarray | None,
    ) -> th.Tensor:
        """
        With a value for each agent, the critic knows only steps at which the agent was active. Of who waits, what it said when
        the agent was last active is to come; of who is gone for good, see :meth:`_values_of_the_gone`.

        :param values: Of an observation, ``(n, n_values)``
        :param own_values: Of each agent's last active step in the episode, ``(n, n_values)``
        :param active: Who is active in the observation, ``(n, n_agents)``; None for all
        :param waiting: Who is alive though inactive, likewise; None for nobody
        :return: ``(n, n_values)``
        """
        if active is None:
            return values
        here = self._as_flags(active)
        otherwise = self._values_of_the_gone(values, here)
        if waiting is not None:
            otherwise = own_values.where(self._as_flags(waiting), otherwise)
        return values.where(here, otherwise)

    def _values_of_the_gone(self, values: th.Tensor, active: th.Tensor) -> th.Tensor:
        """
        What is to come of agents that have left the team. All values are the team's reward, which goes on without them: what
        those who are there say of it.

        :param values: Of an observation, ``(n, n_values)``
        :param active: Who is active in it, ``(n, n_agents)``
        :return: ``(n, 1)`` or ``(n, n_values)``
        """
        return (values * active).sum(dim=1, keepdim=True) / active.sum(dim=1, keepdim=True).clamp(
            min=1
        )

    def _as_flags(self, flags: np.ndarray | None) -> th.Tensor:
        return th.as_tensor(True if flags is None else flags, device=self.device)

    def _present(
        self, name: str, dones: np.ndarray, infos: list[dict[str, Any]] | None
    ) -> np.ndarray | None:
        """
        Who is there in the observations that the team answers next.

        :param name: "active" for who is alive and on turn, "waiting_agents" for who is alive and not active
        :param dones: Environments that have just been reset, ``(n_envs,)``
        :param infos: Of the last step
        :return: ``(n_envs, n_agents)``, or None where all are active, or nobody is waiting
        """
        assert self.env is not None
        if is_vecenv_wrapped(
            self.env, VecTeamOfOne
        ):  # what a single-agent environment calls "active" is something else
            return None
        flags: list[np.ndarray | None] = [info.get(name) for info in infos or [{}] * len(dones)]
        if dones.any():
            reset_infos = self.env.unwrapped.reset_infos
            for index in np.flatnonzero(dones):
                flags[index] = reset_infos[index].get(name)
        return self._stack(name, flags)

    def _stack(self, name: str, flags: list[np.ndarray | None]) -> np.ndarray | None:
        if all(flag is None for flag in flags):
            return None
        usual = np.full(len(self.agents), name == "active")
        return np.stack([usual if flag is None else flag for flag in flags])

    def _check_step(
        self, obs: dict[str, th.Tensor], rewards: th.Tensor, infos: list[dict[str, Any]]
    ) -> None:
        """
        :param obs: What the environment returned
        :param rewards: What will be learned from, ``(n_envs, ...)``
        :param infos: Of the step, with each agent's own reward
        :raises ValueError: On NaN and infinities, and on action masks that allow nothing
        """
        if not all_finite([*obs.values(), rewards]):
            self._check_finite(obs, range(len(rewards)))
            index = first_not_finite(rewards)
            if index is not None:
                own = zip(self.agents, infos[index].get("agent_rewards", ()), strict=False)
                blamed = [agent for agent, reward in own if not np.isfinite(reward)]
                self._refuse_number(
                    f"the reward of {', '.join(map(repr, blamed))}"
                    if blamed
                    else "the team's reward",
                    index,
                )
        for agent, policy in self.policies.items():
            if policy.masked:
                rows = policy.rows_without_choice(
                    obs[f"{agent}/{ACTION_MASK}"].cpu().numpy()[..., -policy.n_choices :]
                )
                if len(rows):
                    raise ValueError(
                        f"agent {agent!r}: its action mask allows nothing (environment {rows[0]}, after {self.num_timesteps} "
                        "timesteps); an agent that cannot act must be left out of the observations, or have one legal action."
                    )

    def _check_finite(self, obs: dict[str, th.Tensor], env_indices: Sequence[int]) -> None:
        """
        :param obs: Observations, each entry ``(n, ...)``
        :param env_indices: Of which environments, ``(n,)``
        :raises ValueError: On NaN and infinities
        """
        for key, value in obs.items():
            row = first_not_finite(value)
            if row is not None:
                self._refuse_number(f"observation {key!r}", env_indices[row])

    def _refuse_number(self, what: str, env_index: int) -> None:
        raise ValueError(
            f"The environment returned NaN or infinity in {what} (environment {env_index}, after {self.num_timesteps} "
            "timesteps); run `check_marl_env` on it, or mend the observation or the reward there."
        )

    # ---------------------------------------------------------------- learning

    def _update_critic(self) -> None:
        """Fit the critic to the TD(lambda) returns (the last line of the pseudocode)."""
        data = self.rollout_buffer.critic_data()
        targets = self._critic_targets(data)
        schedule = (
            self.lr_schedule if self.critic_learning_rate is None else self.critic_lr_schedule
        )
        rate = schedule(self._current_progress_remaining)
        update_learning_rate(self.critic.optimizer, rate)
        params = list(self.critic.parameters())
        losses = []
        batch_size = self.batch_size if self.critic_batch_size is None else self.critic_batch_size
        for _ in range(self.n_epochs if self.critic_n_epochs is None else self.critic_n_epochs):
            for batch in minibatches(targets, batch_size):
                n_values = (
                    batch.returns.numel()
                    if batch.active is None
                    else max(1, int(batch.active.sum()))
                )

                def contribution(
                    piece: CriticBatch, n_values: int = n_values
                ) -> tuple[th.Tensor, th.Tensor]:
                    loss = self._value_losses(piece).sum() / n_values
                    return self.vf_coef * loss, loss

                losses.append(add_up(contribution, pieces(batch), params, self._executor))
                nn.utils.clip_grad_norm_(params, self.max_grad_norm)
                self.critic.optimizer.step()
        # With a value for each agent, of the steps at which it was there: of others nothing is learned
        returns, values = (
            of if data.active is None else of[data.active] for of in (data.returns, data.old_values)
        )
        variance = returns.var()
        explained = (
            1 - (returns - values).var() / variance if variance > 0 else th.tensor(float("nan"))
        )
        self.logger.record("train/value_loss", th.stack(losses).mean().item())
        self.logger.record("train/explained_variance", explained.item())
        self.logger.record("train/critic_learning_rate", rate)

    def _critic_targets(self, data: CriticBatch) -> CriticBatch:
        """The batch in the units in which the critic predicts."""
        norm = self.critic.value_norm
        if norm is None:
            return data
        old_values = norm.normalize(
            data.old_values
        )  # what the network said, before the statistics move
        norm.update(data.returns, data.active)
        return data._replace(old_values=old_values, returns=norm.normalize(data.returns))

    def _value_losses(self, batch: CriticBatch) -> th.Tensor:
        """
        :param batch: In the critic's own units
        :return: Squared error, or Huber loss, of each value that counts
        """
        values = self.critic.evaluate_batch(batch)
        errors = [values]
        if self.clip_range_vf is not None:
            clip_range = self.clip_range_vf(self._current_progress_remaining)  # type: ignore[operator]
            clipped = batch.old_values + (values - batch.old_values).clamp(-clip_range, clip_range)
            errors = [values, clipped] if self.use_clipped_value_loss else [clipped]
        losses = [
            F.mse_loss(value, batch.returns, reduction="none")
            if self.huber_delta is None
            else F.huber_loss(value, batch.returns, reduction="none", delta=self.huber_delta)
            for value in errors
        ]
        loss = losses[0] if len(losses) == 1 else th.maximum(*losses)
        return loss if batch.active is None else loss[batch.active]

    # ---------------------------------------------------------------- save and load

    def __getstate__(self) -> dict[str, Any]:
        # For copies made by callbacks: threads cannot be copied, and are there during `learn` alone
        return self.__dict__ | {"_executor": None}

    def _excluded_save_params(self) -> list[str]:
        # Memories belong to the running environments, as in sb3-contrib's RecurrentPPO
        excluded = [*super()._excluded_save_params(), "_executor", "_last_states", "_own_values"]
        # A simulator's tensors may be on a device that is not there when they are loaded
        return (
            [*excluded, "_last_obs"]
            if self.env is not None and takes_tensors(self.env)
            else excluded
        )

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        # Agents that share parameters share the optimiser too
        optimizers = [
            f"policy.actors.{self.agents.index(group[0])}.optimizer" for group in self.policy.groups
        ]
        return ["policy", "policy.critic.optimizer", *optimizers], []

    def get_env(self) -> VecEnv | None:
        """
        :return: The training environment, vectorised; a single-agent ``VecEnv`` as it was given, so that SB3's callbacks can
            compare its wrappers with those of the environment for evaluation
        """
        env = self.env.venv if isinstance(self.env, VecTransposeImage) else self.env
        return env.venv if isinstance(env, VecTeamOfOne) else self.env

    def set_env(self, env: Any, force_reset: bool = True) -> None:
        """
        Train on another environment from now on.

        :param env: Anything that the constructor takes, with the same team and number of environments
        :param force_reset: Reset it before training
        :raises ValueError: If its team differs
        """
        env = self._wrap_env(env, self.verbose)
        check_env_of_model(env, self.observation_space, self.action_space)
        super().set_env(env, force_reset)
        self._check_normalisation()

    @classmethod
    def load(
        cls: type[SelfMultiAgent],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: Any = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfMultiAgent:
        """
        Load a saved model, with its optimisers and normalisers.

        :param path: Where it was saved
        :param env: What to train it on further, anything that the constructor takes, with any number of environments;
            not needed for ``predict``
        :param device: Device on which the model shall run
        :param custom_objects: Objects to take instead of the saved ones
        :param print_system_info: Print the versions at saving and now
        :param force_reset: Reset the environment before training
        :param kwargs: Attributes to change, such as ``learning_rate``
        :return: The model
        :raises ValueError: If ``env`` has another team
        """
        if env is not None:
            env = cls._wrap_env(env)
            data, _, _ = load_from_zip_file(path, device="cpu", custom_objects=custom_objects)
            if isinstance(path, io.BufferedIOBase):
                path.seek(0)
            assert data is not None
            check_env_of_model(env, data["observation_space"], data["action_space"])
        return super().load(
            path, env, device, custom_objects, print_system_info, force_reset, **kwargs
        )


def check_channel_order(observation_space: spaces.Space) -> None:
    """
    :param observation_space: Joint observation space
    :raises ValueError: If there are images with channels first and others with channels last, of which SB3 transposes all or
        none
    """
    assert isinstance(observation_space, spaces.Dict)
    images = {
        key: space for key, space in observation_space.spaces.items() if is_image_space(space)
    }
    first = [key for key, space in images.items() if is_image_space_channels_first(space)]  # type: ignore[arg-type]
    if first and len(first) < len(images):
        last = [key for key in images if key not in first]
        raise ValueError(
            f"The images {first} have their channels first, {last} have them last, and SB3 handles either, not both "
            "(the smallest axis is taken for the channels). Transpose some in the environment; for the critic's state, "
            'joint_kwargs=dict(state="observations") makes one of the agents\' images.'
        )


def takes_tensors(env: VecEnv) -> bool:
    """
    :param env: A vectorised environment
    :return: Whether it takes actions as tensors and then returns tensors; SB3's wrappers know only NumPy
    """
    return env is env.unwrapped and getattr(env, "takes_tensors", False)


def all_finite(values: Sequence[th.Tensor]) -> bool:
    """
    :param values: Tensors of any shapes, on one device
    :return: True if there is neither NaN nor infinity in them; False may also be an overflow
    """
    # The sum is quicker than looking at every number, and one answer for all of them is all that leaves the device
    return bool(
        th.stack([value.sum() for value in values if value.is_floating_point()]).isfinite().all()
    )


def first_not_finite(values: th.Tensor) -> int | None:
    """
    :param values: ``(n, ...)``
    :return: The first row with NaN or infinity, or None
    """
    rows = (~values.isfinite()).reshape(len(values), -1).any(dim=1).nonzero()
    return int(rows[0]) if len(rows) else None


def check_env_of_model(
    env: VecEnv, observation_space: spaces.Space, action_space: spaces.Space
) -> None:
    """
    :param env: A vectorised joint environment
    :param observation_space: What the model was made for
    :param action_space: Likewise
    :raises ValueError: If they differ, saying where
    """
    assert isinstance(observation_space, spaces.Dict) and isinstance(action_space, spaces.Dict)
    assert isinstance(env.observation_space, spaces.Dict) and isinstance(
        env.action_space, spaces.Dict
    )
    if tuple(env.action_space.spaces) != tuple(action_space.spaces):
        raise ValueError(
            f"The model was trained for the team {list(action_space.spaces)}, but this environment has "
            f"{list(env.action_space.spaces)}; load it on the environment it was trained on, or train a new model."
        )
    for kind, mine, theirs in (
        ("action", action_space.spaces, env.action_space.spaces),
        ("observation", observation_space.spaces, env.observation_space.spaces),
    ):
        differing = [
            f"{key!r}: {mine.get(key)} in the model, {theirs.get(key)} here"
            for key in dict.fromkeys([*mine, *theirs])
            if mine.get(key) != theirs.get(key)
        ]
        if differing:
            raise ValueError(
                f"The model was trained on other {kind} spaces than this environment has ({'; '.join(differing)}); "
                "make the environment with the same arguments and wrappers as in training."
            )
