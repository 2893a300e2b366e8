"""Network of one agent's actor, and the distribution over raw actions."""

import inspect
from typing import Any, ClassVar, Literal

import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_happo.common.agent_inputs import ActionMasks
from sb3_happo.common.env_actions import EnvActions
from sb3_happo.common.heads import Head, HeadName, make_head
from sb3_happo.common.leaf_heads import BoxHead
from sb3_happo.common.networks import (
    ACTOR_OUTPUT_GAIN,
    NetworkOptions,
    TanhMeans,
    TeamModel,
    make_body,
    make_memory,
    make_optimizer,
)
from sb3_happo.common.recurrent import RecurrentLayers, single_steps
from sb3_happo.common.state_dependent_noise import ExplorationMatrices, SdeOptions
from sb3_happo.common.type_aliases import ActorBatch, Sequences

LogStdForm = Literal["parameter", "sigmoid", "constant"]


class ActorNetwork(BasePolicy, TeamModel):
    """
    Network of one agent's actor.

    Raw actions, as they are sampled, stored and learned from, are float tensors
    ``(batch, action_dim)``.

    :param observation_space: Observation space of the agent, without action masks
    :param action_space: Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of these
    :param lr_schedule: Learning rate over the remaining progress (1 at the start, 0 at the end)
    :param head: Meaning of the network's outputs, see :mod:`~sb3_happo.common.heads`: "gaussian"
        (on-policy algorithms), "squashed", "deterministic" or "greedy"
    :param log_std_init: Initial logarithm of the standard deviation of the "gaussian" head (for
        ``log_std_form="sigmoid"``: of its parameter, in units of ``std_x_coef``; SB3's 0 means
        HARL's initial value, 1)
    :param log_std_form: "parameter" learns the logarithm itself, as SB3 does; "sigmoid" learns
        ``x`` of ``std = std_y_coef * sigmoid(x / std_x_coef)``, as HARL does, which bounds it;
        "constant" does not learn it
    :param std_x_coef: Scale of the sigmoid's parameter
    :param std_y_coef: Upper bound of the sigmoid's standard deviation
    :param tanh_mean: tanh of the means of continuous actions, which then lie in (-1, 1); only for
        the "gaussian" head
    :param use_sde: State-dependent noise (gSDE) of the continuous actions, as in SB3, only for the
        "gaussian" head; an argument of the algorithm, which draws the noise. For a single agent in
        ``agent_kwargs``
    :param full_std: With gSDE, a deviation for each feature and action; False for one per feature
    :param use_expln: With gSDE, ``expln`` instead of ``exp`` for the deviations
    :param squash_output: With gSDE, tanh of the actions, which then keep within their bounds
    :param rescale_actions: Scaling of Box actions from [-1, 1] to the bounds; otherwise actions are
        used without scaling and clipped. Both are the same for bounds of [-1, 1]
    :param masked: Whether the agent's environment has action masks
    :param agent_id: ``(index, n)`` to append a one-hot of the agent's index among ``n`` to the
        features, for policies that share parameters; None to append nothing
    :param agent_name: Name of the agent in its team; None if unknown
    :param options: Network options
    :param kwargs: Fields of :class:`~sb3_happo.common.networks.NetworkOptions`, in the place
        of ``options``
    """

    #: Keyword arguments that follow from the environment and the team, not from the user
    derived_kwargs: ClassVar[frozenset[str]] = frozenset(
        (
            *("self", "observation_space", "action_space", "lr_schedule"),
            *("head", "masked", "agent_id", "agent_name"),
        )
    )
    memory: RecurrentLayers | None

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        head: HeadName = "gaussian",
        log_std_init: float = 0.0,
        log_std_form: LogStdForm = "parameter",
        std_x_coef: float = 1.0,
        std_y_coef: float = 0.5,
        tanh_mean: bool = False,
        use_sde: bool = False,
        full_std: bool = True,
        use_expln: bool = False,
        squash_output: bool = False,
        rescale_actions: bool = True,
        masked: bool = False,
        agent_id: tuple[int, int] | None = None,
        agent_name: str | None = None,
        options: NetworkOptions | None = None,
        **kwargs: Any,
    ) -> None:
        options = NetworkOptions(**kwargs) if options is None else options
        super().__init__(
            observation_space,
            action_space,
            options.extractor_class(observation_space),
            options.features_extractor_kwargs,
            normalize_images=options.normalize_images,
            optimizer_class=options.optimizer_class,
            optimizer_kwargs=options.optimizer_kwargs,
            squash_output=squash_output,
        )
        self.options = options
        self.ortho_init = options.ortho_init
        self.output_gain = options.gain(ACTOR_OUTPUT_GAIN)
        self.head_name = head
        self.log_std_init = log_std_init
        self.log_std_form = log_std_form
        self.std_x_coef = std_x_coef
        self.std_y_coef = std_y_coef
        self.tanh_mean = tanh_mean
        self.use_sde = use_sde
        self.full_std = full_std
        self.use_expln = use_expln
        self.rescale_actions = rescale_actions
        self.masked = masked
        self.agent_id = agent_id
        self.agent_name = agent_name
        self.env_actions = EnvActions(action_space, rescale_actions)
        self.leaves = self.env_actions.leaves
        self.masks = ActionMasks(action_space, self.leaves, masked)
        self.action_head = make_head(head, action_space, masked, use_sde and squash_output)
        _check_noise(self)

        self.features_extractor = self.make_features_extractor()
        n_ids = self.n_inputs_beside_features()
        n_inputs = self.features_extractor.features_dim + n_ids
        self.memory = make_memory(n_inputs, options)
        self.body, latent_dim = make_body(
            self.features_extractor, options, "pi", n_ids, self.memory
        )
        one_hot = None
        if agent_id is not None:
            one_hot = nn.functional.one_hot(th.tensor(agent_id[0]), agent_id[1]).float()
        self.one_hot: th.Tensor | None
        self.register_buffer("one_hot", one_hot, persistent=False)
        if tanh_mean:
            self.head: nn.Linear = TanhMeans(latent_dim, continuous_outputs(self.action_head))
        else:
            self.head = nn.Linear(latent_dim, self.action_head.n_params)
        #: Matrices of the state-dependent noise; None without gSDE
        self.sde: ExplorationMatrices | None = None
        self.log_std: th.Tensor | None = None
        _add_noise(self, latent_dim)
        self.reset_noise()
        self.optimizer = make_optimizer(self, lr_schedule, options)

    def n_inputs_beside_features(self) -> int:
        """
        Hook: number of inputs of the first layer beside the features of the observation.

        :return: Number of agents that the one-hot of the agent distinguishes, 0 without one
        """
        return 0 if self.agent_id is None else self.agent_id[1]

    @classmethod
    def option_names(cls) -> set[str]:
        """
        :return: Names that ``policy_kwargs`` may hold for an agent's policy
        """
        names = set(inspect.signature(cls.__init__).parameters) - {"options", "kwargs"}
        return (names - cls.derived_kwargs) | set(NetworkOptions.names())

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data["head"] = self.head_name
        for name in self.option_names() | {"masked", "agent_id", "agent_name"}:
            holder = self.options if name in NetworkOptions.names() else self
            data[name] = getattr(holder, name)
        # As in SB3, a policy that was saved alone can act, but cannot continue to learn
        data["lr_schedule"] = self._dummy_schedule
        return data

    def share_parameters_with(self, other: "ActorNetwork") -> None:
        """
        Use another agent's networks and optimiser from now on.

        :param other: Network of the same form
        """
        self.features_extractor = other.features_extractor
        self.memory = other.memory
        self.body = other.body
        self.head = other.head
        self.log_std = other.log_std
        self.optimizer = other.optimizer

    # ---------------------------------------------------------------- distribution

    def effective_log_std(self) -> th.Tensor | None:
        """
        :return: Logarithm of the standard deviations of the continuous dimensions,
            ``(n_continuous,)``; with gSDE of the noise matrix, ``(n_features, n_continuous)`` or
            ``(n_features, 1)``; None without continuous actions
        """
        if self.log_std is not None and self.log_std_form == "sigmoid":
            return th.log(self.std_y_coef * th.sigmoid(self.log_std / self.std_x_coef))
        return self.log_std

    def reset_noise(self, n_envs: int = 1) -> None:
        """
        Draw new matrices of the state-dependent noise, as SB3's ``ActorCriticPolicy.reset_noise``;
        without effect for a policy without gSDE.

        :param n_envs: Number of environments
        """
        if self.sde is not None:
            log_std = self.effective_log_std()
            assert log_std is not None
            self.sde.sample(log_std, n_envs)

    def _features(self, obs: PyTorchObs, agent_ids: th.Tensor | None = None) -> th.Tensor:
        assert self.features_extractor is not None
        features = self.extract_features(obs, self.features_extractor)
        if self.one_hot is None:
            return features
        ids = self.one_hot.expand(len(features), -1) if agent_ids is None else agent_ids
        return th.cat([features, ids], dim=1)

    def advance_memory(self, obs: PyTorchObs, states: th.Tensor | None = None) -> th.Tensor:
        """
        Hidden states of a recurrent policy after an observation, without a decision.

        :param obs: Own observations, ``(batch, ...)``
        :param states: Hidden states before them, ``(batch, n_parts, n_layers, hidden_size)``; None
            at the start of an episode
        :return: Hidden states after them, of the same shape
        """
        assert self.memory is not None
        features = self._features(obs)
        if states is None:
            states = self.memory.initial_state(len(features))
        return self.memory(features, single_steps(states))[1]

    def parameters_of_actions(
        self,
        obs: PyTorchObs,
        sequences: Sequences | None = None,
        agent_ids: th.Tensor | None = None,
    ) -> tuple[th.Tensor, th.Tensor | None]:
        """
        Outputs of the network: means, logits or values, by the head.

        :param obs: Own observations, ``(batch, ...)``
        :param sequences: Order of the rows in time, for a recurrent policy; None if each row begins
            an episode
        :return: Outputs ``(batch, n_params)``; and the hidden states after each sequence, or None
        """
        latent, states = self._latent(obs, sequences, agent_ids)
        return self.head(latent), states

    def _latent(
        self,
        obs: PyTorchObs,
        sequences: Sequences | None = None,
        agent_ids: th.Tensor | None = None,
    ) -> tuple[th.Tensor, th.Tensor | None]:
        """Features before the output layer, ``(batch, n_features)``, and hidden states."""
        features = self._features(obs, agent_ids)
        states = None
        if self.memory is not None:
            if sequences is None:
                sequences = single_steps(self.memory.initial_state(len(features)))
            features, states = self.memory(features, sequences)
        return self.body(features), states

    def _distribution(self, latent: th.Tensor, action_masks: th.Tensor | None) -> Distribution:
        """Distribution for features before the output layer, ``(batch, n_features)``."""
        params, log_std = self.head(latent), self.effective_log_std()
        if self.sde is None or log_std is None:
            return self.action_head.distribution(params, log_std, action_masks)
        deviations = self.sde.deviations(log_std, latent)
        return self.action_head.distribution(params, deviations, action_masks)

    def get_distribution(
        self,
        obs: PyTorchObs,
        action_masks: th.Tensor | None = None,
        sequences: Sequences | None = None,
        agent_ids: th.Tensor | None = None,
    ) -> Distribution:
        """
        Distribution over raw actions.

        :param obs: Own observations, ``(batch, ...)``
        :param action_masks: 1 where a choice is legal, ``(batch, n_choices)``
        :param sequences: Order of the rows in time, for a recurrent policy; None if each row begins
            an episode
        :return: Distribution with SB3's interface; a new one per call, for thread safety
        """
        latent, _ = self._latent(obs, sequences, agent_ids)
        return self._distribution(latent, action_masks)

    def batch_distribution(self, batch: ActorBatch) -> Distribution:
        """
        :param batch: Rows of a rollout
        :return: Distribution over their raw actions
        """
        return self.get_distribution(
            batch.observations, batch.action_masks, batch.sequences, batch.agent_ids
        )

    def log_prob(self, distribution: Distribution, actions: th.Tensor) -> th.Tensor:
        """
        :param distribution: Distribution over raw actions
        :param actions: Raw actions, ``(batch, action_dim)``
        :return: Log-probability of each whole action, ``(batch,)``
        """
        if isinstance(self.action_space, spaces.Discrete):
            actions = actions.flatten()
        return distribution.log_prob(actions)

    def evaluate_actions(
        self,
        obs: PyTorchObs,
        actions: th.Tensor,
        action_masks: th.Tensor | None = None,
        sequences: Sequences | None = None,
        agent_ids: th.Tensor | None = None,
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        :param obs: Own observations, ``(batch, ...)``
        :param actions: Raw actions, ``(batch, action_dim)``
        :param action_masks: ``(batch, n_choices)``
        :param sequences: Order of the rows in time, for a recurrent policy; None if each row begins
            an episode
        :return: Log-probability of each whole action and entropy of its distribution, ``(batch,)``.
            The entropy of squashed actions is estimated by the negative log-probability, as in SB3
        """
        distribution = self.get_distribution(obs, action_masks, sequences, agent_ids)
        # The order of the two decides in which order their gradients are added, and the rounding
        entropy = distribution.entropy()
        log_prob = self.log_prob(distribution, actions)
        return log_prob, -log_prob if entropy is None else entropy

    def evaluate_batch(self, batch: ActorBatch) -> tuple[th.Tensor, th.Tensor]:
        """
        :param batch: Rows of a rollout
        :return: Log-probability of each whole action and entropy of its distribution, ``(batch,)``
        """
        return self.evaluate_actions(
            batch.observations,
            batch.actions,
            batch.action_masks,
            batch.sequences,
            batch.agent_ids,
        )

    def rsample(
        self, obs: PyTorchObs, action_masks: th.Tensor | None = None, temperature: float = 1.0
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        Differentiable samples in the form that a Q network reads.

        :param obs: Own observations, ``(batch, ...)``
        :param action_masks: ``(batch, n_choices)``
        :param temperature: Temperature of the relaxation of discrete choices, > 0
        :return: Encoded actions ``(batch, n_encoded)``, and their log-probabilities ``(batch,)``
        """
        params, _ = self.parameters_of_actions(obs)
        log_std = self.effective_log_std()
        return self.action_head.rsample(params, log_std, action_masks, temperature)

    def values(self, obs: PyTorchObs, action_masks: th.Tensor | None = None) -> th.Tensor:
        """
        :param obs: Own observations, ``(batch, ...)``
        :param action_masks: ``(batch, n_choices)``
        :return: Values of the choices, for the "greedy" head, ``(batch, n_choices)``
        """
        return self.action_head.values(self.parameters_of_actions(obs)[0], action_masks)


def _add_noise(policy: ActorNetwork, latent_dim: int) -> None:
    """Add the deviations of continuous actions, and with gSDE the matrices of the noise."""
    n_continuous = policy.action_head.n_log_std
    shape: tuple[int, ...] = (n_continuous,)
    if policy.use_sde:
        noise = SdeOptions(policy.full_std, policy.use_expln, policy.squash_output)
        policy.sde = ExplorationMatrices(latent_dim, n_continuous, noise)
        shape = policy.sde.log_std_shape()
    if n_continuous:
        add_log_std(policy, shape)


def add_log_std(policy: ActorNetwork, shape: tuple[int, ...]) -> None:
    """
    Add the parameter or buffer ``log_std`` to a policy.

    :param policy: Policy with its settings
    :param shape: Shape of ``log_std``
    :raises ValueError: If ``log_std_form`` is unknown
    """
    start = float(policy.log_std_init)
    if policy.log_std_form == "parameter":
        policy.log_std = nn.Parameter(th.full(shape, start))
    elif policy.log_std_form == "sigmoid":
        policy.log_std = nn.Parameter(th.full(shape, (1.0 + start) * policy.std_x_coef))
    elif policy.log_std_form == "constant":
        del policy.log_std
        policy.register_buffer("log_std", th.full(shape, start))
    else:
        raise ValueError(
            "log_std_form must be 'parameter', 'sigmoid' or 'constant', "
            f"not {policy.log_std_form!r}"
        )


def continuous_outputs(head: Head) -> th.Tensor:
    """
    :param head: Head of an actor
    :return: Mask of the outputs that are means of continuous actions, ``(n_params,)``
    """
    masks = [th.full((part.n_params,), isinstance(part, BoxHead)) for part in head.parts]
    return th.cat(masks)


def _check_noise(policy: ActorNetwork) -> None:
    """
    :param policy: Policy with its settings, whose networks are not made yet
    :raises ValueError: If the settings of the noise do not fit one another, the head or the actions
    """
    owner = "This policy" if policy.agent_name is None else f"agent {policy.agent_name!r}"
    for name in ("tanh_mean", "use_sde", "squash_output"):
        if getattr(policy, name) and policy.head_name != "gaussian":
            raise ValueError(
                f"{owner}: {name}=True is for the Gaussian policies of the on-policy algorithms, "
                f"such as HAPPO, and this policy's head is {policy.head_name!r}. Omit it."
            )
    if policy.use_sde and not policy.action_head.n_log_std:
        raise ValueError(
            f"{owner}: use_sde=True needs continuous actions, and {policy.action_space} has none. "
            "Omit it for this agent; its discrete actions are explored by sampling."
        )
    if not policy.squash_output:
        return
    if not policy.use_sde:
        raise ValueError(
            f"{owner}: squash_output=True is only available when using gSDE (use_sde=True)."
        )
    if policy.tanh_mean:
        raise ValueError(
            f"{owner}: squash_output=True passes the whole action through tanh; omit tanh_mean."
        )
    if not policy.rescale_actions:
        raise ValueError(
            f"{owner}: squash_output=True needs rescale_actions=True, so that the squashed actions "
            "in [-1, 1] are scaled to their bounds."
        )
