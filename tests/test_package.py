"""The package as a whole: its files, its imports and their direction, its style."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import sb3_happo

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "sb3_happo"

# Packages that only the extras install
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
    *("onnx", "onnxruntime", "onnxscript"),
]


def run_python(*args: str, cwd: Path = ROOT) -> str:
    """Output of a new interpreter, whose failure fails the test with its traceback."""
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
    """Modules that these statements import; those of this package down to the file."""
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
    """Modules that are imported with this one: not inside functions, nor for type checkers only."""
    return imports(iter(tree.body))


# Import direction: a module imports only from entries above its own line. "x.*" is a folder, whose
# modules may also import each other
ORDER = (
    "version",
    "suggestions",
    # Environments: NumPy only
    "envs.spaces",
    "envs.space_checks",
    "envs.encodings",
    "envs.step_checks",
    "envs.rows_of_agents",
    "envs.attributes",
    "envs.adapters",
    "envs.mask_methods",
    "envs.activity",
    "envs.mujoco",
    "envs.other_agents",
    "envs.joint_actions",
    "envs.team_results",
    "envs.state",
    "envs.state_choice",
    "envs.observation_layout",
    "envs.joint_env",
    "envs.games.*",
    "envs.make",
    "envs.central_actions",
    "envs.central",
    "envs",
    "envs.checker.*",
    # Files
    "common",
    "common.plain_classes",
    "common.plain_spaces",
    "common.plain_data",
    "common.file_content",
    "common.plain_state",
    "common.unwritten_files",
    "common.safe_files",
    "common.system_info",
    "common.warn_once",
    "common.saved_files",
    "common.saved_notes",
    # Vectorised environments: NumPy and SB3
    "vec_env.counts",
    "vec_env.watchdog",
    "vec_env.actions",
    "vec_env.single_agent",
    "vec_env.step_facts",
    "vec_env.normalizer_files",
    "vec_env.normalize",
    "vec_env.original_observations",
    "vec_env.transitions",
    "vec_env.env_states",
    "vec_env.patient_files",
    "vec_env.joint_dummy_vec_env",
    "vec_env.shared_memory",
    "vec_env.worker",
    "vec_env.worker_pool",
    "vec_env.joint_subproc_vec_env",
    "vec_env.auto_vec_env",
    "vec_env.simulator_vec_env",
    "vec_env.envpool_vec_env",
    "vec_env.vmas_vec_env",
    "vec_env.make",
    "vec_env",
    # Networks
    "common.type_aliases",
    "common.hyperparameters",
    "common.finite_weights",
    "common.building_limit",
    "common.saved_policy",
    "common.threads",
    "common.folder_lock",
    "common.formulas",
    "common.trust_region",
    "common.state_dependent_noise",
    "common.distributions",
    "common.leaf_heads",
    "common.heads",
    "common.recurrent",
    "common.image_extractors",
    "common.net_arch",
    "common.extractors",
    "common.value_norm",
    "common.networks",
    "common.batch_norm",
    "common.frozen_rows",
    # Policies and critics
    "common.agent_inputs",
    "common.env_actions",
    "common.actor_network",
    "common.export.*",
    "common.agent_policy",
    "common.team_spaces",
    "common.parameter_sharing",
    "common.state_critics",
    "common.stacked_networks",
    "common.action_critics",
    "common.batched_actors",
    "common.team_prediction",
    "common.team_inputs",
    "common.multi_agent_policy",
    "common.joint_policy",
    "common.communication",
    "common.commnet_networks",
    "common.commnet_policy",
    "common.policies",
    "common.counterfactual_policy",
    "common.off_policy_policy",
    "common.mixers",
    "common.value_policy",
    "common.joint_values",
    "common.boltzmann",
    "common.neighborhoods",
    "common.mean_field_actor",
    "common.mean_field_policy",
    "common.mean_field_critic",
    "common.pair_terms",
    "common.pairwise_policy",
    # Data and learning
    "common.minibatches",
    "common.rollout_memory",
    "common.rollout_buffer",
    "common.corrected_buffer",
    "common.replay_entries",
    "common.replay_memory",
    "common.replay_rows",
    "common.replay_buffer",
    "common.action_noise",
    "common.correlated_noise",
    "common.exploration",
    "common.random_actions",
    "common.buffers",
    "common.checks",
    "common.gradient_step",
    "common.finite",
    "common.factor",
    "common.update_log",
    "common.communicating_update",
    "common.optimizer_group",
    "common.value_learning",
    "common.bootstrap",
    "common.agent_order",
    "common.agent_returns",
    "common.last_good",
    "common.last_good_updates",
    "common.observation_scale",
    "common.own_rewards",
    "common.saved_algorithm",
    "common.log_state",
    "common.random_states",
    "common.episode_states",
    "common.callback_states",
    "common.saving_callbacks",
    "common.checkpoint_rows",
    "common.checkpoint_files",
    "common.interruptions",
    "common.monitor_files",
    "common.checkpoint_episodes",
    "common.resumable_algorithm",
    "common.checkpoint_callback",
    "common.patient_logs",
    "common.multi_agent_algorithm",
    "common.on_policy_loop",
    "common.rollout_state",
    "common.on_policy_values",
    "common.on_policy_algorithm",
    "common.critic_choice",
    "common.replay_state",
    "common.replay_checks",
    "common.replay_files",
    "common.replay_checkpoint",
    "common.off_policy_learning",
    "common.off_policy_algorithm",
    "common.value_based_algorithm",
    "common.soft_policy",
    "common.crossq_policy",
    "common.temperatures",
    "common.soft_learning",
    "common.evaluation",
    # Algorithms
    "happo.*",
    "hatrpo.*",
    "haa2c.*",
    "a2po.*",
    "coma.*",
    "mappo.*",
    "ippo.*",
    "hatd3.*",
    "haddpg.*",
    "matd3.*",
    "maddpg.*",
    "iql.*",
    "mfq.*",
    "mfac.*",
    "vdn.*",
    "qmix.*",
    "fql.*",
    "hasac.*",
    "hacrossq.*",
    "had3qn.*",
    "masac.*",
    # Tables
    "tabular.matrix_games",
    "tabular.action_sets",
    "tabular.state_keys",
    "tabular.situations",
    "tabular.table",
    "tabular.table_files",
    "tabular.table_prediction",
    "tabular.table_training",
    "tabular.tabular_algorithm",
    "tabular.stage_games",
    "tabular.nash_q",
    "tabular.minimax_q",
    "tabular.iql",
    "tabular.jal",
    "tabular.pr2_q",
    "tabular.game_model",
    "tabular.gaps",
    "tabular",
    "sb3_happo",
)
_POSITIONS = {entry: position for position, entry in enumerate(ORDER)}


def position(module: str) -> int | None:
    """
    :param module: Module of the package
    :return: Position of its entry in ``ORDER``; None if it has none
    """
    name = module.removeprefix("sb3_happo.")
    parts = name.split(".")
    candidates = [name] + [".".join(parts[:end]) + ".*" for end in range(len(parts), 0, -1)]
    for candidate in candidates:
        if candidate in _POSITIONS:
            return _POSITIONS[candidate]
    return None


def may_import(module: str, imported: str) -> bool:
    """
    :param module: Module of the package
    :param imported: Module that it imports, of the package, ``zoo`` or ``tests``
    :return: Whether the import runs downwards, or stays in one folder
    """
    own, other = position(module), position(imported)
    if imported not in MODULES or own is None or other is None:
        return False
    return other < own or (other == own and ORDER[own].endswith(".*"))


def test_every_module_has_a_place_in_the_order() -> None:
    assert len(set(ORDER)) == len(ORDER)
    without = sorted(module for module in MODULES if position(module) is None)
    assert not without, f"add {without} to ORDER"
    used = {position(module) for module in MODULES}
    unused = [entry for entry, index in _POSITIONS.items() if index not in used]
    assert not unused, f"{unused} are no modules"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_run_one_way(module: str) -> None:
    own = {
        name
        for name in imports(ast.walk(MODULES[module]))
        if name.partition(".")[0] in ("sb3_happo", "zoo", "tests")
    }
    upwards = sorted(name for name in own if not may_import(module, name))
    assert not upwards, f"{module} imports {upwards}, which do not stand above it in ORDER"


def test_no_import_cycle() -> None:
    graph = {
        module: [name for name in at_import(tree) if name in MODULES]
        for module, tree in MODULES.items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize(
    ("folder", "without"),
    [
        ("envs", {"torch", "stable_baselines3", "sb3_contrib"}),
        ("vec_env", {"torch"}),
    ],
)
def test_environments_do_without_torch(folder: str, without: set[str]) -> None:
    trees = {module: tree for module, tree in MODULES.items() if module.split(".")[1:2] == [folder]}
    assert trees
    # A simulator made of tensors, imported on demand. SB3 itself imports torch
    trees.pop("sb3_happo.vec_env.vmas_vec_env", None)
    for module, tree in trees.items():
        found = without & {name.partition(".")[0] for name in at_import(tree)}
        assert not found, f"{module} imports {found}"


# ---------------------------------------------------------------- style

# Files and folders in which the style is checked
STYLED = ("sb3_happo", "zoo")
MAX_CYCLOMATIC = 13
MAX_COLUMNS = 100
MAX_CLASS_LINES = 350
# Parameters and return values are described by a noun phrase
_NO_NOUN = re.compile(
    r":(?:param \*{0,2}\w+|return|raises \w+):\s*(?:of|what|its|who|whose|how|where)\b.*",
    re.IGNORECASE,
)

_BRANCHES = (
    *(ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.IfExp, ast.Assert),
    ast.match_case,
)
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def styled_files() -> list[Path]:
    files = []
    for name in STYLED:
        path = ROOT / name
        files += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return files


def file_id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def cyclomatic_number(function: ast.AST) -> int:
    """
    :param function: Function; those inside it count for themselves
    :return: 1, and 1 for every branch, loop, exception handler, ternary, assertion, operand of a
        boolean operator after the first, loop of a comprehension and condition in it
    """
    number = 1
    nodes = list(ast.iter_child_nodes(function))
    while nodes:
        node = nodes.pop()
        if isinstance(node, _SCOPES):
            continue
        number += isinstance(node, _BRANCHES)
        if isinstance(node, ast.BoolOp):
            number += len(node.values) - 1
        if isinstance(node, ast.comprehension):
            number += 1 + len(node.ifs)
        nodes += ast.iter_child_nodes(node)
    return number


def test_the_cyclomatic_number_counts_every_branch() -> None:
    code = """
def f(x):
    assert x
    for y in x:
        if y and x or y:
            pass
    try:
        return [z if z else 0 for z in x if z]
    except ValueError:
        while x:
            pass
    def inside():
        if x:
            pass
"""
    outer = ast.parse(code).body[0]
    # assert, for, if, and, or, ternary, comprehension with its condition, except, while
    assert cyclomatic_number(outer) == 1 + 10


@pytest.mark.parametrize("path", styled_files(), ids=file_id)
def test_functions_are_simple(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, _FUNCTIONS):
            number = cyclomatic_number(node)
            assert number <= MAX_CYCLOMATIC, f"line {node.lineno}: {node.name} has {number}"


@pytest.mark.parametrize("path", styled_files(), ids=file_id)
def test_classes_and_lines_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(), start=1):
        assert len(line) <= MAX_COLUMNS, f"line {number} has {len(line)} columns"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            assert node.end_lineno is not None
            n_lines = node.end_lineno - node.lineno + 1
            assert n_lines <= MAX_CLASS_LINES, f"{node.name} has {n_lines} lines"


@pytest.mark.parametrize("path", styled_files(), ids=file_id)
def test_parameters_are_described_by_nouns(path: Path) -> None:
    assert not _NO_NOUN.findall(path.read_text(encoding="utf-8"))


# ---------------------------------------------------------------- installation


def test_import_needs_no_extras() -> None:
    hide = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS}))"
    run_python("-c", f"{hide}; import sb3_happo; sb3_happo.HAPPO")


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
