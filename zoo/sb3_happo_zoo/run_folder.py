"""
Files in the folder of a run: the algorithm of a saved model, and its normalisation statistics.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml  # type: ignore[import-untyped]

from sb3_happo.common.safe_files import SafeFileError, atomic_write, read_manifest
from sb3_happo.vec_env.normalizer_files import PART

#: Folder of the checkpoints in the folder of a run
CHECKPOINTS = "checkpoints"
#: Replay buffer in the folder of a run, under RL Zoo's name
REPLAY_BUFFER = "replay_buffer.pkl"
_NOTES = "run.yml"
#: Largest YAML file of a run, in bytes
_MAX_YAML = 2**20
_MAX_ALIASES = 16
_PYTHON = "tag:yaml.org,2002:python/"


class _RunLoader(yaml.SafeLoader):
    """Safe loader that also reads the few tags that RL Zoo writes, as plain data."""


def _pairs(loader: yaml.SafeLoader, node: yaml.Node) -> dict[Any, Any]:
    """Arguments of an ``OrderedDict``, a list with a list of pairs."""
    arguments = loader.construct_sequence(node, deep=True)
    pairs = arguments[0] if arguments else []
    return dict(pairs)


def _sequence(loader: yaml.SafeLoader, node: yaml.Node) -> list[Any]:
    return loader.construct_sequence(node, deep=True)


def _path(loader: yaml.SafeLoader, node: yaml.Node) -> str:
    return str(Path(*map(str, loader.construct_sequence(node, deep=True))))


_RunLoader.add_constructor(f"{_PYTHON}object/apply:collections.OrderedDict", _pairs)
_RunLoader.add_constructor(f"{_PYTHON}tuple", _sequence)
for _name in ("PosixPath", "WindowsPath", "Path"):
    for _module in ("pathlib", "pathlib._local"):
        _RunLoader.add_constructor(f"{_PYTHON}object/apply:{_module}.{_name}", _path)


def read_yaml(path: Path) -> Any:
    """
    :param path: YAML file in the folder of a run
    :return: Content of the file. Tags of Python are not run
    :raises ValueError: If the file has other tags, is no YAML, or holds something else than names
        and values
    """
    text = path.read_bytes()
    if len(text) > _MAX_YAML:
        raise ValueError(f"{path} has {len(text)} bytes, too many for a YAML file of a run.")
    try:
        # A bomb of aliases unfolds when its content is walked through
        n_aliases = sum(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text))
        if n_aliases > _MAX_ALIASES:
            raise ValueError(f"{path} has {n_aliases} aliases, too many for a file of a run.")
        content = yaml.load(text, _RunLoader)
    except (yaml.YAMLError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path} cannot be read without running what it names: {error}. Files of a run hold "
            "texts, numbers, lists and dicts."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a mapping of names to values.")
    return content


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    """
    Write a YAML file without tags of Python, whole or not at all.

    :param path: Path
    :param content: Texts, numbers, lists and dicts; other values become texts
    """
    text = yaml.dump(_plain(content), Dumper=_NoAliases, sort_keys=False)
    atomic_write(path, text.encode())


class _NoAliases(yaml.SafeDumper):
    """Dumper that writes a list that occurs twice twice."""

    def ignore_aliases(self, data: Any) -> bool:
        """
        :param data: Value
        :return: True
        """
        return True


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_plain(key): _plain(own) for key, own in value.items()}
    if isinstance(value, (list, tuple, set, frozenset, np.ndarray)):
        return [_plain(own) for own in value]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def read_notes(details: Path) -> dict[str, Any]:
    """
    :param details: Folder with the command of a run
    :return: Content of ``run.yml``: "vec_env", the kind of environments; "tensorboard", the folder
        of the logs; "finished". Empty if there is no such file
    """
    path = details / _NOTES
    return read_yaml(path) if path.is_file() else {}


def write_notes(details: Path, notes: Mapping[str, Any]) -> None:
    """
    :param details: Folder with the command of a run
    :param notes: Content of ``run.yml``, see :func:`read_notes`
    """
    write_yaml(details / _NOTES, notes)


def find_statistics(model: Path, env_name: str) -> Path | None:
    """
    :param model: Path of a saved model
    :param env_name: Name of its environment
    :return: Path of the model's normalisation statistics: the model itself, or a file of an earlier
        version beside it; None if there are none
    """
    if has_statistics(model):
        return model
    name, folder = model.stem, model.parent
    candidates = [
        folder / name / "vecnormalize.pkl",
        folder / f"{name.replace('rl_model_', 'rl_model_vecnormalize_')}.pkl",
        folder / env_name / "vecnormalize.pkl",
    ]
    for path in candidates:
        if path.is_file():
            return path
    return None


def has_statistics(model: Path) -> bool:
    """
    :param model: Path of a saved model
    :return: True if the file holds the statistics of a ``VecNormalize`` too
    """
    try:
        manifest = read_manifest(model)
    except (SafeFileError, OSError):
        # Named when the model itself is loaded
        return False
    return manifest is not None and PART in manifest.info.get("parts", ())


def check_algorithm(model: Path, algo: str) -> None:
    """
    :param model: Path of a saved model, in the folder of its run or alone
    :param algo: Name of the algorithm that is to load it
    :raises ValueError: If the run's files name another algorithm
    """
    for path in model.parent.glob("*/args.yml"):
        trained = read_yaml(path)["algo"]
        if trained != algo:
            raise ValueError(
                f"{model} was trained by {trained}, not by {algo}; pass --algo {trained}."
            )
