"""Versions of the software that a run is recorded with."""

import platform
import subprocess
from importlib import metadata

import sb3_happo
from sb3_happo_zoo.paths import INSTALLED, ZOO

PACKAGES = (
    "torch",
    "stable-baselines3",
    "sb3-contrib",
    "rl-zoo3",
    "gymnasium",
    "pettingzoo",
    "numpy",
    "mpe2",
    "gymnasium-robotics",
    "mujoco",
    "lbforaging",
    "rware",
    "supersuit",
    "vmas",
    "envpool",
)


def versions() -> dict[str, str]:
    """
    :return: Versions of Python and of the installed ones of ``PACKAGES``, and the commit of the
        repository
    """
    found = {"python": platform.python_version(), "sb3_happo": sb3_happo.__version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found | {"commit": commit()}


def commit() -> str:
    """
    :return: Short hash of the repository's commit, with "-dirty" if its code has changed since;
        "unknown" without a repository
    """
    if INSTALLED:  # a repository around the environment's folder would be another one
        return "unknown"
    try:
        head = subprocess.check_output(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ZOO, text=True, stderr=subprocess.DEVNULL
        )
        # Files that runs write do not change the code
        outputs = (":!results.jsonl", ":!benchmark.md", ":!curves", ":!agents", ":!../docs/gallery")
        changed = subprocess.run(
            ["git", "diff", "--quiet", "HEAD", "--", "..", *outputs], cwd=ZOO, check=False
        ).returncode
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head.strip()}-dirty" if changed else head.strip()
