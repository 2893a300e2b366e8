"""Networks that an entry names, compared with those of a trained agent that is continued."""

import inspect
from collections.abc import Mapping
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_happo.common.networks import NetworkOptions

_MISSING = object()


def compare_networks(
    model: BaseAlgorithm, given: Mapping[str, Any], agent: str, config: str, chosen: bool
) -> None:
    """
    Refuse other networks than the trained agent's in an entry that the command chose, and say that
    they are not used if it is the entry by default.

    :param model: Trained agent
    :param given: "policy" and "policy_kwargs" of the entry, evaluated; either may be missing
    :param agent: Path of the trained agent
    :param config: File of the entry
    :param chosen: True if the command named the file or a study
    :raises ValueError: If the networks of a chosen entry differ
    """
    text = "; ".join(differing_networks(model, given))
    if text and chosen:
        raise ValueError(
            f"The networks of {agent} stay as they are, and the entry has others: {text}. Take "
            "them out of the entry, or train anew without -i."
        )
    if text:
        print(
            f"The networks of {agent} stay as they are; the entry in {config} has others, which "
            f"are not used: {text}."
        )


def differing_networks(model: BaseAlgorithm, given: Mapping[str, Any]) -> list[str]:
    """
    :param model: Trained agent
    :param given: "policy" and "policy_kwargs" of an entry, evaluated; either may be missing
    :return: Texts with what differs from the agent's networks, and both values
    """
    found = []
    policy = given.get("policy")
    if policy is not None and _policy_class(model, policy) is not model.policy_class:
        found.append(f"policy is {policy}, and the agent has {model.policy_class.__name__}")
    kwargs = given.get("policy_kwargs") or {}
    own = model.policy_kwargs or {}
    for name, value in kwargs.items():
        present = own.get(name, _default(model, name))
        if _plain(present) != _plain(value):
            text = "the default" if present is _MISSING else repr(present)
            found.append(f"policy_kwargs[{name!r}] is {value!r}, and the agent has {text}")
    return found


def _policy_class(model: BaseAlgorithm, policy: Any) -> Any:
    return model.policy_aliases.get(policy, policy) if isinstance(policy, str) else policy


def _default(model: BaseAlgorithm, name: str) -> Any:
    """Default of an argument of the policy, looked up in its base classes and in the networks."""
    for cls in (*model.policy_class.__mro__, NetworkOptions):
        parameter = inspect.signature(cls).parameters.get(name)
        if parameter is not None and parameter.default is not inspect.Parameter.empty:
            return parameter.default
    return _MISSING


def _plain(value: Any) -> Any:
    """Value in which tuples are lists, as in files."""
    if isinstance(value, Mapping):
        return {key: _plain(own) for key, own in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(own) for own in value]
    return value
