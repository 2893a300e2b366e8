"""A training that was interrupted and continued from its checkpoint equals an unbroken one."""

import signal
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
)
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecMonitor, VecNormalize

from sb3_happo import HAA2C, HAPPO, HATRPO, IPPO, MAPPO, make_joint_vec_env
from sb3_happo.common.checkpoint_callback import ResumableCheckpointCallback
from sb3_happo.common.checkpoint_files import CheckpointError, checkpoints_in, read_checkpoint
from sb3_happo.common.interruptions import TrainingTerminated
from sb3_happo.vec_env import JointSubprocVecEnv
from tests.resuming import (
    N_ENVS,
    N_STEPS,
    N_UPDATES,
    TOTAL,
    UPDATE,
    Experiment,
    Interrupted,
    StopAt,
    equal,
    normalizer_of,
)
from tests.test_kept_episodes import Timer
from tests.traces import CASES

SETTINGS: dict[str, Any] = dict(
    n_steps=N_STEPS, batch_size=16, n_epochs=2, seed=7, device="cpu", stats_window_size=5
)
NET: dict[str, Any] = dict(net_arch=[16])


def case_model(algorithm: type[HAPPO], name: str, **kwargs: Any) -> HAPPO:
    """A small model of a case of the traces."""
    case = CASES[name]
    env = make_joint_vec_env(case.make_env, N_ENVS, seed=3)
    policy_kwargs = {**NET, **case.policy_kwargs}
    return algorithm(
        case.policy, env, policy_kwargs=policy_kwargs, **{**SETTINGS, **case.kwargs, **kwargs}
    )


def spread(
    algorithm: type[HAPPO] = HAPPO,
    wrap: Callable[[VecEnv], VecEnv] = lambda env: env,
    policy: str = "MlpPolicy",
    vec_env_cls: Any = None,
    policy_kwargs: dict[str, Any] | None = None,
    **kwargs: Any,
) -> HAPPO:
    """A small model for an environment whose episodes are cut off by checkpoints."""
    env = make_joint_vec_env(
        "mpe2/simple_spread_v3",
        N_ENVS,
        seed=3,
        env_kwargs=dict(max_cycles=13),
        vec_env_cls=vec_env_cls,
    )
    return algorithm(
        policy, wrap(env), policy_kwargs={**NET, **(policy_kwargs or {})}, **{**SETTINGS, **kwargs}
    )


# ---------------------------------------------------------------- identity


@pytest.mark.parametrize(
    ("algorithm", "case"),
    [
        (HAPPO, "plain"),
        (HAPPO, "recurrent"),
        (HATRPO, "masked"),
        (HAPPO, "dying"),
        (IPPO, "dying"),
        (HAA2C, "hybrid"),
        (MAPPO, "shared"),
        (HAPPO, "images"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
@pytest.mark.parametrize(
    "killed",
    [
        pytest.param(True, id="killed"),
        pytest.param(False, id="interrupted", marks=pytest.mark.slow),
    ],
)
def test_every_kind_of_team(
    algorithm: type[HAPPO], case: str, killed: bool, tmp_path: Path
) -> None:
    experiment = Experiment(lambda: case_model(algorithm, case), tmp_path)
    # In the middle of the sixth update
    start = experiment.check(5 * UPDATE + 10, killed)
    assert start == (3 if killed else 5) * UPDATE


@pytest.mark.parametrize("n_timesteps", [2, UPDATE, UPDATE + 2, 3 * UPDATE + 2, TOTAL])
@pytest.mark.parametrize("killed", [True, False], ids=["killed", "interrupted"])
def test_every_moment(n_timesteps: int, killed: bool, tmp_path: Path) -> None:
    """The first step, the last of a rollout, the first after a checkpoint, the last of all."""
    Experiment(spread, tmp_path).check(n_timesteps, killed)


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "interrupted"])
def test_workers(killed: bool, tmp_path: Path) -> None:
    def make() -> HAPPO:
        return spread(policy="MlpGruPolicy", vec_env_cls=JointSubprocVecEnv)

    Experiment(make, tmp_path).check(5 * UPDATE + 10, killed)


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "interrupted"])
@pytest.mark.parametrize("algorithm", [HAPPO, IPPO], ids=lambda algorithm: algorithm.__name__)
def test_normalisation_and_other_wrappers(
    algorithm: type[HAPPO], killed: bool, tmp_path: Path
) -> None:
    def wrap(env: VecEnv) -> VecEnv:
        stacked = VecFrameStack(env, 2) if algorithm is HAPPO else env
        return VecMonitor(VecNormalize(stacked, norm_obs_keys=["agent_0", "state"]))

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The environment is already wrapped")
        Experiment(lambda: spread(algorithm, wrap), tmp_path).check(4 * UPDATE + 6, killed)


def test_schedules(tmp_path: Path) -> None:
    def make() -> HAPPO:
        return spread(
            learning_rate=LinearSchedule(1e-3, 0.0, 1.0),
            critic_learning_rate=LinearSchedule(1e-3, 1e-4, 0.5),
            clip_range=LinearSchedule(0.3, 0.1, 1.0),
            ent_coef=LinearSchedule(0.1, 0.0, 1.0),
        )

    Experiment(make, tmp_path).check(5 * UPDATE + 10)


class Counting(BaseCallback):
    """Callback with a setting, a state, an argument that changes, and a reset at the start."""

    def __init__(self, window: int, left: int) -> None:
        super().__init__()
        self.window = window
        self.left = left

    def _on_training_start(self) -> None:
        self.rewards: list[float] = []

    def _on_step(self) -> bool:
        self.left -= 1
        self.rewards = [*self.rewards[-self.window :], float(np.sum(self.locals["rewards"]))]
        self.logger.record("counting/mean", float(np.mean(self.rewards)))
        self.logger.record("counting/left", self.left)
        self.logger.record_mean("counting/all", self.rewards[-1])
        return True


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "interrupted"])
def test_callbacks(killed: bool, tmp_path: Path) -> None:
    """Evaluation with samples, early stopping, counters: each goes on where it was."""
    made: list[EvalCallback] = []

    def make_callbacks() -> list[BaseCallback]:
        eval_env = make_joint_vec_env(
            "mpe2/simple_spread_v3", 1, seed=11, env_kwargs=dict(max_cycles=5)
        )
        evaluation = EvalCallback(
            eval_env,
            callback_after_eval=StopTrainingOnNoModelImprovement(20, 1),
            callback_on_new_best=CheckpointCallback(1, str(tmp_path / "best")),
            n_eval_episodes=2,
            eval_freq=7,
            log_path=str(tmp_path / "log"),
            deterministic=False,
            verbose=0,
        )
        made.append(evaluation)
        return [
            evaluation,
            CallbackList([Counting(3, 1000), EveryNTimesteps(20, Counting(2, 50))]),
            StopTrainingOnMaxEpisodes(100),
        ]

    Experiment(spread, tmp_path, make_callbacks).check(5 * UPDATE + 10, killed)
    whole, _, continued = made
    assert whole.evaluations_results == continued.evaluations_results
    assert whole.evaluations_timesteps == continued.evaluations_timesteps
    assert whole.best_mean_reward == continued.best_mean_reward
    assert (
        vars(whole.callback)["no_improvement_evals"]
        == (vars(continued.callback)["no_improvement_evals"])
    )


def test_ended_training_and_another_call_of_learn(tmp_path: Path) -> None:
    """`save_checkpoint` after `learn`: the next call equals that of the model in memory."""
    whole = spread(wrap=VecNormalize)
    whole.learn(3 * UPDATE)
    whole.save_checkpoint(tmp_path / "end.ckpt")
    whole.learn(2 * UPDATE, reset_num_timesteps=False)
    env = spread(wrap=VecNormalize).env
    loaded = HAPPO.load_checkpoint(tmp_path / "end.ckpt", env, device="cpu")
    assert loaded.num_timesteps == 3 * UPDATE
    loaded.learn(2 * UPDATE, reset_num_timesteps=False)
    assert equal(whole.get_parameters(), loaded.get_parameters())
    assert normalizer_of(whole) == normalizer_of(loaded)
    assert whole.num_timesteps == loaded.num_timesteps == 5 * UPDATE


def test_twice_interrupted_and_loaded_without_the_first_model(tmp_path: Path) -> None:
    whole = spread()
    experiment = Experiment(spread, tmp_path)
    expected = experiment.run(whole, tmp_path / "whole")
    folder = tmp_path / "parts"
    experiment.run(spread(), folder, [StopAt(UPDATE + 5)])
    for stop in (4 * UPDATE + 5, TOTAL + 1):
        model = HAPPO.load_checkpoint(folder, spread().env, device="cpu")
        found = experiment.run(model, folder, [StopAt(stop)])
        assert found == {step: expected[step] for step in found}
    assert equal(whole.get_parameters(), model.get_parameters())


def test_without_a_seed(tmp_path: Path) -> None:
    """The seeds of the episodes are in the checkpoint."""
    first = spread(seed=None)
    experiment = Experiment(lambda: spread(seed=None), tmp_path)
    experiment.run(first, tmp_path, [StopAt(4 * UPDATE + 5)], killed=True)
    ends = []
    for name in ("one", "two"):
        model = HAPPO.load_checkpoint(tmp_path, spread(seed=None).env, device="cpu")
        experiment.run(model, tmp_path / name)
        ends.append(model.get_parameters())
    assert equal(*ends)


def test_a_training_without_interruption_equals_one_without_checkpoints(tmp_path: Path) -> None:
    """Up to the first checkpoint after the start."""
    plain = spread(wrap=VecNormalize)
    plain.learn(3 * UPDATE)
    saved = spread(wrap=VecNormalize)
    saved.learn(3 * UPDATE, ResumableCheckpointCallback(100, tmp_path))
    assert equal(plain.get_parameters(), saved.get_parameters())


# ---------------------------------------------------------------- episodes


class LastEpisodes(BaseCallback):
    """Lengths of the episodes in the log."""

    def __init__(self) -> None:
        super().__init__()
        self.lengths: list[float] = []

    def _on_step(self) -> bool:
        infos = self.locals["infos"]
        self.lengths += [info["episode"]["l"] for info in infos if "episode" in info]
        return True


def test_episodes_that_a_checkpoint_cuts_off_are_not_counted(tmp_path: Path) -> None:
    episodes = LastEpisodes()
    spread().learn(TOTAL, [ResumableCheckpointCallback(1, tmp_path), episodes])
    # One whole episode of 13 steps fits between two checkpoints, 16 steps apart
    assert episodes.lengths == [13] * N_UPDATES * N_ENVS


def test_environments_that_cannot_be_repeated_begin_anew(tmp_path: Path) -> None:
    class Noise(Timer):
        get_state = set_state = None  # type: ignore[assignment]

    def make() -> HAPPO:
        return HAPPO(make_joint_vec_env(Noise, N_ENVS), **SETTINGS, policy_kwargs=NET)

    experiment = Experiment(make, tmp_path)
    experiment.run(make(), tmp_path, [StopAt(5 * UPDATE + 10)])
    model = make()
    model.env.env_method("reset")  # type: ignore[union-attr]
    model.restore_checkpoint(tmp_path)
    with pytest.warns(UserWarning, match="begin anew"):
        experiment.run(model, tmp_path)
    assert model.num_timesteps == TOTAL


def test_a_long_record_is_dropped(tmp_path: Path) -> None:
    saving = ResumableCheckpointCallback(3, tmp_path, max_recorded_bytes=10)
    with pytest.raises(Interrupted):
        spread().learn(TOTAL, [saving, StopAt(5 * UPDATE + 10)])
    model = HAPPO.load_checkpoint(tmp_path, spread().env, device="cpu")
    assert model.num_timesteps == 5 * UPDATE
    model.learn(TOTAL)
    assert model.num_timesteps == TOTAL


# ---------------------------------------------------------------- interruptions


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OSError, MemoryError])
def test_exceptions_leave_a_checkpoint(error: type[BaseException], tmp_path: Path) -> None:
    def fail() -> None:
        raise error("here")

    saving = ResumableCheckpointCallback(100, tmp_path)
    with pytest.raises(error, match="here"):
        spread().learn(TOTAL, [saving, StopAt(2 * UPDATE + 4, fail)])
    assert checkpoints_in(tmp_path)[0][0] == 2 * UPDATE


def test_sigterm_leaves_a_checkpoint_and_the_handler(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    saving = ResumableCheckpointCallback(100, tmp_path)
    stop = StopAt(2 * UPDATE + 4, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(TrainingTerminated) as raised:
        spread().learn(TOTAL, [stop, saving])
    assert raised.value.code == 128 + signal.SIGTERM
    assert checkpoints_in(tmp_path)[0][0] == 2 * UPDATE
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_handler_of_the_program_stays(tmp_path: Path) -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda signum, frame: received.append(signum))
    try:
        saving = ResumableCheckpointCallback(100, tmp_path)
        stop = StopAt(4, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Interrupted):
            spread().learn(UPDATE, [saving, stop])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]


def test_training_in_a_thread(tmp_path: Path) -> None:
    """Signals are the main thread's affair; checkpoints are made all the same."""
    model = spread()
    thread = threading.Thread(
        target=model.learn, args=(2 * UPDATE, ResumableCheckpointCallback(1, tmp_path))
    )
    thread.start()
    thread.join()
    assert checkpoints_in(tmp_path)[0][0] == UPDATE


def test_networks_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    model = spread()

    class Spoil(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            if self.num_timesteps == 2 * UPDATE:
                with th.no_grad():
                    next(model.critic.parameters()).fill_(np.nan)

    with pytest.raises((ValueError, Interrupted, RuntimeError)):
        model.learn(
            TOTAL, [Spoil(), ResumableCheckpointCallback(1, tmp_path), StopAt(2 * UPDATE + 8)]
        )
    assert checkpoints_in(tmp_path)[0][0] == UPDATE


def test_a_full_disk_is_said_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from sb3_happo.common import resumable_algorithm
    from sb3_happo.common.checkpoint_files import write_checkpoint as write

    failed: list[Path] = []

    def full(path: Path, content: dict[str, Any], cls: type) -> Any:
        if path.name == f"checkpoint_{3 * UPDATE}_steps.ckpt":
            failed.append(path)
            raise OSError(28, "No space left on device")
        return write(path, content, cls)

    monkeypatch.setattr(resumable_algorithm, "write_checkpoint", full)
    Experiment(spread, tmp_path).run(spread(), tmp_path)
    assert failed and "could not be written" in capsys.readouterr().out
    assert [n for n, _ in checkpoints_in(tmp_path)] == [6 * UPDATE, 0]


# ---------------------------------------------------------------- files and errors


def test_the_newest_whole_checkpoint_is_taken(tmp_path: Path) -> None:
    spread().learn(TOTAL, ResumableCheckpointCallback(3, tmp_path, keep=3))
    (newest, path), (before, _), *_ = checkpoints_in(tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=path.name):
        model = HAPPO.load_checkpoint(tmp_path, spread().env, device="cpu")
    assert model.num_timesteps == before < newest
    with pytest.raises(CheckpointError, match=path.name):
        HAPPO.load_checkpoint(path)
    model.learn(TOTAL, ResumableCheckpointCallback(3, tmp_path, keep=3))
    assert read_checkpoint(path)


def test_keep(tmp_path: Path) -> None:
    spread().learn(TOTAL, ResumableCheckpointCallback(2 * UPDATE, tmp_path, "timesteps", keep=1))
    assert [n for n, _ in checkpoints_in(tmp_path)] == [6 * UPDATE]
    spread().learn(
        TOTAL, ResumableCheckpointCallback(2 * UPDATE + 1, tmp_path / "b", "timesteps", keep=9)
    )
    steps = [n // UPDATE for n, _ in checkpoints_in(tmp_path / "b")]
    assert steps == [7, 5, 3, 0]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "saved"
    with pytest.raises(Interrupted):
        spread().learn(TOTAL, [ResumableCheckpointCallback(3, folder), StopAt(4 * UPDATE)])
    return folder


def test_what_does_not_fit_is_named(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        HAPPO.load_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="There is no checkpoint"):
        HAPPO.load_checkpoint(tmp_path / "none.ckpt")
    spread().save(tmp_path / "model.zip")
    with pytest.raises(CheckpointError, match=r"model\.zip"):
        HAPPO.load_checkpoint(tmp_path / "model.zip")
    with pytest.raises(ValueError, match="HAPPO"):
        MAPPO.load_checkpoint(saved)
    with pytest.raises(ValueError, match="checkpoint of HAPPO"):
        spread(MAPPO).restore_checkpoint(saved)
    one = make_joint_vec_env("mpe2/simple_spread_v3", 1)
    with pytest.raises(ValueError, match="2 environments, and this one has 1"):
        HAPPO.load_checkpoint(saved, one)
    with pytest.raises(ValueError, match="the wrappers"):
        HAPPO.load_checkpoint(saved, VecNormalize(cast(VecEnv, spread().env))).learn(TOTAL)
    with pytest.raises(ValueError, match="Continue it with HAPPO"):
        spread().learn(TOTAL, ResumableCheckpointCallback(3, saved))


def test_arguments_are_checked(tmp_path: Path) -> None:
    for kwargs, message in (
        (dict(save_freq=0), "save_freq must be"),
        (dict(save_freq=2.5), "save_freq must be"),
        (dict(save_freq=1, keep=0), "keep must be"),
        (dict(save_freq=1, unit="steps"), "unit must be"),
    ):
        with pytest.raises(ValueError, match=message):
            ResumableCheckpointCallback(save_path=tmp_path, **kwargs)
    model = spread()
    with pytest.raises(RuntimeError, match="has begun"):
        model.save_checkpoint(tmp_path / "x.ckpt")
    saving = StopAt(10, lambda: model.save_checkpoint(tmp_path / "x.ckpt"))
    with pytest.raises(RuntimeError, match="between two updates"):
        model.learn(UPDATE, saving)
    strict = make_joint_vec_env(
        "mpe2/simple_spread_v3", 1, monitor_kwargs=dict(allow_early_resets=False)
    )
    with pytest.raises(ValueError, match="allow_early_resets"):
        HAPPO(strict, **SETTINGS).learn(UPDATE, ResumableCheckpointCallback(1, tmp_path))


def test_another_end_and_other_callbacks_are_said(saved: Path) -> None:
    model = HAPPO.load_checkpoint(saved, spread().env, device="cpu")
    with pytest.warns(UserWarning, match="goes on to 320"):
        model.learn(10 * UPDATE)
    assert model.num_timesteps == 10 * UPDATE
    model = HAPPO.load_checkpoint(saved, spread().env, device="cpu")
    with pytest.warns(UserWarning, match=r"no state of \['Counting'\]"):
        model.learn(TOTAL - model.num_timesteps, Counting(1, 5), reset_num_timesteps=False)
    assert model.num_timesteps == TOTAL


def test_a_callback_whose_state_is_not_plain_is_named(tmp_path: Path) -> None:
    class Own(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def state_dict(self) -> dict[str, Any]:
            return {"function": lambda: None}

    with pytest.raises(CheckpointError, match=r"Own\.0\.function"):
        spread().learn(UPDATE, [Own(), ResumableCheckpointCallback(1, tmp_path)])


def test_predict_needs_no_environment(saved: Path) -> None:
    model = HAPPO.load_checkpoint(saved)
    env = spread().env
    assert env is not None
    obs = env.reset()
    assert isinstance(obs, dict)
    model.predict(obs)


# ---------------------------------------------------------------- models that are saved


def test_a_loaded_model_does_not_repeat_its_beginning(tmp_path: Path) -> None:
    model = spread()
    draws = [(np.random.rand(), th.rand(1).item())]
    model.learn(UPDATE)
    model.save(tmp_path / "model.zip")
    for _ in range(2):
        HAPPO.load(tmp_path / "model.zip", spread().env, device="cpu")
        draws.append((np.random.rand(), th.rand(1).item()))
    assert draws[0] != draws[1] == draws[2]
    spread().save(tmp_path / "new.zip")
    HAPPO.load(tmp_path / "new.zip", spread().env, device="cpu")
    assert (np.random.rand(), th.rand(1).item()) == draws[0]
