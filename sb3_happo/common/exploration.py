"""Exploration in rollouts: state-dependent noise, and correlated draws of Gaussian policies."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_happo.common.agent_policy import AgentPolicy
from sb3_happo.common.correlated_noise import (
    ExplorationNoise,
    added_noise_words,
    continuous_sizes,
    noise_of_agents,
)
from sb3_happo.common.hyperparameters import Setting

#: Steps between two draws of the matrices of gSDE
SDE_SAMPLE_FREQ = Setting(
    "a whole number, at least 1, or -1 for one draw per rollout",
    lambda value: value >= 1 or value == -1,
    whole=True,
)


class Exploration:
    """
    Noise of a team during rollouts.

    :param policies: Policies by agent
    :param action_space: Joint action space
    :param exploration_noise: Correlation of the draws, see
        :func:`~sb3_happo.common.correlated_noise.noise_of_agents`
    :param sde_sample_freq: Steps between two draws of the matrices of gSDE; -1 for one per rollout
    :param device: Device of the policies
    :raises ValueError: If an agent has both kinds of noise
    """

    def __init__(
        self,
        policies: Mapping[str, AgentPolicy],
        action_space: spaces.Dict,
        exploration_noise: ExplorationNoise = None,
        sde_sample_freq: int = -1,
        device: th.device | str = "cpu",
    ) -> None:
        self._sde_sample_freq = sde_sample_freq
        self._device = device
        self._sde_policies: dict[str, AgentPolicy] = {}
        for agent, policy in policies.items():
            if policy.sde is not None:
                self._sde_policies[agent] = policy
        sizes = continuous_sizes(action_space)
        self._processes = {}
        for agent, noise in noise_of_agents(exploration_noise, action_space).items():
            if agent in self._sde_policies:
                raise ValueError(
                    f"agent {agent!r} has state-dependent noise (use_sde=True), which is correlated"
                    " over time by itself; omit exploration_noise for this agent, or gSDE."
                )
            self._processes[agent] = noise.process(sizes[agent], device)

    def reset_sde(self, n_envs: int) -> None:
        """
        Draw new matrices of gSDE.

        :param n_envs: Number of environments, each with a matrix of its own
        """
        for policy in self._sde_policies.values():
            policy.reset_noise(n_envs)

    def before_step(self, n_steps: int, starts: np.ndarray) -> dict[str, th.Tensor]:
        """
        :param n_steps: Steps of this rollout so far
        :param starts: True where an episode begins, ``(n_envs,)``
        :return: Standard normal numbers of the agents whose draws are correlated,
            ``(n_envs, n_continuous)``
        """
        if self._sde_sample_freq > 0 and n_steps % self._sde_sample_freq == 0:
            self.reset_sde(len(starts))
        if not self._processes:
            return {}
        flags = th.as_tensor(starts, dtype=th.bool, device=self._device)
        return {agent: process.draw(flags) for agent, process in self._processes.items()}

    def state(self) -> dict[str, Any]:
        """
        :return: Matrices of gSDE and states of the processes, by agent, for a checkpoint
        """
        matrices = {}
        for agent, policy in self._sde_policies.items():
            assert policy.sde is not None
            matrices[agent] = policy.sde.state()
        processes = {agent: process.state() for agent, process in self._processes.items()}
        return {"matrices": matrices, "processes": processes}

    def restore(self, state: Mapping[str, Any]) -> None:
        """
        :param state: Result of :meth:`state` with the same settings; entries of other agents are
            ignored
        """
        for agent, policy in self._sde_policies.items():
            if agent in state["matrices"] and policy.sde is not None:
                policy.sde.restore(state["matrices"][agent])
        for agent, process in self._processes.items():
            if agent in state["processes"]:
                process.restore(state["processes"][agent])


def check_exploration(model: Any) -> None:
    """
    Check the settings of the exploration, before networks are made.

    :param model: On-policy algorithm with its settings and action space
    :raises ValueError: If gSDE or correlated noise is asked for without continuous actions, or
        noise is to be added to actions
    """
    name = type(model).__name__
    for setting in ("use_sde", "target_critic"):
        if setting in model.policy_kwargs:
            argument = setting if setting == "use_sde" else "target_critic_tau"
            raise ValueError(
                f"policy_kwargs has {setting!r}, which follows from an argument of {name}: pass "
                f"{name}(..., {argument}=...). For a single agent gSDE is set in "
                'policy_kwargs["agent_kwargs"][agent]["use_sde"].'
            )
    if not isinstance(model.use_sde, bool):
        raise ValueError(f"use_sde must be True or False, not {model.use_sde!r}")
    if model.use_sde and not any(continuous_sizes(model.action_space).values()):
        raise ValueError(
            "use_sde=True: generalised state-dependent exploration (gSDE) needs continuous actions,"
            f" and no agent has some: the team has {dict(model.action_space.spaces)}. Omit it; "
            "discrete actions are explored by sampling (ent_coef)."
        )
    noise_of_agents(model.exploration_noise, model.action_space)


def refuse_action_noise(action_noise: Any) -> None:
    """
    :param action_noise: Argument of an on-policy algorithm
    :raises ValueError: If it is not None
    """
    if action_noise is not None:
        raise ValueError(added_noise_words("action_noise", action_noise))
