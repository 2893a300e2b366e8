"""
Files in the folder of a run: the algorithm of a saved model, and its normalisation statistics.
"""

from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from huggingface_sb3 import EnvironmentName


def read_yaml(path: Path) -> Any:
    """
    :param path: YAML file that RL Zoo has written into the folder of a run
    :return: Content of the file, Python objects included. Such files are as trusted as pickles
    """
    return yaml.load(path.read_text(), yaml.UnsafeLoader)


def find_statistics(model: Path, env_name: EnvironmentName) -> Path | None:
    """
    :param model: Path of a saved model
    :param env_name: Name of its environment
    :return: Path of the model's normalisation statistics, None if there are none
    """
    name, folder = model.stem, model.parent
    candidates = [
        folder / name / "vecnormalize.pkl",
        folder / f"{name.replace('rl_model_', 'rl_model_vecnormalize_')}.pkl",
        folder / f"{name}_vecnormalize.pkl",  # of last_good.zip
        folder / env_name / "vecnormalize.pkl",
    ]
    for path in candidates:
        if path.is_file():
            return path
    return None


def check_algorithm(model: Path, algo: str) -> None:
    """
    :param model: Path of a saved model, in the folder of its run or alone
    :param algo: Name of the algorithm that is to load it
    :raises ValueError: If the run's files name another algorithm
    """
    for path in model.parent.glob("*/args.yml"):
        trained = read_yaml(path)["algo"]
        if trained != algo:
            raise ValueError(
                f"{model} was trained by {trained}, not by {algo}; pass --algo {trained}."
            )
