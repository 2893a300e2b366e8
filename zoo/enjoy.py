"""
Watch a trained team, film it, or count what it gets.

    python zoo/enjoy.py --algo happo --env mpe2/simple_spread_v3
    python zoo/enjoy.py --algo happo --env mpe2/simple_spread_v3 -f logs --load-best --record team.gif --n-episodes 3
    python zoo/enjoy.py --algo happo --env mpe2/simple_spread_v3 --no-render --n-episodes 100 --n-envs 10

Agents are taken from the log folder, by default ``logs`` and then those that come with the zoo (``zoo/agents``). Where there
is no display, or with ``--no-render``, only the returns are printed.
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
from cli import add_common_arguments, count, prepare, usage_errors, whole_number
from exp_manager import AGENTS, load_agent, nearest
from huggingface_sb3 import EnvironmentName
from PIL import Image
from rl_zoo3.utils import get_latest_run_id, get_model_path
from stable_baselines3.common.vec_env import VecEnv

from sb3_happo.common.on_policy_algorithm import check_env_of_model

_UNDRAWN = (
    "If drawing is what fails, --no-render without --record tells the returns alone. Without a display, MuJoCo and VMAS draw "
    "with EGL (Debian: libegl1), others with a virtual display (xvfb-run)."
)


class Episode(NamedTuple):
    """
    What a team got in an episode.

    :param team_return: The sum of its rewards
    :param agent_returns: Of each agent's own ones, ``(n_agents,)``
    :param length: Steps
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
    Let a team play.

    :param model: Its ``predict`` is asked
    :param env: Where
    :param n_timesteps: Stop after so many, counted over the environments
    :param n_episodes: Stop after so many, of which each environment plays its share, so that long episodes count as well
    :param deterministic: Whether the agents take their most likely actions
    :param on_step: Called before each step
    :return: The episodes, as they end
    """
    obs, state, starts = env.reset(), None, np.ones(env.num_envs, dtype=bool)
    returns, lengths = np.zeros(env.num_envs), np.zeros(env.num_envs, dtype=int)
    agent_returns = np.zeros((env.num_envs, len(env.action_space.spaces)))  # type: ignore[attr-defined]
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
    :param path: Of the film, ``.gif`` or ``.mp4``
    :param frames: ``(height, width, 3)`` each, uint8
    :param fps: Frames per second
    :param pixels: Length of its longer side at most
    """
    small = []
    for frame in frames:
        image = Image.fromarray(frame)
        image.thumbnail((pixels, pixels))
        # Codecs want even sides
        small.append(np.asarray(image)[: image.height // 2 * 2, : image.width // 2 * 2])
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gif":
        # One palette for all frames and no dithering: what does not move then costs nothing
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
    :param args: Of the command line
    :return: Path of the model that it asks for
    :raises ValueError: If there is none
    """
    name = EnvironmentName(args.env)
    folders = [Path("logs"), AGENTS] if args.folder is None else [args.folder]
    checkpoint = None if args.load_checkpoint is None else str(args.load_checkpoint)
    choice = (args.load_best, checkpoint, args.load_last_checkpoint)
    for folder in folders:
        if (folder / name / "config.yml").is_file():  # a run's own
            return get_model_path(-1, str(folder), "", name, *choice)[1]
        runs = folder / args.algo
        exists = (
            (runs / f"{name}_{args.exp_id}").is_dir()
            if args.exp_id > 0
            else get_latest_run_id(str(runs), name) > 0
        )
        if exists or (args.exp_id < 0 and runs.is_dir()):
            return get_model_path(args.exp_id, str(folder), args.algo, name, *choice)[1]
    there = sorted(
        {
            path.name
            for folder in folders
            for path in (folder / args.algo).glob("*_*")
            if path.is_dir()
        }
    )
    near = nearest(f"{name}_1", there)
    run = f"run {args.exp_id}" if args.exp_id > 0 else "run"
    raise ValueError(
        f"There is no {run} of {args.algo} on {args.env} in {' or '.join(map(str, folders))}; train one with zoo/train.py."
        + (f" Did you mean {near}?" if near else "")
        + (f" There are {', '.join(there)}." if there else "")
    )


def print_statistics(episodes: Sequence[Episode], agents: Sequence[str]) -> None:
    """
    :param episodes: At least one
    :param agents: Their names
    """
    sums = [episode.agent_returns.sum() for episode in episodes]
    print(f"{len(episodes)} episodes, mean +/- standard deviation:")
    for label, values in (
        ("return of the team", [episode.team_return for episode in episodes]),
        ("sum over the agents", sums),
        *(
            (agent, [episode.agent_returns[index] for episode in episodes])
            for index, agent in enumerate(agents)
        ),
        ("length", [episode.length for episode in episodes]),
    ):
        print(f"  {label:<20} {np.mean(values):10.2f} +/- {np.std(values):.2f}")


def make_parser() -> argparse.ArgumentParser:
    """
    :return: The command line: RL Zoo's flags, and a few more
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
        help="log folder, or a run's own; by default logs, then zoo/agents",
    )
    parser.add_argument(
        "--exp-id",
        type=int,
        default=0,
        help="number of the run (0: the latest, -1: no folder of a run)",
    )
    parser.add_argument(
        "--load-best", action="store_true", help="the best model instead of the last"
    )
    parser.add_argument(
        "--load-checkpoint", type=whole_number, help="the checkpoint after so many timesteps"
    )
    parser.add_argument("--load-last-checkpoint", action="store_true", help="the last checkpoint")
    parser.add_argument(
        "-n", "--n-timesteps", type=whole_number, default=1000, help="timesteps (%(default)s)"
    )
    parser.add_argument("--n-episodes", type=count, help="episodes, instead of --n-timesteps")
    parser.add_argument("--n-envs", type=count, default=1, help="environments")
    actions = parser.add_mutually_exclusive_group()
    actions.add_argument(
        "--deterministic",
        action="store_true",
        help="the most likely actions (default, if the entry says so)",
    )
    actions.add_argument("--stochastic", action="store_true", help="sampled actions")
    parser.add_argument("--no-render", action="store_true", help="open no window")
    parser.add_argument("--record", type=Path, metavar="FILE", help="film to write: .gif or .mp4")
    parser.add_argument("--fps", type=float, help="of the film, by default the environment's")
    parser.add_argument(
        "--record-pixels", type=count, default=400, help="the film's longer side (%(default)s)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> list[Episode]:
    """
    Command line.

    :param argv: Arguments, by default those of the process
    :return: The episodes played
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    with usage_errors(parser, args.verbose):
        if args.record is not None and args.record.suffix not in (".gif", ".mp4"):
            raise ValueError(f"--record writes .gif and .mp4, not {args.record}")
        prepare(args)
        path = find_model(args)
        print(f"Loading {path}")
        team = load_agent(path, args.device)
        mode = _render_mode(args)
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
    with contextlib.suppress(KeyboardInterrupt):  # what was seen until then is told
        for episode in play(team.model, env, n_timesteps, args.n_episodes, deterministic, on_step):
            episodes.append(episode)
            if args.verbose > 0:
                print(
                    f"Episode {len(episodes)}: return {episode.team_return:.2f}, length {episode.length}"
                )
    if frames:
        fps = args.fps or env.get_attr("metadata")[0].get("render_fps", 10)
        with usage_errors(parser, args.verbose):
            write_film(args.record, frames, fps, args.record_pixels)
        print(f"Film: {args.record}")
    if args.verbose > 0:
        if episodes:
            print_statistics(episodes, tuple(team.model.agents))
        else:
            print("No episode has ended.")
    env.close()
    return episodes


def draw(env: VecEnv, env_id: str, mode: str) -> np.ndarray | None:
    """
    :param env: To be drawn
    :param env_id: Its id
    :param mode: "human" for a window, "rgb_array" for a picture
    :return: The picture of the first of the environments, ``(height, width, 3)``, if one was asked for
    :raises ValueError: If it cannot be drawn here
    """
    try:
        if mode == "human":
            env.render("human")
            return None
        picture: Any = env.get_images()[0]
    except Exception as error:  # whatever the libraries that draw make of a missing display
        raise ValueError(
            f"{env_id} cannot be drawn here ({type(error).__name__}: {error}). {_UNDRAWN}"
        ) from error
    if np.ndim(picture) != 3:  # None, or whatever else
        raise ValueError(f"{env_id} cannot be filmed: it draws no pictures. {_UNDRAWN}")
    return np.asarray(picture)


def _render_mode(args: argparse.Namespace) -> str | None:
    """The environments', and what they need where there is no display."""
    display = sys.platform in ("darwin", "win32") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )
    if not display or args.no_render or args.record is not None:
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    # MuJoCo would load it when it is imported, even if nothing were drawn
    if not display and args.record is not None:
        os.environ.setdefault("MUJOCO_GL", "egl")
    if args.record is not None:
        return "rgb_array"
    if not display and not args.no_render:
        print("There is no display: nothing is drawn (--record FILE makes a film).")
    return "human" if display and not args.no_render else None


def _make_env(
    make_env: Callable[..., VecEnv], args: argparse.Namespace, mode: str | None
) -> VecEnv:
    kwargs = ({} if mode is None else {"render_mode": mode}) | (args.env_kwargs or {})
    try:
        env = make_env(args.n_envs, args.seed, **kwargs)
    except Exception as error:
        if mode is None:
            raise
        raise ValueError(f"{type(error).__name__}: {error}. {_UNDRAWN}") from error
    modes = [] if args.record is None else env.get_attr("metadata")[0].get("render_modes", [])
    if modes and mode not in modes:
        env.close()
        raise ValueError(
            f"{args.env} cannot be filmed: it draws no pictures, but {', '.join(modes)}."
        )
    return env


if __name__ == "__main__":
    main()
