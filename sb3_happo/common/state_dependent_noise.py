"""
Generalised state-dependent exploration (gSDE) of one agent (Raffin, Kober and Stulp 2022, "Smooth
Exploration for Robotic Reinforcement Learning", https://arxiv.org/abs/2005.05719).

The noise of an action is a linear function of the features before the policy's last layer. Its
matrix is drawn for each environment, and stays for several steps. The distribution is SB3's
``StateDependentNoiseDistribution``: a Gaussian whose variance follows from the features and the
learned deviations, and does not depend on the matrix that was drawn.
"""

from typing import NamedTuple

import torch as th
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from torch import nn


class SdeOptions(NamedTuple):
    """
    Form of the noise, with SB3's names.

    :param full_std: A deviation for each feature and action; False for one per feature
    :param use_expln: ``expln`` instead of ``exp`` for the deviations, which grows more slowly
    :param squash_output: tanh of the actions
    """

    full_std: bool = True
    use_expln: bool = False
    squash_output: bool = False

    def distribution(self, n_actions: int) -> StateDependentNoiseDistribution:
        """
        :param n_actions: Number of continuous actions
        :return: SB3's distribution, without parameters
        """
        return StateDependentNoiseDistribution(n_actions, *self, learn_features=False)


class SdeDeviations(NamedTuple):
    """
    Deviations of state-dependent noise, in the place of the logarithms of state-independent ones.

    :param log_std: Logarithms of the deviations of the matrix, ``(n_features, n_actions)``, or
        ``(n_features, 1)`` without ``full_std``
    :param features: Features of the observations, ``(batch, n_features)``
    :param matrix: Matrix for a batch that is not one row per environment,
        ``(n_features, n_actions)``
    :param matrices: Matrix of each environment, ``(n_envs, n_features, n_actions)``
    :param options: Form of the noise
    """

    log_std: th.Tensor
    features: th.Tensor
    matrix: th.Tensor
    matrices: th.Tensor
    options: SdeOptions

    def columns(self, start: int, stop: int) -> "SdeDeviations":
        """
        :param start: First continuous action of a part of the action space
        :param stop: First continuous action after it
        :return: Deviations of this part
        """
        log_std = self.log_std[:, start:stop] if self.options.full_std else self.log_std
        return self._replace(
            log_std=log_std,
            matrix=self.matrix[:, start:stop],
            matrices=self.matrices[:, :, start:stop],
        )

    def set_parameters(
        self, distribution: StateDependentNoiseDistribution, means: th.Tensor
    ) -> StateDependentNoiseDistribution:
        """
        :param distribution: Distribution over the actions, changed in place
        :param means: Means of the actions, ``(batch, n_actions)``
        :return: ``distribution``
        """
        distribution.latent_sde_dim = self.features.shape[1]
        distribution.exploration_mat = self.matrix
        distribution.exploration_matrices = self.matrices
        return distribution.proba_distribution(means, self.log_std, self.features)


class ExplorationMatrices(nn.Module):
    """
    Matrices of the noise of one agent. They move between devices with the policy, and are not part
    of its state dict.

    :param n_features: Number of features before the policy's last layer
    :param n_actions: Number of continuous actions
    :param options: Form of the noise
    """

    matrix: th.Tensor
    matrices: th.Tensor

    def __init__(self, n_features: int, n_actions: int, options: SdeOptions) -> None:
        super().__init__()
        self.options = options
        self.n_actions = n_actions
        self.n_features = n_features
        shape = (n_features, n_actions)
        self.register_buffer("matrix", th.zeros(shape), persistent=False)
        self.register_buffer("matrices", th.zeros(1, *shape), persistent=False)

    def log_std_shape(self) -> tuple[int, int]:
        """
        :return: Shape of the learned deviations
        """
        return self.n_features, self.n_actions if self.options.full_std else 1

    def sample(self, log_std: th.Tensor, n_envs: int = 1) -> None:
        """
        Draw new matrices, in the order in which SB3 draws them.

        :param log_std: Logarithms of the deviations
        :param n_envs: Number of environments
        """
        sampler = self.options.distribution(self.n_actions)
        sampler.latent_sde_dim = self.n_features
        sampler.sample_weights(log_std.detach(), n_envs)
        self.matrix, self.matrices = sampler.exploration_mat, sampler.exploration_matrices

    def deviations(self, log_std: th.Tensor, features: th.Tensor) -> SdeDeviations:
        """
        :param log_std: Logarithms of the deviations
        :param features: Features of the observations, ``(batch, n_features)``
        :return: Deviations of the actions
        """
        return SdeDeviations(log_std, features, self.matrix, self.matrices, self.options)

    def state(self) -> list[th.Tensor]:
        """
        :return: Matrices, for a checkpoint
        """
        return [self.matrix, self.matrices]

    def restore(self, state: list[th.Tensor]) -> None:
        """
        :param state: Result of :meth:`state`
        """
        self.matrix, self.matrices = (part.to(self.matrix.device) for part in state)
