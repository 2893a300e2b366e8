"""
Film the agents that come with the zoo, without a display.

    python zoo/gallery.py

One GIF per agent goes to ``docs/gallery``, unless its environment cannot be drawn here.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml  # type: ignore[import-untyped]
from exp_manager import AGENTS, ZOO

GALLERY = Path(__file__).resolve().parents[1] / "docs" / "gallery"
N_FRAMES = 75
PIXELS = 240
SEED = 3


def main(argv: Sequence[str] | None = None) -> None:
    """
    Command line.

    :param argv: Its arguments; by default the process's
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
        # The bodies run out of the default camera's sight
        camera = (
            ["--env-kwargs", 'camera_name:"track"']
            if trained["env"].startswith("mamujoco/")
            else []
        )
        command = [
            *(sys.executable, str(ZOO / "enjoy.py"), *camera),
            *(
                "--algo",
                trained["algo"],
                "--env",
                trained["env"],
                "--folder",
                str(args.agents),
                "--seed",
                str(SEED),
            ),
            *(
                "--record",
                str(film),
                "--n-timesteps",
                str(N_FRAMES),
                "--record-pixels",
                str(PIXELS),
                "--verbose",
                "0",
            ),
        ]
        # Each in a process of its own: after one drawing library others may refuse to work. Why one has failed it says itself
        made = subprocess.run(command, check=False).returncode == 0
        print(f"{film}: {f'{film.stat().st_size / 1024:.0f} kB' if made else 'not made'}")


if __name__ == "__main__":
    main()
