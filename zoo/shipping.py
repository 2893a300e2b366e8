"""Trained agents that come with the zoo: small copies of runs' folders, in ``zoo/agents``."""

import io
import json
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch as th
import yaml  # type: ignore[import-untyped]
from exp_manager import load_agent
from records import Record, canonical
from runs import Run

# What an agent needs neither to act nor to go on training
LEFT_OUT = (
    "_last_obs",
    "_last_original_obs",
    "_last_episode_starts",
    "ep_info_buffer",
    "ep_success_buffer",
)
RECORD = "record.json"


def ship(
    runs: Sequence[Run], records: Sequence[Record], log_folder: Path, agents: Path
) -> list[Path]:
    """
    Put the final agents of the best seeds into the zoo. An agent that is there already stays if it was trained with the same
    hyperparameters and is no worse.

    :param runs: Among which to choose, for each algorithm and environment
    :param records: Of finished runs
    :param log_folder: Where their folders are; a run whose folder is not there cannot be shipped
    :param agents: Where to, in the layout of a log folder
    :return: The folders of new agents
    """
    best: dict[Path, tuple[Record, Path]] = {}
    for run in runs:
        record = run.record_in(records, n_episodes=1)
        for trained in (log_folder / run.name / run.algo).glob("*_1"):
            folder = agents / run.algo / trained.name
            if record is not None and (
                folder not in best or record["return"] > best[folder][0]["return"]
            ):
                best[folder] = record, trained
    new = []
    for folder, (record, trained) in best.items():
        if (folder / RECORD).is_file():
            shipped = json.loads((folder / RECORD).read_text())
            same = (
                len({canonical(run["hyperparams"], run["algo"]) for run in (shipped, record)}) == 1
            )
            if same and shipped["return"] >= record["return"]:
                continue
        copy_agent(trained, folder, record)
        new.append(folder)
    return new


def copy_agent(trained: Path, folder: Path, record: Record) -> None:
    """
    Copy what is needed to act, and to go on training with fresh optimisers.

    :param trained: Folder of a run
    :param folder: The new one; what is there is replaced
    :param record: Of the run
    """
    shutil.rmtree(folder, ignore_errors=True)
    model, *_ = load_agent(trained, "cpu")
    for module in model.policy.modules():
        optimizer = getattr(module, "optimizer", None)
        if isinstance(optimizer, th.optim.Optimizer):
            optimizer.state.clear()  # two thirds of the file
    (configs,) = trained.glob("*/config.yml")
    details = folder / configs.parent.name
    details.mkdir(parents=True)
    saved = io.BytesIO()
    model.save(saved, exclude=LEFT_OUT)
    with (
        zipfile.ZipFile(saved) as full,
        zipfile.ZipFile(folder / f"{details.name}.zip", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for name in full.namelist():
            if (
                name != "system_info.txt"
            ):  # of the machine that ships; versions.yml is of the one that trained
                small.writestr(name, full.read(name))
    for name in ("config.yml", "versions.yml", "vecnormalize.pkl"):
        if (configs.parent / name).is_file():
            shutil.copy(configs.parent / name, details)
    # RL Zoo's list of arguments, without the paths of where it was trained
    arguments = {name: record[name] for name in ("algo", "env", "seed")} | dict.fromkeys(
        ("env_kwargs", "eval_env_kwargs")
    )
    (details / "args.yml").write_text(yaml.safe_dump(arguments))
    (details / "command.txt").write_text(record["command"] + "\n")
    (folder / RECORD).write_text(json.dumps(record) + "\n")
