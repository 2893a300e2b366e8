"""The zoo's scripts with the off-policy algorithms."""

import argparse
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import optuna
import pytest
import yaml  # type: ignore[import-untyped]
from gymnasium import spaces
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise

pytest.importorskip("rl_zoo3", reason='the zoo needs: pip install ".[zoo]"')

from sb3_happo import HATD3
from sb3_happo_zoo.algorithms import TEAM_ALGOS, is_off_policy
from sb3_happo_zoo.entries import as_numbers, evaluate, make_schedules, read_settings
from sb3_happo_zoo.exp_manager import TeamExperimentManager
from sb3_happo_zoo.noise import with_action_noise
from sb3_happo_zoo.trained_agents import load_agent

OFF_POLICY = [algo for algo in TEAM_ALGOS if is_off_policy(algo)]
LQ = "games/lq_team"
SMALL = ["learning_starts:20", "batch_size:16", "buffer_size:400", "gradient_steps:1"]
TEAM = spaces.Dict(
    {
        "arm": spaces.Box(-1, 1, (2,)),
        "leg": spaces.Tuple((spaces.Box(-1, 1, (3,)), spaces.Discrete(2))),
        "eye": spaces.Discrete(4),
    }
)


@pytest.fixture
def train() -> ModuleType:
    return importlib.import_module("sb3_happo_zoo.train")


@pytest.fixture
def tune() -> ModuleType:
    return importlib.import_module("sb3_happo_zoo.tune")


def arguments(folder: Path, algo: str, env: str, *more: str) -> list[str]:
    words = ["--algo", algo, "--env", env, "-f", str(folder), "--verbose", "0", "--seed", "0"]
    return [*words, "-n", "120", *more]


# ---------------------------------------------------------------- training


def test_a_run_and_its_continuation(train: ModuleType, tmp_path: Path) -> None:
    frequencies = ["--eval-freq", "60", "--eval-episodes", "2", "--save-freq", "60"]
    run = train.main(
        arguments(
            tmp_path, "hatd3", LQ, *frequencies, "--save-replay-buffer",
            "-params", *SMALL, "n_envs:2", "noise_std:0.3", "normalize:True",
        )
    )  # fmt: skip
    folder = Path(run.save_path)
    assert np.load(folder / "evaluations.npz")["timesteps"].tolist() == [60, 120]
    found = {path.name for path in folder.glob("*.zip")}
    copies = {"rl_model_60_steps.zip", "rl_model_120_steps.zip"}
    assert found == {"best_model.zip", "games-lq_team.zip", *copies}
    config = yaml.safe_load((folder / "games-lq_team" / "config.yml").read_text())
    assert config["noise_std"] == 0.3 and config["noise_type"] == "normal"
    assert (folder / "replay_buffer.pkl").is_file()

    team = load_agent(folder)
    assert isinstance(team.model, HATD3) and team.model.num_timesteps == 120
    noise: Any = team.model.action_noise
    assert isinstance(noise, NormalActionNoise)
    env = team.make_env(2, seed=1)
    team.model.predict(env.reset(), deterministic=True)  # type: ignore[arg-type]
    env.close()

    # Goes on with the transitions, so that nothing is random again
    path = str(folder / "games-lq_team.zip")
    again = train.main(
        arguments(
            tmp_path, "hatd3", LQ, "--eval-freq", "-1", "-i", path, "-n", "20",
            "--save-replay-buffer", "-params", *SMALL[1:], "n_envs:2", "normalize:True",
        )
    )  # fmt: skip
    model: Any = load_agent(again.save_path).model
    assert model.learning_starts == 0 and model._n_updates > team.model._n_updates
    model.set_env(team.make_env(2, seed=1))
    model.load_replay_buffer(Path(again.save_path) / "replay_buffer.pkl")
    assert model.replay_buffer.size() == 70
    model.get_env().close()


@pytest.mark.parametrize("algo", [algo for algo in OFF_POLICY if algo != "hatd3"])
def test_every_algorithm_trains_where_there_is_no_entry(
    train: ModuleType, tmp_path: Path, algo: str
) -> None:
    env = "games/penalty"
    run = train.main(
        arguments(
            tmp_path, algo, env, "--eval-freq", "-1", "-n", "60",
            "-params", *SMALL, "policy_kwargs:dict(net_arch=[8])",
        )
    )  # fmt: skip
    team = load_agent(run.save_path)
    assert type(team.model) is TEAM_ALGOS[algo]


@pytest.mark.parametrize(
    ("algo", "more", "message"),
    [
        ("happo", ["--save-replay-buffer"], "happo has no replay buffer. Leave it out, or choose"),
        ("happo", ["-params", "noise_type:'normal'"], "'noise_type' is no hyperparameter of happo"),
        ("hatd3", ["-params", "noise_type:'norml'"], "Did you mean 'normal'?"),
        ("hatd3", ["-params", "noise_std:-0.1"], "noise_std must be a number, at least 0"),
        ("hatd3", ["-params", "noise_std:{'agent_3': 0.1}"], "unknown agent 'agent_3'"),
        ("hatd3", ["-params", "ent_coef:0.1"], "'ent_coef' is no hyperparameter of hatd3"),
        ("hasac", ["-params", "ent_coef:'auot'"], "ent_coef: 'auot' is neither a number"),
        ("hatd3", ["-params", "learning_starts:120"], "is not below total_timesteps=120"),
        ("iql", [], "IQL needs one value for each option"),
        ("hatd", [], "did you mean 'hatd3'?"),
    ],
)
def test_what_is_wrong_is_said_before_any_training(
    train: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    algo: str,
    more: list[str],
    message: str,
) -> None:
    with pytest.raises(SystemExit) as exit_:
        train.main(arguments(tmp_path / "logs", algo, LQ, "--eval-freq", "-1", *more))
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not list(tmp_path.glob("logs/*/*"))


# ---------------------------------------------------------------- entries


@pytest.mark.parametrize("algo", OFF_POLICY)
def test_entries_are_valid(algo: str) -> None:
    entries = read_settings(algo)
    assert "default" in entries and len(entries) >= 5
    for env_id, entry in entries.items():
        manager = TeamExperimentManager(argparse.Namespace(), algo, env_id, log_folder="")
        manager.checked_hyperparameters(dict(entry), {})
        hyperparams = manager.configure(entry)
        assert isinstance(hyperparams["buffer_size"], int) and manager.n_timesteps >= 1000
        assert hyperparams["learning_starts"] < manager.n_timesteps


@pytest.mark.parametrize(
    ("given", "expected"),
    [({"agent": None}, None), ({"noise_type": None, "noise_std": None}, None)],
)
def test_no_noise(given: dict[str, Any], expected: Any) -> None:
    assert with_action_noise(given, TEAM).get("action_noise") is expected


def test_noise_of_the_team_and_of_agents() -> None:
    noise = with_action_noise({"noise_type": "normal", "noise_std": 0.2, "tau": 1.0}, TEAM)
    assert noise.keys() == {"action_noise", "tau"}
    assert noise["action_noise"]._mu.shape == (5,) and noise["action_noise"]._sigma[0] == 0.2
    stds = {"leg": 0.1, "arm": 0.5}
    of_agents = with_action_noise({"noise_type": "ornstein-uhlenbeck", "noise_std": stds}, TEAM)
    noises = of_agents["action_noise"]
    assert noises["leg"]._mu.shape == (3,) and noises["arm"]._mu.shape == (2,)
    assert isinstance(noises["leg"], OrnsteinUhlenbeckActionNoise)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"noise_type": "normal"}, "noise_std is missing"),
        ({"noise_std": 0.1}, "noise_type is missing"),
        ({"noise_type": "normal", "noise_std": "much"}, "must be a number, at least 0"),
        ({"noise_type": "normal", "noise_std": {"arm": None}}, r"noise_std\['arm'\] must be"),
        ({"noise_type": "normal", "noise_std": 0.1, "action_noise": 1}, "exclude each other"),
    ],
)
def test_wrong_noise(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_action_noise(given, TEAM)


def test_noise_as_an_expression() -> None:
    noise = evaluate("action_noise", "NormalActionNoise(np.zeros(3), 0.1 * np.ones(3))")
    np.testing.assert_allclose(noise._sigma, [0.1] * 3)
    noises = evaluate(
        "action_noise", "{'a': OrnsteinUhlenbeckActionNoise([0, 0], np.full(2, 0.3), theta=0.2)}"
    )
    assert noises["a"]._theta == 0.2 and noises["a"]._sigma.shape == (2,)
    for expression, message in (
        ("np.zeros(10 ** 9)", "0 to 10000 numbers"),
        ("np.ones(3) ** 2", "arithmetic on something else"),
        ("np.load('file')", "settings are not run as code"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate("action_noise", expression)


def test_temperatures_are_words_numbers_or_schedules() -> None:
    for value in ("auto", "auto_0.1"):
        assert make_schedules(as_numbers({"ent_coef": value})) == {"ent_coef": value}
    assert make_schedules(as_numbers({"ent_coef": "1e-2"})) == {"ent_coef": 0.01}


# ---------------------------------------------------------------- tuning


@pytest.mark.parametrize("algo", OFF_POLICY)
def test_what_is_sampled_can_be_pasted_and_trained(tune: ModuleType, algo: str) -> None:
    discrete = algo in ("iql", "vdn", "qmix")
    env_id = "games/two_step" if discrete else LQ
    fixed = ["gamma:0.9", "n_envs:4", "buffer_size:200", "learning_starts:20"]
    _, tuning, _ = tune.open_tuning(
        ["--algo", algo, "--env", env_id, "-n", "1000", "--hyperparams", *fixed]
    )
    samplers = importlib.import_module("sb3_happo_zoo.hyperparams_opt")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    rates = set()
    for _ in range(3):
        sampled = samplers.TEAM_SAMPLERS[algo](
            study.ask(), 0, 4, {"continuous": not discrete, "fixed": tuning.fixed}
        )
        assert "gamma" not in sampled
        entry = samplers.as_entry(tuning.base, sampled, tuning.policy_kwargs)
        assert yaml.safe_load(yaml.safe_dump(entry)) == entry
        manager = tuning.make_manager(0)
        given = manager.configure(entry)
        env = manager.create_envs(4, no_log=True)
        model: Any = TEAM_ALGOS[algo](env=env, **with_action_noise(given, env.action_space))
        env.close()
        assert model.gamma == 0.9 and 1 <= model.gradient_steps <= 40
        assert 32 <= model.batch_size <= 1024
        rates.add(entry["learning_rate"])
    assert len(rates) == 3


def test_a_study(tune: ModuleType, tmp_path: Path) -> None:
    """Two trials, evaluations between, noise or none, and an entry that trains."""
    fixed = [*SMALL, "n_envs:2", "policy_kwargs:dict(net_arch=[8])", "normalize:False"]
    study = tune.main(
        [
            "--algo", "hatd3", "--env", LQ, "-f", str(tmp_path), "-n", "100", "--n-trials", "2",
            "--n-evaluations", "2", "--eval-episodes", "2", "--no-optim-plots", "--verbose", "0",
            "--hyperparams", *fixed,
        ]
    )  # fmt: skip
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 2
    best = yaml.safe_load(
        (tmp_path / "hatd3" / "study_hatd3_games-lq_team" / "best.yml").read_text()
    )
    assert best[LQ]["learning_starts"] == 20 and "noise_type" in best[LQ]
