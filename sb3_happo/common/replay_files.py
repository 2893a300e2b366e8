"""
Files of replay buffers, which are pickles as in SB3. Reading one creates nothing but arrays, spaces
and replay buffers of this package, so that a file from elsewhere cannot run code.
"""

import io
import pathlib
import pickle
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.save_util import load_from_pkl, open_path

from sb3_happo.common.replay_buffer import JointReplayBuffer
from sb3_happo.common.replay_entries import EntryArray

_CORE = ("numpy._core", "numpy.core")
_SPACES = "gymnasium.spaces"
# Functions and classes by their modules: NumPy's for arrays, numbers and generators, and others
_KNOWN: dict[str, set[str]] = {
    "numpy": {"ndarray", "dtype"},
    "numpy.random._pickle": {"__generator_ctor", "__bit_generator_ctor"},
    "numpy.random._generator": {"Generator"},
    "numpy.random._pcg64": {"PCG64"},
    "numpy.random.bit_generator": {"SeedSequence", "__pyx_unpickle_SeedSequence"},
    "collections": {"OrderedDict"},
    "builtins": {"slice", "set", "frozenset", "bytearray"},
    "torch": {"device"},
    JointReplayBuffer.__module__: {JointReplayBuffer.__name__},
    EntryArray.__module__: {EntryArray.__name__},
}
for _core in _CORE:
    _KNOWN[f"{_core}.multiarray"] = {"_reconstruct", "scalar"}
    _KNOWN[f"{_core}.numeric"] = {"_frombuffer"}


class _BufferUnpickler(pickle.Unpickler):
    """Unpickler that knows what a replay buffer of this package consists of."""

    def find_class(self, module: str, name: str) -> Any:
        """
        :param module: Name of a module
        :param name: Name of a class or function in it
        :return: The class or function
        :raises pickle.UnpicklingError: If replay buffers contain no such object
        """
        if _is_known(module, name):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name}")


def _is_known(module: str, name: str) -> bool:
    if module == _SPACES or module.startswith(f"{_SPACES}."):
        own = vars(spaces).get(name)
        return isinstance(own, type) and issubclass(own, spaces.Space)
    if module == "numpy.dtypes":
        return isinstance(vars(np.dtypes).get(name), type)
    return name in _KNOWN.get(module, ())


def read_replay_buffer(
    path: str | pathlib.Path | io.BufferedIOBase, verbose: int = 0, trust_pickle: bool = False
) -> Any:
    """
    :param path: Path of a file that ``save_replay_buffer`` has written, or an open file
    :param verbose: Verbosity level
    :param trust_pickle: Whether the file may run any code
    :return: Content of the file
    :raises ValueError: If it holds something else than a replay buffer of this package
    """
    if trust_pickle:
        return load_from_pkl(path, verbose)
    file = open_path(path, "r", verbose=verbose, suffix="pkl")
    try:
        return _BufferUnpickler(file).load()
    except (pickle.UnpicklingError, EOFError, AttributeError) as error:
        raise ValueError(
            f"{path} is no replay buffer of a team (JointReplayBuffer) that is read without "
            f"running code: it holds {error}. If you trust the file, as with a buffer class of "
            "your own, pass trust_pickle=True (--trust-pickle in the zoo)."
        ) from error
    finally:
        if isinstance(path, (str, pathlib.Path)):
            file.close()
