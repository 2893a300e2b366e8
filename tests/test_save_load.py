"""
Save, load, resume: everything that was learned comes back, and training continues with the same
numbers.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_happo import HAPPO, IPPO, MAPPO, JointEnv
from sb3_happo.common.joint_policy import JointPolicy
from sb3_happo.vec_env import VecNormalizeTeam
from tests.algorithms import (
    alike_team,
    collect,
    every_algorithm,
    random_team,
    same,
    small,
    snapshot,
)
from tests.envs import HeterogeneousTeam, MatrixGame, TurnGame


def hetero(n_envs: int = 1) -> DummyVecEnv:
    return DummyVecEnv([lambda: JointEnv(HeterogeneousTeam())] * n_envs)


def turns(n_envs: int) -> DummyVecEnv:
    return DummyVecEnv([lambda: JointEnv(TurnGame())] * n_envs)


def optimizers(model: HAPPO) -> list[th.optim.Optimizer]:
    return [model.critic.optimizer, *(policy.optimizer for policy in model.policies.values())]


def moments(model: HAPPO) -> list[th.Tensor]:
    """All tensors in the optimisers' states."""
    found: list[th.Tensor] = []
    for optimizer in optimizers(model):
        for state in optimizer.state_dict()["state"].values():
            found.extend(value for value in state.values() if isinstance(value, th.Tensor))
    return found


@every_algorithm
def test_a_loaded_model_is_the_saved_one(algorithm: type[HAPPO], tmp_path: Path) -> None:
    env = hetero()
    model = small(algorithm, env, seed=0, learning_rate=1e-2).learn(64)
    model.save(tmp_path / "model")
    for loaded in (
        algorithm.load(tmp_path / "model"),
        algorithm.load(str(tmp_path / "model.zip"), env=HeterogeneousTeam(), device="cpu"),
    ):
        assert loaded.env is None or loaded.env.num_envs == 1
        assert same(snapshot(model.policy), snapshot(loaded.policy))
        assert loaded.agents == model.agents and loaded.num_timesteps == 64
        saved_moments, loaded_moments = moments(model), moments(loaded)
        assert len(saved_moments) == len(loaded_moments) > 0
        assert all(
            th.equal(mine, theirs)
            for mine, theirs in zip(saved_moments, loaded_moments, strict=True)
        )
        obs = env.reset()
        for deterministic in (True, False):
            answers = []
            for which in (model, loaded):
                which.set_random_seed(1)
                answers.append(which.predict(obs, deterministic=deterministic)[0])  # type: ignore[arg-type]
            assert (answers[0] == answers[1]).all()
        # The count of updates goes on behind the two of the saved model
        loaded.set_env(hetero())
        loaded.learn(1, reset_num_timesteps=False, log_interval=100)
        assert loaded.logger.name_to_value["train/n_updates"] == 3


def test_value_normaliser_comes_back(tmp_path: Path) -> None:
    for algorithm in (HAPPO, IPPO):
        model = small(algorithm, hetero(), seed=0).learn(64)
        model.save(tmp_path / "model")
        norm, loaded = model.critic.value_norm, algorithm.load(tmp_path / "model").critic.value_norm
        assert (
            norm is not None
            and loaded is not None
            and (norm.mean != 0).all()
            and (norm.weight > 0).all()
        )
        for name in ("mean", "std", "moments", "weight"):
            assert th.equal(getattr(norm, name), getattr(loaded, name)), name


@every_algorithm
def test_training_on_after_load_is_training_on(algorithm: type[HAPPO], tmp_path: Path) -> None:
    """
    Parameters, optimisers, normaliser, schedules and counters: with the same random numbers, the
    same result.
    """
    rates: dict[str, Any] = dict(
        learning_rate=lambda progress: 1e-2 * progress, clip_range=lambda progress: 0.3 * progress
    )
    model = small(algorithm, random_team(2), seed=0, batch_size=16, **rates)
    with pytest.warns(UserWarning, match=r"learning_rate is the function .*custom_objects"):
        model.learn(128)
    with pytest.raises(ValueError, match=r"learning_rate is the function .*LinearSchedule"):
        model.save(tmp_path / "model")
    model.save(tmp_path / "model", exclude=rates)
    with pytest.raises(ValueError, match=r"learning_rate: the file does not hold the function"):
        algorithm.load(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=random_team(2), custom_objects=rates)
    model.set_env(random_team(2))
    for which in (model, loaded):
        which.set_random_seed(5)
        which.learn(128, reset_num_timesteps=False)
        assert which.num_timesteps == 256
    assert same(snapshot(model.policy), snapshot(loaded.policy))
    assert all(
        th.equal(mine, theirs) for mine, theirs in zip(moments(model), moments(loaded), strict=True)
    )


@every_algorithm
def test_resume_without_reset(algorithm: type[HAPPO]) -> None:
    """
    A second call of `learn` continues the first: one long call with the same settings gives the
    same parameters.
    """
    whole = small(algorithm, TurnGame(), seed=0).learn(128)
    parts = small(algorithm, TurnGame(), seed=0)
    parts.learn(64)
    assert parts.collector_state.active is not None
    parts.learn(64, reset_num_timesteps=False)
    assert parts.num_timesteps == whole.num_timesteps == 128
    assert same(snapshot(whole.policy), snapshot(parts.policy))
    parts.learn(64)
    assert parts.num_timesteps == 64


@every_algorithm
def test_other_numbers_of_environments_on_load(algorithm: type[HAPPO], tmp_path: Path) -> None:
    model = small(algorithm, turns(2), seed=0).learn(64)
    model.save(tmp_path / "model")
    for n_envs in (1, 3):
        loaded = algorithm.load(tmp_path / "model", env=turns(n_envs))
        assert loaded.n_envs == n_envs and loaded.rollout_buffer.n_envs == n_envs
        loaded.learn(32 * n_envs, reset_num_timesteps=False)
        assert loaded.num_timesteps == 64 + 32 * n_envs
        assert not same(snapshot(model.policy), snapshot(loaded.policy))


@every_algorithm
def test_get_and_set_parameters(algorithm: type[HAPPO]) -> None:
    teacher = small(algorithm, hetero(), seed=0, learning_rate=1e-2).learn(64)
    pupil = small(algorithm, hetero(), seed=1)
    assert not same(snapshot(teacher.policy), snapshot(pupil.policy))
    parameters: dict[str, Any] = teacher.get_parameters()
    assert {name.rpartition(".")[2] for name in parameters} == {"policy", "optimizer"}
    pupil.set_parameters(parameters)
    assert same(snapshot(teacher.policy), snapshot(pupil.policy))
    assert all(
        th.equal(mine, theirs)
        for mine, theirs in zip(moments(teacher), moments(pupil), strict=True)
    )
    with pytest.raises(ValueError):
        pupil.set_parameters(
            {"policy": parameters["policy"]}
        )  # exact_match wants the optimisers too
    pupil.set_parameters({"policy": parameters["policy"]}, exact_match=False)


def test_save_to_memory_and_change_settings_on_load() -> None:
    model = small(HAPPO, alike_team(), learning_rate=1e-3, clip_range=0.3).learn(32)
    memory = io.BytesIO()
    model.save(memory)
    memory.seek(0)
    loaded = HAPPO.load(
        memory, env=alike_team(), learning_rate=5e-4, critic_learning_rate=2e-3, clip_range=0.1
    )
    loaded.learn(32, log_interval=100)
    assert loaded.policies["agent_2"].optimizer.param_groups[0]["lr"] == 5e-4
    assert loaded.critic.optimizer.param_groups[0]["lr"] == 2e-3
    assert loaded.logger.name_to_value["train/clip_range"] == 0.1


def test_settings_come_back(tmp_path: Path) -> None:
    kwargs: dict[str, Any] = dict(
        gamma=0.9,
        huber_delta=3.0,
        agent_order="reverse",
        normalize_advantage="rollout",
        target_kl=0.1,
        max_grad_norm=None,
    )
    policy_kwargs: dict[str, Any] = dict(
        agent_kwargs={"agent_1": dict(net_arch=[8], learning_rate=1e-4)}, log_std_init=-1.0
    )
    model = small(HAPPO, alike_team(), policy_kwargs=policy_kwargs, **kwargs)
    model.save(tmp_path / "model")
    loaded = HAPPO.load(tmp_path / "model")
    for name in [
        *kwargs,
        "n_steps",
        "batch_size",
        "n_epochs",
        "critic_n_epochs",
        "critic_batch_size",
        "normalize_value",
    ]:
        assert getattr(loaded, name) == getattr(model, name), name
    assert loaded.policies["agent_1"].options.net_arch == [8]
    assert loaded.policy.lr_schedules["agent_1"](1.0) == 1e-4


def test_shared_parameters_stay_shared(tmp_path: Path) -> None:
    model = small(
        MAPPO, alike_team(), policy_kwargs=dict(append_agent_id=True), learning_rate=1e-2
    ).learn(32)
    model.save(tmp_path / "model")
    loaded = MAPPO.load(tmp_path / "model", env=alike_team())
    assert loaded.policies["agent_0"].head is loaded.policies["agent_2"].head
    obs = np.ones((5, 3), np.float32)
    for agent, policy in model.policies.items():
        mine, theirs = (
            which.predict(obs, deterministic=True)[0] for which in (policy, loaded.policies[agent])
        )
        assert (mine == theirs).all()
    loaded.learn(32)
    assert th.equal(loaded.policies["agent_0"].head.weight, loaded.policies["agent_2"].head.weight)


def test_the_joint_policy_alone(tmp_path: Path) -> None:
    """SB3's `model.policy.save`: the whole team without the algorithm."""
    model = small(MAPPO, alike_team(), policy_kwargs=dict(append_agent_id=True), seed=0).learn(32)
    model.policy.save(str(tmp_path / "policy"))
    loaded = JointPolicy.load(str(tmp_path / "policy"))
    assert same(snapshot(model.policy), snapshot(loaded))
    obs = {agent: np.ones((4, 3), np.float32) for agent in model.agents}
    assert (
        model.predict(obs, deterministic=True)[0] == loaded.predict(obs, deterministic=True)[0]
    ).all()


def test_the_joint_policy_alone_with_rates_of_its_own(tmp_path: Path) -> None:
    """
    Schedules belong to the model and need not be picklable; an agent with a learning rate of its
    own shares no parameters afterwards either.
    """
    kwargs = dict(
        share_parameters=True,
        agent_kwargs={"agent_1": dict(learning_rate=lambda progress: 1e-3 * progress)},
    )
    model = small(HAPPO, alike_team(), policy_kwargs=kwargs, seed=0).learn(32)
    model.policy.save(str(tmp_path / "policy"))
    loaded = JointPolicy.load(str(tmp_path / "policy"))
    assert same(snapshot(model.policy), snapshot(loaded))
    assert loaded.policies["agent_0"].head is loaded.policies["agent_2"].head
    assert loaded.policies["agent_0"].head is not loaded.policies["agent_1"].head


def test_load_on_an_id(tmp_path: Path) -> None:
    small(HAPPO, "CartPole-v1").learn(32).save(tmp_path / "model")
    assert (
        HAPPO.load(tmp_path / "model", env="CartPole-v1")
        .learn(32, reset_num_timesteps=False)
        .num_timesteps
        == 64
    )


def test_rollouts_are_not_saved(tmp_path: Path) -> None:
    """A model's file must not grow with `n_steps * n_envs`."""
    sizes = []
    for n_steps in (8, 4096):
        model = small(HAPPO, MatrixGame(), n_steps=n_steps)
        model.save(tmp_path / "model.zip")
        sizes.append((tmp_path / "model.zip").stat().st_size)
    assert sizes[1] < sizes[0] + 500


def test_vec_normalize_beside_a_model(tmp_path: Path) -> None:
    def team() -> DummyVecEnv:
        return random_team(2)

    env = VecNormalize(team())
    model = small(HAPPO, env, seed=0).learn(128)
    model.save(tmp_path / "model")
    env.save(str(tmp_path / "normalize.pkl"))
    again = VecNormalizeTeam.load(str(tmp_path / "normalize.pkl"), team())
    loaded = HAPPO.load(tmp_path / "model", env=again)
    assert loaded.get_vec_normalize_env() is again
    model.set_env(env)  # training begins with a reset, as that of the loaded model does
    for which in (model, loaded):
        which.set_random_seed(3)
        which.learn(64, reset_num_timesteps=False)
    assert same(snapshot(model.policy), snapshot(loaded.policy))


def test_set_env_starts_new_episodes() -> None:
    model = small(
        HAPPO, DummyVecEnv([lambda: JointEnv(MatrixGame())] * 2), n_steps=4, seed=0
    ).learn(8)
    model.set_env(DummyVecEnv([lambda: JointEnv(MatrixGame())] * 2))
    collect(model)
    assert model.rollout_buffer.episode_starts[0].all()
