"""Content of saved files: the kind and the class are read without unpickling anything."""

import io
import json
import os
import pathlib
import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from typing import IO, Any, Literal, NamedTuple, TypeAlias

from sb3_happo.common.safe_files import MAX_DATA, Manifest, file_name, read_manifest

Kind: TypeAlias = Literal[
    "model",
    "team",
    "agent",
    "sb3_model",
    "sb3_policy",
    "vec_normalize",
    "pickle",
    "other",
    "unknown",
]
Location: TypeAlias = str | os.PathLike[str] | IO[bytes]

#: Largest member of an older file that is searched for names, in bytes
_MAX_PICKLE = 2**24
#: Largest size to which an older file may unfold, in multiples of its own and in bytes. SB3 does
#: not compress; users may have
_MAX_RATIO = 20
_MAX_UNFOLDED = 2**29

#: Attributes by which the models of SB3 and sb3-contrib differ, for files that do not name their
#: algorithm. The first one that fits counts
_SB3_ALGORITHMS = (
    ("TQC", "top_quantiles_to_drop_per_net"),
    ("QRDQN", "n_quantiles"),
    ("SAC", "target_entropy"),
    ("TD3", "target_policy_noise"),
    ("DQN", "exploration_fraction"),
    ("TRPO", "cg_max_steps"),
    ("PPO", "clip_range"),
    ("A2C", "gae_lambda"),
)


class SavedFile(NamedTuple):
    """
    Content of a file.

    :param kind: "model": a team's algorithm and networks, of ``HAPPO.save`` and the like. "team":
        a team's policy alone, of ``model.policy.save``. "agent": the policy of one agent, of
        ``model.policies[agent].save``. "sb3_model" and "sb3_policy": the same of
        Stable-Baselines3. "vec_normalize": statistics of a ``VecNormalize``. "other": another
        file of this package. "pickle": a pickled object
    :param name: Name of the class that saved the file, or of the pickled class; "" if unknown
    :param algorithms: Algorithms of the package that may have saved a model: one, or several for
        files of earlier versions, which do not name theirs
    :param own_class: True if ``name`` is a class of the package, not a user's subclass
    :param attributes: Names of the attributes of a saved model
    :param is_safe: True for files without pickles, see :mod:`~sb3_happo.common.safe_files`
    """

    kind: Kind
    name: str = ""
    algorithms: tuple[str, ...] = ()
    own_class: bool = True
    attributes: frozenset[str] = frozenset()
    is_safe: bool = False

    @property
    def words(self) -> str:
        """
        :return: Description for an error message
        """
        if self.kind == "model":
            model = f"a model of {self.name or ' or '.join(self.algorithms)}"
            return model if self.own_class else f"{model}, a subclass of {self.algorithms[0]}"
        known = f" ({self.name})" if self.name else ""
        texts: dict[str, str] = {
            "team": f"the policy of a whole team{known}, without an algorithm",
            "agent": f"the policy of a single agent{known}",
            "sb3_model": f"a {self.name} model of Stable-Baselines3, for a single agent",
            "sb3_policy": "a policy of Stable-Baselines3, for a single agent",
            "vec_normalize": f"the statistics of a {self.name}",
            "other": f"a {self.name} of sb3_happo",
            "pickle": f"a pickled {self.name or 'object'}",
            "unknown": "nothing that sb3_happo or Stable-Baselines3 has saved, or it is damaged",
        }
        return texts[self.kind]

    def remedy(self, wanted: Kind) -> str:
        """
        :param wanted: Kind of file that was expected
        :return: Sentence that says how the file is used
        """
        loader = self.name or " or ".join(self.algorithms)
        part = {"agent": ".policies[agent]", "team": ".policy"}.get(wanted, "")
        remedies: dict[str, str] = {
            "model": f"Load it with {loader}.load(path){part}.",
            "team": f"Load it with {self.name or 'JointPolicy'}.load(path)"
            f"{part if wanted == 'agent' else ''}; to train on, save the whole model with "
            "model.save(path).",
            "agent": f"Load it with {self.name or 'AgentPolicy'}.load(path); to load or train the "
            "whole team, save the model with model.save(path).",
            "sb3_model": f"Load it with Stable-Baselines3: {self.name}.load(path).",
            "sb3_policy": "Load it with the class of Stable-Baselines3 that has saved it.",
            "vec_normalize": "Load these statistics with VecNormalizeTeam.load(path, venv), and "
            "the model beside it.",
        }
        if self.kind == "pickle":
            return _remedy_of_pickle(self.name)
        otherwise = "Pass the path of a file that model.save(path) has written."
        return remedies.get(self.kind, otherwise)


def _remedy_of_pickle(name: str) -> str:
    if name == "VecNormalize":
        return (
            "Load these statistics with VecNormalizeTeam.load(path, venv, trust_pickle=True) or "
            "with Stable-Baselines3, VecNormalize.load(path, venv), and the model beside it."
        )
    if "ReplayBuffer" in name:
        return "Load it with model.load_replay_buffer(path, trust_pickle=True), if you trust it."
    return "Pass the path of a file that model.save(path) has written."


# ---------------------------------------------------------------- what is written


def lineage(cls: type, base: type) -> tuple[str, str]:
    """
    :param cls: Class of a model
    :param base: Base class of all models
    :return: Name of the class, and name of the package's algorithm that it is or extends. A class
        that extends no algorithm of the package is an algorithm of its own
    """
    for ancestor in cls.__mro__:
        package, _, module = ancestor.__module__.partition(".")
        abstract = module.startswith("common")
        if issubclass(ancestor, base) and package == "sb3_happo" and not abstract:
            return cls.__name__, ancestor.__name__
    return cls.__name__, cls.__name__


def module_and_name(cls: type) -> dict[str, str]:
    """
    :param cls: Class that saves a file
    :return: Entries of the file's manifest
    """
    return {"module": cls.__module__, "qualname": cls.__qualname__}


# ---------------------------------------------------------------- what is read


def inspect_file(location: Location) -> SavedFile | None:
    """
    :param location: Path, with or without ".zip", or an open file, whose position is kept
    :return: Content of the file; None if there is none, or it cannot be read twice
    """
    if not isinstance(location, (str, os.PathLike)):
        if not location.seekable():
            return None
        position = location.tell()
        try:
            return _inspect(location)
        finally:
            location.seek(position)
    path = existing_path(location)
    assert isinstance(path, (str, os.PathLike))
    if not os.path.isfile(path):
        return None
    with open(path, "rb") as file:
        return _inspect(file)


def existing_path(location: Location) -> Location:
    """
    :param location: Path, with or without ".zip", or an open file
    :return: Path of the file that exists; an open file as it is, or a copy in memory of one that
        cannot be read twice
    """
    if not isinstance(location, (str, os.PathLike)):
        return location if location.seekable() else io.BytesIO(location.read())
    path = pathlib.Path(location)
    with_suffix = pathlib.Path(f"{path}.zip")
    return path if path.exists() or not with_suffix.exists() else with_suffix


def _inspect(file: IO[bytes]) -> SavedFile:
    start = file.tell()
    if not zipfile.is_zipfile(file):
        file.seek(start)
        return _inspect_pickle(file)
    file.seek(start)
    manifest = read_manifest(file)
    if manifest is not None:
        return _of_manifest(manifest)
    size = file.seek(0, io.SEEK_END)
    file.seek(start)
    try:
        with zipfile.ZipFile(file) as archive:
            _refuse_bombs(archive, size)
            return _inspect_archive(archive)
    except (zipfile.BadZipFile, ValueError, LookupError, TypeError, OSError, RuntimeError):
        return SavedFile("unknown")


def _of_manifest(manifest: Manifest) -> SavedFile:
    kinds: tuple[Kind, ...] = ("model", "team", "agent", "vec_normalize")
    for kind in kinds:
        if kind == manifest.kind:
            break
    else:
        return SavedFile("other", manifest.kind.replace("_", " "), is_safe=True)
    own_class = str(manifest.info.get("module")).startswith("sb3_happo.")
    attributes = frozenset(manifest.info.get("attributes", ()))
    algorithms = (manifest.algorithm,) if manifest.algorithm else ()
    return SavedFile(kind, manifest.saved_by, algorithms, own_class, attributes, True)


def _refuse_bombs(archive: zipfile.ZipFile, size: int) -> None:
    """Refuse archives that unfold to many times of what they are."""
    claimed = 0
    for info in archive.infolist():
        claimed += info.file_size
        if info.filename == "data" and info.file_size > MAX_DATA:
            raise ValueError(f"the member 'data' has {info.file_size} bytes")
    if claimed > min(_MAX_RATIO * size, max(size, _MAX_UNFOLDED)):
        raise ValueError(f"{claimed} bytes in a file of {size}")


def _inspect_archive(archive: zipfile.ZipFile) -> SavedFile:
    names = archive.namelist()
    if "data" in names:
        try:
            data = json.loads(archive.read("data"))
        except ValueError:
            return SavedFile("unknown")
        return _inspect_model(data, names)
    for name in names:
        if name.endswith("/data.pkl"):
            if archive.getinfo(name).file_size > _MAX_PICKLE:
                return SavedFile("unknown")
            with archive.open(name) as file:
                return _inspect_policy(list(_strings(file)))
    return SavedFile("unknown")


def _inspect_model(data: Mapping[str, Any], names: list[str]) -> SavedFile:
    attributes = frozenset(data)
    saved_by = data.get("saved_by")
    if saved_by is not None:
        name, algorithm = saved_by["class"], saved_by["algorithm"]
        return SavedFile("model", name, (algorithm,), name == algorithm, attributes)
    if not any(name.startswith("policy.actors.") for name in names):
        for name, attribute in _SB3_ALGORITHMS:
            if attribute in data:
                return SavedFile("sb3_model", name, attributes=attributes)
        return SavedFile("sb3_model", "BaseAlgorithm", attributes=attributes)
    return SavedFile("model", "", _possible_algorithms(data), True, attributes)


def _possible_algorithms(data: Mapping[str, Any]) -> tuple[str, ...]:
    """Algorithms that may have saved a model before files named theirs."""
    kwargs = data.get("policy_kwargs") or {}
    if "cg_max_steps" in data:
        return ("HATRPO",)
    shares = "share_parameters" in kwargs
    if "local_critics" in kwargs:
        # IPPO has always set both
        return ("IPPO",) if shares else ("HAPPO", "HAA2C")
    return ("HAPPO", "HAA2C", "MAPPO") if shares else ("HAPPO", "HAA2C")


def _inspect_policy(strings: list[str]) -> SavedFile:
    name, own_class = "", True
    if "saved_by" in strings[:2]:
        full_name = strings[strings.index("saved_by") + 1]
        name, own_class = full_name.rpartition(".")[2], full_name.startswith("sb3_happo.")
    if "share_parameters" in strings:
        return SavedFile("team", name, own_class=own_class)
    if "log_std_form" in strings:
        return SavedFile("agent", name, own_class=own_class)
    if "observation_space" in strings:
        return SavedFile("sb3_policy")
    return SavedFile("unknown")


def _inspect_pickle(file: IO[bytes]) -> SavedFile:
    start = file.tell()
    is_pickle = file.read(1) == b"\x80"
    file.seek(start)
    if not is_pickle:
        return SavedFile("unknown")
    strings = _strings(file)
    # The first two strings are the module and the class of the pickled object
    module, name = next(strings, ""), next(strings, "")
    return SavedFile("pickle", name if "." in module else "")


def _strings(file: IO[bytes]) -> Iterator[str]:
    """Strings of a pickle, in their order, without unpickling; a global counts as two."""
    try:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "GLOBAL":
                yield from str(argument).split(" ")
            elif isinstance(argument, str):
                yield argument
    except (ValueError, LookupError, OverflowError, MemoryError):
        # Not a pickle, or cut off
        return


# ---------------------------------------------------------------- checks


def check_model_file(
    location: Location, cls: type, base: type, check_class: bool
) -> SavedFile | None:
    """
    Refuse files of another kind and of another algorithm.

    :param location: Path or open file
    :param cls: Class that loads the file
    :param base: Base class of all models
    :param check_class: Refusal of models that another class has saved
    :return: Content of the file; None if there is no file
    :raises ValueError: If the file cannot be loaded by the class
    """
    content = inspect_file(location)
    if content is None:
        return None
    if content.kind != "model":
        raise ValueError(
            f"{cls.__name__}.load cannot load {file_name(location)}: it holds {content.words}. "
            f"{content.remedy('model')}"
        )
    if check_class:
        check_saved_class(file_name(location), content, cls, base)
    return content


def check_saved_class(
    name: str, content: SavedFile, cls: type, base: type, method: str = "load"
) -> None:
    """
    Refuse a model that another algorithm has saved.

    :param name: Name of the file
    :param content: Content of the file, a model
    :param cls: Class that loads the file
    :param base: Base class of all models
    :param method: Method that loads it
    :raises ValueError: If the class cannot load the model
    """
    if _may_load_model(content, cls, base):
        return
    loader = content.name or " or ".join(content.algorithms)
    raise ValueError(
        f"{name} was saved by {loader} and cannot be loaded by {cls.__name__}: "
        f"{_consequence(content, cls, base)} Load it with {loader}.{method}(path), or pass "
        f"check_class=False to train what it holds with {cls.__name__} all the same."
    )


def saved_model(manifest: Manifest) -> SavedFile:
    """
    :param manifest: Description of a file with a model: of a saved model, or of a checkpoint
    :return: The model
    """
    return _of_manifest(manifest._replace(kind="model"))


def _may_load_model(content: SavedFile, cls: type, base: type) -> bool:
    _, algorithm = lineage(cls, base)
    if content.name == cls.__name__:
        return True
    if algorithm not in content.algorithms:
        return False
    if content.own_class:
        return True
    return content.name in [ancestor.__name__ for ancestor in cls.__mro__]


def _consequence(content: SavedFile, cls: type, base: type) -> str:
    if lineage(cls, base)[1] in content.algorithms:
        return "the settings and the update of the subclass would be lost."
    return "each algorithm has its own critic, sharing of parameters and settings."


def check_policy_file(
    location: Location, cls: type, kind: Kind, check_class: bool
) -> SavedFile | None:
    """
    Refuse files of another kind, and policies that a user's subclass has saved.

    :param location: Path or open file
    :param cls: Class that loads the file
    :param kind: "team" or "agent"
    :param check_class: Refusal of policies that another class has saved
    :return: Content of the file; None if there is no file
    :raises ValueError: If the file cannot be loaded by the class
    """
    content = inspect_file(location)
    if content is None:
        return None
    if content.kind != kind:
        raise ValueError(
            f"{cls.__name__}.load cannot load {file_name(location)}: it holds {content.words}. "
            f"{content.remedy(kind)}"
        )
    ancestors = [ancestor.__name__ for ancestor in cls.__mro__]
    if check_class and not content.own_class and content.name not in ancestors:
        raise ValueError(
            f"{file_name(location)} was saved by {content.name} and cannot be loaded by "
            f"{cls.__name__}. Load it with {content.name}.load(path), or pass check_class=False."
        )
    return content
