"""The team's decisions during collection: agents of the same form are evaluated in one batched call."""

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn
from torch.nn import functional as F

from sb3_happo.common.agent_policy import AgentPolicy
from sb3_happo.common.distributions import make_action_distribution, set_parameters, unvalidated
from sb3_happo.common.joint_policy import JointPolicy
from sb3_happo.common.recurrent import BatchedRecurrentLayers
from sb3_happo.common.type_aliases import AgentStep, JointStep, RNNStates

_ELEMENTWISE = (
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


def _form(policy: AgentPolicy) -> tuple[object, ...] | None:
    """What two policies must have in common to be stacked; None for a policy that can only be evaluated by itself."""
    plain = type(policy) is AgentPolicy and type(policy.features_extractor) is FlattenExtractor
    if not plain or not all(
        isinstance(layer, (nn.Linear, nn.LayerNorm, *_ELEMENTWISE)) for layer in policy.body
    ):
        return None
    boxes = [leaf.space for leaf in policy.leaves if isinstance(leaf.space, spaces.Box)]
    return (
        str(policy.observation_space),
        str(policy.action_space),
        *(
            (box.low.tobytes(), box.high.tobytes()) for box in boxes
        ),  # which NumPy may print rounded
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
    """Hyperbolic tangent to 2e-7: PyTorch's own takes five times as long on a CPU, where its sigmoid is vectorised."""
    return th.sigmoid(x + x).mul_(2.0).sub_(1.0) if x.device.type == "cpu" else x.tanh()


def _choose(
    logits: th.Tensor, masks: th.Tensor | None, deterministic: bool
) -> tuple[th.Tensor, th.Tensor]:
    """
    Draw from categorical distributions, in less than half of the time that ``th.distributions.Categorical`` takes.

    :param logits: ``(batch, n_choices)``
    :param masks: 1 where a choice is legal, ``(batch, n_choices)``; None where all are
    :param deterministic: Take the most likely choices instead
    :return: Choices and their log-probabilities, both ``(batch,)``
    """
    if masks is not None:
        logits = logits.masked_fill(
            masks == 0, -1e8
        )  # as in sb3-contrib's distributions, of which the update's are made
    log_probs = logits.log_softmax(dim=1)
    if deterministic:
        choices = log_probs.argmax(dim=1)
    else:
        sums = log_probs.exp().cumsum(dim=1)
        # In (0, the whole], so that the first sum that reaches it is never that of an impossible choice, nor none at all
        drawn = (1.0 - th.rand(len(sums), 1, device=sums.device)) * sums[:, -1:]
        choices = (sums < drawn).sum(dim=1)
    return choices, log_probs.gather(1, choices.unsqueeze(1)).squeeze(1)


class BatchedPolicies:
    """
    Some agents' policies as one network with one more dimension: agents. A snapshot of their weights.

    :param policies: Policies of the same form, at least one
    """

    def __init__(self, policies: Sequence[AgentPolicy]) -> None:
        self.leader = policies[0]
        self.n_agents = len(policies)
        memories = [policy.memory for policy in policies if policy.memory is not None]
        self.memory = BatchedRecurrentLayers(memories) if memories else None
        self.layers: list[tuple[nn.Module, th.Tensor | None, th.Tensor | None]] = []
        for layers in zip(*(policy.body for policy in policies), strict=True):
            if isinstance(layers[0], (nn.Linear, nn.LayerNorm)):
                self._add(layers)
            else:
                self.layers.append((layers[0], None, None))
        self._add([policy.head for policy in policies])
        stds = [std for policy in policies if (std := policy.effective_log_std()) is not None]
        self.log_std = th.stack(stds).detach() if stds else None  # (n_agents, n_continuous)
        ids = [policy.one_hot for policy in policies if policy.one_hot is not None]
        self.ids = th.stack(ids).unsqueeze(1) if ids else None  # (n_agents, 1, n_ids)
        self.distribution = make_action_distribution(self.leader.action_space, self.leader.masked)

    def _add(self, layers: Sequence[nn.Module]) -> None:
        weights = th.stack([cast(nn.Linear, layer).weight.detach() for layer in layers])
        # Linear: (n_agents, out, in) -> (n_agents, in, out), for the product with (n_agents, n_envs, in); as a view, for laid
        # out anew the few columns of the head would take three times as long to multiply
        weights = (
            weights.transpose(1, 2) if isinstance(layers[0], nn.Linear) else weights.unsqueeze(1)
        )
        biases = th.stack([cast(nn.Linear, layer).bias.detach() for layer in layers]).unsqueeze(1)
        if (
            isinstance(layers[0], nn.Linear)
            and self.layers
            and isinstance(self.layers[-1][0], nn.LayerNorm)
        ):
            # The normalisation's scale and shift, (n_agents, 1, in), become part of the product after it
            norm, scale, shift = self.layers[-1]
            assert scale is not None and shift is not None
            self.layers[-1] = norm, None, None
            weights, biases = scale.transpose(1, 2) * weights, biases + shift @ weights
        self.layers.append((layers[0], weights, biases))

    def __call__(
        self,
        observations: Sequence[th.Tensor],
        masks: Sequence[th.Tensor] | None,
        states: Sequence[th.Tensor] = (),
        deterministic: bool = False,
    ) -> AgentStep:
        """
        :param observations: Of each agent, ``(n_envs, ...)``
        :param masks: Of each agent, ``(n_envs, n_choices)``
        :param states: Of each agent that has a memory, ``(n_envs, n_parts, n_layers, hidden_size)``
        :param deterministic: Take the most likely actions instead of samples
        :return: Raw actions ``(n_agents, n_envs, action_dim)``, log-probabilities ``(n_agents, n_envs)`` and memories
            ``(n_agents, n_envs, ...)``
        """
        n_envs = len(observations[0])
        leader = self.leader
        flat = preprocess_obs(
            th.cat(list(observations)),
            leader.observation_space,
            normalize_images=leader.normalize_images,
        )
        assert isinstance(flat, th.Tensor)
        x = flat.reshape(self.n_agents, n_envs, -1)
        if self.ids is not None:
            x = th.cat([x, self.ids.expand(-1, n_envs, -1)], dim=2)
        after = None
        if self.memory is not None:
            x, after = self.memory(x, th.stack(list(states)))
        for layer, weights, biases in self.layers:
            if isinstance(layer, nn.LayerNorm):
                x = F.layer_norm(x, layer.normalized_shape, eps=layer.eps)
                if weights is not None and biases is not None:
                    x = x * weights + biases
            elif weights is not None and biases is not None:
                x = th.baddbmm(biases, x, weights)
            elif type(layer) is nn.Tanh:
                x = _tanh(x)
            else:
                x = layer(x)
        # (n_agents, n_envs, n_params) -> (n_agents * n_envs, n_params): to the distribution agents are so many more rows
        params = x.flatten(end_dim=1)
        joined = None if masks is None else th.cat(list(masks))
        if isinstance(leader.action_space, spaces.Discrete):
            actions, log_probs = _choose(params, joined, deterministic)
        else:
            log_std = (
                None if self.log_std is None else self.log_std.repeat_interleave(n_envs, dim=0)
            )
            distribution = set_parameters(self.distribution, params, log_std, joined)
            actions = distribution.get_actions(deterministic=deterministic)
            log_probs = distribution.log_prob(actions)
        return AgentStep(
            actions.reshape(self.n_agents, n_envs, -1),
            log_probs.reshape(self.n_agents, n_envs),
            after,
        )


class BatchedActors:
    """
    The team as it acts during one rollout. Agents whose spaces and networks have the same form are evaluated together, the
    rest one by one. Weights are those at construction.

    :param policy: The team
    :raises ValueError: If a weight is not a number, or infinite
    """

    def __init__(self, policy: JointPolicy) -> None:
        self.policy = policy
        for agent, member in policy.policies.items():
            # Once here, so that PyTorch need not look at the logits of every step
            if not nn.utils.parameters_to_vector(member.parameters()).isfinite().all():
                raise ValueError(
                    f"agent {agent!r}: the last update has made weights NaN or infinite. Lower `learning_rate` or "
                    "`max_grad_norm`, or normalise observations and rewards (VecNormalize)."
                )
        groups: dict[object, list[str]] = {}
        for agent, member in policy.policies.items():
            groups.setdefault(_form(member) or agent, []).append(agent)
        self.stacks = {
            tuple(agents): BatchedPolicies([policy.policies[agent] for agent in agents])
            for agents in groups.values()
            if len(agents) > 1
        }
        self.singles = [agents[0] for agents in groups.values() if len(agents) == 1]

    @th.inference_mode()
    @unvalidated()
    def __call__(self, obs: dict[str, th.Tensor], states: RNNStates | None = None) -> JointStep:
        """
        One decision of the whole team, without gradients.

        :param obs: Joint observation, each entry ``(n_envs, ...)``
        :param states: What the team remembers; None at the start of an episode, or without memory
        :return: Raw actions, log-probabilities, values, and what it remembers then
        """
        policy = self.policy
        if states is None:
            states = policy.initial_states(len(next(iter(obs.values()))))
        actions: dict[str, th.Tensor] = {}
        log_probs: dict[str, th.Tensor] = {}
        pi: dict[str, th.Tensor] = {}
        for agents, stack in self.stacks.items():
            masks = (
                [policy.action_masks(obs, agent) for agent in agents]
                if stack.leader.masked
                else None
            )
            before = [states.pi[agent] for agent in agents if agent in states.pi]
            together = stack([obs[agent] for agent in agents], masks, before)  # type: ignore[arg-type]
            actions.update(zip(agents, together.actions.unbind(), strict=True))
            log_probs.update(zip(agents, together.log_probs.unbind(), strict=True))
            if together.states is not None:
                pi.update(zip(agents, together.states.unbind(), strict=True))
        for agent in self.singles:
            own, mask = policy.agent_observation(obs, agent), policy.action_masks(obs, agent)
            alone = policy.policies[agent].step(own, states.pi.get(agent), action_masks=mask)
            actions[agent], log_probs[agent] = alone.actions, alone.log_probs
            if alone.states is not None:
                pi[agent] = alone.states
        values, vf = policy.critic.step(policy.critic_observation(obs, pi), states.vf)
        return JointStep(actions, log_probs, values, RNNStates(pi, vf))

    def to_env_actions(self, step: JointStep) -> np.ndarray:
        """
        Join a decision to what a vectorised environment takes.

        :param step: The decision
        :return: Structured array ``(n_envs,)`` with one field per agent
        """
        joint = np.empty(len(step.values), self.policy.action_dtype)
        for agents, stack in self.stacks.items():
            raw = (
                th.stack([step.actions[agent] for agent in agents]).flatten(end_dim=1).cpu().numpy()
            )
            together = stack.leader.to_env_actions(raw).reshape(len(agents), len(joint), -1)
            for agent, own in zip(agents, together, strict=True):
                joint[agent] = own.reshape(joint[agent].shape)
        for agent in self.singles:
            self.policy.policies[agent].to_env_actions(
                step.actions[agent].cpu().numpy(), out=joint[agent]
            )
        return joint

    def to_env_tensors(self, step: JointStep) -> dict[str, th.Tensor]:
        """
        Join a decision to what an environment made of tensors takes: :meth:`to_env_actions` without leaving the device.

        :param step: The decision
        :return: For each agent, whose action space is plain, ``(n_envs, ...)``
        """
        return {
            agent: policy.to_env_tensor(step.actions[agent])
            for agent, policy in self.policy.policies.items()
        }
