"""The package as a whole: what it ships, what it imports, and which way its imports run."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import sb3_happo

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "sb3_happo"

# What only the extras bring
EXTRAS = [
    *(
        "envpool",
        "gymnasium_robotics",
        "lbforaging",
        "mpe2",
        "mujoco",
        "pygame",
        "pymunk",
        "rlcard",
        "rware",
        "supersuit",
        "vmas",
    ),
    *(
        "imageio",
        "matplotlib",
        "optuna",
        "pandas",
        "PIL",
        "psutil",
        "rich",
        "rl_zoo3",
        "rliable",
        "tensorboard",
        "tqdm",
        "yaml",
    ),
]


def run_python(*args: str, cwd: Path = ROOT) -> str:
    """Run a fresh interpreter; a failure fails the test with its traceback."""
    done = subprocess.run(
        [sys.executable, *args],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path): ast.parse(path.read_text(encoding="utf-8"), str(path))
    for path in PACKAGE.rglob("*.py")
}


def imports(nodes: Iterator[ast.AST]) -> Iterator[str]:
    """The modules that these statements import; of this package, down to the file."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute in this package"
            assert node.module is not None
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in MODULES else node.module


def at_import(tree: ast.Module) -> Iterator[str]:
    """What is imported as soon as the module is: not inside functions, nor for type checkers alone."""
    return imports(iter(tree.body))


def rank(module: str) -> int:
    """How far up the house a module stands; imports run downwards only."""
    rooms = module.split(".")[1:]
    if not rooms:
        return 5
    if rooms[-1] in ("type_aliases", "version", "suggestions"):
        return 0
    if rooms[0] in ("envs", "vec_env"):
        return 1
    if rooms[0] == "common":
        return 3 if rooms[-1] == "on_policy_algorithm" else 2
    return 4 if rooms[0] == "happo" else 5


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_run_one_way(module: str) -> None:
    upwards = [
        name
        for name in imports(ast.walk(MODULES[module]))
        if name.partition(".")[0] in ("sb3_happo", "zoo", "tests")
        and (name not in MODULES or rank(name) > rank(module))
    ]
    assert not upwards, f"{module} imports {upwards}, which stand above it"


def test_no_import_cycle() -> None:
    graph = {
        module: [name for name in at_import(tree) if name in MODULES]
        for module, tree in MODULES.items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize(
    ("room", "without"),
    [
        ("envs", {"torch", "stable_baselines3", "sb3_contrib"}),
        ("vec_env", {"torch"}),
    ],  # SB3 itself imports torch
)
def test_environments_do_without_torch(room: str, without: set[str]) -> None:
    trees = {module: tree for module, tree in MODULES.items() if module.split(".")[1:2] == [room]}
    assert trees
    trees.pop(
        "sb3_happo.vec_env.vmas_vec_env", None
    )  # a simulator made of tensors, imported when it is asked for
    for module, tree in trees.items():
        found = without & {name.partition(".")[0] for name in at_import(tree)}
        assert not found, f"{module} imports {found}"


def test_import_needs_no_extras() -> None:
    run_python(
        "-c",
        f"import sys; sys.modules.update(dict.fromkeys({EXTRAS})); import sb3_happo; sb3_happo.HAPPO",
    )


def test_distribution(tmp_path: Path) -> None:
    assert run_python("setup.py", "--version").split()[-1] == sb3_happo.__version__
    run_python(
        "setup.py",
        "-q",
        "egg_info",
        "--egg-base",
        str(tmp_path),
        "build_py",
        "--build-lib",
        str(tmp_path),
    )
    shipped = {
        path.relative_to(tmp_path) for path in (tmp_path / "sb3_happo").rglob("*") if path.is_file()
    }
    assert Path("sb3_happo/py.typed") in shipped
    assert {path.relative_to(ROOT) for path in PACKAGE.rglob("*.py")} <= shipped
