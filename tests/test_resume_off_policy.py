"""Off-policy trainings that are interrupted and continued equal unbroken ones, bit for bit."""

import contextlib
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecMonitor, VecNormalize

from sb3_happo import (
    HADDPG,
    HASAC,
    HATD3,
    IQL,
    MADDPG,
    MASAC,
    MATD3,
    QMIX,
    VDN,
    JointEnv,
    make_joint_vec_env,
)
from sb3_happo.common.checkpoint_callback import ResumableCheckpointCallback
from sb3_happo.common.checkpoint_files import CheckpointError, checkpoints_in, read_checkpoint
from sb3_happo.common.interruptions import TrainingTerminated
from sb3_happo.common.off_policy_algorithm import MultiAgentOffPolicyAlgorithm
from sb3_happo.vec_env import JointSubprocVecEnv
from tests.envs import HeterogeneousTeam, MaskedGame, RandomTeam, TurnGame
from tests.resuming import Experiment, Interrupted, StopAt, equal

N_ENVS, TOTAL = 2, 160
SETTINGS: dict[str, Any] = dict(
    buffer_size=100,  # smaller than the training, so that old transitions are overwritten
    learning_starts=30,
    batch_size=8,
    train_freq=4,
    gradient_steps=2,
    seed=7,
    device="cpu",
    stats_window_size=3,
)
VALUES: dict[str, Any] = dict(target_update_interval=20, exploration_fraction=0.8)
BOX = spaces.Box(-1.0, 1.0, (2,))
N_COLUMNS = 4

Make = Callable[[], MultiAgentOffPolicyAlgorithm]


def boxes() -> JointEnv:
    return JointEnv(RandomTeam({"left": BOX, "right": BOX}, length=7, truncate=True))


def choices() -> JointEnv:
    return JointEnv(RandomTeam(dict.fromkeys(("left", "right"), spaces.Discrete(3)), length=7))


def dying() -> JointEnv:
    return JointEnv(TurnGame(drops_out={"player_1": 2}, truncate=True), state="agent")


def images() -> JointEnv:
    image = spaces.Box(0, 255, (36, 36, 1), np.uint8)
    agents = ["left", "right"]
    return JointEnv(RandomTeam(dict.fromkeys(agents, BOX), 5, dict.fromkeys(agents, image)))


def maker(
    algorithm: type[MultiAgentOffPolicyAlgorithm],
    make_env: Callable[[], JointEnv] = boxes,
    wrap: Callable[[VecEnv], VecEnv] = lambda env: env,
    n_envs: int = N_ENVS,
    vec_env_cls: Any = None,
    policy_kwargs: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Make:
    """Function that makes a small model, each time with an environment of its own."""

    def make() -> MultiAgentOffPolicyAlgorithm:
        env = wrap(make_joint_vec_env(make_env, n_envs, seed=3, vec_env_cls=vec_env_cls))
        own = {"net_arch": [8], **(policy_kwargs or {})}
        return algorithm("MlpPolicy", env, policy_kwargs=own, **{**SETTINGS, **kwargs})

    return make


def experiment(make: Make, folder: Path, **kwargs: Any) -> Experiment:
    """Training of 20 collections, with a checkpoint at each sixth."""
    return Experiment(make, folder, **{"save_freq": 6, "total": TOTAL, **kwargs})


SLOW = pytest.mark.slow
KILLED = pytest.mark.parametrize("killed", [True, False], ids=["killed", "interrupted"])


@pytest.mark.parametrize(
    ("algorithm", "make_env", "kwargs"),
    [
        (HATD3, boxes, dict(n_steps=3)),
        (HASAC, boxes, dict(ent_coef="auto")),
        (QMIX, choices, VALUES),
        (IQL, dying, VALUES),
        pytest.param(HADDPG, boxes, {}, marks=SLOW),
        pytest.param(MATD3, boxes, {}, marks=SLOW),
        pytest.param(MADDPG, boxes, {}, marks=SLOW),
        pytest.param(MASAC, choices, dict(ent_coef="auto_0.3"), marks=SLOW),
        pytest.param(VDN, choices, VALUES, marks=SLOW),
        pytest.param(HASAC, MaskedGame, dict(ent_coef=0.1), marks=SLOW),
        pytest.param(HATD3, dying, dict(n_steps=2), marks=SLOW),
        pytest.param(HATD3, HeterogeneousTeam, {}, marks=SLOW),
        pytest.param(HATD3, images, {}, marks=SLOW),
        pytest.param(VDN, MaskedGame, VALUES, marks=SLOW),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@KILLED
def test_every_algorithm(
    algorithm: Any, make_env: Any, kwargs: dict[str, Any], killed: bool, tmp_path: Path
) -> None:
    # Within a collection: timesteps 104 to 112 are one, after the third checkpoint, at 96
    start = experiment(maker(algorithm, make_env, **kwargs), tmp_path).check(106, killed)
    assert start == 96 if killed else 96 <= start <= 104


@pytest.mark.parametrize("n_timesteps", [2, 10, 34, 98, TOTAL])
@KILLED
@pytest.mark.slow
def test_every_moment(n_timesteps: int, killed: bool, tmp_path: Path) -> None:
    """First step, random actions, first update, first step after a checkpoint, last step."""
    experiment(maker(HATD3), tmp_path).check(n_timesteps, killed)


@KILLED
def test_noise_normalisation_and_schedules(killed: bool, tmp_path: Path) -> None:
    def make() -> MultiAgentOffPolicyAlgorithm:
        # Its last values go on, as do those of a noise of one agent
        zeros = np.zeros(2)
        noise = {
            "left": OrnsteinUhlenbeckActionNoise(zeros, 0.2 * np.ones(2)),
            "right": NormalActionNoise(zeros, 0.1 * np.ones(2)),
        }
        return maker(
            HATD3,
            wrap=lambda env: VecNormalize(VecMonitor(env)),
            action_noise=noise,
            learning_rate=LinearSchedule(1e-2, 0.0, 1.0),
            n_steps=2,
        )()

    with pytest.warns(UserWarning, match="already wrapped"):
        experiment(make, tmp_path).check(106, killed)


@KILLED
@pytest.mark.slow
def test_noise_of_the_team_in_workers(killed: bool, tmp_path: Path) -> None:
    def make() -> MultiAgentOffPolicyAlgorithm:
        noise = OrnsteinUhlenbeckActionNoise(np.zeros(N_COLUMNS), 0.2 * np.ones(N_COLUMNS))
        return maker(HADDPG, vec_env_cls=JointSubprocVecEnv, action_noise=noise)()

    experiment(make, tmp_path).check(106, killed)


@KILLED
@pytest.mark.slow
def test_collections_of_whole_episodes(killed: bool, tmp_path: Path) -> None:
    make = maker(HASAC, n_envs=1, train_freq=(2, "episode"), gradient_steps=-1)
    experiment(make, tmp_path, save_freq=2).check(106, killed)


def test_single_steps(tmp_path: Path) -> None:
    """SB3's default: an update after each step."""
    make = maker(HASAC, n_envs=1, train_freq=1, gradient_steps=1, buffer_size=1000)
    experiment(make, tmp_path, save_freq=25, total=80).check(60)


def test_a_saved_model_has_its_noise(tmp_path: Path) -> None:
    noise = {"left": NormalActionNoise(np.zeros(2), 0.5 * np.ones(2))}
    model = maker(HATD3, action_noise=noise)().learn(60)
    model.save(tmp_path / "model")
    loaded = HATD3.load(tmp_path / "model", maker(HATD3)().env)
    loaded.learn(60, reset_num_timesteps=False)
    assert repr(loaded.action_noise) == repr(model.action_noise)


# ---------------------------------------------------------------- interruptions


def test_sigterm_ends_after_the_update(tmp_path: Path) -> None:
    make = maker(HASAC)
    stop = StopAt(106, lambda: signal.raise_signal(signal.SIGTERM))
    saving = ResumableCheckpointCallback(6, tmp_path)
    model = make()
    stop_callback: Any = stop
    # The signal is deferred: the collection goes on after the handler
    stop_callback._on_step = lambda: stop.num_timesteps < 106 or _raise_once(stop)
    with pytest.raises(TrainingTerminated):
        model.learn(TOTAL, [stop, saving])
    assert checkpoints_in(tmp_path)[0][0] == 112


def _raise_once(stop: StopAt) -> bool:
    if stop.action is not None:
        action, stop.action = stop.action, None
        action()
    return True


def test_a_small_buffer_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An interruption long after the last checkpoint, whose transitions were overwritten."""
    make = maker(HASAC, buffer_size=20)
    with contextlib.suppress(Interrupted):
        saving = ResumableCheckpointCallback(15, tmp_path)
        make().learn(TOTAL, [saving, StopAt(118)])
    found = checkpoints_in(tmp_path)[0][0]
    if found == 0:
        assert "more often than the replay buffer fills" in capsys.readouterr().out
    model = make()
    model.restore_checkpoint(tmp_path)
    model.learn(TOTAL)


# ---------------------------------------------------------------- files


def rows_in(folder: Path) -> dict[str, int]:
    """Sizes of the files with transitions."""
    return {path.name: path.stat().st_size for path in folder.glob("*.replay")}


def test_each_file_holds_what_is_new(tmp_path: Path) -> None:
    """The buffer is not written again and again, and unneeded files are removed."""
    model = maker(HASAC, buffer_size=64, gradient_steps=0)()
    model.learn(400, ResumableCheckpointCallback(2, tmp_path, keep=2))
    newest, before = (n for n, _ in checkpoints_in(tmp_path))
    # 32 steps of 2 environments, 8 at each checkpoint
    needed = {f"checkpoint_{n}_steps.replay" for n in range(before - 48, newest + 1, 16)}
    assert rows_in(tmp_path).keys() == needed
    whole = model.replay_buffer
    assert whole is not None
    n_bytes = sum(array.nbytes for array in whole.arrays().values())
    sizes = rows_in(tmp_path)
    assert sizes[f"checkpoint_{newest}_steps.replay"] - 3000 < n_bytes * 9 / 32


def test_a_damaged_file_makes_an_older_checkpoint_the_newest(tmp_path: Path) -> None:
    make = maker(HASAC)
    make().learn(TOTAL, ResumableCheckpointCallback(6, tmp_path, keep=3))
    (newest, _), (before, _), *_ = checkpoints_in(tmp_path)
    path = tmp_path / f"checkpoint_{newest}_steps.replay"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.warns(UserWarning, match=path.name):
        model = HASAC.load_checkpoint(tmp_path, make().env, device="cpu")
    assert model.num_timesteps == before
    path.unlink()
    with pytest.raises(CheckpointError, match=path.name):
        read_checkpoint(tmp_path / f"checkpoint_{newest}_steps.ckpt")


def test_one_file_without_a_callback(tmp_path: Path) -> None:
    """`save_checkpoint` after `learn`: one file with the replay buffer in it."""
    make = maker(HASAC, wrap=VecNormalize)
    whole = make().learn(80)
    whole.save_checkpoint(tmp_path / "end.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["end.ckpt"]
    whole.learn(80, reset_num_timesteps=False)
    loaded = HASAC.load_checkpoint(tmp_path / "end.ckpt", make().env, device="cpu")
    loaded.learn(80, reset_num_timesteps=False)
    assert equal(whole.get_parameters(), loaded.get_parameters())
    assert whole.replay_buffer is not None and loaded.replay_buffer is not None
    arrays = loaded.replay_buffer.arrays()
    for name, array in whole.replay_buffer.arrays().items():
        assert np.array_equal(array, arrays[name], equal_nan=True), name


def test_another_buffer_size_is_named(tmp_path: Path) -> None:
    maker(HASAC)().learn(TOTAL, ResumableCheckpointCallback(6, tmp_path))
    model = maker(HASAC, buffer_size=50)()
    model.restore_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="buffer_size=50, and that of the model 25"):
        model.learn(TOTAL)


def test_temperatures_keep_their_optimiser(tmp_path: Path) -> None:
    make = maker(HASAC, ent_coef="auto")
    with contextlib.suppress(Interrupted):
        make().learn(TOTAL, [ResumableCheckpointCallback(6, tmp_path), StopAt(106)])
    model = HASAC.load_checkpoint(tmp_path, make().env, device="cpu")
    model.learn(TOTAL)
    assert model.log_ent_coef is not None and model.ent_coef_optimizer is not None
    (owned,) = model.ent_coef_optimizer.param_groups[0]["params"]
    assert owned is model.log_ent_coef and model.log_ent_coef.requires_grad
    assert not th.equal(model.log_ent_coef.detach(), th.zeros(2))
