"""Description of an exported policy as plain data, for JSON."""

import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any, TypeAlias

import numpy as np
from gymnasium import spaces

from sb3_happo.common.actor_network import ActorNetwork
from sb3_happo.common.distributions import starts_of_choices
from sb3_happo.common.export.check import CheckResult
from sb3_happo.common.export.normalization import Normalization
from sb3_happo.common.export.signature import Signature, TensorInfo
from sb3_happo.suggestions import check_names
from sb3_happo.version import __version__

Card: TypeAlias = dict[str, Any]
#: Units of the numbers of an input or output: one for all, or one per number
Units: TypeAlias = Mapping[str, str | Sequence[str]]

#: Version of the card's layout
FORMAT = "sb3_happo export 1"
_PACKAGES = ("torch", "numpy", "onnx", "onnxscript", "onnxruntime")


def make_card(
    policy: ActorNetwork,
    signature: Signature,
    normalization: Normalization | None,
    agent: str | None,
    units: Units | None = None,
) -> Card:
    """
    :param policy: Policy of one agent
    :param signature: Inputs and outputs of the exported file
    :param normalization: Normalisation of the observation, which the file contains; None for none
    :param agent: Name of the agent; None if unknown
    :param units: Units by the name of an input or output
    :return: Card
    :raises ValueError: If ``units`` names something else, or has another number of units
    """
    infos = (*signature.inputs, *signature.outputs)
    units = dict(units or {})
    check_names(units, [info.name for info in infos], "units")
    options = policy.options
    return {
        "format": FORMAT,
        "agent": agent,
        "inputs": [_tensor(policy, info, units) for info in signature.inputs],
        "outputs": [_tensor(policy, info, units) for info in signature.outputs],
        "deterministic": True,
        "head": policy.head_name,
        "recurrent": options.recurrent if policy.memory is not None else None,
        "parameters": sum(parameter.numel() for parameter in policy.parameters()),
        "normalization": None if normalization is None else _statistics(normalization),
        "versions": _versions(),
    }


def check_entry(result: CheckResult, runtime: str) -> dict[str, Any]:
    """
    :param result: Result of the comparison with the policy
    :param runtime: Name of the package that has run the file
    :return: Entry "check" of the card
    """
    return {**result._asdict(), "runtime": f"{runtime} {metadata.version(runtime)}"}


def _tensor(policy: ActorNetwork, info: TensorInfo, units: Units) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": info.name,
        "role": info.role,
        "path": list(info.path),
        "shape": list(info.shape),
        "dtype": info.dtype,
        "batch_axis": info.batch_axis,
    }
    if info.space is not None:
        entry["space"] = _space(info.space)
    if info.role == "action_mask":
        entry["starts"] = starts_of_choices(policy.leaves).tolist()
    if info.name in units:
        given = units[info.name]
        size = int(np.prod(info.shape))
        if not isinstance(given, str) and len(given) != size:
            raise ValueError(
                f"units[{info.name!r}] has {len(given)} units for {size} numbers; pass one text, "
                "or a list with one for each number."
            )
        entry["units"] = given if isinstance(given, str) else list(given)
    return entry


def _space(space: spaces.Space) -> dict[str, Any]:
    """Class, type and bounds of a space; no bound is None."""
    entry: dict[str, Any] = {"class": type(space).__name__, "dtype": str(space.dtype)}
    if isinstance(space, spaces.Box):
        entry["class"] = "Box"
        entry |= {"low": _bounds(space.low), "high": _bounds(space.high)}
    elif isinstance(space, spaces.Discrete):
        entry |= {"n": int(space.n), "start": int(space.start)}
    elif isinstance(space, spaces.MultiDiscrete):
        entry |= {"nvec": space.nvec.tolist(), "start": space.start.tolist()}
    return entry


def _bounds(bounds: np.ndarray) -> Any:
    """One number if all are equal, else nested lists."""
    finite = bounds.astype(object)
    finite[~np.isfinite(bounds)] = None
    equal = bool(bounds.size) and bool((bounds == bounds.flat[0]).all())
    return finite.flat[0] if equal else finite.tolist()


def _statistics(normalization: Normalization) -> dict[str, Any]:
    inputs = {}
    for part, own in normalization.parts.items():
        name = f"observation/{part}" if part else "observation"
        inputs[name] = {
            "mean": own.mean.tolist(),
            "std": own.std.tolist(),
            "clip": own.clip,
            "key": normalization.keys[part],
        }
    return {"in_the_file": True, "inputs": inputs}


def _versions() -> dict[str, str]:
    versions = {"sb3_happo": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
