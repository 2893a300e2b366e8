"""
Episodes at a checkpoint: seeds of new ones, states of those that are kept, and steps that are
repeated.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.vec_env import (
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)

from sb3_happo.common.plain_state import ChangingState, NotPlainError, plain_copy
from sb3_happo.vec_env.env_states import offers_state
from sb3_happo.vec_env.joint_dummy_vec_env import JointDummyVecEnv
from sb3_happo.vec_env.joint_subproc_vec_env import JointSubprocVecEnv

# Those that reach the states of the environments in them
_TEAM_VEC_ENVS = (JointDummyVecEnv, JointSubprocVecEnv)
# Wrappers whose state is their plain attributes
_PLAIN_WRAPPERS = (VecNormalize, VecMonitor, VecTransposeImage, VecCheckNan)
# Attributes of wrappers that belong to the environment inside or to the class
_NOT_STATE = ("venv", "class_attributes", "reset_infos", "_seeds", "_options", "metadata")
_LARGEST_SEED = 2**31 - 1


def drawn_seed(seed: int, *numbers: int) -> int:
    """
    :param seed: Seed of the training
    :param numbers: Numbers of the occasion, >= 0, such as the timesteps at a checkpoint
    :return: Seed drawn from them, >= 0. Consecutive seeds of a few thousand environments fit into
        31 bits
    """
    entropy = [seed % 2**64, *numbers]
    drawn = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])
    return drawn % (_LARGEST_SEED - 2**20)


def seeded_reset(env: VecEnv, seed: int) -> Any:
    """
    Begin new episodes that depend on a seed alone.

    :param env: Vectorised environment
    :param seed: Seed of the first environment, counted up for the others
    :return: First observations
    """
    env.seed(seed)
    return env.reset()


# ---------------------------------------------------------------- episodes that are kept


def keeps_episodes(env: VecEnv) -> bool:
    """
    :param env: Training environment
    :return: True if its episodes are kept at a checkpoint: the ``VecEnv`` inside all wrappers, or
        each environment in it, has the methods ``get_state()`` and ``set_state(state)``, and the
        wrappers around them have no state that is unknown
    """
    for wrapper in _wrappers(env):
        if not isinstance(wrapper, _PLAIN_WRAPPERS):
            return False
    inside: Any = env.unwrapped
    if offers_state(inside):
        return True
    return isinstance(inside, _TEAM_VEC_ENVS) and all(inside.keep_episodes())


def episode_states(env: VecEnv) -> Any:
    """
    :param env: Environment for which :func:`keeps_episodes` is True
    :return: State of the running episodes, plain data
    :raises ValueError: If ``get_state`` returns something else
    """
    inside: Any = env.unwrapped
    if not offers_state(inside):
        return inside.episode_states()
    try:
        return plain_copy(inside.get_state())
    except NotPlainError as error:
        raise ValueError(
            f"get_state() of the environment returned {error}; it must return numbers, texts, "
            "arrays, tensors, and lists and dicts of these, so that a checkpoint can hold it."
        ) from error


def restore_episodes(env: VecEnv, states: Any) -> None:
    """
    :param env: Environment of the same kind, reset
    :param states: Result of :func:`episode_states`
    """
    inside: Any = env.unwrapped
    if offers_state(inside):
        inside.set_state(states)
    else:
        inside.restore_episodes(states)


def with_layout(obs: dict[str, Any], model: Any) -> dict[str, Any]:
    """
    Arrays in the memory layout of others. A convolution of transposed images and one of a
    contiguous copy differ in the last bits.

    :param obs: Observations of a file, each entry ``(n_envs, ...)``
    :param model: Observations of the environment, whose layout is taken
    :return: Observations with the same values
    """
    laid_out = {}
    for key, value in obs.items():
        like = model.get(key) if isinstance(model, dict) else None
        if isinstance(value, np.ndarray) and isinstance(like, np.ndarray):
            copied = np.empty_like(like, dtype=value.dtype)
            copied[...] = value
            value = copied
        laid_out[key] = value
    return laid_out


# ---------------------------------------------------------------- steps that are repeated


class RecordedSteps:
    """
    Joint actions since the last seeded reset. Environments whose episodes depend on the seed and
    the actions alone come to the same state again when they are reset and stepped likewise.

    :param limit: Largest number of bytes to hold; beyond it the record ends
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._n_bytes = 0
        self._actions: list[Any] | None = []

    def __len__(self) -> int:
        return 0 if self._actions is None else len(self._actions)

    @property
    def complete(self) -> bool:
        """
        :return: False if the record has ended
        """
        return self._actions is not None

    def clear(self) -> None:
        """Begin a new record."""
        self._actions, self._n_bytes = [], 0

    def end(self) -> None:
        """Drop the record, because it does not lead to the present state any more."""
        self._actions = None

    def add(self, actions: Any) -> None:
        """
        :param actions: Actions that ``env.step`` was given
        """
        if self._actions is None:
            return
        if isinstance(actions, dict):
            actions = {name: th.as_tensor(own).cpu().numpy() for name, own in actions.items()}
            self._n_bytes += sum(own.nbytes for own in actions.values())
        else:
            actions = np.array(actions)
            self._n_bytes += actions.nbytes
        self._actions.append(actions)
        if self._n_bytes > self._limit:
            self.end()

    def get(self, n_steps: int) -> Any:
        """
        :param n_steps: Number of steps
        :return: Actions of the first steps, plain data: an array ``(n_steps, n_envs, ...)``, or one
            for each agent
        """
        assert self._actions is not None
        actions = self._actions[:n_steps]
        if not actions:
            return None
        if isinstance(actions[0], dict):
            return {name: np.stack([step[name] for step in actions]) for name in actions[0]}
        return np.stack(actions)

    def set(self, actions: Any) -> None:
        """
        :param actions: Result of :meth:`get`
        """
        self.clear()
        for step in _steps(actions):
            self.add(step)


def repeat_steps(env: VecEnv, actions: Any, device: th.device, as_tensors: bool) -> Any:
    """
    Repeat recorded steps in an environment that was reset as before them.

    :param env: Training environment
    :param actions: Result of :meth:`RecordedSteps.get`
    :param device: Device of the tensors
    :param as_tensors: True for an environment that takes tensors
    :return: Observations after the last step; None if there was none
    """
    obs = None
    for step in _steps(actions):
        if as_tensors and isinstance(step, dict):
            step = {name: th.as_tensor(own, device=device) for name, own in step.items()}
        obs, _, _, _ = env.step(step)
    return obs


def _steps(actions: Any) -> Iterator[Any]:
    if actions is None:
        return
    if isinstance(actions, dict):
        n_steps = len(next(iter(actions.values())))
        for index in range(n_steps):
            yield {name: own[index] for name, own in actions.items()}
        return
    yield from actions


# ---------------------------------------------------------------- wrappers


class WrapperStates:
    """
    Plain attributes of the wrappers of a ``VecEnv``, such as the running statistics and returns of
    ``VecNormalize``, that have changed since this object was made or are no settings.

    :param env: Training environment
    """

    def __init__(self, env: VecEnv) -> None:
        self.env = env
        self._states = [ChangingState(wrapper, _NOT_STATE) for wrapper in _wrappers(env)]
        self._names = [type(wrapper).__name__ for wrapper in _wrappers(env)]

    def get(self) -> list[dict[str, Any]]:
        """
        :return: Class and attributes of each wrapper, from the outermost one
        """
        pairs = zip(self._names, self._states, strict=True)
        return [{"class": name, "state": state.get()} for name, state in pairs]

    def set(self, states: Sequence[dict[str, Any]]) -> None:
        """
        :param states: Result of :meth:`get` for an environment with the same wrappers
        :raises ValueError: If the wrappers differ
        """
        names = [own["class"] for own in states]
        if names != self._names:
            raise ValueError(
                f"The checkpoint is of an environment with the wrappers {names}, and this one has "
                f"{self._names}. Wrap it as before, with new statistics; they come from the file."
            )
        for state, own in zip(self._states, states, strict=True):
            state.set(own["state"])


def _wrappers(env: VecEnv) -> list[VecEnvWrapper]:
    found = []
    while isinstance(env, VecEnvWrapper):
        found.append(env)
        env = env.venv
    return found
