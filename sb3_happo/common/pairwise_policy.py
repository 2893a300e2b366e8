"""Networks of factorised Q-learning: values of each agent's actions, and factors of pairs."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_happo.common.agent_inputs import split_mask
from sb3_happo.common.agent_policy import AgentPolicy
from sb3_happo.common.multi_agent_policy import join_actions
from sb3_happo.common.networks import NetworkOptions, make_body, make_optimizer
from sb3_happo.common.pair_terms import PairTerms
from sb3_happo.common.value_policy import IndependentValuePolicy
from sb3_happo.envs.spaces import ACTIVE, as_sampled
from sb3_happo.suggestions import check_names


class FactorNet(BaseModel):
    """
    Network of the factors of an agent's options.

    :param policy: Policy of the agent, whose observations it reads
    :param options: Network options; of ``net_arch`` the hidden layers "vf" are used
    :param rank: Number of factors of each kind
    """

    def __init__(self, policy: AgentPolicy, options: NetworkOptions, rank: int) -> None:
        space = policy.observation_space
        super().__init__(
            space,
            spaces.Discrete(1),  # SB3's base class needs an action space
            options.extractor_class(space),
            options.features_extractor_kwargs,
            normalize_images=options.normalize_images,
        )
        self.rank = rank
        n_ids = 0 if policy.one_hot is None else policy.one_hot.shape[-1]
        self.features_extractor = self.make_features_extractor()
        self.body, dim = make_body(self.features_extractor, options, "vf", n_ids)
        self.head = nn.Linear(dim, policy.action_head.n_encoded * 2 * rank)

    def forward(self, observations: PyTorchObs, one_hot: th.Tensor | None) -> th.Tensor:
        """
        :param observations: Own observations of the agent, ``(batch, ...)``
        :param one_hot: Index of the agent among those that share the network; None for a network
            without this input
        :return: Factors, first those of the left, ``(batch, n_options, 2 * rank)``
        """
        assert self.features_extractor is not None
        features = self.extract_features(observations, self.features_extractor)
        if one_hot is not None:
            features = th.cat([features, one_hot.expand(len(features), -1)], dim=1)
        return self.head(self.body(features)).unflatten(1, (-1, 2 * self.rank))


class PairFactors(nn.Module):
    """
    Factors of all agents' options, from their own observations. Agents that share a network of
    values share that of factors.

    :param policies: Policies of the agents
    :param groups: Agents that share parameters
    :param lr_schedule: Learning rate over the remaining progress
    :param options: Network options
    :param rank: Number of factors of each kind
    """

    def __init__(
        self,
        policies: Mapping[str, AgentPolicy],
        groups: Sequence[Sequence[str]],
        lr_schedule: Schedule,
        options: NetworkOptions,
        rank: int,
    ) -> None:
        super().__init__()
        networks = [FactorNet(policies[group[0]], options, rank) for group in groups]
        self.networks = nn.ModuleList(networks)
        self._group_of: dict[str, int] = {}
        for index, group in enumerate(groups):
            self._group_of |= dict.fromkeys(group, index)
        self.optimizer = make_optimizer(self, lr_schedule, options)

    def frozen(self, absent: Sequence[bool]) -> AbstractContextManager[None]:
        """
        :param absent: Mask of the agents that did not act, ``(n_agents,)``
        :return: Context of a step of the optimiser, without effect: the networks of absent agents
            get no gradient
        """
        return nullcontext()

    def forward(
        self, observations: PyTorchObs, agent: str, one_hot: th.Tensor | None
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        :param observations: Own observations of the agent, ``(batch, ...)``
        :param agent: Name of the agent
        :param one_hot: Index of the agent among those that share the network, or None
        :return: Left and right factors of its options, ``(batch, n_options, rank)`` each
        """
        network = self.networks[self._group_of[agent]]
        left, right = network(observations, one_hot).chunk(2, dim=2)
        return left, right


class PairwiseValuePolicy(IndependentValuePolicy):
    """
    Team whose joint actions have values of agents and pairs of agents, see
    :class:`~sb3_happo.common.pair_terms.PairTerms`. It acts as a whole: the joint action is found
    by coordinate ascent over all agents whose observations are given.

    :param args: Arguments of ``IndependentValuePolicy``
    :param rank: Number of factors of each agent's options in a pair
    :param neighbors: Pairs of agents that have a term, ``[("agent_0", "agent_1"), ...]``; None for
        all pairs
    :param n_restarts: Number of random starts of the coordinate ascent beside the first
    :param n_sweeps: Largest number of turns of each agent in the coordinate ascent
    :param kwargs: Keyword arguments of ``IndependentValuePolicy``; ``critic_kwargs`` are options of
        the networks of factors
    :raises ValueError: If a pair is not one of two different agents of the team
    """

    own_kwargs: ClassVar[frozenset[str]] = IndependentValuePolicy.own_kwargs | {
        *("rank", "neighbors", "n_restarts", "n_sweeps")
    }

    def __init__(
        self,
        *args: Any,
        rank: int = 2,
        neighbors: Sequence[Sequence[str]] | None = None,
        n_restarts: int = 8,
        n_sweeps: int = 10,
        **kwargs: Any,
    ) -> None:
        # Read by `make_action_critic`, which the base class calls
        self._pair_form: dict[str, Any] = {
            "rank": rank,
            "neighbors": None if neighbors is None else [list(pair) for pair in neighbors],
            "n_restarts": n_restarts,
            "n_sweeps": n_sweeps,
        }
        super().__init__(*args, **kwargs)
        #: 1 for the pairs i < j that have a term, ``(n_agents, n_agents)``
        self.pairs: th.Tensor
        self.register_buffer("pairs", self._make_pairs(neighbors), persistent=False)

    def make_action_critic(  # type: ignore[override]
        self, lr_schedule: Schedule, kwargs: dict[str, Any], overrides: dict[str, Any]
    ) -> nn.Module:
        names = set(NetworkOptions.names())
        check_names(overrides, names, "policy_kwargs['critic_kwargs']")
        own = {name: value for name, value in kwargs.items() if name in names} | overrides
        rank = self._pair_form["rank"]
        return PairFactors(self.policies, self.groups, lr_schedule, NetworkOptions(**own), rank)

    def _make_pairs(self, neighbors: Sequence[Sequence[str]] | None) -> th.Tensor:
        n_agents = len(self.agents)
        if neighbors is None:
            return th.ones(n_agents, n_agents).triu(diagonal=1)
        pairs = th.zeros(n_agents, n_agents)
        for pair in neighbors:
            for agent in pair:
                self.team_spaces.check_agent(agent, "`neighbors`")
            if len(set(pair)) != 2 or len(pair) != 2:
                raise ValueError(
                    f"neighbors: {list(pair)} is no pair; give the names of two different agents."
                )
            first, second = sorted(self.agents.index(agent) for agent in pair)
            pairs[first, second] = 1.0
        return pairs

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | self._pair_form

    # ---------------------------------------------------------------- values of joint actions

    def terms(
        self,
        observations: Mapping[str, th.Tensor],
        active: th.Tensor | None = None,
        target: bool = False,
        agents: Sequence[str] | None = None,
    ) -> PairTerms:
        """
        :param observations: Joint observation, each entry ``(batch, ...)``
        :param active: Active mask of the agents, ``(batch, n_agents)``; None for all
        :param target: Target networks in the place of the networks
        :param agents: Agents whose entries are given, in the team's order; None for all
        :return: Terms of the joint actions of these agents
        """
        agents = self.agents if agents is None else agents
        networks: Mapping[str, AgentPolicy] = self.target_networks if target else {}
        factors: Any = self.critic_target if target else self.critic
        values, left, right, choices = {}, {}, {}, {}
        for agent in agents:
            own = self.agent_observation(observations, agent)
            values[agent] = self.values(observations, agent, networks.get(agent))
            left[agent], right[agent] = factors(own, agent, self.policies[agent].one_hot)
            choices[agent] = self.policies[agent].action_head.factors
        rows = [self.agents.index(agent) for agent in agents]
        return PairTerms(values, left, right, choices, self.pairs[rows][:, rows]).only(active)

    def best_joint_action(self, terms: PairTerms) -> dict[str, th.Tensor]:
        """
        :param terms: Terms of the joint actions
        :return: Encoded actions of each agent, ``(batch, n_options)``
        """
        return terms.best(self._pair_form["n_restarts"], self._pair_form["n_sweeps"])

    @th.no_grad()
    def explore(self, observations: Mapping[str, th.Tensor]) -> th.Tensor:
        """
        :param observations: Joint observation, each entry ``(n_envs, ...)``
        :return: Raw actions of the best joint actions, ``(n_envs, action_dim)``
        """
        active = observations.get(ACTIVE)
        if active is not None:
            # With VecFrameStack, the latest mask is the last one
            active = active[..., -len(self.agents) :]
        chosen = self.best_joint_action(self.terms(observations, active))
        parts = []
        for agent, own in chosen.items():
            parts.append(self.policies[agent].action_head.decode(own))
        return th.cat(parts, dim=1)

    # ---------------------------------------------------------------- predict

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: dict[str, np.ndarray] | None = None,
    ) -> tuple[Any, Any]:
        """
        Best joint action of the agents whose observations are given. Those of other agents, and of
        agents that the joint observation's "active" says are absent, are not part of it: an agent
        alone follows its own values.

        :param observation: As for ``MultiAgentPolicy.predict``
        :param state: Not used; returned as it is
        :param episode_start: Not used
        :param deterministic: Not used: a team of values does not draw its actions
        :param action_masks: As for ``MultiAgentPolicy.predict``
        :return: As for ``MultiAgentPolicy.predict``
        :raises ValueError: As for ``MultiAgentPolicy.predict``
        """
        if not isinstance(observation, dict) or len(self.agents) == 1:
            return super().predict(observation, state, episode_start, deterministic, action_masks)
        self.set_training_mode(False)
        own, masks = self._own_inputs(observation, action_masks)
        tensors: dict[str, th.Tensor] = {}
        batched = set()
        for agent, value in own.items():
            if self._add_entries(tensors, agent, value, masks.get(agent)):
                batched.add(agent)
        flags = self.team_spaces.active(observation)
        active = None
        if flags is not None:
            columns = [th.as_tensor(flags[agent]) for agent in own]
            active = th.stack(columns, dim=1).to(self.device)
        joint = self._act(tensors, list(own), active, batched)
        if batched:
            return join_actions(self, joint, batched), state
        names = {str(name): name for name in observation}
        return {names.get(agent, agent): action for agent, action in joint.items()}, state

    def _add_entries(
        self, tensors: dict[str, th.Tensor], agent: str, value: Any, mask: Any
    ) -> bool:
        """Add an agent's entries of the joint observation; True if they are a batch."""
        policy = self.policies[agent]
        try:
            bare, own_mask = split_mask(value, policy.observation_space)
            obs, is_batch = policy.obs_to_tensor(bare)
            given = policy.masks.to_tensor(own_mask if mask is None else mask, self.device)
        except ValueError as error:
            raise ValueError(f"agent {agent!r}: {error}") from error
        if isinstance(obs, dict):
            for name, part in obs.items():
                tensors[f"{agent}/{name}"] = part
        else:
            tensors[agent] = obs
        if given is not None:
            tensors[self.team_spaces.mask_keys[agent]] = given
        return is_batch

    @th.no_grad()
    def _act(
        self,
        tensors: dict[str, th.Tensor],
        agents: list[str],
        active: th.Tensor | None,
        batched: set[str],
    ) -> dict[str, Any]:
        """Actions of the environment of each agent."""
        sizes = {agent: len(tensors[self.team_spaces.keys[agent][0]]) for agent in agents}
        if len(set(sizes.values())) > 1 or len(batched) not in (0, len(agents)):
            raise ValueError(
                "The agents' observations must be of the same environments; they are batches of "
                f"{sizes}."
            )
        chosen = self.best_joint_action(self.terms(tensors, active, agents=agents))
        actions: dict[str, Any] = {}
        for agent, own in chosen.items():
            policy = self.policies[agent]
            taken = policy.to_env_actions(policy.action_head.decode(own).cpu().numpy())
            actions[agent] = taken if batched else as_sampled(policy.action_space, taken[0])
        return actions
