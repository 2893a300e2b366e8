"""The actors: one agent's policy, and the team of them with its critic."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.common.utils import FloatSchedule
from torch import nn

from sb3_happo.common.critics import MEMORIES, CentralizedCritic, Critic, LocalCritics, ValueNet
from sb3_happo.common.distributions import (
    action_leaves,
    make_action_distribution,
    set_parameters,
    starts_of_choices,
)
from sb3_happo.common.networks import (
    NetArch,
    TeamModel,
    default_features_extractor,
    initialise,
    make_mlp,
    make_optimizer,
)
from sb3_happo.common.recurrent import RecurrentKind, RecurrentLayers, select_states, single_steps
from sb3_happo.common.type_aliases import ActorBatch, AgentStep, JointStep, RNNStates, Sequences
from sb3_happo.envs.spaces import ACTION_MASK, ACTIVE, flatten_mask, joint_action_dtype
from sb3_happo.suggestions import check_names

LogStdForm = Literal["parameter", "sigmoid", "constant"]
# What the critic takes over from the policies' keyword arguments
_CRITIC_KWARGS = {
    "activation_fn",
    "ortho_init",
    "input_layer_norm",
    "layer_norm",
    "features_extractor_class",
    "features_extractor_kwargs",
    "normalize_images",
    "optimizer_class",
    "optimizer_kwargs",
    "recurrent",
    "lstm_hidden_size",
    "n_lstm_layers",
    "lstm_kwargs",
}


class AgentPolicy(BasePolicy, TeamModel):
    """
    One agent's actor: a whole SB3 policy that acts on its own observation alone, without team-mates, state or critic.

    Raw actions, as they are sampled, stored and learned from, are float tensors ``(batch, action_dim)``. What ``predict``
    returns is what the environment takes: Box actions scaled and clipped to their bounds, Discrete ones from ``start`` on.

    :param observation_space: The agent's own observations, without action masks
    :param action_space: Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of these
    :param lr_schedule: Learning rate over the remaining progress (1 at the start, 0 at the end)
    :param net_arch: Units of the hidden layers, or SB3's ``dict(pi=..., vf=...)`` of which ``pi`` is used
    :param activation_fn: Activation function
    :param ortho_init: Orthogonal initialisation (applied by :func:`~sb3_happo.common.networks.initialise`)
    :param output_gain: Gain of the output layer's initialisation; small values start near the uniform policy
    :param input_layer_norm: Layer normalisation of the features that go in
    :param layer_norm: Layer normalisation after each hidden layer
    :param log_std_init: Initial logarithm of the standard deviation (for "sigmoid": of its parameter, in units of
        ``std_x_coef``; SB3's 0 means HARL's own start, 1)
    :param log_std_form: "parameter" learns the logarithm itself, as SB3 does; "sigmoid" learns ``x`` of
        ``std = std_y_coef * sigmoid(x / std_x_coef)``, as HARL does, which bounds it; "constant" does not learn
    :param std_x_coef: Scale of the sigmoid's parameter
    :param std_y_coef: Upper bound of the sigmoid's standard deviation
    :param rescale_actions: Let the Gaussian live in [-1, 1] and scale it to the Box; otherwise its actions are taken as
        they are and clipped to the Box. The same thing where the bounds are [-1, 1]
    :param masked: Whether the environment gives this agent action masks
    :param agent_id: ``(index, n)``: append a one-hot of the agent's index among ``n`` to the features, for policies that share
        parameters; None to append nothing
    :param features_extractor_class: Features extractor; by default SB3's choice for the observation space
    :param features_extractor_kwargs: Keyword arguments of the features extractor
    :param normalize_images: Divide images by 255
    :param optimizer_class: Optimiser
    :param optimizer_kwargs: Keyword arguments of the optimiser, without the learning rate
    :param recurrent: "lstm" or "gru" for a memory between the features and the hidden layers, or None
    :param lstm_hidden_size: Units of the memory
    :param n_lstm_layers: Its layers
    :param lstm_kwargs: Further keyword arguments of ``nn.LSTM`` or ``nn.GRU``: ``bias``, ``dropout``
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        net_arch: NetArch | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        ortho_init: bool = True,
        output_gain: float = 0.01,
        input_layer_norm: bool = False,
        layer_norm: bool = False,
        log_std_init: float = 0.0,
        log_std_form: LogStdForm = "parameter",
        std_x_coef: float = 1.0,
        std_y_coef: float = 0.5,
        rescale_actions: bool = True,
        masked: bool = False,
        agent_id: tuple[int, int] | None = None,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        recurrent: RecurrentKind | None = None,
        lstm_hidden_size: int = 256,
        n_lstm_layers: int = 1,
        lstm_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            observation_space,
            action_space,
            features_extractor_class or default_features_extractor(observation_space),
            features_extractor_kwargs,
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )
        self.ortho_init = ortho_init
        self.output_gain = output_gain
        self.masked = masked
        self.agent_id = agent_id
        self.rescale_actions = rescale_actions
        self.net_arch = net_arch
        self.activation_fn = activation_fn
        self.input_layer_norm = input_layer_norm
        self.layer_norm = layer_norm
        self.log_std_init = log_std_init
        self.log_std_form = log_std_form
        self.std_x_coef = std_x_coef
        self.std_y_coef = std_y_coef
        self.recurrent = recurrent
        self.lstm_hidden_size = lstm_hidden_size
        self.n_lstm_layers = n_lstm_layers
        self.lstm_kwargs = lstm_kwargs
        self.leaves = list(action_leaves(action_space))
        self.n_choices = sum(leaf.n_choices for leaf in self.leaves)
        self._starts_of_choices = starts_of_choices(self.leaves)
        self.action_dtype = joint_action_dtype(spaces.Dict([("agent", action_space)]))["agent"]

        self.features_extractor = self.make_features_extractor()
        n_ids = 0 if agent_id is None else agent_id[1]
        n_inputs = self.features_extractor.features_dim + n_ids
        self.memory = (
            RecurrentLayers(
                recurrent, n_inputs, lstm_hidden_size, n_lstm_layers, input_layer_norm, lstm_kwargs
            )
            if recurrent
            else None
        )
        self.body, latent_dim = make_mlp(
            self.features_extractor,
            net_arch,
            "pi",
            activation_fn,
            input_layer_norm,
            layer_norm,
            n_ids,
            self.memory,
        )
        one_hot = (
            None
            if agent_id is None
            else nn.functional.one_hot(th.tensor(agent_id[0]), n_ids).float()
        )
        self.one_hot: th.Tensor | None
        self.register_buffer("one_hot", one_hot, persistent=False)
        self.head = nn.Linear(latent_dim, sum(leaf.n_params for leaf in self.leaves))
        self._build_log_std()
        self.optimizer = make_optimizer(self, lr_schedule, optimizer_class, optimizer_kwargs)

    def _build_log_std(self) -> None:
        n_continuous = sum(
            leaf.n_actions for leaf in self.leaves if isinstance(leaf.space, spaces.Box)
        )
        self.log_std: th.Tensor | None = None
        if not n_continuous:
            return
        if self.log_std_form == "parameter":
            self.log_std = nn.Parameter(th.full((n_continuous,), float(self.log_std_init)))
        elif self.log_std_form == "sigmoid":
            self.log_std = nn.Parameter(
                th.full((n_continuous,), (1.0 + self.log_std_init) * self.std_x_coef)
            )
        elif self.log_std_form == "constant":
            del self.log_std
            self.register_buffer("log_std", th.full((n_continuous,), float(self.log_std_init)))
        else:
            raise ValueError(
                f"log_std_form must be 'parameter', 'sigmoid' or 'constant', not {self.log_std_form!r}"
            )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        names = [
            *(
                "net_arch",
                "activation_fn",
                "ortho_init",
                "output_gain",
                "input_layer_norm",
                "layer_norm",
                "log_std_init",
            ),
            *(
                "log_std_form",
                "std_x_coef",
                "std_y_coef",
                "rescale_actions",
                "masked",
                "agent_id",
                "optimizer_class",
            ),
            *("features_extractor_class", "features_extractor_kwargs", "optimizer_kwargs"),
            *("recurrent", "lstm_hidden_size", "n_lstm_layers", "lstm_kwargs"),
        ]
        # As in SB3, a policy that was saved alone acts, and does not learn on
        return (
            data
            | {name: getattr(self, name) for name in names}
            | {"lr_schedule": self._dummy_schedule}
        )

    def share_parameters_with(self, other: "AgentPolicy") -> None:
        """
        Use another agent's networks and optimiser from now on.

        :param other: A policy of the same form
        """
        self.features_extractor = other.features_extractor
        self.memory = other.memory
        self.body = other.body
        self.head = other.head
        self.log_std = other.log_std
        self.optimizer = other.optimizer

    def effective_log_std(self) -> th.Tensor | None:
        """
        :return: Logarithm of the standard deviations of the continuous dimensions, ``(n_continuous,)``, or None
        """
        if self.log_std is not None and self.log_std_form == "sigmoid":
            return th.log(self.std_y_coef * th.sigmoid(self.log_std / self.std_x_coef))
        return self.log_std

    def _features(self, obs: PyTorchObs) -> th.Tensor:
        assert self.features_extractor is not None
        features = self.extract_features(obs, self.features_extractor)
        return (
            features
            if self.one_hot is None
            else th.cat([features, self.one_hot.expand(len(features), -1)], dim=1)
        )

    def remember(self, obs: PyTorchObs, states: th.Tensor | None = None) -> th.Tensor:
        """
        What a policy with memory remembers, without a decision.

        :param obs: Own observations, ``(batch, ...)``
        :param states: RecurrentLayers before them, ``(batch, n_parts, n_layers, hidden_size)``; None at the start of an episode
        :return: RecurrentLayers after them
        """
        assert self.memory is not None
        features = self._features(obs)
        return self.memory(
            features,
            single_steps(self.memory.initial_state(len(features)) if states is None else states),
        )[1]

    def _run(
        self, obs: PyTorchObs, action_masks: th.Tensor | None, sequences: Sequences | None
    ) -> tuple[Distribution, th.Tensor | None]:
        """The distribution, and the memory after each sequence."""
        features = self._features(obs)
        states = None
        if self.memory is not None:
            if sequences is None:
                sequences = single_steps(self.memory.initial_state(len(features)))
            features, states = self.memory(features, sequences)
        params = self.head(self.body(features))
        # A new one each time: several threads may ask at once
        distribution = make_action_distribution(self.action_space, self.masked)
        return set_parameters(distribution, params, self.effective_log_std(), action_masks), states

    def get_distribution(
        self,
        obs: PyTorchObs,
        action_masks: th.Tensor | None = None,
        sequences: Sequences | None = None,
    ) -> Distribution:
        """
        The distribution over raw actions.

        :param obs: Own observations, ``(batch, ...)``
        :param action_masks: 1 where a choice is legal, ``(batch, n_choices)``
        :param sequences: For a policy with memory, how the rows follow each other; None if each begins an episode
        :return: SB3's distribution for plain spaces, a maskable one, or a hybrid one
        """
        return self._run(obs, action_masks, sequences)[0]

    def step(
        self,
        obs: PyTorchObs,
        states: th.Tensor | None = None,
        deterministic: bool = False,
        action_masks: th.Tensor | None = None,
    ) -> AgentStep:
        """
        :param obs: Own observations, ``(batch, ...)``
        :param states: RecurrentLayers before the step, ``(batch, n_parts, n_layers, hidden_size)``; None for a policy without memory,
            or at the start of an episode
        :param deterministic: Take the most likely action instead of a sample
        :param action_masks: ``(batch, n_choices)``
        :return: Raw actions, log-probabilities, and the memory after the step
        """
        distribution, states = self._run(
            obs, action_masks, None if states is None else single_steps(states)
        )
        actions = distribution.get_actions(deterministic=deterministic)
        return AgentStep(actions.reshape(len(actions), -1), distribution.log_prob(actions), states)

    def forward(
        self, obs: PyTorchObs, deterministic: bool = False, action_masks: th.Tensor | None = None
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        :param obs: Own observations, ``(batch, ...)``, to a policy with memory all first ones
        :param deterministic: Take the most likely action instead of a sample
        :param action_masks: ``(batch, n_choices)``
        :return: Raw actions ``(batch, action_dim)`` and the log-probability of each whole action ``(batch,)``
        """
        step = self.step(obs, None, deterministic, action_masks)
        return step.actions, step.log_probs

    def evaluate_actions(
        self,
        obs: PyTorchObs,
        actions: th.Tensor,
        action_masks: th.Tensor | None = None,
        sequences: Sequences | None = None,
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        :param obs: Own observations, ``(batch, ...)``
        :param actions: Raw actions, ``(batch, action_dim)``
        :param action_masks: ``(batch, n_choices)``
        :param sequences: For a policy with memory, how the rows follow each other; None if each begins an episode
        :return: Log-probability of each whole action and entropy of its distribution, both ``(batch,)``
        """
        distribution = self.get_distribution(obs, action_masks, sequences)
        entropy = distribution.entropy()
        assert entropy is not None
        return self.log_prob(distribution, actions), entropy

    def log_prob(self, distribution: Distribution, actions: th.Tensor) -> th.Tensor:
        """
        :param distribution: Of :meth:`get_distribution`
        :param actions: Raw actions, ``(batch, action_dim)``
        :return: Log-probability of each whole action, ``(batch,)``
        """
        return distribution.log_prob(
            actions.flatten() if isinstance(self.action_space, spaces.Discrete) else actions
        )

    def evaluate_batch(self, batch: ActorBatch) -> tuple[th.Tensor, th.Tensor]:
        """
        :param batch: Rows of a rollout
        :return: Log-probability of each whole action and entropy of its distribution, both ``(batch,)``
        """
        return self.evaluate_actions(
            batch.observations, batch.actions, batch.action_masks, batch.sequences
        )

    def batch_distribution(self, batch: ActorBatch) -> Distribution:
        """
        :param batch: Rows of a rollout
        :return: The distribution over their raw actions, as from :meth:`get_distribution`
        """
        return self.get_distribution(batch.observations, batch.action_masks, batch.sequences)

    def _predict(
        self,
        observation: PyTorchObs,
        deterministic: bool = False,
        action_masks: th.Tensor | None = None,
    ) -> th.Tensor:
        return self.forward(observation, deterministic, action_masks)[0]

    def predict(
        self,
        observation: np.ndarray | dict[str, Any] | tuple[Any, ...],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[Any, tuple[np.ndarray, ...] | None]:
        """
        The agent's action for its own observation, one or a batch of them.

        :param observation: Own observation; where the agent has action masks also PettingZoo's form
            ``{"observation": ..., "action_mask": ...}``
        :param state: What a policy with memory returned at the step before: an LSTM's hidden and cell state, or a GRU's
            hidden state, each ``(n_layers, batch, hidden_size)``; None at the start
        :param episode_start: Where an episode begins, so that nothing is remembered, ``(batch,)``; None for nowhere
        :param deterministic: Take the most likely action instead of a sample
        :param action_masks: 1 where a choice is legal, ``(n_choices,)`` or ``(batch, n_choices)``, or nested as the
            environment gives it
        :return: An action that the environment takes (for a batch: an array of them), and the next ``state``
        :raises ValueError: If the agent was trained with action masks and none is given, or without and one is given, or if a
            mask allows nothing
        """
        self.set_training_mode(False)
        own, own_masks = self.split_mask(observation)
        obs, vectorized = self.obs_to_tensor(own)
        masks = self._mask_tensor(own_masks if action_masks is None else action_masks)
        with th.no_grad():
            step = self.step(obs, self._state_tensor(state, episode_start), deterministic, masks)
        env_actions = self.to_env_actions(step.actions.cpu().numpy())
        if step.states is not None:
            # (batch, n_parts, n_layers, hidden_size) -> n_parts x (n_layers, batch, hidden_size)
            state = tuple(step.states.permute(1, 2, 0, 3).cpu().numpy())
        return (env_actions if vectorized else unbatch(self.action_space, env_actions[0])), state

    def _state_tensor(
        self, state: tuple[np.ndarray, ...] | None, episode_start: np.ndarray | None
    ) -> th.Tensor | None:
        """The memory, ``(batch, n_parts, n_layers, hidden_size)``, of what :meth:`predict` was given."""
        if self.memory is None or state is None:
            return None
        states = th.as_tensor(np.stack(state), dtype=th.float32, device=self.device).permute(
            2, 0, 1, 3
        )
        if episode_start is None:
            return states
        starts = th.as_tensor(np.asarray(episode_start, dtype=bool).reshape(-1), device=self.device)
        return states.masked_fill(starts.reshape(-1, 1, 1, 1), 0.0)

    def split_mask(
        self, observation: Any
    ) -> tuple[np.ndarray | dict[str, np.ndarray], np.ndarray | None]:
        """
        :param observation: Own observation as the environment gives it, or as a joint environment does, or PettingZoo's
            ``{"observation": ..., "action_mask": ...}``
        :return: The observation proper, flat, and the mask if there is one
        """
        mask = None
        if isinstance(observation, dict) and ACTION_MASK in observation:
            mask = observation[ACTION_MASK]
            rest = {key: value for key, value in observation.items() if key != ACTION_MASK}
            own_keys = (
                self.observation_space.spaces
                if isinstance(self.observation_space, spaces.Dict)
                else ()
            )
            wrapped = list(rest) == ["observation"] and "observation" not in own_keys
            observation = rest["observation"] if wrapped else rest
        return flat_observation(observation), mask

    def _mask_tensor(self, action_masks: Any) -> th.Tensor | None:
        """The masks, ``(batch, n_choices)``, of what :meth:`predict` was given."""
        if not self.masked:
            if action_masks is not None and self.n_choices:
                raise ValueError(
                    "This agent was trained without action masks and would not heed them; "
                    "train it in an environment that gives masks, in the observation or in the info."
                )
            return None
        if action_masks is None:
            raise ValueError(
                "This agent was trained with action masks; pass `action_masks=`, or an observation with the key 'action_mask'."
            )
        if isinstance(
            action_masks, (dict, tuple, list)
        ):  # nested, as the environment may give it; or a list of masks
            with suppress(ValueError):
                action_masks = flatten_mask(self.action_space, action_masks)
        masks = np.asarray(action_masks)
        if not masks.ndim or not masks.size or masks.shape[-1] % self.n_choices:
            raise ValueError(
                f"The action mask has the shape {masks.shape}; it needs {self.n_choices} entries per observation."
            )
        # Behind VecFrameStack older masks stand before the present one
        masks = masks[..., -self.n_choices :].reshape(-1, self.n_choices)
        if len(self.rows_without_choice(masks)):
            raise ValueError(
                "The action mask allows no action at all; at least one choice must be legal."
            )
        # A copy of what is read-only, such as the mask of an agent that is absent: PyTorch warns of others
        return th.as_tensor(masks if masks.flags.writeable else masks.copy(), device=self.device)

    def rows_without_choice(self, action_masks: np.ndarray) -> np.ndarray:
        """
        Rows of a batch of action masks in which some discrete choice has nothing legal left.

        :param action_masks: ``(batch, n_choices)``
        :return: Indices of the rows
        """
        legal = np.logical_or.reduceat(action_masks != 0, self._starts_of_choices, axis=1)
        return np.flatnonzero(~legal.all(axis=1))

    def to_env_actions(self, actions: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """
        Turn raw actions into actions of the environment.

        :param actions: Raw actions, ``(batch, action_dim)``
        :param out: Where to write; a new array by default
        :return: ``(batch, ...)``, a structured array where the action space is nested
        """
        if out is None:
            out = np.empty(len(actions), self.action_dtype)
        start = 0
        for leaf in self.leaves:
            field = out
            for name in leaf.path:
                field = field[name]
            columns = actions[:, start : start + leaf.n_actions].reshape(field.shape)
            start += leaf.n_actions
            space = leaf.space
            if isinstance(space, spaces.Box):
                if self.rescale_actions:
                    columns = space.low + 0.5 * (columns.clip(-1.0, 1.0) + 1.0) * (
                        space.high - space.low
                    )
                np.clip(columns, space.low, space.high, out=field, casting="same_kind")
            elif isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
                np.add(
                    columns.astype(np.int64), np.reshape(space.start, field.shape[1:]), out=field
                )
            else:
                field[...] = columns
        return out

    def to_env_tensor(self, actions: th.Tensor) -> th.Tensor:
        """
        :meth:`to_env_actions` for tensors, on their device, and plain action spaces.

        :param actions: Raw actions, ``(batch, action_dim)``
        :return: ``(batch, ...)``
        """
        (leaf,) = self.leaves
        space = leaf.space
        columns = actions.reshape(-1, *(space.shape or ()))
        if isinstance(space, spaces.Box):
            low, high = (
                th.as_tensor(bound, device=actions.device) for bound in (space.low, space.high)
            )
            if self.rescale_actions:
                columns = low + 0.5 * (columns.clamp(-1.0, 1.0) + 1.0) * (high - low)
            return columns.clamp(low, high)
        if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
            return columns.long() + th.as_tensor(space.start, device=actions.device)
        return columns


# What policy_kwargs may say of an agent's policy; the rest follows from the environment and the team
_AGENT_KWARGS = {*inspect.signature(AgentPolicy.__init__).parameters} - {
    *("self", "observation_space", "action_space", "lr_schedule", "masked", "agent_id")
}


@contextmanager
def _name_extractor(kwargs: dict[str, Any], owner: str, where: str) -> Iterator[None]:
    """
    A features extractor is made for one kind of observation, and a team may have several: say whose it does not take.

    :param kwargs: Of a policy or the critic, which is made inside
    :param owner: Who observes what
    :param where: There another extractor can be given
    """
    try:
        yield
    except Exception as error:
        extractor = kwargs.get("features_extractor_class")
        if extractor is None or isinstance(error, ValueError):
            raise
        raise ValueError(
            f"{extractor.__name__} cannot be made for the observation of {owner} ({type(error).__name__}: {error}). Put "
            f"another `features_extractor_class` into {where}, or None there for the default one."
        ) from error


def unbatch(space: spaces.Space, action: Any) -> Any:
    """
    One row of an agent's actions as the environment takes it.

    :param space: The agent's action space
    :param action: The row: a NumPy scalar, an array, or a structured row where the space is nested
    :return: The same, with structured rows turned into dicts and tuples
    """
    if isinstance(space, spaces.Dict):
        return {key: unbatch(subspace, action[key]) for key, subspace in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(
            unbatch(subspace, action[str(index)]) for index, subspace in enumerate(space.spaces)
        )
    return action


def flat_observation(observation: Any) -> Any:
    """
    :param observation: An agent's observation as the environment gives it
    :return: The same, with nested dicts and tuples turned into one dict with keys such as "arm/0", as in joint observations
    """
    if isinstance(observation, tuple):
        observation = dict(enumerate(observation))
    if not isinstance(observation, dict):
        return observation
    flat: dict[str, Any] = {}
    for key, value in observation.items():
        inner = flat_observation(value)
        flat.update(
            {f"{key}/{name}": part for name, part in inner.items()}
            if isinstance(inner, dict)
            else {str(key): inner}
        )
    return flat


def agent_keys(observation_space: spaces.Dict, agents: tuple[str, ...]) -> dict[str, list[str]]:
    """
    Which entries of the joint observation are an agent's own observation.

    :param observation_space: Joint observation space
    :param agents: Names of the agents
    :return: Per agent ``["<agent>"]``, or all its ``"<agent>/<key>"`` except the action mask
    """
    keys: dict[str, list[str]] = {agent: [] for agent in agents}
    for key in observation_space.spaces:
        # The longest name wins: "a/b" may be an agent beside "a"
        owners = [agent for agent in agents if key == agent or key.startswith(agent + "/")]
        owner = max(owners, key=len, default="")
        if owners and key != f"{owner}/{ACTION_MASK}":
            keys[owner].append(key)
    for agent, own in keys.items():
        if not own:
            raise ValueError(
                f"The joint observation has no entry for agent {agent!r}, only {list(observation_space.spaces)}; "
                "build the environment with `JointEnv` or `make_joint_env`."
            )
    return keys


def agent_observation_space(
    observation_space: spaces.Dict, keys: list[str], agent: str
) -> spaces.Space:
    """
    :param observation_space: Joint observation space
    :param keys: The agent's own entries (see :func:`agent_keys`)
    :param agent: Its name
    :return: The space of its own observation, a Dict where it has several entries
    """
    if keys == [agent]:
        return observation_space.spaces[agent]
    return spaces.Dict(
        [(key.removeprefix(agent + "/"), observation_space.spaces[key]) for key in keys]
    )


class JointPolicy(BasePolicy):
    """
    The team: a policy for each agent, as a rule with parameters of its own, and one centralized critic.

    Keyword arguments that are not listed go to every :class:`AgentPolicy` and, where it knows them, to the critic.

    :param observation_space: Joint observation space of a :class:`~sb3_happo.envs.JointEnv`
    :param action_space: One entry per agent, in the agents' order
    :param lr_schedule: Learning rate of the actors
    :param critic_lr_schedule: Learning rate of the critic; the actors' by default
    :param net_arch: Units of the hidden layers of actors and critic, or SB3's ``dict(pi=..., vf=...)``
    :param normalize_value: Whether the critic predicts normalised returns
    :param share_parameters: Which agents share one network: False, none; True, all whose spaces agree; or groups of agents'
        names, ``[["agent_0", "agent_1"], ...]`` (the others share with nobody)
    :param append_agent_id: Tell shared networks by a one-hot input which of their agents they act for
    :param local_critics: Instead of the shared centralized critic, one for each agent that sees only what the agent sees
        (IPPO)
    :param agent_kwargs: Overrides for single agents, ``{agent: {"net_arch": ..., "learning_rate": ..., ...}}``
    :param critic_kwargs: Overrides for the critic
    :param recurrent: "lstm" or "gru" for actors and a critic with memory, or None. Single agents may differ
        (``agent_kwargs``), and so may the critic (``critic_kwargs``)
    :param enable_critic_lstm: Whether the critic has a memory too; otherwise it is feed-forward
    :param shared_lstm: Whether the critic, without a memory of its own (``enable_critic_lstm=False``), reads what the actors
        remember after the observation that it values: all of them beside the state; a local critic, its own agent. As in
        sb3-contrib it does not train these memories: they are data of the rollout
    :raises ValueError: If an agent is unknown, or a setting cannot work
    """

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
        agent_kwargs: dict[str, dict[str, Any]] | None = None,
        critic_kwargs: dict[str, Any] | None = None,
        recurrent: RecurrentKind | None = None,
        enable_critic_lstm: bool = True,
        shared_lstm: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(observation_space, action_space)
        self.agents = tuple(action_space.spaces)
        self.action_dtype = joint_action_dtype(action_space)
        # The environment may count its agents
        agent_kwargs = {str(agent): overrides for agent, overrides in (agent_kwargs or {}).items()}
        if not isinstance(share_parameters, bool):
            share_parameters = [[str(agent) for agent in group] for group in share_parameters]
        own = {*inspect.signature(JointPolicy.__init__).parameters} - {"self"}
        check_names(kwargs, _AGENT_KWARGS, "policy_kwargs", own | _AGENT_KWARGS)
        for agent, overrides in agent_kwargs.items():
            self._check_agent(agent, "policy_kwargs['agent_kwargs']")
            known = _AGENT_KWARGS | {"learning_rate"}
            check_names(overrides, known, f"policy_kwargs['agent_kwargs'][{agent!r}]")
        self._init_kwargs: dict[str, Any] = dict(
            net_arch=net_arch,
            normalize_value=normalize_value,
            share_parameters=share_parameters,
            append_agent_id=append_agent_id,
            local_critics=local_critics,
            agent_kwargs=agent_kwargs,
            critic_kwargs=critic_kwargs,
            recurrent=recurrent,
            enable_critic_lstm=enable_critic_lstm,
            shared_lstm=shared_lstm,
            **kwargs,
        )
        kwargs["recurrent"] = recurrent
        self._keys = agent_keys(observation_space, self.agents)
        self._mask_keys = {agent: f"{agent}/{ACTION_MASK}" for agent in self.agents}
        own_spaces = {
            agent: agent_observation_space(observation_space, self._keys[agent], agent)
            for agent in self.agents
        }
        self.groups = self._make_groups(share_parameters, own_spaces, agent_kwargs)
        #: Of agents with a learning rate of their own
        self.lr_schedules: dict[str, Schedule] = {}
        self.policies: dict[str, AgentPolicy] = {}
        for group in self.groups:
            for index, agent in enumerate(group):
                overrides = dict(agent_kwargs.get(agent, {}))
                rate = overrides.pop("learning_rate", None)
                if rate is not None:
                    self.lr_schedules[agent] = FloatSchedule(rate)
                own_kwargs = {"net_arch": net_arch} | kwargs | overrides
                where = f"policy_kwargs['agent_kwargs'][{agent!r}]"
                with _name_extractor(own_kwargs, f"agent {agent!r}, {own_spaces[agent]}", where):
                    self.policies[agent] = AgentPolicy(
                        own_spaces[agent],
                        action_space.spaces[agent],
                        self.lr_schedules.get(agent, lr_schedule),
                        masked=self._mask_keys[agent] in observation_space.spaces,
                        agent_id=(index, len(group))
                        if append_agent_id and len(group) > 1
                        else None,
                        **own_kwargs,
                    )
                if index:
                    self.policies[agent].share_parameters_with(self.policies[group[0]])
        self.policies = {agent: self.policies[agent] for agent in self.agents}
        self.actors = nn.ModuleList(
            self.policies.values()
        )  # by index: an agent's name need not be a legal module name
        shared = {key: value for key, value in kwargs.items() if key in _CRITIC_KWARGS}
        if not enable_critic_lstm:
            shared["recurrent"] = None
        known = {*inspect.signature(ValueNet.__init__).parameters} - {
            "self",
            "observation_space",
            "n_remembered",
        }
        known |= {"normalize_value", "optimizer_class", "optimizer_kwargs"}
        check_names(critic_kwargs or {}, known, "policy_kwargs['critic_kwargs']")
        critic_kwargs = (
            {"net_arch": net_arch, "normalize_value": normalize_value}
            | shared
            | (critic_kwargs or {})
        )
        #: Agents whose memories the critic reads
        self.agents_read_by_critic: list[str] = []
        if shared_lstm:
            self.agents_read_by_critic = [
                agent for agent, policy in self.policies.items() if policy.memory is not None
            ]
            if critic_kwargs.get("recurrent") is not None or not self.agents_read_by_critic:
                raise ValueError(
                    "shared_lstm=True: the critic reads the actors' memories instead of having one of its own. Give it none "
                    "(enable_critic_lstm=False) and some actors one (MlpLstmPolicy), or leave shared_lstm away."
                )
            sizes = {
                agent: self.policies[agent].memory.hidden_size
                for agent in self.agents_read_by_critic
            }  # type: ignore[union-attr]
            critic_kwargs["n_remembered"] = sizes
        rate = critic_lr_schedule or lr_schedule
        seen = "the agents' observations" if local_critics else f"the state, of {observation_space}"
        with _name_extractor(
            critic_kwargs, f"the critic, {seen}", "policy_kwargs['critic_kwargs']"
        ):
            self.critic: Critic = (
                LocalCritics(own_spaces, rate, **critic_kwargs)
                if local_critics
                else CentralizedCritic(observation_space, len(self.agents), rate, **critic_kwargs)
            )
        initialise([*(self.policies[group[0]] for group in self.groups), *self.critic.networks])

    def _make_groups(
        self,
        share_parameters: bool | list[list[str]],
        own_spaces: dict[str, spaces.Space],
        agent_kwargs: dict[str, dict[str, Any]],
    ) -> list[tuple[str, ...]]:
        """The agents that share parameters, in the order of their first ones; most groups are one agent."""
        assert isinstance(self.action_space, spaces.Dict)
        forms = {
            agent: (own_spaces[agent], self.action_space.spaces[agent], agent_kwargs.get(agent, {}))
            for agent in self.agents
        }
        groups: list[list[str]] = []
        for agent in self.agents if share_parameters is True else ():
            fitting = [group for group in groups if forms[group[0]] == forms[agent]]
            if fitting:
                fitting[0].append(agent)
            else:
                groups.append([agent])
        if not isinstance(share_parameters, bool):
            groups = [list(group) for group in share_parameters]
            for group in groups:
                for agent in group:
                    self._check_agent(agent, "policy_kwargs['share_parameters']")
                    if forms[agent] != forms[group[0]]:
                        raise ValueError(
                            f"agents {group[0]!r} and {agent!r} cannot share parameters; their spaces or kwargs differ "
                            f"({forms[group[0]]} against {forms[agent]}); put them into different groups."
                        )
        named = [agent for group in groups for agent in group]
        if len(named) != len(set(named)):
            raise ValueError(f"policy_kwargs['share_parameters'] names an agent twice: {groups}")
        return [tuple(group) for group in groups] + [
            (agent,) for agent in self.agents if agent not in named
        ]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        spaces_ = dict(observation_space=self.observation_space, action_space=self.action_space)
        # As SB3 has it: schedules, which need not be picklable, are the model's; so who shares is not to be found out again
        groups = [list(group) for group in self.groups if len(group) > 1]
        agent_kwargs = {
            agent: {name: value for name, value in overrides.items() if name != "learning_rate"}
            for agent, overrides in self._init_kwargs["agent_kwargs"].items()
        }
        own = {
            "share_parameters": groups,
            "agent_kwargs": agent_kwargs,
            "lr_schedule": self._dummy_schedule,
        }
        return spaces_ | self._init_kwargs | own

    def _check_agent(self, agent: str, where: str) -> None:
        if agent not in self.agents:
            raise ValueError(
                f"Unknown agent {agent!r} in {where}; this team has {', '.join(map(repr, self.agents))}."
            )

    def _split_by_agent(self, observation: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Sort the entries of an observation, joint or per agent, into own observations and action masks."""
        assert isinstance(self.observation_space, spaces.Dict)
        joint_keys = self.observation_space.spaces
        own: dict[str, Any] = {}
        masks: dict[str, Any] = {}
        for name, value in observation.items():
            key = str(name)
            if key in self.agents:
                own[key] = value
                continue
            owners = [agent for agent in self.agents if key.startswith(agent + "/")]
            if owners:
                agent = max(owners, key=len)
                if key == self._mask_keys[agent]:
                    masks[agent] = value
                else:
                    own.setdefault(agent, {})[key.removeprefix(agent + "/")] = value
            elif key not in joint_keys:  # the critic's entries are known, and not needed here
                self._check_agent(key, "the observation")
        return own, masks

    def _is_bare(self, observation: Any) -> bool:
        """Whether this is the observation of a team of one's only agent, not under the agent's name."""
        if not isinstance(observation, dict):
            return True
        own_space = self.policies[self.agents[0]].observation_space
        own_keys = [ACTION_MASK, *(own_space.spaces if isinstance(own_space, spaces.Dict) else ())]
        keys = [str(key) for key in flat_observation(observation)]
        named = any(key == self.agents[0] or key.startswith(self.agents[0] + "/") for key in keys)
        return not named and any(key in own_keys for key in keys)

    def _active(self, observation: dict[str, Any]) -> dict[str, np.ndarray] | None:
        """Per agent, in which environments it is alive and on turn, ``(n_envs,)``; None where the observation does not say."""
        assert isinstance(self.observation_space, spaces.Dict)
        if ACTIVE not in observation or ACTIVE not in self.observation_space.spaces:
            return None
        # Behind VecFrameStack older ones stand before the present one
        active = np.asarray(observation[ACTIVE], dtype=bool)[..., -len(self.agents) :].reshape(
            -1, len(self.agents)
        )
        return dict(zip(self.agents, active.T, strict=True))

    def agent_observation(self, observations: dict[str, th.Tensor], agent: str) -> PyTorchObs:
        """
        :param observations: Joint observation
        :param agent: Whose share to take
        :return: The agent's own observation, a dict where its space is one
        """
        keys = self._keys[agent]
        if keys == [agent]:
            return observations[agent]
        return {key.removeprefix(agent + "/"): observations[key] for key in keys}

    def action_masks(self, observations: dict[str, th.Tensor], agent: str) -> th.Tensor | None:
        """
        :param observations: Joint observation
        :param agent: Whose mask to take
        :return: 1 where a choice is legal, ``(batch, n_choices)``, or None for agents without masks
        """
        masks = observations.get(self._mask_keys[agent])
        # Behind VecFrameStack older masks stand before the present one
        return None if masks is None else masks[..., -self.policies[agent].n_choices :]

    def initial_states(self, n_envs: int) -> RNNStates:
        """
        :param n_envs: Number of environments
        :return: What the team remembers at the start of an episode: zeros
        """
        memories = {
            agent: policy.memory
            for agent, policy in self.policies.items()
            if policy.memory is not None
        }
        pi = {agent: memory.initial_state(n_envs) for agent, memory in memories.items()}
        return RNNStates(pi, self.critic.initial_state(n_envs))

    def critic_observation(
        self, obs: dict[str, th.Tensor], after: dict[str, th.Tensor]
    ) -> dict[str, th.Tensor]:
        """
        :param obs: Joint observation, each entry ``(n_envs, ...)``
        :param after: What agents remember after it, as if all were active
        :return: What the critic may read: also their memories, if it reads them
        """
        if not self.agents_read_by_critic:
            return obs
        # Of an LSTM's two parts the output, of several layers the last, as the hidden layers of the actor get it
        return obs | {
            MEMORIES: th.cat(
                [after[agent][:, 0, -1] for agent in self.agents_read_by_critic], dim=1
            ).detach()
        }

    def advance_memory(
        self, before: RNNStates, after: RNNStates, active: np.ndarray | None
    ) -> RNNStates:
        """
        An agent that is dead or not on turn keeps its memory as it is, and so does its column of the critic's.

        :param before: A step
        :param after: The same step, of everybody as if active
        :param active: Who is alive and on turn, ``(n_envs, n_agents)``; None for all
        :return: What the team remembers after the step
        """
        if active is None or not (after.pi or after.vf is not None):
            return after
        here = th.as_tensor(active, device=self.device)
        columns = dict(zip(self.agents, here.unbind(dim=1), strict=True))
        pi = {
            agent: select_states(columns[agent], states, before.pi[agent])
            for agent, states in after.pi.items()
        }
        vf = after.vf
        if before.vf is not None and vf is not None and self.critic.n_values > 1:
            vf = select_states(here, vf, before.vf)
        return RNNStates(pi, vf)

    def forward(
        self,
        obs: dict[str, th.Tensor],
        deterministic: bool = False,
        states: RNNStates | None = None,
    ) -> JointStep:
        """
        One decision of the whole team.

        :param obs: Joint observation, each entry ``(n_envs, ...)``
        :param deterministic: Take the most likely actions instead of samples
        :param states: What the team remembers; None at the start of an episode, or without memory
        :return: Raw actions, log-probabilities, values, and what it remembers then
        """
        before = RNNStates({}, None) if states is None else states
        steps = {
            agent: policy.step(
                self.agent_observation(obs, agent),
                before.pi.get(agent),
                deterministic,
                self.action_masks(obs, agent),
            )
            for agent, policy in self.policies.items()
        }
        pi = {agent: step.states for agent, step in steps.items() if step.states is not None}
        values, vf = self.critic.step(self.critic_observation(obs, pi), before.vf)
        return JointStep(
            {agent: step.actions for agent, step in steps.items()},
            {agent: step.log_probs for agent, step in steps.items()},
            values,
            RNNStates(pi, vf),
        )

    def predict_values(
        self, obs: dict[str, th.Tensor], states: RNNStates | None = None
    ) -> th.Tensor:
        """
        :param obs: Joint observation, of which the critic reads its keys
        :param states: What the team remembers; None at the start of an episode, or without memory
        :return: Values in units of reward, ``(batch, n_values)``
        """
        before = RNNStates({}, None) if states is None else states
        after = {
            agent: self.policies[agent].remember(
                self.agent_observation(obs, agent), before.pi.get(agent)
            )
            for agent in self.agents_read_by_critic
        }
        return self.critic.predict_values(self.critic_observation(obs, after), before.vf)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        raise NotImplementedError("A team has no single action tensor; use `predict` or `forward`.")

    def predict(
        self,
        observation: dict[str, Any] | tuple[Any, ...] | np.ndarray,
        state: Any = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: dict[str, np.ndarray] | None = None,
    ) -> tuple[Any, Any]:
        """
        The actions of the agents whose observations are given; neither the state nor the critic is needed.

        :param observation: ``{agent: observation}`` in the environment's own form, or the observation of a ``JointEnv`` or of
            a vectorised one; a team of one also takes its agent's bare observation
        :param state: What a team with memory returned at the step before, ``{agent: state}``; None at the start. An agent that
            is not asked keeps its memory, and so does one of which the joint observation's "active" says that it is dead or
            not on turn
        :param episode_start: Where an episode begins, so that nothing is remembered, ``(n_envs,)``; None for nowhere
        :param deterministic: Take the most likely actions instead of samples
        :param action_masks: ``{agent: mask}``, where masks do not come within the observations
        :return: For one environment ``{agent: action}``, by the agents' names in the observation; for a batch of them a
            structured array with one row per environment and one field per agent. And the next ``state``
        :raises ValueError: If an agent is unknown, its mask is missing, or the agents' observations are of different batches
        """
        if len(self.agents) == 1 and self._is_bare(observation):
            own_masks = (action_masks or {}).get(self.agents[0])
            return self.policies[self.agents[0]].predict(
                observation, state, episode_start, deterministic, own_masks
            )
        if not isinstance(observation, dict):
            raise ValueError("A team needs a dict of observations, {agent: observation}.")
        own, masks = self._split_by_agent(observation)
        masks.update({str(agent): mask for agent, mask in (action_masks or {}).items()})
        for agent in masks:
            self._check_agent(agent, "`action_masks`")
        answers: dict[str, Any] = {}
        states: dict[str, Any] = dict(state or {})
        if episode_start is not None:
            starts = np.asarray(episode_start, dtype=bool).reshape(-1)
            states = {agent: _select_state(~starts, before) for agent, before in states.items()}
        active = self._active(observation)
        batched: set[str] = set()
        for agent in self.agents:
            if agent in own:
                policy = self.policies[agent]
                try:
                    answers[agent], after = policy.predict(
                        own[agent], states.get(agent), None, deterministic, masks.get(agent)
                    )
                except ValueError as error:
                    raise ValueError(f"agent {agent!r}: {error}") from error
                if after is not None:
                    states[agent] = (
                        after
                        if active is None
                        else _select_state(active[agent], after, states.get(agent))
                    )
                if policy.is_vectorized_observation(policy.split_mask(own[agent])[0]):
                    batched.add(agent)
        if not batched:
            names = {
                str(name): name for name in observation
            }  # the environment may count its agents
            return {
                names.get(agent, agent): action for agent, action in answers.items()
            }, states or None
        sizes = {
            agent: len(actions) if agent in batched else 0 for agent, actions in answers.items()
        }
        n_envs = max(sizes.values())
        if set(sizes.values()) != {n_envs}:
            counts = ", ".join(
                f"{agent!r} {f'of {size}' if size else 'of one, without a batch'}"
                for agent, size in sizes.items()
            )
            raise ValueError(
                f"The agents' observations must be of the same environments; they are {counts}."
            )
        joint = np.empty(
            n_envs, np.dtype([(agent, self.policies[agent].action_dtype) for agent in answers])
        )
        for agent, actions in answers.items():
            joint[agent] = actions
        return joint, states or None


def _select_state(
    rows: np.ndarray,
    states: tuple[np.ndarray, ...],
    otherwise: tuple[np.ndarray, ...] | None = None,
) -> tuple[np.ndarray, ...]:
    """The memory ``(n_layers, n_envs, hidden_size)`` of ``rows``, bool ``(n_envs,)``; elsewhere the other one, or nothing."""
    others = [np.zeros_like(part) for part in states] if otherwise is None else otherwise
    return tuple(
        np.where(rows[:, None], part, other) for part, other in zip(states, others, strict=True)
    )


class LstmJointPolicy(JointPolicy):
    """
    A team with LSTMs: ``recurrent`` is "lstm" by default.

    :param args: As for :class:`JointPolicy`
    :param kwargs: As for :class:`JointPolicy`
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"recurrent": "lstm", **kwargs})


class GruJointPolicy(JointPolicy):
    """
    A team with GRUs: ``recurrent`` is "gru" by default.

    :param args: As for :class:`JointPolicy`
    :param kwargs: As for :class:`JointPolicy`
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"recurrent": "gru", **kwargs})
