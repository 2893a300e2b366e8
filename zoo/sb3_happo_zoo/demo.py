"""
Train a team with HAPPO for one or two minutes, and compare, plot and film the result.

    python zoo/demo.py
    python zoo/demo.py --env mpe2/simple_reference_v3 --timesteps 400000

Returns are sums over the agents. The folder ``--out`` gets the learning curve
(``learning_curve.png``), three episodes of the trained team (``trained_team.gif``) and the trained
model (``model.zip``, for ``HAPPO.load``).
"""

import argparse
import os
import time
from pathlib import Path

# Frames are drawn in memory, without a window. Must be set before pygame is imported
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
from sb3_happo_zoo.allocator import keep_freed_memory
from sb3_happo_zoo.vec_envs import FASTEST

mpl.use("Agg")
import matplotlib.pyplot as plt

N_ENVS = 20
N_EVAL_ENVS = 10
N_EVAL_EPISODES = 100
N_CURVE_POINTS = 20
N_CURVE_EPISODES = 30  # episodes per point
N_FILMED_EPISODES = 3
FRAME_MILLISECONDS = 100
FRAME_PIXELS = 350
EVAL_SEED = 1_000_000  # far from the training seeds
JOINT_KWARGS = {"team_reward": "sum"}


def random_returns(env: gym.Env, n_episodes: int, seed: int) -> np.ndarray:
    """
    Returns of a team whose actions are sampled uniformly.

    :param env: Joint environment
    :param n_episodes: Number of episodes
    :param seed: Seed for the environment and the actions
    :return: Returns of the episodes, ``(n_episodes,)``
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
    Returns of a model that takes its most likely actions.

    :param model: The model
    :param env: Joint environments
    :param n_episodes: Number of episodes
    :return: Returns of the episodes, ``(n_episodes,)``
    """
    env.seed(EVAL_SEED)
    returns, _ = evaluate_policy(model, env, n_episodes, return_episode_rewards=True)
    return np.asarray(returns)


def draw_learning_curve(
    path: Path, callback: EvalCallback, random_return: float, title: str
) -> None:
    """
    Plot the mean return against training steps, with the standard error over the episodes of each
    evaluation.

    :param path: Path of the PNG file
    :param callback: Callback that evaluated during training
    :param random_return: Mean return of a random team
    :param title: Title of the plot
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
    Film some deterministic episodes of the team.

    :param path: Path of the GIF file
    :param model: The trained model
    :param env_id: Id of the environment
    :param seed: Seed of the first episode
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


def make_parser() -> argparse.ArgumentParser:
    """
    :return: Parser of the command line
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--env",
        default="mpe2/simple_spread_v3",
        help="environment id of make_joint_env (%(default)s)",
    )
    parser.add_argument(
        "--timesteps", type=int, default=200_000, help="number of training steps (%(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("demo"), help="folder for the results (%(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed for the pseudo-random generators (%(default)s)"
    )
    return parser


def make_model(env: VecEnv, seed: int) -> HAPPO:
    """
    :param env: Joint environments
    :param seed: Seed of the training
    :return: Untrained model
    """
    return HAPPO(
        env,
        n_steps=50,
        batch_size=1000,
        n_epochs=10,
        learning_rate=7e-4,
        gamma=0.95,
        ent_coef=0.01,
        policy_kwargs=dict(net_arch=[128, 128], activation_fn=th.nn.ReLU),
        seed=seed,
    )


def print_returns(returns: dict[str, np.ndarray], seconds: float) -> None:
    """
    :param returns: Returns of the episodes of each team
    :param seconds: Duration of the training
    """
    print(
        f"\nTrained in {seconds:.0f} s. "
        f"Return of the team in {N_EVAL_EPISODES} episodes, mean and standard error:"
    )
    for name, values in returns.items():
        print(f"  {name:<22}{np.mean(values):9.1f} ± {np.std(values) / np.sqrt(len(values)):.1f}")


def try_to_film(path: Path, model: HAPPO, env_id: str) -> None:
    """
    Film the team, or say why that is not possible.

    :param path: Path of the GIF file
    :param model: The trained model
    :param env_id: Id of the environment
    """
    try:
        film(path, model, env_id, EVAL_SEED)
        print(f"The trained team: {path}")
    except Exception as error:  # drawing libraries raise various errors without a display
        print(f"There is no film, {env_id} cannot be drawn here ({type(error).__name__}: {error}).")
        print("Without a display MuJoCo needs MUJOCO_GL=egl, others a virtual one (xvfb-run).")


def main() -> None:
    """Train, compare, plot, film."""
    parser = make_parser()
    args = parser.parse_args()
    try:
        make_joint_env(args.env).close()
    except (ValueError, ImportError) as error:
        parser.error(str(error))
    args.out.mkdir(parents=True, exist_ok=True)
    # Networks this small gain nothing from threads, and lose much beside other processes
    th.set_num_threads(1)
    keep_freed_memory()

    env = make_joint_vec_env(
        args.env,
        n_envs=N_ENVS,
        seed=args.seed,
        joint_kwargs=JOINT_KWARGS,
        vec_env_cls=FASTEST,
    )
    eval_env = make_joint_vec_env(
        args.env,
        n_envs=N_EVAL_ENVS,
        seed=EVAL_SEED,
        joint_kwargs=JOINT_KWARGS,
        vec_env_cls=FASTEST,
    )
    model = make_model(env, args.seed)
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
    print_returns(returns, seconds)

    curve, saved = args.out / "learning_curve.png", args.out / "model.zip"
    model.save(saved)
    random_return = float(np.mean(returns["random team"]))
    draw_learning_curve(curve, callback, random_return, f"HAPPO on {args.env}")
    print(f"Learning curve: {curve}\nThe model, for HAPPO.load: {saved}")
    try_to_film(args.out / "trained_team.gif", model, args.env)


if __name__ == "__main__":
    main()
