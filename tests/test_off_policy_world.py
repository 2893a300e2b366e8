"""The off-policy family with SB3's callbacks, normalisation, logs, and fast simulators."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.vec_env import VecNormalize
from tensorboard.backend.event_processing import event_accumulator  # type: ignore[import-untyped]

from sb3_happo import (
    HASAC,
    HATD3,
    IQL,
    QMIX,
    EvalCallback,
    VecNormalizeTeam,
    evaluate_policy,
    make_joint_vec_env,
)
from sb3_happo.common.agent_policy import AgentPolicy
from sb3_happo.vec_env import JointDummyVecEnv, JointSubprocVecEnv
from tests.algorithms import alike_team
from tests.off_policy import small

BOX = spaces.Box(-1, 1, (2,))
SPACES: dict[Any, spaces.Space] = {
    HATD3: BOX,
    HASAC: BOX,
    IQL: spaces.Discrete(3),
    QMIX: spaces.Discrete(3),
}
every_algorithm = pytest.mark.parametrize("algorithm", SPACES, ids=lambda cls: cls.__name__)


def team(algorithm: Any, n_envs: int = 2) -> Any:
    return make_joint_vec_env(lambda: alike_team(2, SPACES[algorithm]), n_envs, seed=0)


def values_of(log: Any, tag: str) -> list[float]:
    return [event.value for event in log.Scalars(tag)]


@every_algorithm
def test_callbacks_normalisation_log_and_one_agent(algorithm: Any, tmp_path: Path) -> None:
    """One training with all that users of SB3 put around one."""
    env = VecNormalizeTeam(team(algorithm))
    eval_env = VecNormalizeTeam(team(algorithm, 1), training=False, norm_reward=False)
    model = small(algorithm, env, seed=0, train_freq=1, tensorboard_log=str(tmp_path / "log"))
    callbacks = [
        EvalCallback(
            eval_env,
            eval_freq=20,
            n_eval_episodes=2,
            best_model_save_path=str(tmp_path),
            log_path=str(tmp_path),
            verbose=0,
        ),
        CheckpointCallback(20, str(tmp_path), save_replay_buffer=True, save_vecnormalize=True),
    ]
    model.learn(80, callbacks, log_interval=1)

    # Files of the callbacks
    assert np.load(tmp_path / "evaluations.npz")["timesteps"].tolist() == [40, 80]
    best = algorithm.load(tmp_path / "best_model.zip", device="cpu")
    assert best.agents == model.agents
    again = algorithm.load(tmp_path / "rl_model_80_steps.zip", VecNormalizeTeam(team(algorithm)))
    again.load_replay_buffer(tmp_path / "rl_model_replay_buffer_80_steps.pkl")
    # As in SB3, callbacks come before the transition of their step is stored
    assert again.replay_buffer.size() == 39
    again.learn(20, reset_num_timesteps=False)
    assert again.num_timesteps == 100

    # Statistics and the returns of the evaluation
    assert isinstance(model.get_vec_normalize_env(), VecNormalize)
    episodes: Any = evaluate_policy(model, eval_env, 3, return_episode_rewards=True)
    assert len(episodes[0]) == len(episodes[1]) == 3

    # One agent, saved and used alone
    obs = eval_env.reset()
    joint, _ = model.predict(obs, deterministic=True)
    model.policies["agent_1"].save(tmp_path / "agent")
    alone = AgentPolicy.load(tmp_path / "agent", device="cpu")
    own, _ = alone.predict(obs["agent_1"], deterministic=True)
    np.testing.assert_array_equal(own, joint["agent_1"])

    # Keys of the log
    log = event_accumulator.EventAccumulator(
        str(tmp_path / "log" / f"{algorithm.__name__}_1")
    ).Reload()
    tags = set(log.Tags()["scalars"])
    expected = {"rollout/ep_rew_mean", "eval/mean_reward", "train/learning_rate"}
    for agent in model.agents:
        expected |= {f"rollout/{agent}/ep_rew_mean", f"{agent}/q_value"}
        if algorithm in (HATD3, HASAC):
            expected |= {f"{agent}/actor_loss"}
        if algorithm is HASAC:
            expected |= {f"{agent}/ent_coef"}
    if algorithm in (HATD3, HASAC):
        expected |= {"train/critic_loss", "train/actor_loss", "train/q_value"}
    if algorithm is HASAC:
        expected |= {"train/ent_coef", "train/ent_coef_loss"}
    assert expected <= tags, expected - tags
    for tag in expected - {"eval/mean_reward"}:
        assert np.isfinite(values_of(log, tag)).all(), tag


@pytest.mark.parametrize("kind", [NormalActionNoise, OrnsteinUhlenbeckActionNoise])
@pytest.mark.parametrize("of_agents", [False, True])
def test_noise_is_saved_with_the_model(kind: Any, of_agents: bool, tmp_path: Path) -> None:
    """A model goes on with its noise, also in another number of environments."""
    noise: Any = kind(np.zeros(4), 0.3 * np.ones(4))
    if of_agents:
        noise = {"agent_1": kind(np.zeros(2), 0.3 * np.ones(2))}
    model = small(HATD3, team(HATD3, 2), seed=0, action_noise=noise).learn(40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.save(tmp_path / "model")
    for n_envs in (2, 3):
        loaded: Any = HATD3.load(tmp_path / "model", team(HATD3, n_envs), device="cpu")
        loaded.learn(20, reset_num_timesteps=False)
        assert loaded.action_noise.n_envs == n_envs
        values = loaded.action_noise()
        assert values.shape == (n_envs, 4) and values[:, 2:].all()
        assert bool(values[:, :2].any()) != of_agents
    assert HATD3.load(tmp_path / "model", device="cpu").action_noise is not None


def test_losses_of_critics_of_own_rewards_are_logged() -> None:
    kwargs = dict(own_critics=True)
    model = small(HATD3, alike_team(2, BOX), kwargs, seed=0).learn(40)
    values = model.logger.name_to_value
    losses = [values[f"{agent}/critic_loss"] for agent in model.agents]
    assert losses[0] != losses[1]
    assert sum(losses) == pytest.approx(values["train/critic_loss"], rel=1e-5)


@pytest.mark.parametrize("algorithm", [HATD3, HASAC])
def test_envpool(algorithm: Any, tmp_path: Path) -> None:
    pytest.importorskip("envpool", reason="EnvPool is not installed")
    env = make_joint_vec_env(
        "envpool/HalfCheetah-2x3-v1",
        2,
        0,
        env_kwargs={"max_episode_steps": 10},
        vec_env_kwargs={"n_threads": 1},
    )
    model = small(algorithm, VecNormalizeTeam(env), seed=0).learn(60)
    assert [episode["l"] for episode in model.ep_info_buffer or ()] == [10] * 6
    assert model._n_updates > 10
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", device="cpu")
    obs: Any = model.get_env().reset()
    np.testing.assert_array_equal(
        model.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0]
    )


@pytest.mark.parametrize("algorithm", [HATD3, HASAC])
def test_vmas(algorithm: Any) -> None:
    pytest.importorskip("vmas", reason="VMAS is not installed: pip install vmas")
    env = make_joint_vec_env("vmas/navigation", 4, 0, env_kwargs={"max_steps": 10})
    model = small(algorithm, env, seed=0).learn(80)
    assert model._n_updates > 10
    obs: Any = env.reset()
    actions, _ = model.predict(obs, deterministic=True)
    assert actions.shape == (4,)
    returns, _ = evaluate_policy(model, env, 4, return_episode_rewards=True)
    assert np.isfinite(returns).all()


def test_worker_processes_give_the_same_numbers() -> None:
    weights = []
    for cls in (JointDummyVecEnv, JointSubprocVecEnv):
        env: Any = make_joint_vec_env("games/lq_team", 2, 0, vec_env_cls=cls)
        model = small(HASAC, env, seed=0).learn(40)
        weights.append([own.detach().clone() for own in model.policy.parameters()])
        env.close()
    for one, other in zip(*weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_joint_env_without_vec_env_is_monitored() -> None:
    model = small(HATD3, alike_team(2, BOX), seed=0).learn(40)
    assert len(model.ep_info_buffer or ()) > 0
