"""Single-agent vectorised environments as teams of one."""

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs

from sb3_happo.envs.spaces import STATE, float32_space, joint_action_dtype, joint_action_to_dict
from sb3_happo.vec_env.actions import as_joint_actions
from sb3_happo.vec_env.joint_dummy_vec_env import JointObs

AGENT = "agent_0"


class VecTeamOfOne(VecEnvWrapper):
    """
    A single-agent ``VecEnv`` as the joint environment of a team of one, ``"agent_0"``.

    The agent's observation is that of the environment (``"agent_0"``, or ``"agent_0/<key>"`` for the entries of a Dict), and
    so is the critic's state (``"state"`` or ``"state/<key>"``), with Boxes flattened unless they are images. float64 becomes
    float32.

    :param venv: The environment
    :raises TypeError: If the observation space is a Tuple
    """

    observation_space: spaces.Dict
    action_space: spaces.Dict

    def __init__(self, venv: VecEnv) -> None:
        if isinstance(venv.observation_space, spaces.Tuple):
            raise TypeError("VecTeamOfOne needs an observation space that is no Tuple; name its parts in a Dict.")
        own = _entries(AGENT, venv.observation_space)
        state = _entries(STATE, venv.observation_space)
        super().__init__(
            venv,
            spaces.Dict(
                [(key, float32_space(space)) for key, space in own.items()]
                + [(key, _state_space(float32_space(space))) for key, space in state.items()]
            ),
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

    def step_wait(self) -> tuple[JointObs, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """
        Wait for the step that :meth:`step_async` began.

        :return: Joint observation, each entry ``(n_envs, ...)``; rewards, ``(n_envs,)``; dones, ``(n_envs,)``; infos
        """
        obs, rewards, dones, infos = self.venv.step_wait()
        agent_rewards = rewards[:, None].astype(np.float64)
        infos = [{**info, "agent_rewards": own} for info, own in zip(infos, agent_rewards, strict=True)]
        for info in infos:
            if "terminal_observation" in info:
                info["terminal_observation"] = self._lift(info["terminal_observation"], ())
        return self._lift(obs, (self.num_envs,)), rewards, dones, infos

    def reset(self) -> JointObs:
        """
        Start an episode in every environment.

        :return: Joint observation, each entry ``(n_envs, ...)``
        """
        return self._lift(self.venv.reset(), (self.num_envs,))

    def _lift(self, obs: VecEnvObs, batch: tuple[int, ...]) -> JointObs:
        """
        :param obs: Observation of the environment
        :param batch: ``(n_envs,)``, or ``()`` for a single observation
        :return: Joint observation
        """
        values = {**_entries(AGENT, obs), **_entries(STATE, obs)}
        return {
            key: np.asarray(values[key], space.dtype).reshape((*batch, *(space.shape or ())))
            for key, space in self.observation_space.spaces.items()
        }


def _entries(prefix: str, whole: Any) -> dict[str, Any]:
    """The entries of a Dict space or observation, or the one of another, under their keys in the joint one."""
    if isinstance(whole, (dict, spaces.Dict)):
        return {f"{prefix}/{key}": whole[key] for key in whole}
    return {prefix: whole}


def _state_space(space: spaces.Space) -> spaces.Space:
    if isinstance(space, spaces.Box) and len(space.shape) != 1 and not is_image_space(space):
        return spaces.Box(space.low.ravel(), space.high.ravel(), dtype=space.dtype.type)
    return space
