"""Individual rewards behind wrappers that change the team's reward."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, is_vecenv_wrapped, unwrap_vec_normalize

from sb3_happo.vec_env import VecTeamOfOne
from sb3_happo.vec_env.step_facts import StepFacts

#: ``team_reward`` of :class:`~sb3_happo.JointEnv`
Aggregation: TypeAlias = str | Callable[[np.ndarray], float]
# Share of the largest reward by which rounding in float32 may change a team's reward
_TOLERANCE = 1e-5


class OwnRewards:
    """
    Individual rewards of a training environment. ``VecNormalize`` normalises them as well; other
    wrappers change the team's reward only, which is noticed and refused.

    :param env: Training environment
    :param agents: Names of the agents
    :param algorithm: Name of the algorithm, for errors
    """

    def __init__(self, env: VecEnv, agents: Sequence[str], algorithm: str) -> None:
        self.env = env
        self._agents = list(agents)
        self._algorithm = algorithm
        self._aggregation = self._get_aggregation()

    def __call__(self, rewards: Any, facts: StepFacts) -> Any:
        """
        :param rewards: Team rewards as they arrived, ``(n_envs,)``
        :param facts: Facts of the step
        :return: Individual rewards, ``(n_envs, n_agents)``, normalised where the team's are
        :raises ValueError: If a wrapper has changed the team's reward, and not the individual ones
        """
        # Tensors come from a simulator without wrappers
        if isinstance(rewards, np.ndarray) and np.isfinite(facts.agent_rewards).all():
            self._check(rewards, facts)
        if facts.normalized_agent_rewards is not None:
            return facts.normalized_agent_rewards
        return facts.agent_rewards

    def _get_aggregation(self) -> Aggregation | None:
        """The environment's ``team_reward``; None if it has none."""
        if is_vecenv_wrapped(self.env, VecTeamOfOne):
            return "mean"  # of one agent
        try:
            if self.env.has_attr("team_reward"):
                return self.env.get_attr("team_reward", 0)[0]
        except NotImplementedError:
            pass
        return None

    def _check(self, rewards: np.ndarray, facts: StepFacts) -> None:
        normalizer = unwrap_vec_normalize(self.env)
        normalizes = normalizer is not None and normalizer.norm_reward
        if normalizes and facts.normalized_agent_rewards is None:
            raise ValueError(
                f"{self._algorithm} learns from each agent's own reward, which "
                f"{type(normalizer).__name__} does not normalise; use "
                "sb3_happo.vec_env.VecNormalizeTeam, or norm_reward=False."
            )
        wrong = self._changed(rewards, facts)
        if len(wrong):
            # It may have been set in the meantime
            self._aggregation = self._get_aggregation()
            wrong = self._changed(rewards, facts)
        if len(wrong):
            row = int(wrong[0])
            own = dict(zip(self._agents, facts.agent_rewards[row].tolist(), strict=True))
            raise ValueError(
                f"{self._algorithm} learns from each agent's own reward, and a wrapper has "
                f"changed the team's reward only: {rewards[row]:.6g} arrived (environment {row}), "
                f"which is not team_reward={self._aggregation!r} of {own}. Let the wrapper change "
                'info["agent_rewards"] too, or wrap the env before it is joined '
                "(make_joint_vec_env(..., wrappers=[...])); VecNormalize may stay. MAPPO learns "
                "from the team's reward."
            )

    def _changed(self, rewards: np.ndarray, facts: StepFacts) -> np.ndarray:
        """Indices of the environments whose team reward is not that of the individual rewards."""
        own = facts.agent_rewards
        if self._aggregation is None:
            return np.zeros(0, np.int64)
        expected = self._join(np.asarray(own, dtype=np.float64))
        tolerance = _TOLERANCE * (1.0 + np.abs(own).sum(axis=1))
        normalizer = unwrap_vec_normalize(self.env)
        if normalizer is not None and normalizer.norm_reward:
            tolerance = np.abs(normalizer.normalize_reward(tolerance))
            expected = normalizer.normalize_reward(expected)
        return np.flatnonzero(np.abs(rewards - expected) > tolerance + _TOLERANCE * np.abs(rewards))

    def _join(self, own: np.ndarray) -> np.ndarray:
        """Team rewards ``(n_envs,)`` of individual rewards ``(n_envs, n_agents)``."""
        aggregation = self._aggregation
        if aggregation == "mean":
            return own.mean(axis=1)
        if aggregation == "sum":
            return own.sum(axis=1)
        if callable(aggregation):
            return np.array([float(aggregation(row)) for row in own])
        return own[:, self._agents.index(str(aggregation))]
