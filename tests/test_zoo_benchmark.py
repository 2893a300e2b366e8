"""
The zoo's benchmark with tiny budgets: records, resuming, tables, shipped agents, films,
reproducing.
"""

import contextlib
import importlib
import io
import json
import multiprocessing
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
ZOO = ROOT / "zoo"
SPREAD = "mpe2/simple_spread_v3"
SHIPPED = sorted((ZOO / "agents").glob("*/*_1"))
TINY = f"""
{SPREAD}:
  n_envs: 2
  n_timesteps: 100
  n_steps: 50
  batch_size: 50
  n_epochs: 1
  joint_kwargs: dict(team_reward="sum")
  policy_kwargs: dict(net_arch=[8])
mpe2/simple_reference_v3:
  n_timesteps: 100
  env_kwargs: dict(n_agents=3)
"""


@pytest.fixture
def records() -> ModuleType:
    return importlib.import_module("sb3_happo_zoo.results")


@pytest.fixture
def entries() -> ModuleType:
    return importlib.import_module("sb3_happo_zoo.entries")


@pytest.fixture
def benchmark() -> ModuleType:
    return importlib.import_module("sb3_happo_zoo.benchmark")


@pytest.fixture
def reproduce() -> ModuleType:
    return importlib.import_module("sb3_happo_zoo.reproduce")


def record(**changes: Any) -> dict[str, Any]:
    """A record of a finished run."""
    return {
        "algo": "happo",
        "env": SPREAD,
        "settings": "happo",
        "seed": 0,
        "n_timesteps": 1000,
        "return": -30.0,
        "return_std": 5.0,
        "sum_over_agents": -30.0,
        "episodes": 100,
        "episode_length": 25.0,
        "learning_curve": [(500, -60.0), (1000, -30.0)],
        "wall_seconds": 10.0,
        "steps_per_second": 100,
        "hyperparams": {"n_timesteps": 1000},
        "command": "python zoo/benchmark.py --seeds 0",
        "commit": "abc",
        "versions": {"python": "3.11"},
    } | changes


# ---------------------------------------------------------------- records


def test_interquartile_mean_and_interval(records: ModuleType) -> None:
    """
    A quarter of the runs counts at neither end; the interval is narrower than the runs and wider
    than nothing.
    """
    iqm, low, high = records.estimate([-1000.0, 1, 2, 3, 4, 5, 6, 1000])
    assert iqm == 3.5
    assert -1000 < low < 3.5 < high < 1000
    assert records.estimate([1.0, 2, 6])[0] == 3
    assert np.isnan(records.estimate([2.0]).low)
    assert str(records.estimate([2.0])) == "2.00"
    assert records.estimate([2.0, 2.0]) == (2, 2, 2)


def test_interval_is_that_of_rliable(records: ModuleType) -> None:
    library = importlib.import_module("rliable.library")
    metrics = importlib.import_module("rliable.metrics")
    np.random.seed(0)  # rliable draws from the global generator
    results = np.random.normal(size=10)
    points, intervals = library.get_interval_estimates(
        {"team": results[:, None]},
        lambda scores: np.array([metrics.aggregate_iqm(scores)]),
        reps=10_000,
    )
    assert records.estimate(results) == pytest.approx(
        [*points["team"], *intervals["team"].ravel()], abs=0.03
    )


def test_hyperparameters_of_all_ages_compare(records: ModuleType) -> None:
    """Texts of values, as records had them once, and what a YAML file says."""
    old = {
        "n_steps": "50",
        "gamma": "0.95",
        "policy_kwargs": "{'activation_fn': <class 'torch.nn.modules.activation.ReLU'>}",
    }
    new = {"gamma": 0.95, "n_steps": 50, "policy_kwargs": "dict(activation_fn=nn.ReLU)"}
    assert records.canonical(old, "happo") == records.canonical(new, "happo")
    assert records.canonical(old, "happo") != records.canonical(new | {"gamma": 0.9}, "happo")
    function = {"ent_coef": "(lambda progress: 0.1 * progress)"}
    assert records.canonical(function, "happo") == records.canonical(dict(function), "happo"), (
        "no address of an object"
    )
    assert records.canonical(old, "random") == records.canonical(new | {"gamma": 0.9}, "random")


def test_a_broken_line_is_one_run_less(records: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    records.append_record(record(seed=0), path)
    with path.open("a") as file:
        file.write(json.dumps(record(seed=1))[:50])
    records.append_record(record(seed=2), path)
    with pytest.warns(UserWarning, match="line 2 is broken"):
        assert [run["seed"] for run in records.read_records(path)] == [0, 2]


def test_table(records: ModuleType, tmp_path: Path) -> None:
    """
    Seeds stand in one line, the newest run of a seed counts, other hyperparameters are another
    line.
    """
    report = importlib.import_module("sb3_happo_zoo.report")
    runs = [
        record(seed=seed, **{"return": value})
        for seed, value in ((0, -90.0), (1, -20.0), (2, -40.0), (0, -30.0))
    ]
    runs += [record(seed=0, hyperparams={"n_timesteps": 1000, "gamma": 0.5})]
    text = report.write_report(runs, tmp_path / "runs.jsonl").read_text()
    lines = [line for line in text.splitlines() if "| happo | happo (earlier) |" in line]
    assert len(lines) == 2
    assert any("| 1,000 | 0, 1, 2 | 100 | -30.0 [-40.0, -20.0] | -30.0 " in line for line in lines)


def test_what_was_recorded_stays_readable(records: ModuleType, tmp_path: Path) -> None:
    report = importlib.import_module("sb3_happo_zoo.report")
    runs = records.read_records()
    text = report.write_report(runs, tmp_path / "results.jsonl").read_text()
    assert len(runs) >= 22
    assert all(run["env"] in text and run["commit"] in text for run in runs)
    assert list((tmp_path / "curves").glob("*.png"))


def test_curves_of_long_and_short_trainings_stand_together(
    records: ModuleType, entries: ModuleType
) -> None:
    report = importlib.import_module("sb3_happo_zoo.report")
    runs = [
        record(
            settings=settings,
            hyperparams=entries.read_settings(settings)[SPREAD],
            n_timesteps=budget,
        )
        for settings, budget in (("happo", 10_000), ("happo_1m", 1_000), ("happo_harl", 1_000))
    ]
    axes = report.draw_curves(records.grouped(runs)).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["HAPPO", "HAPPO_1M"]
    assert axes.get_xscale() == "log"
    others = report.draw_curves(
        records.grouped([*runs[2:], record(hyperparams={"gamma": 0.5})])
    ).axes[0]
    assert [text.get_text() for text in others.get_legend().get_texts()] == ["HAPPO: happo_harl"], (
        "all that are still there"
    )


# ---------------------------------------------------------------- interrupted and repeated runs


def call(folder: Path, *more: str) -> list[str]:
    """Arguments of a tiny benchmark."""
    return [
        *(
            "--algos",
            "happo",
            "--seeds",
            "0",
            "1",
            "--settings",
            str(folder / "tiny.yml"),
            "--eval-episodes",
            "4",
        ),
        *(
            "--log-folder",
            str(folder / "logs"),
            "--results",
            str(folder / "runs.jsonl"),
            "--agents",
            str(folder / "agents"),
            *more,
        ),
    ]


def kill_after_first_run(folder: Path) -> None:
    """Start a benchmark, and kill it when one run has finished and the next one is under way."""
    process = subprocess.Popen(
        [sys.executable, str(ZOO / "benchmark.py"), *call(folder, "--envs", SPREAD)],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        begin = time.time()
        while len(list(folder.glob("logs/*"))) < 2:
            assert process.poll() is None and time.time() - begin < 600
            time.sleep(0.05)
        workers = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.kill()
        process.wait()
    assert workers
    _, alive = psutil.wait_procs(workers, 60)
    assert not alive


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a benchmark that was killed and went on."""
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "tiny.yml").write_text(TINY)
    kill_after_first_run(folder)
    benchmark = importlib.import_module("sb3_happo_zoo.benchmark")
    with contextlib.redirect_stdout(io.StringIO()) as told:
        code = benchmark.main(call(folder, "--ship", "--n-jobs", "2"))
    assert code == 1, "one entry cannot be trained"
    (folder / "told.txt").write_text(told.getvalue())
    return folder


def test_killed_and_resumed(
    finished: Path, benchmark: ModuleType, records: ModuleType, capsys: pytest.CaptureFixture
) -> None:
    """All runs are there, each once, as in an unbroken benchmark; and nothing is left to do."""
    runs = records.read_records(finished / "runs.jsonl")
    assert [(run["algo"], run["env"], run["seed"], run["n_timesteps"]) for run in runs] == [
        ("happo", SPREAD, 0, 100),
        ("happo", SPREAD, 1, 100),
    ]
    assert all(run["episodes"] == 4 and run["learning_curve"][-1][0] == 100 for run in runs)
    assert benchmark.main(call(finished, "--envs", SPREAD)) == 0
    assert "2 runs, 2 of them finished before" in capsys.readouterr().out
    (run, _) = benchmark.plan(benchmark.make_parser().parse_args(call(finished, "--envs", SPREAD)))
    assert run.record_in(runs, 4) == runs[0]
    assert run.record_in(runs, 5) is run.record_in(runs) is None, (
        "more episodes were asked for than were played"
    )
    assert "| 100 | 0, 1 | 4 |" in (finished / "benchmark.md").read_text()


def test_a_failed_run_stops_no_other(finished: Path) -> None:
    """It leaves its error in its log, the last line of it on the screen."""
    assert (
        len(
            re.findall(
                r"failed \(.*unexpected keyword argument 'n_agents'",
                (finished / "told.txt").read_text(),
            )
        )
        == 2
    )
    outputs = [path.read_text() for path in finished.glob("logs/*reference*/output.txt")]
    assert len(outputs) == 2
    assert all("n_agents" in output for output in outputs)


def test_interrupted(
    benchmark: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """Ctrl-C ends the runs that are under way, and says how to go on."""
    workers: list[Any] = []

    def ctrl_c(sentinels: list[int]) -> list[int]:
        workers.extend(multiprocessing.active_children())
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark.connection, "wait", ctrl_c)
    (tmp_path / "tiny.yml").write_text(TINY)
    assert benchmark.main(call(tmp_path, "--n-jobs", "2")) == 130
    assert len(workers) == 2
    assert not any(worker.is_alive() for worker in workers)
    assert "the same command does the others" in capsys.readouterr().out
    assert not (tmp_path / "runs.jsonl").exists()


def test_the_best_seed_is_shipped(
    finished: Path, records: ModuleType, benchmark: ModuleType
) -> None:
    """Small, with what it takes to act, and never replaced by a worse one."""
    load_agent = importlib.import_module("sb3_happo_zoo.trained_agents").load_agent
    (folder,) = finished.glob("agents/happo/*")
    runs = records.read_records(finished / "runs.jsonl")
    best = max(runs, key=lambda run: run["return"])
    assert json.loads((folder / "record.json").read_text()) == best
    assert not any(
        optimizer.state for optimizer in [load_agent(folder, "cpu").model.policy.critic.optimizer]
    )
    (trained,) = finished.glob(f"logs/*seed{best['seed']}/happo/*_1")
    observation = load_agent(folder).make_env(3, seed=1).reset()
    actions, again = (
        load_agent(path, "cpu").model.predict(observation, deterministic=True)[0]
        for path in (folder, trained)
    )
    assert np.array_equal(actions, again)
    before = (folder / "record.json").stat().st_mtime_ns
    benchmark.main(call(finished, "--envs", SPREAD, "--ship"))
    assert (folder / "record.json").stat().st_mtime_ns == before


def test_reproduce(
    finished: Path, reproduce: ModuleType, records: ModuleType, capsys: pytest.CaptureFixture
) -> None:
    """The same seed gives the same result; a result that lies elsewhere is told."""
    arguments = [
        "--results",
        str(finished / "runs.jsonl"),
        "--log-folder",
        str(finished / "again"),
        "--seed",
        "1",
    ]
    assert reproduce.main([f"happo/{SPREAD}", *arguments]) == 0
    (again,) = records.read_records(finished / "again" / "results.jsonl")
    assert again["return"] == records.read_records(finished / "runs.jsonl")[1]["return"]
    assert "lies between" in capsys.readouterr().out


@pytest.mark.parametrize(("value", "code"), [(-31.0, 0), (-39.0, 0), (-50.0, 1)])
def test_reproduced_or_not(
    value: float, code: int, reproduce: ModuleType, records: ModuleType, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    """Inside the interval of all seeds; which versions differ is told in any case."""
    for seed, recorded in enumerate((-40.0, -30.0, -20.0)):
        records.append_record(
            record(
                seed=seed, hyperparams={"n_timesteps": 1000, "n_envs": 1}, **{"return": recorded}
            ),
            tmp_path / "r",
        )

    def run_all(runs: Any, options: Any) -> list[Any]:
        assert [run.seed for run in runs] == [1]  # the middle one
        new = record(
            seed=1,
            hyperparams=runs[0].hyperparams,
            versions={"python": "3.12"},
            **{"return": value},
        )
        records.append_record(new, options.results)
        return []

    monkeypatch.setattr(reproduce, "run_all", run_all)
    arguments = [
        f"happo/{SPREAD}",
        "--results",
        str(tmp_path / "r"),
        "--log-folder",
        str(tmp_path / "again"),
    ]
    assert reproduce.main(arguments) == code
    assert "Differs: python 3.11 then, 3.12 now" in capsys.readouterr().out


# ---------------------------------------------------------------- wrong names


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--algos", "hapo"], "happo"),
        (["--envs", "mpe2/simple_spred_v3"], SPREAD),
        (["--settings", "happo_harn"], "happo_harl"),
        (["--hyperparams", "agent_order:fixed"], "quote"),
        (["--hyperparams", "normalize:'yes'"], "NameError: name 'yes'"),
        (["--hyperparams", "env_wrapper:'gymnasium.wrappers.NoSuch'"], "NoSuch"),
        (["-n", "0"], "must be at least 1"),
        (["--n-jobs", "0"], "at least 1"),
        (["--hyperparams", "ent_ceof:0.1"], "'ent_coef'"),
        (["--hyperparams", "ent_coef:LinearShedule(0.1, 0.0, 1.0)"], "no valid expression"),
        (["--hyperparams", "policy_kwargs:{'activation_fn': nn.ReLU}"], "write it as a call"),
    ],
)
def test_wrong_names(
    benchmark: ModuleType, arguments: list[str], hint: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as error:
        benchmark.main(arguments)
    assert error.value.code == 2
    assert hint in capsys.readouterr().err.splitlines()[-1]


def test_an_entry_without_a_budget(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    settings = tmp_path / "mine.yml"
    settings.write_text(f"{SPREAD}: {{n_envs: 2, learning_rate: 1e-3}}")
    with pytest.raises(SystemExit) as error:
        benchmark.main(["--algos", "happo", "--settings", str(settings)])
    assert error.value.code == 2
    assert "pass --n-timesteps" in capsys.readouterr().err


def test_wrong_line(reproduce: ModuleType, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as error:
        reproduce.main(["hapo/mpe2/simple_spread_v3"])
    assert error.value.code == 2
    assert f"Did you mean 'happo/{SPREAD}'?" in capsys.readouterr().err


def test_a_name_of_several_lines(
    reproduce: ModuleType, records: ModuleType, entries: ModuleType
) -> None:
    """The zoo's own settings of today, if they are among them; else it takes an id."""
    entry = entries.read_settings("happo")[SPREAD]
    groups = records.grouped(
        [record(hyperparams=entry | changes) for changes in ({}, {"gamma": 0.1}, {"gamma": 0.2})]
    )
    found = reproduce.find_group(f"happo/{SPREAD}", groups)
    assert found.runs[0]["hyperparams"] == entry
    assert reproduce.find_group(found.id, groups) == found
    others = [group for group in groups if group != found]
    with pytest.raises(
        ValueError, match=f"several lines; give an id: {others[0].id}, {others[1].id}"
    ):
        reproduce.find_group(f"happo/{SPREAD}", others)


def test_settings_of_yesterday(reproduce: ModuleType) -> None:
    """Records with texts of values can be repeated only as long as the file says the same."""
    old = record(
        hyperparams={"n_timesteps": "1000", "gamma": "0.123"},
        commit="0ld",
        command="python zoo/figures.py",
    )
    with pytest.raises(ValueError, match=r"check out 0ld and run `python zoo/figures\.py`"):
        reproduce.repeat_run(old, 0)


def test_settings_that_moved(reproduce: ModuleType, entries: ModuleType) -> None:
    """A record of texts whose hyperparameters stand in another file today."""
    entry = entries.read_settings("happo_1m")[SPREAD]
    old = record(
        settings="happo",
        hyperparams={name: str(entries.evaluated(value)) for name, value in entry.items()},
    )
    assert reproduce.repeat_run(old, 0).hyperparams == entry


def test_settings_that_were_changed_on_the_command_line(
    records: ModuleType, entries: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The rest of the entry must be today's, wherever that is asked."""
    monkeypatch.chdir(tmp_path)
    best = "zoo/studies/happo_spread/best.yml"
    entry = entries.read_settings(best)[SPREAD]
    settings = f"{best} gamma=0.5 policy_kwargs=dict(net_arch=[8], activation_fn=nn.ReLU)"
    changed = entry | {"gamma": 0.5, "policy_kwargs": "dict(net_arch=[8], activation_fn=nn.ReLU)"}
    assert records.same_entry(record(hyperparams=changed), settings) == entry
    assert records.same_entry(record(hyperparams=changed | {"n_envs": 3}), settings) is None
    assert records.same_entry(record(hyperparams=changed), best) is None


def test_a_random_team_finds_the_users_own_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a trained one does: in the folder where the benchmark is called."""
    (tmp_path / "her_pkg").mkdir()
    (tmp_path / "her_pkg" / "her_env_v0.py").write_text(
        "from mpe2.simple_spread_v3 import parallel_env  # noqa"
    )
    (tmp_path / "her.yml").write_text("her_pkg/her_env_v0: {n_timesteps: 100}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    runs = importlib.import_module("sb3_happo_zoo.runs")
    run = runs.make_run("random", "her_pkg/her_env_v0", 3, "her.yml", n_episodes=20)
    assert run.command.endswith("--settings her.yml --eval-episodes 20 --seeds 3")
    record = runs.train_and_evaluate(run, tmp_path / "logs", n_episodes=20)
    assert record["episodes"] == 20 and record["return"] < 0


# ---------------------------------------------------------------- what is shipped


def test_the_gallery_goes_on_where_one_cannot_be_filmed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Each film is made by a process of its own."""
    gallery = importlib.import_module("sb3_happo_zoo.gallery")
    for env in ("a", "b"):
        folder = tmp_path / "agents" / "happo" / f"{env}_1" / env
        folder.mkdir(parents=True)
        (folder / "args.yml").write_text(f"{{algo: happo, env: {env}}}")
    (tmp_path / "happo-b.gif").write_bytes(b"film")

    def film(command: list[str], check: bool) -> subprocess.CompletedProcess:
        return subprocess.CompletedProcess(command, 2 if "a" in command else 0)

    monkeypatch.setattr(gallery.subprocess, "run", film)
    gallery.main(["--agents", str(tmp_path / "agents"), "--out", str(tmp_path)])
    told = capsys.readouterr().out.splitlines()
    assert told == [f"{tmp_path / 'happo-a.gif'}: not made", f"{tmp_path / 'happo-b.gif'}: 0 kB"]


def test_film(finished: Path, tmp_path: Path) -> None:
    gallery = importlib.import_module("sb3_happo_zoo.gallery")
    gallery.main(["--agents", str(finished / "agents"), "--out", str(tmp_path)])
    with Image.open(tmp_path / "happo-mpe2-simple_spread_v3.gif") as film:
        assert film.n_frames > 50
        assert max(film.size) == gallery.PIXELS


@pytest.mark.parametrize(
    "folder", SHIPPED, ids=lambda folder: f"{folder.parent.name}/{folder.name}"
)
@pytest.mark.parametrize(
    "quick", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["quick", "as recorded"]
)
def test_shipped_agents(folder: Path, quick: bool) -> None:
    """Each loads from the clone, is small, and plays as its record says."""
    runs = importlib.import_module("sb3_happo_zoo.runs")
    load_agent = importlib.import_module("sb3_happo_zoo.trained_agents").load_agent
    recorded = json.loads((folder / "record.json").read_text())
    if recorded["env"].startswith("vmas/"):
        pytest.importorskip("vmas")
    of_images = "pistonball" in recorded["env"]  # a convolutional network for each agent
    assert sum(file.stat().st_size for file in folder.rglob("*")) < (4e6 if of_images else 1e6)
    team = load_agent(folder, "cpu")
    n_episodes = (
        max(2, min(20, int(2000 / recorded["episode_length"]))) if quick else recorded["episodes"]
    )
    env = team.make_env(min(n_episodes, runs.N_EVAL_ENVS), runs.EVAL_SEED + recorded["seed"])
    episodes = runs.evaluate(team.model, env, team.deterministic, n_episodes)
    env.close()
    mean = np.mean([episode.team_return for episode in episodes])
    error = (4 if quick else 2) * recorded["return_std"] / np.sqrt(len(episodes))
    assert mean == pytest.approx(recorded["return"], rel=0.01, abs=error)
