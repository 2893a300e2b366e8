"""One agent of a mean-field team, who knows the mean action of its neighbours."""

import os
from typing import Any, ClassVar, NoReturn

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_happo.common.agent_inputs import split_mask
from sb3_happo.common.agent_policy import AgentPolicy
from sb3_happo.common.boltzmann import Temperature, draw
from sb3_happo.common.type_aliases import AgentStep
from sb3_happo.envs.spaces import as_sampled


class MeanFieldActor(AgentPolicy):
    """
    One agent of a mean-field team. Its network reads the own observation and the mean action of the
    neighbours, and returns one value per option. The agent acts by a Boltzmann policy: an option's
    probability is proportional to ``exp(value / temperature)``.

    The mean action takes the place of the hidden states in ``predict``: ``state`` is a tuple with
    one array ``(1, batch, n_mean)``, the mean of the neighbours' last actions as one-hots, and None
    at the start of an episode, where the agent expects the running mean of the training
    (:attr:`start_mean`). Whoever deploys the agent alone fills in what it has observed.

    :param args: Arguments of ``AgentPolicy``
    :param n_mean: Number of columns of a mean action
    :param kwargs: Keyword arguments of ``AgentPolicy``
    """

    derived_kwargs: ClassVar[frozenset[str]] = AgentPolicy.derived_kwargs | {"n_mean", "args"}

    def __init__(self, *args: Any, n_mean: int, **kwargs: Any) -> None:
        # Read by `n_inputs_beside_features`, which the base class calls
        self.n_mean = n_mean
        super().__init__(*args, **kwargs)
        #: Mean action of the neighbours that is expected at the start of an episode, ``(n_mean,)``
        self.start_mean: th.Tensor
        self.register_buffer("start_mean", th.zeros(n_mean))
        #: Temperature of the Boltzmann policy, which all agents of a team share
        self.temperature = Temperature()

    def n_inputs_beside_features(self) -> int:
        """
        :return: Columns of the one-hot of the agent, if it has one, and of a mean action
        """
        return super().n_inputs_beside_features() + self.n_mean

    @classmethod
    def option_names(cls) -> set[str]:
        """
        :return: Names that ``policy_kwargs`` may hold for an agent's policy
        """
        return AgentPolicy.option_names()

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {"n_mean": self.n_mean}

    def beside(self, means: th.Tensor) -> th.Tensor:
        """
        :param means: Mean actions of the neighbours, ``(batch, n_mean)``
        :return: Inputs beside the features: the one-hot of the agent, if it has one, and the mean
            actions, ``(batch, n)``
        """
        if self.one_hot is None:
            return means
        return th.cat([self.one_hot.expand(len(means), -1), means], dim=1)

    def _features(self, obs: PyTorchObs, agent_ids: th.Tensor | None = None) -> th.Tensor:
        assert self.features_extractor is not None
        features = self.extract_features(obs, self.features_extractor)
        if agent_ids is None:
            agent_ids = self.beside(self.start_mean.expand(len(features), -1))
        return th.cat([features, agent_ids], dim=1)

    # ---------------------------------------------------------------- decisions

    def step(
        self,
        obs: PyTorchObs,
        states: th.Tensor | None = None,
        deterministic: bool = False,
        action_masks: th.Tensor | None = None,
        normals: th.Tensor | None = None,
    ) -> AgentStep:
        """
        :param obs: Own observations, ``(batch, ...)``
        :param states: Mean actions of the neighbours, ``(batch, n_mean)``; None at the start of an
            episode
        :param deterministic: Options of the highest values instead of samples
        :param action_masks: ``(batch, n_choices)``
        :param normals: None: there are no continuous actions
        :return: Raw actions, log-probabilities, and the mean actions as they were given
        """
        beside = None if states is None else self.beside(states)
        outputs, _ = self.parameters_of_actions(obs, agent_ids=beside)
        head = self.action_head
        values = head.values(outputs, action_masks)
        choices, log_probs = draw(values, head.factors, self.temperature.value, deterministic)
        return AgentStep(head.decode(choices), log_probs, states)

    def predict_encoded(
        self,
        observation: np.ndarray | dict[str, Any] | tuple[Any, ...],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[Any, tuple[np.ndarray, ...] | None]:
        """
        ``predict`` for an observation in the form of the joint observation.

        :param observation: Own entries of a joint observation, one or a batch
        :param state: Mean action of the neighbours, one array ``(1, batch, n_mean)``; None at the
            start of an episode
        :param episode_start: Mask of the rows that begin an episode, ``(batch,)``
        :param deterministic: Options of the highest values instead of samples
        :param action_masks: Action masks, as for :meth:`predict`
        :return: Action, and ``state`` as it was given
        :raises ValueError: If a mask is missing, not expected, or allows nothing, or if the mean
            action has another shape
        """
        self.set_training_mode(False)
        own, own_masks = split_mask(observation, self.observation_space)
        obs, vectorized = self.obs_to_tensor(own)
        given = own_masks if action_masks is None else action_masks
        masks = self.masks.to_tensor(given, self.device)
        first = next(iter(obs.values())) if isinstance(obs, dict) else obs
        means = self._means(state, episode_start, len(first))
        with th.no_grad():
            step = self.step(obs, means, deterministic, masks)
        actions = self.to_env_actions(step.actions.cpu().numpy())
        return (actions if vectorized else as_sampled(self.action_space, actions[0])), state

    def _means(self, state: Any, episode_start: Any, n_rows: int) -> th.Tensor | None:
        """Mean actions of ``state``, with those of the start where an episode begins."""
        if state is None:
            return None
        given = state[0] if isinstance(state, (tuple, list)) else state
        array = np.asarray(given, np.float32)
        if array.size != n_rows * self.n_mean or array.shape[-1] != self.n_mean:
            raise ValueError(
                f"`state` has the shape {array.shape}; for {n_rows} observations it must be the "
                f"mean action of the neighbours, (1, {n_rows}, {self.n_mean})."
            )
        means = th.as_tensor(array, device=self.device).reshape(n_rows, self.n_mean)
        if episode_start is None:
            return means
        starts = th.as_tensor(np.asarray(episode_start, dtype=bool).reshape(-1, 1))
        return self.start_mean.where(starts.to(self.device), means)

    # ---------------------------------------------------------------- export

    def export_onnx(
        self, path: str | os.PathLike[str], normalizer: Any = None, **kwargs: Any
    ) -> Any:
        """
        :param path: Path of the file
        :param normalizer: Normaliser of the training
        :param kwargs: Further keyword arguments
        :raises NotImplementedError: Always: the graph would have no input for the mean action
        """
        self._refuse_export()

    def export_folder(
        self, path: str | os.PathLike[str], normalizer: Any = None, **kwargs: Any
    ) -> Any:
        """
        :param path: Path of the folder
        :param normalizer: Normaliser of the training
        :param kwargs: Further keyword arguments
        :raises NotImplementedError: Always: the graph would have no input for the mean action
        """
        self._refuse_export()

    def _refuse_export(self) -> NoReturn:
        raise NotImplementedError(
            f"Agent {self.agent_name!r} needs the mean action of its neighbours beside its "
            "observation, for which exported graphs have no input; save it with `save` and load "
            "it with MeanFieldActor.load."
        )
