"""The team: one policy per agent, and a critic of the subclass's choice."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.common.utils import FloatSchedule
from torch import nn

from sb3_happo.common.agent_inputs import split_mask
from sb3_happo.common.agent_policy import AgentPolicy
from sb3_happo.common.heads import HeadName
from sb3_happo.common.net_arch import check_net_arch
from sb3_happo.common.networks import TeamModel, initialise
from sb3_happo.common.parameter_sharing import make_groups
from sb3_happo.common.recurrent import single_steps
from sb3_happo.common.saved_files import Kind
from sb3_happo.common.saved_policy import SavedPolicy
from sb3_happo.common.team_prediction import AgentAnswer, AgentInput, TeamPrediction
from sb3_happo.common.team_spaces import TeamSpaces
from sb3_happo.envs.encodings import encode_observation
from sb3_happo.envs.spaces import joint_action_dtype
from sb3_happo.suggestions import check_names, did_you_mean

#: Hidden states of one agent as ``predict`` takes them, each ``(n_layers, n_envs, hidden_size)``
AgentState = tuple[np.ndarray, ...]


def select_state(
    rows: np.ndarray | None, state: AgentState, otherwise: AgentState | None
) -> AgentState:
    """
    :param rows: Mask ``(n_envs,)``; None for all rows
    :param state: Hidden states, each ``(n_layers, n_envs, hidden_size)``
    :param otherwise: Hidden states of the same shape; None for zeros
    :return: ``state`` at ``rows``, ``otherwise`` at the others
    """
    if rows is None:
        return state
    others = [np.zeros_like(part) for part in state] if otherwise is None else otherwise
    pairs = zip(state, others, strict=True)
    return tuple(np.where(rows[:, None], part, other) for part, other in pairs)


class MultiAgentPolicy(SavedPolicy):
    """
    Actors of a team, as a rule with parameters of their own, and a critic.

    The actors need neither the state nor the critic, so that each can be saved and deployed alone.
    A subclass chooses the critic (:meth:`make_critic`) and may choose the class of the actors.

    :param observation_space: Joint observation space of a :class:`~sb3_happo.envs.JointEnv`
    :param action_space: Joint action space, one entry per agent, in the agents' order
    :param lr_schedule: Learning rate of the actors
    :param share_parameters: Agents that share one network: False for none; True for all whose
        spaces are equal; or groups of names, ``[["agent_0", "agent_1"], ...]`` (the others do
        not share)
    :param append_agent_id: One-hot input that tells a shared network which of its agents acts
    :param agent_kwargs: Overrides for single agents,
        ``{agent: {"net_arch": ..., "learning_rate": ..., ...}}``
    :param critic_lr_schedule: Learning rate of the critic; the actors' by default
    :param critic_kwargs: Overrides for the critic
    :param kwargs: Keyword arguments of every agent's policy and, where they have a meaning there,
        of the critic
    :raises ValueError: If an agent or a keyword argument is unknown, or a setting is not supported
    """

    file_kind: ClassVar[Kind] = "team"
    #: Class of the agents' policies
    agent_class: ClassVar[type[AgentPolicy]] = AgentPolicy
    #: Head of the agents' policies, see :mod:`~sb3_happo.common.heads`
    actor_head: ClassVar[HeadName] = "gaussian"
    #: Whether the algorithm knows when batch normalisation takes the moments of a minibatch
    supports_batch_norm: ClassVar[bool] = False
    #: Further names that ``policy_kwargs`` may hold, for suggestions in errors
    own_kwargs: ClassVar[frozenset[str]] = frozenset(
        ("share_parameters", "append_agent_id", "agent_kwargs", "critic_kwargs")
    )

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Dict,
        lr_schedule: Schedule,
        share_parameters: bool | list[list[str]] = False,
        append_agent_id: bool = False,
        agent_kwargs: Mapping[str, dict[str, Any]] | None = None,
        critic_lr_schedule: Schedule | None = None,
        critic_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(observation_space, action_space)
        self.team_spaces = TeamSpaces(observation_space, action_space)
        self.agents = self.team_spaces.agents
        self.action_dtype = joint_action_dtype(action_space)
        # An environment may name its agents by numbers
        overrides = {str(agent): dict(own) for agent, own in (agent_kwargs or {}).items()}
        critic_kwargs = None if critic_kwargs is None else dict(critic_kwargs)
        self._check_kwargs(kwargs, overrides)
        _check_all_net_archs(kwargs, overrides, critic_kwargs)
        if not self.supports_batch_norm:
            _refuse_batch_norm((kwargs, critic_kwargs or {}, *overrides.values()))
        self._init_kwargs: dict[str, Any] = {
            "append_agent_id": append_agent_id,
            "agent_kwargs": overrides,
            "critic_kwargs": critic_kwargs,
            **kwargs,
        }
        #: Agents that share parameters; most groups are one agent
        self.groups = make_groups(self.team_spaces, share_parameters, overrides)
        #: Learning rates of agents with one of their own
        self.lr_schedules = _own_schedules(overrides)
        self.policies = self._make_actors(lr_schedule, append_agent_id, kwargs, overrides)
        self._team_prediction = TeamPrediction(self.policies)
        # By index: an agent's name need not be a legal name of a module
        self.actors = nn.ModuleList(self.policies.values())
        critic_rate = critic_lr_schedule or lr_schedule
        self.critic: Any = self.make_critic(critic_rate, kwargs, critic_kwargs or {})
        leaders = [self.policies[group[0]] for group in self.groups]
        initialise([*leaders, *self.critic_networks()])

    def _check_kwargs(self, kwargs: dict[str, Any], overrides: dict[str, dict[str, Any]]) -> None:
        known = self.agent_class.option_names()
        check_names(kwargs, known, "policy_kwargs", known | self.own_kwargs)
        for agent, own in overrides.items():
            self.team_spaces.check_agent(agent, "policy_kwargs['agent_kwargs']")
            where = f"policy_kwargs['agent_kwargs'][{agent!r}]"
            check_names(own, known | {"learning_rate"}, where)

    def _make_actors(
        self,
        lr_schedule: Schedule,
        append_agent_id: bool,
        kwargs: dict[str, Any],
        overrides: dict[str, dict[str, Any]],
    ) -> dict[str, AgentPolicy]:
        """Policies of all agents, in the agents' order; agents of a group share their networks."""
        made: dict[str, AgentPolicy] = {}
        for group in self.groups:
            for index, agent in enumerate(group):
                agent_id = (index, len(group)) if append_agent_id and len(group) > 1 else None
                own = kwargs | overrides.get(agent, {})
                made[agent] = self._make_actor(agent, lr_schedule, agent_id, own)
                if index:
                    made[agent].share_parameters_with(made[group[0]])
        return PoliciesByAgent((agent, made[agent]) for agent in self.agents)

    def _make_actor(
        self,
        agent: str,
        lr_schedule: Schedule,
        agent_id: tuple[int, int] | None,
        kwargs: dict[str, Any],
    ) -> AgentPolicy:
        """Policy of one agent, with its own keyword arguments."""
        own_space = self.team_spaces.own[agent]
        kwargs = {"agent_name": agent, **kwargs}
        kwargs.pop("learning_rate", None)
        where = f"policy_kwargs['agent_kwargs'][{agent!r}]"
        with explain_extractor(kwargs, f"agent {agent!r}, {own_space}", where):
            return self.agent_class(
                own_space,
                self.team_spaces.action_space.spaces[agent],
                self.lr_schedules.get(agent, lr_schedule),
                head=self.actor_head,
                masked=self.team_spaces.is_masked(agent),
                agent_id=agent_id,
                **kwargs,
            )

    def make_critic(
        self, lr_schedule: Schedule, kwargs: dict[str, Any], overrides: dict[str, Any]
    ) -> nn.Module:
        """
        Hook: the critic, with its optimiser. The actors exist when it is called.

        :param lr_schedule: Learning rate of the critic
        :param kwargs: Keyword arguments of every agent's policy
        :param overrides: Keyword arguments of the critic alone (``critic_kwargs``)
        :return: Critic
        """
        raise NotImplementedError

    def critic_networks(self) -> list[TeamModel]:
        """
        :return: Networks of the critic whose weights are drawn together with the actors'
        """
        return []

    def _get_constructor_parameters(self) -> dict[str, Any]:
        # As in SB3: schedules, which need not be picklable, belong to the model. Groups are saved
        # as they were found, for they depend on overrides that may hold schedules
        agent_kwargs = {}
        for agent, own in self._init_kwargs["agent_kwargs"].items():
            agent_kwargs[agent] = dict(own)
            agent_kwargs[agent].pop("learning_rate", None)
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            **self._init_kwargs,
            "share_parameters": [list(group) for group in self.groups if len(group) > 1],
            "agent_kwargs": agent_kwargs,
            "lr_schedule": self._dummy_schedule,
        }

    def agent_names(self) -> tuple[str, ...]:
        """
        :return: Names of the agents, in the order of ``actors``
        """
        return self.agents

    def agent_observation(self, observations: Mapping[str, th.Tensor], agent: str) -> PyTorchObs:
        """
        :param observations: Joint observation, each entry ``(batch, ...)``
        :param agent: Name of an agent
        :return: Own observation of the agent, a dict where its space is one
        """
        return self.team_spaces.agent_observation(observations, agent)

    def action_masks(self, observations: Mapping[str, th.Tensor], agent: str) -> th.Tensor | None:
        """
        :param observations: Joint observation, each entry ``(batch, ...)``
        :param agent: Name of an agent
        :return: 1 where a choice is legal, ``(batch, n_choices)``, or None for agents without masks
        """
        return self.team_spaces.action_masks(observations, agent)

    def outputs_by_agent(
        self, obs: dict[str, th.Tensor], states: Mapping[str, th.Tensor]
    ) -> dict[str, th.Tensor]:
        """
        Outputs of the agents' networks, without a sample.

        :param obs: Joint observation, each entry ``(n_envs, ...)``
        :param states: Hidden states before it of the agents with memory
        :return: Outputs of each agent's network, ``(n_envs, n_params)``
        """
        outputs = {}
        for agent, policy in self.policies.items():
            sequences = single_steps(states[agent]) if agent in states else None
            own = self.agent_observation(obs, agent)
            outputs[agent] = policy.parameters_of_actions(own, sequences)[0]
        return outputs

    def set_training_mode(self, mode: bool) -> None:
        """
        :param mode: True for training mode, in which weights may change; False for evaluation
        """
        if mode:
            self._team_prediction.forget()
        super().set_training_mode(mode)

    # ---------------------------------------------------------------- predict

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        raise NotImplementedError("A team has no single action tensor; use `predict` or `forward`.")

    def predict(
        self,
        observation: dict[str, Any] | tuple[Any, ...] | np.ndarray,
        state: Any = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: dict[str, np.ndarray] | None = None,
    ) -> tuple[Any, Any]:
        """
        Actions of the agents whose observations are given. State and critic are not needed.

        Agents of one form act in one call, with the answers that each would give alone. Their
        samples are drawn together: a seed gives other samples than each agent's own ``predict``.

        :param observation: ``{agent: observation}`` in the environment's own form, or the
            observation of a ``JointEnv`` or of a vectorised one; for a team of one also its agent's
            bare observation
        :param state: Hidden states that the call for the step before returned, ``{agent: state}``;
            None at the start. The hidden states of an agent do not change if no observation is
            given for it, or if the joint observation's "active" says that it is dead or not on turn
        :param episode_start: Mask of the environments that begin an episode, so that hidden states
            are reset, ``(n_envs,)``; None for none
        :param deterministic: Most likely actions instead of samples
        :param action_masks: ``{agent: mask}``, where masks do not come within the observations
        :return: For one environment ``{agent: action}``, by the names used in the observation; for
            a batch of them a structured array with one row per environment and one field per agent.
            And the next hidden states
        :raises ValueError: If an agent is unknown, its mask is missing, or the agents' observations
            are of different batches
        """
        if len(self.agents) == 1 and self.team_spaces.is_bare(observation):
            (agent,) = self.agents
            mask = (action_masks or {}).get(agent)
            policy = self.policies[agent]
            return policy.predict(observation, state, episode_start, deterministic, mask)
        if not isinstance(observation, dict):
            raise ValueError(_no_dict(observation))
        own, masks = self._own_inputs(observation, action_masks)
        states = _reset_starting(state, episode_start)
        active = self.team_spaces.active(observation) or {}
        answers = self._answers(own, masks, states, deterministic, active)
        for agent, answer in answers.items():
            if answer.state is not None:
                before = states.get(agent)
                states[agent] = self._next_state(active.get(agent), answer.state, before)
        actions = {agent: answer.action for agent, answer in answers.items()}
        batched = {agent for agent, answer in answers.items() if answer.batched}
        joint: Any = join_actions(self, actions, batched)
        if not batched:
            joint = _under_given_names(actions, observation)
        return joint, states or None

    def _answers(
        self,
        own: dict[str, Any],
        masks: dict[str, Any],
        states: dict[str, AgentState],
        deterministic: bool,
        active: Mapping[str, np.ndarray],
    ) -> dict[str, AgentAnswer]:
        """
        Hook: decisions of the agents, in the order of their observations.

        :param own: Observations by agent
        :param masks: Action masks
        :param states: Hidden states; none at the start of an episode
        :param deterministic: Most likely actions instead of samples
        :param active: Active mask of each agent, ``(n_envs,)``; empty without one
        :return: Decisions
        """
        inputs = {}
        for agent, observation in own.items():
            inputs[agent] = AgentInput(observation, masks.get(agent), states.get(agent))
        together = self._team_prediction(inputs, deterministic)
        answers = {}
        for agent, given in inputs.items():
            answer = together.get(agent)
            if answer is None:
                answer = self._predict_agent(agent, given, deterministic)
            answers[agent] = answer
        return answers

    #: Hook: an agent's hidden states for the next call, of its active mask, and of those after and
    #: before a decision; here an inactive agent's do not change
    _next_state = staticmethod(select_state)

    def _predict_agent(self, agent: str, given: AgentInput, deterministic: bool) -> AgentAnswer:
        """Decision of an agent that acts alone; errors name it."""
        policy = self.policies[agent]
        observation, mask, state = given
        try:
            action, after = policy.predict_encoded(observation, state, None, deterministic, mask)
        except ValueError as error:
            raise ValueError(f"agent {agent!r}: {error}") from error
        bare = split_mask(observation, policy.observation_space)[0]
        return AgentAnswer(action, after, policy.is_vectorized_observation(bare))

    def _own_inputs(
        self, observation: dict[str, Any], action_masks: dict[str, np.ndarray] | None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Observations and masks by agent, in the agents' order."""
        own, masks = self.team_spaces.split(observation)
        if not self.team_spaces.is_joint(observation):
            own = {agent: self._encode(agent, value, masks) for agent, value in own.items()}
        for name, mask in (action_masks or {}).items():
            masks[str(name)] = mask
        for agent in masks:
            self.team_spaces.check_agent(agent, "`action_masks`")
        return {agent: own[agent] for agent in self.agents if agent in own}, masks

    def _encode(self, agent: str, observation: Any, masks: dict[str, Any]) -> Any:
        """
        Own observation in the form of the joint observation.

        :param agent: Name of an agent
        :param observation: Observation in the environment's form
        :param masks: Action masks by agent, to which one inside the observation is added
        :return: Observation without mask
        """
        own_space = self.policies[agent].observation_space
        try:
            own, mask = split_mask(observation, own_space)
            encoded = encode_observation(own_space, own)
        except ValueError as error:
            raise ValueError(f"agent {agent!r}: {error}") from error
        if mask is not None:
            masks[agent] = mask
        return encoded


class PoliciesByAgent(dict[str, AgentPolicy]):
    """
    Policies by agent. An environment may name its agents by numbers: ``policies[0]`` is
    ``policies["0"]``, as in ``predict``.
    """

    def __missing__(self, agent: Any) -> AgentPolicy:
        name = str(agent)
        if name != agent and name in self:
            return self[name]
        hint = did_you_mean(name, self, otherwise=f"There are {', '.join(map(repr, self))}.")
        raise KeyError(f"The team has no agent {agent!r}. {hint}")

    def __contains__(self, agent: object) -> bool:
        return super().__contains__(agent) or super().__contains__(str(agent))

    def get(self, agent: Any, default: Any = None) -> Any:
        """
        :param agent: Name or number of an agent
        :param default: Value for an agent that the team does not have
        :return: Policy of the agent, or ``default``
        """
        if agent not in self:
            return default
        return self[agent]


def join_actions(
    policy: MultiAgentPolicy, actions: dict[str, Any], batched: set[str]
) -> np.ndarray | None:
    """
    :param policy: The team
    :param actions: Actions by agent
    :param batched: Agents whose actions are a batch
    :return: Structured array ``(n_envs,)`` of the agents' batches, or None without a batch
    :raises ValueError: If the batches are of different sizes
    """
    if not batched:
        return None
    sizes = {}
    for agent, own in actions.items():
        sizes[agent] = len(own) if agent in batched else 0
    n_envs = max(sizes.values())
    if set(sizes.values()) != {n_envs}:
        counts = []
        for agent, size in sizes.items():
            words = f"of {size}" if size else "of one, without a batch"
            counts.append(f"{agent!r} {words}")
        raise ValueError(
            "The agents' observations must be of the same environments; they are "
            f"{', '.join(counts)}."
        )
    dtype = policy.action_dtype
    if tuple(actions) != policy.agents:
        own_types = [(agent, policy.policies[agent].env_actions.dtype) for agent in actions]
        dtype = np.dtype(own_types)
    joint = np.empty(n_envs, dtype)
    for agent, own in actions.items():
        joint[agent] = own
    return joint


def _check_all_net_archs(
    kwargs: dict[str, Any],
    overrides: dict[str, dict[str, Any]],
    critic_kwargs: dict[str, Any] | None,
) -> None:
    """Bring every ``net_arch`` into its form, in place; errors name the place."""
    places = {"policy_kwargs": kwargs, "policy_kwargs['critic_kwargs']": critic_kwargs or {}}
    for agent, own in overrides.items():
        places[f"policy_kwargs['agent_kwargs'][{agent!r}]"] = own
    for place, values in places.items():
        if "net_arch" in values:
            where = f"{place}['net_arch']"
            values["net_arch"] = check_net_arch(values["net_arch"], where)


def _refuse_batch_norm(places: Iterable[Mapping[str, Any]]) -> None:
    """Raise if some networks shall have batch normalisation."""
    if any(place.get("batch_norm") for place in places):
        raise ValueError(
            "policy_kwargs: batch_norm=True is supported by HACrossQ alone, which takes the "
            "moments of a minibatch in certain steps only; omit it, use layer_norm=True, or use "
            "HACrossQ."
        )


def _no_dict(observation: Any) -> str:
    """Text of an error about an observation of a team that is no dict."""
    text = (
        "A team needs a dict of observations, {agent: observation}, not a "
        f"{type(observation).__name__}."
    )
    if isinstance(observation, tuple) and len(observation) == 2:
        text += " `env.reset()` returns two dicts, observations and infos; pass the first."
    return text


def _under_given_names(actions: dict[str, Any], observation: Mapping[Any, Any]) -> dict[Any, Any]:
    """Actions by the agents' names in the observation, which may be numbers."""
    names = {str(name): name for name in observation}
    return {names.get(agent, agent): action for agent, action in actions.items()}


def _own_schedules(overrides: dict[str, dict[str, Any]]) -> dict[str, Schedule]:
    """Learning rates of agents with one of their own."""
    schedules: dict[str, Schedule] = {}
    for agent, own in overrides.items():
        if own.get("learning_rate") is not None:
            schedules[agent] = FloatSchedule(own["learning_rate"])
    return schedules


def _reset_starting(state: Any, episode_start: np.ndarray | None) -> dict[str, AgentState]:
    """Hidden states by agent, with zeros for the environments that begin an episode."""
    if episode_start is None:
        return dict(state or {})
    running = ~np.asarray(episode_start, dtype=bool).reshape(-1)
    return {agent: select_state(running, own, None) for agent, own in (state or {}).items()}


@contextmanager
def explain_extractor(kwargs: dict[str, Any], owner: str, where: str) -> Iterator[None]:
    """
    Name the owner of an observation that a features extractor does not take: an extractor is made
    for one kind of observation, and a team may have several.

    :param kwargs: Keyword arguments of the policy or critic that is made inside
    :param owner: Owner of the observation
    :param where: Place at which another extractor can be given
    """
    try:
        yield
    except Exception as error:
        extractor = kwargs.get("features_extractor_class")
        if extractor is None or isinstance(error, ValueError):
            raise
        raise ValueError(
            f"{extractor.__name__} cannot be made for the observation of {owner} "
            f"({type(error).__name__}: {error}). Put another `features_extractor_class` into "
            f"{where}, or None there for the default one."
        ) from error
