"""Single-agent vectorised environments as teams of one."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs

from sb3_happo.envs.rows_of_agents import refuse_rows_of_agents
from sb3_happo.envs.spaces import (
    ACTION_MASK,
    STATE,
    flatten_mask,
    float32_space,
    joint_action_dtype,
    joint_action_to_dict,
    n_choices,
)
from sb3_happo.envs.state import Leaf, Observations, VectorState, concatenated_observations
from sb3_happo.vec_env.actions import as_joint_actions

AGENT = "agent_0"


class VecTeamOfOne(VecEnvWrapper):
    """
    A single-agent ``VecEnv`` as the joint environment of a team of one, ``"agent_0"``.

    The agent's observation is that of the environment (``"agent_0"``, or ``"agent_0/<key>"`` for
    the entries of a Dict). The critic's state is made of it as by :class:`~sb3_happo.JointEnv`
    around a single environment, so that a model that was trained with one can be used with the
    other. float64 becomes float32. Action masks come from the observation, or from the
    environments' method ``action_masks()`` (sb3-contrib's protocol and ``ActionMasker``).

    :param venv: The environment
    :raises TypeError: If the observation space is a Tuple, or the rows of ``venv`` are agents
    :raises ValueError: At a reset, if the environment has an action mask in its info, which would
        not reach the agent
    """

    observation_space: spaces.Dict
    action_space: spaces.Dict

    def __init__(self, venv: VecEnv) -> None:
        refuse_rows_of_agents(venv)
        if isinstance(venv.observation_space, spaces.Tuple):
            raise TypeError(
                "VecTeamOfOne needs an observation space that is no Tuple; name its parts in a "
                "Dict."
            )
        own: dict[str, spaces.Space] = {}
        leaves: list[Leaf] = []
        for key, space in _entries(AGENT, venv.observation_space).items():
            own[key] = float32_space(space)
            if key != f"{AGENT}/{ACTION_MASK}":  # the state is made without the mask
                leaves.append(Leaf(key, 0, own[key]))
        # sb3-contrib's protocol: asked after each reset and step
        mask_key = f"{AGENT}/{ACTION_MASK}"
        self._asks_masks = False
        size = n_choices(venv.action_space)
        if size and mask_key not in own and venv.has_attr("action_masks"):
            self._asks_masks = True
            own[mask_key] = spaces.Box(0, 1, (size,), np.int8)
        self._state = concatenated_observations(leaves)
        #: Entries that the state is made of, if it is one vector of plain numbers
        self._numbers: list[str] | None = None
        are_numbers = all(isinstance(leaf.space, spaces.Box) for leaf in leaves)
        if leaves and are_numbers and isinstance(self._state, VectorState):
            self._numbers = [leaf.key for leaf in leaves]
        super().__init__(
            venv,
            spaces.Dict([*own.items(), *self._state.spaces.items()]),
            spaces.Dict([(AGENT, venv.action_space)]),
        )
        self._action_dtype = joint_action_dtype(self.action_space)

    def step_async(self, actions: np.ndarray) -> None:
        """
        Take the joint actions of the next :meth:`step_wait`.

        :param actions: Structured array ``(n_envs,)`` with the field "agent_0"
        """
        joint = as_joint_actions(actions, self.action_space, self._action_dtype, self.num_envs)
        own: Any = joint[AGENT]
        if own.dtype.names is not None:  # nested actions, which SB3 passes on as a list
            own = [joint_action_to_dict(self.action_space, row)[AGENT] for row in joint]
        self.venv.step_async(own)

    def step_wait(self) -> tuple[Observations, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """
        Wait for the step that :meth:`step_async` began.

        :return: Joint observation, each entry ``(n_envs, ...)``; rewards, ``(n_envs,)``; dones,
            ``(n_envs,)``; infos
        """
        obs, rewards, dones, own_infos = self.venv.step_wait()
        agent_rewards = rewards[:, np.newaxis].astype(np.float64)  # (n_envs, 1)
        infos: list[dict[str, Any]] = []
        for own_info, reward in zip(own_infos, agent_rewards, strict=True):
            info = {**own_info, "agent_rewards": reward}
            if "terminal_observation" in info:
                info["terminal_observation"] = self._terminal(info["terminal_observation"])
            infos.append(info)
        return self._batch(obs), rewards, dones, infos

    def reset(self) -> Observations:
        """
        Start an episode in every environment.

        :return: Joint observation, each entry ``(n_envs, ...)``
        """
        obs = self.venv.reset()
        if f"{AGENT}/{ACTION_MASK}" not in self.observation_space.spaces and any(
            ACTION_MASK in info for info in self.venv.unwrapped.reset_infos
        ):
            raise ValueError(
                "The environment has an action mask in its info, which a single-agent VecEnv does "
                "not pass to the agent. Make the VecEnv with make_joint_vec_env, give the "
                "environment itself, or put the mask into the observation."
            )
        return self._batch(obs)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        Set an attribute where ``get_attr`` reads it. SB3's ``VecEnv`` sets it on the outermost
        wrapper, so that the environment inside would not see it.

        :param attr_name: Name of an attribute
        :param value: New value
        :param indices: Indices of the environments to change, all by default
        """
        if not self.venv.has_attr("set_wrapper_attr"):
            self.venv.set_attr(attr_name, value, indices)
            return
        self.venv.env_method("set_wrapper_attr", attr_name, value, indices=indices)

    def _terminal(self, obs: Any) -> Observations:
        """
        :param obs: Observation of one environment
        :return: Joint observation of it
        """
        joint = self._rename(obs, ())
        if self._asks_masks:  # no action follows
            mask_space = self.observation_space[f"{AGENT}/{ACTION_MASK}"]
            joint[f"{AGENT}/{ACTION_MASK}"] = np.ones(mask_space.shape or (), np.int8)
        self._state(joint, None)
        return joint

    def _batch(self, obs: VecEnvObs) -> Observations:
        """
        :param obs: Observation of all environments
        :return: Joint observation, each entry ``(n_envs, ...)``
        """
        joint = self._rename(obs, (self.num_envs,))
        if self._asks_masks:
            masks = self.venv.env_method("action_masks")
            joint[f"{AGENT}/{ACTION_MASK}"] = np.stack(
                [flatten_mask(self.venv.action_space, mask) for mask in masks]
            )
        self._add_state(joint, (self.num_envs,))
        return joint

    def join(self, obs: Any, batch_shape: tuple[int, ...]) -> Observations:
        """
        Joint observation of a given observation, without the action masks that the environments'
        method ``action_masks()`` returns.

        :param obs: Observation of the single agent, of one environment or of a batch
        :param batch_shape: ``(n,)``, or ``()`` for the observation of one environment
        :return: Joint observation
        """
        joint = self._rename(obs, batch_shape)
        self._add_state(joint, batch_shape)
        return joint

    def own_observation(self, joint: Mapping[str, np.ndarray]) -> Any:
        """
        :param joint: Joint observation of one environment or of a batch
        :return: Observation of the single agent within it; of a Dict the entries that are given
        """
        inner = self.venv.observation_space
        if not isinstance(inner, spaces.Dict):
            return joint[AGENT]
        own = {}
        for key in inner.spaces:
            if f"{AGENT}/{key}" in joint:
                own[key] = joint[f"{AGENT}/{key}"]
        return own

    def _add_state(self, joint: Observations, batch_shape: tuple[int, ...]) -> None:
        """Add the critic's state to a joint observation."""
        if not batch_shape:
            self._state(joint, None)
            return
        if self._numbers is not None:
            parts = [joint[key].reshape(*batch_shape, -1) for key in self._numbers]
            joint[STATE] = np.concatenate(parts, axis=1, dtype=np.float32)
            return
        rows = []
        for index in range(*batch_shape):
            row = {key: array[index] for key, array in joint.items()}
            self._state(row, None)
            rows.append(row)
        for key in self._state.spaces:
            joint[key] = np.stack([row[key] for row in rows])

    def _rename(self, obs: Any, batch_shape: tuple[int, ...]) -> Observations:
        """
        :param obs: Observation of the environment
        :param batch_shape: ``(n_envs,)``, or ``()`` for the observation of one environment
        :return: Joint observation without the state
        """
        joint: Observations = {}
        for key, value in _entries(AGENT, obs).items():
            array, space = np.asarray(value), self.observation_space.spaces[key]
            dtype = space.dtype
            if array.dtype.kind == "f" and np.issubdtype(dtype, np.integer):
                # VecNormalize returns fractions for integers, and does not change the space
                dtype = np.dtype(np.float32)
            array = array.astype(dtype, copy=False)
            joint[key] = array.reshape((*batch_shape, *(space.shape or ())))
        return joint


def _entries(prefix: str, whole: Any) -> dict[str, Any]:
    """
    :param prefix: Name of the agent
    :param whole: Observation space or observation
    :return: Parts of a Dict, or any other space or observation, by key in the joint observation
    """
    if isinstance(whole, (dict, spaces.Dict)):
        return {f"{prefix}/{key}": whole[key] for key in whole}
    return {prefix: whole}
