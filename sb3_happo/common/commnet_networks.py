"""Networks of a team whose agents communicate before they act."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from sb3_happo.common.agent_policy import AgentPolicy
from sb3_happo.common.communication import (
    CommNetActor,
    CommunicationRounds,
    mean_of_others,
    open_links,
)
from sb3_happo.common.hyperparameters import COUNT, Setting, check_settings
from sb3_happo.common.joint_policy import JointPolicy
from sb3_happo.common.networks import make_optimizer
from sb3_happo.common.recurrent import single_steps
from sb3_happo.common.type_aliases import Sequences

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


class CommNetNetworks(JointPolicy):
    """
    Networks of a team that communicates, see
    :class:`~sb3_happo.common.commnet_policy.CommNetPolicy` for the parameters.
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
        *,
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
        self.message_size: int = leader.message_size
        activation = leader.options.activation_fn
        self.rounds = CommunicationRounds(self.message_size, n_rounds, activation)
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
        hidden = first.new_zeros(len(links), len(self.agents), self.message_size)
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
