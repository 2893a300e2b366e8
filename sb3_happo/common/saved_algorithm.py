"""Saving and loading of models."""

import io
import pathlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, TypeVar

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.save_util import load_from_zip_file

from sb3_happo.common.checks import check_env_of_model, takes_tensors
from sb3_happo.common.hyperparameters import Setting
from sb3_happo.common.last_good import LastGood
from sb3_happo.common.multi_agent_policy import MultiAgentPolicy
from sb3_happo.common.saved_files import check_model_file, signature_of_model
from sb3_happo.suggestions import check_names

#: Attributes of a training on this machine, which are not saved
_OF_ONE_TRAINING = ("_executor", "_last_good", "last_good_folder", "last_good_path")

SelfSaved = TypeVar("SelfSaved", bound="SavedAlgorithm")


class SavedAlgorithm(BaseAlgorithm):
    """
    Part of :class:`~sb3_happo.common.multi_agent_algorithm.MultiAgentAlgorithm` that saves and
    loads models.
    """

    #: Allowed values of the hyperparameters, by attribute
    settings: ClassVar[dict[str, Setting]] = {}
    policy: MultiAgentPolicy
    #: Threads for gradients, during ``learn``
    _executor: ThreadPoolExecutor | None = None
    #: Weights to go back to after a fault, during ``learn``
    _last_good: LastGood | None = None

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save the model: settings, networks, optimisers and normalisers. The file names the class
        that has saved it, so that :meth:`load` of another class refuses it.

        :param path: Path of the file, or an open file
        :param exclude: Attributes to leave out
        :param include: Attributes to save that are left out otherwise
        """
        self.saved_by = signature_of_model(type(self), SavedAlgorithm)
        super().save(path, exclude, include)

    def __getstate__(self) -> dict[str, Any]:
        # Callbacks may copy the model; threads cannot be copied
        return self.__dict__ | {"_executor": None, "_last_good": None}

    def _excluded_save_params(self) -> list[str]:
        excluded = [*super()._excluded_save_params(), *_OF_ONE_TRAINING]
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
    def load(
        cls: type[SelfSaved],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: Any = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        check_class: bool = True,
        **kwargs: Any,
    ) -> SelfSaved:
        """
        Load a saved model, with its optimisers and normalisers.

        The file of a user's subclass is loaded by this subclass. The file of an algorithm may be
        loaded by a user's subclass of it, but not by another algorithm.

        :param path: Path of the file, or an open file
        :param env: Environment for further training, of any form that the constructor takes, with
            any number of environments; not needed for ``predict``
        :param device: Device of the model
        :param custom_objects: Objects in the place of saved ones, by name
        :param print_system_info: Print of the versions at saving and now
        :param force_reset: Reset of the environment before training
        :param check_class: Refusal of models that another class has saved. With False their
            networks, critic and settings are used by this class as they are
        :param kwargs: Attributes to change, such as ``learning_rate``
        :return: Model
        :raises ValueError: If the file holds something else or was saved by another class, if
            ``env`` has another team, or if the model has no attribute of a given name
        """
        content = check_model_file(path, cls, SavedAlgorithm, check_class)
        kwargs = cls._attributes_to_change(kwargs, content.attributes)
        if env is not None:
            env = cls._wrap_env(env)
            position = path.tell() if isinstance(path, io.BufferedIOBase) else 0
            data, _, _ = load_from_zip_file(path, device="cpu", custom_objects=custom_objects)
            if isinstance(path, io.BufferedIOBase):
                path.seek(position)
            assert data is not None
            check_env_of_model(env, data["observation_space"], data["action_space"])
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
        Replace parameters and optimisers of this model.

        :param load_path_or_dict: Path of a saved model, an open file, or a dict such as
            ``get_parameters`` returns
        :param exact_match: Error if parameters are missing
        :param device: Device of the parameters
        :raises ValueError: If the file holds no model, or its networks differ
        """
        if isinstance(load_path_or_dict, dict):
            return super().set_parameters(load_path_or_dict, exact_match, device)
        content = check_model_file(load_path_or_dict, type(self), SavedAlgorithm, False)
        try:
            super().set_parameters(load_path_or_dict, exact_match, device)
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"{load_path_or_dict} holds {content.words}, whose networks are not those of this "
                f"{type(self).__name__} model: {error}"
            ) from error
