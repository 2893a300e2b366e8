"""
The zoo's scripts for the paper's Proposition 1 and ablations and for speed, with tiny budgets.
"""

import importlib
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

ZOO = Path(__file__).resolve().parents[1] / "zoo"
SPREAD = "mpe2/simple_spread_v3"


@pytest.fixture
def ablations() -> ModuleType:
    return importlib.import_module("sb3_happo_zoo.ablations")


@pytest.fixture
def proposition1() -> ModuleType:
    return importlib.import_module("sb3_happo_zoo.proposition1")


def is_png(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG")


# ---------------------------------------------------------------- Proposition 1


@pytest.mark.parametrize(
    ("actions", "reward"),
    [
        ((0, 0, 1, 1), 1.0),
        ((1, 1, 0, 0), 1.0),
        ((0, 1, 0, 1), 0.0),
        ((0, 0, 0, 0), 0.0),
        ((0, 1, 1, 1), 0.0),
    ],
)
def test_only_two_halves_pay(
    proposition1: ModuleType, actions: tuple[int, ...], reward: float
) -> None:
    env = proposition1.Halves(4)
    env.reset()
    _, rewards, terminations, _, _ = env.step(dict(zip(env.possible_agents, actions, strict=True)))
    assert rewards == dict.fromkeys(env.possible_agents, reward)
    assert all(terminations.values()) and env.agents == []


def test_proposition_1(proposition1: ModuleType) -> None:
    """Sharing holds a team of four below the bound that HAPPO leaves far behind within seconds."""
    happo, shared = (
        proposition1.train(team, 4, seed=0, n_timesteps=6_144)
        for team in ("HAPPO", "MAPPO, shared parameters")
    )
    assert happo.reached >= 0.95
    assert happo.solved_after <= 6_144
    assert all(value <= 2 / 2**4 + 1e-6 for _, value in shared.curve)
    assert shared.solved_after == float("inf")


def test_proposition_1_writes_table_and_plot(proposition1: ModuleType, tmp_path: Path) -> None:
    proposition1.main(
        [
            "--n-agents",
            "2",
            "4",
            "--seeds",
            "0",
            "1",
            "--n-timesteps",
            "512",
            "--folder",
            str(tmp_path),
        ]
    )
    assert is_png(tmp_path / "proposition1.png")
    rows = re.findall(
        r"^\| (\d) \| (0\.\d+) \| (.+) \|$",
        (tmp_path / "proposition1.md").read_text(),
        flags=re.MULTILINE,
    )
    assert [(row[0], float(row[1])) for row in rows] == [("2", 0.5), ("4", 0.125)]
    assert all(len(row[2].split(" | ")) == len(proposition1.TEAMS) for row in rows)


def test_proposition_1_needs_two_halves(
    proposition1: ModuleType, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        proposition1.main(["--n-agents", "4", "3"])
    assert "even numbers from 2" in capsys.readouterr().err


# ---------------------------------------------------------------- ablations


def arguments(folder: Path, *seeds: int, budget: int = 2_000) -> list[str]:
    """Of ablations on spread, with results and report in ``folder``."""
    return [
        *(
            "--envs",
            SPREAD,
            "--seeds",
            *map(str, seeds),
            "--n-timesteps",
            str(budget),
            "--eval-episodes",
            "1",
        ),
        *("--results", str(folder / "runs.jsonl"), "--folder", str(folder)),
    ]


def read(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]


def test_ablations(ablations: ModuleType, tmp_path: Path) -> None:
    """Every variant trains as its name says, and the report shows it."""
    ablations.main(arguments(tmp_path, 0, budget=1_000))
    runs = {run["variant"]: run for run in read(tmp_path)}
    assert {name: run["hyperparams"]["agent_order"] for name, run in runs.items()} == {
        "random": "random", "shared": "random", "fixed": "fixed", "greedy": "greedy"
    }  # fmt: skip
    policies = {
        name: importlib.import_module("sb3_happo_zoo.entries").evaluated(
            run["hyperparams"]["policy_kwargs"]
        )
        for name, run in runs.items()
    }
    assert [name for name, policy in policies.items() if policy["share_parameters"]] == ["shared"]
    assert all(policy["net_arch"] == [128, 128] for policy in policies.values())
    report = (tmp_path / "ablations.md").read_text()
    plots = re.findall(r"!\[.*\]\((.+\.png)\)", report)
    assert len(plots) == len(ablations.ABLATIONS) and all(is_png(tmp_path / plot) for plot in plots)
    for run in runs.values():
        assert f"{run['return']:,.1f}" in report


@pytest.fixture
def trained(ablations: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Runs in no time; which ones were trained."""
    done: list[tuple[str, int]] = []

    def train_and_evaluate(run: Any, folder: Path, n_episodes: int, **_: Any) -> dict[str, Any]:
        shared = "'share_parameters': True" in run.hyperparams["policy_kwargs"]
        done.append(("shared" if shared else run.hyperparams["agent_order"], run.seed))
        n_timesteps = run.hyperparams["n_timesteps"]
        return {
            "env": run.env,
            "seed": run.seed,
            "return": 100.0 * shared + run.seed,
            "n_timesteps": n_timesteps,
            "episodes": n_episodes,
            "steps_per_second": 1,
            "learning_curve": [(1, 0.0), (n_timesteps, 1.0)],
            "hyperparams": run.hyperparams,
            "commit": "c",
            "versions": {"python": "3"},
        }

    monkeypatch.setattr(ablations, "train_and_evaluate", train_and_evaluate)
    return done


def test_ablations_resume(
    ablations: ModuleType,
    trained: list[tuple[str, int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    An interrupted call goes on where it stopped, whole ones repeat nothing, and new seeds add to
    the old.
    """
    train = ablations.train_and_evaluate

    def interrupted(*args: Any, **kwargs: Any) -> dict[str, Any]:
        if len(trained) == 3:
            raise KeyboardInterrupt
        return train(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(ablations, "train_and_evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ablations.main(arguments(tmp_path, 0))
    ablations.main(arguments(tmp_path, 0))
    ablations.main(arguments(tmp_path, 0))
    everything = {(variant, 0) for variant in ablations.VARIANTS}
    assert len(trained) == len(everything) and set(trained) == everything
    ablations.main(arguments(tmp_path, 0, 1))
    assert len(trained) == 2 * len(everything)
    assert {seed for _, seed in trained[len(everything) :]} == {1}


def test_ablations_repeat_what_no_longer_holds(
    ablations: ModuleType,
    trained: list[tuple[str, int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    Runs with another budget or with hyperparameters of yesterday are neither taken for today's nor
    reported.
    """
    n_variants = len(ablations.VARIANTS)
    ablations.main(arguments(tmp_path, 0))
    ablations.main(arguments(tmp_path, 1, budget=3_000))
    assert len(trained) == 2 * n_variants
    assert "--seeds 1 --n-timesteps 3000" in (tmp_path / "ablations.md").read_text()
    runs = importlib.import_module("sb3_happo_zoo.runs")
    entry = runs.read_settings("happo_1m")[SPREAD]
    monkeypatch.setattr(runs, "read_settings", lambda settings: {SPREAD: entry | {"gamma": 0.5}})
    ablations.main(arguments(tmp_path, 0))
    assert len(trained) == 3 * n_variants


def test_ablations_compare_seeds(
    ablations: ModuleType, trained: list[tuple[str, int]], tmp_path: Path
) -> None:
    """A difference is told only where seeds do not overlap."""
    ablations.main(arguments(tmp_path, 0, 1, 2))
    report = (tmp_path / "ablations.md").read_text()
    assert (
        "| shared | 101.0 | 100.0, 101.0, 102.0 "
        "| +100.0; every seed is better than each of the others |" in report
    )
    assert (
        "| greedy | 1.0 | 0.0, 1.0, 2.0 | +0.0; the seeds overlap: no difference shown |" in report
    )
    low, high = (
        [{"return": value} for value in values] for values in ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    )
    assert ablations.compare(low, high) == "-3.0; every seed is worse than each of the others"
    assert ablations.compare(low, high[:2]) == "-2.5; too few seeds to tell"


# ---------------------------------------------------------------- plots


def test_curves_of_seeds_meet_where_both_exist() -> None:
    """
    Mean and band at every step that one curve has and all cover, straight lines between a curve's
    points.
    """
    axes = Figure().subplots()
    importlib.import_module("sb3_happo_zoo.plots").draw_seeds(
        axes, [[(0, 0.0), (10, 10.0)], [(5, 1.0), (10, 3.0), (20, 9.0)]], "both"
    )
    (line,) = axes.lines
    assert np.asarray(line.get_data()).tolist() == [[5, 10], [3, 6.5]]
    (band,) = axes.collections
    assert list(band.get_paths()[0].get_extents().extents) == [5, 1, 10, 10]


# ---------------------------------------------------------------- speed


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = importlib.import_module("sb3_happo_zoo.speed")
    monkeypatch.setattr(module, "available_cores", lambda: 1)
    return module


@pytest.mark.slow
def test_speed(speed: ModuleType, tmp_path: Path) -> None:
    """All figures come from one run, and the parts are the whole."""
    settings = ["n_envs:2", "n_steps:16", "batch_size:32"]
    speed.main(
        [
            "--env",
            SPREAD,
            "--updates",
            "2",
            "--seconds",
            "0.2",
            "--json",
            str(tmp_path / "runs"),
            "-P",
            *settings,
        ]
    )
    run = json.loads((tmp_path / "runs").read_text())
    assert run["ratio_to_raw"] == pytest.approx(
        run["steps_per_second"] / run["raw_steps_per_second"]["1"], abs=2e-3
    )
    assert run["steps_per_second"] == pytest.approx(
        32 / run["seconds_per_update"]["mean"], rel=0.02
    )
    assert {
        "environment",
        "inference",
        "update of agent_0",
        "update of agent_2",
        "update of the critic",
    } <= run["parts"].keys()
    assert sum(run["parts"].values()) == pytest.approx(1.0, abs=1e-2)
    assert all(share >= 0 for share in run["parts"].values())
    assert run["peak_memory_mb"]["rss"] > run["peak_memory_mb"]["pss"] > 50


def test_speed_of_unknown_settings(speed: ModuleType, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        speed.main(["--env", "mpe2/simple_spreat_v3"])
    assert "mpe2/simple_spread_v3" in capsys.readouterr().err
