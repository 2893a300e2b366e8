"""Multi-agent MuJoCo by index: whose are which numbers of a robot's joint observation and action."""

import types
from typing import Any

import gymnasium as gym
import numpy as np

from sb3_happo.envs.adapters import TeamStep, WrappedTeam, below

# Robots whose agents observe numbers that the joint observation holds. Reacher's and Pusher's agents see functions of theirs,
# and the pendulums are single agents.
ROBOTS = ("Ant", "HalfCheetah", "Hopper", "Humanoid", "HumanoidStandup", "Swimmer", "Walker2d")
# Walker2d's agents see their velocities as they are, where its joint observation is clipped
WALKER2D_MAX_VELOCITY = 10.0
# Gymnasium's wrappers that neither change the joint observation nor the joint action
_WRAPPERS = (gym.wrappers.TimeLimit, gym.wrappers.OrderEnforcing, gym.wrappers.PassiveEnvChecker)
_LABELS = (
    2**12
)  # more than there are numbers in any observation; a power of two, so that labels are exact


class Factorisation:
    """
    Whose are which numbers of the joint observation and action.

    :param env: Of Gymnasium-Robotics' multi-agent MuJoCo, with one of ``ROBOTS``
    :raises ValueError: If an agent observes something else as well, or an actuator is not moved by exactly one agent
    """

    #: What the agents observe, one agent after the other: columns of the joint observation
    columns: np.ndarray
    #: Where among those each agent's are
    slices: dict[str, slice]
    #: For each actuator, its place in the agents' actions one after the other
    actuators: np.ndarray
    #: Where the joint observation is clipped and the agents' are not
    clipped: slice | None

    def __init__(self, env: Any) -> None:
        single = env.single_agent_env.unwrapped
        moved = [node.act_ids for part in env.agent_action_partitions for node in part]
        if sorted(moved) != list(range(single.action_space.shape[0])):
            raise ValueError(
                f"Each actuator must be moved by one agent, but here they move {moved}."
            )
        self.actuators = np.argsort(moved)
        columns = _observed_columns(env)
        self.columns = np.concatenate(columns)
        ends = np.cumsum([len(own) for own in columns]).tolist()
        self.slices = {
            agent: slice(end - len(own), end)
            for agent, own, end in zip(env.possible_agents, columns, ends, strict=True)
        }
        self.clipped = None
        if type(single).__name__ == "Walker2dEnv" and env.agent_obsk is not None:
            structure = single.observation_structure
            self.clipped = slice(structure["qpos"], structure["qpos"] + structure["qvel"])


class MujocoTeam(WrappedTeam):
    """
    Multi-agent MuJoCo with less to do per step: what each agent observes is taken out of the joint observation, which the
    simulation has made anyway, all at once, instead of being put together number by number. It is the same up to float32.

    :param env: For which :meth:`suits` holds
    :raises ValueError: As :class:`Factorisation` does; then ``env`` can be used as it is
    """

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self._single = env.single_agent_env
        self._robot = self._single.unwrapped
        self._factorisation = Factorisation(env)
        self._state: np.ndarray = env.state()

    @staticmethod
    def suits(env: Any) -> bool:
        """
        :param env: Any environment
        :return: Whether it is Gymnasium-Robotics' own, of one of ``ROBOTS`` with several agents
        """
        kind = type(env)
        if (kind.__name__, kind.__module__.partition(".")[0]) != (
            "MultiAgentMujocoEnv",
            "gymnasium_robotics",
        ):
            return False
        robot = below(env.single_agent_env, _WRAPPERS)
        known = (
            robot is env.single_agent_env.unwrapped
            and type(robot).__name__.removesuffix("Env") in ROBOTS
        )
        return known and env.agent_obsk is not None

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[Any, Any], dict[Any, dict]]:
        _, infos = self.env.reset(seed=seed, options=options)
        self._state = self.env.state()
        return self._observe(), infos

    def step(self, actions: dict[str, np.ndarray]) -> TeamStep:
        agents = self.env.possible_agents
        joint = np.concatenate(
            [actions[agent] for agent in agents], dtype=np.float64
        )  # as the simulation has it
        self._state, reward, terminated, truncated, info = self._single.step(
            joint[self._factorisation.actuators]
        )
        if terminated or truncated:
            self.env.agents = []
        everyone = dict.fromkeys
        return (
            self._observe(),
            everyone(agents, reward),
            everyone(agents, terminated),
            everyone(agents, truncated),
            everyone(agents, info),
        )

    def _observe(self) -> dict[str, np.ndarray]:
        whole = self._state
        if self._factorisation.clipped is not None:
            whole = whole.copy()
            whole[self._factorisation.clipped] = self._robot.data.qvel
        agents = whole.astype(np.float32)[self._factorisation.columns]
        return {agent: agents[own] for agent, own in self._factorisation.slices.items()}

    def state(self) -> np.ndarray:
        return self._state


def _observed_columns(env: Any) -> list[np.ndarray]:
    """
    Which numbers of the joint observation each agent observes.

    :param env: Of multi-agent MuJoCo
    :return: For each agent, columns of the joint observation
    :raises ValueError: If an agent observes something else as well
    """
    from gymnasium_robotics.envs.multiagent_mujoco.obsk import build_obs

    single = env.single_agent_env.unwrapped
    if env.agent_obsk is None:
        return [np.arange(single.observation_space.shape[0])]
    # The agents observe a simulation in which every number that is in the joint observation stands for its place there
    data = types.SimpleNamespace()
    n_columns = 0
    for category in ("qpos", "qvel", "cinert", "cvel", "qfrc_actuator", "cfrc_ext"):
        labels = np.full(getattr(single.data, category).shape, np.nan)
        n_observed = single.observation_structure.get(category, 0)
        # What the joint observation leaves out comes first: the place in the plane, the world's body, the root's actuators.
        # The labels are below 1, so that the clipping that some observations undergo (as the joint one does) spares them
        labels.ravel()[labels.size - n_observed :] = (
            np.arange(n_columns, n_columns + n_observed) / _LABELS
        )
        n_columns += n_observed
        setattr(data, category, labels)
    columns = []
    for agent, nodes in zip(env.possible_agents, env.k_dicts, strict=True):
        places = _LABELS * build_obs(
            data, nodes, env.local_categories, env.mujoco_globals, env.global_categories
        )
        own = np.nan_to_num(places, nan=-1.0).astype(np.int64)
        if not np.array_equal(own, places):
            raise ValueError(f"{agent} observes something that the joint observation does not hold")
        columns.append(own)
    return columns
