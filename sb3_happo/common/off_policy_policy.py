"""Actors and critics of the off-policy algorithms."""

from collections.abc import Mapping
from itertools import accumulate, pairwise
from typing import Any, ClassVar, Literal, TypeAlias

import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from sb3_happo.common.action_critics import ActionCritic
from sb3_happo.common.agent_policy import AgentPolicy
from sb3_happo.common.heads import HeadName
from sb3_happo.common.leaf_heads import BoxHead
from sb3_happo.common.multi_agent_policy import MultiAgentPolicy, explain_extractor
from sb3_happo.common.networks import NetworkOptions
from sb3_happo.suggestions import check_names

OwnCritics: TypeAlias = bool | Literal["auto"]
#: Defaults of the networks: those of SB3's off-policy algorithms
DEFAULTS: dict[str, Any] = {"net_arch": [256, 256], "ortho_init": False}


class OffPolicyJointPolicy(MultiAgentPolicy):
    """
    Team of the off-policy algorithms: a policy for each agent, critics of joint actions, and the
    critics' target networks.

    Keyword arguments that are not listed go to every
    :class:`~sb3_happo.common.agent_policy.AgentPolicy` and, where they are
    :class:`~sb3_happo.common.networks.NetworkOptions`, to the critics. By default the networks have
    two hidden layers of 256 units, and are initialised as SB3's.

    :param observation_space: Joint observation space of a :class:`~sb3_happo.envs.JointEnv`
    :param action_space: Joint action space, one entry per agent, in the agents' order
    :param lr_schedule: Learning rate of the actors
    :param n_critics: Number of critics per reward, of which targets take the least
    :param own_critics: True for critics of each agent's own reward, False for critics of the
        team's; "auto" for critics of the team's until an algorithm has seen rewards that differ,
        and of each agent's from then on
    :param agent_kwargs: Overrides for single agents
    :param critic_kwargs: Overrides for the critics
    :param kwargs: Keyword arguments of ``MultiAgentPolicy``; ``net_arch`` may be SB3's
        ``dict(pi=..., qf=...)``
    :raises ValueError: If a policy is recurrent, or an argument is unknown
    """

    own_kwargs: ClassVar[frozenset[str]] = MultiAgentPolicy.own_kwargs | {
        *("n_critics", "own_critics")
    }
    #: Target networks for the critics, and for the actors
    has_target_critic: ClassVar[bool] = True
    has_target_actors: ClassVar[bool] = False
    critic: ActionCritic
    critic_target: ActionCritic

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Dict,
        lr_schedule: Schedule,
        n_critics: int = 2,
        own_critics: OwnCritics = False,
        agent_kwargs: Mapping[str, dict[str, Any]] | None = None,
        critic_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if own_critics not in (True, False, "auto"):
            raise ValueError(
                f"policy_kwargs: own_critics must be True, False or 'auto', not {own_critics!r}"
            )
        # Read by `make_critic`, which the base class calls
        self._critic_form: dict[str, Any] = {"n_critics": n_critics, "own_critics": own_critics}
        overrides = {agent: _options(own) for agent, own in (agent_kwargs or {}).items()}
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            agent_kwargs=overrides,
            critic_kwargs=_options(critic_kwargs or {}),
            **_with_defaults(_options(kwargs)),
        )
        self.synchronise_targets()

    # ---------------------------------------------------------------- networks

    def make_critic(
        self, lr_schedule: Schedule, kwargs: dict[str, Any], overrides: dict[str, Any]
    ) -> nn.Module:
        raw_sizes, sizes = {}, {}
        for agent, policy in self.policies.items():
            raw_sizes[agent] = sum(leaf.n_actions for leaf in policy.leaves)
            sizes[agent] = policy.action_head.n_encoded
        #: Columns of each agent in raw and in encoded joint actions
        self.raw_columns, self.columns = _slices(raw_sizes), _slices(sizes)
        #: Mask of the continuous columns of encoded joint actions, ``(n_encoded,)``
        self.continuous: th.Tensor
        self.register_buffer("continuous", self._continuous_columns(), persistent=False)
        # Target networks are made where SB3 makes them, so that a team of one draws its weights
        if self.has_target_actors:
            rate = self._dummy_schedule
            targets = []
            for group in self.groups:
                leader = group[0]
                own = kwargs | self._init_kwargs["agent_kwargs"].get(leader, {})
                agent_id = self.policies[leader].agent_id
                targets.append(self._make_actor(leader, rate, agent_id, own))
            self.target_actors: Any = nn.ModuleList(targets)
        critic = self.make_action_critic(lr_schedule, kwargs, overrides)
        if self.has_target_critic:
            self.critic_target = self.make_action_critic(lr_schedule, kwargs, overrides)
        return critic

    def make_action_critic(
        self, lr_schedule: Schedule, kwargs: dict[str, Any], overrides: dict[str, Any]
    ) -> ActionCritic:
        """
        Hook: one critic module, as the critic or as its target.

        :param lr_schedule: Learning rate of the critic
        :param kwargs: Keyword arguments of every agent's policy
        :param overrides: Keyword arguments of the critic alone (``critic_kwargs``)
        :return: Critic
        """
        check_names(overrides, set(NetworkOptions.names()), "policy_kwargs['critic_kwargs']")
        shared = set(NetworkOptions.names()) - {"output_gain"}
        own = {name: value for name, value in kwargs.items() if name in shared} | overrides
        team = self.team_spaces
        n_values = len(self.agents) if self.own_critics is True else 1
        seen = f"the critic, the state, of {team.observation_space}"
        with explain_extractor(own, seen, "policy_kwargs['critic_kwargs']"):
            return ActionCritic(
                team.observation_space,
                self.n_encoded,
                lr_schedule,
                NetworkOptions(**own),
                int(self._critic_form["n_critics"]),
                n_values,
            )

    def _continuous_columns(self) -> th.Tensor:
        masks = []
        for policy in self.policies.values():
            for part in policy.action_head.parts:
                masks.append(th.full((part.n_encoded,), isinstance(part, BoxHead)))
        return th.cat(masks)

    @property
    def own_critics(self) -> OwnCritics:
        """
        :return: Present meaning of the critics' values, as for the constructor
        """
        return self._critic_form["own_critics"]

    def split_critics(self) -> None:
        """Give each agent critics of its own reward, which continue those of the team's."""
        self._critic_form["own_critics"] = True
        self.critic.split(len(self.agents))
        if self.has_target_critic:
            self.critic_target.split(len(self.agents))

    @property
    def n_encoded(self) -> int:
        """
        :return: Number of columns of an encoded joint action
        """
        return self.columns[self.agents[-1]].stop

    def group_of(self, agent: str) -> tuple[str, ...]:
        """
        :param agent: Name of an agent
        :return: Agents with the same network, the agent among them
        """
        (group,) = [group for group in self.groups if agent in group]
        return group

    def target_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """
        :return: Networks and their target networks
        """
        pairs: list[tuple[nn.Module, nn.Module]] = []
        if self.has_target_critic:
            pairs.append((self.critic, self.critic_target))
        if self.has_target_actors:
            for group, target in zip(self.groups, self.target_actors, strict=True):
                pairs.append((self.policies[group[0]], target))
        return pairs

    def synchronise_targets(self) -> None:
        """Copy all networks to their target networks."""
        for network, target in self.target_pairs():
            target.load_state_dict(network.state_dict())
            target.requires_grad_(False)
            target.train(False)

    @th.no_grad()
    def update_targets(self, tau: float) -> None:
        """
        Move the target networks towards the networks.

        :param tau: Weight of the networks, in (0, 1]; 1 copies them
        """
        ours: list[th.Tensor] = []
        targets: list[th.Tensor] = []
        for network, target in self.target_pairs():
            ours += [param.data for param in network.parameters()]
            targets += [param.data for param in target.parameters()]
        # As SB3's polyak_update, with its rounding
        th._foreach_mul_(targets, 1 - tau)
        th._foreach_add_(targets, ours, alpha=tau)

    def set_training_mode(self, mode: bool) -> None:
        """
        :param mode: True for training mode; target networks stay in evaluation mode
        """
        super().set_training_mode(mode)
        for _, target in self.target_pairs():
            target.train(False)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | self._critic_form

    # ---------------------------------------------------------------- actions

    def encode(self, raw: th.Tensor) -> th.Tensor:
        """
        :param raw: Raw actions of all agents side by side, ``(batch, action_dim)``
        :return: Encoded actions, ``(batch, n_encoded)``
        """
        if self.is_continuous:
            return raw
        parts = []
        for agent, policy in self.policies.items():
            parts.append(policy.action_head.encode(raw[:, self.raw_columns[agent]]))
        return th.cat(parts, dim=1)

    @th.no_grad()
    def explore(self, observations: Mapping[str, th.Tensor]) -> th.Tensor:
        """
        :param observations: Joint observation, each entry ``(n_envs, ...)``
        :return: Raw actions of all agents side by side, drawn where a policy is stochastic,
            ``(n_envs, action_dim)``
        """
        parts = []
        for agent, policy in self.policies.items():
            parts.append(policy.action_head.decode(self.encoded_actions(observations, agent)))
        return th.cat(parts, dim=1)

    @property
    def is_continuous(self) -> bool:
        """
        :return: True if all agents' actions are Boxes, whose raw and encoded forms are the same
        """
        return not any(policy.action_head.factors for policy in self.policies.values())

    def encoded_actions(
        self, observations: Mapping[str, th.Tensor], agent: str, network: AgentPolicy | None = None
    ) -> th.Tensor:
        """
        Differentiable actions of one agent: those of its policy for continuous parts, and samples
        for discrete ones.

        :param observations: Joint observation, each entry ``(batch, ...)``
        :param agent: Name of the agent
        :param network: Network in the place of the agent's own, such as its target
        :return: Encoded actions of the agent, ``(batch, n_encoded)``
        """
        return self.rsample(self.outputs(observations, agent, network), observations, agent)[0]

    def rsample(
        self, outputs: th.Tensor, observations: Mapping[str, th.Tensor], agent: str
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        :param outputs: Outputs of the agent's network, ``(batch, n_params)``
        :param observations: Joint observation with the action masks, each entry ``(batch, ...)``
        :param agent: Name of the agent
        :return: Encoded actions of the agent ``(batch, n_encoded)``, and log-probabilities
            ``(batch,)``
        """
        policy = self.policies[agent]
        masks = self.action_masks(observations, agent)
        return policy.action_head.rsample(outputs, policy.effective_log_std(), masks)

    def outputs(
        self, observations: Mapping[str, th.Tensor], agent: str, network: AgentPolicy | None = None
    ) -> th.Tensor:
        """
        :param observations: Joint observation, each entry ``(batch, ...)``
        :param agent: Name of the agent
        :param network: Network in the place of the agent's own, such as its target
        :return: Outputs of the network, ``(batch, n_params)``
        """
        own = self.agent_observation(observations, agent)
        ids = self.policies[agent].one_hot
        if network is None:
            return self.policies[agent].parameters_of_actions(own)[0]
        if ids is not None:
            ids = ids.expand(len(next(iter(observations.values()))), -1)
        return network.parameters_of_actions(own, agent_ids=ids)[0]


class DeterministicJointPolicy(OffPolicyJointPolicy):
    """
    Team of deterministic actors with target networks, as in TD3.

    :param args: Arguments of :class:`OffPolicyJointPolicy`
    :param kwargs: Keyword arguments of :class:`OffPolicyJointPolicy`
    """

    actor_head: ClassVar[HeadName] = "deterministic"
    has_target_actors: ClassVar[bool] = True

    @th.no_grad()
    def target_actions(self, observations: Mapping[str, th.Tensor]) -> th.Tensor:
        """
        :param observations: Joint observation, each entry ``(batch, ...)``
        :return: Actions of the target networks, encoded, ``(batch, n_encoded)``
        """
        actions = {}
        for group, network in zip(self.groups, self.target_actors, strict=True):
            for agent in group:
                actions[agent] = self.encoded_actions(observations, agent, network)
        return th.cat([actions[agent] for agent in self.agents], dim=1)

    def logit_penalty(self, outputs: th.Tensor, agent: str) -> th.Tensor | None:
        """
        :param outputs: Outputs of the agent's network, ``(batch, n_params)``
        :param agent: Name of the agent
        :return: Mean square of the logits of its discrete actions for each row, ``(batch,)``; None
            for an agent without such
        """
        parts = self.policies[agent].action_head.parts
        columns = outputs.split([part.n_params for part in parts], dim=1)
        logits = []
        for part, own in zip(parts, columns, strict=True):
            if part.factors:
                logits.append(own)
        return th.cat(logits, dim=1).square().mean(dim=1) if logits else None


def _slices(sizes: Mapping[str, int]) -> dict[str, slice]:
    """Columns of each agent, side by side."""
    bounds = pairwise(accumulate(sizes.values(), initial=0))
    return {agent: slice(*bound) for agent, bound in zip(sizes, bounds, strict=True)}


def _with_defaults(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of all networks, with SB3's defaults of the off-policy algorithms."""
    optimizer_kwargs = kwargs.get("optimizer_kwargs") or {}
    if kwargs.get("optimizer_class", th.optim.Adam) in (th.optim.Adam, th.optim.AdamW):
        # Fused ones round otherwise: a team of one would drift away from SB3's numbers
        optimizer_kwargs = {"fused": False} | optimizer_kwargs
    return DEFAULTS | kwargs | {"optimizer_kwargs": optimizer_kwargs}


def _options(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """
    :param kwargs: Keyword arguments of a network
    :return: Copy with SB3's ``net_arch=dict(pi=..., qf=...)`` in this package's form
    :raises ValueError: If the network is recurrent
    """
    options = dict(kwargs)
    if options.get("recurrent") is not None:
        raise ValueError(
            f"policy_kwargs: recurrent={options['recurrent']!r} is not supported by the off-policy "
            "algorithms, whose replay buffer holds single transitions; omit it, or use HAPPO with "
            "'MlpLstmPolicy' or 'MlpGruPolicy'. VecFrameStack gives the agents a short memory."
        )
    net_arch = options.get("net_arch")
    if isinstance(net_arch, Mapping) and "qf" in net_arch:
        layers = dict(net_arch)
        layers["vf"] = layers.pop("qf")
        options["net_arch"] = layers
    return options
