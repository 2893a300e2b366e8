"""Command line ``sb3-happo``: one subcommand per script of the zoo."""

import argparse
import importlib
import sys
from collections.abc import Sequence

# The module and the description of each subcommand
COMMANDS = {
    "train": ("train", "train a team with the hyperparameters of the zoo"),
    "enjoy": ("enjoy", "watch, film or evaluate a trained team"),
    "export": ("export", "export an agent to ONNX, for a robot without PyTorch"),
    "convert": ("convert", "convert files of earlier versions into files without pickles"),
    "tune": ("tune", "optimise hyperparameters with Optuna"),
    "benchmark": ("benchmark", "train entries with several seeds and write the table of results"),
    "reproduce": ("reproduce", "repeat a run of the benchmark and compare its result"),
    "demo": ("demo", "train a small team, draw its learning curve and film it"),
    "gallery": ("gallery", "film the trained agents of the zoo"),
    "speed": ("speed", "measure the speed of training and where the time goes"),
    "ablations": ("ablations", "run the ablations of the HAPPO paper"),
    "proposition1": ("proposition1", "measure the cost of shared parameters (Proposition 1)"),
    "selection_rules": (
        "selection_rules",
        "measure which equilibria Nash-Q reaches, by selection rule",
    ),
    "memory": ("memory_benchmark", "compare recurrent policies with RecurrentPPO"),
}


def make_parser() -> argparse.ArgumentParser:
    """
    :return: Parser of the subcommand; its arguments are left to the subcommand's own parser
    """
    commands = "\n".join(f"  {name:<17}{text}" for name, (_, text) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="sb3-happo",
        description="Train teams with sb3_happo.",
        epilog=f"commands:\n{commands}\n\n`sb3-happo COMMAND --help` describes a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="see below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="arguments of the command")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run a subcommand.

    :param argv: Arguments, by default those of the process
    :return: Exit code
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    module, _ = COMMANDS[args.command]
    sys.argv = [f"sb3-happo {args.command}", *args.arguments]
    try:
        command = importlib.import_module(f"sb3_happo_zoo.{module}")
    except ModuleNotFoundError as error:
        parser.exit(
            1, f"sb3-happo: error: {error}. The zoo needs: pip install 'sb3_happo[envs,zoo]'\n"
        )
    result = command.main()
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    sys.exit(main())
