"""Faults while training: the last good model is saved, errors name the agent, nothing is left."""

import faulthandler
import multiprocessing
import os
import re
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecNormalize

from sb3_happo import (
    HAA2C,
    HAPPO,
    HATRPO,
    IPPO,
    MAPPO,
    EvalCallback,
    JointEnv,
    make_joint_vec_env,
)
from sb3_happo.common.finite import NotFiniteError, check_finite
from sb3_happo.vec_env import (
    JointDummyVecEnv,
    JointSubprocVecEnv,
    VecNormalizeTeam,
    choose_vec_env,
    watchdog,
)
from sb3_happo.vec_env.watchdog import WorkerTimeoutError
from tests.algorithms import (
    ALGORITHMS,
    PLAIN_SPACES,
    LstmHAPPO,
    alike_team,
    every_algorithm,
    same,
    small,
    snapshot,
)
from tests.envs import RandomTeam

SHARED_MEMORY = Path("/dev/shm")


class Faulty(RandomTeam):
    """Does something wrong at one of its steps, counted over all episodes."""

    def __init__(self, fault: Callable[[], None], step: int) -> None:
        super().__init__({"arm": spaces.Discrete(2), "leg": spaces.Discrete(2)})
        self.fault, self.left = fault, step

    def step(self, actions: dict[Any, Any]) -> Any:
        self.left -= 1
        if self.left == 0:
            self.fault()
        return super().step(actions)

    def pid(self) -> int:
        return os.getpid()


def fail() -> None:
    raise ZeroDivisionError("the simulator is broken")


def hang() -> None:
    time.sleep(30)


def faulty(fault: Callable[[], None], step: int) -> JointEnv:
    return JointEnv(Faulty(fault, step))


class Recorder(BaseCallback):
    """Keeps the weights at the beginning of each rollout, and calls a function at a timestep."""

    def __init__(self, at: int = -1, act: Callable[[Any], None] | None = None) -> None:
        super().__init__()
        self.at, self.act = at, act
        self.weights: list[dict[str, th.Tensor]] = []

    def _on_rollout_start(self) -> None:
        self.weights.append(snapshot(self.model.policy))

    def _on_step(self) -> bool:
        if self.num_timesteps == self.at and self.act is not None:
            self.act(self.model)
        return True


def saved_weights(model: HAPPO, error: BaseException, folder: Path) -> dict[str, th.Tensor]:
    """Weights in the file that an error names."""
    path = folder / "last_good.zip"
    assert model.last_good_path == str(path)
    assert str(path) in str(error)
    # A schedule that is a lambda is not in the file
    loaded = type(model).load(path, device="cpu", custom_objects={"learning_rate": 1e-3})
    assert loaded.last_good_path is None and loaded.last_good_folder is None
    check_finite(loaded)
    return snapshot(loaded.policy)


# ---------------------------------------------------------------- the last good model


@every_algorithm
def test_the_last_good_model_is_saved_where_the_environment_raises(
    algorithm: type[HAPPO], tmp_path: Path
) -> None:
    """In the second rollout: the weights are those after the first update."""
    model = small(algorithm, faulty(fail, 40), seed=0)
    model.set_logger(configure(str(tmp_path), []))
    recorder = Recorder()
    with pytest.raises(ZeroDivisionError, match="the simulator is broken") as caught:
        model.learn(128, recorder)
    assert len(recorder.weights) == 2
    saved = saved_weights(model, caught.value, tmp_path)
    assert same(saved, recorder.weights[1]) and not same(saved, recorder.weights[0])
    assert same(saved, snapshot(model.policy))


def test_the_training_goes_on_from_the_file(tmp_path: Path) -> None:
    model = small(HAPPO, faulty(fail, 40), seed=0)
    model.last_good_folder = str(tmp_path / "new")
    with pytest.raises(ZeroDivisionError):
        model.learn(128)
    again = HAPPO.load(tmp_path / "new" / "last_good.zip", faulty(fail, -1))
    again.learn(32, reset_num_timesteps=False)
    assert again.last_good_path is None
    # The same model goes on too, where the environment does
    model.set_env(faulty(fail, -1))
    model.learn(64, reset_num_timesteps=False)


@pytest.mark.parametrize("kind", ["tensorboard", "checkpoint", "evaluation", "default"])
def test_folder_of_the_last_good_model(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder that the user has given for logs or models, otherwise that of SB3's logger."""
    monkeypatch.setenv("SB3_LOGDIR", str(tmp_path / "default"))
    kwargs: dict[str, Any] = {}
    callback: Any = None
    if kind == "tensorboard":
        pytest.importorskip("tensorboard")
        kwargs["tensorboard_log"] = str(tmp_path / kind)
    elif kind == "checkpoint":
        callback = [CheckpointCallback(1000, str(tmp_path / kind))]
    elif kind == "evaluation":
        callback = [EvalCallback(faulty(fail, -1), eval_freq=1000, log_path=str(tmp_path / kind))]
    model = small(HAPPO, faulty(fail, 3), **kwargs)
    with pytest.raises(ZeroDivisionError, match=re.escape(str(tmp_path / kind))):
        model.learn(32, callback)
    (path,) = (tmp_path / kind).rglob("last_good.zip")
    assert model.last_good_path == str(path)


def test_nothing_is_saved_before_anything_was_learned(tmp_path: Path) -> None:
    model = small(HAPPO, faulty(fail, 1))
    model.last_good_folder = str(tmp_path)
    with pytest.raises(ZeroDivisionError, match=r"broken$"):
        model.learn(32)
    assert model.last_good_path is None and not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_does_not_hide_the_error(tmp_path: Path) -> None:
    model = small(HAPPO, faulty(fail, 40))
    blocked = tmp_path / "file"
    blocked.write_text("")
    model.last_good_folder = str(blocked)
    with pytest.raises(ZeroDivisionError, match=r"broken[^$]*could not be saved"):
        model.learn(64)
    assert model.last_good_path is None


def test_errors_without_a_text_get_a_note(tmp_path: Path) -> None:
    def fail_with_a_key() -> None:
        raise KeyError("leg")

    model = small(HAPPO, faulty(fail_with_a_key, 40))
    model.last_good_folder = str(tmp_path)
    if sys.version_info >= (3, 11):
        with pytest.raises(KeyError) as caught:
            model.learn(64)
        assert "last_good.zip" in "".join(caught.value.__notes__)
    else:
        with pytest.raises(KeyError), pytest.warns(UserWarning, match=r"last_good\.zip"):
            model.learn(64)


def test_an_evaluation_that_fails(tmp_path: Path) -> None:
    model = small(HAPPO, faulty(fail, -1))
    model.last_good_folder = str(tmp_path)
    callback = EvalCallback(faulty(fail, 5), eval_freq=40, n_eval_episodes=1, verbose=0)
    with pytest.raises(ZeroDivisionError, match=r"last_good\.zip"):
        model.learn(64, callback)


def test_statistics_of_normalisation_are_saved_too(tmp_path: Path) -> None:
    """NaN in a normalised observation would spoil the statistics: they go back as well."""
    env = VecNormalize(JointDummyVecEnv([partial(nan_team, "observation", 37)]))
    model = small(HAPPO, env, seed=0)
    model.last_good_folder = str(tmp_path)
    with pytest.raises(ValueError, match=r"last_good\.zip"):
        model.learn(64)
    normalize = model.get_vec_normalize_env()
    assert normalize is not None and isinstance(normalize.obs_rms, dict)
    assert all(np.isfinite(rms.mean).all() for rms in normalize.obs_rms.values())
    fresh = JointDummyVecEnv([partial(nan_team, "observation", -1)])
    loaded = VecNormalizeTeam.load(str(tmp_path / "last_good.zip"), fresh)
    assert isinstance(loaded.obs_rms, dict)
    for key, rms in normalize.obs_rms.items():
        np.testing.assert_array_equal(rms.mean, loaded.obs_rms[key].mean)
    assert normalize.obs_rms["leg"].count == pytest.approx(33, abs=0.1), "one rollout"


def test_a_copy_of_the_model_during_training_has_no_copies_of_weights() -> None:
    states: list[dict[str, Any]] = []
    model = small(HAPPO, alike_team())
    model.learn(64, Recorder(10, lambda model: states.append(model.__getstate__())))
    assert states[0]["_last_good"] is None


# ---------------------------------------------------------------- NaN


class NanTeam(RandomTeam):
    """NaN in the observation or the reward of an agent, at one of its steps."""

    def __init__(self, what: str, step: int) -> None:
        super().__init__({"arm": spaces.Discrete(2), "leg": spaces.Discrete(2)})
        self.what, self.left = what, step

    def step(self, actions: dict[Any, Any]) -> Any:
        self.left -= 1
        answer = super().step(actions)
        if self.left == 0:
            if self.what == "reward":
                answer[1]["leg"] = np.nan
            else:
                answer[0]["leg"] = answer[0]["leg"] * np.nan
        return answer


def nan_team(what: str, step: int) -> JointEnv:
    return JointEnv(NanTeam(what, step))


@pytest.mark.parametrize("algorithm", [HAPPO, IPPO, LstmHAPPO])
@pytest.mark.parametrize("what", ["reward", "observation"])
def test_nan_from_the_environment(algorithm: type[HAPPO], what: str, tmp_path: Path) -> None:
    model = small(algorithm, nan_team(what, 37), seed=0)
    model.last_good_folder = str(tmp_path)
    recorder = Recorder()
    with pytest.raises(ValueError, match=f"NaN or infinity in .*{what}.*'leg'") as caught:
        model.learn(64, recorder)
    assert same(saved_weights(model, caught.value, tmp_path), recorder.weights[1])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("owner", ["agent_1", "critic"])
@pytest.mark.filterwarnings("ignore:.*was left out")
def test_nan_in_weights(algorithm: type[HAPPO], owner: str, tmp_path: Path) -> None:
    """Set by a callback, in the middle of the second rollout."""

    def spoil(model: Any) -> None:
        module = model.critic if owner == "critic" else model.policies[owner]
        with th.no_grad():
            next(iter(module.parameters())).fill_(np.nan)

    model = small(algorithm, alike_team(space=PLAIN_SPACES["box"]), seed=0)
    model.last_good_folder = str(tmp_path)
    recorder = Recorder(40, spoil)
    # Agents of MAPPO and IPPO share their network
    named = "the critic" if owner == "critic" else "agent 'agent_[01]'"
    with pytest.raises(NotFiniteError, match=named) as caught:
        model.learn(96, recorder)
    assert same(saved_weights(model, caught.value, tmp_path), recorder.weights[1])


class NanGradients(HAPPO):
    """The loss of an agent is NaN from the second update on."""

    def _policy_loss(self, log_prob: th.Tensor, batch: Any) -> th.Tensor:
        loss = super()._policy_loss(log_prob, batch)
        return loss * np.nan if self._n_updates >= 1 else loss


@pytest.mark.filterwarnings("ignore:agent 'agent_[12]'")
def test_gradients_that_stay_nan_end_the_training(tmp_path: Path) -> None:
    """Single ones are left out; three updates without any are an error."""
    model = small(NanGradients, alike_team(), seed=0, agent_order="fixed")
    model.last_good_folder = str(tmp_path)
    recorder = Recorder()
    match = "agent 'agent_0': all gradients of 3 updates in a row were NaN"
    with (
        pytest.warns(UserWarning, match="agent 'agent_0': a gradient was NaN"),
        pytest.raises(NotFiniteError, match=match) as caught,
    ):
        model.learn(320, recorder)
    assert len(recorder.weights) == 4
    assert same(saved_weights(model, caught.value, tmp_path), recorder.weights[3])
    again = HAPPO.load(tmp_path / "last_good.zip", alike_team(), check_class=False)
    again.learn(32)


@pytest.mark.parametrize("space", PLAIN_SPACES.values(), ids=PLAIN_SPACES)
@pytest.mark.parametrize("algorithm", [HAPPO, HAA2C, MAPPO, LstmHAPPO])
@pytest.mark.filterwarnings("ignore:.*a gradient was NaN")
def test_weights_that_explode_within_an_update(
    algorithm: type[HAPPO], space: spaces.Space, tmp_path: Path
) -> None:
    """The error is not PyTorch's own, names the agent, and the weights of before are kept."""
    rates = lambda progress: 1e-3 if progress > 0.5 else 1e38  # noqa: E731
    model = small(algorithm, alike_team(2, space), learning_rate=rates, n_epochs=4, seed=0)
    model.last_good_folder = str(tmp_path)
    recorder = Recorder()
    with pytest.raises(NotFiniteError, match=r"agent 'agent_[01]'|the critic") as caught:
        model.learn(96, recorder)
    saved = saved_weights(model, caught.value, tmp_path)
    assert len(recorder.weights) in (2, 3)
    # The rate explodes in the second update, and the fault is seen in it or in the next rollout
    assert same(saved, recorder.weights[1])
    for policy in model.policies.values():
        for state in policy.optimizer.state.values():
            assert all(bool(value.isfinite().all()) for value in state.values())
    env: Any = model.get_env()
    model.predict(env.reset())


@pytest.mark.filterwarnings("ignore:.*trust-region step was NaN")
def test_trust_region_steps_that_stay_nan_end_the_training() -> None:
    model = small(HATRPO, alike_team(2), target_kl=3e38, seed=0)
    match = "agent 'agent_[01]': all gradients of 3 updates"
    with pytest.raises(NotFiniteError, match=match):
        model.learn(160)


def test_the_last_update_is_checked_too() -> None:
    model = small(MAPPO, alike_team(2), learning_rate=1e38, n_epochs=1, seed=0)
    with pytest.raises(NotFiniteError, match="agent 'agent_0'"):
        model.learn(32)


def test_check_finite_names_agent_and_parameter() -> None:
    model = small(HAPPO, alike_team()).learn(32)
    for part in (model, model.policy, model.policies["agent_1"]):
        check_finite(part)
    body: Any = model.policies["agent_1"].body
    weight = body[0].weight
    with th.no_grad():
        weight[0, 0] = np.inf
    for part in (model, model.policy):
        with pytest.raises(NotFiniteError, match=r"'body.0.weight' of agent 'agent_1'\.$"):
            check_finite(part)
    with pytest.raises(NotFiniteError, match=r"in 'body.0.weight'\.$"):
        check_finite(model.policies["agent_1"])
    check_finite(model.policies["agent_0"])
    with th.no_grad():
        weight[0, 0] = 0.0
    state = next(iter(model.critic.optimizer.state.values()))
    state["exp_avg"].fill_(np.nan)
    with pytest.raises(NotFiniteError, match=r"'exp_avg' of parameter 0 .*of the critic"):
        check_finite(model)


# ---------------------------------------------------------------- the factor


class Vanishing(HAPPO):
    """Every agent's ratios are nearly 0."""

    def _update_actors(self, data: dict[str, Any]) -> None:
        super()._update_actors(data)
        for agent, batch in data.items():
            batch.old_log_prob.add_(3.0)
            data[agent] = batch


def test_agents_behind_a_vanished_factor_are_named() -> None:
    """With 30 agents the product is bounded, and those who learn nothing are named."""
    model = small(Vanishing, alike_team(30), seed=0, agent_order="fixed", n_steps=8)
    with pytest.warns(UserWarning, match="learned next to nothing") as caught:
        model.learn(16)
    texts = [str(one.message) for one in caught]
    (idle,) = [text for text in texts if "learned next to nothing" in text]
    assert "'agent_3', 'agent_4', " in idle and "and 17 more" in idle and "'agent_1'" not in idle
    assert any("overflowed" in text for text in texts)
    assert model.logger.name_to_value["train/factor_mean"] > 0


# ---------------------------------------------------------------- workers


def workers(fault: Callable[[], None], step: int, **kwargs: Any) -> JointSubprocVecEnv:
    """Two workers, of which the second has the fault."""
    env_fns = [partial(faulty, fault, -1), partial(faulty, fault, step)]
    kwargs = dict[str, Any](start_method="fork", step_timeout=0.4) | kwargs
    return JointSubprocVecEnv(env_fns, 2, **kwargs)


def pids_of(env: JointSubprocVecEnv) -> list[int]:
    return env.env_method("pid")


def assert_gone(pids: list[int]) -> None:
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_worker_that_hangs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = set(SHARED_MEMORY.iterdir()) if SHARED_MEMORY.is_dir() else set()
    env = workers(hang, 40)
    pids = pids_of(env)
    model = small(HAPPO, env, seed=0)
    model.last_good_folder = str(tmp_path)
    recorder = Recorder()
    match = r"Environment 1 did not answer within step_timeout=0.4 s; .* hangs"
    with pytest.raises(WorkerTimeoutError, match=match) as caught:
        model.learn(256, recorder)
    assert isinstance(caught.value, (RuntimeError, TimeoutError))
    assert same(saved_weights(model, caught.value, tmp_path), recorder.weights[-1])
    assert_gone(pids)
    if SHARED_MEMORY.is_dir():
        assert set(SHARED_MEMORY.iterdir()) <= before
    if hasattr(signal, "SIGUSR1"):
        assert "in hang" in capfd.readouterr().err, "the worker has written where"


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs POSIX signals")
@pytest.mark.parametrize("request_", ["step", "reset", "call"])
def test_a_worker_that_was_stopped(request_: str) -> None:
    env = workers(hang, -1)
    pids = pids_of(env)
    env.reset()
    os.kill(pids[1], signal.SIGSTOP)
    requests: dict[str, Callable[[], Any]] = {
        "step": lambda: env.step([{"arm": 0, "leg": 0}] * 2),  # type: ignore[arg-type]
        "reset": env.reset,
        "call": lambda: env.get_attr("agents"),
    }
    with pytest.raises(RuntimeError, match=r"Environment 1 did not answer.*stopped by a signal"):
        requests[request_]()
    assert_gone(pids)


def test_a_killed_worker_and_one_that_raises(tmp_path: Path) -> None:
    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    for fault, match in ((die, "has died"), (fail, "the simulator is broken")):
        env = workers(fault, 40, step_timeout=None, parent_works=False)
        pids = pids_of(env)
        model = small(HAPPO, env, seed=0)
        model.last_good_folder = str(tmp_path)
        with pytest.raises(RuntimeError, match=match) as caught:
            model.learn(256)
        saved_weights(model, caught.value, tmp_path)
        assert_gone(pids)


@pytest.mark.filterwarnings("ignore:Training and eval env are not", "ignore:Evaluation env")
def test_an_evaluation_in_workers_that_hangs(tmp_path: Path) -> None:
    model = small(HAPPO, faulty(fail, -1))
    model.last_good_folder = str(tmp_path)
    callback = EvalCallback(workers(hang, 5), eval_freq=40, verbose=0)
    with pytest.raises(WorkerTimeoutError, match=r"last_good\.zip"):
        model.learn(64, callback)


def test_slow_answers_in_time_are_no_fault() -> None:
    env = workers(partial(time.sleep, 0.3), 2, step_timeout=5)
    env.reset()
    for _ in range(4):
        env.step([{"arm": 0, "leg": 0}] * 2)  # type: ignore[arg-type]
    env.close()


def test_silence_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a limit, the training waits, and says for whom; so it does for its own share."""
    monkeypatch.setattr(watchdog, "SILENCE", 0.2)
    monkeypatch.setattr(watchdog, "_LONGEST_TICK", 0.05)
    env = workers(partial(time.sleep, 0.6), 2, step_timeout=None)
    env.reset()
    env.step([{"arm": 0, "leg": 0}] * 2)  # type: ignore[arg-type]
    env.step([{"arm": 0, "leg": 0}] * 2)  # type: ignore[arg-type]
    env.close()
    assert "Environment 1 did not answer for" in caplog.text
    assert "step_timeout" in caplog.text
    caplog.clear()
    env_fns = [partial(faulty, partial(time.sleep, 0.6), 1)] * 2
    env = JointSubprocVecEnv(env_fns, 1, parent_works=True)
    env.reset()
    env.step([{"arm": 0, "leg": 0}] * 2)  # type: ignore[arg-type]
    env.close()
    assert "in the current process, where they cannot be interrupted" in caplog.text


def test_a_limit_of_make_joint_vec_env() -> None:
    """Only workers can keep one, and then the current process steps no environment."""
    make = partial(faulty, hang, -1)
    choices: list[dict[str, Any]] = [{}, {"vec_env_cls": "auto"}]
    for kwargs in choices:
        kwargs["vec_env_kwargs"] = dict(start_method="fork")
        env = make_joint_vec_env(make, 2, step_timeout=9, **kwargs)
        assert isinstance(env, JointSubprocVecEnv)
        assert os.getpid() not in pids_of(env)
        env.close()
    with pytest.raises(ValueError, match=r"JointDummyVecEnv.* worker process only"):
        make_joint_vec_env(make, 2, vec_env_cls=JointDummyVecEnv, step_timeout=9)
    with pytest.raises(ValueError, match="'step_timeout' cannot apply to 'vmas/navigation'"):
        make_joint_vec_env("vmas/navigation", 2, step_timeout=9)
    for wrong in (0, -1, "9", True, float("nan")):
        with pytest.raises(ValueError, match="`step_timeout` must be a number of seconds"):
            make_joint_vec_env(make, 2, step_timeout=wrong)  # type: ignore[arg-type]


def in_daemon() -> None:
    """Workers that are asked for, chosen or limited stay in a daemon process, with a warning."""
    env_fns = [partial(faulty, fail, -1)] * 2
    make: Any = partial(make_joint_vec_env, partial(faulty, fail, -1), 2)
    word = "Daemon processes.*may not start worker processes"
    with pytest.warns(UserWarning, match=word):
        env = JointSubprocVecEnv(env_fns, n_workers=2, parent_works=False)
    env.reset()
    env.step([{"arm": 0, "leg": 0}] * 2)  # type: ignore[arg-type]
    assert pids_of(env) == [os.getpid()] * 2
    env.close()
    with pytest.warns(UserWarning, match=word):
        make(vec_env_cls=JointSubprocVecEnv).close()
    with pytest.warns(UserWarning, match=word):
        assert isinstance(choose_vec_env(env_fns, n_workers=2), JointDummyVecEnv)
    with pytest.warns(UserWarning, match=f"{word}.*step_timeout"):
        make(step_timeout=5).close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make().close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_daemon_processes_keep_their_environments() -> None:
    process = multiprocessing.get_context("fork").Process(target=in_daemon, daemon=True)
    process.start()
    process.join()
    assert process.exitcode == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_workers_without_what_windows_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """No resource tracker, no select.poll, no sched_yield. Forked workers lack them too."""

    def missing() -> None:
        raise ModuleNotFoundError("No module named '_posixsubprocess'")

    monkeypatch.setattr(resource_tracker, "ensure_running", missing)
    monkeypatch.delattr(select, "poll")
    for module, name in ((os, "sched_yield"), (os, "sched_getaffinity"), (signal, "SIGUSR1")):
        monkeypatch.delattr(module, name, raising=False)
    monkeypatch.delattr(faulthandler, "register", raising=False)
    env = workers(fail, -1, step_timeout=None, parent_works=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = small(HAPPO, env).learn(64)
    env.close()
    assert model.num_timesteps == 64


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize("number", [1e30, 10**30, float("inf"), float("nan"), 2.5, -1])
def test_numbers_out_of_range_are_refused_in_words(number: Any) -> None:
    make = partial(faulty, fail, -1)
    env = make()
    with pytest.raises(ValueError, match="`n_envs` must be a whole number from 1 to 1,000,000"):
        make_joint_vec_env(make, number)
    with pytest.raises(ValueError, match="`n_workers` must be a whole number"):
        JointSubprocVecEnv([make] * 2, n_workers=number)
    with pytest.raises(ValueError, match="`n_workers` must be a whole number"):
        choose_vec_env([make] * 2, n_workers=number)
    for name in ("start_index", "seed"):
        with pytest.raises(ValueError, match=f"`{name}` must be a whole number"):
            make_joint_vec_env(make, 1, **{name: number})
    for name in ("n_steps", "n_epochs", "batch_size", "critic_n_epochs", "chunk_length"):
        with pytest.raises(ValueError, match=f"`?{name}`?.* must be"):
            small(HAPPO, env, **{name: number})
    with pytest.raises(ValueError, match="stats_window_size must be a whole number"):
        small(HAPPO, env, stats_window_size=number)
    for kwargs in (
        dict(net_arch=[number]),
        dict(net_arch=dict(pi=[8], vf=[number])),
        dict(recurrent="lstm", lstm_hidden_size=number),
        dict(recurrent="gru", n_lstm_layers=number),
        dict(agent_kwargs={"arm": dict(net_arch=[number])}),
    ):
        with pytest.raises(ValueError, match=r"net_arch|lstm_hidden_size|n_lstm_layers"):
            small(HAPPO, env, kwargs)
    if number != 2.5:
        with pytest.raises(ValueError, match="total_timesteps must be a number of steps"):
            small(HAPPO, env).learn(number)


def test_layers_that_fit_no_memory() -> None:
    with pytest.raises(ValueError, match=r"net_arch'\]: layers of 1,000,000 and 1,000,000 units"):
        small(HAPPO, faulty(fail, -1), dict(net_arch=[10**6, 10**6]))
    with pytest.raises(MemoryError, match="n_steps"):
        small(HAPPO, faulty(fail, -1), n_steps=2 * 10**9)
