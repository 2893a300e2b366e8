"""Saving and loading of models."""

import pathlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pickle import UnpicklingError
from typing import Any, ClassVar, TypeVar

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.save_util import recursive_getattr
from stable_baselines3.common.utils import check_for_correct_spaces, get_system_info

from sb3_happo.common.building_limit import building_limit
from sb3_happo.common.checks import check_env_of_model, takes_tensors
from sb3_happo.common.finite_weights import check_finite_parameters
from sb3_happo.common.hyperparameters import Setting
from sb3_happo.common.last_good import LastGood
from sb3_happo.common.multi_agent_policy import MultiAgentPolicy
from sb3_happo.common.plain_data import Unsaved, to_plain
from sb3_happo.common.safe_files import SafeFile, SafeFileError, read_safe_file, write_safe_file
from sb3_happo.common.saved_files import (
    Location,
    SavedFile,
    check_model_file,
    existing_path,
    lineage,
    module_and_name,
)
from sb3_happo.common.saved_notes import (
    UnsavedError,
    accept_pickle,
    check_unsaved,
    warn_of_unsaved,
)
from sb3_happo.suggestions import check_names
from sb3_happo.vec_env.normalizer_files import PART, check_statistics, normalizer_content

#: Attributes without which no model can be made
_NEEDED = ("policy_class", "observation_space", "action_space")

#: Attributes of a training on this machine, which are not saved
_OF_ONE_TRAINING = ("_executor", "_last_good", "last_good_folder", "last_good_path")

SelfSaved = TypeVar("SelfSaved", bound="SavedAlgorithm")


class SavedAlgorithm(BaseAlgorithm):
    """
    Part of :class:`~sb3_happo.common.multi_agent_algorithm.MultiAgentAlgorithm` that saves and
    loads models, without pickles.
    """

    #: Allowed values of the hyperparameters, by attribute
    settings: ClassVar[dict[str, Setting]] = {}
    policy: MultiAgentPolicy
    #: Threads for gradients, during ``learn``
    _executor: ThreadPoolExecutor | None = None
    #: Weights to go back to after a fault, during ``learn``
    _last_good: LastGood | None = None

    def save(  # type: ignore[override]
        self,
        path: Location,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save the model: settings, networks, optimisers and normalisers, with the statistics of the
        environment's ``VecNormalize`` (``VecNormalizeTeam.load`` takes them out of this file). The
        file holds JSON and numbers, is written whole or not at all, and names the class that has
        saved it, so that :meth:`load` of another class refuses it.

        :param path: Path of the file, ".zip" is added to one without a suffix; or an open file
        :param exclude: Attributes to leave out; "vec_normalize" for the statistics. :meth:`load`
            asks for an attribute that no file holds, such as a lambda schedule
        :param include: Attributes to save that are left out otherwise
        :raises ValueError: If a parameter is not finite, or if no file can hold an attribute, such
            as a lambda schedule; :meth:`learn` says so before the training
        :raises OSError: If the file cannot be written, for example because the disk is full; an
            existing one is then as before
        """
        exclude = frozenset(exclude or ())
        self.write_content(path, self.saved_content(exclude, include), accepted=exclude)

    def unsavable_attributes(self) -> tuple[str, ...]:
        """
        :return: Names of the attributes that :meth:`save` refuses unless they are excluded
        """
        try:
            self.check_savable()
        except UnsavedError as error:
            return error.attributes
        return ()

    def check_savable(self) -> None:
        """
        :raises ValueError: If :meth:`save` would refuse an attribute, with its name and the way out
        """
        unsaved: list[Unsaved] = []
        to_plain(self.saved_content()["attributes"], "attributes", unsaved)
        check_unsaved(unsaved, (), type(self).__name__)

    def write_content(
        self,
        path: Location,
        content: dict[str, dict[str, Any]],
        system: str | None = None,
        accepted: Collection[str] | None = None,
    ) -> None:
        """
        Write the content of a model's file.

        :param path: Path of the file, or an open file
        :param content: Content, as :meth:`saved_content` returns it
        :param system: Text about the system; None for a description of this one
        :param accepted: Attributes that the file may lack if it cannot hold them; None for all
        :raises ValueError: If a parameter or a statistic is not finite, or if no file can hold an
            attribute
        :raises OSError: If the file cannot be written
        """
        name, algorithm = lineage(type(self), SavedAlgorithm)
        owner = f"This {name} model cannot be saved"
        check_finite_parameters(content["parameters"], self.policy.agents, owner)
        check_statistics(content.get(PART, {}), owner)
        if isinstance(path, (str, pathlib.PurePath)) and not pathlib.PurePath(path).suffix:
            path = pathlib.Path(f"{path}.zip")
        info = model_info(type(self), content, system)
        check = None
        if accepted is not None:
            check = partial(check_unsaved, accepted=accepted, loader=name)
        unsaved = write_safe_file(path, "model", content, name, algorithm, info, check=check)
        warn_of_unsaved(self, unsaved, path, name, only_named=accepted is not None)

    def saved_content(
        self, exclude: Iterable[str] | None = None, include: Iterable[str] | None = None
    ) -> dict[str, dict[str, Any]]:
        """
        :param exclude: Attributes to leave out
        :param include: Attributes to save that are left out otherwise
        :return: Content of a file: "attributes"; "parameters", the state dicts of networks and
            optimisers; "variables", single tensors; and "vec_normalize", the statistics of the
            environment's ``VecNormalize`` if there is one
        """
        state_dicts, variables = self._get_torch_save_params()
        given = frozenset(exclude or ())
        left_out = {*self._excluded_save_params()} - {*(include or ())}
        # Networks and optimisers are saved by their state dicts
        left_out |= {name.partition(".")[0] for name in (*state_dicts, *variables)}
        attributes = {}
        for name, value in self.__dict__.items():
            own = self._saved_attribute(name, value)
            # The file says of what it cannot hold that it is missing
            if name not in left_out and (name not in given or not _is_plain(own)):
                attributes[name] = own
        parameters: dict[str, Any] = {}
        for name, state in self.get_parameters().items():
            parameters[name] = dict(state)
        values = {name: recursive_getattr(self, name) for name in variables}
        content = {"attributes": attributes, "parameters": parameters, "variables": values}
        normalizer = self.get_vec_normalize_env()
        if normalizer is not None and PART not in given:
            # One file, so that a model never meets the statistics of another time
            content[PART] = normalizer_content(normalizer)
        return content

    def _saved_attribute(self, name: str, value: Any) -> Any:
        """
        Hook: value of an attribute in files.

        :param name: Name of the attribute
        :param value: Present value
        :return: Value to save
        """
        return value

    def __getstate__(self) -> dict[str, Any]:
        # Callbacks may copy the model; threads cannot be copied
        return self.__dict__ | {"_executor": None, "_last_good": None}

    def _excluded_save_params(self) -> list[str]:
        # Schedules of learning rates are made again of the rates
        excluded = [*super()._excluded_save_params(), *_OF_ONE_TRAINING]
        excluded += ["lr_schedule", "critic_lr_schedule"]
        if self.env is not None and takes_tensors(self.env):
            # A simulator's tensors may be on a device that is missing where they are loaded
            excluded.append("_last_obs")
        return excluded

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        indices = {agent: index for index, agent in enumerate(self.policy.agents)}
        optimizers = []
        for group in self.policy.groups:
            # Agents that share parameters share the optimiser
            optimizers.append(f"policy.actors.{indices[group[0]]}.optimizer")
        return ["policy", "policy.critic.optimizer", *optimizers], []

    @classmethod
    def load(  # type: ignore[override]
        cls: type[SelfSaved],
        path: Location,
        env: Any = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        check_class: bool = True,
        trust_pickle: bool = False,
        **kwargs: Any,
    ) -> SelfSaved:
        """
        Load a saved model, with its optimisers and normalisers. Nothing in the file is run.

        The file of a user's subclass is loaded by this subclass. The file of an algorithm may be
        loaded by a user's subclass of it, but not by another algorithm.

        :param path: Path of the file, or an open file
        :param env: Environment for further training, of any form that the constructor takes, with
            any number of environments; not needed for ``predict``
        :param device: Device of the model
        :param custom_objects: Objects in the place of saved attributes, by name; and classes of
            your own that the file names, such as a features extractor, by theirs
        :param print_system_info: Print of the versions at saving and now
        :param force_reset: Reset of the environment before training
        :param check_class: Refusal of models that another class has saved. With False their
            networks, critic and settings are used by this class as they are
        :param trust_pickle: Whether files of earlier versions, which are pickles, are loaded.
            Loading a pickle can run any code that its author has put into it
        :param kwargs: Attributes to change, such as ``learning_rate``
        :return: Model
        :raises ValueError: If the file holds something else, is damaged, is a pickle, or was saved
            by another class, if ``env`` has another team, or if the model has no attribute of a
            given name
        """
        path = existing_path(path)
        content = check_model_file(path, cls, SavedAlgorithm, check_class)
        if content is not None and not content.is_safe:
            accept_pickle(path, content, cls.__name__, trust_pickle)
            return cls._load_pickle(
                path, content, env, device, custom_objects, print_system_info, force_reset, kwargs
            )
        file = read_safe_file(path, "model")
        if print_system_info:
            _print_systems(file)
        return cls._load_safe(file, env, device, custom_objects, force_reset, kwargs)

    @classmethod
    def _load_safe(
        cls: type[SelfSaved],
        file: SafeFile,
        env: Any,
        device: th.device | str,
        custom_objects: dict[str, Any] | None,
        force_reset: bool,
        kwargs: dict[str, Any],
    ) -> SelfSaved:
        """Model of a file with the parts that :meth:`saved_content` lists."""
        attributes = file.entries("attributes", _NEEDED)
        kwargs = cls._attributes_to_change(kwargs, attributes)
        replaced = {**(custom_objects or {}), **kwargs}
        if "policy_kwargs" in kwargs and "policy_kwargs" not in (custom_objects or {}):
            _check_policy_kwargs(file, kwargs["policy_kwargs"], custom_objects)
        data = file.value("attributes", replaced)
        if env is not None:
            env = cls._wrap_env(env, data.get("verbose", 0))
            check_env_of_model(env, data["observation_space"], data["action_space"])
            check_for_correct_spaces(env, data["observation_space"], data["action_space"])
            data["n_envs"] = env.num_envs
            if force_reset:
                data["_last_obs"] = None
        return cls._of_file(file, data | kwargs, env, device)

    @classmethod
    def _of_file(
        cls: type[SelfSaved],
        file: SafeFile,
        data: dict[str, Any],
        env: Any,
        device: th.device | str,
    ) -> SelfSaved:
        """Model with the attributes ``data`` and the networks of a file."""
        file.entries("parameters", ("policy",))
        parameters = file.value("parameters")
        agents = tuple(getattr(data.get("action_space"), "spaces", ()))
        check_finite_parameters(parameters, agents, f"{file.name} holds {file.manifest.words}")
        try:
            with building_limit(file.tensors, len(agents)):
                make: Any = cls
                model = make(data["policy_class"], env, device=device, _init_setup_model=False)
                vars(model).update(data)
                model._setup_model()
            model.set_parameters(parameters, exact_match=True, device=device)
            for name, value in file.value("variables").items():
                if value is not None:
                    variable = recursive_getattr(model, name)
                    variable.data = value.data.to(variable.device)
        except Exception as error:
            raise SafeFileError(
                file.name,
                f"holds {file.manifest.words}, from which no {cls.__name__} can be made: {error}",
            ) from error
        if model.use_sde:
            model.policy.reset_noise()
        return model

    @classmethod
    def _load_pickle(
        cls: type[SelfSaved],
        path: Any,
        content: SavedFile,
        env: Any,
        device: th.device | str,
        custom_objects: dict[str, Any] | None,
        print_system_info: bool,
        force_reset: bool,
        kwargs: dict[str, Any],
    ) -> SelfSaved:
        """Model of a file of an earlier version, loaded by Stable-Baselines3."""
        kwargs = cls._attributes_to_change(kwargs, content.attributes)
        position = None if isinstance(path, pathlib.Path) else path.tell()
        model = super().load(
            path, None, device, custom_objects, print_system_info, force_reset, **kwargs
        )
        if env is None:
            return model
        # SB3's check of spaces says less about what differs
        env = cls._wrap_env(env)
        check_env_of_model(env, model.observation_space, model.action_space)
        if position is not None:
            path.seek(position)
        return super().load(
            path, env, device, custom_objects, print_system_info, force_reset, **kwargs
        )

    @classmethod
    def _attributes_to_change(
        cls, kwargs: dict[str, Any], attributes: frozenset[str]
    ) -> dict[str, Any]:
        """
        :param kwargs: Further keyword arguments of :meth:`load`
        :param attributes: Attributes of the saved model; empty if they are not known
        :return: Attributes to change, by their names in the model
        :raises ValueError: If the model has no such attribute
        """
        if not attributes:
            return kwargs
        public = {name for name in attributes if not name.startswith("_")}
        public |= {*cls.settings, "stats_window_size"}
        check_names(set(kwargs) - attributes, public, f"{cls.__name__}.load")
        changed = dict(kwargs)
        if "stats_window_size" in changed:
            changed["_stats_window_size"] = changed.pop("stats_window_size")
        return changed

    def set_parameters(
        self,
        load_path_or_dict: Any,
        exact_match: bool = True,
        device: th.device | str = "auto",
    ) -> None:
        """
        Replace parameters and optimisers of this model. Nothing in a file is run, in one of an
        earlier version either: its networks are read without the rest.

        :param load_path_or_dict: Path of a saved model, an open file, or a dict such as
            ``get_parameters`` returns
        :param exact_match: Error if parameters are missing
        :param device: Device of the parameters
        :raises ValueError: If the file holds no model, or its networks differ
        """
        if isinstance(load_path_or_dict, dict):
            super().set_parameters(load_path_or_dict, exact_match, device)
            return
        path = existing_path(load_path_or_dict)
        content = check_model_file(path, type(self), SavedAlgorithm, False)
        if content is not None and content.is_safe:
            file = read_safe_file(path, "model")
            self._set_parameters_of(file, content.words, exact_match, device)
            return
        with _explained(str(load_path_or_dict), "a model", type(self).__name__):
            super().set_parameters(path, exact_match, device)  # type: ignore[arg-type]

    def _set_parameters_of(
        self, file: SafeFile, words: str, exact_match: bool, device: th.device | str
    ) -> None:
        """
        :param file: File with a part "parameters"
        :param words: Description of its content, for errors
        :param exact_match: Error if parameters are missing
        :param device: Device of the parameters
        """
        file.entries("parameters", ("policy",))
        parameters = file.value("parameters")
        check_finite_parameters(parameters, self.policy.agents, f"{file.name} holds {words}")
        with _explained(file.name, words, type(self).__name__):
            super().set_parameters(parameters, exact_match, device)


@contextmanager
def _explained(name: str, words: str, model: str) -> Iterator[None]:
    """Name the file if its networks do not fit."""
    try:
        yield
    except (ValueError, RuntimeError, LookupError, EOFError, UnpicklingError) as error:
        raise ValueError(
            f"{name} holds {words}, whose networks are not those of this {model} model: {error}"
        ) from error


def model_info(
    cls: type, content: Mapping[str, Mapping[str, Any]], system: str | None = None
) -> dict[str, Any]:
    """
    :param cls: Class of the model
    :param content: Content of a model's file
    :param system: Text about the system; None for a description of this one
    :return: Strings for the file's manifest
    """
    return {
        "attributes": sorted(content["attributes"]),
        "parts": sorted(content),
        "system": get_system_info(print_info=False)[1] if system is None else system,
        **module_and_name(cls),
    }


def _is_plain(value: Any) -> bool:
    unsaved: list[Unsaved] = []
    to_plain(value, "", unsaved)
    return all(own.named for own in unsaved)


def _print_systems(file: SafeFile) -> None:
    print("== CURRENT SYSTEM INFO ==")
    get_system_info()
    print("== SAVED MODEL SYSTEM INFO ==")
    print(file.manifest.info.get("system", "unknown"))


def _check_policy_kwargs(
    file: SafeFile, given: dict[str, Any], custom_objects: Mapping[str, Any] | None
) -> None:
    """Refuse other ``policy_kwargs`` than the saved ones, as SB3 does."""
    stored = file.value("attributes", custom_objects, only=("policy_kwargs",))["policy_kwargs"]
    if stored != given:
        raise ValueError(
            f"The specified policy kwargs do not equal the stored policy kwargs. Stored kwargs: "
            f"{stored}, specified kwargs: {given}"
        )
