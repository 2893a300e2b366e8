"""Callbacks, evaluation, wrappers and loggers of Stable-Baselines3 work unchanged."""

import copy
import csv
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    ProgressBarCallback,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
)

from sb3_happo import HAPPO, HATRPO, JointEnv, make_joint_vec_env
from tests.algorithms import (
    PLAIN_SPACES,
    alike_team,
    collect,
    every_algorithm,
    random_team,
    same,
    small,
    snapshot,
)
from tests.envs import HeterogeneousTeam, MaskedGame, MatrixGame, RandomTeam, TurnGame


def one_right_answer() -> MatrixGame:
    """Reward 1 where both play 1."""
    return MatrixGame(2, np.array([[0.0, 0.0], [0.0, 1.0]]))


FAST_LEARNER: dict[str, Any] = dict(n_steps=64, n_epochs=5, learning_rate=0.02, seed=0)


# ---------------------------------------------------------------- callbacks


@every_algorithm
def test_eval_callback_keeps_the_best_model(algorithm: type[HAPPO], tmp_path: Path) -> None:
    eval_env = Monitor(JointEnv(one_right_answer()))
    callback = EvalCallback(
        eval_env,
        n_eval_episodes=5,
        eval_freq=32,
        best_model_save_path=str(tmp_path),
        log_path=str(tmp_path),
        deterministic=True,
        verbose=0,
    )
    model = small(
        algorithm, one_right_answer(), n_steps=32, learning_rate=0.05, n_epochs=5, seed=0
    ).learn(640, callback=callback)
    results = np.load(tmp_path / "evaluations.npz")["results"]
    assert len(results) == 20
    assert set(results.flatten()) <= {0.0, 1.0}, (
        "deterministic: all five episodes of an evaluation are alike"
    )
    assert (results.min(axis=1) == results.max(axis=1)).all()
    assert callback.best_mean_reward == results.mean(axis=1).max() == 1.0
    best = algorithm.load(tmp_path / "best_model")
    assert evaluate_policy(best, eval_env, n_eval_episodes=3, deterministic=True)[0] == 1.0
    assert best.num_timesteps <= model.num_timesteps


def test_eval_callback_with_several_environments_and_normalisation() -> None:
    env = VecNormalize(DummyVecEnv([one_right_answer_joint] * 2), gamma=0.9)
    eval_env = VecNormalize(
        VecMonitor(DummyVecEnv([one_right_answer_joint] * 2)), training=False, norm_reward=False
    )
    callback = EvalCallback(eval_env, n_eval_episodes=4, eval_freq=32, verbose=0)
    small(HAPPO, env, seed=0, gamma=0.9).learn(256, callback=callback)
    assert callback.best_mean_reward >= 0.0
    assert eval_env.obs_rms["state"].count == env.obs_rms["state"].count > 100


def one_right_answer_joint() -> JointEnv:
    return JointEnv(one_right_answer())


def test_training_stops_at_a_reward_threshold() -> None:
    stop = StopTrainingOnRewardThreshold(reward_threshold=0.9)
    callback = EvalCallback(
        Monitor(one_right_answer_joint()), stop, n_eval_episodes=3, eval_freq=64, verbose=0
    )
    model = small(HAPPO, one_right_answer(), **FAST_LEARNER).learn(20_000, callback=callback)
    assert model.num_timesteps < 20_000
    assert callback.best_mean_reward >= 0.9


def test_training_stops_after_a_number_of_episodes() -> None:
    model = small(HAPPO, one_right_answer(), n_steps=64).learn(
        1000, callback=StopTrainingOnMaxEpisodes(max_episodes=10)
    )
    assert model.num_timesteps == 10


@every_algorithm
def test_checkpoints(algorithm: type[HAPPO], tmp_path: Path) -> None:
    env = VecNormalize(random_team(2))
    callback = CheckpointCallback(
        save_freq=32, save_path=str(tmp_path), name_prefix="team", save_vecnormalize=True
    )
    model = small(algorithm, env, seed=0).learn(128, callback=callback)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"team_{kind}{steps}_steps.{end}"
        for steps in (64, 128)
        for kind, end in (("", "zip"), ("vecnormalize_", "pkl"))
    }
    # A checkpoint is written at a step, before the rollout that it ends is learned from
    early = algorithm.load(tmp_path / "team_64_steps")
    assert early.num_timesteps == 64
    assert same(
        snapshot(early.policy),
        snapshot(small(algorithm, VecNormalize(random_team(2)), seed=0).policy),
    )
    late = algorithm.load(tmp_path / "team_128_steps", env=random_team(3))
    assert late.num_timesteps == 128 and not same(snapshot(early.policy), snapshot(late.policy))
    assert not same(snapshot(late.policy), snapshot(model.policy))


def test_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    pytest.importorskip("rich")
    small(HAPPO, one_right_answer()).learn(64, progress_bar=True)
    small(HAPPO, one_right_answer()).learn(64, callback=ProgressBarCallback())
    captured = capsys.readouterr()
    assert "64/64" in captured.out + captured.err


class Watcher(BaseCallback):
    """Reads what SB3's documentation promises to callbacks."""

    def __init__(self) -> None:
        super().__init__()
        self.rewards: list[float] = []
        self.dones = 0
        self.events: list[str] = []

    def _on_training_start(self) -> None:
        self.events.append("training starts")

    def _on_rollout_start(self) -> None:
        self.events.append("rollout starts")

    def _on_rollout_end(self) -> None:
        self.events.append("rollout ends")
        assert self.locals["rollout_buffer"].full

    def _on_training_end(self) -> None:
        self.events.append("training ends")

    def _on_step(self) -> bool:
        locals_ = self.locals
        assert (
            len(locals_["infos"])
            == len(locals_["dones"])
            == len(locals_["rewards"])
            == self.training_env.num_envs
        )
        assert "agent_rewards" in locals_["infos"][0]
        self.rewards.extend(locals_["rewards"])
        self.dones += int(locals_["dones"].sum())
        assert locals_["n_steps"] == (self.n_calls - 1) % 32
        assert (
            self.model.num_timesteps
            == self.num_timesteps
            == self.n_calls * self.training_env.num_envs
        )
        return True


@every_algorithm
def test_callbacks_see_what_they_see_with_ppo(algorithm: type[HAPPO]) -> None:
    watcher = Watcher()
    small(algorithm, DummyVecEnv([one_right_answer_joint] * 2), n_steps=32).learn(
        128, callback=[watcher]
    )
    assert watcher.events == [
        "training starts",
        *["rollout starts", "rollout ends"] * 2,
        "training ends",
    ]
    assert len(watcher.rewards) == watcher.dones == 128


def test_callbacks_may_be_functions_and_nest() -> None:
    calls: list[int] = []
    watcher = Watcher()

    def count(locals_: dict[str, Any], globals_: dict[str, Any]) -> bool:
        calls.append(len(locals_["infos"]))
        return len(calls) < 40

    small(HAPPO, one_right_answer()).learn(64, callback=count)
    assert calls == [1] * 40, "training should stop where the callback returns False"
    small(HAPPO, one_right_answer()).learn(64, callback=EveryNTimesteps(1, watcher))
    assert len(watcher.rewards) == 64


# ---------------------------------------------------------------- evaluation


@every_algorithm
def test_evaluate_policy(algorithm: type[HAPPO]) -> None:
    model = small(algorithm, random_team(2), seed=0)
    for env in (
        JointEnv(RandomTeam(PLAIN_SPACES)),
        Monitor(JointEnv(RandomTeam(PLAIN_SPACES))),
        random_team(3),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            rewards, lengths = evaluate_policy(
                model, env, n_eval_episodes=5, return_episode_rewards=True
            )
        assert len(rewards) == 5 and lengths == [10] * 5  # type: ignore[arg-type]


def test_joint_environments_pass_sb3s_checks_of_spaces() -> None:
    """
    SB3's checker speaks for the observation side; that a Dict is no action space of its own
    algorithms is expected.
    """
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        check_env(JointEnv(RandomTeam(PLAIN_SPACES)), warn=False, skip_render_check=True)


# ---------------------------------------------------------------- wrappers


def test_monitor_writes_the_teams_episodes(tmp_path: Path) -> None:
    model = small(HAPPO, Monitor(one_right_answer_joint(), str(tmp_path / "log"))).learn(64)
    rows = (tmp_path / "log.monitor.csv").read_text().splitlines()
    assert rows[1] == "r,l,t" and len(rows) == 2 + 64
    assert {row.split(",")[1] for row in rows[2:]} == {"1"}
    assert len(model.ep_info_buffer or ()) == 64


def test_bare_environments_are_monitored() -> None:
    """As with SB3: a single environment gets a `Monitor`, so that returns are logged."""
    model = small(HAPPO, RandomTeam(PLAIN_SPACES)).learn(32)
    assert [info["l"] for info in model.ep_info_buffer or ()] == [10] * 3


@every_algorithm
def test_vec_normalize(algorithm: type[HAPPO]) -> None:
    env = VecNormalize(random_team(2), gamma=0.9)
    model = small(algorithm, env, gamma=0.9, seed=0).learn(128)
    assert model.get_vec_normalize_env() is env
    collect(model)
    for key, stored in model.rollout_buffer.observations.items():
        assert abs(stored.mean()) < 0.5 and 0.5 < stored.std() < 1.5, key


def test_vec_normalize_of_some_keys_beside_masks_and_images() -> None:
    team = JointEnv(HeterogeneousTeam())
    keys = ["arm/position", "crane", "console"]
    env = VecNormalize(DummyVecEnv([lambda: team]), norm_obs_keys=keys)
    model = small(HAPPO, env, seed=0).learn(64)
    collect(model)
    masks = model.rollout_buffer.observations["camera/action_mask"]
    assert set(masks.unique().tolist()) == {0, 1}
    assert model.rollout_buffer.observations["camera"].dtype == th.uint8


@pytest.mark.parametrize("monitor_inside", [True, False])
def test_vec_monitor(monitor_inside: bool) -> None:
    env: Any = random_team(2)
    env = VecNormalize(VecMonitor(env)) if monitor_inside else VecMonitor(VecNormalize(env))
    model = small(HAPPO, env).learn(64)
    infos = model.ep_info_buffer or ()
    assert len(infos) == 6 and {info["l"] for info in infos} == {10}


@every_algorithm
@pytest.mark.parametrize("team", [partial(RandomTeam, PLAIN_SPACES), MaskedGame])
def test_vec_frame_stack(algorithm: type[HAPPO], team: Any) -> None:
    """
    Frames of observations are stacked; of stacked masks the last one counts (the game raises on
    illegal actions).
    """
    env = VecFrameStack(DummyVecEnv([lambda: JointEnv(team())] * 2), n_stack=3)
    model = small(algorithm, env, seed=0).learn(64)
    agent = model.agents[0]
    space = model.policies[agent].observation_space
    assert space.shape == ((9,) if agent == "discrete" else (3,))
    evaluate_policy(
        model,
        VecFrameStack(DummyVecEnv([lambda: JointEnv(team())]), n_stack=3),
        n_eval_episodes=2,
        warn=False,
    )


def test_subprocesses_give_the_same_numbers() -> None:
    parameters = []
    for env in (random_team(2), SubprocVecEnv([new_random_team] * 2, start_method="fork")):
        parameters.append(snapshot(small(HAPPO, env, seed=0).learn(64).policy))
        env.close()
    assert same(*parameters)


def new_random_team() -> JointEnv:
    return JointEnv(RandomTeam(PLAIN_SPACES))


def test_make_vec_env_and_wrappers_of_gymnasium() -> None:
    env = make_vec_env(
        one_right_answer_joint,
        n_envs=2,
        seed=0,
        wrapper_class=lambda env: gym.wrappers.TimeLimit(env, 5),
    )
    model = small(HAPPO, env, seed=0).learn(64)
    assert len(model.ep_info_buffer or ()) == 64
    env = make_joint_vec_env("CartPole-v1", 2, seed=0, vec_env_cls=DummyVecEnv)
    small(HAPPO, env, seed=0).learn(64)


def test_images_are_transposed_as_sb3_does() -> None:
    model = small(HAPPO, HeterogeneousTeam())
    assert model.observation_space["camera"].shape == (3, 36, 36)  # type: ignore[index]
    assert model.policies["camera"].observation_space.shape == (3, 36, 36)


# ---------------------------------------------------------------- loggers

TEAM_KEYS = {
    "time/fps",
    "time/iterations",
    "time/time_elapsed",
    "time/total_timesteps",
    "rollout/ep_len_mean",
    "rollout/ep_rew_mean",
    "train/value_loss",
    "train/explained_variance",
    "train/factor_mean",
    "train/factor_std",
    "train/factor_ess",
    "train/learning_rate",
    "train/critic_learning_rate",
    "train/n_updates",
}


def agent_keys(algorithm: type[HAPPO]) -> set[str]:
    if algorithm is HATRPO:
        return {"policy_objective", "kl", "step_fraction"}
    return {"policy_loss", "approx_kl", "clip_fraction", "entropy"}


@every_algorithm
def test_logged_keys(algorithm: type[HAPPO], tmp_path: Path) -> None:
    """
    Per agent the policy's health, for the team the critic's and the factor's; in CSV, JSON, tables
    and TensorBoard.
    """
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    model = small(algorithm, RandomTeam(PLAIN_SPACES), seed=0)
    model.set_logger(configure(str(tmp_path), ["csv", "json", "log", "tensorboard"]))
    model.learn(64)
    wanted = (
        TEAM_KEYS
        | {f"{agent}/{key}" for agent in PLAIN_SPACES for key in agent_keys(algorithm)}
        | {"box/std"}
    )
    with open(tmp_path / "progress.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    assert wanted <= set(rows[-1])
    # The numbers of the first update are logged with the second rollout's, in SB3's way
    assert all(np.isfinite(float(rows[-1][key])) for key in wanted)
    assert "discrete/std" not in rows[-1]
    events = event_accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert wanted - {
        "time/iterations",
        "time/time_elapsed",
        "time/total_timesteps",
        "train/n_updates",
    } <= set(events.Tags()["scalars"])


def test_factor_statistics() -> None:
    """Kish's effective sample size is the share of the samples that count."""

    def figures(factor: list[float]) -> tuple[float, float, float]:
        class GivenFactor(HAPPO):
            def _next_factor(self, data: Any, factor_before: th.Tensor) -> th.Tensor:
                return th.tensor(factor)

        model = small(GivenFactor, alike_team(), n_steps=len(factor), n_epochs=1)
        model.learn(len(factor), log_interval=100)
        values = model.logger.name_to_value
        mean, std = values["train/factor_mean"], values["train/factor_std"]
        return mean, std, values["train/factor_ess"]

    assert figures([1.0] * 32) == (1.0, 0.0, 1.0)
    # One sample of four carries everything
    assert figures([0.0, 0.0, 0.0, 8.0]) == (2.0, 4.0, 0.25)


def test_default_tensorboard_name_is_the_algorithms(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    small(HATRPO, one_right_answer(), tensorboard_log=str(tmp_path)).learn(32)
    assert [path.name for path in tmp_path.iterdir()] == ["HATRPO_1"]


def test_console_logger_takes_long_and_similar_names(capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"a_robot_with_a_name_of_many_words_{index}" for index in range(3)]
    small(HAPPO, RandomTeam(dict.fromkeys(names, spaces.Discrete(2))), verbose=1).learn(64)
    table = capsys.readouterr().out
    assert all(f"a_robot_with~{index}/" in table for index in range(3))


def test_verbose_tells_the_device(capsys: pytest.CaptureFixture[str]) -> None:
    small(HAPPO, one_right_answer(), verbose=1)
    assert "Using cpu device" in capsys.readouterr().out
    small(HAPPO, one_right_answer()).learn(32)
    assert capsys.readouterr().out == ""


# ---------------------------------------------------------------- callbacks that stop, and look


@pytest.mark.parametrize(
    "make", [lambda: TurnGame(3), HeterogeneousTeam, lambda: MaskedGame(length=7)]
)
def test_training_goes_on_after_a_callback_has_stopped_it(make: Callable[[], Any]) -> None:
    """The environments raise on illegal actions, and on those of agents that are not on turn."""
    for stop in range(1, 9):
        model = small(HAPPO, make(), n_steps=8, batch_size=8, n_epochs=1, seed=stop)
        model.learn(64, StopAt(stop))
        assert model.num_timesteps == stop
        model.learn(64, reset_num_timesteps=False)


class StopAt(BaseCallback):
    def __init__(self, n_steps: int) -> None:
        super().__init__()
        self.n_steps = n_steps

    def _on_step(self) -> bool:
        return self.num_timesteps < self.n_steps


def test_a_callback_may_copy_the_model() -> None:
    copies: list[HAPPO] = []

    class Copying(BaseCallback):
        def _on_step(self) -> bool:
            copies.append(copy.deepcopy(self.model))  # type: ignore[arg-type]
            return len(copies) < 3

    model = small(HAPPO, alike_team(), seed=0).learn(32, Copying())
    assert same(snapshot(copies[0].policy), snapshot(model.policy))
    copies[0].learn(32)


def test_a_new_learning_rate_is_the_one_used() -> None:
    """SB3's way of changing it; an agent with its own keeps that."""
    own = dict(agent_kwargs={"agent_1": dict(learning_rate=2e-3)})

    class Changeable(HAPPO):
        def change_learning_rate(self, learning_rate: float) -> None:
            self.learning_rate = learning_rate
            self._setup_lr_schedule()

    model = small(Changeable, alike_team(), policy_kwargs=own, learning_rate=1e-3).learn(32)
    model.change_learning_rate(1e-5)
    model.learn(32)
    rates = [policy.optimizer.param_groups[0]["lr"] for policy in model.policies.values()]
    assert [*rates, model.critic.optimizer.param_groups[0]["lr"]] == [1e-5, 2e-3, 1e-5, 1e-5]
