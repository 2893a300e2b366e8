"""
Values of settings that are texts of Python expressions, such as ``"dict(net_arch=[64, 64])"``. They
are read with Python's parser and evaluated by a list of what they may contain; nothing else is run.
"""

import ast
import math
import operator
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common import torch_layers
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.utils import ConstantSchedule, LinearSchedule
from torch import nn
from torch.nn.modules import activation
from torch.optim.optimizer import Optimizer

#: Largest text, number of digits of a power and length of a repeated list
MAX_TEXT = 10_000
_MAX_POWER = 1024.0
#: Largest array of ``np.zeros`` and the like
_MAX_ARRAY = 10_000


def _subclasses_in(module: Any, base: type) -> dict[str, type]:
    found = {}
    for name, value in vars(module).items():
        if isinstance(value, type) and issubclass(value, base) and not name.startswith("_"):
            found[name] = value
    return found


def _names() -> dict[str, Any]:
    """Names that expressions may use, dotted ones too."""
    names: dict[str, Any] = {"np.inf": np.inf, "np.pi": np.pi, "math.inf": np.inf}
    names |= {"math.pi": math.pi, "np.float32": np.float32, "np.float64": np.float64}
    for name, cls in _subclasses_in(activation, nn.Module).items():
        if cls.__module__ == activation.__name__:
            names |= {f"{prefix}.{name}": cls for prefix in ("nn", "th.nn", "torch.nn")}
    for name, cls in _subclasses_in(th.optim, Optimizer).items():
        names |= {f"{prefix}.{name}": cls for prefix in ("th.optim", "torch.optim", "optim")}
    names |= {"nn.Identity": nn.Identity}
    return names | _subclasses_in(torch_layers, torch_layers.BaseFeaturesExtractor)


def _array(value: Any) -> np.ndarray:
    return np.asarray(value, dtype=np.float32)


def _full(size: Any, value: Any) -> np.ndarray:
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= _MAX_ARRAY:
        raise ValueError(f"an array must have 0 to {_MAX_ARRAY} numbers, not {size!r}")
    return np.full(size, value, dtype=np.float32)


def _normal_noise(mean: Any, sigma: Any) -> NormalActionNoise:
    return NormalActionNoise(_array(mean), _array(sigma))


def _ornstein_uhlenbeck_noise(mean: Any, sigma: Any, **kwargs: Any) -> OrnsteinUhlenbeckActionNoise:
    return OrnsteinUhlenbeckActionNoise(_array(mean), _array(sigma), **kwargs)


_NAMES = _names()
#: Functions and classes that expressions may call
_CALLS: dict[str, Callable[..., Any]] = {
    "dict": dict,
    "list": list,
    "tuple": tuple,
    "set": set,
    "float": float,
    "int": int,
    "bool": bool,
    "partial": partial,
    "LinearSchedule": LinearSchedule,
    "ConstantSchedule": ConstantSchedule,
    "NormalActionNoise": _normal_noise,
    "OrnsteinUhlenbeckActionNoise": _ornstein_uhlenbeck_noise,
    "np.zeros": lambda size: _full(size, 0.0),
    "np.ones": lambda size: _full(size, 1.0),
    "np.full": _full,
    "np.array": _array,
}
_UNARY: dict[type, Callable[[Any], Any]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
    ast.Not: operator.not_,
    ast.Invert: operator.invert,
}


def _power(base: float, exponent: float) -> Any:
    if abs(base) > _MAX_POWER or abs(exponent) > _MAX_POWER:
        raise ValueError(f"{base} ** {exponent} is too large")
    return base**exponent


_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}


def evaluate_safely(text: str) -> Any:
    """
    :param text: Python expression of numbers, texts, lists, tuples, sets, dicts, arithmetic on
        numbers, the activations of ``nn``, the optimisers of ``th.optim``, SB3's features
        extractors, arrays by ``np.zeros``, ``np.ones``, ``np.full`` and ``np.array``, and calls of
        ``dict``, ``list``, ``tuple``, ``set``, ``float``, ``int``, ``bool``, ``partial``,
        ``LinearSchedule``, ``ConstantSchedule``, ``NormalActionNoise`` and
        ``OrnsteinUhlenbeckActionNoise``
    :return: Value of the expression
    :raises ValueError: If it contains something else
    """
    if len(text) > MAX_TEXT:
        raise ValueError(f"it has {len(text)} characters, more than {MAX_TEXT}")
    try:
        return _value(ast.parse(text.strip(), mode="eval").body)
    except ValueError:
        raise
    except (SyntaxError, TypeError, ArithmeticError, RecursionError, MemoryError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _value(node: ast.AST) -> Any:
    for kind, read in _READERS.items():
        if isinstance(node, kind):
            return read(node)
    raise _refusal(node, type(node).__name__.lower())


def _refusal(node: ast.AST, what: str) -> ValueError:
    known = ", ".join([*_CALLS, "nn.ReLU", "th.optim.Adam"])
    return ValueError(
        f"settings are not run as code, and {ast.unparse(node)[:60]!r} ({what}) is none of what "
        f"they may contain: numbers, texts, lists, dicts, and {known} and the like"
    )


def _unknown(name: str) -> ValueError:
    known = ", ".join([*_CALLS, "nn.ReLU", "th.optim.Adam"])
    return ValueError(f"NameError: name {name!r} is not defined; there are {known} and the like")


def _dotted(node: ast.AST) -> str:
    """Dotted name, empty for another expression."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        start = _dotted(node.value)
        return f"{start}.{node.attr}" if start else ""
    return ""


def _name(node: Any) -> Any:
    name = _dotted(node)
    if name in _NAMES:
        return _NAMES[name]
    if name in _CALLS:
        return _CALLS[name]
    if isinstance(node, ast.Name):
        raise _unknown(name)
    raise _refusal(node, "an unknown name")


def _call(node: ast.Call) -> Any:
    function = _CALLS.get(_dotted(node.func))
    if function is None:
        if isinstance(node.func, ast.Name):
            raise _unknown(node.func.id)
        raise _refusal(node, "a call")
    args = []
    for argument in node.args:
        if isinstance(argument, ast.Starred):
            args += list(_value(argument.value))
        else:
            args.append(_value(argument))
    kwargs: dict[str, Any] = {}
    for keyword in node.keywords:
        value = _value(keyword.value)
        if keyword.arg is not None:
            kwargs[keyword.arg] = value
        elif isinstance(value, Mapping):
            kwargs |= value
        else:
            raise _refusal(node, "** of something else than a dict")
    return function(*args, **kwargs)


def _binary(node: ast.BinOp) -> Any:
    left, right = _value(node.left), _value(node.right)
    numbers = (int, float) if isinstance(node.op, ast.Pow) else (int, float, np.ndarray)
    if not isinstance(left, numbers) or not isinstance(right, numbers):
        raise _refusal(node, "arithmetic on something else than numbers")
    if type(node.op) not in _BINARY:
        raise _refusal(node, "an operation")
    return _BINARY[type(node.op)](left, right)


def _unary(node: ast.UnaryOp) -> Any:
    value = _value(node.operand)
    if not isinstance(value, (int, float)):
        raise _refusal(node, "an operation on something else than a number")
    return _UNARY[type(node.op)](value)


def _dict(node: ast.Dict) -> Any:
    own: dict[Any, Any] = {}
    for key, value in zip(node.keys, node.values, strict=True):
        if key is None:
            own |= _value(value)
        else:
            own[_value(key)] = _value(value)
    return own


def _items(node: Any) -> list[Any]:
    return [_value(own) for own in node.elts]


_READERS: dict[type[ast.AST], Callable[[Any], Any]] = {
    ast.Constant: lambda node: node.value,
    ast.List: _items,
    ast.Tuple: lambda node: tuple(_items(node)),
    ast.Set: lambda node: set(_items(node)),
    ast.Dict: _dict,
    ast.Name: _name,
    ast.Attribute: _name,
    ast.Call: _call,
    ast.BinOp: _binary,
    ast.UnaryOp: _unary,
}
