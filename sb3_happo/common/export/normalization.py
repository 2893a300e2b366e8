"""Statistics of ``VecNormalize`` for the observation of one agent."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from sb3_happo.common.actor_network import ActorNetwork
from sb3_happo.common.export.signature import observation_parts
from sb3_happo.envs.spaces import ACTION_MASK, AGENT_STATES, STATE, is_flag
from sb3_happo.suggestions import did_you_mean
from sb3_happo.vec_env.normalizer_files import SavedStatistics

_CRITIC_KEYS = (STATE, AGENT_STATES)


class Statistics(NamedTuple):
    """
    Normalisation of one part of an observation: ``clip((x - mean) / std, -clip, clip)``.

    :param mean: Mean of the observations, float64, of the shape of the part
    :param std: Square root of the variance plus the normaliser's epsilon, of the same shape
    :param clip: Largest absolute value of the result
    """

    mean: np.ndarray
    std: np.ndarray
    clip: float


class Normalization(NamedTuple):
    """
    Normalisation of the observation of one agent.

    :param normalizer: Normaliser of the team's observations
    :param keys: Key of the normaliser for each part of the observation that it normalises; "" for
        a normaliser of observations that are one array
    :param parts: Statistics of the same parts
    """

    normalizer: VecNormalize | SavedStatistics
    keys: dict[str, str]
    parts: dict[str, Statistics]

    def __call__(self, observation: Any) -> Any:
        """
        :param observation: Observations in the form of the joint observation, ``(batch, ...)``, a
            dict where the policy's space is one
        :return: Observations as the normaliser itself returns them
        """
        if not isinstance(observation, dict):
            return self._normalize({"": observation})[""]
        return self._normalize(observation)

    def _normalize(self, observation: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if isinstance(self.normalizer, SavedStatistics):
            saved = self.normalizer
            return observation | {
                part: saved.normalize_agent_obs(key, observation[part])
                for part, key in self.keys.items()
            }
        statistics: Any = self.normalizer.obs_rms
        if isinstance(statistics, RunningMeanStd):
            # The class of Stable-Baselines3: the team's class asks the environments who is present
            own: Any = VecNormalize.normalize_obs(self.normalizer, observation[""])
            return {"": own}
        # It normalises whole joint observations only
        joint = {key: np.zeros(rms.mean.shape) for key, rms in statistics.items()}
        joint |= {key: observation[part] for part, key in self.keys.items()}
        normalized: Any = VecNormalize.normalize_obs(self.normalizer, joint)
        return observation | {part: normalized[key] for part, key in self.keys.items()}


def find_normalization(
    policy: ActorNetwork, normalizer: Any, agent: str | None = None
) -> Normalization | None:
    """
    :param policy: Policy of one agent
    :param normalizer: ``VecNormalize``, ``VecNormalizeTeam``, a vectorised environment with one of
        them among its wrappers, or what ``VecNormalizeTeam.load_statistics(path)`` returns; None
        for none
    :param agent: Name of the agent in the normaliser's environment; by default the policy's own,
        or else the only agent with its observation space
    :return: Normalisation of the agent's observation; None if nothing of it is normalised
    :raises TypeError: If ``normalizer`` is something else
    :raises ValueError: If the agent cannot be found, or the statistics do not fit its observation
    """
    if normalizer is None:
        return None
    found = _unwrap(normalizer)
    if not found.norm_obs:
        return None
    statistics: Any = found.obs_rms
    keys = _keys_of_parts(policy, found, agent)
    parts = {}
    for part, space in observation_parts(policy.observation_space):
        own = statistics if isinstance(statistics, RunningMeanStd) else statistics.get(keys[part])
        if own is None:
            keys.pop(part)
            continue
        _check_shape(part, space, own, keys[part])
        std = np.sqrt(own.var + found.epsilon)
        parts[part] = Statistics(np.asarray(own.mean), np.asarray(std), float(found.clip_obs))
    return Normalization(found, keys, parts) if parts else None


def _unwrap(normalizer: Any) -> VecNormalize | SavedStatistics:
    if isinstance(normalizer, SavedStatistics):
        if normalizer.norm_obs and not isinstance(normalizer.observation_space, spaces.Dict):
            raise TypeError(
                "These statistics are of observations that are one array, not of a team; load them "
                "with VecNormalize.load(path, venv), and pass that as `normalizer`."
            )
        return normalizer
    found = unwrap_vec_normalize(normalizer) if isinstance(normalizer, VecEnv) else None
    if found is None:
        raise TypeError(
            f"`normalizer` is a {type(normalizer).__name__}, not a VecNormalize; pass the "
            "environment of the training (`model.get_vec_normalize_env()`), or what "
            "VecNormalizeTeam.load_statistics(path) returns."
        )
    return found


def _keys_of_parts(
    policy: ActorNetwork, normalizer: VecNormalize | SavedStatistics, agent: str | None
) -> dict[str, str]:
    """Key of the normaliser's observation for each part of the policy's."""
    own = dict(observation_parts(policy.observation_space))
    joint = normalizer.observation_space
    if not isinstance(joint, spaces.Dict):
        if "" not in own:
            raise ValueError(
                f"The normaliser is made for observations in {joint}, and the policy observes a "
                f"dict with the keys {list(own)}; pass the normaliser of its own training."
            )
        return {"": ""}
    name = agent if agent is not None else policy.agent_name
    if name is not None and _holds(joint, _keys_of_agent(name, own)):
        return _keys_of_agent(name, own)
    if "" not in own and own.keys() == set(filter(_is_own, joint.spaces)):
        # The environment of a team of one, whose entries do not bear the agent's name
        return {part: part for part in own}
    if agent is None:
        return _keys_of_agent(_only_candidate(policy, joint), own)
    raise ValueError(_no_agent(agent, own, joint))


def _is_own(key: str) -> bool:
    """Whether an entry of a joint observation is part of an agent's own observation."""
    return key not in _CRITIC_KEYS and not is_flag(key)


def _no_agent(agent: str, own: Mapping[str, spaces.Space], joint: spaces.Dict) -> str:
    """Text of an error about an agent that the normaliser does not have."""
    names = set(_candidates(own, joint))
    names |= {key.split("/")[0] for key in joint.spaces if _is_own(key)}
    hint = did_you_mean(agent, names, otherwise=f"There are {', '.join(sorted(names))}.")
    wanted = list(_keys_of_agent(agent, own).values())
    return (
        f"The normaliser has no observation of an agent {agent!r} with the parts {wanted}. {hint}"
    )


def _keys_of_agent(agent: str, own: Mapping[str, spaces.Space]) -> dict[str, str]:
    keys = {}
    for part in own:
        keys[part] = f"{agent}/{part}" if part else agent
    return keys


def _holds(joint: spaces.Dict, keys: Mapping[str, str]) -> bool:
    return all(key in joint.spaces for key in keys.values())


def _candidates(own: Mapping[str, spaces.Space], joint: spaces.Dict) -> list[str]:
    """Agents whose observations in a joint space are of the policy's spaces."""
    names = []
    for key in joint.spaces:
        if not _is_own(key):
            continue
        name = key if "" in own else key.removesuffix(f"/{next(iter(own))}")
        keys = _keys_of_agent(name, own)
        if _holds(joint, keys) and all(joint[keys[part]] == own[part] for part in own):
            names.append(name)
    return names


def _only_candidate(policy: ActorNetwork, joint: spaces.Dict) -> str:
    candidates = _candidates(dict(observation_parts(policy.observation_space)), joint)
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        others = [key for key in joint.spaces if not key.endswith(ACTION_MASK)]
        raise ValueError(
            f"No observation in the normaliser fits the policy's space {policy.observation_space}; "
            f"it has {others}. Pass the normaliser of the policy's own training."
        )
    raise ValueError(
        f"The policy does not know its agent's name, and the observations of {candidates} have its "
        "space, each with statistics of its own; pass `agent=`."
    )


def _check_shape(part: str, space: spaces.Space, own: RunningMeanStd, key: str) -> None:
    if own.mean.shape != space.shape:
        what = f"entry {key!r}" if key else "the observation"
        raise ValueError(
            f"The normaliser's statistics of {what} have the shape {own.mean.shape}, and the "
            f"policy observes the shape {space.shape}. If frames are stacked after the "
            "normalisation, put VecFrameStack inside VecNormalize, or export without `normalizer` "
            "and normalise each frame before it is stacked."
        )
