"""
Convert files of earlier versions, which are pickles, into files that hold no code.

    sb3-happo convert OLD.zip NEW.zip                 a model, a team's policy, or one agent
    sb3-happo convert vecnormalize.pkl NEW.zip        statistics of VecNormalize
    sb3-happo convert logs/happo/mpe2-simple_spread_v3_1 FOLDER

A model gets the statistics that lie beside it. Loading a pickle can run any code that its author
has put into it: convert files that you trust.
"""

import argparse
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

from huggingface_sb3 import EnvironmentName
from stable_baselines3.common.vec_env import VecNormalize

from sb3_happo.common.agent_policy import AgentPolicy
from sb3_happo.common.joint_policy import JointPolicy
from sb3_happo.common.safe_files import write_safe_file
from sb3_happo.common.saved_files import SavedFile, inspect_file, module_and_name
from sb3_happo.vec_env.normalizer_files import PART, read_normalizer
from sb3_happo_zoo.algorithms import TEAM_ALGOS
from sb3_happo_zoo.run_folder import find_statistics, read_yaml, write_yaml
from sb3_happo_zoo.trained_agents import save_small


def convert_file(old: Path, new: Path, algo: str = "", statistics: Path | None = None) -> str:
    """
    Convert one file. It is run as far as a pickle is: convert files that you trust.

    :param old: Path of the file
    :param new: Path of the new file, which may be the same
    :param algo: Name of a model's algorithm, where the file does not tell it
    :param statistics: Path of the normalisation statistics to put into a model's file
    :return: Description of the content
    :raises ValueError: If it is no file of sb3_happo
    """
    content = inspect_file(old)
    if content is None:
        raise ValueError(f"There is no file {old}.")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is a pickle of an earlier version.*")
        _convert(old, new, content, algo, statistics)
    return content.words


def _convert(old: Path, new: Path, content: SavedFile, algo: str, statistics: Path | None) -> None:
    if content.kind == "model":
        name = algo or content.algorithms[0].lower()
        if name not in TEAM_ALGOS:
            raise ValueError(f"{old} holds {content.words}; pass --algo, {', '.join(TEAM_ALGOS)}.")
        model = TEAM_ALGOS[name].load(old, device="cpu", trust_pickle=True)
        save_small(model, new, statistics, trust_pickle=True)
    elif content.kind == "team":
        JointPolicy.load(old, device="cpu", trust_pickle=True).save(new)
    elif content.kind == "agent":
        AgentPolicy.load(old, device="cpu", trust_pickle=True).save(new)
    elif content.kind in ("pickle", "vec_normalize"):
        state = read_normalizer(old, "VecNormalizeTeam", trust_pickle=True)
        name = VecNormalize.__name__
        write_safe_file(new, PART, {PART: state}, name, info=module_and_name(VecNormalize))
    else:
        raise ValueError(f"{old} holds {content.words}, which is not converted.")


def convert_folder(old: Path, new: Path) -> list[Path]:
    """
    Convert the folder of a run: its models with their statistics, and its YAML files.

    :param old: Folder of a run
    :param new: New folder, which may be the same
    :return: Paths of the new models
    :raises ValueError: If it is no folder of a run
    """
    configs = list(old.glob("*/config.yml"))
    if len(configs) != 1:
        raise ValueError(f"{old} is no folder of a run: it has {len(configs)} config.yml, not 1.")
    if new != old:
        shutil.copytree(old, new, dirs_exist_ok=True)
    details = new / configs[0].parent.name
    arguments = read_yaml(details / "args.yml")
    for path in sorted(details.glob("*.yml")):
        write_yaml(path, read_yaml(path))
    models = sorted(new.glob("*.zip"))
    used = set()
    for model in models:
        statistics = find_statistics(model, EnvironmentName(arguments["env"]))
        convert_file(model, model, arguments["algo"], statistics)
        used.add(statistics)
    for statistics in used - {None, *models}:
        assert statistics is not None
        statistics.unlink()
    return models


def make_parser() -> argparse.ArgumentParser:
    """
    :return: Parser of the command line
    """
    parser = argparse.ArgumentParser(
        prog="sb3-happo convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("old", type=Path, help="file, or folder of a run")
    parser.add_argument("new", type=Path, help="new file or folder; it may be the same")
    parser.add_argument("--algo", default="", help="algorithm of a model, if its file is older")
    parser.add_argument("--statistics", type=Path, help="statistics for the file of a model")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """
    Command line.

    :param argv: Arguments, by default those of the process
    :return: Exit code
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        if args.old.is_dir():
            for path in convert_folder(args.old, args.new):
                print(path)
        else:
            words = convert_file(args.old, args.new, args.algo, args.statistics)
            print(f"{args.new}: {words}")
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    main()
