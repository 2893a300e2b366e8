"""The team's actors during collection: agents with the same networks are evaluated in one call."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn
from torch.nn import functional as F

from sb3_happo.common.agent_policy import AgentPolicy
from sb3_happo.common.distributions import (
    draw_actions,
    make_action_distribution,
    set_parameters,
    unvalidated,
)
from sb3_happo.common.networks import TanhMeans
from sb3_happo.common.recurrent import BatchedRecurrentLayers
from sb3_happo.common.type_aliases import ActorsStep, AgentStep

#: Layers that treat every number by itself, and have no parameters
ELEMENTWISE = (
    nn.Tanh,
    nn.ReLU,
    nn.LeakyReLU,
    nn.ELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Sigmoid,
    nn.Softplus,
    nn.Identity,
)
_BATCHED_LAYERS = (nn.Linear, nn.LayerNorm, *ELEMENTWISE)


def policy_form(policy: AgentPolicy) -> tuple[object, ...] | None:
    """
    :param policy: An agent's policy
    :return: Properties that policies must have in common to be evaluated in one call; None for a
        policy that can only be evaluated alone
    """
    # The matrices of state-dependent noise are the agent's own
    together = policy.head_name == "gaussian" and policy.sde is None
    return network_form(policy) if together else None


def network_form(policy: AgentPolicy) -> tuple[object, ...] | None:
    """
    :param policy: An agent's policy, with any head
    :return: Properties that policies must have in common for their networks to be evaluated in one
        call; None for a policy that can only be evaluated alone
    """
    if type(policy) is not AgentPolicy:
        return None
    if type(policy.features_extractor) is not FlattenExtractor:
        return None
    if not all(isinstance(layer, _BATCHED_LAYERS) for layer in policy.body):
        return None
    # Spaces are compared by what they print, except for bounds, which NumPy may print rounded
    boxes = [leaf.space for leaf in policy.leaves if isinstance(leaf.space, spaces.Box)]
    bounds = tuple((box.low.tobytes(), box.high.tobytes()) for box in boxes)
    return (
        str(policy.observation_space),
        str(policy.action_space),
        policy.head_name,
        bounds,
        str(policy.memory),
        str(policy.body),
        str(policy.head),
        policy.masked,
        policy.log_std_form,
        policy.std_x_coef,
        policy.std_y_coef,
        policy.rescale_actions,
        policy.normalize_images,
    )


def _tanh(x: th.Tensor) -> th.Tensor:
    """
    :param x: Tensor of any shape
    :return: Hyperbolic tangent, on a CPU with errors up to 2e-7: PyTorch's own takes five times as
        long there, because only its sigmoid is vectorised
    """
    return th.sigmoid(x + x).mul_(2.0).sub_(1.0) if x.device.type == "cpu" else x.tanh()


def draw_choices(
    logits: th.Tensor, masks: th.Tensor | None, deterministic: bool
) -> tuple[th.Tensor, th.Tensor]:
    """
    Draw from categorical distributions, in less than half of the time of
    ``th.distributions.Categorical``.

    :param logits: Logits, ``(batch, n_choices)``
    :param masks: 1 where a choice is legal, ``(batch, n_choices)``; None where all are
    :param deterministic: Whether to take the most likely choices instead
    :return: Choices and their log-probabilities, both ``(batch,)``
    """
    if masks is not None:
        # As in sb3-contrib's distributions, with which the update evaluates these choices
        logits = logits.masked_fill(masks == 0, -1e8)
    log_probs = logits.log_softmax(dim=1)
    if deterministic:
        choices = log_probs.argmax(dim=1)
    else:
        sums = log_probs.exp().cumsum(dim=1)
        # The threshold lies in (0, sum], so that the first partial sum that reaches it exists and
        # is never that of an impossible choice
        thresholds = (1.0 - th.rand(len(sums), 1, device=sums.device)) * sums[:, -1:]
        choices = (sums < thresholds).sum(dim=1)
    return choices, log_probs.gather(1, choices.unsqueeze(1)).squeeze(1)


class _BatchedLayer(NamedTuple):
    """
    One layer of several agents.

    :param layer: The first agent's layer
    :param weights: Weights of all agents, for a Linear ``(n_agents, in, out)``, for a LayerNorm
        ``(n_agents, 1, in)``; None for a layer without
    :param biases: Biases of all agents, ``(n_agents, 1, out)``; None for a layer without
    """

    layer: nn.Module
    weights: th.Tensor | None = None
    biases: th.Tensor | None = None

    def __call__(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: Features, ``(n_agents, n_envs, in)``
        :return: Features, ``(n_agents, n_envs, out)``
        """
        layer, weights, biases = self
        if isinstance(layer, nn.LayerNorm):
            x = F.layer_norm(x, layer.normalized_shape, eps=layer.eps)
            return x if weights is None or biases is None else x * weights + biases
        if weights is not None and biases is not None:
            x = th.baddbmm(biases, x, weights)
            return layer.bound(x) if isinstance(layer, TanhMeans) else x
        return _tanh(x) if type(layer) is nn.Tanh else layer(x)


class BatchedPolicies:
    """
    Policies of several agents as one network with an additional dimension for the agents. The
    weights are copied at construction.

    :param policies: Policies of the same form, at least one
    """

    def __init__(self, policies: Sequence[AgentPolicy]) -> None:
        self.leader = policies[0]
        self.n_agents = len(policies)
        memories = [policy.memory for policy in policies if policy.memory is not None]
        self.memory = BatchedRecurrentLayers(memories) if memories else None
        self.layers: list[_BatchedLayer] = []
        for layers in zip(*(policy.body for policy in policies), strict=True):
            self._add(layers)
        self._add([policy.head for policy in policies])
        stds = [policy.effective_log_std() for policy in policies]
        self.log_std = stack_present(stds)  # (n_agents, n_continuous)
        ids = stack_present([policy.one_hot for policy in policies])
        self.ids = None if ids is None else ids.unsqueeze(1)  # (n_agents, 1, n_ids)
        self.distribution = make_action_distribution(self.leader.action_space, self.leader.masked)

    def _add(self, layers: Sequence[nn.Module]) -> None:
        """
        :param layers: One layer of each agent, of the same form
        """
        first = layers[0]
        if not isinstance(first, (nn.Linear, nn.LayerNorm)):
            self.layers.append(_BatchedLayer(first))
            return
        weights = th.stack([cast(nn.Linear, layer).weight.detach() for layer in layers])
        biases = th.stack([cast(nn.Linear, layer).bias.detach() for layer in layers]).unsqueeze(1)
        if isinstance(first, nn.LayerNorm):
            self.layers.append(_BatchedLayer(first, weights.unsqueeze(1), biases))
            return
        # (n_agents, out, in) -> (n_agents, in, out), for the product with (n_agents, n_envs, in).
        # A view: in a copy the few columns of the head would take three times as long to multiply
        weights = weights.transpose(1, 2)
        before = self.layers[-1] if self.layers else None
        if before is not None and isinstance(before.layer, nn.LayerNorm):
            # Scale and shift of the normalisation, (n_agents, 1, in), become part of the product
            scale, shift = before.weights, before.biases
            assert scale is not None and shift is not None
            self.layers[-1] = _BatchedLayer(before.layer)
            weights, biases = scale.transpose(1, 2) * weights, biases + shift @ weights
        self.layers.append(_BatchedLayer(first, weights, biases))

    def __call__(
        self,
        observations: Sequence[th.Tensor],
        masks: Sequence[th.Tensor] | None,
        states: Sequence[th.Tensor] = (),
        deterministic: bool = False,
        normals: th.Tensor | None = None,
    ) -> AgentStep:
        """
        :param observations: Observations of each agent, ``(n_envs, ...)``
        :param masks: Action masks of each agent, ``(n_envs, n_choices)``, or None
        :param states: States of each agent's recurrent layers before the step,
            ``(n_envs, n_parts, n_layers, hidden_size)``; empty without recurrent layers
        :param deterministic: Whether to take the most likely actions instead of samples
        :param normals: Standard normal numbers from which continuous actions are drawn,
            ``(n_agents * n_envs, n_continuous)``; None for independent ones
        :return: Raw actions ``(n_agents, n_envs, action_dim)``, log-probabilities
            ``(n_agents, n_envs)``, and states ``(n_agents, n_envs, ...)`` or None
        """
        joined = None if masks is None else th.cat(list(masks))
        before = th.stack(list(states)) if self.memory is not None else None
        x, after = self.network(self.features(th.cat(list(observations))), before)
        return self.decide(x, joined, after, deterministic, normals)

    def network(self, x: th.Tensor, states: th.Tensor | None) -> tuple[th.Tensor, th.Tensor | None]:
        """
        :param x: Features, ``(n_agents, n_envs, n_inputs)``
        :param states: States before the step, ``(n_agents, n_envs, ...)``; None without recurrent
            layers
        :return: Outputs of the networks, ``(n_agents, n_envs, n_params)``, and states after it
        """
        after = None
        if self.memory is not None:
            assert states is not None
            x, after = self.memory(x, states)
        for layer in self.layers:
            x = layer(x)
        return x, after

    def features(self, observations: th.Tensor) -> th.Tensor:
        """
        :param observations: Observations of one agent after the other,
            ``(n_agents * n_envs, ...)``
        :return: Flat observations, with the agents' ids if they have some,
            ``(n_agents, n_envs, n_inputs)``
        """
        flat = preprocess_obs(
            observations,
            self.leader.observation_space,
            normalize_images=self.leader.normalize_images,
        )
        assert isinstance(flat, th.Tensor)
        n_envs = len(observations) // self.n_agents
        x = flat.reshape(self.n_agents, n_envs, -1)
        return x if self.ids is None else th.cat([x, self.ids.expand(-1, n_envs, -1)], dim=2)

    def decide(
        self,
        params: th.Tensor,
        masks: th.Tensor | None,
        states: th.Tensor | None,
        deterministic: bool,
        normals: th.Tensor | None = None,
    ) -> AgentStep:
        """
        :param params: Outputs of the networks, ``(n_agents, n_envs, n_params)``
        :param masks: Action masks, ``(n_agents * n_envs, n_choices)``, or None
        :param states: States after the step, ``(n_agents, n_envs, ...)``, or None
        :param deterministic: Whether to take the most likely actions instead of samples
        :param normals: Standard normal numbers, see :meth:`__call__`
        :return: Decisions, see :meth:`__call__`
        """
        n_envs = params.shape[1]
        # (n_agents, n_envs, n_params) -> (n_agents * n_envs, n_params): to the distribution,
        # further agents are further rows
        actions, log_probs = self._act(params.flatten(end_dim=1), masks, deterministic, normals)
        return AgentStep(
            actions.reshape(self.n_agents, n_envs, -1),
            log_probs.reshape(self.n_agents, n_envs),
            states,
        )

    def _act(
        self,
        params: th.Tensor,
        masks: th.Tensor | None,
        deterministic: bool,
        normals: th.Tensor | None,
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        :param params: Outputs of the networks, ``(n_agents * n_envs, n_params)``
        :param masks: Action masks, ``(n_agents * n_envs, n_choices)``, or None
        :param deterministic: Whether to take the most likely actions instead of samples
        :param normals: Standard normal numbers, see :meth:`__call__`
        :return: Raw actions and log-probabilities, ``(n_agents * n_envs, ...)``
        """
        if isinstance(self.leader.action_space, spaces.Discrete):
            return draw_choices(params, masks, deterministic)
        log_std = self.log_std
        if log_std is not None:
            n_envs = len(params) // self.n_agents
            log_std = log_std.repeat_interleave(n_envs, dim=0)
        distribution = set_parameters(self.distribution, params, log_std, masks)
        actions = draw_actions(distribution, deterministic, normals)
        return actions, distribution.log_prob(actions)


def _join_normals(
    agents: tuple[str, ...],
    stack: BatchedPolicies,
    normals: Mapping[str, th.Tensor],
    observations: Sequence[th.Tensor],
) -> th.Tensor | None:
    """
    :param agents: Agents of one form
    :param stack: Their policies
    :param normals: Standard normal numbers by agent, those of other forms too
    :param observations: Observations of the agents, ``(n_envs, ...)``
    :return: Numbers of these agents, ``(n_agents * n_envs, n_continuous)``, independent ones where
        an agent has none; None if no agent has some
    """
    if stack.log_std is None or normals.keys().isdisjoint(agents):
        return None
    shape = (len(observations[0]), stack.log_std.shape[1])
    rows = []
    for agent in agents:
        own = normals.get(agent)
        rows.append(th.randn(shape, device=stack.log_std.device) if own is None else own)
    return th.cat(rows)


def stack_present(values: Sequence[th.Tensor | None]) -> th.Tensor | None:
    """
    :param values: A tensor of each agent, or None for each
    :return: Stacked tensors without gradients, or None
    """
    present = [value for value in values if value is not None]
    return th.stack(present).detach() if present else None


class BatchedActors:
    """
    The team's actors during one rollout. Agents whose spaces and networks have the same form are
    evaluated together, the others one by one. The weights are copied at construction.

    :param policy: The team, a ``MultiAgentPolicy``
    :raises ValueError: If a weight is NaN or infinite
    """

    def __init__(self, policy: Any) -> None:
        self.policy = policy
        # Checked once here, so that PyTorch need not check the logits of every step
        for agent, member in policy.policies.items():
            if not nn.utils.parameters_to_vector(member.parameters()).isfinite().all():
                raise ValueError(
                    f"agent {agent!r}: the last update has made weights NaN or infinite. Lower "
                    "`learning_rate` or `max_grad_norm`, or normalise observations and rewards "
                    "(VecNormalize)."
                )
        groups: dict[object, list[str]] = {}
        for agent, member in policy.policies.items():
            groups.setdefault(policy_form(member) or agent, []).append(agent)
        self.stacks: dict[tuple[str, ...], BatchedPolicies] = {}
        self.singles: list[str] = []
        for agents in groups.values():
            if len(agents) > 1:
                members = [policy.policies[agent] for agent in agents]
                self.stacks[tuple(agents)] = BatchedPolicies(members)
            else:
                self.singles += agents

    @th.inference_mode()
    @unvalidated()
    def __call__(
        self,
        obs: dict[str, th.Tensor],
        states: Mapping[str, th.Tensor] | None = None,
        normals: Mapping[str, th.Tensor] | None = None,
    ) -> ActorsStep:
        """
        Choose the actions of all agents, without gradients. The critic is not evaluated.

        :param obs: Joint observation, each entry ``(n_envs, ...)``
        :param states: States of the agents with recurrent layers before the step,
            ``(n_envs, n_parts, n_layers, hidden_size)`` each (``RNNStates.pi``); None at the start
            of an episode, or if no agent has some
        :param normals: Standard normal numbers from which continuous actions are drawn, by agent,
            ``(n_envs, n_continuous)`` each; independent ones for other agents
        :return: Raw actions, log-probabilities, and states after the step
        """
        if states is None:
            states = self._initial_states(len(next(iter(obs.values()))))
        step = ActorsStep({}, {}, {})
        for agents, stack in self.stacks.items():
            self._step_together(agents, stack, obs, states, normals or {}, step)
        for agent in self.singles:
            self._step_alone(agent, obs, states, normals or {}, step)
        return step

    def _initial_states(self, n_envs: int) -> dict[str, th.Tensor]:
        states = {}
        for agent, member in self.policy.policies.items():
            if member.memory is not None:
                states[agent] = member.memory.initial_state(n_envs)
        return states

    def _step_together(
        self,
        agents: tuple[str, ...],
        stack: BatchedPolicies,
        obs: dict[str, th.Tensor],
        states: Mapping[str, th.Tensor],
        normals: Mapping[str, th.Tensor],
        step: ActorsStep,
    ) -> None:
        """
        :param agents: Agents of one form
        :param stack: Their policies
        :param obs: Joint observation
        :param states: States before the step
        :param normals: Standard normal numbers by agent
        :param step: Filled with the agents' actions, log-probabilities and states
        """
        masks = None
        if stack.leader.masked:
            masks = [self.policy.action_masks(obs, agent) for agent in agents]
        own = [obs[agent] for agent in agents]
        before = [states[agent] for agent in agents] if stack.memory is not None else []
        joint = stack(own, masks, before, normals=_join_normals(agents, stack, normals, own))
        step.actions.update(zip(agents, joint.actions.unbind(), strict=True))
        step.log_probs.update(zip(agents, joint.log_probs.unbind(), strict=True))
        if joint.states is not None:
            step.states.update(zip(agents, joint.states.unbind(), strict=True))

    def _step_alone(
        self,
        agent: str,
        obs: dict[str, th.Tensor],
        states: Mapping[str, th.Tensor],
        normals: Mapping[str, th.Tensor],
        step: ActorsStep,
    ) -> None:
        """
        :param agent: An agent whose form no other agent has
        :param obs: Joint observation
        :param states: States before the step
        :param normals: Standard normal numbers by agent
        :param step: Filled with the agent's actions, log-probabilities and state
        """
        own, mask = self.policy.agent_observation(obs, agent), self.policy.action_masks(obs, agent)
        alone = self.policy.policies[agent].step(
            own, states.get(agent), action_masks=mask, normals=normals.get(agent)
        )
        step.actions[agent] = alone.actions
        step.log_probs[agent] = alone.log_probs
        if alone.states is not None:
            step.states[agent] = alone.states

    def to_env_actions(self, actions: Mapping[str, th.Tensor]) -> np.ndarray:
        """
        Turn raw actions into the joint actions that a vectorised environment takes.

        :param actions: Raw actions of each agent, ``(n_envs, action_dim)``
        :return: Structured array ``(n_envs,)`` with one field per agent
        """
        n_envs = len(next(iter(actions.values())))
        joint = np.empty(n_envs, self.policy.action_dtype)
        for agents, stack in self.stacks.items():
            # (n_agents, n_envs, action_dim) -> (n_agents * n_envs, action_dim)
            raw = th.cat([actions[agent] for agent in agents]).cpu().numpy()
            scaled = stack.leader.to_env_actions(raw).reshape(len(agents), n_envs, -1)
            for agent, own in zip(agents, scaled, strict=True):
                joint[agent] = own.reshape(joint[agent].shape)
        for agent in self.singles:
            raw = actions[agent].cpu().numpy()
            self.policy.policies[agent].to_env_actions(raw, out=joint[agent])
        return joint

    def to_env_tensors(self, actions: Mapping[str, th.Tensor]) -> dict[str, th.Tensor]:
        """
        Turn raw actions into those that an environment made of tensors takes:
        :meth:`to_env_actions` on the model's device.

        :param actions: Raw actions of each agent, ``(n_envs, action_dim)``; the agents' action
            spaces are neither Dict nor Tuple
        :return: Actions of each agent, ``(n_envs, ...)``
        """
        return {
            agent: policy.to_env_tensor(actions[agent])
            for agent, policy in self.policy.policies.items()
        }
