"""Files of monitors and logs, which must not end a training when the disk is full."""

import functools
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from stable_baselines3.common.monitor import ResultsWriter
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

# Mark of an object whose methods are patient, an attribute of the object
_PATIENT = "_sb3_happo_patient"


def make_patient(
    owner: Any, methods: tuple[str, ...], name: str, after_failure: Callable[[], Any] | None = None
) -> None:
    """
    Let methods of an object warn instead of raising an ``OSError``. The next call tries again:
    Python's files keep up to 8 kB that could not be written.

    :param owner: Object, such as a writer
    :param methods: Names of its methods, which return None
    :param name: Name of the file, for the warning, which is given once
    :param after_failure: Function that is called after a failure, before the next attempt
    """
    if vars(owner).get(_PATIENT):
        return
    setattr(owner, _PATIENT, True)
    for method in methods:
        call = getattr(owner, method)
        patient = _patient(call, name, after_failure)
        setattr(owner, method, types.MethodType(patient, owner))


def _patient(
    method: Callable[..., Any], name: str, after_failure: Callable[[], Any] | None
) -> Callable[..., None]:
    """Method that warns once, and tries again at the next call."""
    warned = False

    @functools.wraps(method)
    def call(_: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal warned
        try:
            method(*args, **kwargs)
        except OSError as error:
            if not warned:
                warned = True
                _warn(
                    f"{name} cannot be written: {error}. The training goes on, and writing is "
                    "tried again; make room on the disk."
                )
            if after_failure is not None:
                after_failure()

    return call


def _warn(text: str) -> None:
    """Warn; where warnings are errors, print, since the training is to go on."""
    try:
        warnings.warn(text, stacklevel=4)
    except Warning:
        with suppress(OSError):
            print(f"sb3_happo: {text}", file=sys.stderr, flush=True)


def keep_monitoring(env: VecEnv) -> None:
    """
    Let the files of ``Monitor`` and ``VecMonitor`` end no training. Those in worker processes of
    SB3's ``SubprocVecEnv`` are out of reach; the workers of this package do it themselves.

    :param env: Vectorised environment
    """
    for owner in _owners(env):
        writer = vars(owner).get("results_writer") if hasattr(owner, "__dict__") else None
        if isinstance(writer, ResultsWriter):
            name = str(getattr(writer.file_handler, "name", "The file of the monitor"))
            make_patient(writer, ("write_row", "close"), name)


def _owners(env: Any) -> Iterator[Any]:
    """The wrappers of a vectorised environment, and those of the environments in it."""
    while isinstance(env, VecEnvWrapper):
        yield env
        env = env.venv
    for single in getattr(env, "envs", ()):
        seen: set[int] = set()
        while single is not None and id(single) not in seen:
            seen.add(id(single))
            yield single
            single = getattr(single, "env", None)
