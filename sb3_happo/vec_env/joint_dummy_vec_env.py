"""Joint environments in the current process."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

from sb3_happo.envs.attributes import defines, layers, owner_of, played_env
from sb3_happo.envs.joint_env import JOINT_NAMES, JointEnv
from sb3_happo.envs.mask_methods import check_mask_wrappers
from sb3_happo.envs.spaces import joint_action_dtype
from sb3_happo.vec_env.actions import as_joint_actions
from sb3_happo.vec_env.env_states import episode_state, keeps_episode, restore_episode
from sb3_happo.vec_env.patient_files import keep_monitoring
from sb3_happo.vec_env.step_facts import StepInfos, gather_facts

JointObs = dict[str, np.ndarray]

# Methods that go through all wrappers
_OUTERMOST = ("reset", "step", "render", "close")


class JointDummyVecEnv(DummyVecEnv):
    """
    Joint environments one after the other in the current process: SB3's ``DummyVecEnv`` without
    its deep copies.

    The arrays that :meth:`reset` and :meth:`step` return belong to the caller: each call makes new
    ones. The infos are new dicts whose values are those of the environments, not copies.

    :param env_fns: Functions that return joint environments (:class:`~sb3_happo.JointEnv`), a new
        one each, all of one team
    :raises TypeError: If an environment is not joint
    :raises ValueError: If the environments are not of one team, or one occurs twice
    """

    observation_space: spaces.Dict
    action_space: spaces.Dict
    #: :class:`~sb3_happo.vec_env.VecEnvChoice`, if ``choose_vec_env`` has made this
    choice: tuple[int, float | None, float | None] | None = None

    def __init__(self, env_fns: Sequence[Callable[[], gym.Env]]) -> None:
        super().__init__(list(env_fns))
        first_team = (self.observation_space, self.action_space)
        for index, env in enumerate(self.envs):
            check_same_team(index, (env.observation_space, env.action_space), first_team)
            check_mask_wrappers(env, env.unwrapped)
        check_different(self.envs)
        keep_monitoring(self)
        self._action_dtype = joint_action_dtype(self.action_space)
        #: Index of the environment that is running or ran last, for reports of failures
        self.env_index = 0

    def step_async(self, actions: np.ndarray | Sequence[Mapping[str, Any]]) -> None:
        """
        Take the joint actions of the next :meth:`step_wait`.

        :param actions: Structured array ``(n_envs,)`` with one field per agent, or one
            ``{agent: action}`` per environment
        """
        joint = as_joint_actions(actions, self.action_space, self._action_dtype, self.num_envs)
        # Environments may keep their part, and the caller may write to the array again
        self.actions = joint.copy()

    def step_wait(self) -> tuple[JointObs, np.ndarray, np.ndarray, StepInfos]:
        """
        Step every environment, and reset those whose episode has ended.

        :return: Joint observation, each entry ``(n_envs, ...)``; team rewards, float32
            ``(n_envs,)``; dones, ``(n_envs,)``; infos
        """
        batch = self._new_batch()
        rewards = np.empty(self.num_envs, np.float32)
        dones = np.empty(self.num_envs, bool)
        infos: list[dict[str, Any]] = []
        for index, (env, action) in enumerate(zip(self.envs, self.actions, strict=True)):
            self.env_index = index
            obs, rewards[index], terminated, truncated, info = env.step(action)
            dones[index] = terminated or truncated
            info = {**info, "TimeLimit.truncated": truncated and not terminated}
            if dones[index]:
                # Copied, since the environment may write its next observation to the same arrays
                info["terminal_observation"] = {
                    key: np.array(obs[key], rows.dtype) for key, rows in batch.items()
                }
                obs, self.reset_infos[index] = env.reset()
            for key, rows in batch.items():
                rows[index] = obs[key]
            infos.append(info)
        facts = gather_facts(infos, dones, self.reset_infos, len(self.action_space.spaces))
        return batch, rewards, dones, StepInfos(infos, facts)

    def keep_episodes(self, indices: VecEnvIndices = None) -> list[bool]:
        """
        :param indices: Indices of the environments, all by default
        :return: True for each that offers the state of its running episode, see
            :func:`~sb3_happo.vec_env.env_states.keeps_episode`
        """
        return [keeps_episode(self.envs[index]) for index in self._get_indices(indices)]

    def episode_states(self, indices: VecEnvIndices = None) -> list[dict[str, Any]]:
        """
        :param indices: Indices of the environments, all by default
        :return: State of each running episode, plain data
        """
        return [episode_state(self.envs[index]) for index in self._get_indices(indices)]

    def restore_episodes(
        self, states: Sequence[dict[str, Any]], indices: VecEnvIndices = None
    ) -> None:
        """
        :param states: States of the episodes, as :meth:`episode_states` returns them
        :param indices: Indices of the environments, which are reset; all by default
        """
        for index, state in zip(self._get_indices(indices), states, strict=True):
            restore_episode(self.envs[index], state)

    def reset(self) -> JointObs:
        """
        Start an episode in every environment.

        :return: Joint observation, each entry ``(n_envs, ...)``
        """
        batch = self._new_batch()
        for index, env in enumerate(self.envs):
            self.env_index = index
            options = {"options": self._options[index]} if self._options[index] else {}
            obs, self.reset_infos[index] = env.reset(seed=self._seeds[index], **options)
            for key, rows in batch.items():
                rows[index] = obs[key]
        self._reset_seeds()
        self._reset_options()
        return batch

    # ---------------------------------------------------------------- attributes and methods

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        :param attr_name: Name of an attribute of a wrapper, of the joint environment, or of the
            environment inside it. Those of ``Monitor`` come last
        :param indices: Indices of the environments to ask, all by default
        :return: Value of the attribute in each of them
        :raises AttributeError: If an environment lacks the attribute
        """
        targets = self._get_target_envs(indices)
        return [getattr(attribute_owner(env, attr_name), attr_name) for env in targets]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        Set an attribute where :meth:`get_attr` reads it; a new one in the innermost environment.

        :param attr_name: Name of an attribute
        :param value: New value
        :param indices: Indices of the environments to change, all by default
        """
        for env in self._get_target_envs(indices):
            setattr(attribute_owner(env, attr_name), attr_name, value)

    def env_method(
        self,
        method_name: str,
        *method_args: Any,
        indices: VecEnvIndices = None,
        **method_kwargs: Any,
    ) -> list[Any]:
        """
        :param method_name: Name of a method, looked up as by :meth:`get_attr`
        :param method_args: Arguments of the method
        :param indices: Indices of the environments whose method is called, all by default
        :param method_kwargs: Keyword arguments of the method
        :return: Result in each of them
        :raises AttributeError: If an environment lacks the method
        """
        results = []
        for env in self._get_target_envs(indices):
            # An episode is begun and stepped through all wrappers
            owner = env if method_name in _OUTERMOST else attribute_owner(env, method_name)
            results.append(getattr(owner, method_name)(*method_args, **method_kwargs))
        return results

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None
    ) -> list[bool]:
        """
        :param wrapper_class: Class of a wrapper
        :param indices: Indices of the environments to look at, all by default
        :return: For each of them, True if it is wrapped in ``wrapper_class``, around the joint
            environment or inside it
        """
        wrapped = []
        for env in self._get_target_envs(indices):
            wrapped.append(any(isinstance(layer, wrapper_class) for layer in layers(env)))
        return wrapped

    def _new_batch(self) -> JointObs:
        """Arrays for the next observations, ``(n_envs, ...)`` each."""
        return {key: np.empty_like(buffer) for key, buffer in self.buf_obs.items()}


def attribute_owner(env: gym.Env, name: str) -> Any:
    """
    :param env: Joint environment, wrapped or not
    :param name: Name of an attribute
    :return: Object that uses the attribute; the innermost environment if none has it
    """
    joint = env.unwrapped
    inside = owner_of(joint, name)
    if isinstance(joint, JointEnv):
        inside = joint if name in JOINT_NAMES else owner_of(joint.env, name)
    for layer in layers(env):
        if layer is joint:
            break
        # Monitor is added to every environment, unasked, and has common names such as "rewards"
        is_last = isinstance(layer, Monitor) and inside is not None
        if not is_last and defines(layer, name):
            return layer
    if inside is None:
        inside = owner_of(env, name)
    return played_env(env) if inside is None else inside


def check_different(envs: Sequence[gym.Env]) -> None:
    """
    Check that no environment occurs twice, under several ``JointEnv``s.

    :param envs: Joint environments
    :raises ValueError: If one is
    """
    seen: dict[int, int] = {}
    for index, env in enumerate(envs):
        inner = getattr(env.unwrapped, "env", env.unwrapped)
        before = seen.setdefault(id(getattr(inner, "unwrapped", inner)), index)
        if before != index:
            raise ValueError(
                f"Environments {before} and {index} are one and the same; the function must make "
                "a new one at each call: `lambda: make_my_env()`, not `lambda: my_env`."
            )


def check_same_team(
    index: int, team: tuple[spaces.Space, spaces.Space], first: tuple[spaces.Space, spaces.Space]
) -> None:
    """
    Check that an environment has the team of the first one in a ``VecEnv``.

    :param index: Index of the environment
    :param team: Observation space and action space of the environment
    :param first: Observation space and action space of the first environment
    :raises TypeError: If the environment is not joint
    :raises ValueError: If its team differs from that of the first one
    """
    if not all(isinstance(space, spaces.Dict) for space in team):
        raise TypeError(
            f"Environment {index} has the observation space {team[0]} and the action space "
            f"{team[1]}, where a joint environment has two Dicts; wrap it with JointEnv."
        )
    for kind, space, other in zip(("observation", "action"), team, first, strict=True):
        if space != other or list(space) != list(other):  # type: ignore[call-overload]
            raise ValueError(
                f"Environment {index} has the joint {kind} space {space}, and environment 0 has "
                f"{other}; all environments of a VecEnv must be of one team."
            )
