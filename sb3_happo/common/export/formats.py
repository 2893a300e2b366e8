"""Files of an exported policy: ONNX and PyTorch's ``torch.export``."""

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch as th

from sb3_happo.common.export.check import Arrays, ExportError, Run
from sb3_happo.common.export.network import ExportedPolicy
from sb3_happo.common.export.signature import Signature
from sb3_happo.common.networks import NetworkOptions

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
#: Entry of an ONNX file's metadata that holds the card
METADATA_KEY = "sb3_happo"


def require_onnx() -> None:
    """
    :raises ImportError: If a package that writes or runs ONNX files is missing
    """
    missing = []
    for package in ONNX_PACKAGES:
        try:
            importlib.import_module(package)
        except ImportError:
            missing.append(package)
    if missing:
        raise ImportError(
            f"An ONNX file needs {', '.join(missing)}, which cannot be imported: "
            "pip install 'sb3_happo[export]'. format=\"torch\" needs PyTorch alone."
        )


# ---------------------------------------------------------------- tracing


def trace(network: ExportedPolicy, inputs: Arrays) -> th.export.ExportedProgram:
    """
    :param network: Module to export
    :param inputs: Inputs by name, of which two rows are taken
    :return: Graph of the module, for batches of any size
    :raises ExportError: If PyTorch cannot trace the module
    """
    batch = th.export.Dim("batch", min=1)
    shapes, examples = [], []
    for info in network.signature.inputs:
        shapes.append({info.batch_axis: batch})
        example = np.take(inputs[info.name], [0, 1], axis=info.batch_axis)
        examples.append(th.as_tensor(example))
    # The copy's recurrent layers hold tensors of the tracing afterwards
    try:
        with _quiet(), th.no_grad():
            return th.export.export(
                network, tuple(examples), dynamic_shapes={"inputs": tuple(shapes)}
            )
    except Exception as error:  # PyTorch raises many kinds
        raise ExportError(_no_trace(network, error)) from error


def _no_trace(network: ExportedPolicy, error: Exception) -> str:
    first = str(error).strip().split("\n")[0]
    policy = network.policy
    options: NetworkOptions = policy.options
    own = [type(policy.features_extractor), options.activation_fn]
    names = [f"{cls.__module__}.{cls.__qualname__}" for cls in own]
    return (
        f"The policy cannot be exported: torch.export failed with {type(error).__name__}: {first}. "
        f"Its features extractor is {names[0]}, its activation {names[1]}; a module of your own "
        "must be written with PyTorch operations whose course does not depend on the values of "
        "tensors (no `if tensor`, no NumPy, `x.shape[0]` instead of `len(x)`)."
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress advice of PyTorch's exporters about PyTorch's own modules."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


# ---------------------------------------------------------------- ONNX


def onnx_bytes(
    program: th.export.ExportedProgram, signature: Signature, metadata: Mapping[str, str]
) -> bytes:
    """
    :param program: Graph of the module
    :param signature: Inputs and outputs
    :param metadata: Entries of the file's metadata
    :return: Content of the ONNX file
    :raises ExportError: If the graph has an operation that ONNX lacks
    """
    onnx: Any = importlib.import_module("onnx")
    try:
        with _quiet():
            made = th.onnx.export(
                program,
                (),
                input_names=[info.name for info in signature.inputs],
                output_names=[info.name for info in signature.outputs],
                dynamo=True,
                verbose=False,
            )
            assert made is not None
            model = made.model_proto
    except Exception as error:  # PyTorch raises many kinds
        first = str(error).strip().split("\n")[0]
        raise ExportError(
            f"The policy has no ONNX form: torch.onnx.export failed with {type(error).__name__}: "
            f'{first}. Export it with format="torch", or replace the module that ONNX lacks.'
        ) from error
    _name_batch(model.graph, signature)
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _name_batch(graph: Any, signature: Signature) -> None:
    """Name the batch axis "batch", and drop the notes of the tracing."""
    axes = {info.name: info.batch_axis for info in (*signature.inputs, *signature.outputs)}
    symbol = ""
    for value in (*graph.input, *graph.output):
        symbol = value.type.tensor_type.shape.dim[axes[value.name]].dim_param or symbol
    for value in (*graph.input, *graph.output, *graph.value_info):
        del value.metadata_props[:]
        for dim in value.type.tensor_type.shape.dim:
            if symbol and dim.dim_param == symbol:
                dim.dim_param = "batch"
    for node in graph.node:
        del node.metadata_props[:]


def onnx_run(content: bytes) -> Run:
    """
    :param content: Content of an ONNX file
    :return: Function that runs it in ONNX Runtime on the CPU
    """
    onnxruntime: Any = importlib.import_module("onnxruntime")
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Arrays) -> Arrays:
        return dict(zip(names, session.run(names, inputs), strict=True))

    return run


# ---------------------------------------------------------------- torch.export


def torch_bytes(program: th.export.ExportedProgram, metadata: Mapping[str, str]) -> bytes:
    """
    :param program: Graph of the module
    :param metadata: Further files inside the archive, by name
    :return: Content of the ``.pt2`` file
    """
    file = io.BytesIO()
    with _quiet():
        th.export.save(program, file, extra_files=dict(metadata))
    return file.getvalue()


def torch_run(content: bytes, signature: Signature) -> Run:
    """
    :param content: Content of a ``.pt2`` file
    :param signature: Inputs and outputs
    :return: Function that runs it
    """
    with _quiet():
        module = th.export.load(io.BytesIO(content)).module()

    def run(inputs: Arrays) -> Arrays:
        tensors = [th.as_tensor(inputs[info.name]) for info in signature.inputs]
        with th.no_grad():
            outputs = module(*tensors)
        pairs = zip(signature.outputs, outputs, strict=True)
        return {info.name: output.numpy() for info, output in pairs}

    return run


# ---------------------------------------------------------------- writing
