"""Decisions of a whole team in ``predict``: agents of one form act in one call."""

import operator
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.preprocessing import is_image_space
from torch import nn

from sb3_happo.common.agent_inputs import split_mask
from sb3_happo.common.agent_policy import AgentPolicy
from sb3_happo.common.batched_actors import (
    ELEMENTWISE,
    BatchedPolicies,
    policy_form,
    stack_present,
)
from sb3_happo.common.distributions import make_action_distribution, unvalidated
from sb3_happo.common.recurrent import RecurrentLayers, single_steps
from sb3_happo.envs.spaces import as_sampled

#: Numbers of each matrix that are compared
_N_SAMPLES = 2
# End of a list of parts
_END = object()
# Number of in-place operations on a tensor
_VERSION = operator.attrgetter("_version")
#: Agents per network from which on one call per network is cheaper than a copy of the weights
_AGENTS_PER_NETWORK = 8


class LivePolicies(BatchedPolicies):
    """
    Policies of several agents that share few networks, evaluated network by network. Unlike
    :class:`~sb3_happo.common.batched_actors.BatchedPolicies` it copies no weights.

    :param policies: Policies of the same form; those that share a network follow one another
    """

    def __init__(self, policies: Sequence[AgentPolicy]) -> None:
        self.leader = policies[0]
        self.n_agents = len(policies)
        self.log_std = stack_present([policy.effective_log_std() for policy in policies])
        ids = stack_present([policy.one_hot for policy in policies])
        self.ids = None if ids is None else ids.unsqueeze(1)
        self.distribution = make_action_distribution(self.leader.action_space, self.leader.masked)
        #: One policy per network, and the number of agents that share it
        self._owners: list[AgentPolicy] = []
        self._sizes: list[int] = []
        head = None
        for policy in policies:
            if policy.head is head:
                self._sizes[-1] += 1
                continue
            head = policy.head
            self._owners.append(policy)
            self._sizes.append(1)

    def network(self, x: th.Tensor, states: th.Tensor | None) -> tuple[th.Tensor, th.Tensor | None]:
        after = None
        if states is not None:
            x, after = self._remember(x, states)
        networks = [(*owner.body, owner.head) for owner in self._owners]
        for layers in zip(*networks, strict=True):
            if isinstance(layers[0], ELEMENTWISE) or len(layers) == 1:
                x = layers[0](x)
            else:
                parts = zip(layers, x.split(self._sizes), strict=True)
                x = th.cat([layer(part) for layer, part in parts])
        return x, after

    def _remember(self, x: th.Tensor, states: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        :param x: Features, ``(n_agents, n_envs, n_inputs)``
        :param states: States before the step, ``(n_agents, n_envs, ...)``
        :return: Outputs of the recurrent layers, ``(n_agents, n_envs, hidden_size)``, and states
            after the step
        """
        outputs, after = [], []
        parts = zip(self._owners, x.split(self._sizes), states.split(self._sizes), strict=True)
        for owner, part, before in parts:
            assert owner.memory is not None
            output, own_after = owner.memory(
                part.flatten(end_dim=1), single_steps(before.flatten(end_dim=1))
            )
            outputs.append(output.unflatten(0, part.shape[:2]))
            after.append(own_after.unflatten(0, part.shape[:2]))
        return th.cat(outputs), th.cat(after)


class AgentInput(NamedTuple):
    """
    Input of one agent's decision.

    :param observation: Observation, ``(...)`` or ``(n_envs, ...)``
    :param mask: Action mask, ``(n_choices,)`` or ``(n_envs, n_choices)``, or None
    :param state: Hidden states, each ``(n_layers, n_envs, hidden_size)``; None for zeros
    """

    observation: Any
    mask: Any = None
    state: tuple[np.ndarray, ...] | None = None


class AgentAnswer(NamedTuple):
    """
    Decision of one agent.

    :param action: Action that the environment takes; with a batch an array of them
    :param state: Hidden states after it, or None
    :param batched: True if the observation was a batch
    """

    action: Any
    state: tuple[np.ndarray, ...] | None
    batched: bool


class WeightWatch:
    """
    Detects changes of the weights of some networks, without a look at every number: modules and
    parameters that were replaced, the counters of PyTorch's in-place operations, the addresses of
    the data, and on a CPU all numbers of the vectors and a few of each matrix, for operations on
    ``parameter.data`` are not counted. Such an operation on a small part of a matrix is not seen;
    ``set_training_mode(True)`` announces changes of any kind.

    :param networks: Networks to watch
    """

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        modules = {id(part): part for network in networks for part in network.modules()}
        #: Dicts that hold the parts of modules, and these parts in the same order
        self._holders: list[dict[str, Any]] = []
        self._parts: list[Any] = []
        self._params: list[th.Tensor] = []
        for module in modules.values():
            for members in (module._modules, module._parameters):
                if members:
                    self._holders.append(members)
                    self._parts += members.values()
            self._params += [param for param in module._parameters.values() if param is not None]
        # After the last part: a part that was added shifts it
        self._parts.append(_END)
        numbers: list[np.ndarray] = []
        for param in self._params:
            if param.device.type == "cpu" and param.dtype in (th.float32, th.float64):
                flat = param.detach().reshape(-1).numpy()
                stride = 1 if param.dim() < 2 else max(1, len(flat) // _N_SAMPLES)
                numbers.append(flat[::stride])
        self._numbers = numbers
        #: Room for all numbers
        self._copy = np.concatenate(numbers) if numbers else np.zeros(0)
        self._seen = self._read()

    def _read(self) -> tuple[Any, ...]:
        """Values that change with the weights."""
        if self._numbers:
            np.concatenate(self._numbers, out=self._copy)
        # Bytes, for NaN differs from itself
        return (
            list(map(_VERSION, self._params)),
            list(map(th.Tensor.data_ptr, self._params)),
            self._copy.tobytes(),
        )

    def unchanged(self) -> bool:
        """
        :return: True if the weights are those of the construction
        """
        # Loops in C: this is part of every decision
        present = chain(chain.from_iterable(map(dict.values, self._holders)), (_END,))
        return all(map(operator.is_, present, self._parts)) and self._read() == self._seen


class _Stack(NamedTuple):
    """
    Agents of one form.

    :param agents: Names of the agents
    :param policies: Policies of the agents
    :param joint: The policies as one
    """

    agents: list[str]
    policies: list[AgentPolicy]
    joint: BatchedPolicies


class TeamPrediction:
    """
    Decisions of those agents of a team that can act in one call. An agent is left to its own
    ``predict`` if no other agent has its form, or if its input is not the plain one: an array of
    the shape of its space, with a mask if and only if it was trained with masks. Errors of the
    input are therefore raised in one place, the agent's ``predict``.

    Weights that are not shared are copied once, and again after they have changed, see
    :class:`WeightWatch`.

    :param policies: Policies of the team
    """

    def __init__(self, policies: Mapping[str, AgentPolicy]) -> None:
        self._policies = policies
        self._stacks: list[_Stack] | None = None
        self._watch: WeightWatch | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A copy of the team has weights of its own
        return {"_policies": self._policies, "_stacks": None, "_watch": None}

    def forget(self) -> None:
        """Copy the weights anew at the next call."""
        self._stacks = None

    def __call__(
        self, inputs: Mapping[str, AgentInput], deterministic: bool
    ) -> dict[str, AgentAnswer]:
        """
        :param inputs: Inputs by agent
        :param deterministic: Most likely actions instead of samples
        :return: Decisions of the agents that act together, none for the others
        """
        answers: dict[str, AgentAnswer] = {}
        if len(inputs) < 2:
            return answers
        if self._stacks is None or self._watch is None or not self._watch.unchanged():
            self._make_stacks()
        for stack in self._stacks or []:
            answers |= _act(stack, inputs, deterministic)
        return answers

    def _make_stacks(self) -> None:
        """Copy the weights of agents of the same form."""
        self._watch = WeightWatch(self._policies.values())
        groups: dict[object, dict[int, list[str]]] = {}
        for agent, policy in self._policies.items():
            form = None if is_image_space(policy.observation_space) else policy_form(policy)
            if form is not None:
                # Agents that share a network follow one another
                by_network = groups.setdefault(form, {})
                by_network.setdefault(id(policy.head), []).append(agent)
        self._stacks = []
        for by_network in groups.values():
            agents = [agent for sharing in by_network.values() for agent in sharing]
            if len(agents) < 2:
                continue
            policies = [self._policies[agent] for agent in agents]
            shared = len(agents) >= _AGENTS_PER_NETWORK * len(by_network)
            joint = LivePolicies(policies) if shared else BatchedPolicies(policies)
            self._stacks.append(_Stack(agents, policies, joint))


@th.inference_mode()
@unvalidated()
def _act(
    stack: _Stack, inputs: Mapping[str, AgentInput], deterministic: bool
) -> dict[str, AgentAnswer]:
    """
    :param stack: Agents of one form
    :param inputs: Inputs by agent
    :param deterministic: Most likely actions instead of samples
    :return: Decisions of those of the agents that have an input, or of none
    """
    leader = stack.policies[0]
    rows = [_plain(leader, inputs.get(agent)) for agent in stack.agents]
    shape = _common_shape(rows, leader.observation_space.shape or ())
    if shape is None:
        return {}
    batched = shape != leader.observation_space.shape
    n_envs = shape[0] if batched else 1
    try:
        masks = _joined_masks(leader, rows, n_envs)
        before = _joined_states(leader.memory, rows, n_envs)
    except ValueError:
        return {}
    _stop_training(stack.policies)
    device = leader.head.weight.device
    features = stack.joint.features(_tensor(_joined_observations(rows, n_envs, batched), device))
    params, after = stack.joint.network(features, _tensor(before, device))
    if not bool(params.isfinite().all()):
        # The agent's own `predict` raises
        return {}
    step = stack.joint.decide(params, _tensor(masks, device), after, deterministic)
    taken = leader.to_env_actions(step.actions.flatten(end_dim=1).cpu().numpy())
    actions = taken.reshape(len(rows), n_envs, *taken.shape[1:])
    states: Sequence[Any] = [None] * len(rows)
    if step.states is not None:
        # As `predict` takes them: for each agent n_parts x (n_layers, n_envs, hidden_size)
        states = [tuple(own) for own in step.states.permute(0, 2, 3, 1, 4).cpu().numpy()]
    answers = {}
    for agent, row, own, state in zip(stack.agents, rows, actions, states, strict=True):
        if row is not None:
            action = own if batched else as_sampled(leader.action_space, own[0])
            answers[agent] = AgentAnswer(action, state, batched)
    return answers


def _stop_training(policies: Sequence[AgentPolicy]) -> None:
    """Set policies to evaluation mode, as an agent's ``predict`` does."""
    for policy in policies:
        # An agent that shares the recurrent layers may have left them in training mode
        remembers = policy.options.recurrent is not None and policy.memory is not None
        if policy.training or (remembers and policy.memory.training):  # type: ignore[union-attr]
            policy.set_training_mode(False)


def _tensor(array: Any, device: th.device) -> Any:
    """Tensor of an array; None for None."""
    return None if array is None else th.as_tensor(array, device=device)


def _plain(policy: AgentPolicy, given: AgentInput | None) -> AgentInput | None:
    """Input with the mask apart from the observation; None without an input."""
    if given is None or type(given.observation) is not dict:
        return given
    observation, mask = split_mask(given.observation, policy.observation_space)
    return given._replace(observation=observation, mask=mask if given.mask is None else given.mask)


def _common_shape(
    rows: Sequence[AgentInput | None], own_shape: tuple[int, ...]
) -> tuple[int, ...] | None:
    """
    :param rows: Inputs of the agents
    :param own_shape: Shape of one observation
    :return: Shape of all observations, that of one or of a batch; None if they are not arrays of
        such a shape, or fewer than two
    """
    observations = [row.observation for row in rows if row is not None]
    if len(observations) < 2 or set(map(type, observations)) != {np.ndarray}:
        return None
    shapes = {observation.shape for observation in observations}
    if len(shapes) > 1:
        return None
    (shape,) = shapes
    is_batch = len(shape) == len(own_shape) + 1 and shape[0] > 0 and shape[1:] == own_shape
    return shape if is_batch or shape == own_shape else None


def _joined_observations(
    rows: Sequence[AgentInput | None], n_envs: int, batched: bool
) -> np.ndarray:
    """Observations of all agents, ``(n_agents * n_envs, ...)``; zeros for absent ones."""
    example = next(row.observation for row in rows if row is not None)
    absent = np.zeros_like(example)
    joint = np.stack([absent if row is None else row.observation for row in rows])
    own_shape = example.shape[1:] if batched else example.shape
    return joint.reshape(len(rows) * n_envs, *own_shape)


def _joined_masks(
    policy: AgentPolicy, rows: Sequence[AgentInput | None], n_envs: int
) -> np.ndarray | None:
    """
    :param policy: Policy of the form
    :param rows: Inputs of the agents
    :param n_envs: Number of environments
    :return: Masks ``(n_agents * n_envs, n_choices)``, ones for absent agents; None for agents
        without masks
    :raises ValueError: If a mask is missing, not expected, of another shape, or allows nothing
    """
    n_choices = policy.masks.n_choices
    masks = [None if row is None else row.mask for row in rows]
    if not policy.masked:
        if n_choices and masks.count(None) < len(masks):
            raise ValueError("A mask is not expected.")
        return None
    joint = np.ones((len(rows), n_envs, n_choices), np.int8)
    for own, row, mask in zip(joint, rows, masks, strict=True):
        if row is None:
            continue
        fits = type(mask) is np.ndarray and mask.size == own.size and mask.shape[-1] == n_choices
        if not fits:
            raise ValueError("A mask is missing or of another shape.")
        own[:] = np.reshape(np.asarray(mask), own.shape) != 0
    flat = joint.reshape(-1, n_choices)
    if len(policy.masks.rows_without_choice(flat)):
        raise ValueError("A mask allows nothing.")
    return flat


def _joined_states(
    memory: RecurrentLayers | None, rows: Sequence[AgentInput | None], n_envs: int
) -> np.ndarray | None:
    """
    :param memory: Recurrent layers of the form, or None
    :param rows: Inputs of the agents
    :param n_envs: Number of environments
    :return: Hidden states, ``(n_agents, n_envs, n_parts, n_layers, hidden_size)``; None without
        recurrent layers
    :raises ValueError: If some are of another shape
    """
    if memory is None:
        return None
    n_parts, n_layers, hidden_size = memory.state_shape
    joint = np.zeros((len(rows), n_parts, n_layers, n_envs, hidden_size), np.float32)
    for own, row in zip(joint, rows, strict=True):
        if row is None or row.state is None:
            continue
        state = np.stack(row.state)
        if state.shape != own.shape:
            raise ValueError("Hidden states of another shape.")
        own[:] = state
    return joint.transpose(0, 3, 1, 2, 4)
