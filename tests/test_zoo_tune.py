"""The zoo's tuning: studies that may be broken off at any time, samplers, reports, errors."""

import contextlib
import importlib
import itertools
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import Mock

import optuna
import pytest
import yaml  # type: ignore[import-untyped]
from optuna.trial import FrozenTrial, TrialState

ZOO = Path(__file__).resolve().parents[1] / "zoo"
SPREAD = "mpe2/simple_spread_v3"
REAL = [
    *(
        "--env",
        SPREAD,
        "-n",
        "600",
        "--eval-episodes",
        "2",
        "--n-eval-envs",
        "1",
        "--num-threads",
        "1",
        "--no-optim-plots",
    ),
    *("--hyperparams", "n_envs:2", "n_steps:100", "batch_size:100", "n_epochs:1"),
]


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Studies are written where the script is called."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def tune() -> ModuleType:
    return importlib.import_module("sb3_happo_zoo.tune")


@pytest.fixture
def study() -> ModuleType:
    return importlib.import_module("sb3_happo_zoo.study")


@pytest.fixture
def quick(tune: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """
    Trainings that take no time: the return is best where the learning rate is 1e-3, and rises with
    the seed.
    """

    def install(interrupt_at: tuple[int, ...] = ()) -> list[int]:
        seeds: list[int] = []

        def train(
            self: Any, entry: dict[str, Any], seed: int, report: Callable[[float, int], None]
        ) -> float:
            seeds.append(seed)
            if len(seeds) in interrupt_at:
                raise KeyboardInterrupt
            value = -abs(math.log10(entry["learning_rate"]) + 3) + seed / 1000
            for part in range(1, self.args.n_evaluations + 1):
                report(value * self.args.n_evaluations / part, part)
            return value

        monkeypatch.setattr(tune.Tuning, "train", train)
        return seeds

    return install


def finished(study: optuna.Study) -> dict[int, tuple[Any, ...]]:
    """What there is to compare of each slot's finished trial."""
    slots = importlib.import_module("sb3_happo_zoo.study").slots(study.trials)
    done = [
        (slot, trial)
        for slot, trial in zip(slots, study.trials, strict=True)
        if trial.state.is_finished()
    ]
    done = [(slot, trial) for slot, trial in done if trial.state != TrialState.FAIL]
    assert len({slot for slot, _ in done}) == len(done), "a slot has one finished trial"
    return {
        slot: (trial.params, trial.state, trial.value, trial.intermediate_values)
        for slot, trial in done
    }


# ---------------------------------------------------------------- broken and resumed


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_an_interrupted_study_ends_as_an_unbroken_one(
    tune: ModuleType, quick: Callable[..., list[int]], sampler: str
) -> None:
    arguments = [
        "--env",
        SPREAD,
        "--n-trials",
        "12",
        "--sampler",
        sampler,
        "--n-startup-trials",
        "4",
        "--n-seeds",
        "2",
    ]
    arguments += ["--n-evaluations", "2", "--no-optim-plots"]
    quick()
    unbroken = tune.main([*arguments, "--study-name", "unbroken"])
    seeds = quick(
        interrupt_at=(4, 5, 11, 16)
    )  # in a first and in a second seed, at once again, after the start
    for _ in range(5):
        broken = tune.main([*arguments, "--study-name", "broken"])
    assert len(seeds) > 20
    assert finished(broken).keys() == set(range(12))
    assert finished(broken) == finished(unbroken)
    assert sum(trial.state == TrialState.FAIL for trial in broken.trials) == 4
    states = {state for _, state, _, _ in finished(broken).values()}
    assert states == {TrialState.COMPLETE, TrialState.PRUNED}
    # More trials go on from there
    assert finished(
        tune.main([*arguments, "--study-name", "broken", "--n-trials", "14"])
    ).keys() == set(range(14))


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_study_interrupted_while_it_samples_ends_as_an_unbroken_one(
    tune: ModuleType, quick: Callable[..., list[int]], sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial that does not have all its parameters yet is sampled again from the beginning."""
    arguments = [
        "--env",
        SPREAD,
        "--n-trials",
        "5",
        "--sampler",
        sampler,
        "--n-startup-trials",
        "2",
        "--no-optim-plots",
    ]
    quick()
    unbroken = tune.main([*arguments, "--study-name", "unbroken"])
    suggest, calls = optuna.Trial.suggest_categorical, itertools.count()

    def suggest_or_stop(self: optuna.Trial, *args: Any) -> Any:
        if next(calls) in (8, 19):
            raise KeyboardInterrupt
        return suggest(self, *args)

    monkeypatch.setattr(optuna.Trial, "suggest_categorical", suggest_or_stop)
    for _ in range(3):
        broken = tune.main([*arguments, "--study-name", "broken"])
    failed = [trial for trial in broken.trials if trial.state == TrialState.FAIL]
    assert len(failed) == 2 and all(
        0 < len(trial.params) < len(broken.best_params) for trial in failed
    )
    assert finished(broken) == finished(unbroken)


def test_a_killed_study_ends_as_an_unbroken_one(tune: ModuleType, tmp_path: Path) -> None:
    arguments = [
        *REAL,
        "--n-trials",
        "3",
        "--sampler",
        "random",
        "--study-name",
        "it",
        "--checkpoint-freq",
        "200",
        "-f",
        str(tmp_path),
    ]
    killed = [*arguments, "--storage", f"sqlite:///{tmp_path}/killed.db"]
    with (tmp_path / "error.txt").open("w") as error:
        process = subprocess.Popen(
            [sys.executable, str(ZOO / "tune.py"), *killed], stdout=error, stderr=error
        )
    deadline = time.time() + 120
    trials: list[FrozenTrial] = []
    while not (
        len(trials) > 1
        and "worker" in trials[-1].user_attrs
        and trials[-1].state == TrialState.RUNNING
    ):
        assert process.poll() is None and time.time() < deadline, (
            trials,
            (tmp_path / "error.txt").read_text(),
        )
        time.sleep(0.02)
        if (tmp_path / "killed.db").exists():
            try:
                trials = optuna.load_study(study_name="it", storage=killed[-1]).trials
            except Exception:  # it is being made
                trials = []
    process.kill()
    process.wait()
    resumed = tune.main(killed)
    assert TrialState.FAIL in [trial.state for trial in resumed.trials]
    unbroken = tune.main(arguments)
    assert finished(resumed).keys() == {0, 1, 2}
    assert finished(resumed) == finished(unbroken)


def test_processes_share_a_study(
    tune: ModuleType, quick: Callable[..., list[int]], tmp_path: Path
) -> None:
    """And try what one process alone would try."""
    arguments = ["--n-trials", "3", "--sampler", "random", "-f", str(tmp_path)]
    together = tune.main(
        [*REAL, *arguments, "--n-jobs", "2", "--study-name", "together", "--seed", "-1"]
    )
    seed = together.user_attrs["settings"]["seed"]
    assert seed >= 0, "a random one, and one for all"
    workers = {
        trial.user_attrs["worker"]["pid"]
        for trial in together.trials
        if trial.state == TrialState.COMPLETE
    }
    assert os.getpid() not in workers
    quick()
    alone = tune.main([*REAL, *arguments, "--study-name", "alone", "--seed", str(seed)])
    assert finished(together).keys() == {0, 1, 2}
    assert [params for params, *_ in finished(together).values()] != []
    for slot, (params, *_) in finished(alone).items():
        assert finished(together)[slot][0] == params


@pytest.mark.parametrize(
    ("worker", "lost"),
    [
        ({"host": "elsewhere", "pid": 1, "started": 0.0, "alive": 0.0}, True),
        ({"host": "elsewhere", "pid": 1, "started": 0.0, "alive": math.inf}, False),
        (
            {"host": None, "pid": os.getpid(), "started": 0.0, "alive": math.inf},
            True,
        ),  # another process had this id
        (None, False),  # it has only just begun
        ("killed when it began", True),
    ],
)
def test_only_trials_of_dead_workers_are_repeated(
    study: ModuleType, worker: Any, lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(worker, str):
        worker = None
        monkeypatch.setattr(study, "BEGINS_WITHIN", -1.0)
    it = optuna.create_study()
    trial = it.ask()
    trial.suggest_float("x", 0, 1)
    if worker is not None:
        trial.set_user_attr("worker", worker | {"host": worker["host"] or os.uname().nodename})
        trial.set_user_attr("entry", {"learning_rate": "as it was"})
    study.repeat_lost_trials(it, 3)
    study.repeat_lost_trials(it, 3)
    states = [trial.state for trial in it.trials]
    assert states == ([TrialState.FAIL, TrialState.WAITING] if lost else [TrialState.RUNNING])
    again = it.ask()
    assert study.slots(it.trials) == ([0, 0] if lost else [0, 1])
    if lost:
        assert again.params == (trial.params if worker is not None else {})
        assert "worker" not in again.user_attrs and ("entry" in again.user_attrs) == (
            worker is not None
        )


def test_living_trials_show_that_they_live(
    study: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "HEARTBEAT_INTERVAL", 0.01)
    it = optuna.create_study()
    trial = it.ask()
    with study.Heartbeat(trial):
        first = it.trials[0].user_attrs["worker"]
        deadline = time.time() + 10
        while it.trials[0].user_attrs["worker"] == first:
            assert time.time() < deadline
            time.sleep(0.01)
        assert not study.is_lost(it.trials[0])
    assert first["pid"] == os.getpid()


def test_a_worker_that_was_taken_for_dead_goes_on(study: ModuleType) -> None:
    """Its machine slept; in the meantime another one has run its trial."""
    it = optuna.create_study()
    calls = []

    def objective(trial: optuna.Trial) -> float:
        calls.append(trial.number)
        if trial.number == 0:
            it.tell(0, state=TrialState.FAIL)
            study.repeat_lost_trials(it, 2)
            it.tell(it.ask(), 5.0)
            trial.report(1.0, 1)
        return 0.0

    study.work(it, objective, 2)
    assert calls == [0, 2]
    assert {slot: value for slot, (_, _, value, _) in finished(it).items()} == {0: 5.0, 1: 0.0}


def test_a_race_for_the_last_slot_leaves_no_trial_too_many(study: ModuleType) -> None:
    it = optuna.create_study()
    calls = []

    def objective(trial: optuna.Trial) -> float:
        calls.append(trial.number)
        if (
            trial.number == 0
        ):  # meanwhile, another worker takes the last slot, and a third one finds none
            it.tell(it.ask(), 1.0)
            it.tell(it.ask(), state=TrialState.FAIL)
        return 0.0

    study.work(it, objective, 2)
    assert calls == [0] and finished(it).keys() == {0, 1}
    study.work(it, objective, 3)  # the third slot is there when it is wanted
    assert calls == [0, 3] and finished(it).keys() == {0, 1, 2}


# ---------------------------------------------------------------- what a trial is worth


@pytest.mark.parametrize(
    ("objective", "expected"), [([], 1.0), (["--objective", "quantile", "--quantile", "0.25"], 0.5)]
)
def test_objective_over_seeds(
    tune: ModuleType, quick: Callable[..., list[int]], objective: list[str], expected: float
) -> None:
    """Every trial gets the same seeds, and what is reported on the way is the objective so far."""
    seeds = quick()
    arguments = [
        "--env",
        SPREAD,
        "--n-trials",
        "2",
        "--n-seeds",
        "3",
        "--n-evaluations",
        "2",
        "--pruner",
        "none",
        *objective,
    ]
    trials = tune.main([*arguments, "--no-optim-plots"]).trials
    assert seeds == [0, 1000, 2000] * 2
    for trial in trials:
        base = trial.user_attrs["seeds"][0]
        assert trial.user_attrs["seeds"] == pytest.approx([base, base + 1, base + 2])
        assert trial.value == pytest.approx(base + expected)
        assert sorted(trial.intermediate_values) == [1, 2, 3, 4, 5, 6]
        assert trial.intermediate_values[1] == pytest.approx(2 * base)
        assert trial.intermediate_values[6] == pytest.approx(trial.value)


def test_hyperparameters_that_lead_nowhere_are_pruned(
    tune: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*_: Any) -> float:
        raise ValueError("NaN everywhere")

    monkeypatch.setattr(tune.Tuning, "train", train)
    (trial,) = tune.main(["--env", SPREAD, "--n-trials", "1"]).trials
    assert trial.state == TrialState.PRUNED and trial.user_attrs["error"] == "NaN everywhere"


def test_evaluations_come_after_parts_of_the_training(tune: ModuleType) -> None:
    arguments = [
        "--env",
        SPREAD,
        "-n",
        "1000",
        "--n-evaluations",
        "4",
        "--hyperparams",
        "n_envs:2",
        "n_steps:100",
        "n_epochs:1",
    ]
    _, tuning, _ = tune.open_tuning(arguments)
    reports: list[int] = []
    tuning.train(tuning.base, 0, lambda value, part: reports.append(part))
    assert reports == [1, 2, 3, 4]
    tuning.train(tuning.base | {"n_steps": 500}, 0, lambda value, part: reports.append(part))
    assert reports[4:] == [4], "an evaluation needs an update before it"


# ---------------------------------------------------------------- samplers


@pytest.mark.parametrize("algo", ["happo", "hatrpo", "haa2c", "mappo", "ippo"])
@pytest.mark.parametrize("env", [SPREAD, "Pendulum-v1"])
def test_what_is_sampled_can_be_pasted_and_trained(tune: ModuleType, algo: str, env: str) -> None:
    _, tuning, _ = tune.open_tuning(
        ["--algo", algo, "--env", env, "--hyperparams", "gamma:0.9", "n_envs:4"]
    )
    samplers = importlib.import_module("sb3_happo_zoo.hyperparams_opt")
    it = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    entries = []
    for _ in range(4):
        sampled = samplers.TEAM_SAMPLERS[algo](it.ask(), 0, 4, {"continuous": tuning.continuous})
        entry = samplers.as_entry(tuning.base, sampled, tuning.policy_kwargs)
        assert yaml.safe_load(yaml.safe_dump(entry)) == entry
        entries.append(entry)
        manager = tuning.make_manager(0)
        arguments = manager.configure(entry)
        vec_env = manager.create_envs(4, no_log=True)
        model = tune.TEAM_ALGOS[algo](env=vec_env, **arguments)
        vec_env.close()
        assert model.n_steps * 4 % (model.batch_size or 1) == 0
        assert 0.7 <= model.gamma < 1 and 0.8 <= model.gae_lambda < 1
        assert ("log_std_init" in entry["policy_kwargs"]) == (env == "Pendulum-v1")
    assert len({entry["learning_rate"] for entry in entries}) == 4


@pytest.mark.parametrize("algo", ["happo", "hatrpo", "haa2c", "mappo"])
def test_what_is_fixed_is_not_searched(tune: ModuleType, algo: str) -> None:
    """Nothing is suggested in vain, and minibatches divide the rollout that there is."""
    fixed = ["n_steps:50", "gamma:0.9", "policy_kwargs:dict(net_arch=[8])"]
    _, tuning, study = tune.open_tuning(["--algo", algo, "--env", SPREAD, "--hyperparams", *fixed])
    trial = study.ask()
    sampled = tuning.sample(trial)
    assert not {"n_steps", "gamma", "policy_kwargs"} & sampled.keys()
    assert (
        not {"rollout_pow", "one_minus_gamma", "net_arch", "activation_fn", "sharing"}
        & trial.params.keys()
    )
    assert "max_grad_norm" in trial.params
    if algo != "haa2c":
        assert sampled["batch_size"] == 50 * 20 // trial.params["n_minibatches"]


def test_entropy_bonuses_that_fall_are_tried_too(tune: ModuleType) -> None:
    _, tuning, _ = tune.open_tuning(["--algo", "happo", "--env", SPREAD])
    samplers = importlib.import_module("sb3_happo_zoo.hyperparams_opt")
    it = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    sampled = [samplers.sample_happo_params(it.ask(), 0, 4, {})["ent_coef"] for _ in range(20)]
    bonuses = [
        tuning.make_manager(0).configure({**tuning.base, "ent_coef": value})["ent_coef"]
        for value in sampled
    ]
    falling, staying = (
        [bonus for bonus in bonuses if callable(bonus) == falls] for falls in (True, False)
    )
    assert falling and staying
    assert all(1e-3 <= bonus(1.0) <= 0.2 and bonus(0.0) == 0 for bonus in falling)
    assert all(1e-4 <= bonus <= 0.05 for bonus in staying)


# ---------------------------------------------------------------- reports


def test_the_best_trial_is_ready_to_be_used(
    tune: ModuleType, quick: Callable[..., list[int]], tmp_path: Path
) -> None:
    train = importlib.import_module("sb3_happo_zoo.train")
    agents = importlib.import_module("sb3_happo_zoo.trained_agents")
    quick()
    arguments = [
        "--algo",
        "haa2c",
        "--env",
        SPREAD,
        "-f",
        str(tmp_path),
        "--n-trials",
        "5",
        "--sampler",
        "random",
    ]
    arguments += ["--hyperparams", "max_grad_norm:0.25", "n_envs:2", "--env-kwargs", "N:2"]
    study = tune.main([*arguments, "--pruner", "none"])
    folder = tmp_path / "haa2c" / "study_haa2c_mpe2-simple_spread_v3"
    for name in ("history.png", "importances.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    assert len((folder / "trials.csv").read_text().splitlines()) == 6
    (entry,) = yaml.safe_load((folder / "best.yml").read_text()).values()
    assert entry == study.best_trial.user_attrs["entry"]
    assert entry["n_timesteps"] == study.user_attrs["settings"]["n_timesteps"], (
        "the study's, not the entry's"
    )
    assert entry["max_grad_norm"] == 0.25, "what the command line fixes is not sampled"
    assert entry["joint_kwargs"] == 'dict(team_reward="sum")', "the rest is the entry's"

    tiny = [
        "--algo",
        "haa2c",
        "--env",
        SPREAD,
        "-f",
        str(tmp_path),
        "-n",
        "1",
        "--eval-freq",
        "-1",
        "--verbose",
        "0",
    ]
    of_study = ["--storage", str(folder / "journal.log"), "--study-name", study.study_name]
    worst: FrozenTrial = min(study.trials, key=lambda trial: trial.values[0])
    for more, expected in (
        (["-conf", str(folder / "best.yml")], entry),
        (of_study, entry),
        ([*of_study, "--trial-id", str(worst.number)], worst.user_attrs["entry"]),
    ):
        model = agents.load_agent(train.main([*tiny, *more]).save_path).model
        assert model.lr_schedule(1.0) == expected["learning_rate"]
        assert model.n_steps == expected["n_steps"]
        assert len(model.policy.agents) == 2


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--algo", "hapo"], "did you mean 'happo'?"),
        (["--env", "mpe2/simple_spred_v3"], "Did you mean 'mpe2/simple_spread_v3'"),
        (["-params", "lerning_rate:1e-3"], "Did you mean 'learning_rate'?"),
        (["--storage", "postgres://localhost/studies"], "did you mean postgresql://?"),
        (["--storage", "sqlit:///studies.db"], "did you mean sqlite://?"),
        (["--storage", "studies"], "expected a journal file"),
        (["--storage", "sqlite://"], "would be lost with the process; give a file"),
        (["--storage", "sqlite:///:memory:"], "would be lost with the process; give a file"),
        (["--storage", "sqlite:////proc/none/studies.db"], "/proc/none"),
        (["--n-trials", "0"], "--n-trials: must be at least 1, not 0"),
        (["--quantile", "25"], "--quantile must be in [0, 1]"),
        (
            [
                "-params",
                "policy_kwargs:dict(critic_kwargs="
                "dict(activation_fn=type('Mine', (nn.ReLU,), {})))",
            ],
            "no valid expression",
        ),
    ],
)
def test_what_is_wrong_is_said_before_any_trial(
    tune: ModuleType,
    quick: Callable[..., list[int]],
    capsys: pytest.CaptureFixture,
    arguments: list[str],
    message: str,
) -> None:
    seeds = quick()
    with pytest.raises(SystemExit) as exit_:
        tune.main(["--env", SPREAD, *arguments])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not seeds


def test_a_study_is_not_continued_with_other_settings(
    tune: ModuleType, quick: Callable[..., list[int]], capsys: pytest.CaptureFixture
) -> None:
    quick()
    arguments = [
        "--env",
        SPREAD,
        "--n-trials",
        "1",
        "--study-name",
        "it",
        "--no-optim-plots",
        "--storage",
        "studies.log",
    ]
    tune.main(arguments)
    with pytest.raises(SystemExit) as exit_:
        tune.main([*arguments, "-n", "500"])
    assert exit_.value.code == 2
    assert "n_timesteps was 10000000, now 500" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tune.main([*arguments, "-params", "gamma:0.5"])  # which the first trial has searched
    assert "hyperparams was {}, now {'gamma': '0.5'}" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tune.main([*arguments, "--eval-env-kwargs", "max_cycles:2"])
    assert "eval_env_kwargs was None, now {'max_cycles': 2}" in capsys.readouterr().err
    # What is searched may have changed in the file, what is not must be the same
    searched = ["learning_rate: lin_1e-3", "gamma: 0.5", "n_timesteps: 1e7"]
    for lines, code in ((searched, None), ([*searched, "n_envs: 3"], 2)):
        entry = yaml.safe_load((ZOO / "hyperparams" / "happo.yml").read_text())[SPREAD]
        entry |= {name: value for line in lines for name, value in yaml.safe_load(line).items()}
        Path("mine.yml").write_text(yaml.safe_dump({SPREAD: entry}))
        with contextlib.nullcontext() if code is None else pytest.raises(SystemExit):
            tune.main([*arguments, "-conf", "mine.yml"])
    assert "'n_envs': 20" in capsys.readouterr().err


def test_a_random_seed_is_drawn_once_for_a_study(
    tune: ModuleType, quick: Callable[..., list[int]]
) -> None:
    quick()
    arguments = [
        "--env",
        SPREAD,
        "--study-name",
        "it",
        "--no-optim-plots",
        "--storage",
        "studies.log",
        "--seed",
        "-1",
    ]
    first = tune.main([*arguments, "--n-trials", "1"])
    assert len(tune.main([*arguments, "--n-trials", "2"]).trials) == 2
    assert first.user_attrs["settings"]["seed"] >= 0


def test_storages_that_cannot_be_read(
    study: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.log"
    broken.write_text("no journal\nat all\n")
    with pytest.raises(ValueError, match=r"broken\.log is no journal file"):
        study.open_storage(str(broken))
    monkeypatch.setattr(study, "RDBStorage", Mock(side_effect=ImportError("no DB access module")))
    with pytest.raises(ImportError, match="pip install psycopg2-binary"):
        study.open_storage("postgresql://user@host/name")


def test_storages_with_options(study: ModuleType) -> None:
    url = "sqlite:///studies.db?timeout=60"
    made = optuna.create_study(storage=study.open_storage(url), study_name="it")
    made.set_user_attr("settings", {"seed": 7})
    assert study.study_settings(url, "it") == {"seed": 7}
    assert study.study_settings(url, "its") == study.study_settings("none.log", "it") == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--storage", "studies.log", "--study-name", "its"], "Did you mean 'it'?"),
        (["--storage", "studys.log", "--study-name", "it"], "there is no file studys.log"),
        (
            ["--storage", "sqlite:///nowhere/studies.db", "--study-name", "it"],
            "there is no file nowhere/studies.db",
        ),
        (
            ["--storage", "studies.log", "--study-name", "it", "--algo", "hatrpo"],
            "tuned happo on mpe2/simple_spread_v3, not hatrpo",
        ),
        (["--study-name", "it"], "say with --storage where it is"),
        (["--trial-id", "0"], "say with --storage where it is"),
    ],
)
def test_trials_that_are_not_there(
    tune: ModuleType,
    quick: Callable[..., list[int]],
    capsys: pytest.CaptureFixture,
    arguments: list[str],
    message: str,
) -> None:
    quick()
    tune.main(
        [
            "--env",
            SPREAD,
            "--n-trials",
            "1",
            "--study-name",
            "it",
            "--no-optim-plots",
            "--storage",
            "studies.log",
        ]
    )
    before = sorted(Path().rglob("*"))
    with pytest.raises(SystemExit) as exit_:
        importlib.import_module("sb3_happo_zoo.train").main(["--env", SPREAD, *arguments])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
    assert sorted(Path().rglob("*")) == before, "nothing is made by asking for it"


def test_interrupts_still_work_after_an_interrupted_study(
    tune: ModuleType, quick: Callable[..., list[int]]
) -> None:
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # which shells take from what they start in the background
    quick(interrupt_at=(1,))
    tune.main(["--env", SPREAD, "--n-trials", "1"])
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("env", [SPREAD, "Pendulum-v1"])
def test_exploration_and_target_critics_are_searched(tune: ModuleType, env: str) -> None:
    """Every kind of noise is tried where actions are continuous, and makes a model."""
    samplers = importlib.import_module("sb3_happo_zoo.hyperparams_opt")
    small = ["n_steps:8", "n_envs:1", "batch_size:8"]
    _, tuning, _ = tune.open_tuning(["--algo", "happo", "--env", env, "--hyperparams", *small])
    it = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    kinds, shares = set(), set()
    for _ in range(25):
        trial = it.ask()
        sampled = tuning.sample(trial)
        entry = samplers.as_entry(tuning.base, sampled, tuning.policy_kwargs)
        assert yaml.safe_load(yaml.safe_dump(entry)) == entry
        shares.add(sampled["target_critic_tau"] is None)
        kind = trial.params.get("exploration")
        if kind not in kinds:
            arguments = tuning.make_manager(0).configure(entry)
            model = tune.TEAM_ALGOS["happo"](env=env, **arguments)
            assert model.use_sde == bool(kind and "gsde" in kind)
        kinds.add(kind)
    assert shares == {True, False}
    assert kinds == (set(samplers.EXPLORATION) if env != SPREAD else {None})


@pytest.mark.parametrize("fixed", ["use_sde:True", "exploration_noise:'ou'"])
def test_exploration_that_is_fixed_is_not_searched(tune: ModuleType, fixed: str) -> None:
    arguments = ["--algo", "happo", "--env", "Pendulum-v1", "--hyperparams", fixed]
    _, tuning, study = tune.open_tuning(arguments)
    trial = study.ask()
    assert not {"use_sde", "exploration_noise"} & tuning.sample(trial).keys()
    assert "exploration" not in trial.params


def test_target_critics_are_not_searched_where_they_do_not_fit(tune: ModuleType) -> None:
    arguments = ["--algo", "happo", "--env", SPREAD, "--hyperparams", "clip_range_vf:0.2"]
    _, tuning, study = tune.open_tuning(arguments)
    assert "target_critic_tau" not in tuning.sample(study.ask())
