"""VMAS, whose simulator steps all environments at once in PyTorch, as one ``VecEnv``."""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecEnv

from sb3_happo.envs.spaces import STATE, joint_action_dtype
from sb3_happo.suggestions import did_you_mean
from sb3_happo.vec_env.actions import as_joint_actions
from sb3_happo.vec_env.episodes import EpisodeStatistics

TensorObs: TypeAlias = dict[str, th.Tensor]
TeamReward: TypeAlias = str | Callable[[th.Tensor], th.Tensor]
State: TypeAlias = str | Callable[[Any, TensorObs], th.Tensor] | None


class VmasVecEnv(VecEnv):
    """
    Many environments of one VMAS scenario (Bettini et al. 2022, "VMAS: A Vectorized Multi-Agent Simulator for Collective Robot
    Learning"), as a team.

    **Tensors in, tensors out.** :meth:`step` with a dict ``{agent: tensor}`` of actions returns observations, final ones too,
    and rewards as tensors on the simulator's device. What is needed step by step outside, dones and each agent's own reward,
    leaves it in one small transfer. With a structured array of actions, as wrappers and callbacks send it, everything is
    NumPy, as in every ``VecEnv``; :meth:`reset` always returns NumPy. The algorithms of this package send tensors unless a
    wrapper stands in between.

    **Episodes** end where the scenario says so, or after ``max_steps`` (truncated). All environments that end in a step are
    reset together if they are all there are, otherwise one by one, as VMAS has it. ``info["episode"]`` holds the statistics of
    SB3's ``Monitor``, which is not needed here. The simulator's own infos on the last step, tensors ``(n_envs, ...)``,
    are in the attribute ``agent_infos``.

    All environments share one random generator, and each ``VmasVecEnv`` has its own: the same seed gives the same episodes for
    the same actions and number of environments.

    :param scenario: Name of a scenario (``"navigation"``, ``"balance"``, ``"simple_spread"``), path of one, or a
        ``BaseScenario``
    :param n_envs: Number of environments
    :param seed: Seed of the first reset; by default unforeseeable
    :param max_steps: Length after which an episode is cut; None for no limit, if the scenario ends by itself
    :param device: Where to simulate; ``"auto"``: on the GPU if there is one. A model on another device works, at the price
        of moving every step's tensors
    :param team_reward: The team's reward: the ``"mean"`` over the agents, the ``"sum"``, an agent's name, or a callable of the
        agents' rewards ``(n_envs, n_agents)`` that returns ``(n_envs,)``
    :param state: What the critic sees: the agents' observations side by side (None or ``"observations"``), or what a callable
        ``state(simulator, observations)`` returns, ``(n_envs, dim)``
    :param render_mode: ``"rgb_array"``, or None
    :param kwargs: Of ``vmas.make_env`` (``continuous_actions``, ``multidiscrete_actions``, ...) and of the scenario
        (``n_agents``, ...)
    :raises ImportError: If VMAS is not installed
    :raises ValueError: If the scenario is unknown, or an argument does not fit it
    """

    observation_space: spaces.Dict
    action_space: spaces.Dict
    #: Whether :meth:`step` takes dicts of tensors, and then returns tensors
    takes_tensors = True

    def __init__(
        self,
        scenario: Any,
        n_envs: int = 1,
        seed: int | None = None,
        max_steps: int | None = 100,
        device: th.device | str = "auto",
        team_reward: TeamReward = "mean",
        state: State = None,
        render_mode: str | None = "rgb_array",
        **kwargs: Any,
    ) -> None:
        self.render_mode = render_mode
        self.device = get_device(device)
        if seed is None:
            # Otherwise VMAS would play the same episodes in every process
            seed = int(np.random.SeedSequence().generate_state(1)[0])
        #: The simulator: ``vmas.simulator.environment.Environment``
        self.env = _make_simulator(
            scenario,
            num_envs=n_envs,
            device=self.device,
            max_steps=max_steps,
            seed=seed,
            terminated_truncated=True,
            **kwargs,
        )
        self.agents = tuple(str(agent.name) for agent in self.env.agents)
        self.n_agents = len(self.agents)
        if len(set(self.agents)) != self.n_agents:
            raise ValueError(f"Agents must have different names, not {self.agents}.")
        if not callable(team_reward) and team_reward not in ("mean", "sum", *self.agents):
            raise ValueError(
                f"team_reward={team_reward!r} is neither 'mean', 'sum', a callable, nor one of {list(self.agents)}."
            )
        if not (state is None or state == "observations" or callable(state)):
            raise ValueError(
                f"state={state!r} is neither None, 'observations', nor a callable (simulator, observations)."
            )
        self.team_reward = team_reward
        self.state = state
        self.agent_infos: dict[str, Any] = {}
        self._random_state = list(self.env.vmas_random_state)
        self._actions: list[th.Tensor] = []
        self._in_tensors = False
        # The statistics of the running episodes
        self._episodes = EpisodeStatistics(n_envs)

        with self._own_randomness():
            obs = self._observe(self.env.reset(seed=seed))
        observation_space = spaces.Dict(
            [
                (key, spaces.Box(-np.inf, np.inf, tuple(part.shape[1:]), np.float32))
                for key, part in obs.items()
            ]
        )
        agent_spaces = zip(self.agents, self.env.action_space, strict=True)
        action_space = spaces.Dict(
            [(agent, _gymnasium_space(space)) for agent, space in agent_spaces]
        )
        super().__init__(n_envs, observation_space, action_space)
        self._action_dtype = joint_action_dtype(action_space)
        self._seeds[0] = seed

    # ---------------------------------------------------------------- episodes

    def reset(self) -> dict[str, np.ndarray]:
        """
        Start an episode in every environment.

        :return: Joint observation, each entry ``(n_envs, ...)``
        """
        with self._own_randomness():
            obs = self._observe(self.env.reset(seed=self._seeds[0]))
        self._episodes.clear()
        self._reset_seeds()
        self._reset_options()
        return _to_numpy(obs)

    def step_async(
        self, actions: Mapping[str, th.Tensor] | np.ndarray | Sequence[Mapping[str, Any]]
    ) -> None:
        """
        Take the joint actions of the next :meth:`step_wait`.

        :param actions: ``{agent: tensor (n_envs, ...)}`` on any device; or a structured array ``(n_envs,)`` with one field per
            agent, or one ``{agent: action}`` per environment
        :raises ValueError: If they are not the team's
        """
        self._in_tensors = isinstance(actions, Mapping) and all(
            isinstance(own, th.Tensor) for own in actions.values()
        )
        if self._in_tensors:
            assert isinstance(actions, Mapping)
            if set(actions) != set(self.agents):
                raise ValueError(
                    f"These actions are for the agents {list(actions)}, but the team is {list(self.agents)}."
                )
            own = [actions[agent] for agent in self.agents]
        else:
            joint = as_joint_actions(actions, self.action_space, self._action_dtype, self.num_envs)  # type: ignore[arg-type]
            own = [th.from_numpy(np.ascontiguousarray(joint[agent])) for agent in self.agents]
        # (n_envs,) -> (n_envs, 1), as VMAS takes Discrete actions
        self._actions = [part.to(self.device).reshape(self.num_envs, -1) for part in own]

    def step_wait(self) -> tuple[Any, Any, np.ndarray, list[dict[str, Any]]]:
        """
        Step every environment, and reset those whose episode has ended.

        :return: Joint observation, each entry ``(n_envs, ...)``; team rewards, float32 ``(n_envs,)``; dones, a NumPy array
            ``(n_envs,)``; infos. Tensors if the actions were
        """
        with self._own_randomness():
            parts, part_rewards, terminated, truncated, agent_infos = self.env.step(self._actions)
        self.agent_infos = dict(zip(self.agents, agent_infos, strict=True))
        obs = self._observe(parts)
        agent_rewards = th.stack(part_rewards, dim=1)  # (n_envs, n_agents)
        rewards = self._join_rewards(agent_rewards)
        # All that is fetched from the device, in one go
        fetched = (
            th.cat([th.stack([rewards, terminated, truncated], dim=1), agent_rewards], dim=1)
            .cpu()
            .numpy()
        )
        ended, cut = fetched[:, 1:3].astype(bool).T
        dones: np.ndarray = ended | cut
        self._episodes.add(fetched[:, 0])
        infos: list[dict[str, Any]] = [
            {"agent_rewards": own, "TimeLimit.truncated": False} for own in fetched[:, 3:]
        ]
        if dones.any():
            finished = np.flatnonzero(dones)
            self._conclude(finished, cut & ~ended, obs, infos)
            obs = self._restart(finished, obs)
        if self._in_tensors:
            return obs, rewards, dones, infos
        return _to_numpy(obs), fetched[:, 0].copy(), dones, infos

    def _observe(self, parts: Sequence[Any]) -> TensorObs:
        """
        :param parts: Of each agent, its observation: a tensor ``(n_envs, ...)``, or a dict of them
        :return: Joint observation
        """
        obs: TensorObs = {}
        for agent, part in zip(self.agents, parts, strict=True):
            obs.update(_leaves(agent, part))
        if callable(self.state):
            obs[STATE] = self.state(self.env, dict(obs)).to(self.device)
        else:
            obs[STATE] = th.cat([part.flatten(start_dim=1) for part in obs.values()], dim=1)
        return obs

    def _join_rewards(self, agent_rewards: th.Tensor) -> th.Tensor:
        """
        :param agent_rewards: ``(n_envs, n_agents)``
        :return: ``(n_envs,)``
        """
        if callable(self.team_reward):
            return self.team_reward(agent_rewards)
        if self.team_reward == "mean":
            return agent_rewards.mean(dim=1)
        if self.team_reward == "sum":
            return agent_rewards.sum(dim=1)
        return agent_rewards[:, self.agents.index(self.team_reward)]

    def _conclude(
        self, finished: np.ndarray, cut: np.ndarray, obs: TensorObs, infos: list[dict[str, Any]]
    ) -> None:
        """
        Say in the infos how episodes ended.

        :param finished: Environments whose episode has ended
        :param cut: Whether by the time limit alone, ``(n_envs,)``
        :param obs: Their last joint observation, each entry ``(n_envs, ...)``
        :param infos: Written to
        """
        rows = th.from_numpy(finished).to(self.device)
        last: dict[str, Any] = {key: part[rows] for key, part in obs.items()}
        last = (
            {key: part.unbind() for key, part in last.items()}
            if self._in_tensors
            else _to_numpy(last)
        )
        for row, (index, episode) in enumerate(
            zip(finished.tolist(), self._episodes.end(finished), strict=True)
        ):
            infos[index] |= {
                "TimeLimit.truncated": bool(cut[index]),
                "terminal_observation": {key: parts[row] for key, parts in last.items()},
                "episode": episode,
            }

    def _restart(self, finished: np.ndarray, obs: TensorObs) -> TensorObs:
        """
        Start new episodes.

        :param finished: Where
        :param obs: The joint observation of all environments, each entry ``(n_envs, ...)``
        :return: The same with the new episodes' first observations
        """
        from vmas.simulator.environment.environment import local_seed

        rows = th.from_numpy(finished).to(self.device)
        with self._own_randomness():
            if len(finished) == self.num_envs:
                return self._observe(self.env.reset())
            # What `reset_at` does, but random states change hands once and not for each environment
            with local_seed(self.env.vmas_random_state):
                for index in finished.tolist():
                    self.env.scenario.env_reset_world_at(index)
            self.env.steps[rows] = 0
            (parts,) = self.env.get_from_scenario(
                get_observations=True, get_rewards=False, get_infos=False, get_dones=False
            )
        fresh = self._observe(parts)
        return {key: part.index_copy(0, rows, fresh[key][rows]) for key, part in obs.items()}

    @contextlib.contextmanager
    def _own_randomness(self) -> Iterator[None]:
        """VMAS keeps one random state for all its simulators in the process: lend it this one's."""
        shared: list[Any] = self.env.vmas_random_state
        others = shared[:]
        shared[:] = self._random_state
        try:
            yield
        finally:
            self._random_state = shared[:]
            shared[:] = others

    # ---------------------------------------------------------------- the rest of VecEnv

    def get_images(self) -> Sequence[np.ndarray | None]:
        """
        Draw every environment.

        :return: Of each an image ``(height, width, 3)``, uint8
        :raises RuntimeError: If there is nothing to draw with
        """
        return [self._draw(index) for index in range(self.num_envs)]

    def _draw(self, index: int) -> np.ndarray:
        try:
            with self._own_randomness():
                return np.asarray(self.env.render(mode="rgb_array", env_index=index))
        except Exception as error:  # pyglet raises whatever its way to the screen raises
            raise RuntimeError(
                f"VMAS cannot draw here ({type(error).__name__}: {error}). It draws with pyglet (pip install 'pyglet<2'), "
                "which needs a display, or a GPU with EGL; without one, run the program under xvfb-run."
            ) from error

    def close(self) -> None:
        """
        Close the window, if there is one.
        """
        if self.env.viewer is not None:
            self.env.viewer.close()
            self.env.viewer = None

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """
        :param attr_name: An attribute of this, or else of the simulator, which is one for all environments
        :param indices: Environments
        :return: Its value, once for each of them
        """
        value = getattr(self if hasattr(self, attr_name) else self.env, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """
        :param attr_name: An attribute of this, or else of the simulator
        :param value: Its value from now on
        :param indices: None, for the simulator is one for all environments
        :raises ValueError: If only some of the environments are meant
        """
        if indices is not None and set(self._get_indices(indices)) != set(range(self.num_envs)):
            raise ValueError(
                f"VMAS's environments share {attr_name!r}; it can only be set for all of them, indices=None."
            )
        setattr(self if hasattr(self, attr_name) else self.env, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any
    ) -> list[Any]:
        """
        Call a method of the simulator once, which acts on all environments.

        :param method_name: Its name
        :param method_args: Its arguments
        :param indices: Environments
        :param method_kwargs: Its keyword arguments
        :return: What it returned, once for each of them
        """
        with self._own_randomness():
            answer = getattr(self.env, method_name)(*method_args, **method_kwargs)
        return [answer for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: Any = None) -> list[bool]:
        """
        :param wrapper_class: A wrapper
        :param indices: Environments
        :return: Whether they are wrapped in it: ``Monitor`` counts, whose work is done here, and no other
        """
        return [issubclass(wrapper_class, Monitor) for _ in self._get_indices(indices)]


def make_vmas_vec_env(
    id: str, n_envs: int = 1, seed: int | None = None, **kwargs: Any
) -> VmasVecEnv:
    """
    Make VMAS environments from an id.

    :param id: ``"vmas/navigation"`` and the like: any scenario of VMAS
    :param n_envs: Number of environments
    :param seed: Seed of the first reset
    :param kwargs: Of :class:`VmasVecEnv`
    :return: The environments
    """
    return VmasVecEnv(id.removeprefix("vmas/"), n_envs, seed, **kwargs)


def _make_simulator(scenario: Any, **kwargs: Any) -> Any:
    try:
        import vmas
    except ImportError as error:
        raise ImportError(
            f"VMAS is not installed ({error}): pip install vmas", name=error.name
        ) from error
    known = [*vmas.scenarios, *vmas.debug_scenarios, *vmas.mpe_scenarios]
    if isinstance(scenario, str) and not scenario.endswith(".py") and scenario not in known:
        hint = did_you_mean(scenario, known, n=3, cutoff=0.0)
        raise ValueError(f"VMAS has no scenario {scenario!r}. {hint}")
    with warnings.catch_warnings():
        # VMAS itself only warns of arguments that the scenario does not know, and goes on without them
        warnings.filterwarnings("error", "Scenario kwargs")
        try:
            return vmas.make_env(scenario, **kwargs)
        except UserWarning as warning:
            raise ValueError(
                f"{str(warning).partition(' This will')[0]} Correct or remove them."
            ) from warning


def _gymnasium_space(space: Any) -> spaces.Space:
    """An action space of the old ``gym``, which VMAS speaks, in Gymnasium."""
    if hasattr(space, "nvec"):
        return spaces.MultiDiscrete(space.nvec)
    if hasattr(space, "n"):
        return spaces.Discrete(int(space.n))
    return spaces.Box(space.low, space.high, dtype=np.float32)


def _leaves(name: str, observation: Any) -> Iterator[tuple[str, th.Tensor]]:
    if isinstance(observation, Mapping):
        for key, part in observation.items():
            yield from _leaves(f"{name}/{key}", part)
    else:
        yield name, observation.float()


def _to_numpy(obs: TensorObs) -> dict[str, np.ndarray]:
    return {key: part.cpu().numpy() for key, part in obs.items()}
