"""Single-agent vectorised environments as teams of one."""

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs

from sb3_happo.envs.spaces import (
    ACTION_MASK,
    float32_space,
    joint_action_dtype,
    joint_action_to_dict,
)
from sb3_happo.envs.state import Leaf, Observations, concatenated_observations
from sb3_happo.vec_env.actions import as_joint_actions

AGENT = "agent_0"


class VecTeamOfOne(VecEnvWrapper):
    """
    A single-agent ``VecEnv`` as the joint environment of a team of one, ``"agent_0"``.

    The agent's observation is that of the environment (``"agent_0"``, or ``"agent_0/<key>"`` for the entries of a Dict), and
    the critic's state is made of it as :class:`~sb3_happo.JointEnv` makes it of a single environment's, so that a model of one
    goes on with the other. float64 becomes float32.

    :param venv: The environment
    :raises TypeError: If the observation space is a Tuple
    :raises ValueError: At a reset, if the environment has an action mask in its info, which would not reach the agent
    """

    observation_space: spaces.Dict
    action_space: spaces.Dict

    def __init__(self, venv: VecEnv) -> None:
        if isinstance(venv.observation_space, spaces.Tuple):
            raise TypeError(
                "VecTeamOfOne needs an observation space that is no Tuple; name its parts in a Dict."
            )
        own = {
            key: float32_space(space)
            for key, space in _entries(AGENT, venv.observation_space).items()
        }
        # A mask is no observation
        leaves = [
            Leaf(key, 0, space) for key, space in own.items() if key != f"{AGENT}/{ACTION_MASK}"
        ]
        self._state = concatenated_observations(leaves)
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
        plain = joint[AGENT]
        if plain.dtype.names is not None:
            plain = [joint_action_to_dict(self.action_space, row)[AGENT] for row in joint]  # type: ignore[assignment]
        self.venv.step_async(plain)

    def step_wait(self) -> tuple[Observations, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """
        Wait for the step that :meth:`step_async` began.

        :return: Joint observation, each entry ``(n_envs, ...)``; rewards, ``(n_envs,)``; dones, ``(n_envs,)``; infos
        """
        obs, rewards, dones, infos = self.venv.step_wait()
        agent_rewards = rewards[:, None].astype(np.float64)
        infos = [
            {**info, "agent_rewards": own} for info, own in zip(infos, agent_rewards, strict=True)
        ]
        for info in infos:
            if "terminal_observation" in info:
                info["terminal_observation"] = self._lift(info["terminal_observation"], ())
        return self._lift(obs, (self.num_envs,)), rewards, dones, infos

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
                "The environment has an action mask in its info, which a single-agent VecEnv does not carry to the agent. "
                "Make the VecEnv with make_joint_vec_env, give the environment itself, or put the mask into the observation."
            )
        return self._lift(obs, (self.num_envs,))

    def _lift(self, obs: VecEnvObs, batch: tuple[int, ...]) -> Observations:
        """
        :param obs: Observation of the environment
        :param batch: ``(n_envs,)``, or ``()`` for a single observation
        :return: Joint observation
        """
        lifted: Observations = {}
        for key, value in _entries(AGENT, obs).items():
            array, space = np.asarray(value), self.observation_space.spaces[key]
            # VecNormalize makes fractions of whole numbers, and leaves the space's dtype as it is
            fractions = array.dtype.kind == "f" and np.issubdtype(space.dtype, np.integer)
            array = array.astype(np.float32 if fractions else space.dtype, copy=False)
            lifted[key] = array.reshape((*batch, *(space.shape or ())))
        if not batch:
            self._state(lifted, None)
            return lifted
        rows = [{key: array[index] for key, array in lifted.items()} for index in range(*batch)]
        for row in rows:
            self._state(row, None)
        return lifted | {key: np.stack([row[key] for row in rows]) for key in self._state.spaces}


def _entries(prefix: str, whole: Any) -> dict[str, Any]:
    """The entries of a Dict space or observation, or the one of another, under their keys in the joint one."""
    if isinstance(whole, (dict, spaces.Dict)):
        return {f"{prefix}/{key}": whole[key] for key in whole}
    return {prefix: whole}
