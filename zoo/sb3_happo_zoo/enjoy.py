"""
Watch a trained team, film it, or compute its returns.

    python zoo/enjoy.py --algo happo --env mpe2/simple_spread_v3
    python zoo/enjoy.py --algo happo --env mpe2/simple_spread_v3 -f logs --load-best \\
        --record team.gif --n-episodes 3
    python zoo/enjoy.py --algo happo --env mpe2/simple_spread_v3 --no-render --n-episodes 100 \\
        --n-envs 10

Agents are searched in the log folder; by default in ``logs``, then among those that come with the
zoo (``zoo/agents``). Without a display, or with ``--no-render``, only the returns are printed.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import imageio.v3 as imageio
import numpy as np
from gymnasium import spaces
from huggingface_sb3 import EnvironmentName
from PIL import Image
from rl_zoo3.utils import get_latest_run_id, get_model_path
from stable_baselines3.common.vec_env import VecEnv

from sb3_happo.common.checks import check_env_of_model
from sb3_happo_zoo.cli import add_common_arguments, count, prepare, usage_errors, whole_number
from sb3_happo_zoo.entries import nearest
from sb3_happo_zoo.paths import AGENTS, command_words
from sb3_happo_zoo.trained_agents import load_agent

_UNDRAWN = (
    "If drawing fails, --no-render without --record prints the returns only. Without a display, "
    "MuJoCo and VMAS draw with EGL (Debian: libegl1), others with a virtual display (xvfb-run)."
)


class Episode(NamedTuple):
    """
    Result of an episode.

    :param team_return: Sum of the team's rewards
    :param agent_returns: Sums of each agent's own rewards, ``(n_agents,)``
    :param length: Number of steps
    """

    team_return: float
    agent_returns: np.ndarray
    length: int


def play(
    model: Any,
    env: VecEnv,
    n_timesteps: int | None = None,
    n_episodes: int | None = None,
    deterministic: bool = True,
    on_step: Callable[[], Any] | None = None,
) -> Iterator[Episode]:
    """
    Run episodes.

    :param model: Object with SB3's ``predict``
    :param env: Joint environments
    :param n_timesteps: Number of timesteps, summed over the environments, after which to stop
    :param n_episodes: Number of episodes after which to stop. Each environment runs its share,
        because otherwise short episodes would be over-represented
    :param deterministic: Whether the agents take their most likely actions
    :param on_step: Function that is called before each step
    :return: The episodes, in the order in which they end
    """
    obs, state, starts = env.reset(), None, np.ones(env.num_envs, dtype=bool)
    returns, lengths = np.zeros(env.num_envs), np.zeros(env.num_envs, dtype=int)
    assert isinstance(env.action_space, spaces.Dict)
    agent_returns = np.zeros((env.num_envs, len(env.action_space)))
    shares = np.full(env.num_envs, np.iinfo(int).max)
    if n_episodes is not None:
        shares = (n_episodes + np.arange(env.num_envs)) // env.num_envs
    steps = 0
    while shares.any() and (n_timesteps is None or steps < n_timesteps):
        if on_step is not None:
            on_step()
        actions, state = model.predict(
            obs, state=state, episode_start=starts, deterministic=deterministic
        )
        obs, rewards, starts, infos = env.step(actions)
        steps += env.num_envs
        returns += rewards
        agent_returns += [info["agent_rewards"] for info in infos]
        lengths += 1
        for index in np.flatnonzero(starts):
            if shares[index]:
                shares[index] -= 1
                yield Episode(
                    float(returns[index]), agent_returns[index].copy(), int(lengths[index])
                )
            returns[index], agent_returns[index], lengths[index] = 0.0, 0.0, 0


def write_film(path: Path, frames: Sequence[np.ndarray], fps: float, pixels: int = 400) -> None:
    """
    :param path: Path of the film, ``.gif`` or ``.mp4``
    :param frames: Frames, ``(height, width, 3)`` each, uint8
    :param fps: Frames per second
    :param pixels: Maximum length of the longer side, in pixels
    """
    small = []
    for frame in frames:
        image = Image.fromarray(frame)
        image.thumbnail((pixels, pixels))
        # Codecs need even sides
        small.append(np.asarray(image)[: image.height // 2 * 2, : image.width // 2 * 2])
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gif":
        # With one palette for all frames and no dithering, pixels that do not change are not stored
        # again
        palette = Image.fromarray(np.concatenate(small[:: len(small) // 4 or 1])).quantize(64)
        first, *others = (
            Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
            for frame in small
        )
        first.save(path, save_all=True, append_images=others, duration=1000 / fps, loop=0)
    else:
        imageio.imwrite(path, small, fps=fps, macro_block_size=2)


def find_model(args: argparse.Namespace) -> str:
    """
    :param args: Parsed command line
    :return: Path of the model
    :raises ValueError: If there is none
    """
    name = EnvironmentName(args.env)
    folders = [Path("logs"), AGENTS] if args.folder is None else [args.folder]
    checkpoint = None if args.load_checkpoint is None else str(args.load_checkpoint)
    choice = (args.load_best, checkpoint, args.load_last_checkpoint)
    for folder in folders:
        if (folder / name / "config.yml").is_file():  # the folder of a run
            return get_model_path(-1, str(folder), "", name, *choice)[1]
        if _has_run(folder / args.algo, name, args.exp_id):
            return get_model_path(args.exp_id, str(folder), args.algo, name, *choice)[1]
    raise ValueError(_no_run(args, name, folders))


def _has_run(runs: Path, name: EnvironmentName, number: int) -> bool:
    """
    :param runs: Folder of the runs of one algorithm
    :param name: Name of the environment
    :param number: Number of the run; 0 for any, negative for models that are not in the folder of a
        run
    :return: Whether there is such a run
    """
    if number > 0 and (runs / f"{name}_{number}").is_dir():
        return True
    if number <= 0 and get_latest_run_id(str(runs), name) > 0:
        return True
    return number < 0 and runs.is_dir()


def _no_run(args: argparse.Namespace, name: EnvironmentName, folders: Sequence[Path]) -> str:
    """
    :param args: Parsed command line
    :param name: Name of the environment
    :param folders: Log folders that were searched
    :return: Text of an error
    """
    existing = set()
    for folder in folders:
        existing |= {path.name for path in (folder / args.algo).glob("*_*") if path.is_dir()}
    near = nearest(f"{name}_1", sorted(existing))
    run = f"run {args.exp_id}" if args.exp_id > 0 else "run"
    text = (
        f"There is no {run} of {args.algo} on {args.env} in {' or '.join(map(str, folders))}; "
        f"train one with {' '.join(command_words('train'))}."
    )
    if near:
        text += f" Did you mean {near}?"
    if existing:
        text += f" There are {', '.join(sorted(existing))}."
    return text


def print_statistics(episodes: Sequence[Episode], agents: Sequence[str]) -> None:
    """
    :param episodes: Episodes, at least one
    :param agents: Names of the agents
    """
    columns = {
        "return of the team": [episode.team_return for episode in episodes],
        "sum over the agents": [episode.agent_returns.sum() for episode in episodes],
    }
    for index, agent in enumerate(agents):
        columns[agent] = [episode.agent_returns[index] for episode in episodes]
    columns["length"] = [episode.length for episode in episodes]
    print(f"{len(episodes)} episodes, mean +/- standard deviation:")
    for label, values in columns.items():
        print(f"  {label:<20} {np.mean(values):10.2f} +/- {np.std(values):.2f}")


def make_parser() -> argparse.ArgumentParser:
    """
    :return: Parser of the command line, with RL Zoo's flags and others
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_arguments(parser)
    parser.set_defaults(seed=0)
    parser.add_argument(
        "-f",
        "--folder",
        type=Path,
        help="log folder, or folder of a run; by default logs, then zoo/agents",
    )
    parser.add_argument(
        "--exp-id",
        type=int,
        default=0,
        help="number of the run (0: the latest, -1: models that are in no folder of a run)",
    )
    parser.add_argument(
        "--load-best", action="store_true", help="load the best model instead of the last"
    )
    parser.add_argument(
        "--load-checkpoint",
        type=whole_number,
        help="load the checkpoint of this number of timesteps",
    )
    parser.add_argument(
        "--load-last-checkpoint", action="store_true", help="load the last checkpoint"
    )
    parser.add_argument(
        "-n",
        "--n-timesteps",
        type=whole_number,
        default=1000,
        help="number of timesteps (%(default)s)",
    )
    parser.add_argument(
        "--n-episodes", type=count, help="number of episodes, instead of --n-timesteps"
    )
    parser.add_argument("--n-envs", type=count, default=1, help="number of environments")
    actions = parser.add_mutually_exclusive_group()
    actions.add_argument(
        "--deterministic",
        action="store_true",
        help="take the most likely actions (the default, unless the entry says otherwise)",
    )
    actions.add_argument("--stochastic", action="store_true", help="sample actions")
    parser.add_argument("--no-render", action="store_true", help="do not open a window")
    parser.add_argument(
        "--record", type=Path, metavar="FILE", help="path of a film to write: .gif or .mp4"
    )
    parser.add_argument(
        "--fps", type=float, help="frames per second of the film, by default the environment's"
    )
    parser.add_argument(
        "--record-pixels",
        type=count,
        default=400,
        help="longer side of the film, in pixels (%(default)s)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> list[Episode]:
    """
    Command line.

    :param argv: Arguments, by default those of the process
    :return: The episodes
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    with usage_errors(parser, args.verbose):
        if args.record is not None and args.record.suffix not in (".gif", ".mp4"):
            raise ValueError(f"--record writes .gif and .mp4, not {args.record}")
        prepare(args)
        path = find_model(args)
        print(f"Loading {path}")
        team = load_agent(path, args.device, args.trust_pickle)
        mode = render_mode(args)
        env = _make_env(team.make_env, args, mode)
        check_env_of_model(env, team.model.observation_space, team.model.action_space)
    deterministic = args.deterministic or (team.deterministic and not args.stochastic)
    n_timesteps = args.n_timesteps if args.n_episodes is None else None
    frames: list[np.ndarray] = []

    def on_step() -> None:
        if mode is None:
            return
        with usage_errors(parser, args.verbose):
            frame = draw(env, args.env, mode)
        if frame is not None:
            frames.append(frame)

    episodes: list[Episode] = []
    # After Ctrl-C the finished episodes are reported
    with contextlib.suppress(KeyboardInterrupt):
        for episode in play(team.model, env, n_timesteps, args.n_episodes, deterministic, on_step):
            episodes.append(episode)
            if args.verbose > 0:
                result = f"return {episode.team_return:.2f}, length {episode.length}"
                print(f"Episode {len(episodes)}: {result}")
    if frames:
        fps = args.fps or env.get_attr("metadata")[0].get("render_fps", 10)
        with usage_errors(parser, args.verbose):
            write_film(args.record, frames, fps, args.record_pixels)
        print(f"Film: {args.record}")
    if args.verbose > 0 and episodes:
        print_statistics(episodes, tuple(team.model.agents))
    elif args.verbose > 0:
        print("No episode has ended.")
    env.close()
    return episodes


def draw(env: VecEnv, env_id: str, mode: str) -> np.ndarray | None:
    """
    :param env: Environments
    :param env_id: Id of the environment
    :param mode: "human" for a window, "rgb_array" for a picture
    :return: Picture of the first environment, ``(height, width, 3)``; None with a window
    :raises ValueError: If it cannot be drawn on this machine
    """
    try:
        if mode == "human":
            env.render("human")
            return None
        picture: Any = env.get_images()[0]
    except Exception as error:  # drawing libraries raise various errors without a display
        raise ValueError(
            f"{env_id} cannot be drawn here ({type(error).__name__}: {error}). {_UNDRAWN}"
        ) from error
    if np.ndim(picture) != 3:
        raise ValueError(f"{env_id} cannot be filmed: it draws no pictures. {_UNDRAWN}")
    return np.asarray(picture)


def has_display() -> bool:
    """
    :return: Whether a window can be opened
    """
    if sys.platform in ("darwin", "win32"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def render_mode(args: argparse.Namespace) -> str | None:
    """
    Choose the environments' render mode, and set the environment variables with which libraries
    draw without a display.

    :param args: Parsed command line
    :return: Render mode: "human" for a window, "rgb_array" for a film, None to draw nothing
    """
    display = has_display()
    if args.record is not None:
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        # Only for films: MuJoCo loads EGL when it is imported, even if nothing is drawn
        if not display:
            os.environ.setdefault("MUJOCO_GL", "egl")
        return "rgb_array"
    if display and not args.no_render:
        return "human"
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    if not args.no_render:
        print("There is no display: nothing is drawn (--record FILE makes a film).")
    return None


def _make_env(
    make_env: Callable[..., VecEnv], args: argparse.Namespace, mode: str | None
) -> VecEnv:
    """
    :param make_env: Function that makes the environments
    :param args: Parsed command line
    :param mode: Render mode
    :return: The environments
    :raises ValueError: If they cannot be made with this render mode
    """
    kwargs = dict(args.env_kwargs or {})
    if mode is not None:
        kwargs.setdefault("render_mode", mode)
    try:
        env = make_env(args.n_envs, args.seed, **kwargs)
    except Exception as error:
        if mode is None:
            raise
        raise ValueError(f"{type(error).__name__}: {error}. {_UNDRAWN}") from error
    if args.record is not None:
        modes = env.get_attr("metadata")[0].get("render_modes", [])
        if modes and mode not in modes:
            env.close()
            raise ValueError(
                f"{args.env} cannot be filmed: it draws no pictures, but {', '.join(modes)}."
            )
    return env


if __name__ == "__main__":
    main()
