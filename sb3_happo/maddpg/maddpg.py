"""MADDPG: Multi-Agent Deep Deterministic Policy Gradient."""

from typing import Any

from sb3_happo.matd3.matd3 import MATD3


class MADDPG(MATD3):
    """
    Multi-Agent Deep Deterministic Policy Gradient (Lowe et al. 2017, "Multi-Agent Actor-Critic for
    Mixed Cooperative-Competitive Environments", arXiv 1706.02275).

    :class:`~sb3_happo.MATD3` with one critic, without delay of the actors, and without noise of the
    target actions. With one agent and the same settings the numbers are those of SB3's ``DDPG``.
    The paper has a critic for each agent: ``policy_kwargs=dict(own_critics=True)``. With a reward
    of the team one critic learns the same.

    :param policy: As for ``MATD3``
    :param env: As for ``MATD3``
    :param args: As for ``MATD3``
    :param policy_delay: Gradient steps of the critic per update of the actors and the targets
    :param target_policy_noise: Standard deviation of the noise of target actions
    :param policy_kwargs: As for ``MATD3``; ``n_critics`` is 1 by default
    :param kwargs: As for ``MATD3``
    """

    def __init__(
        self,
        policy: Any,
        env: Any = None,
        *args: Any,
        policy_delay: int = 1,
        target_policy_noise: float = 0.0,
        policy_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            policy,
            env,
            *args,
            policy_delay=policy_delay,
            target_policy_noise=target_policy_noise,
            policy_kwargs={"n_critics": 1} | (policy_kwargs or {}),
            **kwargs,
        )
