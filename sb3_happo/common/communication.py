"""Communication among agents: rounds of messages, and one agent of a team that communicates."""

import os
from typing import Any, ClassVar, NoReturn

import numpy as np
import torch as th
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_happo.common.agent_policy import AgentPolicy
from sb3_happo.common.recurrent import RecurrentKind
from sb3_happo.common.type_aliases import AgentStep, Sequences


class CannotActAloneError(ValueError):
    """An agent that decides by the messages of others was asked to act alone."""


def mean_of_others(hidden: th.Tensor, links: th.Tensor) -> th.Tensor:
    """
    :param hidden: Hidden states, ``(batch, n_agents, n)``
    :param links: 1 where the message of agent ``k`` reaches agent ``j``, at ``[:, j, k]``,
        ``(batch, n_agents, n_agents)``; the diagonal is 0
    :return: Mean of the hidden states that reach each agent, zeros where none does,
        ``(batch, n_agents, n)``
    """
    weights = links.to(hidden.dtype)
    return weights @ hidden / weights.sum(dim=2, keepdim=True).clamp(min=1.0)


def open_links(
    active: th.Tensor | None, n_rows: int, n_agents: int, device: th.device, loss: float = 0.0
) -> th.Tensor:
    """
    :param active: Active mask, ``(n_rows, n_agents)``; None for all agents
    :param n_rows: Number of rows
    :param n_agents: Number of agents
    :param device: Device
    :param loss: Probability that a message is lost, in [0, 1]
    :return: True where the message of agent ``k`` reaches agent ``j``, at ``[:, j, k]``,
        ``(n_rows, n_agents, n_agents)``. Inactive agents neither send nor receive
    """
    others = ~th.eye(n_agents, dtype=th.bool, device=device)
    links = others.unsqueeze(0).repeat(n_rows, 1, 1)
    if active is not None:
        present = active.bool()
        links &= present.unsqueeze(1) & present.unsqueeze(2)
    if loss > 0.0:
        links &= th.rand(links.shape, device=device) >= loss
    return links


class CommunicationRounds(nn.Module):
    """
    Rounds of messages: ``h_j <- f(H h_j + C c_j + S h_j^0)``, where ``c_j`` is the mean of the
    hidden states of the others and ``h_j^0`` the first one. The weights are those of all agents,
    different in each round. ``C`` is 0 at the start of training: the agents learn from their own
    observations first.

    :param n: Number of numbers of a hidden state, which is also a message
    :param n_rounds: Number of rounds, >= 1
    :param activation_fn: Activation function
    """

    def __init__(self, n: int, n_rounds: int, activation_fn: type[nn.Module]) -> None:
        super().__init__()
        self.own = nn.ModuleList(nn.Linear(n, n) for _ in range(n_rounds))
        self.others = nn.ModuleList(nn.Linear(n, n, bias=False) for _ in range(n_rounds))
        self.first = nn.ModuleList(nn.Linear(n, n, bias=False) for _ in range(n_rounds))
        self.activation = activation_fn()
        for layer in self.others:
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]

    def forward(self, hidden: th.Tensor, links: th.Tensor) -> th.Tensor:
        """
        :param hidden: First hidden states, ``(batch, n_agents, n)``
        :param links: Links of the messages, ``(batch, n_agents, n_agents)``
        :return: Hidden states after the rounds, ``(batch, n_agents, n)``
        """
        first = hidden
        for own, others, skip in zip(self.own, self.others, self.first, strict=True):
            messages = mean_of_others(hidden, links)
            hidden = self.activation(own(hidden) + others(messages) + skip(first))
        return hidden


class CommNetActor(AgentPolicy):
    """
    One agent of a team that communicates: its encoder and its last layer. Between them are the
    rounds of messages, which need the hidden states of the others. The agent can neither act nor be
    saved alone.

    With recurrent layers, their input is the features and the mean of the others' outputs at the
    step before.

    :param args: Arguments of ``AgentPolicy``
    :param kwargs: Keyword arguments of ``AgentPolicy``
    """

    derived_kwargs: ClassVar[frozenset[str]] = AgentPolicy.derived_kwargs | {"args"}

    @classmethod
    def option_names(cls) -> set[str]:
        """
        :return: Names that ``policy_kwargs`` may hold for an agent's policy
        """
        return AgentPolicy.option_names()

    def n_inputs_beside_features(self) -> int:
        """
        :return: Columns of the one-hot of the agent, if it has one, and of a message
        """
        n_message = 0
        if self.options.recurrent is not None:
            n_message = self.options.lstm_hidden_size
        return super().n_inputs_beside_features() + n_message

    @property
    def message_size(self) -> int:
        """
        :return: Number of numbers of a message
        """
        return self.head.in_features

    @property
    def recurrent(self) -> RecurrentKind | None:
        """
        :return: Kind of the recurrent layers, or None
        """
        return self.options.recurrent

    def features(self, obs: PyTorchObs, ids: th.Tensor | None) -> th.Tensor:
        """
        :param obs: Own observations, of all agents that share the network, ``(batch, ...)``
        :param ids: One-hot of the agent of each row; None for agents without
        :return: Features with the one-hots, ``(batch, n)``
        """
        assert self.features_extractor is not None
        features = self.extract_features(obs, self.features_extractor)
        return features if ids is None else th.cat([features, ids], dim=1)

    # ---------------------------------------------------------------- what one agent cannot do

    def _refuse(self, what: str) -> NoReturn:
        raise CannotActAloneError(
            f"Agent {self.agent_name!r} cannot {what} alone: it decides by the messages of the "
            "other agents. Use `predict` and `save` of the model or of its `policy`, which is the "
            "whole team; messages may get lost there, see `message_loss`."
        )

    def parameters_of_actions(
        self,
        obs: PyTorchObs,
        sequences: Sequences | None = None,
        agent_ids: th.Tensor | None = None,
    ) -> tuple[th.Tensor, th.Tensor | None]:
        """
        :param obs: Own observations
        :param sequences: Order of the rows in time
        :param agent_ids: One-hots of the agents
        :raises CannotActAloneError: Always
        """
        self._refuse("act")

    def get_distribution(self, *args: Any, **kwargs: Any) -> Distribution:
        """
        :param args: Arguments
        :param kwargs: Keyword arguments
        :raises CannotActAloneError: Always
        """
        self._refuse("act")

    def step(self, *args: Any, **kwargs: Any) -> AgentStep:
        """
        :param args: Arguments
        :param kwargs: Keyword arguments
        :raises CannotActAloneError: Always
        """
        self._refuse("act")

    def predict(self, *args: Any, **kwargs: Any) -> tuple[Any, tuple[np.ndarray, ...] | None]:
        """
        :param args: Arguments
        :param kwargs: Keyword arguments
        :raises CannotActAloneError: Always
        """
        self._refuse("act")

    def predict_encoded(
        self, *args: Any, **kwargs: Any
    ) -> tuple[Any, tuple[np.ndarray, ...] | None]:
        """
        :param args: Arguments
        :param kwargs: Keyword arguments
        :raises CannotActAloneError: Always
        """
        self._refuse("act")

    def save(self, path: Any) -> None:
        """
        :param path: Path of the file
        :raises CannotActAloneError: Always
        """
        self._refuse("be saved")

    def export_onnx(self, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """
        :param path: Path of the file
        :param args: Arguments
        :param kwargs: Keyword arguments
        :raises CannotActAloneError: Always
        """
        self._refuse("be exported")

    def export_folder(self, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """
        :param path: Path of the folder
        :param args: Arguments
        :param kwargs: Keyword arguments
        :raises CannotActAloneError: Always
        """
        self._refuse("be exported")
