"""The zoo as an installed package: contents of the wheel, and training outside the repository."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ZOO = ROOT / "zoo"
SCRIPTS = sorted(ZOO.glob("*.py"))


def run_python(*args: str, cwd: Path, path: Path) -> str:
    """Run a fresh interpreter that imports from ``path`` first; a failure fails the test."""
    done = subprocess.run(
        [sys.executable, *args],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that a wheel installs."""
    folder = tmp_path_factory.mktemp("installed")
    arguments = ["egg_info", "--egg-base", str(folder), "build_py", "--build-lib", str(folder)]
    run_python("setup.py", "-q", *arguments, cwd=ROOT, path=ROOT)
    return folder


def test_contents(installed: Path) -> None:
    """The modules of the zoo, its hyperparameters and its agents; none of its scripts."""
    package = installed / "sb3_happo_zoo"
    for pattern, source in (
        ("*.py", ZOO / "sb3_happo_zoo"),
        ("hyperparams/*.yml", ZOO),
        ("agents/*/*/**/*.*", ZOO),
    ):
        files = {path.relative_to(source) for path in source.glob(pattern)}
        assert files
        assert files == {path.relative_to(package) for path in package.glob(pattern)}
    top_level = {path.name for path in installed.iterdir() if path.suffix != ".egg-info"}
    assert top_level == {"sb3_happo", "sb3_happo_zoo"}
    entry_points = (installed / "sb3_happo.egg-info" / "entry_points.txt").read_text()
    assert "sb3-happo = sb3_happo_zoo.__main__:main" in entry_points


def test_every_script_is_a_command(installed: Path, tmp_path: Path) -> None:
    names = [script.stem for script in SCRIPTS]
    text = run_python("-m", "sb3_happo_zoo", "--help", cwd=tmp_path, path=installed)
    commands = [line.split()[0] for line in text.splitlines() if line.startswith("  ")]
    assert set(names) <= set(commands)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_scripts_are_thin(script: Path) -> None:
    """They only call the ``main`` of a module of the package."""
    assert len(script.read_text().splitlines()) < 10


@pytest.mark.slow
def test_training_outside_the_repository(installed: Path, tmp_path: Path) -> None:
    """Logs go to the current folder, and the installed files stay as they are."""
    pytest.importorskip("mpe2")
    before = sorted(path for path in installed.rglob("*") if "__pycache__" not in str(path))
    arguments = ["--env", "mpe2/simple_spread_v3", "--num-threads", "1"]
    hyperparams = ["--hyperparams", "n_envs:2", "n_epochs:1"]
    run_python(
        "-m",
        "sb3_happo_zoo",
        "train",
        *arguments,
        "-n",
        "200",
        *hyperparams,
        cwd=tmp_path,
        path=installed,
    )
    (folder,) = (tmp_path / "logs" / "happo").iterdir()
    assert (folder / "mpe2-simple_spread_v3.zip").is_file()
    command = (folder / "mpe2-simple_spread_v3" / "command.txt").read_text()
    assert command.startswith("sb3-happo train --env mpe2/simple_spread_v3")
    enjoy = ["-m", "sb3_happo_zoo.enjoy", *arguments, "--no-render", "--n-episodes", "1"]
    assert f"Loading {folder.relative_to(tmp_path)}" in run_python(
        *enjoy, cwd=tmp_path, path=installed
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shipped = installed / "sb3_happo_zoo" / "agents" / "happo"
    assert f"Loading {shipped}" in run_python(*enjoy, cwd=elsewhere, path=installed)
    after = sorted(path for path in installed.rglob("*") if "__pycache__" not in str(path))
    assert after == before
