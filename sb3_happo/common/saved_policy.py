"""Saving and loading of policies: those of a team, and that of one agent."""

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.utils import get_device

from sb3_happo.common.building_limit import building_limit
from sb3_happo.common.finite_weights import check_finite_parameters
from sb3_happo.common.safe_files import SafeFile, SafeFileError, read_safe_file, write_safe_file
from sb3_happo.common.saved_files import (
    Kind,
    Location,
    check_policy_file,
    existing_path,
    module_and_name,
)
from sb3_happo.common.saved_notes import accept_pickle, warn_of_unsaved

SelfPolicy = TypeVar("SelfPolicy", bound="SavedPolicy")


class SavedPolicy(BasePolicy):
    """Part of a policy that saves and loads it, without pickles."""

    #: Kind of its files
    file_kind: ClassVar[Kind]

    def agent_names(self) -> tuple[str, ...]:
        """
        :return: Names of the agents, in the order of ``actors``; empty for a single agent's policy
        """
        return ()

    def save(self, path: Location) -> None:
        """
        Save the policy (of a team with the critic), without the algorithm. The file holds JSON and
        numbers, and is written whole or not at all.

        :param path: Path of the file, or an open file
        :raises ValueError: If a parameter is not finite
        :raises OSError: If the file cannot be written, for example because the disk is full; an
            existing one is then as before
        """
        name = type(self).__name__
        parameters = dict(self.state_dict())
        check_finite_parameters(parameters, self.agent_names(), f"This {name} cannot be saved")
        arguments = self._get_constructor_parameters()
        # Schedules belong to the algorithm
        arguments.pop("lr_schedule", None)
        unsaved = write_safe_file(
            path,
            self.file_kind,
            {"arguments": arguments, "parameters": parameters},
            saved_by=name,
            info=module_and_name(type(self)),
        )
        warn_of_unsaved(self, unsaved, path, name)

    @classmethod
    def load(
        cls: type[SelfPolicy],
        path: Location,
        device: th.device | str = "auto",
        check_class: bool = True,
        custom_objects: Mapping[str, Any] | None = None,
        trust_pickle: bool = False,
    ) -> SelfPolicy:
        """
        Load a policy, to act with it. Nothing in the file is run.

        :param path: Path of the file, or an open file
        :param device: Device of the policy
        :param check_class: Refusal of policies that a user's other class has saved
        :param custom_objects: Classes of your own that the file names, such as a features
            extractor, by name; or arguments of the policy in the place of saved ones
        :param trust_pickle: Whether files of earlier versions, which are pickles, are loaded.
            Loading a pickle can run any code that its author has put into it
        :return: Policy
        :raises ValueError: If the file holds something else, is damaged, or is a pickle
        """
        path = existing_path(path)
        content = check_policy_file(path, cls, cls.file_kind, check_class)
        if content is not None and not content.is_safe:
            accept_pickle(path, content, cls.__name__, trust_pickle)
            return super().load(path, device)  # type: ignore[arg-type]
        return cls._of_file(read_safe_file(path, cls.file_kind), device, custom_objects)

    @classmethod
    def _of_file(
        cls: type[SelfPolicy],
        file: SafeFile,
        device: th.device | str,
        custom_objects: Mapping[str, Any] | None,
    ) -> SelfPolicy:
        file.entries("parameters")
        file.entries("arguments", ("observation_space", "action_space"))
        parameters = file.value("parameters")
        arguments = file.value("arguments", custom_objects)
        agents = tuple(getattr(arguments.get("action_space"), "spaces", ()))
        names = agents if cls.file_kind == "team" else ()
        check_finite_parameters(parameters, names, f"{file.name} holds {file.manifest.words}")
        try:
            with building_limit(file.tensors, len(agents)):
                policy = cls(**arguments, lr_schedule=cls._dummy_schedule)
                policy.load_state_dict(parameters)
        except Exception as error:
            raise SafeFileError(
                file.name,
                f"holds {file.manifest.words}, from which no {cls.__name__} can be made: {error}",
            ) from error
        return policy.to(get_device(device))
