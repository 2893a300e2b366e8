"""Unsupported hyperparameters are refused before any training; NumPy's numbers are numbers."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule

from sb3_happo import HAA2C, HAPPO, HATRPO, IPPO, MAPPO, make_joint_vec_env
from sb3_happo.common.hyperparameters import (
    BATCH_SIZE,
    COUNT,
    LEARNING_RATE,
    NOT_NEGATIVE,
    POSITIVE,
    check_agent_learning_rates,
    check_settings,
    optional,
    plain_numbers,
    scheduled,
)
from sb3_happo.envs.checker import check_marl_env
from tests.algorithms import alike_team, same, small, snapshot


def warm_up(progress: float) -> float:
    """A rate that rises from 0 in the first half of the training."""
    return 1e-3 * min(1.0, 2 * (1 - progress))


def dip(progress: float) -> float:
    """A schedule that is negative between 25 % and 35 % of the remaining progress."""
    return -1.0 if 0.25 < progress < 0.35 else 1.0


# ---------------------------------------------------------------- conditions


@pytest.mark.parametrize("value", [0, 2.0, True, np.True_, "3", None, math.nan])
def test_what_is_no_count_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^x must be a whole number, at least 1, not "):
        check_settings({"x": value}, {"x": COUNT})


@pytest.mark.parametrize("value", [-1e-3, math.nan, math.inf, True, "3e-4", None, 1j])
def test_what_is_no_learning_rate_is_refused(value: Any) -> None:
    words = "^x must be finite and at least 0, or a schedule of such, not "
    with pytest.raises(ValueError, match=words):
        check_settings({"x": value}, {"x": LEARNING_RATE})


@pytest.mark.parametrize(
    "value",
    [
        1e-3,
        1,
        0.0,
        LinearSchedule(1e-3, 0.0, 1.0),
        LinearSchedule(1e-3, 0.0, 0.5),
        FloatSchedule(1e-3),
        warm_up,
        lambda progress: np.float32(1e-3),
    ],
)
def test_learning_rates(value: Any) -> None:
    check_settings({"x": value}, {"x": LEARNING_RATE})


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (LinearSchedule(1e-3, -1e-3, 1.0), "is -0.0001.* when 45% of the training is left"),
        (dip, "is -1.0 when 30% of the training is left"),
        (lambda progress: math.inf, "is inf when 100% of the training is left"),
        (lambda progress: math.nan, "is nan when 100% of the training is left"),
        (lambda progress: 1 / progress, "division by zero"),
        (lambda: 1.0, "takes 0 positional arguments"),
        (lambda progress: None, "NoneType"),
    ],
)
def test_schedules_that_leave_the_range(schedule: Any, words: str) -> None:
    with pytest.raises(ValueError, match=rf"^x must be finite and at least 0.*{words}"):
        check_settings({"x": schedule}, {"x": LEARNING_RATE})


def test_none_and_schedules_only_where_they_are_allowed() -> None:
    check_settings({"x": None}, {"x": optional(COUNT)})
    check_settings({"x": dip}, {"x": scheduled(POSITIVE._replace(holds=lambda _: True))})
    with pytest.raises(ValueError, match="x must be finite and at least 0, not <function"):
        check_settings({"x": warm_up}, {"x": NOT_NEGATIVE})
    with pytest.raises(ValueError, match="x must be a whole number, at least 2, or None, not 1"):
        check_settings({"x": 1}, {"x": optional(BATCH_SIZE)})


def test_an_agents_own_rate_is_named() -> None:
    check_agent_learning_rates(None)
    check_agent_learning_rates({"arm": {"learning_rate": 1e-3}, "leg": {"net_arch": [8]}})
    check_agent_learning_rates({"arm": {"learning_rate": None}})
    words = r"policy_kwargs\['agent_kwargs'\]\['2'\]\['learning_rate'\] must be finite and at least"
    with pytest.raises(ValueError, match=words):
        check_agent_learning_rates({2: {"learning_rate": -1e-3}})


# ---------------------------------------------------------------- numbers of NumPy


def test_numbers_of_numpy_become_pythons() -> None:
    array, schedule = np.ones(2), LinearSchedule(1.0, 0.0, 1.0)
    values = {
        "count": np.int64(8),
        "rate": np.float32(0.5),
        "flag": np.True_,
        "no_dimension": np.array(3),
        "nested": {"net_arch": [np.int32(4), 5], "ids": (np.uint8(1), "a")},
        "array": array,
        "schedule": schedule,
        "nothing": None,
        "word": "rollout",
    }
    plain = plain_numbers(values)
    assert plain["array"] is array and plain["schedule"] is schedule
    del plain["array"], plain["schedule"]
    assert plain == {
        "count": 8,
        "rate": 0.5,
        "flag": True,
        "no_dimension": 3,
        "nested": {"net_arch": [4, 5], "ids": (1, "a")},
        "nothing": None,
        "word": "rollout",
    }
    for name, kind in {"count": int, "rate": float, "flag": bool, "no_dimension": int}.items():
        assert type(plain[name]) is kind
    assert [type(units) for units in plain["nested"]["net_arch"]] == [int, int]
    assert isinstance(values["nested"]["net_arch"][0], np.int32), "the caller's own stay"


NUMPY_SETTINGS: dict[str, Any] = {
    "learning_rate": np.float32(1e-3),
    "critic_learning_rate": np.array(1e-3),
    "n_steps": np.int64(32),
    "batch_size": np.int64(16),
    "n_epochs": np.int32(2),
    "gamma": np.float32(0.9),
    "gae_lambda": np.float64(0.9),
    "clip_range": np.float32(0.2),
    "clip_range_vf": np.float32(0.2),
    "ent_coef": np.float32(0.01),
    "vf_coef": np.float32(0.5),
    "max_grad_norm": np.float32(0.5),
    "target_kl": np.float32(0.5),
    "critic_n_epochs": np.int64(2),
    "critic_batch_size": np.int64(16),
    "normalize_value": np.True_,
    "normalize_advantage": np.True_,
    "use_clipped_value_loss": np.True_,
    "huber_delta": np.float32(1.0),
    "chunk_length": np.int64(8),
    "stats_window_size": np.int64(10),
    "seed": np.int64(3),
}


TRUST_REGION: dict[str, Any] = {
    "cg_max_steps": np.int64(3),
    "cg_damping": np.float32(0.1),
    "line_search_shrinking_factor": np.float32(0.5),
    "line_search_max_iter": np.uint8(3),
    "accept_ratio": np.float32(0.25),
}


def in_python(value: Any) -> Any:
    """The number of Python that a number of NumPy means."""
    return float(value) if np.issubdtype(value.dtype, np.floating) else value.item()


@pytest.mark.parametrize("name", [*NUMPY_SETTINGS, *TRUST_REGION])
def test_a_setting_of_numpy_is_pythons(name: str) -> None:
    value = (NUMPY_SETTINGS | TRUST_REGION)[name]
    model = small(HATRPO, alike_team(1), **{"batch_size": 16, name: value})
    if name == "stats_window_size":
        model.learn(32)
        assert model.ep_info_buffer is not None and model.ep_info_buffer.maxlen == 10
        return
    stored = getattr(model, name)
    if callable(stored):
        stored = stored(1.0)
    assert type(stored) is type(in_python(value))
    assert stored == in_python(value)


@pytest.mark.parametrize("algorithm", [HAPPO, HATRPO, HAA2C, MAPPO, IPPO])
def test_settings_of_numpy_train_like_pythons(algorithm: type[HAPPO]) -> None:
    """All at once, for each algorithm."""
    settings = NUMPY_SETTINGS | (TRUST_REGION if algorithm is HATRPO else {})
    plain = {name: in_python(value) for name, value in settings.items()}
    model = small(algorithm, alike_team(2), **settings).learn(np.int64(64))
    other = small(algorithm, alike_team(2), **plain).learn(64)
    assert same(snapshot(model.policy), snapshot(other.policy))
    assert model.num_timesteps == other.num_timesteps == 64


def test_numbers_of_numpy_at_other_places(tmp_path: Path) -> None:
    """Copies and seeds of environments, loaded models, evaluation, and the checker."""
    two, one = np.int64(2), np.uint8(1)
    zero: Any = np.array(0)
    venv = make_joint_vec_env(alike_team, n_envs=two, seed=one, start_index=zero)
    first, same_seed = venv.reset(), make_joint_vec_env(alike_team, n_envs=2, seed=1).reset()
    assert isinstance(first, dict) and isinstance(same_seed, dict)
    for key, value in first.items():
        assert np.array_equal(value, same_seed[key])
    venv.seed(np.int64(3))
    venv.reset()
    env = alike_team(2)
    seen = env.reset(seed=np.int64(3))[0]
    assert all(np.array_equal(seen[key], env.reset(seed=3)[0][key]) for key in seen)
    small(HAPPO, env).save(tmp_path / "model")
    model = HAPPO.load(tmp_path / "model", env=env, n_epochs=one, batch_size=np.int64(16))
    model.set_random_seed(np.int64(3))
    model.learn(np.int64(32), log_interval=one)
    evaluate_policy(model, env, n_eval_episodes=one)
    assert check_marl_env(env, np.int64(5), np.int64(1)).ok


@pytest.mark.parametrize("seed", [1.5, "1", [1]])
def test_seeds_of_environments_are_whole_numbers(seed: Any) -> None:
    with pytest.raises(ValueError, match="`seed` must be a whole number"):
        make_joint_vec_env(alike_team, seed=seed)
    with pytest.raises(TypeError):
        alike_team(1).reset(seed=seed)


def test_networks_take_numbers_of_numpy() -> None:
    policy_kwargs: dict[str, Any] = dict(
        net_arch=dict(pi=[np.int64(8)], vf=[np.int32(4)]),
        recurrent="lstm",
        lstm_hidden_size=np.int64(6),
        n_lstm_layers=np.int64(1),
        lstm_kwargs=dict(dropout=np.float32(0.0)),
        log_std_init=np.float32(0.0),
        output_gain=np.float32(0.1),
        optimizer_kwargs=dict(eps=np.float32(1e-5)),
        agent_kwargs={"agent_1": dict(learning_rate=np.float32(1e-2), net_arch=[np.int64(5)])},
        share_parameters=np.False_,
        critic_kwargs=dict(net_arch=[np.int64(7)], lstm_hidden_size=np.int64(3)),
    )
    model = small(HAPPO, alike_team(), policy_kwargs, batch_size=np.int64(16)).learn(64)
    shapes = {name: tuple(weights.shape) for name, weights in model.policy.named_parameters()}
    assert shapes["actors.0.body.0.weight"] == (8, 6)
    assert shapes["actors.1.body.0.weight"] == (5, 6)
    assert shapes["critic.networks.0.body.0.weight"] == (7, 3)
    assert model.policy.lr_schedules["agent_1"](0.5) == pytest.approx(1e-2)


# ---------------------------------------------------------------- models


@pytest.mark.parametrize("name", ["learning_rate", "critic_learning_rate"])
@pytest.mark.parametrize(
    "rate", [-1e-3, math.nan, math.inf, True, "3e-4", LinearSchedule(1e-3, -1e-3, 1.0), dip]
)
def test_rates_that_climb_the_loss_are_refused(name: str, rate: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be finite and at least 0, or a sched"):
        small(HAPPO, alike_team(), **{name: rate})


@pytest.mark.parametrize("rate", [-1e-3, math.nan, dip])
def test_an_agents_own_rate_that_climbs_the_loss_is_refused(rate: Any) -> None:
    policy_kwargs = dict(agent_kwargs={"agent_1": dict(learning_rate=rate)})
    words = r"^policy_kwargs\['agent_kwargs'\]\['agent_1'\]\['learning_rate'\] must be finite"
    with pytest.raises(ValueError, match=words):
        small(HAPPO, alike_team(), policy_kwargs)


def test_a_rate_may_rise_from_0_and_fall_to_0() -> None:
    for rate in (warm_up, LinearSchedule(1e-3, 0.0, 1.0), 0.0):
        small(HAPPO, alike_team(), learning_rate=rate).learn(64)


@pytest.mark.parametrize("name", ["n_epochs", "gamma", "clip_range", "chunk_length"])
def test_true_is_no_number(name: str) -> None:
    setting: dict[str, Any] = {name: True}
    with pytest.raises(ValueError, match=f"^{name} must be .*, not True"):
        small(HAPPO, alike_team(), **setting)
