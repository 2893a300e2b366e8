"""Several copies of a joint environment as one ``VecEnv``."""

import importlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import gymnasium as gym
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from sb3_happo.envs import as_joint_env, make_joint_env
from sb3_happo.envs.make import EnvWrapper, is_vectorised
from sb3_happo.vec_env.auto_vec_env import choose_vec_env
from sb3_happo.vec_env.counts import checked_count, checked_index
from sb3_happo.vec_env.joint_dummy_vec_env import JointDummyVecEnv
from sb3_happo.vec_env.joint_subproc_vec_env import JointSubprocVecEnv
from sb3_happo.vec_env.watchdog import checked_limit

# For each of VECTORISED_FAMILIES: module, imported when needed, and function or class in it,
# (id, n_envs, seed, **kwargs)
_MAKERS = {
    "envpool": ("sb3_happo.vec_env.envpool_vec_env", "EnvPoolVecEnv"),
    "vmas": ("sb3_happo.vec_env.vmas_vec_env", "make_vmas_vec_env"),
}


def make_joint_vec_env(
    env: str | Callable[..., Any],
    n_envs: int = 1,
    seed: int | None = None,
    start_index: int = 0,
    monitor_dir: str | None = None,
    wrapper_class: Callable[[gym.Env], gym.Env] | None = None,
    env_kwargs: dict[str, Any] | None = None,
    vec_env_cls: Callable[..., VecEnv] | Literal["auto"] | None = None,
    vec_env_kwargs: dict[str, Any] | None = None,
    monitor_kwargs: dict[str, Any] | None = None,
    wrapper_kwargs: dict[str, Any] | None = None,
    joint_kwargs: dict[str, Any] | None = None,
    wrappers: Sequence[EnvWrapper] | None = None,
    step_timeout: float | None = None,
) -> VecEnv:
    """
    Several copies of a joint environment as one ``VecEnv``: SB3's ``make_vec_env`` for teams.

    Simulators that step many environments at once have ids of their own, such as
    ``"envpool/HalfCheetah-2x3-v1"`` and ``"vmas/navigation"``. They take ``n_envs``, ``seed``,
    ``start_index``, ``env_kwargs`` and ``vec_env_kwargs``, and ``vec_env_cls="auto"`` has no effect
    on them. The other arguments apply to single environments and are refused.

    :param env: Id of :func:`make_joint_env` or of such a simulator; or a callable that returns a
        new env of any kind that :class:`~sb3_happo.envs.JointEnv` takes, or a ``JointEnv``
    :param n_envs: Number of copies
    :param seed: Seed of the first reset of the copy of rank 0, counted up for the others
    :param start_index: Rank of the first copy
    :param monitor_dir: Folder for the files of ``Monitor``; by default none are written
    :param wrapper_class: Wrapper for each joint environment, outside ``Monitor``
    :param env_kwargs: Arguments of the env
    :param vec_env_cls: Class of the ``VecEnv``, by default
        :class:`~sb3_happo.vec_env.JointDummyVecEnv`. "auto": this one or
        :class:`~sb3_happo.vec_env.JointSubprocVecEnv`, whichever
        :func:`~sb3_happo.vec_env.choose_vec_env` measures to be faster, which takes about a second.
        With "auto" nothing is measured, and no workers are used, where monitors continue files
        (``override_existing=False``), because the trial would be written there too
    :param vec_env_kwargs: Arguments of ``vec_env_cls``; with "auto", of ``choose_vec_env``
    :param monitor_kwargs: Arguments of ``Monitor``
    :param wrapper_kwargs: Arguments of ``wrapper_class``
    :param joint_kwargs: Arguments of :class:`~sb3_happo.envs.JointEnv`
    :param wrappers: Callables ``env -> env`` for each env before it is joined
    :param step_timeout: Seconds for a step, a reset or a call of an environment, > 0, after which
        the training ends with an error; None for no limit. An environment that hangs can be
        interrupted in a worker process only: with a limit, ``vec_env_cls`` is
        :class:`~sb3_happo.vec_env.JointSubprocVecEnv` by default and for "auto", which then
        measures nothing
    :return: The vectorised environment
    :raises TypeError: If ``env`` is an environment itself
    :raises ValueError: If an id does not resolve, a number is out of range, or an argument cannot
        apply
    :raises ImportError: If a package that the env needs is not installed
    """
    n_envs = checked_count("n_envs", n_envs)
    start_index = checked_index("start_index", start_index)
    seed = None if seed is None else checked_index("seed", seed)
    vec_env_cls, vec_env_kwargs = _with_limit(vec_env_cls, vec_env_kwargs, step_timeout)
    if isinstance(env, str) and is_vectorised(env):
        refused = {
            "wrappers": wrappers,
            "wrapper_class": wrapper_class,
            "wrapper_kwargs": wrapper_kwargs,
            "joint_kwargs": joint_kwargs,
            "monitor_dir": monitor_dir,
            "monitor_kwargs": monitor_kwargs,
            "step_timeout": step_timeout,
            "vec_env_cls": None if vec_env_cls == "auto" or step_timeout else vec_env_cls,
        }
        _refuse(env, refused)
        first_seed = None if seed is None else seed + start_index
        return _make_simulator(env, n_envs, first_seed, env_kwargs, vec_env_kwargs)
    if not (isinstance(env, str) or callable(env)):
        raise TypeError(
            "make_joint_vec_env takes an id, or a function that makes a new environment at each "
            f"call, not {env!r}."
        )
    if vec_env_cls == "auto" and _continues_files(monitor_dir, monitor_kwargs):
        # The trial would be written to these files
        vec_env_kwargs = {"seconds": 0} | (vec_env_kwargs or {})
    venv = make_vec_env(
        partial(_make_from, env, wrappers, joint_kwargs),
        n_envs,
        seed,
        start_index,
        monitor_dir,
        wrapper_class,
        env_kwargs,
        _vec_env_class(vec_env_cls),  # type: ignore[arg-type]
        vec_env_kwargs,
        monitor_kwargs,
        wrapper_kwargs,
    )
    if seed is not None:
        venv.seed(seed + start_index)
    return venv


def _with_limit(
    vec_env_cls: Any, vec_env_kwargs: dict[str, Any] | None, step_timeout: float | None
) -> tuple[Any, dict[str, Any] | None]:
    """
    :param vec_env_cls: Argument of :func:`make_joint_vec_env`
    :param vec_env_kwargs: Argument of :func:`make_joint_vec_env`
    :param step_timeout: Argument of :func:`make_joint_vec_env`
    :return: Class and arguments with which the time limit is kept
    :raises ValueError: If the class cannot keep one
    """
    limit = checked_limit(step_timeout)
    if limit is None:
        return vec_env_cls, vec_env_kwargs
    if vec_env_cls is None:
        vec_env_cls = JointSubprocVecEnv
    is_class = isinstance(vec_env_cls, type)
    if is_class and not issubclass(vec_env_cls, JointSubprocVecEnv):
        raise ValueError(
            f"`step_timeout` cannot apply to {vec_env_cls.__name__}: an environment that hangs can "
            "be interrupted in a worker process only. Leave `vec_env_cls` out, or take "
            "JointSubprocVecEnv."
        )
    return vec_env_cls, {"step_timeout": limit} | (vec_env_kwargs or {})


def make_from_id(id: str) -> gym.Env | VecEnv:
    """
    Environment that an algorithm makes of an id.

    :param id: Id of :func:`make_joint_vec_env`
    :return: A joint environment; a ``VecEnv`` for simulators that exist in no other form
    """
    return make_joint_vec_env(id) if is_vectorised(id) else make_joint_env(id)


def _vec_env_class(choice: Callable[..., VecEnv] | str | None) -> Callable[..., VecEnv]:
    """Class that the argument ``vec_env_cls`` means, or a function that makes one."""
    if choice == "auto":
        return choose_vec_env
    if isinstance(choice, str):
        raise ValueError(f"vec_env_cls={choice!r} is neither a class of VecEnv nor 'auto'.")
    return choice or JointDummyVecEnv


def _continues_files(monitor_dir: str | None, monitor_kwargs: dict[str, Any] | None) -> bool:
    """Whether monitors add to files that exist."""
    return monitor_dir is not None and not (monitor_kwargs or {}).get("override_existing", True)


def _make_simulator(
    id: str,
    n_envs: int,
    seed: int | None,
    env_kwargs: dict[str, Any] | None,
    vec_env_kwargs: dict[str, Any] | None,
) -> VecEnv:
    module, function = _MAKERS[id.partition("/")[0]]
    make = getattr(importlib.import_module(module), function)
    return make(id, n_envs, seed, **(env_kwargs or {}), **(vec_env_kwargs or {}))


def _refuse(id: str, arguments: dict[str, Any]) -> None:
    given = [name for name, value in arguments.items() if value]
    if given:
        raise ValueError(
            f"{', '.join(map(repr, given))} cannot apply to {id!r}, whose environments do not "
            "exist one by one. Wrap the VecEnv instead: a VecEnvWrapper, such as "
            "VecMonitor(venv, filename) for a monitor's file."
        )


def _make_from(
    env: str | Callable[..., Any],
    wrappers: Sequence[EnvWrapper] | None,
    joint_kwargs: dict[str, Any] | None,
    **env_kwargs: Any,
) -> gym.Env:
    if isinstance(env, str):
        return make_joint_env(env, wrappers, joint_kwargs, **env_kwargs)
    made = env(**env_kwargs)
    for wrapper in wrappers or ():
        made = wrapper(made)
    return as_joint_env(made, **(joint_kwargs or {}))
