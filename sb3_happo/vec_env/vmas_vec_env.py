"""VMAS, whose simulator steps all environments at once in PyTorch, as one ``VecEnv``."""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

from sb3_happo.envs.spaces import STATE
from sb3_happo.suggestions import did_you_mean
from sb3_happo.vec_env.actions import as_joint_actions
from sb3_happo.vec_env.counts import checked_count
from sb3_happo.vec_env.simulator_vec_env import SimulatorVecEnv
from sb3_happo.vec_env.step_facts import StepInfos

TensorObs: TypeAlias = dict[str, th.Tensor]
TeamReward: TypeAlias = str | Callable[[th.Tensor], th.Tensor]
State: TypeAlias = str | Callable[[Any, TensorObs], th.Tensor] | None


class VmasVecEnv(SimulatorVecEnv):
    """
    Many environments of one VMAS scenario (Bettini et al. 2022, "VMAS: A Vectorized Multi-Agent
    Simulator for Collective Robot Learning"), as a team.

    **Tensors in, tensors out.** :meth:`step` with a dict ``{agent: tensor}`` of actions returns
    observations, terminal ones too, and rewards as tensors on the simulator's device; the facts of
    the step have the individual rewards as a tensor too. Only dones and the rewards in the infos
    are copied from the device, in one transfer. With a structured array of actions, as wrappers and
    callbacks send it, all results are NumPy arrays, as in every ``VecEnv``; :meth:`reset` always
    returns NumPy arrays. The algorithms of this package send tensors unless the ``VecEnv`` is
    wrapped.

    **Episodes** end where the scenario says so, or after ``max_steps`` (truncated). All
    environments that end in a step are reset together if no other is running, otherwise one by one,
    as VMAS does. ``info["episode"]`` holds the statistics of SB3's ``Monitor``, which is not
    needed here. The simulator's own infos of the last step, tensors ``(n_envs, ...)``, are in the
    attribute ``agent_infos``.

    All environments share one random generator, and each ``VmasVecEnv`` has its own: equal seeds
    give equal episodes for equal actions and numbers of environments.

    :param scenario: Name of a scenario (``"navigation"``, ``"balance"``, ``"simple_spread"``), path
        of one, or a ``BaseScenario``
    :param n_envs: Number of environments
    :param seed: Seed of the first reset; random by default
    :param max_steps: Time limit of an episode in steps; None for no limit, if the scenario ends
        episodes itself
    :param device: Device of the simulator; ``"auto"``: the GPU if there is one. A model on another
        device works, but each step's tensors are then copied between the devices
    :param team_reward: Team reward: the ``"mean"`` over the agents, the ``"sum"``, an agent's name,
        or a callable of the individual rewards ``(n_envs, n_agents)`` that returns ``(n_envs,)``
    :param state: State for the critic: the agents' observations side by side (None or
        ``"observations"``), or the result of a callable ``state(simulator, observations)``,
        ``(n_envs, dim)``
    :param render_mode: ``"rgb_array"``, or None
    :param kwargs: Arguments of ``vmas.make_env`` (``continuous_actions``,
        ``multidiscrete_actions``, ...) and of the scenario (``n_agents``, ...)
    :raises ImportError: If VMAS is not installed
    :raises ValueError: If the scenario is unknown, or an argument does not fit it
    """

    #: True: :meth:`step` takes dicts of tensors, and then returns tensors
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
        n_envs = checked_count("n_envs", n_envs)
        self.render_mode = render_mode
        self.device = get_device(device)
        if seed is None:
            # VMAS's default seed is a constant: every process would play the same episodes
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
        _check_arguments(self.agents, team_reward, state)
        self.team_reward = team_reward
        self.state = state
        self.agent_infos: dict[str, Any] = {}
        self._random_state = list(self.env.vmas_random_state)
        self._actions: list[th.Tensor] = []
        self._in_tensors = False

        with self._own_randomness():
            obs = self._observe(self.env.reset(seed=seed))
        observation_spaces = []
        for key, part in obs.items():
            shape = tuple(part.shape[1:])
            observation_spaces.append((key, spaces.Box(-np.inf, np.inf, shape, np.float32)))
        action_spaces = []
        for agent, space in zip(self.agents, self.env.action_space, strict=True):
            action_spaces.append((agent, _gymnasium_space(space)))
        super().__init__(n_envs, spaces.Dict(observation_spaces), spaces.Dict(action_spaces))
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

        :param actions: ``{agent: tensor (n_envs, ...)}`` on any device; or a structured array
            ``(n_envs,)`` with one field per agent, or one ``{agent: action}`` per environment
        :raises ValueError: If the actions are for another team
        """
        self._in_tensors = isinstance(actions, Mapping) and all(
            isinstance(own, th.Tensor) for own in actions.values()
        )
        if self._in_tensors:
            assert isinstance(actions, Mapping)
            if set(actions) != set(self.agents):
                raise ValueError(
                    f"These actions are for the agents {list(actions)}, but the team is "
                    f"{list(self.agents)}."
                )
            parts = [actions[agent] for agent in self.agents]
        else:
            rows: Any = actions
            joint = as_joint_actions(rows, self.action_space, self._action_dtype, self.num_envs)
            parts = [th.from_numpy(np.ascontiguousarray(joint[agent])) for agent in self.agents]
        # (n_envs,) -> (n_envs, 1), as VMAS takes Discrete actions
        self._actions = [part.to(self.device).reshape(self.num_envs, -1) for part in parts]

    def step_wait(self) -> tuple[Any, Any, np.ndarray, StepInfos]:
        """
        Step every environment, and reset those whose episode has ended.

        :return: Joint observation, each entry ``(n_envs, ...)``; team rewards, float32
            ``(n_envs,)``; dones, a NumPy array ``(n_envs,)``; infos. Observation and rewards are
            tensors if the actions were
        """
        with self._own_randomness():
            parts, part_rewards, terminated, truncated, agent_infos = self.env.step(self._actions)
        self.agent_infos = dict(zip(self.agents, agent_infos, strict=True))
        obs = self._observe(parts)
        agent_rewards = th.stack(part_rewards, dim=1)  # (n_envs, n_agents)
        rewards = self._join_rewards(agent_rewards)
        # One transfer from the device: (n_envs, 3 + n_agents)
        columns = th.stack([rewards, terminated, truncated], dim=1)
        fetched = th.cat([columns, agent_rewards], dim=1).cpu().numpy()
        ended, cut = fetched[:, 1:3].astype(bool).T
        infos = self._make_infos(fetched[:, 0], fetched[:, 3:], ended, cut)
        if self._in_tensors:
            infos.facts = infos.facts._replace(agent_rewards=agent_rewards.float())
        dones = infos.facts.dones
        if dones.any():
            obs = self._begin_next(np.flatnonzero(dones), obs, infos)
        if self._in_tensors:
            return obs, rewards, dones, infos
        return _to_numpy(obs), fetched[:, 0].copy(), dones, infos

    def _observe(self, parts: Sequence[Any]) -> TensorObs:
        """
        :param parts: Observation of each agent: a tensor ``(n_envs, ...)``, or a dict of tensors
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
        :param agent_rewards: Individual rewards, ``(n_envs, n_agents)``
        :return: Team rewards, ``(n_envs,)``
        """
        if callable(self.team_reward):
            return self.team_reward(agent_rewards)
        if self.team_reward == "mean":
            return agent_rewards.mean(dim=1)
        if self.team_reward == "sum":
            return agent_rewards.sum(dim=1)
        return agent_rewards[:, self.agents.index(self.team_reward)]

    def _begin_next(self, finished: np.ndarray, obs: TensorObs, infos: StepInfos) -> TensorObs:
        """
        Report the episodes that have ended, and start the next ones.

        :param finished: Indices of the environments, ``(n_ended,)``
        :param obs: Joint observation of all environments, each entry ``(n_envs, ...)``
        :param infos: Infos of the step, which are completed
        :return: Joint observation with the first ones of the new episodes
        """
        rows = th.from_numpy(finished).to(self.device)
        last: dict[str, Any] = {key: part[rows] for key, part in obs.items()}
        self._end_episodes(infos, last if self._in_tensors else _to_numpy(last))
        return self._restart(finished, obs)

    def _restart(self, finished: np.ndarray, obs: TensorObs) -> TensorObs:
        """
        Start new episodes.

        :param finished: Indices of the environments, ``(n_ended,)``
        :param obs: Joint observation of all environments, each entry ``(n_envs, ...)``
        :return: Joint observation with the first ones of the new episodes
        """
        from vmas.simulator.environment.environment import local_seed

        rows = th.from_numpy(finished).to(self.device)
        with self._own_randomness():
            if len(finished) == self.num_envs:
                return self._observe(self.env.reset())
            # As `reset_at`, but random states are exchanged once and not for each environment
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
        """
        Use this object's random state. VMAS keeps one for all its simulators in the process.
        """
        shared: list[Any] = self.env.vmas_random_state
        others = shared[:]
        shared[:] = self._random_state
        try:
            yield
        finally:
            self._random_state = shared[:]
            shared[:] = others

    # ---------------------------------------------------------------- attributes and methods

    def get_images(self) -> Sequence[np.ndarray | None]:
        """
        Draw every environment.

        :return: Image of each environment, uint8 ``(height, width, 3)``
        :raises RuntimeError: If VMAS cannot draw on this machine
        """
        return [self._draw(index) for index in range(self.num_envs)]

    def _draw(self, index: int) -> np.ndarray:
        try:
            with self._own_randomness():
                return np.asarray(self.env.render(mode="rgb_array", env_index=index))
        except Exception as error:  # pyglet raises many kinds, depending on the platform
            raise RuntimeError(
                f"VMAS cannot draw here ({type(error).__name__}: {error}). It draws with pyglet "
                "(pip install 'pyglet<2'), which needs a display, or a GPU with EGL; without one, "
                "run the program under xvfb-run."
            ) from error

    def close(self) -> None:
        """
        Close the window, if there is one.
        """
        if self.env.viewer is not None:
            self.env.viewer.close()
            self.env.viewer = None

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        :param attr_name: Name of an attribute of this object, or else of the simulator, its
            scenario or its world, which are one for all environments
        :param indices: Indices of the environments, all by default
        :return: Value of the attribute, once for each of them
        """
        value = getattr(self._owner(attr_name), attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        :param attr_name: Name of an attribute, looked up as by :meth:`get_attr`; a new one is set
            on the scenario
        :param value: New value
        :param indices: None, because all environments share one simulator
        :raises ValueError: If only some of the environments are meant
        """
        if indices is not None and set(self._get_indices(indices)) != set(range(self.num_envs)):
            raise ValueError(
                f"VMAS's environments share {attr_name!r}; it can only be set for all of them, "
                "indices=None."
            )
        setattr(self._owner(attr_name), attr_name, value)

    def _owner(self, attr_name: str) -> Any:
        """
        Object that uses an attribute: this one, the simulator, its scenario or its world; the
        scenario, which defines the game, if none has it.
        """
        scenario = self.env.scenario
        for owner in (self, self.env, scenario, scenario.world):
            if hasattr(owner, attr_name):
                return owner
        return scenario

    def env_method(
        self,
        method_name: str,
        *method_args: Any,
        indices: VecEnvIndices = None,
        **method_kwargs: Any,
    ) -> list[Any]:
        """
        Call a method of the simulator, its scenario or its world once, for all environments.

        :param method_name: Name of the method
        :param method_args: Arguments of the method
        :param indices: Indices of the environments, all by default
        :param method_kwargs: Keyword arguments of the method
        :return: Result of the call, once for each of them
        """
        owner = self.env if hasattr(self.env, method_name) else self._owner(method_name)
        with self._own_randomness():
            answer = getattr(owner, method_name)(*method_args, **method_kwargs)
        return [answer for _ in self._get_indices(indices)]


def make_vmas_vec_env(
    id: str, n_envs: int = 1, seed: int | None = None, **kwargs: Any
) -> VmasVecEnv:
    """
    Make VMAS environments from an id.

    :param id: ``"vmas/<scenario>"`` for any scenario of VMAS, such as ``"vmas/navigation"``
    :param n_envs: Number of environments
    :param seed: Seed of the first reset
    :param kwargs: Arguments of :class:`VmasVecEnv`
    :return: The environments
    """
    return VmasVecEnv(id.removeprefix("vmas/"), n_envs, seed, **kwargs)


def _check_arguments(agents: tuple[str, ...], team_reward: TeamReward, state: State) -> None:
    if len(set(agents)) != len(agents):
        raise ValueError(f"Agents must have different names, not {agents}.")
    if not callable(team_reward) and team_reward not in ("mean", "sum", *agents):
        raise ValueError(
            f"team_reward={team_reward!r} is neither 'mean', 'sum', a callable, nor one of "
            f"{list(agents)}."
        )
    if not (callable(state) or state in (None, "observations")):
        raise ValueError(
            f"state={state!r} is neither None, 'observations', nor a callable (simulator, "
            "observations)."
        )


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
        # VMAS only warns of arguments that the scenario does not know, and ignores them
        warnings.filterwarnings("error", "Scenario kwargs")
        try:
            return vmas.make_env(scenario, **kwargs)
        except UserWarning as warning:
            raise ValueError(
                f"{str(warning).partition(' This will')[0]} Correct or remove them."
            ) from warning


def _gymnasium_space(space: Any) -> spaces.Space:
    """Convert an action space of the old ``gym``, which VMAS uses, to Gymnasium."""
    if hasattr(space, "nvec"):
        return spaces.MultiDiscrete(space.nvec)
    if hasattr(space, "n"):
        return spaces.Discrete(int(space.n))
    return spaces.Box(space.low, space.high, dtype=np.float32)


def _leaves(name: str, observation: Any) -> Iterator[tuple[str, th.Tensor]]:
    """Keys and tensors of an agent's observation, which may be a nested dict."""
    if isinstance(observation, Mapping):
        for key, part in observation.items():
            yield from _leaves(f"{name}/{key}", part)
    else:
        yield name, observation.float()


def _to_numpy(obs: TensorObs) -> dict[str, np.ndarray]:
    return {key: part.cpu().numpy() for key, part in obs.items()}
