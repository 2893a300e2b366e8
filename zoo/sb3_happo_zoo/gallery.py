"""
Film the agents that come with the zoo, without a display.

    python zoo/gallery.py

Writes one GIF per agent to ``docs/gallery``, unless the environment cannot be drawn on this
machine.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from sb3_happo_zoo.paths import AGENTS, DOCS, interpreter_arguments

GALLERY = DOCS / "gallery"
N_FRAMES = 75
PIXELS = 240
SEED = 3


def enjoy_command(trained: dict[str, Any], agents: Path, film: Path) -> list[str]:
    """
    :param trained: Content of the agent's ``args.yml``
    :param agents: Folder of the agents
    :param film: Path of the GIF
    :return: Words of the command that films the agent
    """
    command = [sys.executable, *interpreter_arguments("enjoy")]
    if trained["env"].startswith("mamujoco/"):  # the default camera does not follow the robots
        command += ["--env-kwargs", 'camera_name:"track"']
    options = {
        "algo": trained["algo"],
        "env": trained["env"],
        "folder": agents,
        "seed": SEED,
        "record": film,
        "n-timesteps": N_FRAMES,
        "record-pixels": PIXELS,
        "verbose": 0,
    }
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    return command


def main(argv: Sequence[str] | None = None) -> None:
    """
    Command line.

    :param argv: Arguments, by default those of the process
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--agents", type=Path, default=AGENTS, help="folder of the agents")
    parser.add_argument("--out", type=Path, default=GALLERY, help="folder for the GIFs")
    args = parser.parse_args(argv)
    for path in sorted(args.agents.glob("*/*_1/*/args.yml")):
        trained = yaml.safe_load(path.read_text())
        film = args.out / f"{trained['algo']}-{path.parent.name}.gif"
        command = enjoy_command(trained, args.agents, film)
        # One process per agent: after one drawing library others may fail. The process prints its
        # error
        made = subprocess.run(command, check=False).returncode == 0
        print(f"{film}: {f'{film.stat().st_size / 1024:.0f} kB' if made else 'not made'}")


if __name__ == "__main__":
    main()
