"""Multi-agent MuJoCo over EnvPool, which steps all environments in threads of its own."""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

from sb3_happo.envs import make_joint_env
from sb3_happo.envs.mujoco import ROBOTS, WALKER2D_MAX_VELOCITY, Factorisation
from sb3_happo.envs.spaces import STATE
from sb3_happo.suggestions import did_you_mean
from sb3_happo.vec_env.actions import as_joint_actions
from sb3_happo.vec_env.counts import checked_count
from sb3_happo.vec_env.joint_dummy_vec_env import JointObs
from sb3_happo.vec_env.joint_subproc_vec_env import available_cores
from sb3_happo.vec_env.simulator_vec_env import SimulatorVecEnv
from sb3_happo.vec_env.step_facts import StepInfos

# Arguments with the same names and meanings in Gymnasium and in EnvPool
_PHYSICS = (
    *("max_episode_steps", "frame_skip", "reset_noise_scale", "terminate_when_unhealthy"),
    *("forward_reward_weight", "ctrl_cost_weight", "contact_cost_weight", "healthy_reward"),
)
_FACTORISATION = ("agent_obsk", "agent_factorization", "local_categories", "global_categories")
# Attributes that get_attr returns, which are the same in all environments
_ATTRIBUTES = (
    *("agents", "n_agents", "team_reward", "observation_space", "action_space"),
    *("render_mode", "metadata"),
)

_N_SEEDS = 2**31  # EnvPool takes seeds as signed 32-bit integers


class EnvPoolVecEnv(SimulatorVecEnv):
    """
    Multi-agent MuJoCo, natively vectorised: ``"envpool/HalfCheetah-2x3-v1"`` has the agents,
    spaces, observations, rewards and time limit of ``"mamujoco/HalfCheetah-2x3-v1"``, its twin, and
    is stepped by EnvPool's threads, without Python in between.

    From equal states, EnvPool and Gymnasium compute equal steps if their versions of MuJoCo do.
    EnvPool contains its own (EnvPool 1.2.5: MuJoCo 3.6.0), with which all robots agree to 1e-6;
    other versions solve the dynamics of Ant and the humanoids slightly differently. Initial states
    have the same distributions, drawn by other generators.

    Episodes follow SB3's contract: at the end of one, ``terminal_observation`` and
    ``TimeLimit.truncated`` are in the info, and the observation is that of the next episode.
    ``info["episode"]`` has the statistics of ``Monitor``, so that no ``VecMonitor`` is needed.
    ``info["agent_rewards"]`` is there at every step, equal for all agents; the terms of the reward
    are not available.

    The environments cannot be rendered, wrapped, or asked for attributes one by one. For these
    purposes, the same trained model works with the ``"mamujoco/..."`` twin.

    :param id: ``"envpool/<robot>-<factorisation>-v1"``, with the factorisations of ``"mamujoco/"``;
        robots are Ant, HalfCheetah, Hopper, Humanoid, HumanoidStandup, Swimmer and Walker2d
    :param n_envs: Number of environments
    :param seed: Seed of the first environment's first reset, counted up for the others; random by
        default
    :param n_threads: Number of threads, at most one per environment; by default one per available
        core
    :param env_kwargs: ``agent_obsk``, ``agent_factorization``, ``local_categories``,
        ``global_categories`` as in multi-agent MuJoCo; ``max_episode_steps``, ``frame_skip``,
        ``reset_noise_scale``, ``terminate_when_unhealthy``, ``forward_reward_weight``,
        ``ctrl_cost_weight``, ``contact_cost_weight``, ``healthy_reward`` as in Gymnasium's MuJoCo
        environments, where the robot has them
    :raises ImportError: If EnvPool, Gymnasium-Robotics or MuJoCo is not installed
    :raises ValueError: If the id does not resolve, or an argument cannot apply
    """

    render_mode: str | None = None
    #: All agents have the team's reward
    team_reward = "mean"

    def __init__(
        self,
        id: str,
        n_envs: int = 1,
        seed: int | None = None,
        n_threads: int | None = None,
        **env_kwargs: Any,
    ) -> None:
        n_envs = checked_count("n_envs", n_envs)
        if n_threads is not None:
            n_threads = checked_count("n_threads", n_threads)
        self._twin_id, self._robot = _resolve(id)
        self._make_pool = _import_envpool(id)
        unknown = [name for name in env_kwargs if name not in (*_PHYSICS, *_FACTORISATION)]
        if unknown:
            raise ValueError(
                f"{id!r} cannot take {unknown}; it takes {[*_FACTORISATION, *_PHYSICS]}. Make "
                f"{self._twin_id!r} instead, which takes all arguments of multi-agent MuJoCo."
            )
        self.n_threads = min(n_envs, n_threads or available_cores())
        #: EnvPool's own interface, None until the first reset and after :meth:`close`
        self.pool: Any = None
        self._waiting = False

        twin: Any = make_joint_env(self._twin_id, **env_kwargs)
        try:
            self._factorisation = Factorisation(twin.env)
        except ValueError as error:
            raise ValueError(
                f"With these arguments EnvPool cannot play {id!r}: {error}. Choose other "
                "`local_categories`, `global_categories` or `agent_factorization`, or make "
                f"{self._twin_id!r}."
            ) from error
        self._pool_kwargs = {key: value for key, value in env_kwargs.items() if key in _PHYSICS}
        if self._factorisation.clipped is not None:
            self._pool_kwargs.update(velocity_min=-np.inf, velocity_max=np.inf)
        twin.close()

        super().__init__(n_envs, twin.observation_space, twin.action_space)
        if seed is not None:
            self.seed(seed)
            self.action_space.seed(seed)

    # ---------------------------------------------------------------- steps and resets

    def step_async(self, actions: np.ndarray | Sequence[Mapping[str, Any]]) -> None:
        """
        Let EnvPool's threads begin a step.

        :param actions: Structured array ``(n_envs,)`` with one field per agent, or one
            ``{agent: action}`` per environment
        :raises RuntimeError: If there was no reset yet, or the previous step has not been waited
            for
        """
        if self.pool is None:
            raise RuntimeError("No episode has begun; call reset() first.")
        if self._waiting:
            raise RuntimeError("A step is under way; call step_wait() first.")
        joint = as_joint_actions(actions, self.action_space, self._action_dtype, self.num_envs)
        # Adjacent float32 fields are a matrix: (n_envs, n_actuators)
        matrix = np.ascontiguousarray(joint).view(np.float32).reshape(self.num_envs, -1)
        self.pool.send(matrix[:, self._factorisation.actuators])
        self._waiting = True

    def step_wait(self) -> tuple[JointObs, np.ndarray, np.ndarray, StepInfos]:
        """
        Wait for the step that :meth:`step_async` began.

        :return: Joint observation, each entry ``(n_envs, ...)``; team rewards, float32
            ``(n_envs,)``; dones, ``(n_envs,)``; infos
        :raises RuntimeError: If no step has begun
        """
        if not self._waiting:
            raise RuntimeError("There is no step to wait for; call step_async() first.")
        observation, rewards, terminated, truncated, _ = self.pool.recv()
        self._waiting = False
        joint = self.factorise(observation)
        column = rewards.astype(np.float64)[:, np.newaxis]
        agent_rewards = np.repeat(column, len(self.agents), axis=1)  # (n_envs, n_agents)
        infos = self._make_infos(rewards, agent_rewards, terminated, truncated)
        if infos.facts.dones.any():
            self._begin_next(joint, infos)
        return joint, rewards.astype(np.float32), infos.facts.dones, infos

    def _begin_next(self, joint: JointObs, infos: StepInfos) -> None:
        """
        Begin the next episode where one has ended. EnvPool would do so at the next step, and ignore
        the actions of that step.

        :param joint: Joint observation of all environments, whose rows are replaced
        :param infos: Infos of the step, which are completed
        """
        rows = np.flatnonzero(infos.facts.dones)
        self._end_episodes(infos, {key: values[rows] for key, values in joint.items()})
        observation, info = self.pool.reset(rows.astype(np.int32))
        for key, values in self.factorise(observation).items():
            joint[key][info["env_id"]] = values

    def reset(self) -> JointObs:
        """
        Start an episode in every environment; a step that has not been waited for is dropped.

        :return: Joint observation, each entry ``(n_envs, ...)``
        :raises ValueError: If there are options
        """
        if any(self._options):
            raise ValueError(
                "EnvPool's environments take no options at a reset; make "
                f"{self._twin_id!r}, whose do."
            )
        if self._waiting:
            self.pool.recv()
            self._waiting = False
        if self.pool is None or any(seed is not None for seed in self._seeds):
            self._seed_pool()
        observation, _ = self.pool.reset()
        self._episodes.clear()
        self._reset_seeds()
        return self.factorise(observation)

    def _seed_pool(self) -> None:
        """Make a new pool, since EnvPool takes seeds only then."""
        self.close()
        drawn_seeds = np.random.SeedSequence().generate_state(self.num_envs).tolist()
        seeds = []
        for drawn, seed in zip(drawn_seeds, self._seeds, strict=True):
            seeds.append(int(drawn if seed is None else seed) % _N_SEEDS)
        self.pool = self._make_pool(
            f"{self._robot}-v5",
            num_envs=self.num_envs,
            num_threads=self.n_threads,
            env_seed=seeds,
            **self._pool_kwargs,
        )

    def factorise(self, observation: np.ndarray) -> JointObs:
        """
        Divide EnvPool's observation among the agents.

        :param observation: EnvPool's observation, float64 ``(n, n_numbers)``
        :return: Joint observation, each entry ``(n, ...)``
        """
        state = observation.astype(np.float32)
        own = state[:, self._factorisation.columns]
        if self._factorisation.clipped is not None:
            velocities = state[:, self._factorisation.clipped]
            np.clip(velocities, -WALKER2D_MAX_VELOCITY, WALKER2D_MAX_VELOCITY, out=velocities)
        joint = {agent: own[:, columns] for agent, columns in self._factorisation.slices.items()}
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

    # ---------------------------------------------------------------- attributes and methods

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        :param attr_name: "agents", "n_agents", "team_reward", "observation_space", "action_space",
            "render_mode" or "metadata"
        :param indices: Indices of the environments, all by default
        :return: Value of the attribute, the same for each of them
        :raises AttributeError: If it is another one
        """
        if attr_name not in _ATTRIBUTES:
            raise self._no_such(attr_name)
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        Not possible.

        :param attr_name: Name of an attribute
        :param value: New value
        :param indices: Indices of the environments
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
        :param method_args: Arguments of the method
        :param indices: Indices of the environments
        :param method_kwargs: Keyword arguments of the method
        :raises AttributeError: Always
        """
        raise self._no_such(method_name)

    def get_images(self) -> list[np.ndarray | None]:
        """
        Not possible.

        :raises NotImplementedError: Always
        """
        raise NotImplementedError(
            "EnvPool's environments are not rendered here; show the same team in "
            f"{self._twin_id!r}."
        )

    def _no_such(self, name: str) -> AttributeError:
        return AttributeError(
            f"EnvPool's environments have no {name!r} that could be reached one by one; make "
            f"{self._twin_id!r} for that."
        )


def _import_envpool(id: str) -> Any:
    try:
        import envpool
    except ImportError as error:
        raise ImportError(
            f"The environment {id!r} needs EnvPool (Python 3.11 or newer): "
            'pip install "sb3_happo[envpool]"',
            name="envpool",
        ) from error
    return envpool.make_gymnasium


def _resolve(id: str) -> tuple[str, str]:
    """
    :param id: Id of this family
    :return: Id of the same team in multi-agent MuJoCo, and name of the robot
    :raises ValueError: If there is none
    """
    registered: dict[str, str] = {}
    for spec in gym.registry.values():
        if spec.namespace == "mamujoco":
            registered[spec.id] = spec.kwargs["scenario"]
    twin_id = "mamujoco/" + id.partition("/")[2].replace("|", "p")
    robot = registered.get(twin_id)
    if robot in ROBOTS:
        return twin_id, robot
    if robot is not None:
        raise ValueError(
            f"There is no {id!r}: EnvPool cannot give the agents what they observe in {twin_id!r}; "
            "make that one."
        )
    ids = []
    for other, robot in registered.items():
        if robot in ROBOTS:
            ids.append(other.replace("mamujoco", "envpool"))
    listed = f"There are {', '.join(map(repr, ids))}."
    hint = did_you_mean(id, ids, n=3, otherwise=listed)
    raise ValueError(f"The environment id {id!r} does not resolve. {hint}")
