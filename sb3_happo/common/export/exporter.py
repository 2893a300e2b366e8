"""Export of one agent's policy into a file or a folder."""

import hashlib
import importlib
import io
import json
import os
import pathlib
import shutil
import tempfile
from importlib import resources
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import numpy as np

from sb3_happo.common.actor_network import ActorNetwork
from sb3_happo.common.export.card import Card, Units, check_entry, make_card
from sb3_happo.common.export.check import (
    N_OBSERVATIONS,
    Arrays,
    CheckResult,
    ExportError,
    Reference,
    check_export,
)
from sb3_happo.common.export.formats import (
    METADATA_KEY,
    onnx_bytes,
    onnx_run,
    require_onnx,
    torch_bytes,
    torch_run,
    trace,
)
from sb3_happo.common.export.network import ExportedPolicy
from sb3_happo.common.export.normalization import find_normalization
from sb3_happo.common.export.samples import draw_inputs
from sb3_happo.common.safe_files import write_or_fail
from sb3_happo.suggestions import did_you_mean

Format: TypeAlias = Literal["onnx", "torch", "folder"]

FORMATS = ("onnx", "torch", "folder")
#: Endings of the files
SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
#: Files of a folder; the card comes last, since it holds the others' checksums
POLICY_FILE, RUN_FILE = "policy.onnx", "run.py"
EXAMPLES_FILE, CARD_FILE = "examples.npz", "card.json"
_OWN_NAMES = (POLICY_FILE, RUN_FILE, EXAMPLES_FILE, CARD_FILE, "__pycache__")
_N_EXAMPLES = 16


class _Exported(NamedTuple):
    """
    Checked content of a file.

    :param content: Content
    :param card: Card, with the result of the check
    :param result: Result of the check
    :param inputs: Inputs that the check has used, by name
    :param outputs: Outputs of the policy for them, by name
    """

    content: bytes
    card: Card
    result: CheckResult
    inputs: Arrays
    outputs: Arrays


def export(
    policy: Any,
    path: str | os.PathLike[str],
    format: Format = "onnx",
    normalizer: Any = None,
    agent: str | None = None,
    units: Units | None = None,
    tolerance: float = 1e-5,
    seed: int = 0,
) -> CheckResult:
    """
    Write one agent's deterministic policy into a file that needs neither this package nor, in the
    formats "onnx" and "folder", PyTorch.

    Before anything is written, the result is run and compared with ``predict(deterministic=True)``
    on 1,000 random observations, with random action masks and recurrent states, in batches of
    several sizes. It is written beside its place and then renamed, so that a file in its place is
    always whole and checked.

    :param policy: Policy of one agent, ``model.policies[agent]`` or what ``AgentPolicy.load``
        returns
    :param path: Path of the file (".onnx" or ".pt2" is added where there is no ending) or folder
    :param format: "onnx" for an ONNX file; "torch" for a ``torch.export`` file, which
        ``torch.export.load(path).module()`` runs; "folder" for an ONNX file with a card, examples,
        and ``run.py``, which needs ONNX Runtime and NumPy alone
    :param normalizer: ``VecNormalize`` of the training, whose normalisation of the observation
        becomes part of the file; None if the training had none
    :param agent: Name of the agent, for its statistics in the normaliser and for the card; by
        default the policy's own
    :param units: Units for the card by name of an input or output, such as
        ``{"action": ["N", "rad/s"]}``
    :param tolerance: Largest difference, relative to the numbers where they are greater than 1
    :param seed: Seed for the observations of the check
    :return: Result of the check
    :raises ValueError: If the format is unknown, the path is not free for a folder, or the
        normaliser does not fit
    :raises ExportError: If the policy cannot be exported, or the exported one acts in another way
    :raises TypeError: If ``policy`` is no policy of one agent, or ``normalizer`` no normaliser
    :raises ImportError: If the packages for ONNX are missing
    """
    _check_arguments(policy, format, tolerance)
    if format != "torch":
        require_onnx()
    target = pathlib.Path(path)
    if format == "folder":
        _check_folder(target)
        exported = _make(policy, "onnx", POLICY_FILE, normalizer, agent, units, tolerance, seed)
        _write_folder(target, exported)
        return exported.result
    if target.is_dir():
        raise IsADirectoryError(f'{target} is a folder; pass format="folder", or a file\'s path.')
    if not target.suffix:
        target = target.with_suffix(SUFFIXES[format])
    exported = _make(policy, format, target.name, normalizer, agent, units, tolerance, seed)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_or_fail(os.fspath(target), exported.content)
    return exported.result


def _check_arguments(policy: Any, format: str, tolerance: float) -> None:
    if format not in FORMATS:
        hint = did_you_mean(str(format), FORMATS, otherwise="")
        known = ", ".join(map(repr, FORMATS))
        raise ValueError(f"Unknown format {format!r}; use one of {known}. {hint}".rstrip())
    if not tolerance > 0:
        raise ValueError(f"tolerance must be positive, not {tolerance}")
    if isinstance(policy, ActorNetwork):
        _check_weights(policy)
        return
    policies = getattr(policy, "policies", None)
    if isinstance(policies, dict) and policies:
        first = next(iter(policies))
        raise TypeError(
            f"{type(policy).__name__} is a whole team, and agents are exported one by one: pass "
            f"`.policies[{first!r}]`; it has {', '.join(map(repr, policies))}."
        )
    raise TypeError(
        f"Cannot export a {type(policy).__name__}; pass the policy of one agent, "
        "`model.policies[agent]` or AgentPolicy.load(path)."
    )


def _check_weights(policy: ActorNetwork) -> None:
    for name, parameter in policy.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise ExportError(
                f"The policy's parameter {name} holds NaN or infinite numbers; export a model that "
                "was saved before its training diverged."
            )


def _make(
    policy: ActorNetwork,
    format: str,
    name: str,
    normalizer: Any,
    agent: str | None,
    units: Units | None,
    tolerance: float,
    seed: int,
) -> _Exported:
    """Content of a file that has passed the check."""
    normalization = find_normalization(policy, normalizer, agent)
    statistics = {} if normalization is None else normalization.parts
    network = ExportedPolicy(policy, statistics)
    network.eval()
    signature = network.signature
    owner = agent if agent is not None else policy.agent_name
    card = make_card(policy, signature, normalization, owner, units)
    reference = Reference(policy, signature, normalization)
    inputs = draw_inputs(policy, signature, statistics, N_OBSERVATIONS, seed)
    program = trace(network, inputs)
    metadata = {METADATA_KEY: json.dumps(card, allow_nan=False)}
    if format == "onnx":
        content = onnx_bytes(program, signature, metadata)
        run, runtime = onnx_run(content), "onnxruntime"
        model = _onnx_versions(content)
    else:
        content = torch_bytes(program, metadata)
        run, runtime = torch_run(content, signature), "torch"
        model = {}
    result = check_export(run, reference, inputs, tolerance, name)
    card |= model | {"check": check_entry(result, runtime)}
    return _Exported(content, card, result, inputs, reference(inputs))


def _onnx_versions(content: bytes) -> dict[str, int]:
    """Versions that a runtime must support."""
    onnx: Any = importlib.import_module("onnx")
    model = onnx.load_model_from_string(content)
    return {"opset": model.opset_import[0].version, "ir_version": model.ir_version}


# ---------------------------------------------------------------- folder


def _check_folder(target: pathlib.Path) -> None:
    """
    :param target: Path of a folder to write
    :raises ValueError: If something else than an earlier export is there
    """
    if not target.exists():
        return
    if not target.is_dir():
        raise FileExistsError(f"{target} is a file, not a folder; choose another path.")
    others = sorted(entry.name for entry in target.iterdir() if entry.name not in _OWN_NAMES)
    if others:
        raise FileExistsError(
            f"The folder {target} holds other files ({', '.join(others[:5])}), and an export "
            "replaces the folder; choose another path."
        )


def _write_folder(target: pathlib.Path, exported: _Exported) -> None:
    """Write all files into a folder beside the target, and put it in the target's place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = pathlib.Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        contents = {
            POLICY_FILE: exported.content,
            RUN_FILE: resources.files(__package__).joinpath("robot.py").read_bytes(),
            EXAMPLES_FILE: _examples(exported),
        }
        checksums = {name: hashlib.sha256(own).hexdigest() for name, own in contents.items()}
        card = exported.card | {"sha256": checksums}
        text = json.dumps(card, indent=2, allow_nan=False) + "\n"
        contents[CARD_FILE] = text.encode()
        folder = beside / target.name
        folder.mkdir(parents=True)
        for name, content in contents.items():
            write_or_fail(os.fspath(folder / name), content)
        if target.exists():
            # A folder with content cannot be replaced by a rename
            target.rename(beside / "before")
        folder.rename(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _examples(exported: _Exported) -> bytes:
    """Content of a NumPy archive with some inputs and the policy's outputs for them."""
    infos = {entry["name"]: entry["batch_axis"] for entry in exported.card["inputs"]}
    infos |= {entry["name"]: entry["batch_axis"] for entry in exported.card["outputs"]}
    examples = {}
    for name, array in (exported.inputs | exported.outputs).items():
        examples[name] = np.take(array, range(_N_EXAMPLES), axis=infos[name])
    file = io.BytesIO()
    np.savez_compressed(file, **cast(Any, examples))
    return file.getvalue()
