"""Multi-agent MuJoCo by index: each agent's entries of a robot's joint observation and action."""

import types
from typing import Any

import numpy as np

from sb3_happo.envs.adapters import TeamStep, WrappedTeam

#: Robots whose agents observe entries of the joint observation. Agents of Reacher and Pusher
#: observe functions of it, and the pendulums are single agents.
ROBOTS = ("Ant", "HalfCheetah", "Hopper", "Humanoid", "HumanoidStandup", "Swimmer", "Walker2d")
#: Bound at which Walker2d's joint observation clips velocities; its agents observe them unclipped
WALKER2D_MAX_VELOCITY = 10.0
# Wrappers that change neither the joint observation nor the joint action: Gymnasium's, and RL Zoo's
# replacement of its time limit. Names, because importing RL Zoo replaces Gymnasium's class.
_WRAPPERS = ("OrderEnforcing", "PassiveEnvChecker", "TimeLimit", "PatchedTimeLimit")
# More than any observation has entries, and a power of two, so that labels k / _N_LABELS are exact
_N_LABELS = 2**12
# Parts of an observation, in the order in which they stand in it
_CATEGORIES = ("qpos", "qvel", "cinert", "cvel", "qfrc_actuator", "cfrc_ext")


class Factorisation:
    """
    Partition of a robot's joint observation and action among agents.

    :param env: Gymnasium-Robotics' multi-agent MuJoCo, with one of ``ROBOTS``
    :raises ValueError: If an agent observes anything else, or an actuator is not moved by exactly
        one agent
    """

    #: Columns of the joint observation that the agents observe, one agent after the other
    columns: np.ndarray
    #: Slice of ``columns`` of each agent
    slices: dict[str, slice]
    #: For each actuator, its position in the concatenated actions of the agents
    actuators: np.ndarray
    #: Columns that are clipped in the joint observation and not in the agents' ones
    clipped: slice | None

    def __init__(self, env: Any) -> None:
        robot = env.single_agent_env.unwrapped
        moved = [node.act_ids for part in env.agent_action_partitions for node in part]
        if sorted(moved) != list(range(robot.action_space.shape[0])):
            raise ValueError(
                f"Each actuator must be moved by one agent, but here they move {moved}."
            )
        self.actuators = np.argsort(moved)
        columns = _observed_columns(env)
        self.columns = np.concatenate(columns)
        self.slices = {}
        start = 0
        for agent, own in zip(env.possible_agents, columns, strict=True):
            self.slices[agent] = slice(start, start + len(own))
            start += len(own)
        self.clipped = None
        if type(robot).__name__ == "Walker2dEnv" and env.agent_obsk is not None:
            structure = robot.observation_structure
            self.clipped = slice(structure["qpos"], structure["qpos"] + structure["qvel"])


class MujocoTeam(WrappedTeam):
    """
    Multi-agent MuJoCo with less work per step: the agents' observations are columns of the joint
    observation, which the simulation computes in any case, and not collected number by number.
    Observations are the same up to float32.

    :param env: Environment for which :meth:`supports` holds
    :raises ValueError: As :class:`Factorisation`; then ``env`` can be used without this class
    """

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self._single = env.single_agent_env
        self._robot = self._single.unwrapped
        self._factorisation = Factorisation(env)
        self._state: np.ndarray = env.state()

    @staticmethod
    def supports(env: Any) -> bool:
        """
        :param env: Any environment
        :return: Whether ``env`` is Gymnasium-Robotics' own, of one of ``ROBOTS`` with several
            agents
        """
        env_type = type(env)
        package = env_type.__module__.partition(".")[0]
        if (env_type.__name__, package) != ("MultiAgentMujocoEnv", "gymnasium_robotics"):
            return False
        robot = _without_plain_wrappers(env.single_agent_env)
        if robot is not env.single_agent_env.unwrapped or env.agent_obsk is None:
            return False
        return type(robot).__name__.removesuffix("Env") in ROBOTS

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[Any, Any], dict[Any, dict]]:
        _, infos = self.env.reset(seed=seed, options=options)
        self._state = self.env.state()
        return self._observe(), infos

    def step(self, actions: dict[str, np.ndarray]) -> TeamStep:
        agents = self.env.possible_agents
        # float64, as the environment itself hands actions to the simulation
        joint = np.concatenate([actions[agent] for agent in agents], dtype=np.float64)
        self._state, reward, terminated, truncated, info = self._single.step(
            joint[self._factorisation.actuators]
        )
        if terminated or truncated:
            self.env.agents = []
        return (
            self._observe(),
            dict.fromkeys(agents, reward),
            dict.fromkeys(agents, terminated),
            dict.fromkeys(agents, truncated),
            dict.fromkeys(agents, info),
        )

    def _observe(self) -> dict[str, np.ndarray]:
        joint = self._state
        if self._factorisation.clipped is not None:
            joint = joint.copy()
            joint[self._factorisation.clipped] = self._robot.data.qvel
        observed = joint.astype(np.float32)[self._factorisation.columns]
        return {agent: observed[own] for agent, own in self._factorisation.slices.items()}

    def state(self) -> np.ndarray:
        return self._state


def _without_plain_wrappers(env: Any) -> Any:
    """
    :param env: Environment of the robot
    :return: Environment inside the outermost wrappers that are among ``_WRAPPERS``
    """
    while type(env).__name__ in _WRAPPERS:
        if type(env).__module__.partition(".")[0] not in ("gymnasium", "rl_zoo3"):
            break
        env = env.env
    return env


def _observed_columns(env: Any) -> list[np.ndarray]:
    """
    Columns of the joint observation that each agent observes.

    :param env: Multi-agent MuJoCo
    :return: For each agent, columns of the joint observation
    :raises ValueError: If an agent observes anything else
    """
    from gymnasium_robotics.envs.multiagent_mujoco.obsk import build_obs

    robot = env.single_agent_env.unwrapped
    if env.agent_obsk is None:
        return [np.arange(robot.observation_space.shape[0])]
    data = _labelled_simulation(robot)
    columns = []
    for agent, nodes in zip(env.possible_agents, env.k_dicts, strict=True):
        labels = _N_LABELS * build_obs(
            data, nodes, env.local_categories, env.mujoco_globals, env.global_categories
        )
        own = np.nan_to_num(labels, nan=-1.0).astype(np.int64)
        if not np.array_equal(own, labels):
            raise ValueError(f"{agent} observes something that the joint observation does not hold")
        columns.append(own)
    return columns


def _labelled_simulation(robot: Any) -> types.SimpleNamespace:
    """
    Simulation data in which every number that is in the joint observation is its column there.

    :param robot: Single-agent environment
    :return: Object with the arrays of the simulation; columns are divided by ``_N_LABELS``, and NaN
        stands for numbers that the joint observation leaves out
    """
    data = types.SimpleNamespace()
    n_columns = 0
    for category in _CATEGORIES:
        labels = np.full(getattr(robot.data, category).shape, np.nan)
        n_observed = robot.observation_structure.get(category, 0)
        # The joint observation leaves out the first numbers: the position in the plane, the body of
        # the world, the actuators of the root. Labels are below 1, so that the clipping of some
        # observations (as of the joint one) leaves them as they are
        columns = np.arange(n_columns, n_columns + n_observed)
        labels.ravel()[labels.size - n_observed :] = columns / _N_LABELS
        n_columns += n_observed
        setattr(data, category, labels)
    return data
