"""Several copies of a joint environment as one ``VecEnv``."""

import importlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from sb3_happo.envs import as_joint_env, make_joint_env
from sb3_happo.envs.make import EnvWrapper, is_vectorised
from sb3_happo.vec_env.auto_vec_env import choose_vec_env

# For each of VECTORISED_FAMILIES: the module, imported when it is needed, and what to call there, (id, n_envs, seed, **kwargs)
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
    vec_env_cls: Callable[..., VecEnv] | None = None,
    vec_env_kwargs: dict[str, Any] | None = None,
    monitor_kwargs: dict[str, Any] | None = None,
    wrapper_kwargs: dict[str, Any] | None = None,
    joint_kwargs: dict[str, Any] | None = None,
    wrappers: Sequence[EnvWrapper] | None = None,
) -> VecEnv:
    """
    Several copies of a joint environment as one ``VecEnv``: SB3's ``make_vec_env`` for teams.

    Simulators that run many environments at a time have ids of their own: ``"envpool/HalfCheetah-2x3-v1"``,
    ``"vmas/navigation"``. They take ``n_envs``, ``seed``, ``start_index``, ``env_kwargs`` and ``vec_env_kwargs``; the other
    arguments are about environments that exist one by one, and are refused.

    :param env: An id of :func:`make_joint_env` or of such a simulator, or a callable that returns a new env of any kind that
        :class:`~sb3_happo.envs.JointEnv` takes, or a ``JointEnv``
    :param n_envs: Number of copies
    :param seed: Seed of the first reset of the copy of rank 0; the following ones' are counted up
    :param start_index: Rank of the first copy
    :param monitor_dir: Folder for the monitors' files; by default they are not written
    :param wrapper_class: Wrapper for each joint environment, after ``Monitor``
    :param env_kwargs: Arguments of the env
    :param vec_env_cls: Class of the ``VecEnv``; by default the faster one of :class:`~sb3_happo.vec_env.JointDummyVecEnv` and
        :class:`~sb3_happo.vec_env.JointSubprocVecEnv`, which is measured for a second if there are several copies (the
        attribute ``choice`` tells). Both run the same episodes. Where monitors continue files (``override_existing=False``)
        nothing is measured, because that would be written there too: the first one
    :param vec_env_kwargs: Its arguments, by default those of :func:`~sb3_happo.vec_env.choose_vec_env`
    :param monitor_kwargs: Arguments of ``Monitor``
    :param wrapper_kwargs: Arguments of ``wrapper_class``
    :param joint_kwargs: Arguments of :class:`~sb3_happo.envs.JointEnv`
    :param wrappers: Callables ``env -> env`` for each env before it is joined
    :return: The vectorised environment
    :raises TypeError: If ``env`` is an environment itself
    :raises ValueError: If an id does not resolve, or an argument cannot apply to it
    :raises ImportError: If something that the env needs is not installed
    """
    if isinstance(env, str) and is_vectorised(env):
        _refuse(
            env,
            {
                "wrappers": wrappers,
                "wrapper_class": wrapper_class,
                "wrapper_kwargs": wrapper_kwargs,
                "joint_kwargs": joint_kwargs,
                "monitor_dir": monitor_dir,
                "monitor_kwargs": monitor_kwargs,
                "vec_env_cls": vec_env_cls,
            },
        )
        module, function = _MAKERS[env.partition("/")[0]]
        first_seed = None if seed is None else seed + start_index
        make = getattr(importlib.import_module(module), function)
        return make(env, n_envs, first_seed, **(env_kwargs or {}), **(vec_env_kwargs or {}))
    if not (isinstance(env, str) or callable(env)):
        raise TypeError(
            f"make_joint_vec_env takes an id, or a function that makes a new environment at each call, not {env!r}."
        )
    continues = monitor_dir is not None and not (monitor_kwargs or {}).get(
        "override_existing", True
    )
    venv = make_vec_env(
        partial(_make_from, env, wrappers, joint_kwargs),
        n_envs,
        seed,
        start_index,
        monitor_dir,
        wrapper_class,
        env_kwargs,
        vec_env_cls or choose_vec_env,  # type: ignore[arg-type]
        {"seconds": 0, **(vec_env_kwargs or {})}
        if continues and vec_env_cls is None
        else vec_env_kwargs,
        monitor_kwargs,
        wrapper_kwargs,
    )
    if seed is not None:
        venv.seed(seed + start_index)
    return venv


def make_from_id(id: str) -> gym.Env | VecEnv:
    """
    What an algorithm makes of an id.

    :param id: An id of :func:`make_joint_vec_env`
    :return: A joint environment, or a ``VecEnv`` of one where it cannot exist alone
    """
    return make_joint_vec_env(id) if is_vectorised(id) else make_joint_env(id)


def _refuse(id: str, arguments: dict[str, Any]) -> None:
    given = [name for name, value in arguments.items() if value]
    if given:
        raise ValueError(
            f"{', '.join(map(repr, given))} cannot apply to {id!r}, whose environments do not exist one by one. Wrap the "
            "whole VecEnv instead: a VecEnvWrapper, such as VecMonitor(venv, filename) for a monitor's file."
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
