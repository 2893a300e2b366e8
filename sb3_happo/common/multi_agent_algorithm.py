"""Common part of the algorithms of all families: team, environment, prediction, saving."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, TypeVar

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import update_learning_rate
from stable_baselines3.common.vec_env import (
    VecEnv,
    VecNormalize,
    VecTransposeImage,
    unwrap_vec_normalize,
)
from torch import nn

from sb3_happo.common.agent_policy import AgentPolicy
from sb3_happo.common.checks import (
    all_finite,
    check_channel_order,
    check_env_of_model,
    check_observations,
    check_rewards,
    check_update_of,
    is_joint,
)
from sb3_happo.common.episode_states import drawn_seed
from sb3_happo.common.hyperparameters import (
    COUNT,
    check_agent_learning_rates,
    check_settings,
    checked_timesteps,
    optional,
    plain_number,
    plain_numbers,
)
from sb3_happo.common.last_good import LastGood, as_named_error, check_weights, keep_last_good
from sb3_happo.common.multi_agent_policy import MultiAgentPolicy
from sb3_happo.common.patient_logs import keep_logging
from sb3_happo.common.resumable_algorithm import ResumableAlgorithm
from sb3_happo.common.safe_files import write_or_fail
from sb3_happo.common.saving_callbacks import check_saving
from sb3_happo.common.threads import torch_threads
from sb3_happo.common.unwritten_files import keep_unwritten_files
from sb3_happo.envs import as_joint_env
from sb3_happo.envs.spaces import ACTION_MASK, is_flag
from sb3_happo.suggestions import nearest_names
from sb3_happo.vec_env import JointDummyVecEnv, VecTeamOfOne
from sb3_happo.vec_env.make import make_from_id
from sb3_happo.vec_env.normalize import as_team_normalizer
from sb3_happo.vec_env.patient_files import keep_monitoring

SelfMultiAgent = TypeVar("SelfMultiAgent", bound="MultiAgentAlgorithm")


class MultiAgentAlgorithm(ResumableAlgorithm):
    """
    Base of the algorithms for teams, beside one of SB3's base classes:
    ``class MultiAgentOnPolicyAlgorithm(MultiAgentAlgorithm, OnPolicyAlgorithm)``.

    It turns any environment into a vectorised joint one, holds the team's policies, predicts,
    checks what the environment returns, saves and loads. A subclass collects experience and learns.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {}
    #: Keeper of the weights that a failing :meth:`learn` goes back to
    last_good_class: ClassVar[type[LastGood]] = LastGood
    #: Folder for the model that a failing :meth:`learn` saves; None: that of the logger
    last_good_folder: str | None = None
    #: Path of the model that a failing :meth:`learn` has saved, None if there is none
    last_good_path: str | None = None
    #: Agents without a single sample in the present rollout
    _absent_agents: frozenset[str] = frozenset()

    # ---------------------------------------------------------------- set-up

    def _policy_and_env(self, policy: Any, env: Any) -> tuple[type[BasePolicy], Any]:
        """Arguments of the constructor: ``HAPPO(env)`` means ``HAPPO("MlpPolicy", env)``."""
        _check_policy_argument(type(self).__name__, self.policy_aliases, policy)
        named = isinstance(policy, type)
        if isinstance(policy, str):
            named = policy in self.policy_aliases
        if env is None and not named:
            policy, env = "MlpPolicy", policy
        if isinstance(policy, str):
            if policy not in self.policy_aliases:
                if isinstance(env, str) and env in self.policy_aliases:
                    raise ValueError(
                        f"The policy comes before the environment: "
                        f"{type(self).__name__}({env!r}, {policy!r})."
                    )
                (near,) = nearest_names(policy, self.policy_aliases, cutoff=0.0)
                raise ValueError(
                    f"Unknown policy {policy!r}; did you mean {near!r}? There are "
                    f"{list(self.policy_aliases)}."
                )
            policy = self.policy_aliases[policy]
        return policy, make_from_id(env) if isinstance(env, str) else env

    @staticmethod
    def _wrap_env(env: Any, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        """
        Turn any environment into a vectorised joint one.

        :param env: PettingZoo or Gymnasium environment, ``JointEnv``, id, or ``VecEnv``
        :param verbose: Verbosity level
        :param monitor_wrapper: Wrapping of a single environment in SB3's ``Monitor``
        :return: ``VecEnv`` with a joint observation and action space, images channels first
        """
        if isinstance(env, str):
            env = make_from_id(env)
        if isinstance(env, VecEnv):
            joint = env
            if not is_joint(env.observation_space, env.action_space):
                joint = VecTeamOfOne(env)
            as_team_normalizer(joint)
        else:
            is_joint_env = isinstance(env, gym.Env)
            if not is_joint_env or not is_joint(env.observation_space, env.action_space):
                env = as_joint_env(env)
            if monitor_wrapper and not is_wrapped(env, Monitor):
                env = Monitor(env)
            joint = JointDummyVecEnv([lambda: env])
        check_channel_order(joint.observation_space)
        return BaseAlgorithm._wrap_env(joint, verbose, monitor_wrapper)

    def _check_normalisation(self) -> None:
        """Refuse a ``VecNormalize`` that would normalise flags."""
        normalize = None if self.env is None else unwrap_vec_normalize(self.env)
        if not isinstance(normalize, VecNormalize) or not normalize.norm_obs:
            return
        keys = normalize.norm_obs_keys or []
        flags = [key for key in keys if is_flag(key)]
        if flags:
            others = [key for key in keys if key not in flags]
            raise ValueError(
                f"VecNormalize would normalise {flags}, which are masks of 0 and 1; pass "
                f"norm_obs_keys={others} to it."
            )

    def _check_settings(self) -> None:
        """Check the hyperparameters, and that the spaces of the team are known."""
        if getattr(self, "observation_space", None) is None:
            name = type(self).__name__
            raise ValueError(
                f"{name} needs an environment to learn the team's spaces from: {name}(env), or "
                f"{name}('MlpPolicy', env)."
            )
        names = [*self.settings, "seed", "_stats_window_size", "policy_kwargs"]
        # Flags, and the settings of subclasses that have no condition
        names += [name for name, value in vars(self).items() if isinstance(value, np.generic)]
        vars(self).update(plain_numbers({name: getattr(self, name) for name in names}))
        check_settings(vars(self), self.settings)
        window = {"stats_window_size": self._stats_window_size}
        check_settings(window, {"stats_window_size": optional(COUNT)})
        check_agent_learning_rates(self.policy_kwargs.get("agent_kwargs"))

    def set_random_seed(self, seed: int | None = None) -> None:
        """
        Seed the pseudo-random generators of Python, NumPy, PyTorch and the environment.

        :param seed: Seed, a NumPy scalar too; None to leave the generators as they are
        """
        super().set_random_seed(plain_number(seed))

    def _seed_generators(self) -> None:
        """
        Seed the generators when the networks are made. A model that was trained before, and is
        loaded, gets other random numbers than those of its beginning, which depend on its seed and
        its timesteps.
        """
        seed = self.seed
        if seed is not None and self.num_timesteps > 0:
            seed = drawn_seed(int(seed), self.num_timesteps)
        self.set_random_seed(seed)

    def _make_log_names(self) -> None:
        """Short names of the agents: SB3's console logger cuts keys at 36 characters."""
        self._log_names: dict[str, str] = {}
        for index, agent in enumerate(self.agents):
            self._log_names[agent] = agent if len(agent) <= 16 else f"{agent[:12]}~{index}"

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
        :return: Policies by agent
        """
        return self.policy.policies

    @property
    def critic(self) -> Any:
        """
        :return: Critic that all agents share (IPPO: one for each agent, in one module)
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
        Actions of the agents whose observations are given; see :meth:`MultiAgentPolicy.predict`.

        :param observation: ``{agent: observation}``, or the observation of a joint environment, one
            or a batch
        :param state: Hidden states of recurrent policies
        :param episode_start: Mask of the environments whose hidden states are reset, ``(n_envs,)``
        :param deterministic: Most likely actions instead of samples
        :param action_masks: ``{agent: mask}``, where masks do not come within the observations
        :return: ``{agent: action}``, or for a batch a structured array with one field per agent;
            and the next hidden states
        """
        return self.policy.predict(observation, state, episode_start, deterministic, action_masks)

    # ---------------------------------------------------------------- training

    def learn(
        self: SelfMultiAgent,
        total_timesteps: float,
        callback: MaybeCallback = None,
        log_interval: int | None = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfMultiAgent:
        """
        Train the team.

        If an error ends the training, the model goes back to its weights before the update that
        failed. They are saved as ``last_good.zip`` in ``last_good_folder``, by default the
        logger's folder, and the error says where (:attr:`last_good_path`).

        :param total_timesteps: Joint environment steps to train for, at least; floats such as
            ``1e6`` are accepted
        :param callback: Callback, called at every step with the state of the algorithm
        :param log_interval: Updates (on-policy) or episodes (off-policy) between two logs
        :param tb_log_name: Name of the run in TensorBoard; the algorithm's by default
        :param reset_num_timesteps: Restart of the count of timesteps; False to continue an earlier
            call
        :param progress_bar: Progress bar (needs tqdm and rich)
        :return: Trained model
        :raises ValueError: If an argument is wrong, if a callback saves the model and no file can
            hold it, or on NaN and infinities
        """
        if self.env is None:
            own = type(self).__name__
            raise ValueError(
                f"This {own} model has no environment to learn in; load it with "
                f"{own}.load(path, env=env), or call model.set_env(env) before learn."
            )
        n_steps = checked_timesteps(total_timesteps)
        check_saving(self, callback)
        name = tb_log_name or type(self).__name__
        n_threads = th.get_num_threads()
        # Convolutions gain from PyTorch's own threads; other networks from threads per shard
        convolutions = any(isinstance(module, nn.Conv2d) for module in self.policy.modules())
        n_torch, n_shards = (n_threads, 1) if convolutions else (1, n_threads)
        with (
            torch_threads(n_torch),
            ThreadPoolExecutor(n_shards) as executor,
            keep_unwritten_files(write_or_fail),
        ):
            self._executor, self._last_good = executor, self.last_good_class()
            try:
                super().learn(
                    n_steps,
                    callback,
                    log_interval,
                    name,
                    reset_num_timesteps,
                    progress_bar,
                )
                self._check_result()
            except Exception as error:
                named = as_named_error(self, error)
                keep_last_good(self, named, callback)
                if named is error:
                    raise
                raise named from error
            finally:
                self._executor = self._last_good = None
        return self

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        assert self.env is not None
        keep_monitoring(self.env)
        result = super()._setup_learn(*args, **kwargs)
        keep_logging(self.logger)
        return result

    def _check_result(self) -> None:
        """
        Hook: check of the model at the end of the training.

        :raises NotFiniteError: If weights are NaN or infinite
        """
        check_weights(self)

    def _set_actor_rate(self, agent: str) -> None:
        """Set the learning rate of an agent's optimiser, by its own schedule or the team's."""
        schedule = self.policy.lr_schedules.get(agent, self.lr_schedule)
        rate = schedule(self._current_progress_remaining)
        update_learning_rate(self.policies[agent].optimizer, rate)

    def _log_agent(self, agent: str, figures: Mapping[str, float]) -> None:
        """
        Record figures of an agent, and the mean deviation of its continuous actions. An agent
        without samples has no figures; those of a group that shares parameters are not its own.
        """
        if agent in self._absent_agents:
            return
        name = self._log_names[agent]
        for key, value in figures.items():
            self.logger.record(f"{name}/{key}", value)
        log_std = self.policies[agent].effective_log_std()
        if log_std is not None:
            self.logger.record(f"{name}/std", log_std.exp().mean().item())

    def _to_tensors(self, obs: Mapping[str, np.ndarray | th.Tensor]) -> dict[str, th.Tensor]:
        return {key: th.as_tensor(value, device=self.device) for key, value in obs.items()}

    def _check_step(
        self, obs: dict[str, th.Tensor], rewards: th.Tensor, infos: list[dict[str, Any]]
    ) -> None:
        """
        :param obs: Observations that the environment returned
        :param rewards: Rewards to learn from, ``(n_envs, ...)``
        :param infos: Infos of the step, with each agent's own reward
        :raises ValueError: On NaN and infinities, and on action masks that allow nothing
        """
        if not all_finite([*obs.values(), rewards]):
            check_observations(obs, range(len(rewards)), self.num_timesteps)
            check_rewards(rewards, self.agents, infos, self.num_timesteps)
        for agent, policy in self.policies.items():
            if not policy.masked:
                continue
            masks = obs[f"{agent}/{ACTION_MASK}"].cpu().numpy()[..., -policy.masks.n_choices :]
            rows = policy.masks.rows_without_choice(masks)
            if len(rows):
                raise ValueError(
                    f"agent {agent!r}: its action mask allows nothing (environment {rows[0]}, "
                    f"after {self.num_timesteps} timesteps); an agent that cannot act must be left "
                    "out of the observations, or have one legal action."
                )

    # ---------------------------------------------------------------- environment

    def get_env(self) -> VecEnv | None:
        """
        :return: Training environment, vectorised; a single-agent ``VecEnv`` as it was given, so
            that SB3's callbacks can compare its wrappers with those of the evaluation environment
        """
        env = self.env.venv if isinstance(self.env, VecTransposeImage) else self.env
        return env.venv if isinstance(env, VecTeamOfOne) else self.env

    def set_env(self, env: Any, force_reset: bool = True) -> None:
        """
        Train on another environment from now on.

        :param env: Environment of any form that the constructor takes, with the same team and
            number of environments
        :param force_reset: Reset of the environment before training
        :raises ValueError: If its team differs
        """
        env = self._wrap_env(env, self.verbose)
        check_env_of_model(env, self.observation_space, self.action_space)
        super().set_env(env, force_reset)
        self._check_normalisation()


def _check_policy_argument(
    own: str, policy_aliases: Mapping[str, type[BasePolicy]], policy: Any
) -> None:
    """Refuse classes and objects that are no policy of a team."""
    team_class = next(iter(policy_aliases.values()), MultiAgentPolicy).__name__
    advice = (
        f'Pass the name of a policy, {own}("MlpPolicy", env), or a subclass of {team_class}; '
        "sizes and layers are set by `policy_kwargs`."
    )
    if isinstance(policy, BasePolicy):
        raise ValueError(
            f"{own} makes its own networks, and takes no policy that exists already "
            f"({type(policy).__name__}). {advice}"
        )
    if not isinstance(policy, type):
        return
    check_update_of(own, policy, policy_aliases)
    if issubclass(policy, MultiAgentPolicy):
        return
    if issubclass(policy, AgentPolicy):
        kind = "is the policy of a single agent of a team"
    elif issubclass(policy, BasePolicy):
        kind = "is a policy for a single agent"
    else:
        kind = "is a class; an environment is passed as an object, with its arguments"
    raise ValueError(f"{own} learns a team, and {policy.__name__} {kind}. {advice}")
