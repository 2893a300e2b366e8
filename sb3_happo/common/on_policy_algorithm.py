"""Training loop of the on-policy algorithms: rollouts of a team, and the value function."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule
from stable_baselines3.common.vec_env import VecEnv

from sb3_happo.common.bootstrap import (
    Presence,
    cut_off,
    values_of_all_agents,
)
from sb3_happo.common.checks import (
    check_batch_sizes,
    describe_masks,
    takes_tensors,
)
from sb3_happo.common.correlated_noise import ExplorationNoise
from sb3_happo.common.exploration import (
    SDE_SAMPLE_FREQ,
    Exploration,
    check_exploration,
    refuse_action_noise,
)
from sb3_happo.common.hyperparameters import (
    BATCH_SIZE,
    COUNT,
    LEARNING_RATE,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    Setting,
    optional,
    scheduled,
)
from sb3_happo.common.joint_policy import GruJointPolicy, JointPolicy, LstmJointPolicy
from sb3_happo.common.on_policy_values import TARGET_TAU, OnPolicyValues, check_target_critic
from sb3_happo.common.recurrent import reset_states
from sb3_happo.common.rollout_buffer import MultiAgentRolloutBuffer
from sb3_happo.common.rollout_memory import check_memory, describe, rollout_bytes
from sb3_happo.common.rollout_state import CollectorState, warn_of_lost_episodes
from sb3_happo.common.threads import torch_threads
from sb3_happo.common.type_aliases import JointStep
from sb3_happo.envs import check_team_spaces
from sb3_happo.vec_env.step_facts import StepFacts, step_facts

#: Policies by the names that the constructor accepts
POLICY_ALIASES: dict[str, type[BasePolicy]] = {
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


class MultiAgentOnPolicyAlgorithm(OnPolicyValues):
    """
    Base of the on-policy algorithms: collects rollouts of a team and learns the critic. A subclass
    defines in :meth:`train` how the actors learn.

    See :class:`~sb3_happo.HAPPO` for the parameters; those of SB3's ``OnPolicyAlgorithm`` are
    keyword arguments.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = POLICY_ALIASES
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
        "sde_sample_freq": SDE_SAMPLE_FREQ,
        "target_critic_tau": optional(TARGET_TAU),
    }
    policy: JointPolicy  # type: ignore[assignment]
    ent_coef: float | Schedule  # type: ignore[assignment]
    n_epochs: int

    def __init__(
        self,
        policy: Any,
        env: Any,
        batch_size: int | None,
        clip_range_vf: float | Schedule | None = None,
        use_clipped_value_loss: bool = False,
        critic_learning_rate: float | Schedule | None = None,
        critic_n_epochs: int | None = None,
        critic_batch_size: int | None = None,
        normalize_value: bool = True,
        huber_delta: float | None = None,
        chunk_length: int | None = 32,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        exploration_noise: ExplorationNoise = None,
        action_noise: None = None,
        target_critic_tau: float | None = None,
        verbose: int = 0,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ) -> None:
        refuse_action_noise(action_noise)
        policy, env = self._policy_and_env(policy, env)
        super().__init__(
            policy,
            env,
            use_sde=False,  # SB3 refuses it for the joint action space
            sde_sample_freq=sde_sample_freq,
            verbose=verbose,
            _init_setup_model=False,
            supported_action_spaces=(spaces.Dict,),
            **kwargs,
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
        self.use_sde = use_sde
        self.exploration_noise = exploration_noise
        self.target_critic_tau = target_critic_tau
        self._last_active: np.ndarray | None = None
        if self.env is not None:
            if verbose >= 1 and getattr(self.env.unwrapped, "choice", None) is not None:
                choice = self.env.unwrapped.choice  # type: ignore[attr-defined]
                print(f"{self.env.num_envs} environments run in {choice}")
            check_team_spaces(self.observation_space, self.action_space)
            sizes = {"batch_size": batch_size, "critic_batch_size": critic_batch_size}
            check_batch_sizes(self.n_steps, self.env.num_envs, sizes)
            self._check_normalisation()
        if _init_setup_model:
            self._setup_model()
        if verbose >= 1 and self.env is not None:
            print(describe_masks(self.env, self.observation_space, self.action_space))

    # ---------------------------------------------------------------- set-up

    def _setup_model(self) -> None:
        self._check_settings()
        check_exploration(self)
        check_target_critic(self)
        self.max_grad_norm = float("inf") if self.max_grad_norm is None else self.max_grad_norm
        self._setup_lr_schedule()
        self._seed_generators()
        rate = self.critic_learning_rate
        self.critic_lr_schedule = FloatSchedule(self.learning_rate if rate is None else rate)
        if self.clip_range_vf is not None:
            self.clip_range_vf = FloatSchedule(self.clip_range_vf)
        policy = self.policy_class(
            self.observation_space,
            self.action_space,
            self.lr_schedule,
            critic_lr_schedule=self.critic_lr_schedule,
            normalize_value=self.normalize_value,
            **self._policy_options(),
            **self.policy_kwargs,
        )
        self.policy = policy.to(self.device)  # type: ignore[assignment]
        self._exploration = Exploration(
            self.policies,
            self.policy.team_spaces.action_space,
            self.exploration_noise,
            self.sde_sample_freq,
            self.device,
        )
        self._make_log_names()
        if self.env is not None:
            # A model that is loaded without an environment may be for `predict` alone
            self._check_memory()
        buffer_class: Any = self.rollout_buffer_class or MultiAgentRolloutBuffer
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
        self._make_agent_log()
        self._reset_collector()

    def _policy_options(self) -> dict[str, bool]:
        """Arguments of the policy that follow from those of the algorithm, where they are set."""
        options = {"use_sde": self.use_sde, "target_critic": self.target_critic_tau is not None}
        return {name: value for name, value in options.items() if value}

    def _check_memory(self) -> None:
        """Announce the memory of a rollout, and refuse more than the machine has."""
        size = (self.policy, self.n_steps, self.n_envs, self.critic.n_values)
        if self.verbose >= 1:
            print(f"A rollout takes {describe(rollout_bytes(*size))}")
        check_memory(*size, self.device)

    # ---------------------------------------------------------------- rollouts

    @torch_threads(1)
    def collect_rollouts(  # type: ignore[override]
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: MultiAgentRolloutBuffer,
        n_rollout_steps: int,
    ) -> bool:
        """
        Let the team act for ``n_rollout_steps`` and store the transitions.

        Callbacks find in their ``locals`` what SB3's loop has: ``obs_tensor``, the joint
        observation, and ``actions`` and ``log_probs``, each as tensors by key or agent; ``values``,
        ``(n_envs, n_values)``; ``clipped_actions``, the structured array (or tensors) that the
        environment was given; ``new_obs``, ``rewards``, ``dones`` and ``infos``.

        :param env: Training environment
        :param callback: Callback for every step, and for the beginning and the end of the rollout
        :param rollout_buffer: Buffer to fill
        :param n_rollout_steps: Steps per environment
        :return: False if the callback asked to stop
        """
        assert self._watch is not None
        self.policy.set_training_mode(False)
        rollout_buffer.reset()
        if self._last_good is not None:
            self._last_good.begin_rollout(self)
        actors = self.policy.make_collector()
        # A simulator of tensors, without a wrapper around it, keeps all data on its device
        to_env_actions: Callable[[Mapping[str, th.Tensor]], Any] = actors.to_env_actions
        if takes_tensors(env):
            to_env_actions = actors.to_env_tensors
        self._exploration.reset_sde(env.num_envs)
        callback.on_rollout_start()
        if self._env_has_moved():
            self._begin_episodes(env.reset())
        state = self.collector_state
        obs = self._to_tensors(state.obs)

        for n_steps in range(n_rollout_steps):
            normals = self._exploration.before_step(n_steps, state.episode_starts)
            obs = self.policy.actor_observation(obs, state.active)
            decision = actors(obs, state.states.pi, normals)
            step = self.policy.add_values(decision, obs, state.states.vf)
            clipped_actions = to_env_actions(step.actions)
            new_obs, rewards, dones, infos = env.step(clipped_actions)
            self.num_timesteps += env.num_envs
            self._last_transition = self._watch.last

            # Callbacks read these names, which are those of SB3's loop
            obs_tensor, actions = obs, step.actions
            values, log_probs = self.critic.clip(step.values), step.log_probs
            callback.update_locals(locals())
            continue_training = callback.on_step()

            assert isinstance(new_obs, dict)
            next_obs = self._to_tensors(new_obs)
            facts = step_facts(infos, dones, env, len(self.agents))
            returns = self._split_rewards(rewards, facts)
            self._check_step(next_obs, returns, infos)
            self._update_info_buffer(infos, dones)
            self._agent_returns.add(facts.agent_rewards, facts.dones, state.active)
            moved = self._env_has_moved()
            if moved:
                warn_of_lost_episodes()
                facts, infos = cut_off(facts, infos, new_obs)
            state = self._add(rollout_buffer, obs, step, returns, facts, infos, state)
            obs = next_obs
            state = state._replace(obs=new_obs, episode_starts=facts.dones, active=facts.active)
            self.collector_state = state
            if moved:
                self._begin_episodes(env.reset())
                state = self.collector_state
                obs = self._to_tensors(state.obs)
            if not continue_training:
                # After the transition is stored, so that a later call of `learn` can continue here
                return False

        with th.no_grad():
            last_values = self.policy.predict_values(obs, state.states)
        if self.critic.n_values > 1:
            presence = Presence(facts.active, facts.waiting)
            last_values = values_of_all_agents(
                last_values, state.own_values, presence, self._value_after_leaving
            )
        if self._last_good is not None:
            self._last_good.end_rollout(self)
        self._check_scales(rollout_buffer)
        last_values = self._clip_values(last_values, rollout_buffer)
        rollout_buffer.compute_returns_and_advantage(last_values, facts.dones)
        self._note_absent_agents(rollout_buffer.active_agents())

        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _add(
        self,
        rollout_buffer: MultiAgentRolloutBuffer,
        obs: dict[str, th.Tensor],
        step: JointStep,
        returns: th.Tensor,
        facts: StepFacts,
        infos: list[dict[str, Any]],
        state: CollectorState,
    ) -> CollectorState:
        """
        Store a transition.

        :param rollout_buffer: Buffer
        :param obs: Joint observation before the step
        :param step: Decision of the team
        :param returns: Rewards ``(n_envs, n_values)``, changed at time limits
        :param facts: Facts of the step
        :param infos: Infos of the step
        :param state: State before the step
        :return: State with the hidden states and the agents' own values after the step
        """
        states = self.policy.advance_memory(state.states, step.states, state.active)
        own_values = state.own_values
        if self.critic.n_values > 1:
            active = True if state.active is None else state.active
            own_values = step.values.where(th.as_tensor(active, device=self.device), own_values)
        self._discounted_sums.add(returns, facts.dones & ~facts.truncated)
        self._bootstrap_time_limits(returns, facts, infos, states, own_values)
        rollout_buffer.add(obs, step, returns, state.episode_starts, state.active, state.states)
        if facts.dones.any():
            dones = th.as_tensor(facts.dones, device=self.device)
            states = reset_states(states, dones)
            own_values = own_values.masked_fill(dones.unsqueeze(1), 0.0)
        return state._replace(states=states, own_values=own_values)
