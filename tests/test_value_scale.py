"""Values stay bounded on observations of any scale, and scales far from 1 are warned of."""

import contextlib
import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize

from sb3_happo import HAPPO, HATRPO, IPPO, MAPPO, JointEnv, make_joint_vec_env
from sb3_happo.common.finite import NotFiniteError
from sb3_happo.common.type_aliases import CriticBatch
from sb3_happo.common.value_learning import critic_targets
from sb3_happo.common.value_norm import DiscountedSums, ValueNorm
from sb3_happo_zoo.values import GAMES, SETTINGS, ScaledObservations, measure
from tests.algorithms import ALGORITHMS, SMALL, alike_team, small
from tests.envs import RandomTeam

# ---------------------------------------------------------------- bounds


def test_the_sums_are_the_extremes_over_all_stretches() -> None:
    """Against all stretches that end with each step and begin after the last true end."""
    rng = np.random.default_rng(0)
    rewards = rng.normal(0.3, 1.0, (40, 2, 1)).astype(np.float32)
    ends = rng.random((40, 2)) < 0.1
    sums = DiscountedSums(2, 1, gamma=0.9)
    for reward, end in zip(rewards, ends, strict=True):
        sums.add(th.from_numpy(reward), end)
    for env in range(2):
        every = [0.0]
        for last in range(40):
            total, weight = 0.0, 1.0
            for first in range(last, -1, -1):
                if first < last and ends[first, env]:
                    break
                total += weight * float(rewards[first, env, 0])
                weight *= 0.9
                every.append(total)
        assert sums.lowest[env].item() == pytest.approx(min(every), rel=1e-5)
        assert sums.highest[env].item() == pytest.approx(max(every), rel=1e-5)


def test_the_bounds_hold_the_sums_and_a_margin() -> None:
    norm = ValueNorm()
    values = th.tensor([[-1e9], [0.5], [1e9]])
    assert th.equal(norm.clip(values), values), "nothing is known yet"
    norm.extend_bounds(th.tensor([[-4.0], [-2.0]]), th.tensor([[0.0], [6.0]]))
    assert norm.clip(values).flatten().tolist() == [-9.0, 0.5, 11.0]
    norm.extend_bounds(th.tensor([[-1.0]]), th.tensor([[1.0]]))
    assert norm.clip(values).flatten().tolist() == [-9.0, 0.5, 11.0], "bounds never shrink"
    rewardless = ValueNorm()
    rewardless.extend_bounds(th.zeros(3, 1), th.zeros(3, 1))
    assert rewardless.clip(values).flatten().tolist() == pytest.approx([-0.1, 0.1, 0.1])


@pytest.mark.parametrize("algorithm", [HAPPO, IPPO])
def test_new_statistics_keep_the_values(algorithm: type[HAPPO]) -> None:
    """The first statistics add the mean of the returns; later ones change no value."""
    model = small(algorithm, alike_team(2), seed=0)
    critic = model.critic
    observations = {}
    for key, space in model.observation_space.spaces.items():  # type: ignore[attr-defined]
        observations[key] = th.randn(50, *space.shape)
    for update, (mean, deviation) in enumerate([(-70.0, 9.0), (5.0, 30.0), (0.0, 2.0)]):
        with th.no_grad():
            before = critic.step(observations)[0]
            returns = mean + deviation * th.randn(50, critic.n_values)
            data = CriticBatch(observations, before, returns, None)
            targets = critic_targets(critic, data)
            after, outputs = critic.step(observations)[0], critic(observations)
        expected = before if update else before + critic.value_norm.mean
        assert th.allclose(after, expected, atol=1e-3)
        assert th.allclose(targets.old_values, outputs, atol=1e-4), "the loss clips around outputs"


def test_infinite_returns_do_not_enter_the_statistics() -> None:
    norm = ValueNorm()
    norm.update(th.tensor([[1.0], [float("inf")], [float("nan")], [3.0]]))
    assert norm.mean.item() == 2.0 and norm.std.item() == pytest.approx(1.0)


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.__name__)
def test_large_observations_leave_everything_finite(algorithm: type[HAPPO]) -> None:
    """With ReLU and no layer normalisation the statistics of values were NaN after 15 updates."""
    env = ScaledObservations(make_joint_vec_env(GAMES["rendezvous"], seed=0), 1000.0)
    model = small(algorithm, env, seed=0, n_steps=16)
    allowed: list[type[Exception]] = []
    if algorithm is HATRPO:
        # It may have no finite step at all, which is an error that names the agent
        allowed.append(NotFiniteError)
    with (
        pytest.warns(UserWarning, match="far from unit scale"),
        contextlib.suppress(*allowed),
    ):
        model.learn(20 * 16)
    assert all(value.isfinite().all() for value in model.policy.state_dict().values())
    # The largest reward is below 60, so that no sum of rewards exceeds 6,000
    assert model.rollout_buffer.values.abs().max() < 9000
    obs = {key: th.as_tensor(value) for key, value in env.reset().items()}
    with th.no_grad():
        assert model.policy.predict_values(obs).abs().max() < 9000


def test_values_at_time_limits_are_clipped() -> None:
    """From the first rollout on: the rewards of the episode are known at its end."""
    env = ScaledObservations(make_joint_vec_env(GAMES["rendezvous"], seed=0), 1e6)
    with pytest.warns(UserWarning, match="far from unit scale"):
        model = small(HAPPO, env, seed=0, n_steps=40).learn(40)
    assert model.rollout_buffer.rewards.abs().max() < 9000


@pytest.mark.parametrize("game", ["rendezvous", "one_step"])
@pytest.mark.parametrize("scale", [10.0, 1000.0])
def test_values_stay_near_those_without_normalisation(game: str, scale: float) -> None:
    plain = measure(game, "small", scale, False, 12)
    normal = measure(game, "small", scale, True, 12)
    assert normal.finite
    # Values may be larger where they are right, and the unnormalised critic is still too low
    assert (normal.values <= np.maximum(3 * plain.values, normal.bound) * 1.001).all()


@pytest.mark.slow
@pytest.mark.parametrize("game", GAMES)
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0, 1000.0])
def test_values_of_the_whole_grid(game: str, settings: str, scale: float) -> None:
    plain = measure(game, settings, scale, False, 10)
    normal = measure(game, settings, scale, True, 10)
    assert normal.finite
    assert (normal.values <= np.maximum(3 * plain.values, normal.bound) * 1.001).all()


# ---------------------------------------------------------------- saved models


def test_a_model_of_before_the_bounds_loads() -> None:
    model = small(HAPPO, alike_team(2), seed=0).learn(64)
    parameters = model.get_parameters()
    old = copy.copy(parameters["policy"])
    for name in ("bounds", "bounded"):
        del old[f"critic.value_norm.{name}"]
    fresh = small(HAPPO, alike_team(2), seed=1)
    fresh.set_parameters({**parameters, "policy": old})
    values = th.tensor([[1e9]])
    assert th.equal(fresh.critic.clip(values), values), "no rewards are known"
    fresh.learn(64)
    assert fresh.critic.clip(values).item() < 1e9


def test_bounds_are_saved(tmp_path: Path) -> None:
    model = small(HAPPO, alike_team(2), seed=0).learn(64)
    model.save(tmp_path / "model")
    loaded = HAPPO.load(tmp_path / "model")
    values = th.tensor([[-1e9], [1e9]])
    assert th.equal(loaded.critic.clip(values), model.critic.clip(values))


# ---------------------------------------------------------------- warnings


def warnings_of(env: Any, algorithm: type[HAPPO] = HAPPO, **kwargs: Any) -> list[str]:
    """Warnings about scales of a short training."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        small(algorithm, env, seed=0, **kwargs).learn(3 * SMALL["n_steps"])
    texts = [str(one.message) for one in caught]
    return [text for text in texts if "unit scale" in text]


def scaled_team(scale: float) -> ScaledObservations:
    return ScaledObservations(make_joint_vec_env(lambda: alike_team(2), seed=0), scale)


@pytest.mark.parametrize("algorithm", [HAPPO, MAPPO, IPPO])
def test_large_observations_are_warned_of_once(algorithm: type[HAPPO]) -> None:
    texts = [text for text in warnings_of(scaled_team(1000.0), algorithm) if "Observations" in text]
    (text,) = texts
    assert "agent 'agent_0', entry 'agent_0'" in text and "VecNormalize" in text
    assert "input_layer_norm" in text


def test_large_predictions_are_warned_of_once() -> None:
    texts = [text for text in warnings_of(scaled_team(1000.0)) if "predicts" in text]
    assert len(texts) == 1


def test_tiny_observations_are_warned_of() -> None:
    assert len(warnings_of(scaled_team(1e-5))) == 1


def test_sound_observations_are_not_warned_of() -> None:
    assert not warnings_of(scaled_team(1.0))
    assert not warnings_of(VecNormalize(scaled_team(1000.0)))
    constant = dict.fromkeys(["a", "b"], spaces.Discrete(2))
    assert not warnings_of(VecNormalize(make_joint_vec_env(lambda: RandomTeam(constant), 2)))
    normalised = dict(input_layer_norm=True)
    assert not warnings_of(scaled_team(1000.0), policy_kwargs=normalised)


def test_images_and_discrete_observations_are_not_warned_of() -> None:
    actions = dict.fromkeys(["a", "b"], spaces.Discrete(2))
    image = spaces.Box(0, 255, (36, 36, 1), np.uint8)
    for space in (image, spaces.Discrete(500), spaces.MultiDiscrete([90, 90])):
        team = RandomTeam(actions, 5, dict.fromkeys(actions, space))
        assert not warnings_of(JointEnv(team, state="observations"))
