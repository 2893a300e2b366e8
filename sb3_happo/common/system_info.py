"""Versions of the system, for bug reports."""

from importlib import metadata

from stable_baselines3.common.utils import get_system_info

from sb3_happo.version import __version__

#: Distributions beside those that SB3 names
PACKAGES = ("pettingzoo", "sb3-contrib", "safetensors", "scipy")


def print_system_info() -> dict[str, str]:
    """
    Print the versions of Python, of the system and of the packages, as SB3's ``get_system_info``
    does, with those that this package needs.

    :return: Versions by name
    """
    versions, _ = get_system_info(print_info=False)
    versions["sb3_happo"] = __version__
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    for name, version in versions.items():
        print(f"- {name}: {version}")
    return versions
