"""
A team of one is PPO, or A2C: with one agent and the same settings, the numbers are those of SB3.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_happo import HAA2C, HAPPO, IPPO, MAPPO, make_joint_vec_env
from sb3_happo.common.state_critics import ValueNet
from sb3_happo.vec_env import VecTeamOfOne
from tests.algorithms import collect, small

N_ENVS, N_STEPS = 4, 128
SETTINGS: dict[str, Any] = dict(
    learning_rate=1e-3,
    n_steps=N_STEPS,
    batch_size=N_ENVS * N_STEPS,
    n_epochs=4,
    gamma=0.98,
    ent_coef=0.01,
    seed=3,
    device="cpu",
)


def pairs(happo: HAPPO, ppo: PPO | A2C) -> list[tuple[th.Tensor, th.Tensor]]:
    """The two models' parameters side by side."""
    actor, critic, theirs = happo.policies["agent_0"], happo.critic.networks[0], ppo.policy
    assert isinstance(critic, ValueNet)
    mine: list[th.Tensor] = [
        *actor.body.parameters(),
        *actor.head.parameters(),
        *critic.body.parameters(),
        *critic.head.parameters(),
    ]
    other = [
        *theirs.mlp_extractor.policy_net.parameters(),
        *theirs.action_net.parameters(),
        *theirs.mlp_extractor.value_net.parameters(),
        *theirs.value_net.parameters(),
    ]
    if actor.log_std is not None:
        mine.append(actor.log_std)
        other.append(theirs.log_std)
    return list(zip(mine, other, strict=True))


NET: dict[str, Any] = dict(net_arch=[64, 64], activation_fn=th.nn.Tanh)
N_TIMESTEPS = 5 * N_ENVS * N_STEPS


@cache
def trained_ppo(env_id: str, clip_range_vf: float | None) -> PPO:
    """SB3's own, after 5 updates that have changed every parameter."""
    settings: dict[str, Any] = dict(
        max_grad_norm=float("inf"), clip_range_vf=clip_range_vf, policy_kwargs=NET
    )
    ppo = PPO("MlpPolicy", make_vec_env(env_id, N_ENVS), **settings, **SETTINGS)
    before = [param.detach().clone() for param in ppo.policy.parameters()]
    ppo.learn(N_TIMESTEPS)
    assert all(
        (old - new).abs().max() > 1e-3
        for old, new in zip(before, ppo.policy.parameters(), strict=True)
    )
    return ppo


@pytest.mark.parametrize("algorithm", [HAPPO, MAPPO, IPPO])
@pytest.mark.parametrize("clip_range_vf", [None, 0.2])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_team_of_one_is_ppo(
    algorithm: type[HAPPO], env_id: str, clip_range_vf: float | None
) -> None:
    ppo = trained_ppo(env_id, clip_range_vf)
    happo = algorithm(
        "MlpPolicy",
        make_vec_env(env_id, N_ENVS),
        max_grad_norm=None,
        normalize_value=False,
        clip_range_vf=clip_range_vf,
        policy_kwargs=dict(rescale_actions=False, **NET),
        **SETTINGS,
    )
    happo.learn(N_TIMESTEPS)
    for mine, theirs in pairs(happo, ppo):
        assert th.allclose(mine, theirs, atol=1e-5), (mine - theirs).abs().max()


@pytest.mark.parametrize("normalize_advantage", [False, True])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_team_of_one_is_a2c(env_id: str, normalize_advantage: bool) -> None:
    """A2C with Adam; 40 updates of one pass each."""
    settings: dict[str, Any] = dict(
        learning_rate=1e-3,
        n_steps=8,
        gamma=0.98,
        gae_lambda=1.0,
        ent_coef=0.01,
        normalize_advantage=normalize_advantage,
        seed=3,
    )
    env = make_vec_env(env_id, N_ENVS)
    a2c = A2C(
        "MlpPolicy",
        env,
        use_rms_prop=False,
        max_grad_norm=float("inf"),
        policy_kwargs=NET,
        device="cpu",
        **settings,
    )
    before = [param.detach().clone() for param in a2c.policy.parameters()]
    a2c.learn(40 * N_ENVS * 8)
    assert all(
        (old - new).abs().max() > 1e-4
        for old, new in zip(before, a2c.policy.parameters(), strict=True)
    )
    settings.update(
        policy_kwargs=dict(rescale_actions=False, **NET), normalize_value=False, max_grad_norm=None
    )
    haa2c = HAA2C("MlpPolicy", make_vec_env(env_id, N_ENVS), device="cpu", **settings)
    haa2c.learn(40 * N_ENVS * 8)
    for mine, theirs in pairs(haa2c, a2c):
        assert th.allclose(mine, theirs, atol=1e-5), (mine - theirs).abs().max()


def test_bare_gymnasium_env_and_minibatches_learn() -> None:
    """
    A single Gymnasium environment is a team of one, and minibatches serve it as they serve PPO.
    """
    env = gym.make("CartPole-v1")
    model = HAPPO(env, n_steps=512, batch_size=64, learning_rate=1e-3, seed=0).learn(20_000)
    returns = []
    for episode in range(10):
        obs, _ = env.reset(seed=episode)
        done, total = False, 0.0
        while not done:
            action, _ = model.predict(obs, deterministic=True)
            obs, reward, terminated, truncated, _ = env.step(action)
            done, total = terminated or truncated, total + float(reward)
        returns.append(total)
    assert sum(returns) / len(returns) > 300


def normalised_outside() -> VecNormalize:
    return VecNormalize(
        VecTeamOfOne(make_vec_env("CartPole-v1", 1)), norm_obs_keys=["agent_0", "state"]
    )


@pytest.mark.parametrize(
    "make", [lambda: VecNormalize(make_vec_env("CartPole-v1", 1)), normalised_outside]
)
def test_sb3s_evaluation_with_normalised_observations(make: Callable[[], VecNormalize]) -> None:
    """The callback copies the statistics of one environment to the other, wrapper by wrapper."""
    env, eval_env = make(), make()
    eval_env.training = False
    model = small(HAPPO, env, seed=0)
    assert model.get_env() is env
    model.learn(32, EvalCallback(eval_env, n_eval_episodes=1, eval_freq=16, verbose=0))
    counts = []
    for statistics in (env.obs_rms, eval_env.obs_rms):
        one: Any = statistics["agent_0"] if isinstance(statistics, dict) else statistics
        counts.append(one.count)
    assert counts[0] > 30
    assert counts[1] == pytest.approx(counts[0], abs=16)


class Blinker(gym.Env):
    """Whose info has an "active" of its own, which comes and goes."""

    observation_space = spaces.Box(-1, 1, (3,))
    action_space = spaces.Discrete(2)

    def reset(
        self, *, seed: int | None = None, options: dict | None = None
    ) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._t = 0
        return np.zeros(3, np.float32), {"active": False}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self._t += 1
        return np.zeros(3, np.float32), 1.0, self._t == 5, False, {"active": self._t % 2 == 0}


@pytest.mark.parametrize("n_envs", [1, 2])
def test_what_a_single_agent_calls_active_is_its_own_business(n_envs: int) -> None:
    model = small(HAPPO, DummyVecEnv([Blinker] * n_envs))
    collect(model)
    assert model.rollout_buffer.active.all()


@pytest.mark.parametrize("env_id", ["CartPole-v1", "FrozenLake-v1"])
def test_single_environments_and_vec_envs_take_over_from_each_other(
    env_id: str, tmp_path: Path
) -> None:
    for first, then in (
        (make_vec_env(env_id, 2), gym.make(env_id)),
        (gym.make(env_id), make_vec_env(env_id, 2)),
    ):
        small(HAPPO, first).save(tmp_path / "model")
        model = HAPPO.load(tmp_path / "model", env=then)
        model.learn(32)
        model.set_env(make_joint_vec_env(env_id, model.n_envs))


class Picky(gym.Env):
    """Says in its info what is legal, or in its observation."""

    action_space = spaces.Discrete(3)

    def __init__(self, mask_in_info: bool) -> None:
        self.mask_in_info = mask_in_info
        own, mask = spaces.Box(-1, 1, (2,)), spaces.Box(0, 1, (3,), np.int8)
        self.observation_space = (
            own if mask_in_info else spaces.Dict({"observation": own, "action_mask": mask})
        )

    def _seen(self) -> tuple[Any, dict]:
        own, mask = np.zeros(2, np.float32), np.array([0, 1, 0], np.int8)
        return (
            (own, {"action_mask": mask})
            if self.mask_in_info
            else ({"observation": own, "action_mask": mask}, {})
        )

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        return self._seen()

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict]:
        assert action == 1
        obs, info = self._seen()
        return obs, 1.0, False, bool(self.np_random.random() < 0.2), info


def test_masks_of_single_agent_vec_envs() -> None:
    """In the observation they are minded, elsewhere refused."""
    small(HAPPO, DummyVecEnv([lambda: Picky(False)])).learn(64)
    small(HAPPO, Picky(True)).learn(64)
    with pytest.raises(
        ValueError, match="action mask in its info, which a single-agent VecEnv does not pass"
    ):
        small(HAPPO, DummyVecEnv([lambda: Picky(True)])).learn(64)
    with pytest.raises(ValueError, match=r"VecNormalize would normalise \['action_mask'\]"):
        small(HAPPO, VecNormalize(DummyVecEnv([lambda: Picky(False)])))
