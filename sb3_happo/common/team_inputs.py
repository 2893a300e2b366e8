"""Inputs of a team whose agents decide together, in ``predict``."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch as th

from sb3_happo.common.agent_inputs import split_mask
from sb3_happo.common.team_prediction import AgentAnswer
from sb3_happo.envs.spaces import as_sampled


class TeamInputs:
    """
    Observations of some agents as one joint observation. Those of the others are zeros.

    :param policy: The team, a ``MultiAgentPolicy``
    :param own: Observations by agent, at least one
    :param masks: Action masks by agent
    :raises ValueError: If a mask is missing or not expected, or if the agents' observations are of
        different batches
    """

    def __init__(self, policy: Any, own: Mapping[str, Any], masks: Mapping[str, Any]) -> None:
        self.policy = policy
        #: Joint observation with the action masks, each entry ``(n_rows, ...)``
        self.observations: dict[str, th.Tensor] = {}
        self.present = set(own)
        sizes: dict[str, tuple[int, bool]] = {}
        for agent, observation in own.items():
            sizes[agent] = self._add(agent, observation, masks.get(agent))
        self._check_sizes(sizes)
        self.n_rows, self.batched = next(iter(sizes.values()))
        for agent in policy.agents:
            if agent not in own:
                self._add_zeros(agent)

    def _add(self, agent: str, observation: Any, mask: Any) -> tuple[int, bool]:
        """
        :param agent: Name of the agent
        :param observation: Observation, one or a batch
        :param mask: Action mask, or None
        :return: Number of rows, and whether they are a batch
        """
        policy = self.policy.policies[agent]
        if policy.training:
            policy.set_training_mode(False)
        try:
            own, own_mask = split_mask(observation, policy.observation_space)
            obs, batched = policy.obs_to_tensor(own)
            given = policy.masks.to_tensor(own_mask if mask is None else mask, policy.device)
        except ValueError as error:
            raise ValueError(f"agent {agent!r}: {error}") from error
        if isinstance(obs, dict):
            for key, value in obs.items():
                self.observations[f"{agent}/{key}"] = value
        else:
            self.observations[agent] = obs
        if given is not None:
            self.observations[self.policy.team_spaces.mask_keys[agent]] = given
        first = next(iter(obs.values())) if isinstance(obs, dict) else obs
        return len(first), batched

    def _add_zeros(self, agent: str) -> None:
        team = self.policy.team_spaces
        keys = [*team.keys[agent], team.mask_keys[agent]]
        like = next(iter(self.observations.values()))
        for key in keys:
            space = team.observation_space.spaces.get(key)
            if space is not None:
                shape = (self.n_rows, *(space.shape or ()))
                dtype = th.as_tensor(np.zeros(0, space.dtype)).dtype
                self.observations[key] = th.zeros(shape, dtype=dtype, device=like.device)

    def _check_sizes(self, sizes: Mapping[str, tuple[int, bool]]) -> None:
        if len(set(sizes.values())) > 1:
            counts = []
            for agent, (size, batched) in sizes.items():
                words = f"of {size}" if batched else "of one, without a batch"
                counts.append(f"{agent!r} {words}")
            raise ValueError(
                "The agents' observations must be of the same environments; they are "
                f"{', '.join(counts)}."
            )

    def active_mask(self, active: Mapping[str, np.ndarray]) -> th.Tensor:
        """
        :param active: Active mask of each agent, ``(n_rows,)``; empty if the observation has none
        :return: Mask of the agents with an observation that are active, ``(n_rows, n_agents)``
        """
        columns = []
        for agent in self.policy.agents:
            own = np.full(self.n_rows, agent in self.present)
            if agent in active:
                own = own & active[agent]
            columns.append(own)
        return th.as_tensor(np.stack(columns, axis=1), device=self.policy.device)

    def answers(self, group: Sequence[str], raw: th.Tensor) -> dict[str, AgentAnswer]:
        """
        :param group: Agents of equal spaces
        :param raw: Raw actions of one agent after the other, ``(n_group * n_rows, action_dim)``
        :return: Decisions of the agents of the group, without hidden states
        """
        policy = self.policy.policies[group[0]]
        taken = policy.to_env_actions(raw.cpu().numpy())
        results = {}
        for index, agent in enumerate(group):
            own = taken[index * self.n_rows : (index + 1) * self.n_rows]
            action = own if self.batched else as_sampled(policy.action_space, own[0])
            results[agent] = AgentAnswer(action, None, self.batched)
        return results
