"""Team whose agents communicate before they act: CommNet."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch as th

from sb3_happo.common.batched_actors import BatchedActors
from sb3_happo.common.commnet_networks import LINKS, CommNetNetworks
from sb3_happo.common.communication import CannotActAloneError
from sb3_happo.common.distributions import unvalidated
from sb3_happo.common.multi_agent_policy import AgentState
from sb3_happo.common.team_inputs import TeamInputs
from sb3_happo.common.team_prediction import AgentAnswer
from sb3_happo.common.type_aliases import ActorsStep, JointStep, RNNStates, Sequences


class CommNetPolicy(CommNetNetworks):
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

    def _hidden_states(self, states: Mapping[str, AgentState], n_rows: int) -> dict[str, th.Tensor]:
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
        self,
        obs: dict[str, th.Tensor],
        states: Mapping[str, th.Tensor] | None = None,
        normals: Mapping[str, th.Tensor] | None = None,
    ) -> ActorsStep:
        """
        :param obs: Joint observation with :data:`LINKS`, each entry ``(n_envs, ...)``
        :param states: Hidden states before the step, by agent
        :param normals: None; correlated draws are refused before
        :return: Raw actions, log-probabilities, and hidden states after the step
        """
        return self.policy.decide(obs, states or {})
