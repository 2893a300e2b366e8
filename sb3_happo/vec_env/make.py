"""Several copies of a joint environment as one ``VecEnv``."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from sb3_happo.envs import as_joint_env, make_joint_env
from sb3_happo.envs.make import EnvWrapper
from sb3_happo.vec_env.choose import choose_vec_env


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

    :param env: An id of :func:`make_joint_env`, or a callable that returns a new env of any kind that
        :class:`~sb3_happo.envs.JointEnv` takes, or a ``JointEnv``
    :param n_envs: Number of copies
    :param seed: Seed of the first copy's first reset; the following copies' are counted up
    :param start_index: Rank of the first copy
    :param monitor_dir: Folder for the monitors' files; by default they are not written
    :param wrapper_class: Wrapper for each joint environment, after ``Monitor``
    :param env_kwargs: Arguments of the env
    :param vec_env_cls: Class of the ``VecEnv``; by default the faster one of :class:`~sb3_happo.vec_env.JointDummyVecEnv` and
        :class:`~sb3_happo.vec_env.JointSubprocVecEnv`, which is measured for a second if there are several copies (the
        attribute ``choice`` tells). Both run the same episodes
    :param vec_env_kwargs: Its arguments, by default those of :func:`~sb3_happo.vec_env.choose_vec_env`
    :param monitor_kwargs: Arguments of ``Monitor``
    :param wrapper_kwargs: Arguments of ``wrapper_class``
    :param joint_kwargs: Arguments of :class:`~sb3_happo.envs.JointEnv`
    :param wrappers: Callables ``env -> env`` for each env before it is joined
    :return: The vectorised environment
    """
    return make_vec_env(
        partial(_make_from, env, wrappers, joint_kwargs),
        n_envs,
        seed,
        start_index,
        monitor_dir,
        wrapper_class,
        env_kwargs,
        vec_env_cls or choose_vec_env,  # type: ignore[arg-type]
        vec_env_kwargs,
        monitor_kwargs,
        wrapper_kwargs,
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
