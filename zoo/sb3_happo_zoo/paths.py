"""
Folders and files of the zoo.

In a clone of the repository the data lie in ``zoo/``, and results are written there. In an
installed package the hyperparameters and the trained agents lie inside the package, and results are
written to the current folder.
"""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
#: Whether the package was installed without the repository
INSTALLED = (_PACKAGE / "hyperparams").is_dir()
#: Folder with the hyperparameters and the trained agents
ZOO = _PACKAGE if INSTALLED else _PACKAGE.parent
HYPERPARAMS = ZOO / "hyperparams"
#: Trained agents that come with the zoo, each in the layout of an experiment's log folder
AGENTS = ZOO / "agents"
#: Folder for the files of results
OUTPUT = Path() if INSTALLED else ZOO
#: Root of the repository, to which the recorded commands' paths are relative
ROOT = Path() if INSTALLED else ZOO.parent
#: Folder for reports
DOCS = Path() if INSTALLED else ROOT / "docs"


def command_words(script: str) -> list[str]:
    """
    :param script: Name of a script, such as ``"train"``
    :return: Words of the shell command that starts it
    """
    return ["sb3-happo", script] if INSTALLED else ["python", f"zoo/{script}.py"]


def interpreter_arguments(script: str) -> list[str]:
    """
    :param script: Name of a script, such as ``"train"``
    :return: Arguments of the Python interpreter that start it, from any folder
    """
    return ["-m", f"sb3_happo_zoo.{script}"] if INSTALLED else [str(ZOO / f"{script}.py")]
