"""Actors and critic of the on-policy algorithms."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import polyak_update

from sb3_happo.common.agent_policy import AgentPolicy
from sb3_happo.common.batched_actors import BatchedActors
from sb3_happo.common.distributions import action_leaves
from sb3_happo.common.multi_agent_policy import MultiAgentPolicy, explain_extractor
from sb3_happo.common.net_arch import NetArch
from sb3_happo.common.networks import NetworkOptions, TeamModel
from sb3_happo.common.recurrent import RecurrentKind, select_states
from sb3_happo.common.state_critics import (
    MEMORIES,
    CentralizedCritic,
    Critic,
    LocalCritics,
    make_target,
)
from sb3_happo.common.type_aliases import ActorsStep, JointStep, RNNStates
from sb3_happo.suggestions import check_names


class JointPolicy(MultiAgentPolicy):
    """
    Team of the on-policy algorithms: a policy for each agent and a critic of states.

    Keyword arguments that are not listed go to every
    :class:`~sb3_happo.common.agent_policy.AgentPolicy` and, where they are
    :class:`~sb3_happo.common.networks.NetworkOptions`, to the critic.

    :param observation_space: Joint observation space of a :class:`~sb3_happo.envs.JointEnv`
    :param action_space: Joint action space, one entry per agent, in the agents' order
    :param lr_schedule: Learning rate of the actors
    :param critic_lr_schedule: Learning rate of the critic; the actors' by default
    :param net_arch: Units of the hidden layers of actors and critic, or SB3's
        ``dict(pi=..., vf=...)``
    :param normalize_value: Prediction of normalised returns by the critic
    :param share_parameters: Agents that share one network: False for none; True for all whose
        spaces are equal; or groups of names, ``[["agent_0", "agent_1"], ...]`` (the others do
        not share)
    :param append_agent_id: One-hot input that tells a shared network which of its agents acts
    :param local_critics: One critic per agent that sees only the agent's observation (IPPO),
        instead of the shared centralized critic
    :param agent_kwargs: Overrides for single agents,
        ``{agent: {"net_arch": ..., "learning_rate": ..., ...}}``
    :param critic_kwargs: Overrides for the critic
    :param recurrent: "lstm" or "gru" for recurrent actors and critic, or None. Single agents
        (``agent_kwargs``) and the critic (``critic_kwargs``) may differ
    :param enable_critic_lstm: Recurrent layers in the critic too; otherwise it is feed-forward
    :param shared_lstm: Hidden states of the actors as inputs of a critic without recurrent layers
        of its own (``enable_critic_lstm=False``): all of them beside the state; for a local critic
        those of its agent. As in sb3-contrib the critic does not train them: they are data of the
        rollout
    :param use_sde: State-dependent noise (gSDE) of all agents with continuous actions; an argument
        of the algorithm
    :param target_critic: Target network of the critic, whose values are those of the rollout; an
        argument of the algorithm (``target_critic_tau``)
    :param kwargs: Keyword arguments of every agent's policy
    :raises ValueError: If an agent or a keyword argument is unknown, or a setting is not supported
    """

    own_kwargs: ClassVar[frozenset[str]] = MultiAgentPolicy.own_kwargs | {
        *("normalize_value", "local_critics", "enable_critic_lstm", "shared_lstm")
    }
    #: Whether the agents read one another, so that they decide and are updated together
    communicates: ClassVar[bool] = False
    critic: Critic

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Dict,
        lr_schedule: Schedule,
        critic_lr_schedule: Schedule | None = None,
        net_arch: NetArch | None = None,
        normalize_value: bool = True,
        share_parameters: bool | list[list[str]] = False,
        append_agent_id: bool = False,
        local_critics: bool = False,
        agent_kwargs: Mapping[str, dict[str, Any]] | None = None,
        critic_kwargs: dict[str, Any] | None = None,
        recurrent: RecurrentKind | None = None,
        enable_critic_lstm: bool = True,
        shared_lstm: bool = False,
        use_sde: bool = False,
        target_critic: bool = False,
        **kwargs: Any,
    ) -> None:
        # Read by `make_critic`, which the base class calls
        self._critic_form = {
            "normalize_value": normalize_value,
            "local_critics": local_critics,
            "enable_critic_lstm": enable_critic_lstm,
            "shared_lstm": shared_lstm,
        }
        self._options = {"use_sde": use_sde, "target_critic": target_critic}
        #: Agents whose hidden states the critic reads
        self.agents_read_by_critic: list[str] = []
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            share_parameters=share_parameters,
            append_agent_id=append_agent_id,
            agent_kwargs=agent_kwargs,
            critic_lr_schedule=critic_lr_schedule,
            critic_kwargs=critic_kwargs,
            net_arch=net_arch,
            recurrent=recurrent,
            **kwargs,
        )
        #: Critic that follows the learned one slowly; None without one
        self.target_critic = make_target(self.critic) if target_critic else None

    def _make_actor(
        self,
        agent: str,
        lr_schedule: Schedule,
        agent_id: tuple[int, int] | None,
        kwargs: dict[str, Any],
    ) -> AgentPolicy:
        use_sde = self._options["use_sde"] and self._has_continuous_actions(agent)
        return super()._make_actor(agent, lr_schedule, agent_id, {"use_sde": use_sde, **kwargs})

    def _has_continuous_actions(self, agent: str) -> bool:
        leaves = action_leaves(self.team_spaces.action_space.spaces[agent])
        return any(isinstance(leaf.space, spaces.Box) for leaf in leaves)

    def make_critic(
        self, lr_schedule: Schedule, kwargs: dict[str, Any], overrides: dict[str, Any]
    ) -> Critic:
        form = self._critic_form
        known = {*NetworkOptions.names(), "normalize_value"}
        check_names(overrides, known, "policy_kwargs['critic_kwargs']")
        shared = set(NetworkOptions.names()) - {"output_gain"}
        own = {name: value for name, value in kwargs.items() if name in shared}
        if not form["enable_critic_lstm"]:
            own["recurrent"] = None
        own |= overrides
        normalize_value = own.pop("normalize_value", form["normalize_value"])
        options = NetworkOptions(**own)
        n_remembered = None
        if form["shared_lstm"]:
            n_remembered = self._sizes_read_by_critic(options)
            self.agents_read_by_critic = list(n_remembered)
        team = self.team_spaces
        local = form["local_critics"]
        seen = f"the state, of {team.observation_space}"
        if local:
            seen = "the agents' observations"
        with explain_extractor(own, f"the critic, {seen}", "policy_kwargs['critic_kwargs']"):
            if local:
                return LocalCritics(team.own, lr_schedule, normalize_value, options, n_remembered)
            return CentralizedCritic(
                team.observation_space,
                len(self.agents),
                lr_schedule,
                normalize_value,
                options,
                n_remembered,
            )

    def _sizes_read_by_critic(self, options: NetworkOptions) -> dict[str, int]:
        """Size of the hidden states that the critic reads, of each recurrent agent."""
        sizes = {}
        for agent, policy in self.policies.items():
            if policy.memory is not None:
                sizes[agent] = policy.memory.hidden_size
        if options.recurrent is not None or not sizes:
            raise ValueError(
                "shared_lstm=True: the critic reads the actors' hidden states instead of having "
                "recurrent layers of its own. Give it none (enable_critic_lstm=False) and some "
                "actors some (MlpLstmPolicy), or omit shared_lstm."
            )
        return sizes

    def critic_networks(self) -> list[TeamModel]:
        return list(self.critic.networks)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | self._critic_form | self._options

    def reset_noise(self, n_envs: int = 1) -> None:
        """
        Draw new matrices of the state-dependent noise of all agents that have it.

        :param n_envs: Number of environments
        """
        for policy in self.policies.values():
            policy.reset_noise(n_envs)

    @property
    def value_critic(self) -> Critic:
        """
        :return: Critic whose values are those of the rollout: the target critic if there is one
        """
        return self.critic if self.target_critic is None else self.target_critic

    def update_target_critic(self, tau: float) -> None:
        """
        Let the target critic take over a share of the critic.

        :param tau: Share, in (0, 1]; 1 for a copy
        """
        assert self.target_critic is not None
        polyak_update(self.critic.parameters(), self.target_critic.parameters(), tau)

    # ---------------------------------------------------------------- hooks of collection

    def make_collector(self) -> BatchedActors:
        """
        Hook: actors for one rollout.

        :return: Actors, with the present weights
        """
        return BatchedActors(self)

    def actor_observation(
        self, obs: dict[str, th.Tensor], active: np.ndarray | None
    ) -> dict[str, th.Tensor]:
        """
        Hook: joint observation with further entries that the actors read. Here there are none.

        :param obs: Joint observation, each entry ``(n_envs, ...)``
        :param active: Active mask, ``(n_envs, n_agents)``; None for all
        :return: Joint observation and the entries of :meth:`further_entries`
        """
        return obs

    def further_entries(self) -> dict[str, tuple[int, ...]]:
        """
        Hook: masks beside the joint observation that a rollout stores. Here there are none.

        :return: Shape of each
        """
        return {}

    # ---------------------------------------------------------------- hidden states

    def initial_states(self, n_envs: int) -> RNNStates:
        """
        :param n_envs: Number of environments
        :return: Hidden states at the start of an episode: zeros
        """
        pi = {}
        for agent, policy in self.policies.items():
            if policy.memory is not None:
                pi[agent] = policy.memory.initial_state(n_envs)
        return RNNStates(pi, self.critic.initial_state(n_envs))

    def critic_observation(
        self, obs: dict[str, th.Tensor], after: dict[str, th.Tensor]
    ) -> dict[str, th.Tensor]:
        """
        :param obs: Joint observation, each entry ``(n_envs, ...)``
        :param after: Hidden states of the agents after it, as if all were active
        :return: Joint observation, with these hidden states if the critic reads them
        """
        if not self.agents_read_by_critic:
            return obs
        # The output of the last layer (an LSTM's first part), which the actor's hidden layers read
        outputs = [after[agent][:, 0, -1] for agent in self.agents_read_by_critic]
        return obs | {MEMORIES: th.cat(outputs, dim=1).detach()}

    def advance_memory(
        self, before: RNNStates, after: RNNStates, active: np.ndarray | None
    ) -> RNNStates:
        """
        Hidden states after a step. Those of an agent that is dead or not on turn do not change, nor
        does its column of the critic's.

        :param before: Hidden states before the step
        :param after: Hidden states after the step, as if all agents were active
        :param active: Active mask of the step, ``(n_envs, n_agents)``; None for all
        :return: Hidden states after the step
        """
        if active is None or not (after.pi or after.vf is not None):
            return after
        flags = th.as_tensor(active, device=self.device)
        columns = dict(zip(self.agents, flags.unbind(dim=1), strict=True))
        pi = {}
        for agent, states in after.pi.items():
            pi[agent] = select_states(columns[agent], states, before.pi[agent])
        vf = after.vf
        if before.vf is not None and vf is not None and self.critic.n_values > 1:
            vf = select_states(flags, vf, before.vf)
        return RNNStates(pi, vf)

    # ---------------------------------------------------------------- decisions and values

    def forward(
        self,
        obs: dict[str, th.Tensor],
        deterministic: bool = False,
        states: RNNStates | None = None,
    ) -> JointStep:
        """
        One decision of all agents, agent by agent, and its value.

        :param obs: Joint observation, each entry ``(n_envs, ...)``
        :param deterministic: Most likely actions instead of samples
        :param states: Hidden states; None at the start of an episode, or without memory
        :return: Raw actions, log-probabilities, values, and the next hidden states
        """
        before = RNNStates({}, None) if states is None else states
        actions, log_probs, pi = {}, {}, {}
        for agent, policy in self.policies.items():
            own, masks = self.agent_observation(obs, agent), self.action_masks(obs, agent)
            step = policy.step(own, before.pi.get(agent), deterministic, masks)
            actions[agent], log_probs[agent] = step.actions, step.log_probs
            if step.states is not None:
                pi[agent] = step.states
        values, vf = self.value_critic.step(self.critic_observation(obs, pi), before.vf)
        return JointStep(actions, log_probs, self.critic.clip(values), RNNStates(pi, vf))

    @th.inference_mode()
    def add_values(
        self, step: ActorsStep, obs: dict[str, th.Tensor], states: th.Tensor | None
    ) -> JointStep:
        """
        :param step: Decision of the actors
        :param obs: Joint observation before it, each entry ``(n_envs, ...)``
        :param states: Hidden states of the critic before it, or None
        :return: Decision with the critic's values and hidden states, without gradients. Values are
            as the critic predicts them, not clipped: the critic's loss compares with them
        """
        values, vf = self.value_critic.step(self.critic_observation(obs, step.states), states)
        return JointStep(step.actions, step.log_probs, values, RNNStates(step.states, vf))

    def predict_values(
        self, obs: dict[str, th.Tensor], states: RNNStates | None = None
    ) -> th.Tensor:
        """
        :param obs: Joint observation, of which the critic reads its keys
        :param states: Hidden states; None at the start of an episode, or without memory
        :return: Values in units of reward, ``(batch, n_values)``
        """
        before = RNNStates({}, None) if states is None else states
        after = {}
        for agent in self.agents_read_by_critic:
            own = self.agent_observation(obs, agent)
            after[agent] = self.policies[agent].advance_memory(own, before.pi.get(agent))
        return self.value_critic.predict_values(self.critic_observation(obs, after), before.vf)


class LstmJointPolicy(JointPolicy):
    """
    Team with LSTMs: ``recurrent`` is "lstm" by default.

    :param args: Arguments of :class:`JointPolicy`
    :param kwargs: Keyword arguments of :class:`JointPolicy`
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"recurrent": "lstm", **kwargs})


class GruJointPolicy(JointPolicy):
    """
    Team with GRUs: ``recurrent`` is "gru" by default.

    :param args: Arguments of :class:`JointPolicy`
    :param kwargs: Keyword arguments of :class:`JointPolicy`
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"recurrent": "gru", **kwargs})
