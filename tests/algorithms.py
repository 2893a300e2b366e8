"""What the tests over all algorithms share."""

from typing import Any, TypeVar

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_happo import HAA2C, HAPPO, HATRPO, IPPO, MAPPO, JointEnv
from tests.envs import RandomTeam

Model = TypeVar("Model", bound=HAPPO)


class LstmHAPPO(HAPPO):
    """HAPPO whose agents and critic have a small LSTM."""

    recurrent = "lstm"

    def __init__(
        self,
        policy: Any,
        env: Any = None,
        policy_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        memory = dict(recurrent=self.recurrent, lstm_hidden_size=8)
        super().__init__(policy, env, policy_kwargs={**memory, **(policy_kwargs or {})}, **kwargs)


class GruHAPPO(LstmHAPPO):
    """The same with a GRU."""

    recurrent = "gru"


ALGORITHMS: list[type[HAPPO]] = [HAPPO, HATRPO, HAA2C, MAPPO, IPPO]
every_algorithm = pytest.mark.parametrize(
    "algorithm", [*ALGORITHMS, LstmHAPPO, GruHAPPO], ids=lambda algorithm: algorithm.__name__
)

#: Small enough that an update takes some hundredths of a second
SMALL: dict[str, Any] = dict(n_steps=32, batch_size=None, n_epochs=2, device="cpu")
SMALL_NET: dict[str, Any] = dict(net_arch=[16])

PLAIN_SPACES: dict[str, spaces.Space] = {
    "discrete": spaces.Discrete(3, start=2),
    "box": spaces.Box(np.array([[-2, 0]], np.float32), np.array([[3, 0.5]], np.float32)),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
    "multi_binary": spaces.MultiBinary(3),
}


def small(
    algorithm: type[Model], env: Any, policy_kwargs: dict[str, Any] | None = None, **kwargs: Any
) -> Model:
    """A small model of an algorithm."""
    return algorithm(
        "MlpPolicy",
        env,
        policy_kwargs={**SMALL_NET, **(policy_kwargs or {})},
        **{**SMALL, **kwargs},
    )


def random_team(n_envs: int = 1, **kwargs: Any) -> DummyVecEnv:
    """A vectorised team of four agents of plain spaces."""
    return DummyVecEnv([lambda: JointEnv(RandomTeam(PLAIN_SPACES, **kwargs))] * n_envs)


def alike_team(n_agents: int = 3, space: spaces.Space | None = None, **kwargs: Any) -> JointEnv:
    """A team whose agents could share parameters."""
    agents = [f"agent_{index}" for index in range(n_agents)]
    return JointEnv(RandomTeam(dict.fromkeys(agents, space or spaces.Discrete(3)), **kwargs))


class RolloutEnded(Exception):
    """Raised by :class:`StopBeforeUpdate`."""


class StopBeforeUpdate(BaseCallback):
    """Leave `learn` when the first rollout is complete, with its returns and advantages."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        raise RolloutEnded


class StopAfter(BaseCallback):
    """
    Stop `learn` at the first step after a number of timesteps.

    :param n_timesteps: Number of timesteps
    """

    def __init__(self, n_timesteps: int) -> None:
        super().__init__()
        self.n_timesteps = n_timesteps

    def _on_step(self) -> bool:
        return self.num_timesteps <= self.n_timesteps


def collect(model: HAPPO) -> None:
    """Fill the rollout buffer, as `learn` does before it calls `train`."""
    with pytest.raises(RolloutEnded):
        model.learn(model.n_steps * model.n_envs, StopBeforeUpdate())


def learn_half(model: HAPPO) -> dict[str, Any]:
    """
    Train for one update, the first of two, at which half of the training remains.

    :param model: Model, which is changed
    :return: Figures of the update, as logged
    """
    n_timesteps = model.n_steps * model.n_envs
    model.learn(2 * n_timesteps, StopAfter(n_timesteps), log_interval=100)
    return model.logger.name_to_value


def snapshot(module: th.nn.Module) -> dict[str, th.Tensor]:
    """A copy of a module's parameters and buffers."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def same(first: dict[str, th.Tensor], second: dict[str, th.Tensor]) -> bool:
    """Whether two snapshots are equal bit for bit."""
    assert first.keys() == second.keys()
    return all(th.equal(first[name], second[name]) for name in first)
