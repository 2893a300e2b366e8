"""Content of saved files: the kind and the class are read without unpickling anything."""

import io
import json
import pathlib
import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from typing import IO, Any, Literal, NamedTuple, TypeAlias

import torch as th

from sb3_happo.version import __version__

Kind: TypeAlias = Literal["model", "team", "agent", "sb3_model", "sb3_policy", "pickle", "unknown"]
Location: TypeAlias = str | pathlib.Path | io.BufferedIOBase

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
        Stable-Baselines3. "pickle": a pickled object, such as the statistics of ``VecNormalize``
    :param name: Name of the class that saved the file, or of the pickled class; "" if unknown
    :param algorithms: Algorithms of the package that may have saved a model: one, or several for
        files of earlier versions, which do not name theirs
    :param own_class: True if ``name`` is a class of the package, not a user's subclass
    :param attributes: Names of the attributes of a saved model
    """

    kind: Kind
    name: str = ""
    algorithms: tuple[str, ...] = ()
    own_class: bool = True
    attributes: frozenset[str] = frozenset()

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
            "pickle": f"a pickled {self.name or 'object'}",
            "unknown": "nothing that sb3_happo or Stable-Baselines3 has saved",
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
            "unknown": "Pass the path of a file that model.save(path) has written.",
        }
        if self.kind == "pickle":
            return _remedy_of_pickle(self.name)
        return remedies[self.kind]


def _remedy_of_pickle(name: str) -> str:
    if name == "VecNormalize":
        return "Load these statistics with VecNormalize.load(path, venv), and the model beside it."
    if "ReplayBuffer" in name:
        return "Load it with model.load_replay_buffer(path)."
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


def signature_of_model(cls: type, base: type) -> dict[str, str]:
    """
    :param cls: Class of a model
    :param base: Base class of all models
    :return: Entry "saved_by" of a model's file
    """
    name, algorithm = lineage(cls, base)
    return {"class": name, "algorithm": algorithm, "version": __version__}


def save_policy(policy: Any, path: Location) -> None:
    """
    Save a policy as SB3 does, with the name of its class. The name comes first, so that it is found
    without unpickling the rest.

    :param policy: Policy of an agent or of a team
    :param path: Path of the file, or an open file
    """
    cls = type(policy)
    content = {
        "saved_by": f"{cls.__module__}.{cls.__qualname__}",
        "state_dict": policy.state_dict(),
        "data": policy._get_constructor_parameters(),
    }
    th.save(content, path)  # type: ignore[arg-type]


# ---------------------------------------------------------------- what is read


def inspect_file(location: Location) -> SavedFile | None:
    """
    :param location: Path, with or without ".zip", or an open file, whose position is kept
    :return: Content of the file; None if there is none, or it cannot be read twice
    """
    if isinstance(location, io.IOBase):
        if not location.seekable():
            return None
        position = location.tell()
        try:
            return _inspect(location)
        finally:
            location.seek(position)
    assert not isinstance(location, io.BufferedIOBase)
    path = pathlib.Path(location)
    if not path.exists():
        path = pathlib.Path(f"{path}.zip")
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return _inspect(file)


def _inspect(file: Any) -> SavedFile:
    start = file.tell()
    if zipfile.is_zipfile(file):
        file.seek(start)
        with zipfile.ZipFile(file) as archive:
            return _inspect_archive(archive)
    file.seek(start)
    return _inspect_pickle(file)


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
    except ValueError:
        # Not a pickle, or cut off
        return


# ---------------------------------------------------------------- checks


def check_model_file(location: Location, cls: type, base: type, check_class: bool) -> SavedFile:
    """
    Refuse files of another kind and of another algorithm.

    :param location: Path or open file
    :param cls: Class that loads the file
    :param base: Base class of all models
    :param check_class: Refusal of models that another class has saved
    :return: Content of the file; that of a model without attributes where it is not known
    :raises ValueError: If the file cannot be loaded by the class
    """
    content = inspect_file(location)
    if content is None:
        return SavedFile("model")
    if content.kind != "model":
        raise ValueError(
            f"{cls.__name__}.load cannot load {_name(location)}: it holds {content.words}. "
            f"{content.remedy('model')}"
        )
    if check_class and not _may_load_model(content, cls, base):
        loader = content.name or " or ".join(content.algorithms)
        raise ValueError(
            f"{_name(location)} was saved by {loader} and cannot be loaded by {cls.__name__}: "
            f"{_consequence(content, cls, base)} Load it with {loader}.load(path), or pass "
            f"check_class=False to train what it holds with {cls.__name__} all the same."
        )
    return content


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


def check_policy_file(location: Location, cls: type, kind: Kind, check_class: bool) -> None:
    """
    Refuse files of another kind, and policies that a user's subclass has saved.

    :param location: Path or open file
    :param cls: Class that loads the file
    :param kind: "team" or "agent"
    :param check_class: Refusal of policies that another class has saved
    :raises ValueError: If the file cannot be loaded by the class
    """
    content = inspect_file(location)
    if content is None:
        return
    if content.kind != kind:
        raise ValueError(
            f"{cls.__name__}.load cannot load {_name(location)}: it holds {content.words}. "
            f"{content.remedy(kind)}"
        )
    ancestors = [ancestor.__name__ for ancestor in cls.__mro__]
    if check_class and not content.own_class and content.name not in ancestors:
        raise ValueError(
            f"{_name(location)} was saved by {content.name} and cannot be loaded by "
            f"{cls.__name__}. Load it with {content.name}.load(path), or pass check_class=False."
        )


def _name(location: Location) -> str:
    if isinstance(location, io.IOBase):
        return str(getattr(location, "name", "this open file"))
    return str(location)
