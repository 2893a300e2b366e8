"""Files with the statistics of a ``VecNormalize``, and their use without an environment."""

import os
import pickle
from collections.abc import Mapping
from typing import IO, Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from sb3_happo.common.safe_files import (
    SafeFileError,
    file_name,
    read_safe_file,
    write_safe_file,
)
from sb3_happo.common.saved_files import existing_path, inspect_file, module_and_name
from sb3_happo.common.saved_notes import accept_pickle

#: Part of a file in which the statistics are; a model's file may have it, too
PART = "vec_normalize"

_FIELDS = (
    *("num_envs", "observation_space", "action_space", "norm_obs", "norm_reward", "training"),
    *("norm_obs_keys", "obs_rms", "ret_rms", "clip_obs", "clip_reward", "gamma", "epsilon"),
)
_NUMBERS = ("clip_obs", "clip_reward", "gamma", "epsilon")


def normalizer_content(normalizer: VecNormalize) -> dict[str, Any]:
    """
    :param normalizer: Normaliser
    :return: Statistics and settings, without the environment
    """
    own = vars(normalizer)
    return {name: own[name] for name in _FIELDS if name in own}


def save_normalizer(normalizer: VecNormalize, path: str | os.PathLike[str] | IO[bytes]) -> None:
    """
    Save statistics and settings, without the environment. The file holds JSON and numbers, and is
    written whole or not at all.

    :param normalizer: Normaliser
    :param path: Path of the file, or an open file
    :raises ValueError: If a statistic is not finite
    :raises OSError: If the file cannot be written; an existing one is then as before
    """
    content = normalizer_content(normalizer)
    check_statistics(content, f"These statistics of {type(normalizer).__name__} cannot be saved")
    info = module_and_name(type(normalizer))
    write_safe_file(path, PART, {PART: content}, type(normalizer).__name__, info=info)


def read_normalizer(
    path: str | os.PathLike[str] | IO[bytes], loader: str, trust_pickle: bool = False
) -> dict[str, Any]:
    """
    :param path: Path of a file with statistics, or of a model that was trained with them
    :param loader: Name of the class that loads it
    :param trust_pickle: Whether files of earlier versions, which are pickles, are loaded
    :return: Attributes of a ``VecNormalize``, without the environment
    :raises ValueError: If the file holds something else, is damaged, or is a pickle
    """
    location = existing_path(path)
    found = inspect_file(location)
    if found is None or found.is_safe:
        file = read_safe_file(location)
        if PART not in file.plain:
            raise SafeFileError(
                file.name,
                f"holds {file.manifest.words}, without statistics of a VecNormalize. A model's "
                "file has them if its environment was normalised when it was saved.",
            )
        content = file.value(PART)
        check_content(content, file.name)
        check_statistics(content, f"{file.name} cannot be loaded")
        return content
    if found.kind != "pickle" or found.name not in ("VecNormalize", "VecNormalizeTeam", ""):
        raise SafeFileError(
            file_name(location),
            f"holds {found.words}, not the statistics of a VecNormalize. {found.remedy('model')}",
        )
    accept_pickle(location, found, loader, trust_pickle, stacklevel=4)
    if isinstance(location, (str, os.PathLike)):
        with open(location, "rb") as opened:
            normalizer = pickle.load(opened)
    else:
        normalizer = pickle.load(location)
    if not isinstance(normalizer, VecNormalize):
        raise SafeFileError(file_name(location), "holds no statistics of a VecNormalize.")
    return normalizer_content(normalizer)


def check_content(content: Any, name: str) -> None:
    """
    :param content: Attributes of a ``VecNormalize``
    :param name: Name of their file
    :raises ValueError: If they are not such attributes, or their shapes are not those of the spaces
    """
    problem = _problem_of(content) if isinstance(content, dict) else "they are no table"
    if problem:
        raise SafeFileError(
            name, f"holds statistics of a VecNormalize that cannot be used: {problem}."
        )


def _problem_of(content: dict[str, Any]) -> str:
    missing = set(_FIELDS) - {*content, "norm_obs_keys"}
    # SB3 has no statistics of observations where none are normalised
    missing -= set() if content.get("norm_obs") else {"obs_rms"}
    if missing:
        return f"{', '.join(sorted(missing))} missing"
    wrong = [key for key in _NUMBERS if not isinstance(content[key], (int, float))]
    if wrong:
        return f"{wrong[0]} is {content[wrong[0]]!r}"
    if not _are_statistics(content["ret_rms"], ()):
        return "ret_rms are no statistics"
    if not content.get("norm_obs"):
        return ""
    return _problem_of_observations(content["obs_rms"], content["observation_space"])


def _problem_of_observations(statistics: Any, space: Any) -> str:
    if not isinstance(statistics, dict):
        statistics, space = {"": statistics}, spaces.Dict({"": space})
    for key, own in statistics.items():
        if not isinstance(space, spaces.Dict) or key not in space.spaces:
            return f"there is no observation {key!r}"
        if not _are_statistics(own, space.spaces[key].shape or ()):
            return f"those of {key!r} are not of the shape {space.spaces[key].shape}"
    return ""


def _are_statistics(value: Any, shape: tuple[int, ...]) -> bool:
    if not isinstance(value, RunningMeanStd) or not {"mean", "var", "count"} <= {*vars(value)}:
        return False
    for own in (value.mean, value.var):
        if not isinstance(own, (np.ndarray, np.floating, float)) or np.shape(own) != shape:
            return False
    # One count, or one per number where the agents of a state are not always present
    return np.shape(value.count) in ((), shape) and np.asarray(value.count).dtype.kind in "fiu"


def check_statistics(content: Mapping[str, Any], owner: str) -> None:
    """
    :param content: Attributes of a ``VecNormalize``
    :param owner: Beginning of the error
    :raises ValueError: If a statistic is NaN or infinite
    """
    statistics = content.get("obs_rms")
    every = dict(statistics) if isinstance(statistics, dict) else {"observations": statistics}
    every["rewards"] = content.get("ret_rms")
    for key, own in every.items():
        if own is None:
            continue
        if not (np.isfinite(own.mean).all() and np.isfinite(own.var).all()):
            raise ValueError(
                f"{owner}: the statistics of {key!r} are not finite. An environment has returned "
                "NaN or infinite numbers; go on from an earlier file."
            )


class SavedStatistics:
    """
    Statistics of a ``VecNormalize`` without an environment, as a robot needs them.

    :param content: Attributes of a ``VecNormalize``
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.observation_space: spaces.Space = content["observation_space"]
        self.norm_obs: bool = content["norm_obs"]
        self.clip_obs: float = content["clip_obs"]
        self.epsilon: float = content["epsilon"]
        #: Statistics by key of the joint observation; masks and images have none
        self.obs_rms: dict[str, RunningMeanStd] = {}
        if self.norm_obs and isinstance(content["obs_rms"], dict):
            self.obs_rms = dict(content["obs_rms"])

    def normalize_obs(self, obs: Mapping[str, Any]) -> dict[str, Any]:
        """
        Normalise observations of several agents.

        :param obs: Joint observation or a part of it, by key: an agent's name, or
            ``"<agent>/<key>"`` for a part of a Dict observation; or ``{agent: observation}``. Of
            one environment or of a batch
        :return: Normalised observations by the same keys. Those without statistics are as given
        """
        normalised: dict[str, Any] = {}
        for key, value in obs.items():
            normalised[key] = self.normalize_agent_obs(key, value)
        return normalised

    def normalize_agent_obs(self, agent: str, obs: Any) -> Any:
        """
        Normalise the observation of one agent.

        :param agent: Name of the agent
        :param obs: Own observation, an array or a dict of arrays, one or a batch
        :return: Normalised observation, float32, in the same form; for ``policy.predict``
        """
        if isinstance(obs, Mapping):
            return {
                key: self.normalize_agent_obs(f"{agent}/{key}", own) for key, own in obs.items()
            }
        statistics = self.obs_rms.get(str(agent))
        if statistics is None:
            return obs
        scaled = (np.asarray(obs) - statistics.mean) / np.sqrt(statistics.var + self.epsilon)
        return np.clip(scaled, -self.clip_obs, self.clip_obs).astype(np.float32)
