"""HADDPG: Heterogeneous-Agent Deep Deterministic Policy Gradient."""

from typing import Any

from sb3_happo.hatd3.hatd3 import HATD3


class HADDPG(HATD3):
    """
    Heterogeneous-Agent Deep Deterministic Policy Gradient (Zhong et al. 2024, "Heterogeneous-Agent
    Reinforcement Learning", JMLR 25).

    :class:`~sb3_happo.HATD3` with one critic, without delay of the actors, and without noise of the
    target actions. With one agent and the same settings the numbers are those of SB3's ``DDPG``.

    :param policy: As for ``HATD3``
    :param env: As for ``HATD3``
    :param args: As for ``HATD3``
    :param policy_delay: Gradient steps of the critic per update of the actors and the targets
    :param target_policy_noise: Standard deviation of the noise of target actions
    :param policy_kwargs: As for ``HATD3``; ``n_critics`` is 1 by default
    :param kwargs: As for ``HATD3``
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
