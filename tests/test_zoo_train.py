"""The zoo's train and enjoy scripts, with tiny budgets."""

import argparse
import importlib
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import Mock

import imageio.v3 as imageio
import numpy as np
import pytest
import yaml  # type: ignore[import-untyped]
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_happo.vec_env import VecNormalizeTeam

ZOO = Path(__file__).resolve().parents[1] / "zoo"
SPREAD = "mpe2/simple_spread_v3"
TINY = [
    "--env",
    SPREAD,
    "--n-timesteps",
    "200",
    "--eval-freq",
    "-1",
    "--seed",
    "1",
    "--verbose",
    "0",
]
SHIPPED = str(ZOO / "agents" / "happo" / "mpe2-simple_spread_v3_1" / "mpe2-simple_spread_v3.zip")
SMALL = ["--hyperparams", "n_envs:2", "n_steps:50", "batch_size:50", "n_epochs:1"]


@pytest.fixture
def train() -> ModuleType:
    return importlib.import_module("sb3_happo_zoo.train")


def load_agent(*args: Any) -> Any:
    return importlib.import_module("sb3_happo_zoo.trained_agents").load_agent(*args)


@pytest.fixture
def enjoy() -> ModuleType:
    return importlib.import_module("sb3_happo_zoo.enjoy")


@pytest.fixture
def manager() -> ModuleType:
    return importlib.import_module("sb3_happo_zoo.exp_manager")


def test_a_run_leaves_all_that_tells_and_repeats_it(
    train: ModuleType, manager: ModuleType, tmp_path: Path
) -> None:
    settings = tmp_path / "mine.yml"
    settings.write_text(
        f"{SPREAD}: {{n_envs: 2, n_timesteps: 200, n_steps: 50, n_epochs: 1, batch_size: 50,"
        " normalize: true, learning_rate: lin_1e-3, env_kwargs: dict(max_cycles=10),"
        ' joint_kwargs: dict(team_reward="sum"),'
        " policy_kwargs: 'dict(net_arch=[8], activation_fn=nn.ReLU)',"
        " ent_coef: 'LinearSchedule(0.2, 0.1, 0.5)'}"
    )
    arguments = [
        "-f",
        str(tmp_path),
        "-conf",
        str(settings),
        "--env",
        SPREAD,
        "--seed",
        "3",
        "--verbose",
        "0",
    ]
    frequencies = ["--eval-freq", "100", "--eval-episodes", "3", "--save-freq", "100"]
    run = train.main([*arguments, *frequencies])
    folder = tmp_path / "happo" / "mpe2-simple_spread_v3_1"
    assert Path(run.save_path) == folder
    about = folder / "mpe2-simple_spread_v3"
    assert (
        yaml.safe_load((about / "config.yml").read_text())
        == yaml.safe_load(settings.read_text())[SPREAD]
    )
    assert yaml.safe_load((about / "args.yml").read_text())["seed"] == 3
    assert yaml.safe_load((about / "versions.yml").read_text())["sb3_happo"]
    assert (about / "command.txt").read_text().startswith("python zoo/train.py -f")
    evaluations = np.load(folder / "evaluations.npz")
    assert evaluations["timesteps"].tolist() == [100, 200] and evaluations["results"].shape == (
        2,
        3,
    )
    assert np.all(evaluations["ep_lengths"] == 10), "the evaluation has the entry's env_kwargs"

    for model, n_steps in (
        ("rl_model_100_steps.zip", 100),
        ("rl_model_200_steps.zip", 200),
        ("", 200),
    ):
        team = load_agent(folder / model)
        env = team.make_env(2, seed=5)
        assert team.model.num_timesteps == n_steps
        assert isinstance(env, VecNormalize) and not env.training and not env.norm_reward
        assert env.obs_rms["agent_0"].count == pytest.approx(
            n_steps + 2, abs=1
        )  # with the first reset's
        env.close()
    assert (team.algo, team.env_id, team.deterministic) == ("happo", SPREAD, True)
    assert team.model.lr_schedule(0.5) == pytest.approx(5e-4)
    assert team.model.ent_coef(0.75) == pytest.approx(0.15) and team.model.ent_coef(0.2) == 0.1
    # Models have their statistics in their own files
    best = VecNormalizeTeam.load_statistics(folder / "best_model.zip")
    assert best.obs_rms["agent_0"].count > 1
    assert not list(folder.rglob("*.pkl"))

    # The same again, from the same seed, in a folder of its own
    again = train.main([*arguments, *frequencies])
    assert Path(again.save_path) == folder.with_name("mpe2-simple_spread_v3_2")
    other = np.load(Path(again.save_path) / "evaluations.npz")
    np.testing.assert_array_equal(other["results"], evaluations["results"])


def test_calls_on_the_command_line_are_what_they_are_in_a_file(
    train: ModuleType, manager: ModuleType, tmp_path: Path
) -> None:
    changes = [
        "ent_coef:LinearSchedule(0.1, 0.0, 0.5)",
        "policy_kwargs:dict(net_arch=[8], optimizer_class=th.optim.SGD)",
    ]
    folder = Path(train.main([*TINY, "-f", str(tmp_path), *SMALL, *changes]).save_path)
    config = yaml.safe_load((folder / folder.name[:-2] / "config.yml").read_text())
    assert config["ent_coef"] == "LinearSchedule(0.1, 0.0, 0.5)"
    model = load_agent(folder).model
    assert model.ent_coef(0.75) == pytest.approx(0.05)
    assert type(model.policies["agent_0"].optimizer).__name__.endswith("SGD")


def test_files_of_the_zoo_go_by_their_names(
    manager: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = {
        None: "happo.yml",
        "happo_1m": "happo_1m.yml",
        "mine.yml": "mine.yml",
        "json.tool": "json.tool",
    }
    for config, path in wanted.items():
        made = manager.TeamExperimentManager(
            argparse.Namespace(), "happo", SPREAD, log_folder="", config=config
        )
        assert made.config in (path, str(ZOO / "hyperparams" / path))


def test_ids_that_no_folder_may_have(train: ModuleType) -> None:
    assert (
        train.make_parser().parse_args(["--env", "mamujoco/Humanoid-9|8-v1"]).env
        == "mamujoco/Humanoid-9p8-v1"
    )


def test_continues_a_trained_agent_with_its_normaliser(
    train: ModuleType, manager: ModuleType, tmp_path: Path
) -> None:
    arguments = [*TINY, "-f", str(tmp_path), *SMALL, "normalize:True"]
    first = Path(train.main(arguments).save_path)
    old = load_agent(first)
    with pytest.raises(SystemExit) as exit_:
        train.main([*arguments, "-i", str(first / "none.zip")])
    assert exit_.value.code == 2
    second = Path(
        train.main(
            [*arguments, "learning_rate:1e-20", "-i", str(first / f"{first.name[:-2]}.zip")]
        ).save_path
    )
    new = load_agent(second)
    counts = [team.make_env().obs_rms["agent_0"].count for team in (old, new)]
    assert counts[1] == pytest.approx(counts[0] + 202, abs=2)
    before, after = (team.model.policies["agent_0"].state_dict() for team in (old, new))
    for name, value in before.items():
        np.testing.assert_allclose(after[name], value, atol=1e-6)  # it went on from there


@pytest.mark.parametrize(
    ("algo", "env"),
    [
        ("hatrpo", SPREAD),
        ("haa2c", "CartPole-v1"),
        ("mappo", "pettingzoo.sisl/multiwalker_v9"),
        ("ippo", "mpe2/simple_speaker_listener_v4"),
    ],
)
def test_every_algorithm_trains_where_there_is_no_entry(
    train: ModuleType, manager: ModuleType, tmp_path: Path, algo: str, env: str
) -> None:
    arguments = [
        "--algo",
        algo,
        "--env",
        env,
        "-n",
        "64",
        "--eval-freq",
        "-1",
        "--verbose",
        "0",
        "-f",
        str(tmp_path),
    ]
    run = train.main([*arguments, "--hyperparams", "n_envs:2", "n_steps:32"])
    team = load_agent(run.save_path)
    assert type(team.model) is manager.TEAM_ALGOS[algo]
    assert team.model.num_timesteps == 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--algo", "hapo", "--env", SPREAD], "did you mean 'happo'?"),
        (["--env", "mpe2/simple_spred_v3"], "Did you mean 'mpe2/simple_spread_v3'"),
        (["--env", SPREAD, "-params", "lerning_rate:1e-3"], "Did you mean 'learning_rate'?"),
        (["--env", SPREAD, "-params", "learning_rate"], "expected name:value"),
        (["--env", SPREAD, "-params", "learning_rate:"], "expected name:value"),
        (["--env", SPREAD, "-params", "n_epochs:0"], "n_epochs must be a whole number, at least 1"),
        (
            ["--env", SPREAD, "-params", "ent_coef:LinearSchedule(-0.1, 0.0, 1.0)"],
            "ent_coef must be finite and at least 0",
        ),
        (
            ["--env", SPREAD, "-params", "n_envs:'two'"],
            "n_envs must be a whole number, at least 1, not 'two'",
        ),
        (
            ["--env", SPREAD, "-params", "n_envs:0"],
            "n_envs must be a whole number, at least 1, not 0",
        ),
        (["--env", SPREAD, "--n-eval-envs", "0"], "--n-eval-envs: must be at least 1, not 0"),
        (["--env", SPREAD, "-params", "normalize:'yes'"], "NameError: name 'yes'"),
        (["--env", SPREAD, "-params", "normalize:dict(norm_ops=True)"], "Did you mean 'norm_obs'?"),
        (
            ["--env", SPREAD, "-params", "joint_kwargs:dict(tem_reward='sum')"],
            "Did you mean 'team_reward'?",
        ),
        (["--env", SPREAD, "-params", "callback:'stable_baselines3.common.callbacks.Foo'"], "Foo"),
        (
            ["--env", SPREAD, "-params", "target_kl:'-1e-2'"],
            "target_kl must be greater than 0, or None, not -0.01",
        ),
        (["--env", SPREAD, "-params", "ent_coef:Linear(0.1)"], "name 'Linear' is not defined"),
        (
            ["--env", SPREAD, "--algo", "ippo", "-i", SHIPPED],
            "was trained by happo, not by ippo; pass --algo happo",
        ),
        (["--env", SPREAD, "-params", "learning_rate:'lon_1'"], "neither a number nor lin_"),
        (
            ["--env", SPREAD, "-params", "joint_kwargs:'dict('"],
            "joint_kwargs: dict( is no valid expression",
        ),
        (["--env", SPREAD, "--env-kwargs", "N_agents:3"], "N_agents"),
        (["--env", SPREAD, "--env-kwargs", "max_cycle:3"], "Did you mean 'max_cycles'?"),
        (
            ["--env", SPREAD, "-params", "wrappers:'supersuit.frame_stak_v1'"],
            "Did you mean supersuit.frame_stack_v1?",
        ),
        (["--env", SPREAD, "-conf", "happo_2m"], "Did you mean 'happo_1m'?"),
        (["--env", SPREAD, "-conf", "happo_hrl.yml"], "happo_harl.yml"),
        (["--env", SPREAD, "-n", "0"], "-n/--n-timesteps: must be at least 1, not 0"),
        (
            ["--env", SPREAD, "-params", "policy_kwargs:dict(net_arh=[8])"],
            "Did you mean 'net_arch'?",
        ),
        (["--env", "envpol/HalfCheetah-2x3-v1"], "Did you mean 'envpool/HalfCheetah-2x3-v1'"),
        (
            ["--env", "vmas/balance", "-params", "wrappers:'supersuit.frame_stack_v1'"],
            "'wrappers' cannot apply to",
        ),
        (
            [
                "--env",
                "envpool/Ant-4x2-v1",
                "-params",
                "env_wrapper:'gymnasium.wrappers.ClipReward'",
            ],
            "'wrapper_class' cannot",
        ),
        (
            ["--env", "mpe2/simple_spred_v3", "-conf", str(ZOO / "hyperparams" / "happo_harl.yml")],
            f"'{SPREAD}'",
        ),
    ],
)
def test_what_is_wrong_is_said_before_any_training(
    train: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    arguments: list[str],
    message: str,
) -> None:
    with pytest.raises(SystemExit) as exit_:
        train.main(["-n", "200", *arguments, "-f", str(tmp_path / "logs")])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not list(tmp_path.glob("logs/*/*"))


def test_tracking_says_what_to_install(
    train: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SystemExit) as exit_:
        train.main([*TINY, "--track", "-f", str(tmp_path)])
    assert exit_.value.code == 2
    assert "pip install wandb" in capsys.readouterr().err


def test_tracking_sends_what_tensorboard_gets(
    train: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = Mock()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.chdir(tmp_path)
    train.main([*TINY, *SMALL, "--track", "--wandb-project-name", "teams"])
    told = wandb.init.call_args.kwargs
    assert told["project"] == "teams" and told["sync_tensorboard"]
    (settings,) = wandb.init.return_value.config.setdefaults.call_args.args
    assert settings["seed"] == 1 and settings["saved_hyperparams"]["n_steps"] == 50
    assert list((tmp_path / "runs" / told["name"]).rglob("events.out.tfevents.*"))


def test_normalisation_leaves_masks_and_images_alone(
    train: ModuleType, manager: ModuleType, tmp_path: Path
) -> None:
    env = "pettingzoo.classic/connect_four_v3"
    run = train.main(
        [*("--env", env, "-n", "16", "--eval-freq", "-1", "--verbose", "0", "-f", str(tmp_path)),
         *("--hyperparams", "n_envs:1", "n_steps:16", "normalize:True")]
    )  # fmt: skip
    statistics = load_agent(run.save_path).make_env().obs_rms
    assert statistics and not any(key.endswith("action_mask") for key in statistics)


# ---------------------------------------------------------------- enjoy


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log folder with one run, its best model and a checkpoint."""
    folder = tmp_path_factory.mktemp("logs")
    arguments = ["-f", str(folder), "--eval-freq", "100", "--save-freq", "100"]
    arguments += [*SMALL, "normalize:True"]
    importlib.import_module("sb3_happo_zoo.train").main([*TINY, *arguments])
    return folder


def test_statistics_without_a_display(
    enjoy: ModuleType,
    manager: ModuleType,
    logs: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is counted is what SB3 counts."""
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    episodes = enjoy.main(
        ["--env", SPREAD, "-f", str(logs), "--n-episodes", "5", "--n-envs", "2", "--seed", "7"]
    )
    assert "There is no display" in capsys.readouterr().out
    team = load_agent(logs / "happo" / "mpe2-simple_spread_v3_1")
    returns, lengths = evaluate_policy(
        team.model, team.make_env(2, seed=7), 5, return_episode_rewards=True
    )
    assert [episode.team_return for episode in episodes] == pytest.approx(returns, rel=1e-4)
    assert [episode.length for episode in episodes] == lengths
    for episode in episodes:  # the entry's team reward is the sum
        assert episode.agent_returns.shape == (3,)
        assert episode.agent_returns.sum() == pytest.approx(episode.team_return, rel=1e-4)


@pytest.mark.parametrize("ending", ["gif", "mp4"])
def test_films(enjoy: ModuleType, logs: Path, tmp_path: Path, ending: str) -> None:
    film = tmp_path / "films" / f"team.{ending}"
    enjoy.main(
        [
            "--env",
            SPREAD,
            "-f",
            str(logs),
            "-n",
            "6",
            "--record",
            str(film),
            "--record-pixels",
            "60",
            "--load-checkpoint",
            "100",
        ]
    )
    frames = list(imageio.imiter(film))
    assert frames[0].shape == (60, 60, 3)
    assert (
        len(frames) == 6 if ending == "mp4" else 3 < len(frames) <= 6
    )  # a GIF shows equal frames as one
    assert any(np.any(frame != frames[0]) for frame in frames)


def test_shipped_agents_are_found_without_a_log_folder(
    enjoy: ModuleType, logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(enjoy, "AGENTS", logs)
    arguments = ["--env", SPREAD, "--no-render", "--n-episodes", "1", "--verbose", "0"]
    episodes = [
        enjoy.main([*arguments, *more])[0]
        for more in ([], ["--env-kwargs", "max_cycles:4"], ["--load-best"])
    ]
    assert [episode.length for episode in episodes] == [25, 4, 25]
    (run,) = logs.glob("happo/mpe2-simple_spread_v3_1")
    (own,) = enjoy.main([*arguments, "-f", str(run)])
    assert own.team_return == episodes[0].team_return, "a run's own folder, whatever its name"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env", "mpe2/simple_spred_v3"], "Did you mean mpe2-simple_spread_v3_1?"),
        (["--env", SPREAD, "--algo", "mappo"], "train one"),
        (["--env", SPREAD, "--exp-id", "7"], "no run 7"),
        (["--env", SPREAD, "--load-checkpoint", "7"], "rl_model_7_steps.zip"),
        (["--env", SPREAD, "--record", "film.avi"], ".gif and .mp4"),
        (
            ["--env", SPREAD, "--record", "film.gif", "--record-pixels", "0"],
            "--record-pixels: must be at least 1",
        ),
        (["--env", SPREAD, "--n-episodes", "-1"], "--n-episodes: must be at least 1, not -1"),
        (["--env", SPREAD, "--env-kwargs", "n_agents:3"], "n_agents"),
        (["--env", SPREAD, "--env-kwargs", "continuous_actions:True"], "other action spaces"),
    ],
)
def test_enjoy_says_what_is_wrong(
    enjoy: ModuleType, logs: Path, capsys: pytest.CaptureFixture, arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as exit_:
        enjoy.main([*arguments, "-f", str(logs), "--no-render"])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


@pytest.mark.parametrize("missing", ["error", "None", "True"])
def test_what_cannot_be_drawn_is_said_in_a_line(
    enjoy: ModuleType,
    logs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    missing: str,
) -> None:
    """Whatever a library makes of a missing display."""

    def get_images(env: object) -> list[object]:
        if missing == "error":
            raise OSError("no display")
        return [{"None": None, "True": True}[missing]]  # rware returns the latter

    monkeypatch.setattr("sb3_happo.vec_env.JointDummyVecEnv.get_images", get_images)
    film = tmp_path / "team.gif"
    with pytest.raises(SystemExit) as exit_:
        enjoy.main(["--env", SPREAD, "-f", str(logs), "--record", str(film)])
    assert exit_.value.code == 2 and not film.exists()
    expected = (
        "cannot be drawn here (OSError: no display)" if missing == "error" else "draws no pictures"
    )
    error = capsys.readouterr().err
    assert expected in error and "--no-render" in error and "Traceback" not in error


def test_mujoco_loads_nothing_to_draw_with_where_nothing_is_drawn(
    enjoy: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails where that is not installed."""
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL"):
        monkeypatch.delenv(name, raising=False)
    parse = enjoy.make_parser().parse_args
    for arguments, library in (
        ([], None),
        (["--no-render"], None),
        (["--record", "team.gif"], "egl"),
    ):
        monkeypatch.delenv("MUJOCO_GL", raising=False)
        enjoy.render_mode(parse(["--env", SPREAD, *arguments]))
        assert os.environ.get("MUJOCO_GL") == library
