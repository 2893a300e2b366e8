"""Files of SB3's ``Monitor`` that a continued training goes on with."""

import json
import os
from pathlib import Path

from stable_baselines3.common.monitor import Monitor


def monitor_sizes(folder: str | Path) -> dict[str, int]:
    """
    :param folder: Folder with the files of monitors
    :return: Bytes of each file, by its name
    """
    return {path.name: path.stat().st_size for path in Path(folder).glob(f"*{Monitor.EXT}")}


def cut_monitor_files(folder: str | Path, sizes: dict[str, int]) -> None:
    """
    Remove the rows of episodes that ended after a checkpoint, and a last row that is torn.

    :param folder: Folder with the files of monitors
    :param sizes: Sizes at the checkpoint
    """
    for name, size in sizes.items():
        path = Path(folder) / name
        if path.is_file() and path.stat().st_size > size:
            os.truncate(path, size)


def monitor_start(folder: str | Path) -> float | None:
    """
    :param folder: Folder with the files of monitors
    :return: Time at which the first of them was begun, seconds since the epoch; None without any
    """
    starts = []
    for path in Path(folder).glob(f"*{Monitor.EXT}"):
        with path.open() as file:
            first = file.readline()
        try:
            starts.append(float(json.loads(first.removeprefix("#"))["t_start"]))
        except (ValueError, KeyError):
            continue
    return min(starts, default=None)
