"""Critics of states: a centralized one on the state, or local ones on the agents' observations."""

import copy
from collections.abc import Mapping
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_happo.common.networks import (
    CRITIC_OUTPUT_GAIN,
    NetworkOptions,
    TeamModel,
    make_body,
    make_memory,
    make_optimizer,
)
from sb3_happo.common.recurrent import select, single_steps
from sb3_happo.common.type_aliases import CriticBatch, Sequences
from sb3_happo.common.value_norm import OutputChange, ValueNorm
from sb3_happo.envs.spaces import AGENT_STATES, STATE

#: Hidden states of the actors side by side, for a critic that reads them. No key of an agent begins
#: with a slash
MEMORIES = "/memories"


def critic_keys(observation_space: spaces.Dict) -> list[str]:
    """
    Entries of the joint observation that the shared critic reads.

    :param observation_space: Joint observation space
    :return: ``["agent_states"]``, or ``["state"]``, or all of ``"state/<key>"``
    """
    if AGENT_STATES in observation_space.spaces:
        return [AGENT_STATES]
    keys = observation_space.spaces
    return [key for key in keys if key == STATE or key.startswith(STATE + "/")]


class ValueNet(TeamModel):
    """
    Network that values an observation.

    :param observation_space: Space of the observation
    :param options: Network options; of ``net_arch`` the hidden layers "vf" are used
    :param n_remembered: Number of inputs beside the observation: hidden states of actors
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        options: NetworkOptions | None = None,
        n_remembered: int = 0,
    ) -> None:
        options = options or NetworkOptions()
        super().__init__(
            observation_space,
            spaces.Discrete(1),  # SB3's base class needs an action space; a critic has none
            options.extractor_class(observation_space),
            options.features_extractor_kwargs,
            normalize_images=options.normalize_images,
        )
        self.options = options
        self.ortho_init = options.ortho_init
        self.output_gain = options.gain(CRITIC_OUTPUT_GAIN)
        self.features_extractor = self.make_features_extractor()
        self.memory = make_memory(self.features_extractor.features_dim, options)
        self.body, latent_dim = make_body(
            self.features_extractor, options, "vf", n_remembered, self.memory
        )
        self.head = nn.Linear(latent_dim, 1)

    def forward(self, observations: PyTorchObs) -> th.Tensor:
        """
        :param observations: ``(batch, ...)``; for a recurrent network first ones of episodes
        :return: Values, ``(batch, 1)``
        """
        return self.evaluate(observations)[0]

    def evaluate(
        self,
        observations: PyTorchObs,
        sequences: Sequences | None = None,
        active: th.Tensor | None = None,
        remembered: th.Tensor | None = None,
    ) -> tuple[th.Tensor, th.Tensor | None]:
        """
        :param observations: ``(batch, ...)``
        :param sequences: Order of the rows in time, for a recurrent network; None if each row
            begins an episode
        :param active: Mask of the rows that change the hidden states, bool ``(batch,)``; None for
            all. Values of other rows have no meaning
        :param remembered: Hidden states of actors, ``(batch, n_remembered)``
        :return: Values ``(batch, 1)``; and, without ``active``, the hidden states after each
            sequence
        """
        assert self.features_extractor is not None
        features = self.extract_features(observations, self.features_extractor)
        if remembered is not None:
            features = th.cat([features, remembered], dim=1)
        if self.memory is None:
            return self.head(self.body(features)), None
        if sequences is None:
            sequences = single_steps(self.memory.initial_state(len(features)))
        if active is None:
            latent, states = self.memory(features, sequences)
            return self.head(self.body(latent)), states
        rows, sequences = select(sequences, active)
        latent = features.new_zeros(len(features), self.memory.hidden_size)
        if len(rows):
            latent = latent.index_copy(0, rows, self.memory(features[rows], sequences)[0])
        return self.head(self.body(latent)), None


class Critic(nn.Module):
    """
    Critic of states, as the on-policy algorithms use it.

    :param networks: Value networks
    :param keys: Entries of the joint observation that the critic reads
    :param n_values: Columns of the values: 1, or one per agent
    :param n_norms: Number of separate statistics for the normalisation of values; 0 for none
    :param lr_schedule: Learning rate over the remaining progress
    :param options: Network options, of which the optimiser's are used
    """

    optimizer: th.optim.Optimizer

    def __init__(
        self,
        networks: list[ValueNet],
        keys: list[str],
        n_values: int,
        n_norms: int,
        lr_schedule: Schedule,
        options: NetworkOptions,
    ) -> None:
        super().__init__()
        self.networks: Any = nn.ModuleList(networks)
        self.keys = keys
        self.n_values = n_values
        self.value_norm = ValueNorm(n_norms) if n_norms else None
        self.optimizer = make_optimizer(self, lr_schedule, options)

    @property
    def recurrent(self) -> bool:
        """
        :return: True if the critic has recurrent layers
        """
        return self.networks[0].memory is not None

    def initial_state(self, batch_size: int) -> th.Tensor | None:
        """
        :param batch_size: Number of environments or sequences
        :return: Hidden states at the start of an episode: zeros
            ``(batch_size, n_values, n_parts, n_layers, hidden_size)``, or None without memory
        """
        memory = self.networks[0].memory
        if memory is None:
            return None
        return memory.initial_state(batch_size * self.n_values).unflatten(0, (-1, self.n_values))

    def evaluate(
        self,
        observations: dict[str, th.Tensor],
        sequences: Sequences | None = None,
        active: th.Tensor | None = None,
    ) -> tuple[th.Tensor, th.Tensor | None]:
        """
        :param observations: Joint observation, of which the critic reads its keys, each
            ``(batch, ...)``
        :param sequences: Order of the rows in time, for a recurrent critic; None if each row begins
            an episode
        :param active: Mask of the rows that change the hidden states, bool ``(batch, n_values)``;
            None for all. Other values have no meaning
        :return: Outputs of the networks (normalised values, if values are normalised),
            ``(batch, n_values)``; and, without ``active``, the hidden states after each sequence,
            ``(n_sequences, n_values, ...)``
        """
        raise NotImplementedError

    def forward(self, observations: dict[str, th.Tensor]) -> th.Tensor:
        """
        :param observations: Joint observation, each entry ``(batch, ...)``; for a recurrent critic
            first ones of episodes
        :return: Outputs of the networks, ``(batch, n_values)``
        """
        return self.evaluate(observations)[0]

    def evaluate_batch(self, batch: CriticBatch) -> th.Tensor:
        """
        :param batch: Rows of a rollout
        :return: Outputs of the networks, ``(batch, n_values)``
        """
        return self.evaluate(batch.observations, batch.sequences, batch.active)[0]

    def step(
        self, observations: dict[str, th.Tensor], states: th.Tensor | None = None
    ) -> tuple[th.Tensor, th.Tensor | None]:
        """
        :param observations: Joint observation, each entry ``(batch, ...)``
        :param states: Hidden states before it; None for a critic without memory, or at the start of
            an episode
        :return: Values in units of reward, ``(batch, n_values)``, not clipped to the bounds of
            normalised values (:meth:`clip`), and the hidden states after it
        """
        sequences = None if states is None else single_steps(states)
        values, states = self.evaluate(observations, sequences)
        if self.value_norm is not None:
            values = self.value_norm.denormalize(values)
        return values, states

    def clip(self, values: th.Tensor) -> th.Tensor:
        """
        :param values: Values in units of reward, ``(..., n_values)``
        :return: Values within the bounds that follow from the rewards, ``(..., n_values)``; without
            normalisation there are none
        """
        return values if self.value_norm is None else self.value_norm.clip(values)

    def change_outputs(self, change: OutputChange) -> None:
        """
        Change the output layers of the networks.

        :param change: Change of the outputs, with one factor and one summand per network
        """
        change.apply_to_layers([network.head for network in self.networks])

    def predict_values(
        self, observations: dict[str, th.Tensor], states: th.Tensor | None = None
    ) -> th.Tensor:
        """
        :param observations: Joint observation, each entry ``(batch, ...)``
        :param states: Hidden states before it; None for a critic without memory, or at the start of
            an episode
        :return: Values in units of reward, within their bounds, ``(batch, n_values)``
        """
        return self.clip(self.step(observations, states)[0])


class CentralizedCritic(Critic):
    """
    Value of the state, shared by all agents.

    With an agent-specific state (HARL's "FP": one row per agent, key ``"agent_states"``) the same
    network values each row, and ``n_values`` is the number of agents; otherwise it is 1.

    :param observation_space: Joint observation space
    :param n_agents: Number of agents of the team
    :param lr_schedule: Learning rate over the remaining progress
    :param normalize_value: Prediction of normalised returns, see
        :class:`~sb3_happo.common.value_norm.ValueNorm`
    :param options: Network options
    :param n_remembered: Size of the hidden states that the critic reads, by agent
    :raises ValueError: If the joint observation holds no state
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        n_agents: int,
        lr_schedule: Schedule,
        normalize_value: bool = True,
        options: NetworkOptions | None = None,
        n_remembered: Mapping[str, int] | None = None,
    ) -> None:
        options = options or NetworkOptions()
        keys = critic_keys(observation_space)
        if not keys:
            raise ValueError(
                "The joint observation has no state for the critic, only "
                f"{list(observation_space.spaces)}; build the environment with `JointEnv` or "
                "`make_joint_env`."
            )
        self.agent_specific = keys == [AGENT_STATES]
        self._state_keys = keys
        network = ValueNet(
            self._network_space(observation_space), options, sum((n_remembered or {}).values())
        )
        n_values = n_agents if self.agent_specific else 1
        keys = [*keys, MEMORIES] if n_remembered else keys
        super().__init__([network], keys, n_values, int(normalize_value), lr_schedule, options)

    def _network_space(self, observation_space: spaces.Dict) -> spaces.Space:
        """Space of the network's observation."""
        keys = self._state_keys
        space = observation_space.spaces[keys[0]]
        if self.agent_specific:
            assert isinstance(space, spaces.Box)
            return spaces.Box(space.low[0], space.high[0], dtype=space.dtype.type)
        if keys == [STATE]:
            return space
        parts = [(key.removeprefix(STATE + "/"), observation_space.spaces[key]) for key in keys]
        return spaces.Dict(parts)

    def evaluate(
        self,
        observations: dict[str, th.Tensor],
        sequences: Sequences | None = None,
        active: th.Tensor | None = None,
    ) -> tuple[th.Tensor, th.Tensor | None]:
        state: Any = observations[self._state_keys[0]]
        remembered = observations[MEMORIES] if MEMORIES in self.keys else None
        if self.agent_specific:
            state = state.flatten(end_dim=1)  # (batch, n_agents, dim) -> (batch * n_agents, dim)
            if remembered is not None:
                remembered = remembered.repeat_interleave(self.n_values, dim=0)
        elif self._state_keys != [STATE]:
            state = {key.removeprefix(STATE + "/"): observations[key] for key in self._state_keys}
        if sequences is not None:
            # The agents' sequences run side by side, and so remain in packed order
            sizes = sequences.batch_sizes * self.n_values
            sequences = Sequences(sizes, sequences.states.flatten(end_dim=1))
        flags = None if active is None else active.flatten()
        values, states = self.networks[0].evaluate(state, sequences, flags, remembered)
        if states is not None:
            states = states.unflatten(0, (-1, self.n_values))
        return values.reshape(-1, self.n_values), states


class LocalCritics(Critic):
    """
    One critic per agent, on the agent's own observation (IPPO).

    :param observation_spaces: Observation space of each agent
    :param lr_schedule: Learning rate over the remaining progress
    :param normalize_value: Prediction of normalised returns, with statistics for each agent
    :param options: Network options
    :param n_remembered: Size of the hidden states that an agent's critic reads, by agent
    """

    def __init__(
        self,
        observation_spaces: Mapping[str, spaces.Space],
        lr_schedule: Schedule,
        normalize_value: bool = True,
        options: NetworkOptions | None = None,
        n_remembered: Mapping[str, int] | None = None,
    ) -> None:
        options = options or NetworkOptions()
        self._own_keys: dict[str, list[str]] = {}
        self._n_remembered: list[int] = []
        networks = []
        for agent, space in observation_spaces.items():
            own = [agent]
            if isinstance(space, spaces.Dict):
                own = [f"{agent}/{key}" for key in space.spaces]
            self._own_keys[agent] = own
            self._n_remembered.append((n_remembered or {}).get(agent, 0))
            networks.append(ValueNet(space, options, self._n_remembered[-1]))
        keys = [key for own in self._own_keys.values() for key in own]
        if n_remembered:
            keys.append(MEMORIES)
        n_norms = len(networks) if normalize_value else 0
        super().__init__(networks, keys, len(networks), n_norms, lr_schedule, options)

    def evaluate(
        self,
        observations: dict[str, th.Tensor],
        sequences: Sequences | None = None,
        active: th.Tensor | None = None,
    ) -> tuple[th.Tensor, th.Tensor | None]:
        values, states = [], []
        memories: Any = [None] * len(self.networks)
        if MEMORIES in self.keys:
            memories = observations[MEMORIES].split(self._n_remembered, dim=1)
        for index, (agent, keys) in enumerate(self._own_keys.items()):
            own: Any = observations[agent] if keys == [agent] else {}
            if keys != [agent]:
                own = {key.removeprefix(agent + "/"): observations[key] for key in keys}
            own_sequences = None
            if sequences is not None:
                own_states = sequences.states[:, index]
                own_sequences = Sequences(sequences.batch_sizes, own_states)
            flags = None if active is None else active[:, index]
            network = self.networks[index]
            value, state = network.evaluate(own, own_sequences, flags, memories[index])
            values.append(value)
            states.append(state)
        return th.cat(values, dim=1), None if states[0] is None else th.stack(states, dim=1)


def make_target(critic: Critic) -> Critic:
    """
    Target network of a critic (Lillicrap et al. 2016). It shares the statistics of the values, so
    that both predict in the same units.

    :param critic: Critic without recurrent layers
    :return: Copy that is not trained, without an optimiser
    :raises ValueError: If the critic is recurrent
    """
    if critic.recurrent:
        raise ValueError(
            "target_critic_tau: a target network of a recurrent critic would need hidden states of "
            "its own, which rollouts do not keep. Use a feed-forward critic, "
            "policy_kwargs=dict(enable_critic_lstm=False), or omit target_critic_tau."
        )
    memo: dict[int, Any] = {id(critic.optimizer): None}
    if critic.value_norm is not None:
        memo[id(critic.value_norm)] = critic.value_norm
    return copy.deepcopy(critic, memo).requires_grad_(False)
