"""SB3's evaluation for environments of any form that the algorithms take."""

import io
from collections.abc import Callable
from typing import Any

import gymnasium as gym
from stable_baselines3.common import callbacks, evaluation
from stable_baselines3.common.vec_env import VecEnv

from sb3_happo.common.multi_agent_algorithm import MultiAgentAlgorithm
from sb3_happo.common.multi_agent_policy import MultiAgentPolicy
from sb3_happo.common.safe_files import atomic_write


def evaluate_policy(
    model: Any,
    env: Any,
    n_eval_episodes: int = 10,
    deterministic: bool = True,
    render: bool = False,
    callback: Callable[[dict[str, Any], dict[str, Any]], None] | None = None,
    reward_threshold: float | None = None,
    return_episode_rewards: bool = False,
    warn: bool = True,
) -> tuple[float, float] | tuple[list[float], list[int]]:
    """
    SB3's ``evaluate_policy``, for environments of any form: PettingZoo's environments and ids too.

    :param model: Team, its policy, or another object with ``predict``
    :param env: PettingZoo or Gymnasium environment, ``JointEnv``, ``VecEnv``, or id. An environment
        made of an id is closed afterwards
    :param n_eval_episodes: Number of episodes
    :param deterministic: Most likely actions instead of samples
    :param render: Rendering of every step
    :param callback: Function of the local and global variables, called for each environment after
        each step
    :param reward_threshold: Mean return that must be exceeded
    :param return_episode_rewards: Return of lists instead of mean and standard deviation
    :param warn: Warning about an environment without ``Monitor``
    :return: Mean and standard deviation of the team's return per episode; or the lists of returns
        and of lengths
    :raises ValueError: If the environment cannot be joined
    :raises AssertionError: If the mean return is not above ``reward_threshold``
    """
    is_team = isinstance(model, (MultiAgentAlgorithm, MultiAgentPolicy))
    venv = env
    if is_team or not isinstance(env, (gym.Env, VecEnv)):
        venv = MultiAgentAlgorithm._wrap_env(env)
    try:
        return evaluation.evaluate_policy(
            model,
            venv,
            n_eval_episodes,
            deterministic,
            render,
            callback,
            reward_threshold,
            return_episode_rewards,
            warn,
        )
    finally:
        if isinstance(env, str):
            venv.close()


class EvalCallback(callbacks.EvalCallback):
    """
    SB3's ``EvalCallback``, for environments of any form: PettingZoo's environments and ids too. The
    best model and the evaluations are written whole or not at all.

    :param eval_env: PettingZoo or Gymnasium environment, ``JointEnv``, ``VecEnv``, or id. It must
        not be the environment of the training
    :param args: Arguments of SB3's ``EvalCallback``
    :param kwargs: Keyword arguments of SB3's ``EvalCallback``
    """

    def __init__(self, eval_env: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(MultiAgentAlgorithm._wrap_env(eval_env), *args, **kwargs)

    def _on_step(self) -> bool:
        path = self.log_path
        if path is None:
            return super()._on_step()
        # SB3 writes the evaluations into memory; a full disk or a kill then destroys no file
        memory = io.BytesIO()
        self.log_path = memory  # type: ignore[assignment]
        try:
            return super()._on_step()
        finally:
            self.log_path = path
            if memory.tell():
                atomic_write(f"{path}.npz", memory.getvalue())
