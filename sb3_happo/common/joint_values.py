"""Values of all joint actions of a team: a dueling network of the state, and the team's policy."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from sb3_happo.common.action_critics import observed_space
from sb3_happo.common.networks import NetworkOptions, make_body, make_optimizer
from sb3_happo.common.state_critics import critic_keys
from sb3_happo.common.value_policy import IndependentValuePolicy
from sb3_happo.envs.spaces import STATE
from sb3_happo.suggestions import check_names

#: Largest number of joint actions
MAX_JOINT_ACTIONS = 4096


class JointValueCritic(BaseModel):
    """
    Dueling network (Wang et al. 2016, arXiv 1511.06581) of the state, with a value for each joint
    action. A joint action is a number whose digits are the agents' choices.

    :param observation_space: Joint observation space, with a state
    :param factors: Number of options of each choice of the agents, side by side
    :param lr_schedule: Learning rate over the remaining progress
    :param options: Network options; of ``net_arch`` the hidden layers "qf" ("vf") are used
    :raises ValueError: If the joint observation holds no state
    """

    optimizer: th.optim.Optimizer

    def __init__(
        self,
        observation_space: spaces.Dict,
        factors: list[int],
        lr_schedule: Schedule,
        options: NetworkOptions,
    ) -> None:
        keys = critic_keys(observation_space)
        if not keys:
            raise ValueError(
                "The joint observation has no state for the values of joint actions, only "
                f"{list(observation_space.spaces)}; build the environment with `JointEnv` or "
                "`make_joint_env`, or use IQL or VDN, which need none."
            )
        own_space = observed_space(observation_space, keys)
        n_joint = math.prod(factors)
        super().__init__(
            own_space,
            spaces.Discrete(n_joint),
            options.extractor_class(own_space),
            options.features_extractor_kwargs,
            normalize_images=options.normalize_images,
        )
        #: Entries of the joint observation that the critic reads
        self.keys = keys
        self.factors = factors
        #: Weight of each choice in the number of a joint action
        self.strides = [math.prod(factors[index + 1 :]) for index in range(len(factors))]
        self.features_extractor = self.make_features_extractor()
        self.body, dim = make_body(self.features_extractor, options, "vf")
        self.value = nn.Linear(dim, 1)
        self.advantages = nn.Linear(dim, n_joint)
        self.optimizer = make_optimizer(self, lr_schedule, options)

    def forward(self, observations: Mapping[str, th.Tensor]) -> th.Tensor:
        """
        :param observations: Joint observation, each entry ``(batch, ...)``
        :return: Values of all joint actions, ``(batch, n_joint)``
        """
        own: Any = observations[self.keys[0]]
        if len(self.keys) > 1 or self.keys[0].startswith(STATE + "/"):
            own = {key.removeprefix(STATE + "/"): observations[key] for key in self.keys}
        assert self.features_extractor is not None
        latent = self.body(self.extract_features(own, self.features_extractor))
        advantages = self.advantages(latent)
        centred: th.Tensor = advantages - advantages.mean(dim=1, keepdim=True)
        return self.value(latent) + centred

    def index(self, choices: th.Tensor) -> th.Tensor:
        """
        :param choices: Choices of all agents side by side, ``(batch, n_choices)``
        :return: Numbers of the joint actions, ``(batch,)``
        """
        strides = th.tensor(self.strides, device=choices.device)
        return (choices.long() * strides).sum(dim=1)

    def neighbours(self, choices: th.Tensor, column: int) -> th.Tensor:
        """
        :param choices: Choices of all agents side by side, ``(batch, n_choices)``
        :param column: Index of one choice
        :return: Numbers of the joint actions that differ from these in this choice alone, for each
            of its options, ``(batch, n_options)``
        """
        options = th.arange(self.factors[column], device=choices.device)
        change = options - choices[:, column : column + 1].long()
        return self.index(choices).unsqueeze(1) + change * self.strides[column]


class JointValuePolicy(IndependentValuePolicy):
    """
    Team of agents that take the legal actions of the highest values, and a critic with a value for
    each joint action. Agents have no target networks.

    :param args: Arguments of :class:`~sb3_happo.common.value_policy.IndependentValuePolicy`
    :param kwargs: Keyword arguments of ``IndependentValuePolicy``; ``critic_kwargs`` may hold
        network options of the critic
    :raises ValueError: If there are more than 4,096 joint actions
    """

    has_target_actors: ClassVar[bool] = False

    def make_action_critic(  # type: ignore[override]
        self, lr_schedule: Schedule, kwargs: dict[str, Any], overrides: dict[str, Any]
    ) -> nn.Module:
        names = set(NetworkOptions.names())
        check_names(overrides, names, "policy_kwargs['critic_kwargs']")
        factors, sizes = [], {}
        for agent, policy in self.policies.items():
            factors += policy.action_head.factors
            sizes[agent] = policy.action_head.n_combinations
        n_joint = math.prod(factors)
        if n_joint > MAX_JOINT_ACTIONS:
            counts = ", ".join(f"{agent!r} {size:,}" for agent, size in sizes.items())
            raise ValueError(
                f"HAD3QN has one value for each joint action, and there are {n_joint:,} of them "
                f"(agent {counts}), more than {MAX_JOINT_ACTIONS:,}; use QMIX, VDN or HASAC."
            )
        own = {name: value for name, value in kwargs.items() if name in names} | overrides
        team = self.team_spaces.observation_space
        return JointValueCritic(team, factors, lr_schedule, NetworkOptions(**own))

    def greedy(self, observations: Mapping[str, th.Tensor]) -> th.Tensor:
        """
        :param observations: Joint observation with the action masks, each entry ``(batch, ...)``
        :return: Choices of the highest values of all agents side by side, ``(batch, n_choices)``
        """
        return self.explore(observations).long()
