"""Team whose agents communicate before they act: CommNet."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from sb3_happo.common.agent_policy import AgentPolicy
from sb3_happo.common.batched_actors import BatchedActors
from sb3_happo.common.communication import (
    CannotActAloneError,
    CommNetActor,
    CommunicationRounds,
    mean_of_others,
    open_links,
)
from sb3_happo.common.distributions import unvalidated
from sb3_happo.common.hyperparameters import COUNT, check_settings, Setting
from sb3_happo.common.joint_policy import JointPolicy
from sb3_happo.common.multi_agent_policy import AgentState
from sb3_happo.common.networks import make_optimizer
from sb3_happo.common.recurrent import single_steps
from sb3_happo.common.team_inputs import TeamInputs
from sb3_happo.common.team_prediction import AgentAnswer
from sb3_happo.common.type_aliases import ActorsStep, JointStep, RNNStates, Sequences

#: Entry beside a joint observation: links of the messages
LINKS = "links"

_LOSS = Setting("in [0, 1)", lambda value: 0 <= value < 1)


class TeamOutputs(NamedTuple):
    """
    Outputs of the networks of a team that communicates.

    :param params: Outputs for each group of agents with one network, one agent's rows after the
        other's, ``(n_group * batch, n_params)``
    :param states: Hidden states after the step, ``(batch, n_agents, n_parts, n_layers, n)``; None
        without memory
    """

    params: list[th.Tensor]
    states: th.Tensor | None


class CommNetPolicy(JointPolicy):
    """
    CommNet (Sukhbaatar, Szlam & Fergus 2016, "Learning Multiagent Communication with
    Backpropagation", arXiv 1605.07736): before they act, the agents exchange ``n_rounds`` rounds of
    messages. A message is the sender's hidden state; an agent reads the mean of those of the
    others. Gradients flow through the messages. Dead agents, and those that wait for their turn,
    neither send nor receive.

    All agents have the same weights for the messages. Those whose spaces are equal have the same
    encoder and last layer too (``share_parameters``); other agents have their own. The last layer
    of ``net_arch`` is the size of a message, and the same for all.

    The agents decide together, and have one update and one optimiser: the policy is for ``MAPPO``,
    ``IPPO`` and ``HAA2C``. One agent alone cannot act.

    :param observation_space: Joint observation space of a :class:`~sb3_happo.envs.JointEnv`
    :param action_space: Joint action space, one entry per agent, in the agents' order
    :param lr_schedule: Learning rate of the actors
    :param n_rounds: Number of rounds of messages, >= 1
    :param message_dropout: Probability that a message is lost during training, in [0, 1), by a draw
        for each sender, receiver and step, for teams whose links are lossy when they are deployed.
        The update sees the messages that the rollout has seen. ``predict`` loses messages with the
        probability :attr:`message_loss` instead, which is 0
    :param act_alone: Whether ``predict`` accepts the observation of a single agent, whose others
        are then taken for dead
    :param share_parameters: As for ``JointPolicy``, but True by default
    :param kwargs: Keyword arguments of ``JointPolicy``
    :raises ValueError: If the team is one agent, or agents have messages of different sizes or
        learning rates of their own
    """

    agent_class: ClassVar[type[AgentPolicy]] = CommNetActor
    communicates: ClassVar[bool] = True
    own_kwargs: ClassVar[frozenset[str]] = JointPolicy.own_kwargs | {
        *("n_rounds", "message_dropout", "act_alone")
    }

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Dict,
        lr_schedule: Schedule,
        *args: Any,
        n_rounds: int = 2,
        message_dropout: float = 0.0,
        act_alone: bool = False,
        share_parameters: bool | list[list[str]] = True,
        **kwargs: Any,
    ) -> None:
        own = {"n_rounds": n_rounds, "message_dropout": message_dropout}
        check_settings(own, {"n_rounds": COUNT, "message_dropout": _LOSS})
        _check_team(action_space, kwargs)
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            *args,
            share_parameters=share_parameters,
            **kwargs,
        )
        self.n_rounds = n_rounds
        self.message_dropout = message_dropout
        self.act_alone = act_alone
        #: Probability that a message is lost in ``predict``, in [0, 1]
        self.message_loss = 0.0
        self._check_sizes()
        leader: Any = self.policies[self.agents[0]]
        self.rounds = CommunicationRounds(
            leader.message_size, n_rounds, leader.options.activation_fn
        )
        #: Agents with the same encoder and last layer
        self.encoder_groups = self.groups
        index = {agent: column for column, agent in enumerate(self.agents)}
        self._columns = [[index[agent] for agent in group] for group in self.groups]
        # One update of all agents, by one optimiser: messages connect their networks
        self.groups = [self.agents]
        everything = nn.ModuleList([self.actors, self.rounds])
        optimizer = make_optimizer(everything, lr_schedule, leader.options)
        for policy in self.policies.values():
            policy.optimizer = optimizer

    def _check_sizes(self) -> None:
        """Refuse agents whose messages or recurrent layers differ."""
        first, *others = self.policies.values()
        for policy in others:
            for name in ("message_size", "recurrent"):
                own, expected = getattr(policy, name), getattr(first, name)
                if own != expected:
                    raise ValueError(
                        f"agents {first.agent_name!r} and {policy.agent_name!r} cannot "
                        f"communicate: their {name} is {expected} and {own}. Give all agents the "
                        "same last layer in `net_arch` and the same `recurrent`."
                    )
            memories = [member.memory and member.memory.state_shape for member in (first, policy)]
            if memories[0] != memories[1]:
                raise ValueError(
                    f"agents {first.agent_name!r} and {policy.agent_name!r} cannot communicate: "
                    f"their recurrent layers have the states {memories[0]} and {memories[1]}; give "
                    "all agents the same `lstm_hidden_size` and `n_lstm_layers`."
                )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        shared = [list(group) for group in self.encoder_groups if len(group) > 1]
        own = {
            "share_parameters": shared,
            "n_rounds": self.n_rounds,
            "message_dropout": self.message_dropout,
            "act_alone": self.act_alone,
        }
        return super()._get_constructor_parameters() | own

    # ---------------------------------------------------------------- networks

    def further_entries(self) -> dict[str, tuple[int, ...]]:
        """
        :return: Shapes of the entries beside the joint observation that a rollout stores
        """
        return {LINKS: (len(self.agents), len(self.agents))}

    def actor_observation(
        self, obs: dict[str, th.Tensor], active: np.ndarray | None
    ) -> dict[str, th.Tensor]:
        """
        :param obs: Joint observation, each entry ``(n_envs, ...)``
        :param active: Active mask, ``(n_envs, n_agents)``; None for all
        :return: Joint observation with the links of the messages, of which some are lost
        """
        flags = None if active is None else th.as_tensor(active, device=self.device)
        return obs | {LINKS: self._links(obs, flags, self.message_dropout)}

    def _links(
        self, obs: Mapping[str, th.Tensor], active: th.Tensor | None, loss: float
    ) -> th.Tensor:
        n_rows = len(next(iter(obs.values())))
        return open_links(active, n_rows, len(self.agents), self.device, loss)

    def outputs(
        self,
        obs: Mapping[str, th.Tensor],
        states: th.Tensor | None = None,
        sequences: Sequences | None = None,
        active: th.Tensor | None = None,
    ) -> TeamOutputs:
        """
        :param obs: Joint observation with :data:`LINKS`, each entry ``(batch, ...)``
        :param states: Hidden states before the step,
            ``(batch, n_agents, n_parts, n_layers, hidden_size)``; None at the start of an episode,
            or without memory
        :param sequences: Order of the rows in time, with the states of all agents; in the place of
            ``states``
        :param active: Active mask, ``(batch, n_agents)``, for ``sequences``; the hidden states of
            inactive agents do not change
        :return: Outputs of the networks, and the hidden states after the step
        """
        links = obs[LINKS]
        inputs = self._features(obs)
        after = None
        if self.policies[self.agents[0]].memory is not None:
            if sequences is None:
                before = self._initial_states(len(links)) if states is None else states
                sequences = single_steps(before)
            inputs, after = self._remember(inputs, links, sequences, active)
        first = inputs[0]
        hidden = first.new_zeros(len(links), len(self.agents), self.rounds.own[0].in_features)
        for group, columns, rows in self._rows(inputs):
            encoded = self.policies[group[0]].body(rows)
            hidden[:, columns] = encoded.unflatten(0, (len(group), -1)).transpose(0, 1)
        hidden = self.rounds(hidden, links)
        params = []
        for group, columns in zip(self.encoder_groups, self._columns, strict=True):
            rows = hidden[:, columns].transpose(0, 1).flatten(end_dim=1)
            params.append(self.policies[group[0]].head(rows))
        return TeamOutputs(params, after)

    def distributions(
        self, params: Sequence[th.Tensor], obs: Mapping[str, th.Tensor]
    ) -> list[Distribution]:
        """
        :param params: Outputs of the networks of each group
        :param obs: Joint observation with the action masks, each entry ``(batch, ...)``
        :return: Distribution of each group, one agent's rows after the other's
        """
        results = []
        for group, own in zip(self.encoder_groups, params, strict=True):
            policy = self.policies[group[0]]
            log_std, masks = policy.effective_log_std(), self._masks(obs, group)
            results.append(policy.action_head.distribution(own, log_std, masks))
        return results

    def outputs_by_agent(
        self, obs: dict[str, th.Tensor], states: Mapping[str, th.Tensor]
    ) -> dict[str, th.Tensor]:
        """
        :param obs: Joint observation, each entry ``(n_envs, ...)``
        :param states: Hidden states before it, by agent
        :return: Outputs of each agent's network, ``(n_envs, n_params)``
        """
        if LINKS not in obs:
            obs = self.actor_observation(obs, None)
        team = self.outputs(obs, self._states_of_team(states))
        by_agent: dict[str, th.Tensor] = {}
        for group, params in zip(self.encoder_groups, team.params, strict=True):
            by_agent |= zip(group, params.chunk(len(group)), strict=True)
        return by_agent

    def _rows(self, inputs: Sequence[th.Tensor]) -> Any:
        return zip(self.encoder_groups, self._columns, inputs, strict=True)

    def _features(self, obs: Mapping[str, th.Tensor]) -> list[th.Tensor]:
        """Features of each group, one agent's rows after the other's."""
        results = []
        for group in self.encoder_groups:
            leader: Any = self.policies[group[0]]
            parts: Any = [self.agent_observation(obs, agent) for agent in group]
            n_rows = len(obs[LINKS])
            ids = None
            if leader.one_hot is not None:
                one_hots: list[Any] = [self.policies[agent].one_hot for agent in group]
                ids = th.stack(one_hots).repeat_interleave(n_rows, dim=0)
            if isinstance(parts[0], dict):
                own: Any = {key: th.cat([part[key] for part in parts]) for key in parts[0]}
            else:
                own = th.cat(parts)
            results.append(leader.features(own, ids))
        return results

    def _masks(self, obs: Mapping[str, th.Tensor], group: Sequence[str]) -> th.Tensor | None:
        if not self.team_spaces.is_masked(group[0]):
            return None
        masks: list[Any] = [self.action_masks(obs, agent) for agent in group]
        return th.cat(masks)

    # ---------------------------------------------------------------- memory

    def _initial_states(self, n_rows: int) -> th.Tensor:
        memory = self.policies[self.agents[0]].memory
        assert memory is not None
        return memory.initial_state(n_rows * len(self.agents)).unflatten(0, (n_rows, -1))

    def _remember(
        self,
        inputs: list[th.Tensor],
        links: th.Tensor,
        sequences: Sequences,
        active: th.Tensor | None,
    ) -> tuple[list[th.Tensor], th.Tensor]:
        """
        Recurrent layers, step by step: their input has the others' outputs of the step before.

        :param inputs: Features of each group, ``(n_group * batch, n)``
        :param links: Links of the messages, ``(batch, n_agents, n_agents)``
        :param sequences: Order of the rows in time
        :param active: Active mask, ``(batch, n_agents)``; None for all
        :return: Outputs of each group, ``(n_group * batch, hidden_size)``; and the hidden states
            after the last steps
        """
        by_row = []
        for group, _, rows in self._rows(inputs):
            by_row.append(rows.unflatten(0, (len(group), -1)))
        states, start = sequences.states, 0
        outputs: list[list[th.Tensor]] = [[] for _ in self.encoder_groups]
        for size in sequences.batch_sizes.tolist():
            now = slice(start, start + size)
            before = states[:size]
            # The output of the last layer, an LSTM's first part
            messages = mean_of_others(before[:, :, 0, -1], links[now])
            parts = [before.new_empty(0)] * len(self.agents)
            for index, (group, columns, rows) in enumerate(self._rows(by_row)):
                memory: Any = self.policies[group[0]].memory
                own = [rows[:, now], messages[:, columns].transpose(0, 1)]
                joined = th.cat(own, dim=2).flatten(end_dim=1)
                previous = before[:, columns].transpose(0, 1).flatten(end_dim=1)
                output, after = memory(joined, single_steps(previous))
                outputs[index].append(output.unflatten(0, (len(group), size)))
                after = after.unflatten(0, (len(group), size))
                for column, state in zip(columns, after, strict=True):
                    parts[column] = state
            states = th.stack(parts, dim=1)
            if active is not None:
                states = states.where(active[now][..., None, None, None], before)
            start += size
        return [th.cat(own, dim=1).flatten(end_dim=1) for own in outputs], states

    def _states_of_team(self, states: Mapping[str, th.Tensor]) -> th.Tensor | None:
        """Hidden states of all agents, ``(n_envs, n_agents, ...)``; None if there are none."""
        if not states:
            return None
        return th.stack([states[agent] for agent in self.agents], dim=1)

    # ---------------------------------------------------------------- decisions

    def make_collector(self) -> BatchedActors:
        """
        :return: Actors for one rollout
        """
        return CommunicatingActors(self)

    def decide(
        self,
        obs: Mapping[str, th.Tensor],
        states: Mapping[str, th.Tensor],
        deterministic: bool = False,
    ) -> ActorsStep:
        """
        One decision of all agents.

        :param obs: Joint observation with :data:`LINKS`, each entry ``(n_envs, ...)``
        :param states: Hidden states of each agent before it; empty without memory
        :param deterministic: Most likely actions instead of samples
        :return: Raw actions, log-probabilities, and the hidden states after it
        """
        team = self.outputs(obs, self._states_of_team(states))
        distributions = self.distributions(team.params, obs)
        step = ActorsStep({}, {}, {})
        n_rows = len(obs[LINKS])
        for group, distribution in zip(self.encoder_groups, distributions, strict=True):
            actions = distribution.get_actions(deterministic=deterministic)
            log_probs = distribution.log_prob(actions).unflatten(0, (len(group), n_rows))
            raw = actions.reshape(len(group), n_rows, -1)
            step.actions.update(zip(group, raw.unbind(), strict=True))
            step.log_probs.update(zip(group, log_probs.unbind(), strict=True))
        if team.states is not None:
            step.states.update(zip(self.agents, team.states.unbind(dim=1), strict=True))
        return step

    def forward(
        self,
        obs: dict[str, th.Tensor],
        deterministic: bool = False,
        states: RNNStates | None = None,
    ) -> JointStep:
        """
        One decision of all agents, and its value.

        :param obs: Joint observation, each entry ``(n_envs, ...)``
        :param deterministic: Most likely actions instead of samples
        :param states: Hidden states; None at the start of an episode, or without memory
        :return: Raw actions, log-probabilities, values, and the next hidden states
        """
        before = RNNStates({}, None) if states is None else states
        if LINKS not in obs:
            obs = self.actor_observation(obs, None)
        step = self.decide(obs, before.pi, deterministic)
        values, vf = self.critic.step(obs, before.vf)
        clipped = self.critic.clip(values)
        return JointStep(step.actions, step.log_probs, clipped, RNNStates(step.states, vf))

    def evaluate(
        self,
        obs: Mapping[str, th.Tensor],
        actions: Mapping[str, th.Tensor],
        sequences: Sequences | None = None,
        active: th.Tensor | None = None,
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        :param obs: Joint observation with :data:`LINKS`, each entry ``(batch, ...)``
        :param actions: Raw actions of each agent, ``(batch, action_dim)``
        :param sequences: Order of the rows in time, with memory
        :param active: Active mask, ``(batch, n_agents)``
        :return: Log-probabilities and entropies, ``(batch, n_agents)``
        """
        team = self.outputs(obs, sequences=sequences, active=active)
        distributions = self.distributions(team.params, obs)
        log_probs: dict[str, th.Tensor] = {}
        entropies: dict[str, th.Tensor] = {}
        for group, distribution in zip(self.encoder_groups, distributions, strict=True):
            own = th.cat([actions[agent] for agent in group])
            shape = (len(group), len(obs[LINKS]))
            log_prob = self.policies[group[0]].log_prob(distribution, own).unflatten(0, shape)
            entropy = distribution.entropy()
            assert entropy is not None
            log_probs |= zip(group, log_prob.unbind(), strict=True)
            entropies |= zip(group, entropy.unflatten(0, shape).unbind(), strict=True)
        return (
            th.stack([log_probs[agent] for agent in self.agents], dim=1),
            th.stack([entropies[agent] for agent in self.agents], dim=1),
        )

    # ---------------------------------------------------------------- predict

    @th.no_grad()
    def _answers(
        self,
        own: dict[str, Any],
        masks: dict[str, Any],
        states: dict[str, AgentState],
        deterministic: bool,
        active: Mapping[str, np.ndarray],
    ) -> dict[str, AgentAnswer]:
        """
        :param own: Observations; agents without one count as dead
        :param masks: Action masks
        :param states: Hidden states; none at the start of an episode
        :param deterministic: Most likely actions instead of samples
        :param active: Active mask of each agent, ``(n_envs,)``; empty if the observation has none
        :return: Decisions, in the order of the observations
        :raises CannotActAloneError: If there is one agent, and ``act_alone`` is False
        """
        if not own:
            return {}
        if len(own) == 1 and not self.act_alone:
            (agent,) = own
            absent = [other for other in self.agents if other != agent]
            raise CannotActAloneError(
                f"Agent {agent!r} cannot act alone: it decides by the messages of the other "
                f"agents, and the observations of {absent[:5]} are missing. Pass those of all "
                "agents that are alive. If all others are dead, set policy.act_alone = True."
            )
        inputs = TeamInputs(self, own, masks)
        acting = inputs.active_mask(active)
        links = self._links(inputs.observations, acting, self.message_loss)
        before = self._hidden_states(states, inputs.n_rows)
        step = self.decide({**inputs.observations, LINKS: links}, before, deterministic)
        results: dict[str, AgentAnswer] = {}
        for group in self.encoder_groups:
            raw = th.cat([step.actions[agent] for agent in group])
            results |= inputs.answers(group, raw)
        answers = {}
        for agent in own:
            state = None
            if agent in step.states:
                # (n_envs, n_parts, n_layers, hidden_size) -> n_parts x (n_layers, n_envs, ...)
                state = tuple(step.states[agent].permute(1, 2, 0, 3).cpu().numpy())
            answers[agent] = results[agent]._replace(state=state)
        return answers

    def _hidden_states(
        self, states: Mapping[str, AgentState], n_rows: int
    ) -> dict[str, th.Tensor]:
        """Hidden states of all agents as tensors, zeros where none are given."""
        memory = self.policies[self.agents[0]].memory
        if memory is None:
            return {}
        tensors = {agent: memory.initial_state(n_rows) for agent in self.agents}
        for agent, parts in states.items():
            given = th.as_tensor(np.stack(parts), device=self.device).permute(2, 0, 1, 3)
            if given.shape != tensors[agent].shape:
                raise ValueError(
                    f"agent {agent!r}: hidden states of {n_rows} environments are expected, and "
                    f"they have the shape {tuple(parts[0].shape)}."
                )
            tensors[agent] = given
        return tensors


class CommNetLstmPolicy(CommNetPolicy):
    """
    CommNet with LSTMs: ``recurrent`` is "lstm" by default. The input of an agent's LSTM is its
    observation and the mean of the others' outputs at the step before, as in IC3Net (Singh, Jain &
    Sukhbaatar 2019, arXiv 1812.09755); the rounds of messages follow.

    :param args: Arguments of :class:`CommNetPolicy`
    :param kwargs: Keyword arguments of :class:`CommNetPolicy`
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"recurrent": "lstm", **kwargs})


class CommunicatingActors(BatchedActors):
    """
    The actors of a team that communicates, during one rollout.

    :param policy: The team
    :raises ValueError: If a weight is NaN or infinite
    """

    @th.inference_mode()
    @unvalidated()
    def __call__(
        self, obs: dict[str, th.Tensor], states: Mapping[str, th.Tensor] | None = None
    ) -> ActorsStep:
        """
        :param obs: Joint observation with :data:`LINKS`, each entry ``(n_envs, ...)``
        :param states: Hidden states before the step, by agent
        :return: Raw actions, log-probabilities, and hidden states after the step
        """
        return self.policy.decide(obs, states or {})


def _check_team(action_space: spaces.Dict, kwargs: Mapping[str, Any]) -> None:
    """Refuse teams and arguments with which no messages are possible."""
    agents = list(action_space.spaces)
    if len(agents) == 1:
        raise ValueError(
            f"CommNetPolicy needs at least two agents: agent {agents[0]!r} is alone and has nobody "
            "to exchange messages with. Use 'MlpPolicy' or 'MlpLstmPolicy'."
        )
    if kwargs.get("shared_lstm"):
        raise ValueError(
            "shared_lstm=True: a critic cannot read the hidden states of agents that communicate; "
            "omit it."
        )
    for agent, own in (kwargs.get("agent_kwargs") or {}).items():
        if own.get("learning_rate") is not None:
            raise ValueError(
                f"agent_kwargs[{agent!r}]['learning_rate']: agents that communicate have one "
                "optimiser; set the learning rate of the algorithm."
            )
