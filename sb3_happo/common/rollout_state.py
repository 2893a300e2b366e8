"""State of the collection of rollouts between two steps."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_happo.common.agent_returns import AgentReturns
from sb3_happo.common.episode_states import with_layout
from sb3_happo.common.exploration import Exploration
from sb3_happo.common.joint_policy import JointPolicy
from sb3_happo.common.last_good import check_next_outputs
from sb3_happo.common.multi_agent_algorithm import MultiAgentAlgorithm
from sb3_happo.common.observation_scale import warn_of_observations, warn_of_values
from sb3_happo.common.on_policy_loop import OnPolicyLoop
from sb3_happo.common.plain_state import plain_copy
from sb3_happo.common.rollout_buffer import MultiAgentRolloutBuffer
from sb3_happo.common.type_aliases import RNNStates
from sb3_happo.common.value_norm import DiscountedSums
from sb3_happo.vec_env.step_facts import initial_facts
from sb3_happo.vec_env.transitions import TransitionWatch

# Attributes that are not saved
_OF_RUNNING_EPISODES = (
    "_last_states",
    "_last_own_values",
    "_agent_returns",
    "_absent_agents",
    "_discounted_sums",
    "_exploration",
    "_presence_checked",
    "_watch",
)


class CollectorState(NamedTuple):
    """
    State of the collection of rollouts between two steps.

    :param obs: Observations that the team answers next, each entry ``(n_envs, ...)``
    :param episode_starts: True where they begin an episode, ``(n_envs,)``
    :param active: Active mask of them, ``(n_envs, n_agents)``; None for all agents
    :param states: Hidden states of the team
    :param own_values: Values of each agent's last active step in the running episodes,
        ``(n_envs, n_values)``
    """

    obs: dict[str, Any]
    episode_starts: np.ndarray
    active: np.ndarray | None
    states: RNNStates
    own_values: th.Tensor


class RolloutState(MultiAgentAlgorithm, OnPolicyLoop):
    """
    State from which an on-policy algorithm continues to collect rollouts. It begins anew if
    somebody else has reset or stepped the training environment.
    """

    policy: JointPolicy  # type: ignore[assignment]
    _last_active: np.ndarray | None
    _exploration: Exploration
    #: True after the first rollout, whose observations are compared with unit scale
    _scales_checked = False
    #: Watch of the training environment, and the number of the last step that training has made
    _watch: TransitionWatch | None = None
    _last_transition: int | None = None

    def _check_result(self) -> None:
        """
        :raises NotFiniteError: If weights, or outputs of the networks, are NaN or infinite
        """
        super()._check_result()
        check_next_outputs(self)

    def _make_agent_log(self) -> None:
        """Prepare the log of the agents' returns and absences."""
        self._agent_returns = AgentReturns(self.agents, self.n_envs, self._stats_window_size)
        self._presence_checked = False

    def _reset_collector(self) -> None:
        self._agent_returns.restart()
        self._last_states = self.policy.initial_states(self.n_envs)
        n_values = self.critic.n_values
        self._last_own_values = th.zeros(self.n_envs, n_values, device=self.device)
        self._discounted_sums = DiscountedSums(self.n_envs, n_values, self.gamma, self.device)

    @property
    def collector_state(self) -> CollectorState:
        """
        :return: State of the collection of rollouts, as :meth:`collect_rollouts` continues it
        """
        assert isinstance(self._last_obs, dict), "No previous observation was provided"
        assert self._last_episode_starts is not None
        return CollectorState(
            self._last_obs,
            self._last_episode_starts,
            self._last_active,
            self._last_states,
            self._last_own_values,
        )

    @collector_state.setter
    def collector_state(self, state: CollectorState) -> None:
        self._last_obs = state.obs
        self._last_episode_starts = state.episode_starts
        self._last_active = state.active
        self._last_states = state.states
        self._last_own_values = state.own_values

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        assert self.env is not None
        if self._watch is None or self._watch.env is not self.env:
            self._watch = TransitionWatch(self.env)
        self._continue_ended_training()
        before, episodes = self._last_obs, self.ep_info_buffer
        result = super()._setup_learn(*args, **kwargs)
        if self.ep_info_buffer is not episodes:
            self._agent_returns.clear()
        if self._last_obs is not before:
            # The environments were reset
            self._begin_episodes(self._last_obs)
        return result

    def _begin_episodes(self, obs: Any) -> None:
        """Continue from the observations ``obs`` that a reset of all environments returned."""
        assert self.env is not None and self._watch is not None
        self._last_obs = obs
        self._last_episode_starts = np.ones(self.n_envs, dtype=bool)
        self._last_active = initial_facts(self.env, len(self.agents)).active
        self._last_transition = self._watch.last
        self._reset_collector()
        no_rewards = th.zeros(self.n_envs, 1, device=self.device)
        tensors = self._to_tensors(obs)
        self._check_step(tensors, no_rewards, [])
        if not self._scales_checked:
            # Before the first rollout only large ones: a new VecNormalize returns nearly zeros
            warn_of_observations(self, self.policy, tensors, small=False)

    def _checkpoint_state(self) -> dict[str, Any]:
        collector = self.collector_state
        own = {
            "obs": dict(collector.obs),
            "episode_starts": collector.episode_starts,
            "active": collector.active,
            "actor_states": collector.states.pi,
            "critic_states": collector.states.vf,
            "own_values": collector.own_values,
            "agent_returns": self._agent_returns.state(),
            "discounted_sums": self._discounted_sums.state(),
            "exploration": self._exploration.state(),
        }
        return super()._checkpoint_state() | {"rollouts": plain_copy(own)}

    def _restore_checkpoint_state(self, state: dict[str, Any]) -> None:
        super()._restore_checkpoint_state(state)
        assert self._watch is not None
        own = state["rollouts"]
        self._agent_returns.restore(own["agent_returns"])
        self._discounted_sums.restore(own["discounted_sums"])
        if "exploration" in own:
            # Checkpoints of before the correlated noise have none
            self._exploration.restore(own["exploration"])
        actor_states = {agent: part.to(self.device) for agent, part in own["actor_states"].items()}
        critic_states = own["critic_states"]
        if critic_states is not None:
            critic_states = critic_states.to(self.device)
        self.collector_state = CollectorState(
            with_layout(own["obs"], self._last_obs),
            own["episode_starts"],
            own["active"],
            RNNStates(actor_states, critic_states),
            own["own_values"].to(self.device),
        )
        self._last_transition = self._watch.last

    def _env_has_moved(self) -> bool:
        """
        :return: True if somebody else has reset or stepped the training environment since the last
            step of the training, so that the last observations are not those of its present state
        """
        assert self._watch is not None
        return self._watch.last != self._last_transition

    def _clip_values(
        self, values: th.Tensor, rollout_buffer: MultiAgentRolloutBuffer | None = None
    ) -> th.Tensor:
        """
        Clip normalised values to bounds that follow from all rewards so far.

        :param values: Values to bootstrap with, ``(n, n_values)``
        :param rollout_buffer: Rollout whose values are clipped too, in place
        :return: Clipped values, ``(n, n_values)``; unchanged where values are not normalised
        """
        norm = self.critic.value_norm
        if norm is None:
            return values
        norm.extend_bounds(self._discounted_sums.lowest, self._discounted_sums.highest)
        if rollout_buffer is not None:
            rollout_buffer.clip_values(norm.clip)
        return norm.clip(values)

    def _check_scales(self, rollout_buffer: MultiAgentRolloutBuffer) -> None:
        """Warn once of observations far from unit scale, and of values far from the returns."""
        if not self._scales_checked:
            self._scales_checked = True
            warn_of_observations(self, self.policy, rollout_buffer.observations)
        warn_of_values(self, self.critic, rollout_buffer)

    def _note_absent_agents(self, present: Sequence[str]) -> None:
        """
        Leave agents without a single sample out of the log; warn of those of the first rollout.

        :param present: Agents that were active at some step of the rollout
        """
        self._absent_agents = frozenset(self.agents).difference(present)
        warned, self._presence_checked = self._presence_checked, True
        if self._absent_agents and not warned:
            names = ", ".join(repr(agent) for agent in self.agents if agent not in present)
            warnings.warn(
                f"No observation of {names} came in the first rollout ({self.n_steps} steps of "
                f"{self.n_envs} environments). An agent is not trained while it is absent, and its "
                "figures are left out of the log. If it never takes part, take it out of the list "
                "of agents, or name the others: JointEnv(env, agents=[...]).",
                stacklevel=2,
            )

    def dump_logs(self, iteration: int = 0) -> None:
        """
        Write the log, with the mean return of each agent's own rewards.

        :param iteration: Number of the present iteration
        """
        for agent, value in self._agent_returns.means().items():
            self.logger.record(f"rollout/{self._log_names[agent]}/ep_rew_mean", value)
        super().dump_logs(iteration)

    def _excluded_save_params(self) -> list[str]:
        # Hidden states belong to the running environments, as in sb3-contrib's RecurrentPPO
        return [*super()._excluded_save_params(), *_OF_RUNNING_EPISODES]


def warn_of_lost_episodes() -> None:
    """Warn that somebody else has moved the training environment during ``learn``."""
    warnings.warn(
        "The training environment was reset or stepped by something else during learn(), such as a "
        "callback that evaluates on it. The running episodes are cut off there, as by a time "
        "limit, and new ones begin. Evaluate on an environment of its own.",
        stacklevel=3,
    )
