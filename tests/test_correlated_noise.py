"""Correlated draws of Gaussian policies: their marginal, their correlation, log-probabilities."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from torch.distributions import Normal

from sb3_happo import HAPPO, make_joint_vec_env
from sb3_happo.common.correlated_noise import (
    ColoredNoise,
    NoiseSettings,
    OrnsteinUhlenbeckNoise,
)
from sb3_happo.common.distributions import action_leaves
from sb3_happo.vec_env import JointDummyVecEnv
from tests.algorithms import ALGORITHMS
from tests.envs import HeterogeneousTeam, RandomTeam
from tests.test_gsde import BOX, DISCRETE, SMALL, Actions, team

NOISES: dict[str, NoiseSettings] = {
    "ou": OrnsteinUhlenbeckNoise(),
    "slow ou": OrnsteinUhlenbeckNoise(30.0),
    "pink": ColoredNoise(),
    "half": ColoredNoise(0.5, horizon=333),
    "red": ColoredNoise(2.0, horizon=100),
    "white": ColoredNoise(0.0, horizon=50),
}


def draws(noise: NoiseSettings, n_envs: int, n_steps: int, seed: int = 0) -> th.Tensor:
    """Draws of episodes without an end, ``(n_steps, n_envs, 2)``."""
    th.manual_seed(seed)
    process = noise.process(2)
    starts = th.ones(n_envs, dtype=th.bool)
    steps = []
    for _ in range(n_steps):
        steps.append(process.draw(starts).clone())
        starts = th.zeros(n_envs, dtype=th.bool)
    return th.stack(steps)


@pytest.mark.parametrize("name", NOISES)
def test_marginal_and_autocorrelation(name: str) -> None:
    """
    1e5 draws, as 1000 independent series of 100 steps: the mean is 0, the variance 1, and the
    correlation the exact one, within five standard errors of 1000 series.
    """
    noise = NOISES[name]
    numbers = draws(noise, n_envs=500, n_steps=100).transpose(0, 1).transpose(1, 2)
    series = numbers.reshape(1000, 100).double()
    bound = 5 / 1000**0.5
    assert series.mean(dim=0).abs().max() < bound
    assert ((series**2).mean(dim=0) - 1).abs().max() < bound * 2**0.5
    assert abs(float((series**4).mean()) - 3) < 0.5  # a Gaussian's fourth moment
    lags = np.array([0, 1, 2, 5, 20, 49])
    exact = noise.autocorrelation(lags)
    assert exact[0] == pytest.approx(1)
    for lag, value in zip(lags, exact, strict=True):
        product = (series[:, 0] * series[:, lag]).mean()
        assert abs(float(product) - value) < bound * 2**0.5, (lag, value)
    # The two actions of an agent, and environments, are independent
    assert abs(float((numbers[:, 0] * numbers[:, 1]).mean())) < 0.25
    assert abs(float((series[0::4] * series[2::4]).mean())) < 0.25


def test_known_correlations() -> None:
    lags = np.arange(4)
    half_life = OrnsteinUhlenbeckNoise(1 / np.log(2))
    assert half_life.autocorrelation(lags) == pytest.approx([1, 0.5, 0.25, 0.125])
    assert OrnsteinUhlenbeckNoise().autocorrelation(np.array([1])) == pytest.approx(np.exp(-0.15))
    assert ColoredNoise(0.0).autocorrelation(lags) == pytest.approx([1, 0, 0, 0])


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 2.0])
def test_spectrum_has_the_exponent(beta: float) -> None:
    """The slope of the power over the frequency, both as logarithms, is ``-beta``."""
    numbers = draws(ColoredNoise(beta, horizon=512), n_envs=200, n_steps=512)[:, :, 0].double()
    windowed = numbers * th.hann_window(512, dtype=th.float64).unsqueeze(1)
    power = th.fft.rfft(windowed, dim=0).abs().square().mean(dim=1)
    inner = np.arange(8, 200)
    slope = np.polyfit(np.log(inner), np.log(power[inner].numpy()), 1)[0]
    assert slope == pytest.approx(-beta, abs=0.1)


def test_a_process_begins_anew_with_each_episode() -> None:
    """An environment whose episode begins has no memory of the one before; others go on."""
    for noise in (OrnsteinUhlenbeckNoise(1e6), ColoredNoise(2.0, horizon=10**4)):
        th.manual_seed(0)
        process = noise.process(3)
        before = process.draw(th.ones(4, dtype=th.bool)).clone()
        after = process.draw(th.tensor([False, True, False, True]))
        change = (after - before).abs().amax(dim=1)
        assert (change[[0, 2]] < 0.05).all() and (change[[1, 3]] > 0.05).all()


class Draws(BaseCallback):
    """Draws of each step: the deviation of an action from its mean, in standard deviations."""

    def _on_training_start(self) -> None:
        self.normals: list[th.Tensor] = []
        self.starts: list[np.ndarray] = []

    def _on_step(self) -> bool:
        model: Any = self.model
        normals = []
        for agent, policy in model.policies.items():
            raw, obs = self.locals["actions"][agent], self.locals["obs_tensor"][agent]
            with th.no_grad():
                inner: Any = policy.get_distribution(obs).distribution
            assert isinstance(inner, Normal)
            normals.append((raw - inner.mean) / inner.stddev)
            # Log-probabilities are those of independent draws
            exact = inner.log_prob(raw).sum(dim=1)
            assert th.allclose(self.locals["log_probs"][agent], exact, atol=1e-5)
        self.normals.append(th.stack(normals))
        self.starts.append(self.locals["state"].episode_starts.copy())
        return True


@pytest.mark.parametrize("setting", ["ou", "pink", np.float64(2.0)])
def test_rollouts_have_the_policys_marginal_and_its_log_probabilities(setting: Any) -> None:
    """In a whole training, with episodes of 7 steps and two agents that act in one call."""
    callback = Draws()
    settings = SMALL | dict(n_steps=63, batch_size=1008, policy_kwargs=dict(net_arch=[8]))
    HAPPO(team(16), exploration_noise=setting, **settings).learn(2 * 1008, callback)
    normals = th.stack(callback.normals)  # (126 steps, 2 agents, 16 environments, 2 actions)
    assert abs(float(normals.mean())) < 0.15
    assert float(normals.var()) == pytest.approx(1, abs=0.15)
    starts = th.as_tensor(np.stack(callback.starts))[1:]
    products = (normals[1:] * normals[:-1]).mean(dim=(1, 3))
    within, across = products[~starts].mean(), products[starts].mean()
    noise = NOISES.get(setting) if isinstance(setting, str) else ColoredNoise(float(setting))
    assert noise is not None
    assert float(within) == pytest.approx(float(noise.autocorrelation(np.array([1]))[0]), abs=0.12)
    assert abs(float(across)) < 0.12


@pytest.mark.parametrize("policy", ["MlpPolicy", "MlpLstmPolicy"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_algorithms_learn_with_it_and_save_it(
    algorithm: type[HAPPO], policy: str, tmp_path: Path
) -> None:
    net = dict(net_arch=[16]) if policy == "MlpPolicy" else dict(lstm_hidden_size=8)
    noise = ColoredNoise(0.5, horizon=20)
    model = algorithm(policy, team(), exploration_noise=noise, policy_kwargs=net, **SMALL)
    model.learn(64).save(tmp_path / "model.zip")
    loaded = type(model).load(tmp_path / "model.zip", env=team(n_envs=3))
    assert loaded.exploration_noise == noise
    loaded.learn(48, reset_num_timesteps=False)


def test_mixed_spaces_and_single_agents() -> None:
    """Continuous columns of Dict actions only; agents without a setting draw independently."""
    hybrid = spaces.Dict(
        {"push": BOX, "tool": spaces.Discrete(3), "turn": spaces.Box(-2, 2, (1,), np.float32)}
    )
    env = team(3, choice=spaces.Discrete(3), hybrid=hybrid, box=BOX, other=BOX)
    slow = OrnsteinUhlenbeckNoise(1e6)
    settings = SMALL | dict(n_steps=70, batch_size=210, learning_rate=0.0)
    callback = Actions()
    model = HAPPO(env, exploration_noise={"hybrid": slow, "box": slow, "other": None}, **settings)
    for own in model.policies.values():
        own.head.weight.data.zero_()  # the same means at every step
    model.learn(210, callback)
    hybrid_raw = th.stack([step["hybrid"] for step in callback.steps])
    assert [leaf.n_actions for leaf in action_leaves(hybrid)] == [2, 1, 1]
    changes = (hybrid_raw[1:] - hybrid_raw[:-1]).abs()
    # Nearly the same draw within an episode of 7 steps
    assert (changes[:, :, [0, 1, 3]].median(dim=0).values < 0.01).all()
    assert set(hybrid_raw[:, :, 2].flatten().tolist()) == {0.0, 1.0, 2.0}
    medians = {}
    for agent in ("box", "other"):
        raw = th.stack([step[agent] for step in callback.steps])
        medians[agent] = float((raw[1:] - raw[:-1]).abs().median())
    assert medians["box"] < 0.01 < 0.1 < medians["other"]
    masked = HAPPO(HeterogeneousTeam(), exploration_noise="pink", **SMALL)
    masked.learn(32)


def test_predict_draws_independently() -> None:
    model = HAPPO(team(), exploration_noise=OrnsteinUhlenbeckNoise(1e6), **SMALL).learn(32)
    obs = np.zeros((2000, 3), np.float32)
    taken, _ = model.policies["a"].predict(obs)
    assert abs(np.corrcoef(taken[:-1, 0], taken[1:, 0])[0, 1]) < 0.15


WRONG: dict[str, tuple[dict[str, Any], Any, str]] = {
    "discrete team": (DISCRETE, "ou", "exploration_noise='ou'.*no agent has some.*Omit it"),
    "discrete agent": (
        {"a": BOX, "b": spaces.Discrete(2)},
        {"b": "ou"},
        r"exploration_noise\['b'\].*Discrete\(2\).*Omit this agent",
    ),
    "unknown agent": ({}, {"aa": "ou"}, "unknown agent 'aa'. Did you mean 'a'|The team has"),
    "unknown name": ({}, "pinc", "'pinc' is unknown. Did you mean 'pink'"),
    "negative": ({}, -1.0, r"exponent of coloured noise must be in \[0, 2\], not -1.0"),
    "too large": ({}, {"a": 2.5}, r"exploration_noise\['a'\].*not 2.5"),
    "NaN": ({}, float("nan"), "not nan"),
    "a flag": ({}, True, "exploration_noise is True.*It takes"),
    "a list": ({}, ["ou"], "It takes"),
    "time 0": ({}, OrnsteinUhlenbeckNoise(0), "correlation_time must be greater than 0, not 0"),
    "horizon 1": ({}, ColoredNoise(1.0, 1), "horizon must be a whole number, at least 2, not 1"),
    "added": (
        {},
        NormalActionNoise(np.zeros(2), np.ones(2)),
        "would be added to actions.*log-probabilities.*exploration_noise=.ou.",
    ),
    "added OU": (
        {},
        OrnsteinUhlenbeckActionNoise(np.zeros(2), np.ones(2), theta=0.1, dt=1.0),
        r"would be added.*OrnsteinUhlenbeckNoise\(correlation_time=10\)",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_settings_are_named(case: str) -> None:
    action_spaces, noise, words = WRONG[case]
    with pytest.raises(ValueError, match=words):
        HAPPO(team(**action_spaces), exploration_noise=noise, **SMALL)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_noise_that_is_added_is_refused_with_the_reason(algorithm: type[HAPPO]) -> None:
    noise: Any = NormalActionNoise(np.zeros(2), np.ones(2))
    with pytest.raises(ValueError, match=r"action_noise=.*ratios.*HATD3"):
        algorithm(team(), action_noise=noise, **SMALL)


class Push(RandomTeam):
    """Constant observations, rewards that depend on the actions, and a state that can be set."""

    def __init__(self) -> None:
        super().__init__({"a": BOX, "b": BOX}, length=10**6)
        self.count = 0

    def reset(self, *args: Any, **kwargs: Any) -> Any:
        _, infos = super().reset(*args, **kwargs)
        self.count = 0
        return {agent: np.ones(3, np.float32) for agent in self.agents}, infos

    def step(self, actions: Any) -> Any:
        self.count += 1
        obs, _, *rest = super().step(actions)
        end = dict.fromkeys(obs, self.count == 50)
        rewards = {agent: float(action[0] - action[1] ** 2) for agent, action in actions.items()}
        if self.count == 50:
            self.agents = []
        ones = {agent: np.ones(3, np.float32) for agent in obs}
        return ones, rewards, end, *rest[1:]


class KeptEpisodes(JointDummyVecEnv):
    """Environments whose episodes go on after a checkpoint."""

    def get_state(self) -> list[int]:
        return self.get_attr("count")

    def set_state(self, states: list[int]) -> None:
        for index, count in enumerate(states):
            self.set_attr("count", count, index)


@pytest.mark.parametrize("kept", [False, True], ids=["new episodes", "kept episodes"])
@pytest.mark.parametrize(
    "settings",
    [
        dict(exploration_noise="ou"),
        dict(exploration_noise=ColoredNoise(1.0, horizon=40)),
        dict(use_sde=True, sde_sample_freq=3),
        dict(use_sde=True),
        dict(target_critic_tau=0.3),
    ],
    ids=["ou", "pink", "gsde 3", "gsde", "target critic"],
)
def test_checkpoints_continue_bit_for_bit(
    settings: dict[str, Any], kept: bool, tmp_path: Path
) -> None:
    """Episodes of 50 steps and rollouts of 16: kept ones have their noise in the middle."""

    def make() -> HAPPO:
        kind = KeptEpisodes if kept else JointDummyVecEnv
        env = make_joint_vec_env(Push, 2, seed=1, vec_env_cls=kind)
        return HAPPO(env, policy_kwargs=dict(net_arch=[8]), **SMALL, **settings)

    def state(model: HAPPO) -> list[th.Tensor]:
        matrices = []
        for own in model.policies.values():
            if own.sde is not None:
                matrices += own.sde.state()
        return [*model.policy.state_dict().values(), *matrices]

    first = make().learn(64)
    assert first.keeps_episodes == kept
    first.save_checkpoint(tmp_path / "checkpoint.zip")
    # Before another model is made, which seeds the global generators
    first.learn(96, reset_num_timesteps=False)
    second = HAPPO.load_checkpoint(tmp_path / "checkpoint.zip", env=make().get_env())
    second.learn(96, reset_num_timesteps=False)
    for mine, theirs in zip(state(first), state(second), strict=True):
        assert th.equal(mine, theirs)
