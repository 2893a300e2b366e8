"""Vectorised environments whose rows are agents, as SuperSuit makes them, which are refused."""

from typing import Any

import gymnasium as gym

_WAY = (
    "Give the ParallelEnv itself, which becomes one joint environment with a policy per agent: "
    "HAPPO(parallel_env); for several copies make_joint_vec_env(make_parallel_env, n_envs). Other "
    "wrappers of SuperSuit may stay around the ParallelEnv."
)


def has_rows_of_agents(env: Any) -> bool:
    """
    :param env: Environment, vectorised or not
    :return: True if its rows are the agents of a team: SuperSuit's ``pettingzoo_env_to_vec_env_v1``
        and ``concat_vec_envs_v1``, wrapped or not
    """
    layer = env
    while layer is not None:
        own = getattr(layer, "__dict__", {})
        module = type(layer).__module__
        if module.startswith("supersuit.vector") or "par_env" in own or "possible_agents" in own:
            return True
        layer = own.get("venv", own.get("env"))
    return False


def refuse_rows_of_agents(env: Any) -> None:
    """
    :param env: Vectorised environment that is no joint one
    :raises TypeError: If its rows are agents, or it is a vectorised environment of Gymnasium
    """
    is_vectorised = isinstance(env, gym.vector.VectorEnv)
    if (is_vectorised or hasattr(env, "num_envs")) and has_rows_of_agents(env):
        raise TypeError(
            f"The rows of this {type(env).__name__} are agents, each of which would be taken for a "
            f"copy of an environment with one agent. {_WAY}"
        )
    if is_vectorised:
        raise TypeError(
            f"{type(env).__name__} is a vectorised environment of Gymnasium, not of SB3. Make one "
            "with make_joint_vec_env(make_env, n_envs)."
        )
