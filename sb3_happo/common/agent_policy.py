"""One agent's policy: decisions, and actions in the environment."""

import os
from typing import Any, ClassVar

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_happo.common.actor_network import ActorNetwork
from sb3_happo.common.agent_inputs import split_mask, state_tensor
from sb3_happo.common.distributions import draw_actions
from sb3_happo.common.export import CheckResult, export
from sb3_happo.common.recurrent import single_steps
from sb3_happo.common.saved_files import Kind
from sb3_happo.common.saved_policy import SavedPolicy
from sb3_happo.common.type_aliases import AgentStep
from sb3_happo.envs.encodings import encode_observation
from sb3_happo.envs.spaces import as_sampled


class AgentPolicy(SavedPolicy, ActorNetwork):
    """
    One agent's actor: a complete SB3 policy that acts on its own observation alone, without the
    other agents, the state and the critic. ``predict`` returns actions of the environment: Box
    actions scaled and clipped to their bounds, Discrete ones counted from ``start``.

    See :class:`~sb3_happo.common.actor_network.ActorNetwork` for the parameters.
    """

    file_kind: ClassVar[Kind] = "agent"

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
        :param states: Hidden states before the step, ``(batch, n_parts, n_layers, hidden_size)``;
            None for a policy without memory, or at the start of an episode
        :param deterministic: Most likely action instead of a sample
        :param action_masks: ``(batch, n_choices)``
        :param normals: Standard normal numbers from which continuous actions are drawn,
            ``(batch, n_continuous)``; None for independent ones
        :return: Raw actions, log-probabilities, and the hidden states after the step
        """
        sequences = None if states is None else single_steps(states)
        latent, states = self._latent(obs, sequences)
        distribution = self._distribution(latent, action_masks)
        actions = draw_actions(distribution, deterministic, normals)
        log_probs = distribution.log_prob(actions)
        return AgentStep(actions.reshape(len(actions), -1), log_probs, states)

    def forward(
        self, obs: PyTorchObs, deterministic: bool = False, action_masks: th.Tensor | None = None
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        :param obs: Own observations, ``(batch, ...)``; for a recurrent policy first ones of
            episodes
        :param deterministic: Most likely action instead of a sample
        :param action_masks: ``(batch, n_choices)``
        :return: Raw actions ``(batch, action_dim)`` and the log-probability of each whole action
            ``(batch,)``
        """
        step = self.step(obs, None, deterministic, action_masks)
        return step.actions, step.log_probs

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self.forward(observation, deterministic)[0]

    def predict(
        self,
        observation: np.ndarray | dict[str, Any] | tuple[Any, ...],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[Any, tuple[np.ndarray, ...] | None]:
        """
        Action of the agent for its own observation, one or a batch of them.

        :param observation: Own observation, in the form in which the environment returns it; where
            the agent has action masks also PettingZoo's form
            ``{"observation": ..., "action_mask": ...}``
        :param state: Hidden states that the call for the step before returned (an LSTM's hidden and
            cell state, or a GRU's hidden state), each ``(n_layers, batch, hidden_size)``; None at
            the start
        :param episode_start: Mask of the rows that begin an episode, so that their hidden states
            are reset, ``(batch,)``; None for no row
        :param deterministic: Most likely action instead of a sample
        :param action_masks: 1 where a choice is legal, ``(n_choices,)`` or ``(batch, n_choices)``,
            or nested as the environment gives it
        :return: Action that the environment takes (for a batch: an array of them), and the next
            hidden states
        :raises ValueError: If the agent was trained with action masks and none is given, or without
            and one is given, or if a mask allows nothing, or if an observation is not in its space
        """
        own, own_masks = split_mask(observation, self.observation_space)
        own = encode_observation(self.observation_space, own)
        given = own_masks if action_masks is None else action_masks
        return self.predict_encoded(own, state, episode_start, deterministic, given)

    def predict_encoded(
        self,
        observation: np.ndarray | dict[str, Any] | tuple[Any, ...],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[Any, tuple[np.ndarray, ...] | None]:
        """
        :meth:`predict` for an observation in the form of the joint observation, which is the
        environment's own for most spaces; see :mod:`sb3_happo.envs.encodings`.

        :param observation: Own entries of a joint observation, one or a batch
        :param state: Hidden states, as for :meth:`predict`
        :param episode_start: Mask of the rows that begin an episode, ``(batch,)``
        :param deterministic: Most likely action instead of a sample
        :param action_masks: Action masks, as for :meth:`predict`
        :return: Action, and the next hidden states
        :raises ValueError: If a mask is missing, not expected, or allows nothing
        """
        self.set_training_mode(False)
        own, own_masks = split_mask(observation, self.observation_space)
        obs, vectorized = self.obs_to_tensor(own)
        given = own_masks if action_masks is None else action_masks
        masks = self.masks.to_tensor(given, self.device)
        states = None
        if self.memory is not None:
            states = state_tensor(state, episode_start, self.device)
        with th.no_grad():
            step = self.step(obs, states, deterministic, masks)
        env_actions = self.to_env_actions(step.actions.cpu().numpy())
        if step.states is not None:
            # (batch, n_parts, n_layers, hidden_size) -> n_parts x (n_layers, batch, hidden_size)
            state = tuple(step.states.permute(1, 2, 0, 3).cpu().numpy())
        return (env_actions if vectorized else as_sampled(self.action_space, env_actions[0])), state

    def to_env_actions(self, actions: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """
        Convert raw actions to actions of the environment.

        :param actions: Raw actions, ``(batch, action_dim)``
        :param out: Array for the result; a new array by default
        :return: ``(batch, ...)``, a structured array where the action space is nested
        """
        return self.env_actions.to_arrays(actions, out)

    def to_env_tensor(self, actions: th.Tensor) -> th.Tensor:
        """
        :meth:`to_env_actions` for tensors, on their device, and plain action spaces.

        :param actions: Raw actions, ``(batch, action_dim)``
        :return: ``(batch, ...)``
        """
        return self.env_actions.to_tensor(actions)

    def export_onnx(
        self, path: str | os.PathLike[str], normalizer: Any = None, **kwargs: Any
    ) -> CheckResult:
        """
        Write the deterministic policy into an ONNX file, which is compared with :meth:`predict`
        before; see :func:`sb3_happo.common.export.export`.

        :param path: Path of the file
        :param normalizer: ``VecNormalize`` of the training, which becomes part of the file; None
            if the training had none
        :param kwargs: Further keyword arguments of ``export``
        :return: Result of the comparison
        """
        return export(self, path, "onnx", normalizer, **kwargs)

    def export_folder(
        self, path: str | os.PathLike[str], normalizer: Any = None, **kwargs: Any
    ) -> CheckResult:
        """
        Write a folder with the policy as an ONNX file, a card, examples, and ``run.py``, which acts
        with ONNX Runtime and NumPy alone; see :func:`sb3_happo.common.export.export`.

        :param path: Path of the folder
        :param normalizer: ``VecNormalize`` of the training, which becomes part of the file; None
            if the training had none
        :param kwargs: Further keyword arguments of ``export``
        :return: Result of the comparison
        """
        return export(self, path, "folder", normalizer, **kwargs)
