"""
Train a team with HAPPO for a minute or two and look at what it has learned.

    python zoo/demo.py
    python zoo/demo.py --env mpe2/simple_reference_v3 --timesteps 400000

Returns are sums over the agents. Into the folder ``--out`` go the learning curve (``learning_curve.png``), three episodes of
the trained team (``trained_team.gif``) and the trained model (``model.zip``, for ``HAPPO.load``).
"""

import argparse
import os
import time
from functools import partial
from pathlib import Path

# No window opens: frames are drawn in memory. To be set before anything imports pygame
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

import gymnasium as gym
import matplotlib as mpl
import numpy as np
import torch as th
from gymnasium import spaces
from PIL import Image
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from sb3_happo import HAPPO, make_joint_env, make_joint_vec_env

mpl.use("Agg")
import matplotlib.pyplot as plt

N_ENVS = 20
N_EVAL_ENVS = 10
N_EVAL_EPISODES = 100
N_CURVE_POINTS = 20
N_CURVE_EPISODES = 30  # for each point
N_FILMED_EPISODES = 3
FRAME_MILLISECONDS = 100
FRAME_PIXELS = 350
EVAL_SEED = 1_000_000  # far from the training seeds
JOINT_KWARGS = {"team_reward": "sum"}


def random_returns(env: gym.Env, n_episodes: int, seed: int) -> np.ndarray:
    """
    The returns of a team whose actions are drawn uniformly.

    :param env: The team
    :param n_episodes: How many episodes
    :param seed: Of the environment and the actions
    :return: Their returns, ``(n_episodes,)``
    """
    assert isinstance(env.action_space, spaces.Dict)
    returns = np.zeros(n_episodes)
    env.action_space.seed(seed)
    for episode in range(n_episodes):
        observation, _ = env.reset(seed=seed if episode == 0 else None)
        done = False
        while not done:
            masks = {agent: observation.get(f"{agent}/action_mask") for agent in env.action_space}
            observation, reward, terminated, truncated, _ = env.step(env.action_space.sample(masks))
            returns[episode] += reward
            done = terminated or truncated
    return returns


def deterministic_returns(model: HAPPO, env: VecEnv, n_episodes: int) -> np.ndarray:
    """
    The returns of a model that takes its most likely actions.

    :param model: The team
    :param env: Its environments
    :param n_episodes: How many episodes
    :return: Their returns, ``(n_episodes,)``
    """
    env.seed(EVAL_SEED)
    returns, _ = evaluate_policy(model, env, n_episodes, return_episode_rewards=True)
    return np.asarray(returns)


def draw_learning_curve(
    path: Path, callback: EvalCallback, random_return: float, title: str
) -> None:
    """
    Mean return against training steps, with the standard error over the episodes of each evaluation.

    :param path: Of the PNG
    :param callback: What evaluated during training
    :param random_return: Mean return of a random team
    :param title: Of the figure
    """
    returns = np.asarray(callback.evaluations_results)  # (n_evaluations, n_episodes)
    mean, error = returns.mean(axis=1), returns.std(axis=1) / np.sqrt(returns.shape[1])
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    axes.plot(callback.evaluations_timesteps, mean, label="HAPPO")
    axes.fill_between(callback.evaluations_timesteps, mean - error, mean + error, alpha=0.25)
    axes.axhline(random_return, color="grey", linestyle="--", label="random team")
    axes.set(xlabel="environment steps", ylabel="return, sum over the agents", title=title)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def film(path: Path, model: HAPPO, env_id: str, seed: int) -> None:
    """
    Some deterministic episodes of the team, as an animation.

    :param path: Of the GIF
    :param model: The trained team
    :param env_id: Its environment
    :param seed: Of the first episode
    """
    env = make_joint_env(env_id, render_mode="rgb_array")
    frames: list[Image.Image] = []
    for episode in range(N_FILMED_EPISODES):
        observation, _ = env.reset(seed=seed + episode)
        done = False
        while not done:
            frame = Image.fromarray(np.asarray(env.render()))
            frame.thumbnail((FRAME_PIXELS, FRAME_PIXELS))
            frames.append(frame)
            action, _ = model.predict(observation, deterministic=True)
            observation, _, terminated, truncated, _ = env.step(action)
            done = terminated or truncated
    env.close()
    frames[0].save(
        path, save_all=True, append_images=frames[1:], duration=FRAME_MILLISECONDS, loop=0
    )


def main() -> None:
    """Train, compare, draw, film."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--env",
        default="mpe2/simple_spread_v3",
        help="any id that make_joint_env takes (%(default)s)",
    )
    parser.add_argument(
        "--timesteps", type=int, default=200_000, help="environment steps of training (%(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("demo"), help="folder for the results (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        make_joint_env(args.env).close()
    except (ValueError, ImportError) as error:
        parser.error(str(error))
    args.out.mkdir(parents=True, exist_ok=True)
    th.set_num_threads(
        1
    )  # networks this small gain nothing from more, and lose much where other programs want the cores

    make_envs = partial(make_joint_vec_env, args.env, joint_kwargs=JOINT_KWARGS, vec_env_cls="auto")
    env = make_envs(n_envs=N_ENVS, seed=args.seed)
    eval_env = make_envs(n_envs=N_EVAL_ENVS, seed=EVAL_SEED)
    model = HAPPO(
        env,
        n_steps=50,
        batch_size=1000,
        n_epochs=10,
        learning_rate=7e-4,
        gamma=0.95,
        ent_coef=0.01,
        policy_kwargs=dict(net_arch=[128, 128], activation_fn=th.nn.ReLU),
        seed=args.seed,
    )

    print(
        f"HAPPO learns {args.env}: {len(model.policies)} agents, {args.timesteps:,} steps ...",
        flush=True,
    )
    single_env = make_joint_env(args.env, joint_kwargs=JOINT_KWARGS)
    returns = {"random team": random_returns(single_env, N_EVAL_EPISODES, EVAL_SEED)}
    returns["HAPPO before training"] = deterministic_returns(model, eval_env, N_EVAL_EPISODES)
    callback = EvalCallback(
        eval_env,
        n_eval_episodes=N_CURVE_EPISODES,
        eval_freq=max(args.timesteps // (N_CURVE_POINTS * N_ENVS), 1),
        log_path=str(args.out),  # without it the callback keeps no results
        verbose=0,
    )
    start = time.time()
    model.learn(args.timesteps, callback=callback, progress_bar=True)
    seconds = time.time() - start
    returns["HAPPO after training"] = deterministic_returns(model, eval_env, N_EVAL_EPISODES)

    print(
        f"\nTrained in {seconds:.0f} s. Return of the team in {N_EVAL_EPISODES} episodes, mean and standard error:"
    )
    for name, values in returns.items():
        print(f"  {name:<22}{np.mean(values):9.1f} ± {np.std(values) / np.sqrt(len(values)):.1f}")

    curve, animation, saved = (
        args.out / "learning_curve.png",
        args.out / "trained_team.gif",
        args.out / "model.zip",
    )
    model.save(saved)
    draw_learning_curve(
        curve, callback, float(np.mean(returns["random team"])), f"HAPPO on {args.env}"
    )
    print(f"Learning curve: {curve}\nThe model, for HAPPO.load: {saved}")
    try:
        film(animation, model, args.env, EVAL_SEED)
        print(f"The trained team: {animation}")
    except Exception as error:  # whatever the libraries that draw make of a missing display
        print(
            f"There is no film, {args.env} cannot be drawn here ({type(error).__name__}: {error})."
        )
        print("Without a display MuJoCo wants MUJOCO_GL=egl, others a virtual one (xvfb-run).")


if __name__ == "__main__":
    main()
