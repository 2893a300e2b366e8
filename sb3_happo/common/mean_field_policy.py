"""Team of mean-field agents, and the mean actions of their neighbours."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule

from sb3_happo.common.agent_policy import AgentPolicy
from sb3_happo.common.boltzmann import boltzmann, draw
from sb3_happo.common.heads import make_head
from sb3_happo.common.mean_field_actor import MeanFieldActor
from sb3_happo.common.multi_agent_policy import AgentState
from sb3_happo.common.neighborhoods import Neighborhood, Neighbors, Positions
from sb3_happo.common.team_inputs import TeamInputs
from sb3_happo.common.team_prediction import AgentAnswer
from sb3_happo.common.value_policy import IndependentValuePolicy

#: Entry beside a joint observation: mean actions of the agents' neighbours
MEAN_ACTIONS = "mean_actions"
#: Entry beside a joint observation: active mask of the agents
ACTING = "acting"


class MeanFieldPolicy(IndependentValuePolicy):
    """
    Team whose agents value their actions given the mean action of their neighbours, with target
    networks.

    A mean action has one block of columns for each action space in the team: the mean of the
    one-hots of those active neighbours that have this space; zeros if there are none.

    :param observation_space: Joint observation space of a :class:`~sb3_happo.envs.JointEnv`
    :param action_space: Joint action space, one entry per agent, in the agents' order
    :param lr_schedule: Learning rate
    :param neighbors: Neighbours, see :class:`~sb3_happo.common.neighborhoods.Neighborhood`
    :param positions: Positions, for a radius
    :param n_iterations: Iterations of mean actions and policies before a decision; 0 for the mean
        action of the step before
    :param iteration_rate: Weight of the new mean action in each iteration, in (0, 1]
    :param kwargs: Keyword arguments of ``IndependentValuePolicy``
    :raises ValueError: If a neighbour is unknown, or an argument is
    """

    agent_class: ClassVar[type[AgentPolicy]] = MeanFieldActor
    own_kwargs: ClassVar[frozenset[str]] = IndependentValuePolicy.own_kwargs | {
        *("neighbors", "positions", "n_iterations", "iteration_rate")
    }

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Dict,
        lr_schedule: Schedule,
        *args: Any,
        neighbors: Neighbors = "all",
        positions: Positions | None = None,
        n_iterations: int = 0,
        iteration_rate: float = 1.0,
        **kwargs: Any,
    ) -> None:
        self.n_iterations = n_iterations
        self.iteration_rate = iteration_rate
        self._blocks = _blocks(action_space)
        self.n_mean = sum(block.stop - block.start for block in self._blocks.values())
        super().__init__(observation_space, action_space, lr_schedule, *args, **kwargs)
        self.neighborhood = Neighborhood(self.team_spaces, neighbors, positions)
        index = {agent: column for column, agent in enumerate(self.agents)}
        #: Indices of the agents of each group
        self.group_indices = [[index[agent] for agent in group] for group in self.groups]
        self.members: th.Tensor
        self.register_buffer("members", _members(self), persistent=False)
        first: Any = self.policies[self.agents[0]]
        #: Temperature of all agents' Boltzmann policies
        self.temperature = first.temperature
        uniform = _uniform_mean(self)
        for policy in self.actors:
            policy.temperature = self.temperature
            policy.start_mean.copy_(uniform)  # type: ignore[operator]

    def _make_actor(
        self,
        agent: str,
        lr_schedule: Schedule,
        agent_id: tuple[int, int] | None,
        kwargs: dict[str, Any],
    ) -> AgentPolicy:
        own = {**kwargs, "n_mean": self.n_mean}
        return super()._make_actor(agent, lr_schedule, agent_id, own)

    def block(self, agent: str) -> slice:
        """
        :param agent: Name of an agent
        :return: Columns of a mean action that belong to its actions
        """
        return self._blocks[str(self.action_space.spaces[agent])]  # type: ignore[attr-defined]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        own = {"n_iterations": self.n_iterations, "iteration_rate": self.iteration_rate}
        return super()._get_constructor_parameters() | self.neighborhood.plain() | own

    # ---------------------------------------------------------------- mean actions

    @property
    def start_means(self) -> th.Tensor:
        """
        :return: Mean action of each agent's neighbours that is expected at the start of an episode,
            ``(n_agents, n_mean)``
        """
        return th.stack(self._expected())

    def _expected(self) -> list[Any]:
        return [policy.start_mean for policy in self.actors]

    @th.no_grad()
    def learn_start_means(self, means: th.Tensor, rate: float) -> None:
        """
        Move the mean actions that are expected at the start of an episode.

        :param means: Mean actions of first steps, ``(n_agents, n_mean)``
        :param rate: Weight of the new ones, in [0, 1]
        """
        th._foreach_lerp_(self._expected(), list(means.unbind()), rate)

    def encoded_by_group(self, raw: th.Tensor) -> list[th.Tensor]:
        """
        :param raw: Raw actions of all agents side by side, ``(batch, action_dim)``
        :return: One-hot actions of each group, ``(n_group, batch, n_options)``
        """
        encoded = []
        for group in self.groups:
            rows = th.cat([raw[:, self.raw_columns[agent]] for agent in group])
            own = self.policies[group[0]].action_head.encode(rows)
            encoded.append(own.unflatten(0, (len(group), len(raw))))
        return encoded

    def mean_actions(
        self,
        actions: Sequence[th.Tensor],
        observations: Mapping[str, th.Tensor],
        active: th.Tensor | None,
    ) -> th.Tensor:
        """
        :param actions: One-hot actions, or probabilities of the options, of each group,
            ``(n_group, batch, n_options)``
        :param observations: Joint observation, each entry ``(batch, ...)``
        :param active: Active mask, ``(batch, n_agents)``; None for all agents
        :return: Mean actions of the active neighbours of each agent, ``(batch, n_agents, n_mean)``
        """
        batch = actions[0].shape[1]
        placed = actions[0].new_zeros(batch, len(self.agents), self.n_mean)
        for group, indices, own in zip(self.groups, self.group_indices, actions, strict=True):
            placed[:, indices, self.block(group[0])] = own.transpose(0, 1)
        counts = self.members.unsqueeze(0)
        if active is not None:
            present = active.to(placed.dtype).unsqueeze(2)
            placed, counts = placed * present, counts * present
        total = self.neighborhood(placed, observations)
        return total / self.neighborhood(counts, observations).clamp(min=1.0)

    @th.no_grad()
    def settle(
        self,
        means: th.Tensor,
        observations: Mapping[str, th.Tensor],
        active: th.Tensor | None = None,
        targets: bool = False,
    ) -> th.Tensor:
        """
        Iterate mean actions and policies: mean actions are moved towards those of the policies that
        answer them.

        :param means: Mean actions of the step before, ``(batch, n_agents, n_mean)``
        :param observations: Joint observation, each entry ``(batch, ...)``
        :param active: Active mask of it, ``(batch, n_agents)``; None for all agents
        :param targets: Target networks instead of the networks
        :return: Mean actions after ``n_iterations`` iterations, ``(batch, n_agents, n_mean)``
        """
        for _ in range(self.n_iterations):
            probabilities = self.probabilities(observations, means, targets)
            answered = self.mean_actions(probabilities, observations, active)
            means = means.lerp(answered, self.iteration_rate)
        return means

    # ---------------------------------------------------------------- networks

    def outputs_given(
        self,
        observations: Mapping[str, th.Tensor],
        means: th.Tensor,
        networks: Sequence[Any],
    ) -> list[th.Tensor]:
        """
        One output per option, all agents of a group in one call.

        :param observations: Joint observation with the action masks, each entry ``(batch, ...)``
        :param means: Mean actions, ``(batch, n_agents, n_mean)``
        :param networks: Network of each group
        :return: Outputs of each group, -1e8 where an option is illegal,
            ``(n_group, batch, n_options)``
        """
        results = []
        for group, indices, network in zip(self.groups, self.group_indices, networks, strict=True):
            own = _stacked([self.agent_observation(observations, agent) for agent in group])
            beside = []
            for agent, column in zip(group, indices, strict=True):
                policy: Any = self.policies[agent]
                beside.append(policy.beside(means[:, column]))
            outputs, _ = network.parameters_of_actions(own, agent_ids=th.cat(beside))
            masks = self._group_masks(observations, group)
            values = network.action_head.values(outputs, masks)
            results.append(values.unflatten(0, (len(group), len(means))))
        return results

    def _group_masks(
        self, observations: Mapping[str, th.Tensor], group: Sequence[str]
    ) -> th.Tensor | None:
        """Masks of a group, ``(n_group * batch, n_options)``; ones where nothing is legal."""
        if not self.team_spaces.is_masked(group[0]):
            return None
        own: list[Any] = [self.action_masks(observations, agent) for agent in group]
        masks = th.cat(own)
        some = masks.bool().any(dim=1, keepdim=True)
        return masks.where(some, th.ones_like(masks))

    def networks(self, targets: bool = False) -> list[Any]:
        """
        :param targets: Target networks instead of the networks
        :return: Network of each group that acts
        """
        if targets:
            return list(self.target_actors)
        return [self.policies[group[0]] for group in self.groups]

    def action_values(
        self, observations: Mapping[str, th.Tensor], means: th.Tensor, targets: bool = False
    ) -> list[th.Tensor]:
        """
        :param observations: Joint observation, each entry ``(batch, ...)``
        :param means: Mean actions, ``(batch, n_agents, n_mean)``
        :param targets: Target networks instead of the networks
        :return: Values of the options of each group, ``(n_group, batch, n_options)``
        """
        return self.outputs_given(observations, means, self.value_networks(targets))

    def value_networks(self, targets: bool = False) -> list[Any]:
        """
        Hook: networks of the values, here those that act.

        :param targets: Target networks instead of the networks
        :return: Network of the values of each group
        """
        return self.networks(targets)

    def probabilities(
        self, observations: Mapping[str, th.Tensor], means: th.Tensor, targets: bool = False
    ) -> list[th.Tensor]:
        """
        :param observations: Joint observation, each entry ``(batch, ...)``
        :param means: Mean actions, ``(batch, n_agents, n_mean)``
        :param targets: Target networks instead of the networks
        :return: Probabilities of the options of each group, ``(n_group, batch, n_options)``
        """
        outputs = self.outputs_given(observations, means, self.networks(targets))
        pairs = zip(self.groups, outputs, strict=True)
        return [self.boltzmann(own, group[0]) for group, own in pairs]

    def boltzmann(self, values: th.Tensor, agent: str) -> th.Tensor:
        """
        :param values: Values of an agent's options, ``(..., n_options)``
        :param agent: Name of the agent
        :return: Probabilities of the options, ``(..., n_options)``
        """
        return boltzmann(values, self.policies[agent].action_head.factors, self.temperature.value)

    # ---------------------------------------------------------------- decisions

    @th.no_grad()
    def explore(self, observations: Mapping[str, th.Tensor]) -> th.Tensor:
        """
        :param observations: Joint observation, each entry ``(n_envs, ...)``, with the mean actions
            of the step before under :data:`MEAN_ACTIONS` and, where not all agents are active, the
            active mask under :data:`ACTING`
        :return: Raw actions of all agents side by side, drawn from the Boltzmann policies,
            ``(n_envs, action_dim)``
        """
        active = observations.get(ACTING)
        means = self.settle(observations[MEAN_ACTIONS], observations, active)
        outputs = self.outputs_given(observations, means, self.networks())
        parts: dict[str, th.Tensor] = {}
        for group, own in zip(self.groups, outputs, strict=True):
            head = self.policies[group[0]].action_head
            choices, _ = draw(own.flatten(end_dim=1), head.factors, self.temperature.value)
            rows = head.decode(choices).unflatten(0, own.shape[:2])
            parts |= zip(group, rows.unbind(), strict=True)
        return th.cat([parts[agent] for agent in self.agents], dim=1)

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
        :param states: Mean actions of the step before, ``(1, n_envs, n_mean)`` each
        :param deterministic: Options of the highest values instead of samples
        :param active: Active mask of each agent, ``(n_envs,)``; empty if the observation has none
        :return: Decisions, and the mean actions after them
        """
        if not own:
            return {}
        inputs = TeamInputs(self, own, masks)
        acting = inputs.active_mask(active)
        observations = inputs.observations
        means = self.settle(self._means_before(states, inputs.n_rows), observations, acting)
        outputs = self.outputs_given(observations, means, self.networks())
        chosen = []
        answers: dict[str, AgentAnswer] = {}
        for group, values in zip(self.groups, outputs, strict=True):
            policy = self.policies[group[0]]
            head = policy.action_head
            temperature = self.temperature.value
            choices, _ = draw(values.flatten(end_dim=1), head.factors, temperature, deterministic)
            chosen.append(choices.unflatten(0, values.shape[:2]))
            answers |= inputs.answers(group, head.decode(choices))
        after = self.mean_actions(chosen, observations, acting).cpu().numpy()
        results = {}
        for column, agent in enumerate(self.agents):
            if agent in own:
                results[agent] = answers[agent]._replace(state=(after[np.newaxis, :, column],))
        return results

    def _means_before(self, states: Mapping[str, AgentState], n_rows: int) -> th.Tensor:
        """Mean actions of the step before, ``(n_rows, n_agents, n_mean)``."""
        means = self.start_means.unsqueeze(0).repeat(n_rows, 1, 1)
        for column, agent in enumerate(self.agents):
            if agent in states:
                array = np.asarray(states[agent][0], np.float32)
                if array.size != n_rows * self.n_mean:
                    raise ValueError(
                        f"agent {agent!r}: `state` has the shape {array.shape}; for {n_rows} "
                        "observations it must be the mean action of the neighbours, "
                        f"(1, {n_rows}, {self.n_mean})."
                    )
                given = th.as_tensor(array, device=means.device)
                means[:, column] = given.reshape(n_rows, self.n_mean)
        return means

    @staticmethod
    def _next_state(
        active: np.ndarray | None, state: AgentState, before: AgentState | None
    ) -> AgentState:
        """
        :param active: Active mask of the agent
        :param state: Mean actions after the decision
        :param before: Mean actions before it
        :return: ``state``: an agent that waits for its turn observes the others too
        """
        return state


def _blocks(action_space: spaces.Dict) -> dict[str, slice]:
    """Columns of a mean action for each action space, by its text."""
    blocks: dict[str, slice] = {}
    start = 0
    for space in action_space.spaces.values():
        if str(space) not in blocks:
            end = start + make_head("greedy", space).n_encoded
            blocks[str(space)] = slice(start, end)
            start = end
    return blocks


def _stacked(observations: Sequence[PyTorchObs]) -> PyTorchObs:
    """Observations of several agents as one batch, one agent's after the other's."""
    first = observations[0]
    parts: Any = observations
    if isinstance(first, dict):
        return {key: th.cat([own[key] for own in parts]) for key in first}
    return th.cat(parts)


def _members(team: MeanFieldPolicy) -> th.Tensor:
    """1 at the columns of each agent's block, ``(n_agents, n_mean)``."""
    members = th.zeros(len(team.agents), team.n_mean)
    for row, agent in zip(members, team.agents, strict=True):
        row[team.block(agent)] = 1.0
    return members


def _uniform_mean(team: MeanFieldPolicy) -> th.Tensor:
    """Mean action of neighbours that choose at random, ``(n_mean,)``."""
    mean = th.zeros(team.n_mean)
    for agent in team.agents:
        factors = team.policies[agent].action_head.factors
        mean[team.block(agent)] = th.cat([th.full((n,), 1.0 / n) for n in factors])
    return mean
