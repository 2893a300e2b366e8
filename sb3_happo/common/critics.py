"""Critics: they live only in training. The centralized one sees the state, local ones what their agents see."""

from collections.abc import Mapping
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_happo.common.networks import (
    NetArch,
    TeamModel,
    ValueNorm,
    default_features_extractor,
    make_mlp,
    make_optimizer,
)
from sb3_happo.common.recurrent import RecurrentKind, RecurrentLayers, select, single_steps
from sb3_happo.common.type_aliases import CriticBatch, Sequences
from sb3_happo.envs.spaces import AGENT_STATES, STATE

#: What the actors remember, side by side, for a critic that reads their memories; no agent's key begins with a slash
MEMORIES = "/memories"


def critic_keys(observation_space: spaces.Dict) -> list[str]:
    """
    Entries of the joint observation that the shared critic reads.

    :param observation_space: The joint observation space
    :return: ``["agent_states"]``, or ``["state"]``, or all of ``"state/<key>"``
    """
    if AGENT_STATES in observation_space.spaces:
        return [AGENT_STATES]
    return [key for key in observation_space.spaces if key == STATE or key.startswith(STATE + "/")]


class ValueNet(TeamModel):
    """
    A network that values an observation.

    :param observation_space: What it sees
    :param net_arch: Units of the hidden layers, or SB3's ``dict(pi=..., vf=...)`` of which ``vf`` is used
    :param activation_fn: Activation function
    :param ortho_init: Orthogonal initialisation
    :param output_gain: Gain of the output layer's initialisation
    :param input_layer_norm: Layer normalisation of the features that go in
    :param layer_norm: Layer normalisation after each hidden layer
    :param features_extractor_class: Features extractor; by default SB3's choice for the space
    :param features_extractor_kwargs: Keyword arguments of the features extractor
    :param normalize_images: Divide images by 255
    :param recurrent: "lstm" or "gru" for a memory between features and hidden layers, or None
    :param lstm_hidden_size: Units of the memory
    :param n_lstm_layers: Its layers
    :param lstm_kwargs: See :class:`~sb3_happo.common.recurrent.RecurrentLayers`
    :param n_remembered: How many numbers of actors' memories it sees beside the observation
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        net_arch: NetArch | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        ortho_init: bool = True,
        output_gain: float = 1.0,
        input_layer_norm: bool = False,
        layer_norm: bool = False,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        recurrent: RecurrentKind | None = None,
        lstm_hidden_size: int = 256,
        n_lstm_layers: int = 1,
        lstm_kwargs: dict[str, Any] | None = None,
        n_remembered: int = 0,
    ) -> None:
        super().__init__(
            observation_space,
            spaces.Discrete(1),  # a critic does not act, SB3's base class only wants some space
            features_extractor_class or default_features_extractor(observation_space),
            features_extractor_kwargs,
            normalize_images=normalize_images,
        )
        self.ortho_init = ortho_init
        self.output_gain = output_gain
        self.features_extractor = self.make_features_extractor()
        features_dim = self.features_extractor.features_dim
        self.memory = (
            RecurrentLayers(
                recurrent,
                features_dim,
                lstm_hidden_size,
                n_lstm_layers,
                input_layer_norm,
                lstm_kwargs,
            )
            if recurrent
            else None
        )
        self.body, latent_dim = make_mlp(
            self.features_extractor,
            net_arch,
            "vf",
            activation_fn,
            input_layer_norm,
            layer_norm,
            n_remembered,
            self.memory,
        )
        self.head = nn.Linear(latent_dim, 1)

    def forward(self, observations: PyTorchObs) -> th.Tensor:
        """
        :param observations: ``(batch, ...)``, to a network with memory all first ones
        :return: ``(batch, 1)``
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
        :param sequences: For a network with memory, how they follow each other; None if each begins an episode
        :param active: At which of them the memory runs on, bool ``(batch,)``, for all if None; values elsewhere mean nothing
        :param remembered: For a network that reads actors' memories, what they hold, ``(batch, n_remembered)``
        :return: ``(batch, 1)``; and, if the memory ran on for all, the states after each sequence
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
    What an algorithm needs of a critic.

    :param networks: Its value networks
    :param keys: Entries of the joint observation that it reads
    :param n_values: Columns of its values: 1, or one per agent
    :param n_norms: Separate statistics for the normalisation of values; 0 for none
    :param lr_schedule: Learning rate over the remaining progress
    :param optimizer_class: Optimiser
    :param optimizer_kwargs: Keyword arguments of the optimiser, without the learning rate
    """

    optimizer: th.optim.Optimizer

    def __init__(
        self,
        networks: list[ValueNet],
        keys: list[str],
        n_values: int,
        n_norms: int,
        lr_schedule: Schedule,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.networks: Any = nn.ModuleList(networks)
        self.keys = keys
        self.n_values = n_values
        self.value_norm = ValueNorm(n_norms) if n_norms else None
        self.optimizer = make_optimizer(self, lr_schedule, optimizer_class, optimizer_kwargs)

    @property
    def recurrent(self) -> bool:
        """
        :return: Whether it has a memory
        """
        return self.networks[0].memory is not None

    def initial_state(self, batch_size: int) -> th.Tensor | None:
        """
        :param batch_size: Number of environments or sequences
        :return: What it remembers at the start of an episode: zeros ``(batch_size, n_values, n_parts, n_layers,
            hidden_size)``, or None without memory
        """
        memory = self.networks[0].memory
        return (
            None
            if memory is None
            else memory.initial_state(batch_size * self.n_values).unflatten(0, (-1, self.n_values))
        )

    def evaluate(
        self,
        observations: dict[str, th.Tensor],
        sequences: Sequences | None = None,
        active: th.Tensor | None = None,
    ) -> tuple[th.Tensor, th.Tensor | None]:
        """
        :param observations: Joint observation, of which the critic's own keys are read, each ``(batch, ...)``
        :param sequences: For a critic with memory, how its rows follow each other; None if each begins an episode
        :param active: Whose memory runs on at which row, bool ``(batch, n_values)``, everybody's if None; other values mean
            nothing
        :return: Values as the networks give them (normalised, if values are), ``(batch, n_values)``; and, if the memory ran on
            for all, the states after each sequence, ``(n_sequences, n_values, ...)``
        """
        raise NotImplementedError

    def forward(self, observations: dict[str, th.Tensor]) -> th.Tensor:
        """
        :param observations: Joint observation, each entry ``(batch, ...)``, to a critic with memory all first ones
        :return: Values as the networks give them, ``(batch, n_values)``
        """
        return self.evaluate(observations)[0]

    def evaluate_batch(self, batch: CriticBatch) -> th.Tensor:
        """
        :param batch: Rows of a rollout
        :return: Values as the networks give them, ``(batch, n_values)``
        """
        return self.evaluate(batch.observations, batch.sequences, batch.active)[0]

    def step(
        self, observations: dict[str, th.Tensor], states: th.Tensor | None = None
    ) -> tuple[th.Tensor, th.Tensor | None]:
        """
        :param observations: Joint observation, each entry ``(batch, ...)``
        :param states: RecurrentLayers before it; None for a critic without memory, or at the start of an episode
        :return: Values in units of reward, ``(batch, n_values)``, and the memory after it
        """
        values, states = self.evaluate(
            observations, None if states is None else single_steps(states)
        )
        return (values if self.value_norm is None else self.value_norm.denormalize(values)), states

    def predict_values(
        self, observations: dict[str, th.Tensor], states: th.Tensor | None = None
    ) -> th.Tensor:
        """
        :param observations: Joint observation, each entry ``(batch, ...)``
        :param states: RecurrentLayers before it; None for a critic without memory, or at the start of an episode
        :return: Values in units of reward, ``(batch, n_values)``
        """
        return self.step(observations, states)[0]


class CentralizedCritic(Critic):
    """
    The value of the state, shared by the whole team.

    With an agent-specific state (HARL's "FP": one row per agent, key ``"agent_states"``), the same network values each row,
    and ``n_values`` is the number of agents; otherwise it is 1.

    :param observation_space: Joint observation space
    :param n_agents: Number of agents of the team
    :param lr_schedule: Learning rate over the remaining progress
    :param normalize_value: Predict normalised returns (see :class:`~sb3_happo.common.networks.ValueNorm`)
    :param optimizer_class: Optimiser
    :param optimizer_kwargs: Keyword arguments of the optimiser, without the learning rate
    :param n_remembered: Per agent whose memory it reads, the size of that memory
    :param kwargs: Of the network (see :class:`ValueNet`)
    :raises ValueError: If the joint observation holds no state
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        n_agents: int,
        lr_schedule: Schedule,
        normalize_value: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        n_remembered: Mapping[str, int] | None = None,
        **kwargs: Any,
    ) -> None:
        keys = critic_keys(observation_space)
        if not keys:
            raise ValueError(
                f"The joint observation has no state for the critic, only {list(observation_space.spaces)}; "
                "build the environment with `JointEnv` or `make_joint_env`."
            )
        space: spaces.Space = observation_space.spaces[keys[0]]
        self.agent_specific = keys == [AGENT_STATES]
        if self.agent_specific:
            assert isinstance(space, spaces.Box)
            # One agent's row is what the network sees
            space = spaces.Box(space.low[0], space.high[0], dtype=space.dtype.type)
        elif keys != [STATE]:
            space = spaces.Dict(
                [(key.removeprefix(STATE + "/"), observation_space.spaces[key]) for key in keys]
            )
        self._state_keys = keys
        n_values = n_agents if self.agent_specific else 1
        network = ValueNet(space, n_remembered=sum((n_remembered or {}).values()), **kwargs)
        keys = [*keys, MEMORIES] if n_remembered else keys
        super().__init__(
            [network],
            keys,
            n_values,
            int(normalize_value),
            lr_schedule,
            optimizer_class,
            optimizer_kwargs,
        )

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
            remembered = (
                None if remembered is None else remembered.repeat_interleave(self.n_values, dim=0)
            )
        elif self._state_keys != [STATE]:
            state = {key.removeprefix(STATE + "/"): observations[key] for key in self._state_keys}
        if sequences is not None:
            # The agents' sequences run side by side: packed order stays packed order
            sequences = Sequences(
                sequences.batch_sizes * self.n_values, sequences.states.flatten(end_dim=1)
            )
        active = None if active is None else active.flatten()
        values, states = self.networks[0].evaluate(state, sequences, active, remembered)
        return values.reshape(-1, self.n_values), None if states is None else states.unflatten(
            0, (-1, self.n_values)
        )


class LocalCritics(Critic):
    """
    A critic for each agent, on the agent's own observation (IPPO).

    :param observation_spaces: Per agent, the space of its own observation
    :param lr_schedule: Learning rate over the remaining progress
    :param normalize_value: Predict normalised returns, each agent's by its own statistics
    :param optimizer_class: Optimiser
    :param optimizer_kwargs: Keyword arguments of the optimiser, without the learning rate
    :param n_remembered: Per agent whose critic reads its memory, the size of that memory
    :param kwargs: Of each network (see :class:`ValueNet`)
    """

    def __init__(
        self,
        observation_spaces: Mapping[str, spaces.Space],
        lr_schedule: Schedule,
        normalize_value: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        n_remembered: Mapping[str, int] | None = None,
        **kwargs: Any,
    ) -> None:
        self._own_keys = {
            agent: [f"{agent}/{key}" for key in space.spaces]
            if isinstance(space, spaces.Dict)
            else [agent]
            for agent, space in observation_spaces.items()
        }
        self._n_remembered = [(n_remembered or {}).get(agent, 0) for agent in observation_spaces]
        networks = [
            ValueNet(space, n_remembered=size, **kwargs)
            for space, size in zip(observation_spaces.values(), self._n_remembered, strict=True)
        ]
        keys = [key for own in self._own_keys.values() for key in own] + (
            [MEMORIES] if n_remembered else []
        )
        n_norms = len(networks) if normalize_value else 0
        super().__init__(
            networks, keys, len(networks), n_norms, lr_schedule, optimizer_class, optimizer_kwargs
        )

    def evaluate(
        self,
        observations: dict[str, th.Tensor],
        sequences: Sequences | None = None,
        active: th.Tensor | None = None,
    ) -> tuple[th.Tensor, th.Tensor | None]:
        values, states = [], []
        memories = (
            observations[MEMORIES].split(self._n_remembered, dim=1)
            if MEMORIES in self.keys
            else None
        )
        for index, ((agent, keys), network) in enumerate(
            zip(self._own_keys.items(), self.networks, strict=True)
        ):
            own: Any = {key.removeprefix(agent + "/"): observations[key] for key in keys}
            mine = (
                None
                if sequences is None
                else Sequences(sequences.batch_sizes, sequences.states[:, index])
            )
            present = None if active is None else active[:, index]
            remembered = None if memories is None else memories[index]
            value, state = network.evaluate(
                observations[agent] if keys == [agent] else own, mine, present, remembered
            )
            values.append(value)
            states.append(state)
        return th.cat(values, dim=1), None if states[0] is None else th.stack(states, dim=1)
