"""Multi-agent MuJoCo over EnvPool, which steps all environments in threads of its own."""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

from sb3_happo.envs import joint_action_dtype, make_joint_env
from sb3_happo.envs.mujoco import ROBOTS, WALKER2D_MAX_VELOCITY, Factorisation
from sb3_happo.envs.spaces import STATE
from sb3_happo.suggestions import did_you_mean
from sb3_happo.vec_env.actions import as_joint_actions
from sb3_happo.vec_env.episodes import EpisodeStatistics
from sb3_happo.vec_env.joint_dummy_vec_env import JointObs
from sb3_happo.vec_env.joint_subproc_vec_env import available_cores

# What Gymnasium and EnvPool call alike, and mean alike
_PHYSICS = (
    *("max_episode_steps", "frame_skip", "reset_noise_scale", "terminate_when_unhealthy"),
    *("forward_reward_weight", "ctrl_cost_weight", "contact_cost_weight", "healthy_reward"),
)
_FACTORISATION = ("agent_obsk", "agent_factorization", "local_categories", "global_categories")

_SEEDS = 2**31  # EnvPool's are 32-bit integers with a sign


class EnvPoolVecEnv(VecEnv):
    """
    Multi-agent MuJoCo, natively vectorised: ``"envpool/HalfCheetah-2x3-v1"`` has the agents, spaces, observations, rewards and
    time limit of ``"mamujoco/HalfCheetah-2x3-v1"``, and is stepped by EnvPool's threads, without any Python in between.

    From equal states, both go on alike as far as their versions of MuJoCo do. EnvPool brings its own (EnvPool 1.2.5: MuJoCo
    3.6.0), with which all robots agree to 1e-6; other versions solve the dynamics of Ant and the humanoids slightly
    differently. Resets draw from the same distributions by other generators.

    The episodes are SB3's: at an end, ``terminal_observation`` and ``TimeLimit.truncated`` are in the info, the observation is
    that of the next episode, and ``info["episode"]`` has what ``Monitor`` would say, so that no ``VecMonitor`` is needed.
    ``info["agent_rewards"]`` is there at every step, the same for all agents; the single terms of the reward are not told.

    The environments live inside EnvPool: they cannot be rendered, wrapped, or asked for attributes one by one. Where that is
    needed, the ``"mamujoco/..."`` twin takes the same trained model.

    :param id: ``"envpool/<robot>-<factorisation>-v1"``, such as those of ``"mamujoco/"``; robots are Ant, HalfCheetah, Hopper,
        Humanoid, HumanoidStandup, Swimmer and Walker2d
    :param n_envs: Number of environments
    :param seed: Seed of the first environment's first reset; the following ones' are counted up. Random by default
    :param n_threads: Number of threads, at most one per environment; by default one per available core
    :param env_kwargs: ``agent_obsk``, ``agent_factorization``, ``local_categories``, ``global_categories`` as in multi-agent
        MuJoCo; ``max_episode_steps``, ``frame_skip``, ``reset_noise_scale``, ``terminate_when_unhealthy``,
        ``forward_reward_weight``, ``ctrl_cost_weight``, ``contact_cost_weight``, ``healthy_reward`` as in Gymnasium's MuJoCo
        environments, where the robot has them
    :raises ImportError: If EnvPool, Gymnasium-Robotics or MuJoCo is not installed
    :raises ValueError: If the id does not resolve, or an argument cannot apply
    """

    observation_space: spaces.Dict
    action_space: spaces.Dict
    render_mode: str | None = None

    def __init__(
        self,
        id: str,
        n_envs: int = 1,
        seed: int | None = None,
        n_threads: int | None = None,
        **env_kwargs: Any,
    ) -> None:
        for name, value in {"n_envs": n_envs, "n_threads": n_threads}.items():
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, not {value}.")
        twin_id, self._robot = _resolve(id)
        try:
            import envpool
        except ImportError as error:
            raise ImportError(
                f'The environment {id!r} needs EnvPool (Python 3.11 or newer): pip install "sb3_happo[envpool]"',
                name="envpool",
            ) from error
        unknown = [name for name in env_kwargs if name not in (*_PHYSICS, *_FACTORISATION)]
        if unknown:
            raise ValueError(
                f"{id!r} cannot take {unknown}; it takes {[*_FACTORISATION, *_PHYSICS]}. Make {twin_id!r} instead, which "
                "takes whatever multi-agent MuJoCo does."
            )
        self._twin_id = twin_id
        self._make_pool = envpool.make_gymnasium
        self.n_threads = min(n_envs, n_threads or available_cores())
        self._options_of_pool = {
            name: value for name, value in env_kwargs.items() if name in _PHYSICS
        }
        #: EnvPool's own interface, None until the first reset and after :meth:`close`
        self.pool: Any = None
        self._waiting = False

        twin: Any = make_joint_env(twin_id, **env_kwargs)
        #: Names of the agents
        self.agents: tuple[str, ...] = twin.agents
        self._action_dtype = joint_action_dtype(twin.action_space)
        try:
            self._factorisation = Factorisation(twin.env)
        except ValueError as error:
            raise ValueError(
                f"With these arguments EnvPool cannot play {id!r}: {error}. Choose other `local_categories`, "
                f"`global_categories` or `agent_factorization`, or make {twin_id!r}."
            ) from error
        if self._factorisation.clipped is not None:
            self._options_of_pool.update(velocity_min=-np.inf, velocity_max=np.inf)
        twin.close()

        super().__init__(n_envs, twin.observation_space, twin.action_space)
        self._episodes = EpisodeStatistics(n_envs)
        if seed is not None:
            self.seed(seed)
            self.action_space.seed(seed)

    # ---------------------------------------------------------------- steps and resets

    def step_async(self, actions: np.ndarray | Sequence[Mapping[str, Any]]) -> None:
        """
        Let EnvPool's threads begin a step.

        :param actions: Structured array ``(n_envs,)`` with one field per agent, or one ``{agent: action}`` per environment
        :raises RuntimeError: If there was no reset yet, or the step before has not been waited for
        """
        if self.pool is None:
            raise RuntimeError("No episode has begun; call reset() first.")
        if self._waiting:
            raise RuntimeError("A step is under way; call step_wait() first.")
        joint = as_joint_actions(actions, self.action_space, self._action_dtype, self.num_envs)
        # Fields of float32 side by side are a matrix: (n_envs, n_actuators)
        matrix = np.ascontiguousarray(joint).view(np.float32).reshape(self.num_envs, -1)
        self.pool.send(matrix[:, self._factorisation.actuators])
        self._waiting = True

    def step_wait(self) -> tuple[JointObs, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """
        Wait for the step that :meth:`step_async` began.

        :return: Joint observation, each entry ``(n_envs, ...)``; team rewards, float32, and dones, ``(n_envs,)`` each; infos
        :raises RuntimeError: If there is none
        """
        if not self._waiting:
            raise RuntimeError("There is no step to wait for; call step_async() first.")
        observation, rewards, terminated, truncated, _ = self.pool.recv()
        self._waiting = False
        self._episodes.add(rewards)
        dones = terminated | truncated
        joint = self._factorise(observation)
        agent_rewards = np.repeat(
            rewards.astype(np.float64)[:, None], len(self.agents), axis=1
        )  # (n_envs, n_agents)
        infos: list[dict[str, Any]] = [
            {"agent_rewards": own, "TimeLimit.truncated": False} for own in agent_rewards
        ]
        if dones.any():
            self._begin_next(joint, infos, np.flatnonzero(dones), truncated & ~terminated)
        return joint, rewards.astype(np.float32), dones, infos

    def _begin_next(
        self, joint: JointObs, infos: list[dict[str, Any]], rows: np.ndarray, truncated: np.ndarray
    ) -> None:
        """
        Begin the next episode where one has ended. EnvPool would do so at the next step, and ignore its actions.

        :param joint: Joint observation of all environments; the rows of those that begin are overwritten
        :param infos: Of the step, which are told how the episode ended
        :param rows: Which environments have ended
        :param truncated: Whose episodes were cut short, ``(n_envs,)``
        """
        last = {key: values[rows] for key, values in joint.items()}
        for index, (row, episode) in enumerate(
            zip(rows.tolist(), self._episodes.end(rows), strict=True)
        ):
            infos[row] |= {
                "TimeLimit.truncated": bool(truncated[row]),
                "terminal_observation": {key: values[index] for key, values in last.items()},
                "episode": episode,
            }
        observation, info = self.pool.reset(rows.astype(np.int32))
        for key, values in self._factorise(observation).items():
            joint[key][info["env_id"]] = values

    def reset(self) -> JointObs:
        """
        Start an episode in every environment; a step that has not been waited for is dropped.

        :return: Joint observation, each entry ``(n_envs, ...)``
        :raises ValueError: If there are options
        """
        if any(self._options):
            raise ValueError(
                f"EnvPool's environments take no options at a reset; make {self._twin_id!r}, whose do."
            )
        if self._waiting:
            self.pool.recv()
            self._waiting = False
        if self.pool is None or any(seed is not None for seed in self._seeds):
            self._seed_pool()
        observation, _ = self.pool.reset()
        self._episodes.clear()
        self._reset_seeds()
        return self._factorise(observation)

    def _seed_pool(self) -> None:
        """Make the pool anew, for EnvPool takes seeds only then."""
        self.close()
        random = np.random.SeedSequence().generate_state(self.num_envs).tolist()
        seeds = [
            int(drawn if seed is None else seed) % _SEEDS
            for drawn, seed in zip(random, self._seeds, strict=True)
        ]
        self.pool = self._make_pool(
            f"{self._robot}-v5",
            num_envs=self.num_envs,
            num_threads=self.n_threads,
            env_seed=seeds,
            **self._options_of_pool,
        )

    def _factorise(self, observation: np.ndarray) -> JointObs:
        """
        :param observation: EnvPool's, float64 ``(n, n_numbers)``
        :return: Joint observation, each entry ``(n, ...)``
        """
        state = observation.astype(np.float32)
        agents = state[:, self._factorisation.columns]
        if self._factorisation.clipped is not None:
            velocities = state[:, self._factorisation.clipped]
            np.clip(velocities, -WALKER2D_MAX_VELOCITY, WALKER2D_MAX_VELOCITY, out=velocities)
        joint = {agent: agents[:, columns] for agent, columns in self._factorisation.slices.items()}
        joint[STATE] = state
        return joint

    def close(self) -> None:
        """
        End EnvPool's threads.
        """
        if self.pool is not None:
            self.pool.close()
        self.pool = None
        self._waiting = False

    # ---------------------------------------------------------------- the environments' attributes and methods

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        :param attr_name: "agents", "observation_space", "action_space", "render_mode" or "metadata"
        :param indices: Of which environments, all by default
        :return: Its value, which is the same in each
        :raises AttributeError: If it is another one
        """
        if attr_name not in (
            "agents",
            "observation_space",
            "action_space",
            "render_mode",
            "metadata",
        ):
            raise self._no_such(attr_name)
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        Not possible.

        :param attr_name: Name of an attribute
        :param value: Its new value
        :param indices: In which environments
        :raises AttributeError: Always
        """
        raise self._no_such(attr_name)

    def env_method(
        self,
        method_name: str,
        *method_args: Any,
        indices: VecEnvIndices = None,
        **method_kwargs: Any,
    ) -> list[Any]:
        """
        Not possible.

        :param method_name: Name of a method
        :param method_args: Its arguments
        :param indices: Of which environments to call it
        :param method_kwargs: Its keyword arguments
        :raises AttributeError: Always
        """
        raise self._no_such(method_name)

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None
    ) -> list[bool]:
        """
        :param wrapper_class: Class of a wrapper
        :param indices: Which environments to look at, all by default
        :return: Whether it is ``Monitor``, whose part is done here
        """
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]

    def get_images(self) -> list[np.ndarray | None]:
        """
        Not possible.

        :raises NotImplementedError: Always
        """
        raise NotImplementedError(
            f"EnvPool's environments are not rendered here; show the same team in {self._twin_id!r}."
        )

    def _no_such(self, name: str) -> AttributeError:
        return AttributeError(
            f"EnvPool's environments have no {name!r} that could be reached one by one; make {self._twin_id!r} for that."
        )


def _resolve(id: str) -> tuple[str, str]:
    """
    :param id: Id of this family
    :return: Id of the same team in multi-agent MuJoCo, and the robot
    :raises ValueError: If there is none
    """
    registered = {
        spec.id: spec.kwargs["scenario"]
        for spec in gym.registry.values()
        if spec.namespace == "mamujoco"
    }
    twin_id = "mamujoco/" + id.partition("/")[2].replace("|", "p")
    robot = registered.get(twin_id)
    if robot in ROBOTS:
        return twin_id, robot
    if robot is not None:
        raise ValueError(
            f"There is no {id!r}: EnvPool cannot give the agents what they observe in {twin_id!r}; make that one."
        )
    ids = [
        other.replace("mamujoco", "envpool")
        for other, robot in registered.items()
        if robot in ROBOTS
    ]
    hint = did_you_mean(id, ids, n=3, otherwise=f"There are {', '.join(map(repr, ids))}.")
    raise ValueError(f"The environment id {id!r} does not resolve. {hint}")
