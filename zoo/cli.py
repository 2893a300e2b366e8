"""What the command lines of the zoo's scripts share."""

import argparse
import contextlib
import importlib
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch as th
from exp_manager import TEAM_ALGOS, evaluate, is_expression, nearest
from stable_baselines3.common.utils import set_random_seed


class StoreKwargs(argparse.Action):
    """RL Zoo's ``name:expression`` arguments, with the names that the expressions of entries may use, and an error."""

    keep_text = False

    def __call__(
        self, parser: Any, namespace: Any, values: Any, option_string: str | None = None
    ) -> None:
        """
        :param parser: Of the command line
        :param namespace: Takes the dict
        :param values: ``name:expression`` each
        :param option_string: The option
        """
        try:
            setattr(
                namespace,
                self.dest,
                dict(self._pair(*argument.split(":", 1)) for argument in values),
            )
        except Exception as error:  # whatever the user's expression raises
            raise argparse.ArgumentError(
                self,
                f"expected name:value, the value a Python expression (text in quotes of its own), got {values}: {error}",
            ) from error

    def _pair(self, name: str, expression: str) -> tuple[str, Any]:
        value = evaluate(name, expression)
        if self.keep_text and not isinstance(value, str):
            if is_expression(expression):
                return name, expression
            if " at 0x" in str(value) or "<class" in str(value):
                raise ValueError(
                    f"{expression} cannot be written into a YAML file; write it as a call, such as dict(...)"
                )
        return name, value


class StoreHyperparams(StoreKwargs):
    """``name:expression`` as an entry has it: calls stay text, which can be written into a YAML file."""

    keep_text = True


def environment_id(text: str) -> str:
    """
    :param text: Of the command line
    :return: The id that names folders too: multi-agent MuJoCo's "9|8", which Windows refuses there, is "9p8" as well
    """
    return text.replace("|", "p")


def algorithm(name: str) -> str:
    """
    :param name: Of the command line
    :return: The same, if there is such an algorithm
    """
    if name not in TEAM_ALGOS:
        near = nearest(name, TEAM_ALGOS)
        raise argparse.ArgumentTypeError(
            f"there is no {name!r}{near and f', did you mean {near!r}?'} (choose from {', '.join(TEAM_ALGOS)})"
        )
    return name


def whole_number(text: str) -> int:
    """
    :param text: Such as "1000000" or "1e6"
    :return: The number
    """
    return int(float(text))


def timesteps(text: str) -> int:
    """
    :param text: Such as "1000000" or "1e6"
    :return: The number
    :raises ArgumentTypeError: If it is less than 1
    """
    return count(str(whole_number(text)))


def count(text: str) -> int:
    """
    :param text: Of the command line
    :return: The number
    :raises ArgumentTypeError: If it is less than 1
    """
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: Gets the arguments that all scripts have
    """
    parser.add_argument(
        "--algo", type=algorithm, default="happo", help=f"one of {', '.join(TEAM_ALGOS)}"
    )
    parser.add_argument(
        "--env",
        type=environment_id,
        required=True,
        help="id of the environment, such as mpe2/simple_spread_v3",
    )
    parser.add_argument(
        "--env-kwargs",
        nargs="+",
        action=StoreKwargs,
        help="keyword arguments of the environment: name:value …",
    )
    parser.add_argument(
        "--gym-packages",
        nargs="+",
        default=[],
        help="modules to import, which register environments",
    )
    parser.add_argument(
        "--seed", type=int, default=-1, help="of everything random; negative for a random one"
    )
    parser.add_argument("--device", default="auto", help="PyTorch's device: cpu, cuda, …")
    parser.add_argument(
        "--num-threads", type=int, default=-1, help="PyTorch's threads (-1 for the default)"
    )
    parser.add_argument(
        "--verbose",
        type=int,
        default=1,
        help="0: little output, 1: information, 2: with tracebacks of errors",
    )


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: Gets the arguments that all trainings have
    """
    parser.add_argument(
        "-n", "--n-timesteps", type=timesteps, default=-1, help="instead of the entry's"
    )
    parser.add_argument("-f", "--log-folder", default="logs", help="log folder")
    parser.add_argument(
        "--eval-env-kwargs",
        nargs="+",
        action=StoreKwargs,
        help="of the environments for evaluation, if others",
    )
    parser.add_argument(
        "-params",
        "--hyperparams",
        nargs="+",
        action=StoreHyperparams,
        help="other hyperparameters: name:value …",
    )
    parser.add_argument(
        "-conf",
        "--conf-file",
        help="YAML file or Python module with the hyperparameters, or a file's name in zoo/hyperparams",
    )
    parser.add_argument("--n-eval-envs", type=count, default=1, help="environments for evaluation")
    parser.add_argument(
        "--vec-env",
        choices=["auto", "dummy", "subproc"],
        default="auto",
        help="environments in this process, in worker processes, or where they are faster",
    )


def prepare(args: argparse.Namespace) -> None:
    """
    Import what the user asked for, and seed.

    :param args: Of the command line; gets a random seed if it has none, and so does its ``command``, if it has that
    :raises ImportError: If a package is missing
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # environments in the user's own folder
    for module in args.gym_packages:
        importlib.import_module(module)
    if args.seed < 0:
        args.seed = int(np.random.randint(2**31 - 1))
        if "command" in args:
            args.command += f" --seed {args.seed}"
    set_random_seed(args.seed)
    if args.num_threads > 0:
        th.set_num_threads(args.num_threads)


@contextlib.contextmanager
def usage_errors(parser: argparse.ArgumentParser, verbose: int) -> Iterator[None]:
    """
    Say what was wrong, without a traceback, and exit with 2.

    :param parser: Of the command line
    :param verbose: From 2 on, with a traceback
    """
    try:
        yield
    except Exception as error:  # of expressions and classes of the user's too
        if verbose > 1:
            raise
        plain = isinstance(
            error, (ValueError, TypeError, AssertionError, ImportError, OSError, RuntimeError)
        )
        text = str(error) if plain else f"{type(error).__name__}: {error}"
        parser.exit(2, f"{parser.prog}: error: {text}\n")


def command_line(script: str, argv: Sequence[str] | None) -> str:
    """
    :param script: Name of the script
    :param argv: Its arguments, None for those of the process
    :return: The command that does the same again
    """
    return shlex.join(["python", f"zoo/{script}.py", *(sys.argv[1:] if argv is None else argv)])
