"""Saving and loading of tables, as plain data: a file is read without running anything in it."""

import inspect
import io
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, TypeVar

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import get_system_info
from stable_baselines3.common.vec_env import unwrap_vec_normalize

from sb3_happo.common.checks import check_env_of_model
from sb3_happo.common.hyperparameters import Setting
from sb3_happo.common.plain_data import PlainDataError, to_plain
from sb3_happo.common.safe_files import SafeFile, SafeFileError, read_safe_file, write_safe_file
from sb3_happo.suggestions import check_names
from sb3_happo.tabular.table import Table

SelfSaved = TypeVar("SelfSaved", bound="SavedTables")

#: Kind of the files
KIND = "tables"
#: Arguments of the constructor that are saved, beside the settings
_ARGUMENTS = ("state_key", "seed", "tensorboard_log", "verbose")
_PROGRESS = (
    *("num_timesteps", "_total_timesteps", "_episode_num", "_n_updates"),
    *("_current_progress_remaining", "rng", "prediction_rng"),
)


class SavedTables(BaseAlgorithm):
    """
    Part of :class:`~sb3_happo.tabular.tabular_algorithm.TabularAlgorithm` that saves and loads.
    """

    #: Allowed values of the hyperparameters, by attribute
    settings: ClassVar[dict[str, Setting]] = {}
    #: Further arguments of the constructor of a subclass
    arguments: ClassVar[tuple[str, ...]] = ()
    tables: dict[str, Table]

    def _facts_to_save(self) -> dict[str, Any]:
        """Hook: further plain data that belong to the tables, attributes by name."""
        return {}

    @classmethod
    def _saved_names(cls) -> tuple[str, ...]:
        """Names of the arguments of the constructor that a file holds."""
        return (*cls.settings, *_ARGUMENTS, *cls.arguments)

    @classmethod
    def _algorithm(cls) -> str:
        """Name of the algorithm of this package that the class is or extends."""
        for base in cls.__mro__:
            if base.__module__.startswith("sb3_happo."):
                return base.__name__
        return cls.__name__

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save the model: settings, tables, progress and random generators. Functions among the
        settings are not saved; :meth:`load` asks for them.

        :param path: Path of the file, to which ".zip" is added if it has no suffix; or an open file
        :param exclude: Settings to leave out; :meth:`load` takes their defaults
        :param include: Not used; everything is saved
        :raises OSError: If the file cannot be written; an existing one is then as before
        """
        left_out = set(exclude or ())
        check_names(left_out, self._saved_names(), f"exclude of {type(self).__name__}.save")
        settings, functions = {}, []
        for name in self._saved_names():
            value = getattr(self, name)
            if name in left_out:
                continue
            if _is_plain(value):
                settings[name] = value
            else:
                functions.append(name)
        content = {
            "settings": settings | {"stats_window_size": self._stats_window_size},
            "functions": functions,
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "n_envs": self.n_envs,
            "tables": {name: table.to_plain() for name, table in self.tables.items()},
            "facts": self._facts_to_save(),
            "progress": {name: getattr(self, name) for name in _PROGRESS},
        }
        write_safe_file(_with_suffix(path), KIND, content, type(self).__name__, self._algorithm())

    @classmethod
    def load(
        cls: type[SelfSaved],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: Any = None,
        device: Any = "cpu",
        custom_objects: Mapping[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfSaved:
        """
        Load a saved model.

        :param path: Path of the file, with or without ".zip"; or an open file
        :param env: Environment for further training, of any form that the constructor takes, with
            any number of environments; not needed for ``predict``
        :param device: Not used; for SB3's signature
        :param custom_objects: Settings in the place of saved ones, by name
        :param print_system_info: Print of the versions of the libraries
        :param force_reset: Not used; training begins with a reset
        :param kwargs: Settings in the place of saved ones, such as ``learning_rate``, and functions
            that the file does not hold, such as ``state_key``
        :return: Model
        :raises ValueError: If the file is damaged, holds something else or was saved by another
            algorithm, if ``env`` has another team, or if a function is missing
        """
        if print_system_info:
            get_system_info()
        changed = dict(custom_objects or {}) | kwargs
        check_names(changed, (*cls._saved_names(), "stats_window_size"), f"{cls.__name__}.load")
        file = read_safe_file(_existing(path), KIND)
        if file.manifest.algorithm != cls._algorithm():
            raise SafeFileError(
                file.name,
                f"holds {file.manifest.words}, not tables of {cls._algorithm()}; load it with "
                f"{file.manifest.algorithm}.load.",
            )
        missing = [name for name in file.value("functions") if name not in changed]
        if missing:
            given = ", ".join(f"{name}=..." for name in missing)
            raise ValueError(
                f"{file.name} was saved by a model whose {' and '.join(missing)} is a function, "
                f"which files do not hold; pass it: {cls.__name__}.load(path, {given})."
            )
        make: Any = cls
        settings = file.value("settings") | changed
        model: SelfSaved = make(None, None, **settings, _init_setup_model=False)
        model.observation_space = file.value("observation_space")
        model.action_space = file.value("action_space")
        model.n_envs = file.value("n_envs")
        if env is not None:
            env = cls._wrap_env(env)
            check_env_of_model(env, model.observation_space, model.action_space)
            model.env, model.n_envs = env, env.num_envs
            model._vec_normalize_env = unwrap_vec_normalize(env)
        model._setup_model()
        model._take_over(file, keeps_rng="seed" not in kwargs)
        return model

    def _take_over(self, file: SafeFile, keeps_rng: bool) -> None:
        """Take over the tables and the progress of a file."""
        contents = file.value("tables")
        try:
            for name, table in self.tables.items():
                table.fill(contents[name])
        except (KeyError, TypeError, ValueError) as error:
            raise SafeFileError(file.name, f"holds tables that do not fit: {error}") from error
        vars(self).update(file.value("facts"))
        for name, value in file.value("progress").items():
            if keeps_rng or not name.endswith("rng"):
                setattr(self, name, value)

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        # There are no networks
        return [], []


def _is_plain(value: Any) -> bool:
    """True for a value that a file holds."""
    if inspect.isroutine(value) or inspect.isclass(value):
        return False
    try:
        to_plain(value)
    except PlainDataError:
        return False
    return True


def _with_suffix(path: Any) -> Any:
    """Path with ".zip" if it has no suffix, as SB3 names its files."""
    if not isinstance(path, (str, os.PathLike)):
        return path
    given = pathlib.Path(path)
    return given if given.suffix else given.with_name(f"{given.name}.zip")


def _existing(path: Any) -> Any:
    """Path as given if there is such a file, else with the suffix."""
    if isinstance(path, (str, os.PathLike)) and not os.path.isfile(path):
        return _with_suffix(path)
    return path
