"""Checks of the settings and files of the off-policy algorithms."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from gymnasium import spaces
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_happo.common.multi_agent_policy import MultiAgentPolicy
from sb3_happo.common.off_policy_policy import OffPolicyJointPolicy
from sb3_happo.common.replay_buffer import JointReplayBuffer


def check_policy_name(policy: Any, algorithm: str, known: Mapping[str, type]) -> None:
    """
    :param policy: Policy argument of the constructor
    :param algorithm: Name of the algorithm
    :param known: Policies by name
    :raises ValueError: If it is recurrent, or a policy of the on-policy algorithms
    """
    is_team = isinstance(policy, type) and issubclass(policy, MultiAgentPolicy)
    name = policy.__name__ if is_team else policy
    if isinstance(name, str) and ("Lstm" in name or "Gru" in name):
        raise ValueError(
            f"{algorithm} has no recurrent policies, such as {name!r}: its replay buffer holds "
            f"single transitions. There are {list(known)}; HAPPO and its relatives have "
            "'MlpLstmPolicy' and 'MlpGruPolicy'."
        )
    if is_team and not issubclass(policy, OffPolicyJointPolicy):
        needed = next(iter(known.values())).__name__
        raise ValueError(
            f"{algorithm} needs critics of actions, which {name} does not have; pass a subclass of "
            f"{needed}, or 'MlpPolicy'."
        )


def refuse_sde(use_sde: Any, policy_kwargs: Mapping[str, Any] | None, algorithm: str) -> None:
    """
    :param use_sde: SB3's setting
    :param policy_kwargs: Keyword arguments of the policy
    :param algorithm: Name of the algorithm
    :raises ValueError: If state-dependent noise is asked for
    """
    if use_sde or (policy_kwargs or {}).get("use_sde"):
        raise ValueError(
            f"{algorithm} has no generalised state-dependent exploration (gSDE), use_sde=True; it "
            "is for the on-policy algorithms, such as HAPPO. Omit it: a soft actor-critic explores "
            "by its entropy, a deterministic one by action_noise."
        )


def check_buffer_class(buffer_class: Any, optimize_memory_usage: bool) -> None:
    """
    :param buffer_class: Class of the replay buffer, or None
    :param optimize_memory_usage: SB3's setting
    :raises ValueError: If a team's transitions cannot be kept in such a buffer
    """
    if optimize_memory_usage:
        raise ValueError(
            "optimize_memory_usage=True is not supported: the replay buffer keeps time limits "
            "apart from terminations, as SB3's does without it. Reduce buffer_size instead."
        )
    if buffer_class is None:
        return
    if not isinstance(buffer_class, type):
        raise ValueError(f"replay_buffer_class must be a class, not {buffer_class!r}")
    if issubclass(buffer_class, HerReplayBuffer):
        raise ValueError(
            f"replay_buffer_class={buffer_class.__name__}: hindsight experience replay needs the "
            "goals of a single agent, which a team does not have. Omit it, or give the team a "
            "shaped reward."
        )
    if not issubclass(buffer_class, JointReplayBuffer):
        raise ValueError(
            f"replay_buffer_class={buffer_class.__name__} cannot hold the actions and rewards of a "
            "team; pass a subclass of sb3_happo.common.replay_buffer.JointReplayBuffer, or omit it."
        )


def check_learning_starts(learning_starts: int, total_timesteps: int) -> None:
    """
    :param learning_starts: Number of timesteps before the first update
    :param total_timesteps: Number of timesteps at the end of the training
    :raises ValueError: If there would be no update
    """
    # SB3 updates once the number of timesteps is above learning_starts; 0 timesteps are no training
    if learning_starts >= total_timesteps > 0:
        raise ValueError(
            f"learning_starts={learning_starts} is not below total_timesteps={total_timesteps}: "
            "the team would act at random and learn nothing. Reduce learning_starts, or train "
            "longer."
        )


def check_loaded_buffer(
    buffer: Any, observation_space: spaces.Space, action_space: spaces.Space, n_envs: int
) -> None:
    """
    :param buffer: Object of a file
    :param observation_space: Observation space of the model
    :param action_space: Action space of the model
    :param n_envs: Number of environments of the model
    :raises ValueError: If it is no buffer of this team in this number of environments
    """
    if not isinstance(buffer, JointReplayBuffer):
        raise ValueError(
            f"The file holds a {type(buffer).__name__}, not the replay buffer of a team "
            "(JointReplayBuffer); load a file that save_replay_buffer of this package has written."
        )
    check_team_of_buffer(
        TeamOfBuffer(buffer.observation_space, buffer.team_action_space, buffer.n_envs),
        TeamOfBuffer(observation_space, action_space, n_envs),
    )


class TeamOfBuffer(NamedTuple):
    """
    Team whose transitions a replay buffer holds.

    :param observation_space: Joint observation space
    :param action_space: Joint action space
    :param n_envs: Number of environments
    """

    observation_space: spaces.Space
    action_space: spaces.Space
    n_envs: int

    @property
    def agents(self) -> list[str]:
        """
        :return: Names of the agents
        """
        return list(getattr(self.action_space, "spaces", ()))


def check_team_of_buffer(theirs: TeamOfBuffer, ours: TeamOfBuffer) -> None:
    """
    :param theirs: Team of a file
    :param ours: Team of the model
    :raises ValueError: If they differ
    """
    if theirs.agents != ours.agents:
        raise ValueError(
            f"The replay buffer is of the team {theirs.agents}, and the model's team is "
            f"{ours.agents}; load the buffer of this team."
        )
    for kind, saved, own in (
        ("action", theirs.action_space, ours.action_space),
        ("observation", theirs.observation_space, ours.observation_space),
    ):
        if saved != own:
            raise ValueError(
                f"The replay buffer is of a team with other {kind} spaces: {saved} in the file, "
                f"{own} in the model; load the buffer of this team."
            )
    if theirs.n_envs != ours.n_envs:
        raise ValueError(
            f"The replay buffer holds transitions of {theirs.n_envs} environments, and the model "
            f"has {ours.n_envs}; load the model with {theirs.n_envs} environments, or collect anew."
        )
