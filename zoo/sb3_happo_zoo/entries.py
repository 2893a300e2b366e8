"""
Entries of hyperparameter files: reading them, checking their keys and evaluating their values.
"""

import contextlib
import difflib
import importlib
import importlib.util
import inspect
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from rl_zoo3.utils import get_wrapper_class
from stable_baselines3.common.utils import LinearSchedule

from sb3_happo.common.hyperparameters import LARGEST_TIMESTEPS
from sb3_happo.vec_env.counts import LARGEST
from sb3_happo_zoo.algorithms import TEAM_ALGOS, is_off_policy
from sb3_happo_zoo.expressions import evaluate_safely
from sb3_happo_zoo.paths import HYPERPARAMS, ROOT

# Keys of an entry that are not arguments of the algorithm: RL Zoo's, then those of teams
_ZOO_KEYS = {
    "n_envs",
    "n_timesteps",
    "normalize",
    "frame_stack",
    "env_kwargs",
    "monitor_kwargs",
    "callback",
    "env_wrapper",
    "vec_env_wrapper",
    "joint_kwargs",
    "wrappers",
    "deterministic",
}
# RL Zoo's keys for the action noise of off-policy algorithms
_NOISE_KEYS = {"noise_type", "noise_std"}
# Arguments of the algorithms that the command line sets
_SET_ELSEWHERE = {
    "self",
    "args",
    "kwargs",
    "env",
    "seed",
    "device",
    "verbose",
    "tensorboard_log",
    "_init_setup_model",
}
#: Largest numbers of an entry; the algorithms and environments check the others
LARGEST_NUMBERS = {"n_timesteps": LARGEST_TIMESTEPS, "n_envs": LARGEST, "frame_stack": LARGEST}
_SCHEDULES = ("learning_rate", "critic_learning_rate", "clip_range", "clip_range_vf", "ent_coef")
# Arguments that RL Zoo would evaluate, in any form of text
_EXPRESSIONS = {
    "normalize",
    "policy_kwargs",
    "replay_buffer_class",
    "replay_buffer_kwargs",
    "monitor_kwargs",
    "env_kwargs",
    "joint_kwargs",
    "action_noise",
    "noise_std",
    "target_entropy",
}

# Settings that are words, not expressions
_WORDS = {"auto"}


# ---------------------------------------------------------------- names


def nearest(name: str, names: Iterable[str]) -> str:
    """
    :param name: Unknown name
    :param names: Known names
    :return: The most similar one of them, empty if none is similar
    """
    matches = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return matches[0] if matches else ""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """
    :param kind: Kind of thing that the name stands for
    :param name: Unknown name
    :param known: Known names
    :return: Text of an error, with the most similar known name, or all of them if none is similar
    """
    names = list(dict.fromkeys(known))
    near = nearest(name, names)
    hint = f"Did you mean {near!r}?" if near else f"There are {', '.join(names)}."
    return f"There is no {kind} {name!r}. {hint}"


def is_module(name: str) -> bool:
    """
    :param name: Dotted name
    :return: Whether Python finds a module of that name
    """
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


# ---------------------------------------------------------------- files


def settings_names() -> list[str]:
    """
    :return: Names of the files in ``zoo/hyperparams``, without their endings
    """
    return [path.stem for path in sorted(HYPERPARAMS.glob("*.yml"))]


def is_yaml(path: str) -> bool:
    """
    :param path: Path of a file
    :return: Whether its ending is that of a YAML file
    """
    return path.endswith((".yml", ".yaml"))


def find_config(config: str) -> str:
    """
    :param config: Name of a file in ``zoo/hyperparams`` without its ending, path of a YAML file, or
        name of a Python module
    :return: Path of the YAML file, or the name of the module
    :raises ValueError: If it is none of them
    """
    own = HYPERPARAMS / f"{config}.yml"
    if own.is_file():
        return str(own)
    if is_yaml(config) or is_module(config):
        return config
    near = nearest(config, settings_names())
    raise ValueError(
        f"{config} is neither a YAML file (.yml), nor one of {HYPERPARAMS}, nor a Python module."
        + (f" Did you mean {near!r}?" if near else "")
    )


def read_entries(path: str | Path) -> dict[str, dict[str, Any]]:
    """
    :param path: Path of a YAML file of hyperparameters
    :return: Entries by environment id (or "default")
    :raises ValueError: If there is no such file, or its content has another form
    """
    path = Path(path)
    if not path.is_file():
        near = nearest(path.name, [f"{name}.yml" for name in settings_names()])
        raise ValueError(
            f"There is no file {path}." + (f" Did you mean {HYPERPARAMS / near}?" if near else "")
        )
    try:
        entries = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(entries, dict) or not all(map(_is_dict, entries.values())):
        raise ValueError(f"{path} must have a mapping of hyperparameters for every environment id.")
    return entries


def _is_dict(entry: Any) -> bool:
    return isinstance(entry, dict)


def check_entry_exists(config: str, env_id: str) -> None:
    """
    :param config: Path of a YAML file, or the name of a module, which is not checked
    :param env_id: Environment id
    :raises ValueError: If the YAML file has neither an entry for it nor a "default"
    """
    if not is_yaml(config):
        return
    entries = read_entries(config)
    if env_id not in entries and "default" not in entries:
        near = nearest(env_id, entries)
        hint = f"Did you mean {near!r}?" if near else f"It has {', '.join(entries)}."
        raise ValueError(f"{config} has neither an entry {env_id!r} nor a 'default'. {hint}")


def read_settings(settings: str) -> dict[str, dict[str, Any]]:
    """
    :param settings: Name of a file in ``zoo/hyperparams`` without its ending, or path of a YAML
        file
    :return: Entries by environment id, with expressions as text
    :raises ValueError: If there is no such file
    """
    path = Path(settings) if is_yaml(settings) else HYPERPARAMS / f"{settings}.yml"
    if not path.exists():
        path = ROOT / path  # recorded commands have paths relative to the repository
    if not path.is_file():
        raise ValueError(unknown("file of settings", settings, settings_names()))
    return read_entries(path)


def read_entry(settings: str, env_id: str) -> dict[str, Any]:
    """
    :param settings: File of hyperparameters, see :func:`read_settings`
    :param env_id: Environment id of the entry
    :return: The entry's hyperparameters, with expressions evaluated
    :raises ValueError: If there is no such file or entry
    """
    entries = read_settings(settings)
    if env_id not in entries:
        raise ValueError(unknown(f"entry of {settings}", env_id, entries))
    return {name: evaluated(value) for name, value in entries[env_id].items()}


# ---------------------------------------------------------------- keys


def check_keys(entry: Iterable[str], algo: str, where: str) -> None:
    """
    :param entry: Keys of the entry
    :param algo: Name of the algorithm
    :param where: Place of the entry, for the error
    :raises ValueError: If a key is unknown
    """
    known = _ZOO_KEYS | hyperparameter_names(TEAM_ALGOS[algo])
    if is_off_policy(algo):
        known |= _NOISE_KEYS
    for key in entry:
        if key not in known:
            near = nearest(key, known)
            hint = f"Did you mean {near!r}?" if near else f"There are {', '.join(sorted(known))}."
            raise ValueError(f"{key!r} is no hyperparameter of {algo} (for {where}). {hint}")


def hyperparameter_names(algorithm: type) -> set[str]:
    """
    :param algorithm: Class of the algorithm
    :return: Parameters of its constructor that an entry may set, with those of the parent classes
        that receive ``**kwargs``
    """
    names: set[str] = set()
    for cls in algorithm.__mro__:
        if "__init__" not in vars(cls):
            continue
        parameters = inspect.signature(vars(cls)["__init__"]).parameters
        names |= parameters.keys()
        if "kwargs" not in parameters:
            break
    return names - _SET_ELSEWHERE


# ---------------------------------------------------------------- values


def is_expression(value: Any) -> bool:
    """
    :param value: Value of a hyperparameter
    :return: Whether it looks like the text of an expression such as ``"dict(net_arch=[64])"``; it
        is not evaluated
    """
    return isinstance(value, str) and "(" in value


def evaluate(key: str, expression: str) -> Any:
    """
    :param key: Name of the hyperparameter
    :param expression: Python expression of what entries may contain, see
        :func:`~sb3_happo_zoo.expressions.evaluate_safely`
    :return: Value of the expression
    :raises ValueError: If it cannot be evaluated
    """
    try:
        return evaluate_safely(expression)
    except ValueError as error:
        raise ValueError(f"{key}: {expression} is no valid expression: {error}") from error


def evaluate_expression(key: str, value: Any) -> Any:
    """
    :param key: Name of the hyperparameter
    :param value: Value of the hyperparameter in the entry
    :return: The value of an expression such as ``"dict(net_arch=[64], activation_fn=nn.ReLU)"``;
        anything else unchanged
    :raises ValueError: If the expression cannot be evaluated
    """
    is_text = isinstance(value, str) and key in _EXPRESSIONS and value not in _WORDS
    return evaluate(key, value) if is_text or is_expression(value) else value


def evaluated(value: Any) -> Any:
    """
    :param value: Value in a YAML file or in a record
    :return: The value of an expression; anything else unchanged, also a text that cannot be
        evaluated
    """
    try:
        return evaluate_expression("", value)
    except ValueError:  # the text of a value, such as "functools.partial(<class …>)"
        return value


def as_numbers(hyperparams: dict[str, Any]) -> dict[str, Any]:
    """
    :param hyperparams: Evaluated hyperparameters
    :return: The same with numbers in the place of their texts, for YAML reads 1e6, without a dot,
        as text
    :raises ValueError: If ``n_timesteps``, ``n_envs`` or ``frame_stack`` is not a positive whole
        number, or too large
    """
    numbers = dict(hyperparams)
    for key, value in hyperparams.items():
        if isinstance(value, str):
            # OverflowError: "inf" and the like
            with contextlib.suppress(ValueError, OverflowError):
                number = float(value)
                numbers[key] = int(number) if number.is_integer() else number
    for key, most in LARGEST_NUMBERS.items():
        if numbers.get(key) is not None:
            numbers[key] = whole_entry(key, numbers[key], most)
    return numbers


def whole_entry(key: str, value: Any, most: int) -> int:
    """
    :param key: Key of an entry
    :param value: Value of the entry, a whole number that may be a float
    :param most: Largest number that is allowed
    :return: Python's integer
    :raises ValueError: If it is no whole number from 1 to ``most``
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 1 <= value < math.inf or int(value) != value:
        raise ValueError(f"{key} must be a whole number, at least 1, not {value!r}")
    if value > most:
        raise ValueError(f"{key} must be at most {most:,}, not {value!r}")
    return int(value)


def make_schedules(hyperparams: dict[str, Any]) -> dict[str, Any]:
    """
    :param hyperparams: Hyperparameters, changed in place: ``lin_<value>`` is a linear schedule from
        the value to zero
    :return: The same dict, with schedules and numbers
    :raises ValueError: If a text is neither a number nor such a schedule
    """
    for key in _SCHEDULES:
        value = hyperparams.get(key)
        if not isinstance(value, str) or (key == "ent_coef" and value.startswith("auto")):
            continue
        try:
            start = float(value.removeprefix("lin_"))  # YAML reads 3e-4, without a dot, as text
        except ValueError as error:
            raise ValueError(f"{key}: {value!r} is neither a number nor lin_<number>") from error
        # SB3's own class, so that saved agents load without RL Zoo
        schedule = LinearSchedule(start, 0.0, 1.0)
        hyperparams[key] = schedule if value.startswith("lin_") else start
    return hyperparams


def team_wrapper(wrappers: Any) -> Callable[[Any], Any] | None:
    """
    :param wrappers: An entry's ``wrappers``: a dotted name, or a list of names and of ``{name:
        arguments}``
    :return: Function that wraps a PettingZoo environment in them, None if there are none
    :raises ImportError: If one does not exist; the error names the most similar one
    """
    try:
        return get_wrapper_class({"wrappers": wrappers}, "wrappers")
    except ImportError as error:
        for wrapper in wrappers if isinstance(wrappers, list) else [wrappers]:
            path = wrapper if isinstance(wrapper, str) else next(iter(wrapper))
            module, _, name = path.rpartition(".")
            names = dir(importlib.import_module(module)) if is_module(module) else []
            near = nearest(name, names)
            if name not in names and near:
                raise ImportError(
                    f"wrappers: there is no {module}.{name}. Did you mean {module}.{near}?"
                ) from error
        raise
