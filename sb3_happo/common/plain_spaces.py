"""Gymnasium spaces as plain data."""

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_happo.envs.encodings import EncodedBox, EncodedDiscrete, EncodedMultiDiscrete

#: Numbers of all Boxes of one file. A uniform bound is one number in the file, and an array of the
#: Box's shape afterwards
MAX_NUMBERS = 2**25

#: Encoding or decoding of a value inside a space: ``(value, name)``
Convert = Callable[[Any, str], Any]


def space_to_plain(space: spaces.Space, convert: Convert) -> dict[str, Any] | None:
    """
    :param space: Gymnasium space
    :param convert: Encoding of the values inside it
    :return: Plain data; None for spaces of other classes
    """
    content = _content(space, convert)
    if content is None:
        return None
    generator = space._np_random
    if generator is not None:
        # Exploration samples from the action space, so that its generator belongs to the state
        content["generator"] = convert(generator, "generator")
    return {"type": type(space).__name__, **content}


def _content(space: Any, convert: Convert) -> dict[str, Any] | None:
    cls = type(space)
    if cls in (EncodedBox, EncodedDiscrete, EncodedMultiDiscrete):
        return {"own_space": convert(space.own_space, "own_space")}
    if cls is spaces.Dict:
        # Pairs, so that the order stays
        return {"spaces": [[key, convert(own, key)] for key, own in space.spaces.items()]}
    if cls is spaces.Tuple:
        return {"spaces": [convert(own, str(index)) for index, own in enumerate(space.spaces)]}
    return _content_of_leaf(space, convert)


def _content_of_leaf(space: Any, convert: Convert) -> dict[str, Any] | None:
    cls, dtype = type(space), str(space.dtype)
    if cls is spaces.Box:
        low, high = convert(_bound(space.low), "low"), convert(_bound(space.high), "high")
        return {"low": low, "high": high, "shape": list(space.shape), "dtype": dtype}
    if cls is spaces.Discrete:
        return {"n": int(space.n), "start": int(space.start), "dtype": dtype}
    if cls is spaces.MultiBinary:
        return {"n": space.n if isinstance(space.n, int) else [int(size) for size in space.n]}
    if cls is spaces.MultiDiscrete:
        return {"nvec": space.nvec.tolist(), "start": space.start.tolist(), "dtype": dtype}
    return None


def _bound(bound: np.ndarray) -> Any:
    """Bound of a Box: one number if it is uniform."""
    if bound.size and (bound == bound.flat[0]).all():
        return bound.flat[0].item()
    return bound


class SpaceDecoder:
    """
    Spaces from plain data.

    :param convert: Decoding of the values inside a space
    """

    def __init__(self, convert: Convert) -> None:
        self._convert = convert
        self._n_numbers = 0

    def __call__(self, plain: dict[str, Any]) -> spaces.Space:
        """
        :param plain: Plain data of a space
        :return: Space
        :raises ValueError: If it is no space, or a huge one
        """
        makers: dict[str, Callable[[dict[str, Any]], spaces.Space]] = {
            "Box": self._box,
            "Discrete": self._discrete,
            "MultiBinary": self._multi_binary,
            "MultiDiscrete": self._multi_discrete,
            "Dict": self._dict,
            "Tuple": self._tuple,
            "EncodedBox": lambda own: EncodedBox(self._own(own, spaces.Space)),
            "EncodedDiscrete": lambda own: EncodedDiscrete(self._own(own, spaces.Discrete)),
            "EncodedMultiDiscrete": lambda own: EncodedMultiDiscrete(
                self._own(own, spaces.MultiDiscrete)
            ),
        }
        name = plain["type"]
        if name not in makers:
            raise ValueError(f"unknown space {name!r}")
        space = makers[name](plain)
        if "generator" in plain:
            generator = self._convert(plain["generator"], "generator")
            if not isinstance(generator, np.random.Generator):
                raise ValueError("the generator of a space is none")
            space._np_random = generator
        return space

    def _count(self, shape: Any) -> tuple[int, ...]:
        """Shape, if the numbers of all spaces stay within the limit."""
        sizes = tuple(int(size) for size in shape)
        number = 1
        for size in sizes:
            number *= size
        self._n_numbers += abs(number)
        if min(sizes, default=0) < 0 or self._n_numbers > MAX_NUMBERS:
            raise ValueError(f"a space of shape {sizes} is too large")
        return sizes

    def _box(self, plain: dict[str, Any]) -> spaces.Box:
        shape, dtype = self._count(plain["shape"]), np.dtype(plain["dtype"])
        bounds = []
        for name in ("low", "high"):
            bound = self._convert(plain[name], name)
            bounds.append(np.broadcast_to(np.asarray(bound, dtype), shape))
        return spaces.Box(bounds[0].copy(), bounds[1].copy(), shape, dtype.type)

    def _discrete(self, plain: dict[str, Any]) -> spaces.Discrete:
        n, start, dtype = int(plain["n"]), int(plain["start"]), np.dtype(plain["dtype"]).type
        if dtype is np.int64:
            # The argument `dtype` is younger than Gymnasium 1.0
            return spaces.Discrete(n, start=start)
        return spaces.Discrete(n, start=start, dtype=dtype)

    def _multi_binary(self, plain: dict[str, Any]) -> spaces.MultiBinary:
        n = plain["n"]
        sizes = self._count([n] if isinstance(n, int) else n)
        return spaces.MultiBinary(sizes[0] if isinstance(n, int) else sizes)

    def _multi_discrete(self, plain: dict[str, Any]) -> spaces.MultiDiscrete:
        dtype = np.dtype(plain["dtype"]).type
        nvec, start = (np.array(plain[name], dtype) for name in ("nvec", "start"))
        return spaces.MultiDiscrete(nvec, dtype=dtype, start=start)

    def _dict(self, plain: dict[str, Any]) -> spaces.Dict:
        pairs: list[tuple[Any, spaces.Space]] = []
        for key, own in plain["spaces"]:
            if not isinstance(key, (str, int)):
                raise ValueError(f"{key!r} is no key of a Dict space")
            pairs.append((key, self._part(own, str(key))))
        return spaces.Dict(pairs)

    def _tuple(self, plain: dict[str, Any]) -> spaces.Tuple:
        parts = enumerate(plain["spaces"])
        return spaces.Tuple([self._part(own, str(index)) for index, own in parts])

    def _part(self, plain: Any, name: str, cls: type = spaces.Space) -> Any:
        space = self._convert(plain, name)
        if not isinstance(space, cls):
            raise ValueError(f"{name} is no {cls.__name__}")
        return space

    def _own(self, plain: dict[str, Any], cls: type) -> Any:
        return self._part(plain["own_space"], "own_space", cls)
