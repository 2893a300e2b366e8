"""
Export an agent for deployment: a folder with an ONNX file, a card, and a script that acts with ONNX
Runtime and NumPy alone; or a single file.

    sb3-happo export logs/happo/mpe2-simple_spread_v3_1 --agent agent_0 --out robot
    sb3-happo export model.zip --agent glider --out robot --normalizer vecnormalize.zip
    sb3-happo export glider.zip --out glider.onnx --format onnx

The statistics of VecNormalize become part of the file. Those of a run are found in its folder.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gymnasium import spaces

from sb3_happo.common.agent_policy import AgentPolicy
from sb3_happo.common.export import export
from sb3_happo.common.export.exporter import FORMATS
from sb3_happo.common.policies import JointPolicy
from sb3_happo.common.saved_files import inspect_file
from sb3_happo.suggestions import did_you_mean
from sb3_happo.vec_env.normalize import VecNormalizeTeam
from sb3_happo.vec_env.normalizer_files import SavedStatistics
from sb3_happo_zoo.algorithms import TEAM_ALGOS
from sb3_happo_zoo.cli import usage_errors
from sb3_happo_zoo.run_folder import has_statistics

#: Value of --normalizer for no normalisation
NONE = "none"


class Source(NamedTuple):
    """
    Content of a saved file.

    :param policies: Policies by agent; the key of a single agent of unknown name is ""
    :param observation_space: Joint observation space; None for a single agent
    :param action_space: Joint action space; None for a single agent
    """

    policies: dict[str, AgentPolicy]
    observation_space: spaces.Space | None = None
    action_space: spaces.Space | None = None


def load_source(path: Path) -> Source:
    """
    :param path: Path of a model, of a team's policy, or of one agent's policy
    :return: Content
    :raises ValueError: If it holds something else
    :raises FileNotFoundError: If there is no such file
    """
    content = inspect_file(path)
    if content is None:
        raise FileNotFoundError(f"There is no file {path}.")
    if content.kind == "agent":
        agent = AgentPolicy.load(path, device="cpu")
        return Source({agent.agent_name or "": agent})
    team: Any
    if content.kind == "team":
        team = JointPolicy.load(path, device="cpu", check_class=False)
    elif content.kind == "model":
        algorithm = TEAM_ALGOS[content.algorithms[0].lower()]
        team = algorithm.load(path, device="cpu", check_class=False).policy
    else:
        raise ValueError(f"{path} holds {content.words}; pass a model or an agent's policy.")
    return Source(team.policies, team.observation_space, team.action_space)


def choose_agent(source: Source, name: str | None) -> tuple[str | None, AgentPolicy]:
    """
    :param source: Content of a saved file
    :param name: Name on the command line; None for the only agent
    :return: Name and policy of the agent; the name is None if it is unknown
    :raises ValueError: If there is no such agent, or no name is given for one of several
    """
    names = ", ".join(map(repr, source.policies))
    if source.observation_space is None:
        ((own, policy),) = source.policies.items()
        return name or own or None, policy
    if name is None:
        if len(source.policies) > 1:
            raise ValueError(f"The team has the agents {names}; choose one with --agent.")
        return next(iter(source.policies.items()))
    if name not in source.policies:
        hint = did_you_mean(name, source.policies, otherwise=f"There are {names}.")
        raise ValueError(f"The team has no agent {name!r}. {hint}")
    return name, source.policies[name]


def find_files(model: Path, normalizer: str | None) -> tuple[Path, Path | None]:
    """
    :param model: Path of a saved file or of the folder of a run
    :param normalizer: Path of the statistics; "none" for none; None to search for those of the run
    :return: Path of the saved file, and of the statistics or None
    :raises ValueError: If the folder is that of no run, or there are several files of statistics
    """
    folder = model if model.is_dir() else model.parent
    if model.is_dir():
        configs = list(model.glob("*/config.yml"))
        if len(configs) != 1:
            raise ValueError(
                f"{model} is no folder of a run: it has {len(configs)} folders with a config.yml, "
                "not one. Pass the path of a model."
            )
        model = model / f"{configs[0].parent.name}.zip"
    if normalizer == NONE:
        return model, None
    if normalizer is not None:
        return model, Path(normalizer)
    if has_statistics(model):
        return model, model
    found = sorted((*folder.glob("vecnormalize.*"), *folder.glob("*/vecnormalize.*")))
    if len(found) > 1:
        names = ", ".join(map(str, found))
        raise ValueError(
            f"There are statistics in {names}; choose one with --normalizer, or --normalizer none "
            "if the training had none."
        )
    return model, found[0] if found else None


def load_statistics(path: Path, source: Source) -> SavedStatistics:
    """
    :param path: Path of the statistics of ``VecNormalize``
    :param source: Content of the saved model
    :return: Statistics
    :raises ValueError: If they cannot be loaded with the model
    :raises FileNotFoundError: If there is no such file
    """
    if not path.is_file():
        raise FileNotFoundError(f"There are no statistics {path}.")
    if source.observation_space is None:
        raise ValueError(
            "The statistics are those of a team, and the file of one agent does not say which are "
            "its own; pass the file of the model, and the agent with --agent."
        )
    statistics = VecNormalizeTeam.load_statistics(path)
    if statistics.observation_space != source.observation_space:
        raise ValueError(
            f"{path} holds statistics of another environment, with the observation space "
            f"{statistics.observation_space}; that of the model is {source.observation_space}."
        )
    return statistics


def make_parser() -> argparse.ArgumentParser:
    """
    :return: Parser of the command line
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "model", type=Path, help="saved model, team or agent, or the folder of a run"
    )
    parser.add_argument("--agent", help="name of the agent")
    parser.add_argument("--out", type=Path, required=True, help="folder or file to write")
    parser.add_argument(
        "--format", choices=FORMATS, default="folder", help="what to write (%(default)s)"
    )
    parser.add_argument(
        "--normalizer",
        metavar="FILE",
        help="statistics of VecNormalize; by default those in the model's file or beside it; "
        "none for none",
    )
    parser.add_argument("--verbose", type=int, default=1, help="2: tracebacks of errors")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """
    Run the command line.

    :param argv: Arguments, by default those of the process
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    with usage_errors(parser, args.verbose):
        path, statistics = find_files(args.model, args.normalizer)
        source = load_source(path)
        name, policy = choose_agent(source, args.agent)
        normalizer = None if statistics is None else load_statistics(statistics, source)
        result = export(policy, args.out, args.format, normalizer, agent=name)
        print(f"{name or 'The agent'} of {path} -> {args.out}")
        print(f"Normalisation: {'none' if statistics is None else f'that of {statistics}'}")
        print(
            f"Compared with predict on {result.n_observations} observations: largest difference "
            f"{result.largest_difference:.1e}, {result.n_ties} near-ties"
        )


if __name__ == "__main__":
    main()
