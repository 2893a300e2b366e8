"""
Python values as plain data: JSON and named tensors, which are read without running anything.

``None``, booleans, whole numbers, finite floats, strings, lists and dicts with strings as keys are
JSON as they are. Everything else is an object with the key "$", which names its kind::

    {"$": "tuple", "items": [1, 2]}
    {"$": "class", "name": "torch.nn.modules.activation:ReLU"}
    {"$": "object", "class": "stable_baselines3.common.utils:LinearSchedule",
     "state": {"start": 0.001, "end": 0.0, "end_fraction": 1.0}}

What cannot be plain data, such as a lambda, becomes ``{"$": "unsaved", "text": ...}`` where the
caller collects such values, and is an error otherwise.
"""

import base64
import inspect
import math
import pathlib
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_happo.common.plain_classes import (
    find_object,
    has_plain_state,
    is_importable,
    is_known,
    object_name,
)
from sb3_happo.common.plain_spaces import SpaceDecoder, space_to_plain

#: Key of the objects that are not JSON as they are
KIND = "$"
#: Levels of nesting
MAX_DEPTH = 100

_BIT_GENERATORS = ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")


class Unsaved(NamedTuple):
    """
    Value that is not in the file.

    :param path: Place of the value, such as "policy_kwargs.features_extractor_class"
    :param text: Description of the value, such as "the function <lambda>"
    :param named: True if the file names the class or function, so that ``custom_objects`` or
        ``allow_in_files`` supplies it; False if the file holds the description alone
    """

    path: str
    text: str
    named: bool


class PlainDataError(ValueError):
    """
    Value that cannot be plain data, or data that is no value.

    :param path: Place of the value
    :param problem: Problem with it
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}" if path else problem)
        self.path = path
        self.problem = problem


def to_plain(
    value: Any, path: str = "", unsaved: list[Unsaved] | None = None
) -> tuple[Any, dict[str, th.Tensor]]:
    """
    :param value: Value of the kinds that the module lists
    :param path: Name of the value, with which the names of its tensors begin
    :param unsaved: List to which values are added that cannot be plain data, or whose class a
        reader must supply; None makes those that cannot be plain data an error
    :return: JSON-able data, and tensors by name. They may share memory with those of the value
    :raises PlainDataError: If a value cannot be plain data, and ``unsaved`` is None
    """
    encoder = _Encoder(unsaved)
    return encoder.encode(value, path), encoder.tensors


def from_plain(
    plain: Any,
    tensors: Mapping[str, th.Tensor],
    path: str = "",
    custom_objects: Mapping[str, Any] | None = None,
) -> Any:
    """
    :param plain: JSON data that :func:`to_plain` has made
    :param tensors: Tensors by name. Those of the value share memory with them
    :param path: Name of the value, for errors
    :param custom_objects: Classes and functions by name, in addition to those that files may name
    :return: Value, with its tensors on the CPU
    :raises PlainDataError: If the data is not of this form, or names an unknown class
    """
    return _Decoder(tensors, custom_objects).decode(plain, path)


def _join(path: str, name: Any) -> str:
    return f"{path}.{name}" if path else str(name)


def _is_json(value: Any) -> bool:
    """Return True for None and numbers and strings that JSON holds as they are."""
    cls = type(value)
    return value is None or cls in (bool, int, str) or (cls is float and math.isfinite(value))


# ---------------------------------------------------------------- values to plain data


class _Encoder:
    """
    Encoding of one value.

    :param unsaved: List of the values that are left out; None for an error instead
    """

    def __init__(self, unsaved: list[Unsaved] | None) -> None:
        self.tensors: dict[str, th.Tensor] = {}
        self._unsaved = unsaved
        self._names: dict[tuple[Any, ...], str] = {}
        self._depth = 0
        # The first kind that fits counts
        self._encoders: tuple[tuple[Any, Callable[[Any, str], Any]], ...] = (
            # First, for some of NumPy's numbers are Python's, too
            (np.generic, self._scalar),
            (float, self._float),
            (complex, lambda value, path: _tag("complex", parts=repr(value))),
            (bytes, lambda value, path: _tag("bytes", base64=base64.b64encode(value).decode())),
            (tuple, self._tuple),
            (list, self._items),
            (deque, self._deque),
            ((set, frozenset), self._set),
            ((dict, MappingProxyType), self._dict),
            (np.ndarray, self._array),
            (th.Tensor, self._tensor),
            (th.dtype, lambda value, path: _tag("torch_dtype", name=str(value)[6:])),
            (th.device, lambda value, path: _tag("device", name=str(value))),
            (th.Generator, self._torch_generator),
            (np.dtype, self._dtype),
            (spaces.Space, self._space),
            (np.random.Generator, self._generator),
            (np.random.RandomState, self._random_state),
            (random.Random, self._python_random),
            (pathlib.PurePath, lambda value, path: _tag("path_of", name=str(value))),
            (slice, self._slice),
            (range, self._range),
            (Enum, self._enum),
            # Subclasses, such as those of another library's settings
            (int, lambda value, path: int(value)),
            (str, lambda value, path: str.__str__(value)),
        )

    def encode(self, value: Any, path: str) -> Any:
        """
        :param value: Value
        :param path: Place of it
        :return: JSON-able data
        """
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise PlainDataError(path, f"it is nested more than {MAX_DEPTH} deep")
        try:
            return self._encode(value, path)
        finally:
            self._depth -= 1

    def _encode(self, value: Any, path: str) -> Any:
        if _is_json(value):
            return value
        cls = type(value)
        if has_plain_state(cls):
            return self._object(value, path)
        for kind, encode in self._encoders:
            if isinstance(value, kind):
                return encode(value, path)
        if inspect.isclass(value) or inspect.isroutine(value):
            return self._reference(value, path)
        if is_dataclass(value) and is_known(cls):
            return self._dataclass(value, path)
        return self._leave_out(value, path, f"an object of the class {object_name(cls)}")

    def _leave_out(self, value: Any, path: str, text: str) -> dict[str, Any]:
        if self._unsaved is None:
            raise PlainDataError(
                path,
                f"{text} cannot be saved as plain data. Use a class of the module's level, and "
                "register it with sb3_happo.allow_in_files(...)",
            )
        self._unsaved.append(Unsaved(path, text, named=False))
        return _tag("unsaved", text=text)

    # ------------------------------------------------------------ Python

    def _items(self, values: Any, path: str) -> list[Any]:
        return [self.encode(value, _join(path, index)) for index, value in enumerate(values)]

    def _float(self, value: float, path: str) -> Any:
        number = float(value)
        return number if math.isfinite(number) else _tag("float", name=repr(number))

    def _tuple(self, value: tuple[Any, ...], path: str) -> Any:
        cls = type(value)
        if cls in (tuple, th.Size):
            return _tag("tuple", items=self._items(value, path))
        if not hasattr(value, "_fields") or not is_known(cls):
            return self._leave_out(value, path, f"an object of the class {object_name(cls)}")
        names = value._fields
        pairs = zip(names, value, strict=True)
        own = {name: self.encode(part, _join(path, name)) for name, part in pairs}
        return {KIND: "namedtuple", "class": object_name(cls), "fields": own}

    def _deque(self, value: deque[Any], path: str) -> Any:
        return _tag("deque", items=self._items(value, path), maxlen=value.maxlen)

    def _set(self, value: Any, path: str) -> Any:
        items = sorted(value, key=repr)
        return _tag("set", items=self._items(items, path), frozen=isinstance(value, frozenset))

    def _dict(self, value: Mapping[Any, Any], path: str) -> Any:
        own = {}
        pairs = []
        for key, part in value.items():
            encoded = self.encode(part, _join(path, key))
            own[key] = encoded
            pairs.append([key if type(key) is str else self.encode(key, path), encoded])
        strings = all(type(key) is str for key in own)
        if strings and KIND not in own and type(value) is not OrderedDict:
            return own
        return _tag("dict", items=pairs, ordered=isinstance(value, OrderedDict))

    def _slice(self, value: slice, path: str) -> Any:
        return _tag("slice", items=self._items((value.start, value.stop, value.step), path))

    def _range(self, value: range, path: str) -> Any:
        return _tag("range", items=[value.start, value.stop, value.step])

    def _enum(self, value: Enum, path: str) -> Any:
        if not is_known(type(value)):
            return self._leave_out(value, path, f"{value!r}")
        return {KIND: "enum", "class": object_name(type(value)), "name": value.name}

    def _reference(self, value: Any, path: str) -> Any:
        kind = "class" if inspect.isclass(value) else "function"
        is_named = hasattr(value, "__qualname__") and getattr(value, "__module__", None)
        if not is_named or hasattr(value, "__self__"):
            return self._leave_out(value, path, f"the {kind} {value!r}")
        name = object_name(value)
        if not is_known(value):
            if kind == "function" and not is_importable(value):
                return self._leave_out(value, path, f"the function {name}")
            if self._unsaved is not None:
                self._unsaved.append(Unsaved(path, f"the {kind} {name}", named=True))
        return _tag(kind, name=name)

    def _dataclass(self, value: Any, path: str) -> Any:
        own = {}
        for field in fields(value):
            own[field.name] = self.encode(getattr(value, field.name), _join(path, field.name))
        return {KIND: "dataclass", "class": object_name(type(value)), "fields": own}

    def _object(self, value: Any, path: str) -> Any:
        state = {}
        for name, part in vars(value).items():
            state[name] = self.encode(part, _join(path, name))
        return {KIND: "object", "class": object_name(type(value)), "state": state}

    # ------------------------------------------------------------ NumPy, PyTorch, Gymnasium

    def _scalar(self, value: np.generic, path: str) -> Any:
        if value.dtype.kind not in "biufcU" or value.dtype.itemsize > 16:
            return self._leave_out(value, path, f"a number of NumPy's type {value.dtype}")
        if value.dtype.kind == "f" and value.dtype.itemsize > 8:
            return self._leave_out(value, path, f"a number of NumPy's type {value.dtype}")
        number = self.encode(value.item(), path)
        return _tag("scalar", dtype=value.dtype.str, value=number)

    def _dtype(self, value: np.dtype, path: str) -> Any:
        if value.names or value.hasobject:
            return self._leave_out(value, path, f"the data type {value}")
        return _tag("dtype", name=value.str)

    def _array(self, value: np.ndarray, path: str) -> Any:
        dtype = value.dtype
        if dtype.names:
            own = [[name, self.encode(value[name], _join(path, name))] for name in dtype.names]
            return _tag("structured", shape=list(value.shape), fields=own)
        if dtype.kind == "U":
            return _tag("strings", shape=list(value.shape), items=value.ravel().tolist())
        native = np.ascontiguousarray(value, dtype.newbyteorder("="))
        if not value.shape:
            native = native.reshape(())
        if dtype.kind not in "biufc" or dtype.name in ("longdouble", "clongdouble", "float128"):
            return self._leave_out(value, path, f"an array of NumPy's type {dtype}")
        if not native.flags.writeable:
            native = native.copy()
        name = self._store(th.from_numpy(native), path)
        return _tag("array", name=name)

    def _tensor(self, value: th.Tensor, path: str) -> Any:
        if value.layout is not th.strided or value.is_quantized or value.is_meta:
            return self._leave_out(value, path, "a tensor that is not dense")
        tensor = value.detach().resolve_conj().resolve_neg()
        content = _tag("tensor", name=self._store(tensor, path))
        if value.requires_grad:
            content["requires_grad"] = True
        return content

    def _store(self, tensor: th.Tensor, path: str) -> str:
        """Name of a tensor; one that occurs several times, as shared weights do, has one name."""
        identity = (
            tensor.device,
            tensor.data_ptr(),
            tensor.shape,
            tensor.stride(),
            tensor.dtype,
        )
        if tensor.numel() and identity in self._names:
            return self._names[identity]
        name, number = path, 2
        while name in self.tensors:
            name, number = f"{path}#{number}", number + 1
        self.tensors[name] = tensor
        self._names[identity] = name
        return name

    def _space(self, value: spaces.Space, path: str) -> Any:
        content = space_to_plain(value, lambda part, name: self.encode(part, _join(path, name)))
        if content is None:
            return self._leave_out(value, path, f"the space {value}")
        return {KIND: "space", **content}

    def _generator(self, value: np.random.Generator, path: str) -> Any:
        return _tag("generator", state=self.encode(value.bit_generator.state, path))

    def _random_state(self, value: np.random.RandomState, path: str) -> Any:
        return _tag("random_state", state=self.encode(value.get_state(legacy=False), path))

    def _python_random(self, value: random.Random, path: str) -> Any:
        return _tag("python_random", state=self.encode(value.getstate(), path))

    def _torch_generator(self, value: th.Generator, path: str) -> Any:
        state = self.encode(value.get_state(), path)
        return _tag("torch_generator", device=str(value.device), state=state)


def _tag(kind: str, **content: Any) -> dict[str, Any]:
    return {KIND: kind, **content}


# ---------------------------------------------------------------- plain data to values


class _Decoder:
    """
    Decoding of one value.

    :param tensors: Tensors by name
    :param custom_objects: Classes and functions by name
    """

    def __init__(
        self, tensors: Mapping[str, th.Tensor], custom_objects: Mapping[str, Any] | None
    ) -> None:
        self._tensors = tensors
        self._custom_objects = custom_objects
        self._used: set[str] = set()
        self._path = ""
        self._depth = 0
        self._space_of = SpaceDecoder(self._inside)

    def decode(self, plain: Any, path: str) -> Any:
        """
        :param plain: JSON data
        :param path: Place of it
        :return: Value
        """
        before, self._path = self._path, path
        self._depth += 1
        try:
            if self._depth > MAX_DEPTH:
                raise PlainDataError(path, f"it is nested more than {MAX_DEPTH} deep")
            return self._decode(plain, path)
        except PlainDataError:
            raise
        except Exception as error:
            problem = f"it is no plain data ({type(error).__name__}: {error})"
            raise PlainDataError(path, problem) from error
        finally:
            self._depth -= 1
            self._path = before

    def _inside(self, plain: Any, name: Any) -> Any:
        return self.decode(plain, _join(self._path, name))

    def _decode(self, plain: Any, path: str) -> Any:
        if isinstance(plain, list):
            return self._items(plain)
        if not isinstance(plain, dict):
            return plain
        if KIND not in plain:
            return {key: self._inside(own, key) for key, own in plain.items()}
        kind = plain[KIND]
        decode = getattr(self, f"_{kind}", None) if kind in _KINDS else None
        if decode is None:
            raise PlainDataError(path, f"unknown kind of data {kind!r}")
        return decode(plain)

    def _items(self, plain: list[Any]) -> list[Any]:
        return [self._inside(own, index) for index, own in enumerate(plain)]

    def _find(self, name: Any, kind: Callable[[Any], bool], word: str) -> Any:
        found = find_object(str(name), self._custom_objects)
        if found is None:
            short = str(name).rpartition(":")[2].rpartition(".")[2]
            raise PlainDataError(
                self._path,
                f"the file names the {word} {str(name)!r}, which is none of those that files may "
                f"name. If you trust it, import it and pass custom_objects={{{short!r}: {short}}}, "
                f"or call sb3_happo.allow_in_files({short}) before loading",
            )
        if not kind(found):
            raise PlainDataError(self._path, f"{name!r} is no {word}")
        return found

    # ------------------------------------------------------------ Python

    def _unsaved(self, plain: dict[str, Any]) -> Any:
        own = self._path.rpartition(".")[2]
        raise PlainDataError(
            self._path,
            f"the file does not hold {plain['text']}. Pass it with custom_objects={{{own!r}: ...}}",
        )

    def _float(self, plain: dict[str, Any]) -> float:
        return float(plain["name"])

    def _complex(self, plain: dict[str, Any]) -> complex:
        return complex(plain["parts"])

    def _bytes(self, plain: dict[str, Any]) -> bytes:
        return base64.b64decode(plain["base64"], validate=True)

    def _tuple(self, plain: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(self._items(plain["items"]))

    def _deque(self, plain: dict[str, Any]) -> deque[Any]:
        return deque(self._items(plain["items"]), plain["maxlen"])

    def _set(self, plain: dict[str, Any]) -> Any:
        items = self._items(plain["items"])
        return frozenset(items) if plain["frozen"] else set(items)

    def _dict(self, plain: dict[str, Any]) -> Any:
        own: dict[Any, Any] = OrderedDict() if plain["ordered"] else {}
        for key, part in plain["items"]:
            decoded = self._inside(key, "key")
            own[decoded] = self._inside(part, decoded)
        return own

    def _slice(self, plain: dict[str, Any]) -> slice:
        return slice(*self._items(plain["items"]))

    def _range(self, plain: dict[str, Any]) -> range:
        return range(*map(int, plain["items"]))

    def _path_of(self, plain: dict[str, Any]) -> pathlib.Path:
        return pathlib.Path(plain["name"])

    def _enum(self, plain: dict[str, Any]) -> Any:
        cls = self._find(plain["class"], _is_class_of(Enum), "enumeration")
        return cls[plain["name"]]

    def _class(self, plain: dict[str, Any]) -> Any:
        return self._find(plain["name"], inspect.isclass, "class")

    def _function(self, plain: dict[str, Any]) -> Any:
        return self._find(plain["name"], callable, "function")

    def _namedtuple(self, plain: dict[str, Any]) -> Any:
        cls = self._find(plain["class"], _is_class_of(tuple), "class")
        return cls(**{name: self._inside(own, name) for name, own in plain["fields"].items()})

    def _dataclass(self, plain: dict[str, Any]) -> Any:
        cls = self._find(plain["class"], is_dataclass, "dataclass")
        return cls(**{name: self._inside(own, name) for name, own in plain["fields"].items()})

    def _object(self, plain: dict[str, Any]) -> Any:
        cls = self._find(plain["class"], inspect.isclass, "class")
        given = any(own is cls for own in (self._custom_objects or {}).values())
        if not has_plain_state(cls) and not given:
            raise PlainDataError(self._path, f"objects of {plain['class']!r} are not in files")
        state = {name: self._inside(own, name) for name, own in plain["state"].items()}
        value = cls.__new__(cls)
        vars(value).update(state)
        return value

    # ------------------------------------------------------------ NumPy, PyTorch, Gymnasium

    def _scalar(self, plain: dict[str, Any]) -> Any:
        dtype = np.dtype(plain["dtype"])
        if dtype.kind not in "biufcU":
            raise ValueError(f"no number is of the type {dtype}")
        return dtype.type(self._inside(plain["value"], "value"))

    def _dtype(self, plain: dict[str, Any]) -> np.dtype:
        return np.dtype(str(plain["name"]))

    def _tensor_of(self, plain: dict[str, Any]) -> th.Tensor:
        name = plain["name"]
        if name not in self._tensors:
            raise PlainDataError(self._path, f"the tensor {name!r} is missing")
        tensor = self._tensors[name]
        # Values of their own, even where the file holds the tensor once
        tensor = tensor.clone() if name in self._used else tensor
        self._used.add(name)
        return tensor

    def _array(self, plain: dict[str, Any]) -> np.ndarray:
        return self._tensor_of(plain).numpy()

    def _tensor(self, plain: dict[str, Any]) -> th.Tensor:
        tensor = self._tensor_of(plain)
        return tensor.requires_grad_() if plain.get("requires_grad") else tensor

    def _structured(self, plain: dict[str, Any]) -> np.ndarray:
        shape = tuple(plain["shape"])
        parts = {str(name): self._inside(own, name) for name, own in plain["fields"]}
        for name, part in parts.items():
            if not isinstance(part, np.ndarray) or part.shape[: len(shape)] != shape:
                raise ValueError(f"the field {name!r} is not of the shape {shape}")
        form = [(name, part.dtype, part.shape[len(shape) :]) for name, part in parts.items()]
        array = np.empty(shape, np.dtype(form))
        for name, part in parts.items():
            array[name] = part
        return array

    def _strings(self, plain: dict[str, Any]) -> np.ndarray:
        items = [str(item) for item in plain["items"]]
        return np.array(items, dtype=np.str_).reshape(plain["shape"])

    def _torch_dtype(self, plain: dict[str, Any]) -> th.dtype:
        dtype = getattr(th, plain["name"], None)
        if not isinstance(dtype, th.dtype):
            raise ValueError(f"{plain['name']!r} is no data type")
        return dtype

    def _device(self, plain: dict[str, Any]) -> th.device:
        return th.device(plain["name"])

    def _space(self, plain: dict[str, Any]) -> spaces.Space:
        return self._space_of(plain)

    def _generator(self, plain: dict[str, Any]) -> np.random.Generator:
        state = self._inside(plain["state"], "state")
        name = state["bit_generator"]
        if name not in _BIT_GENERATORS:
            raise ValueError(f"unknown generator {name!r}")
        bit_generator = getattr(np.random, name)()
        bit_generator.state = state
        return np.random.Generator(bit_generator)

    def _random_state(self, plain: dict[str, Any]) -> np.random.RandomState:
        generator = np.random.RandomState()
        generator.set_state(self._inside(plain["state"], "state"))
        return generator

    def _python_random(self, plain: dict[str, Any]) -> random.Random:
        generator = random.Random()
        generator.setstate(self._inside(plain["state"], "state"))
        return generator

    def _torch_generator(self, plain: dict[str, Any]) -> th.Generator:
        generator = th.Generator(plain["device"])
        generator.set_state(self._inside(plain["state"], "state"))
        return generator


#: Kinds of data, each decoded by the method of :class:`_Decoder` with its name
_KINDS = frozenset(
    (
        *("unsaved", "float", "complex", "bytes", "tuple", "deque", "set", "dict", "slice"),
        *("range", "path_of", "enum", "class", "function", "namedtuple", "dataclass", "object"),
        *("scalar", "dtype", "array", "tensor", "structured", "strings", "torch_dtype", "device"),
        *("space", "generator", "random_state", "python_random", "torch_generator"),
    )
)


def _is_class_of(base: type) -> Callable[[Any], bool]:
    return lambda value: inspect.isclass(value) and issubclass(value, base)
