"""Arguments and errors that the command lines of the zoo's scripts share."""

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
from stable_baselines3.common.utils import set_random_seed

from sb3_happo.common.hyperparameters import LARGEST_TIMESTEPS
from sb3_happo.vec_env.counts import LARGEST
from sb3_happo_zoo.algorithms import TEAM_ALGOS
from sb3_happo_zoo.entries import evaluate, is_expression, nearest
from sb3_happo_zoo.named_code import trust_modules
from sb3_happo_zoo.paths import command_words


class StoreKwargs(argparse.Action):
    """
    Arguments ``name:expression``, as in RL Zoo, with the names that the expressions of entries may
    use.

    A wrong expression ends the script with an error.
    """

    keep_text = False

    def __call__(
        self, parser: Any, namespace: Any, values: Any, option_string: str | None = None
    ) -> None:
        """
        :param parser: Parser of the command line
        :param namespace: Namespace that gets the dict
        :param values: Arguments ``name:expression``
        :param option_string: Name of the option
        :raises ArgumentError: If an argument has another form, or its expression cannot be
            evaluated
        """
        pairs = {}
        try:
            for argument in values:
                name, value = self._pair(*argument.split(":", 1))
                pairs[name] = value
        except Exception as error:  # any error that the user's expression raises
            raise argparse.ArgumentError(
                self,
                "expected name:value, the value a Python expression (text in quotes of its own), "
                f"got {values}: {error}",
            ) from error
        setattr(namespace, self.dest, pairs)

    def _pair(self, name: str, expression: str) -> tuple[str, Any]:
        value = evaluate(name, expression)
        if not self.keep_text or isinstance(value, str):
            return name, value
        if is_expression(expression):
            return name, expression
        if " at 0x" in str(value) or "<class" in str(value):
            raise ValueError(
                f"{expression} cannot be written into a YAML file; write it as a call, such as "
                "dict(...)"
            )
        return name, value


class StoreHyperparams(StoreKwargs):
    """
    Arguments ``name:expression`` of an entry: calls stay text, so that a YAML file can hold them.
    """

    keep_text = True


def environment_id(text: str) -> str:
    """
    :param text: Id on the command line
    :return: Id that can be part of a folder's name: Windows refuses "9|8" of multi-agent MuJoCo
        there, so it becomes "9p8", which is the same environment
    """
    return text.replace("|", "p")


def algorithm(name: str) -> str:
    """
    :param name: Name on the command line
    :return: The same name
    :raises ArgumentTypeError: If there is no such algorithm
    """
    if name not in TEAM_ALGOS:
        near = nearest(name, TEAM_ALGOS)
        hint = f", did you mean {near!r}?" if near else ""
        raise argparse.ArgumentTypeError(
            f"there is no {name!r}{hint} (choose from {', '.join(TEAM_ALGOS)})"
        )
    return name


def whole_number(text: str) -> int:
    """
    :param text: Text such as "1000000" or "1e6"
    :return: The number
    :raises ArgumentTypeError: If it does not fit 64 bits
    """
    number = float(text)
    if not abs(number) <= LARGEST_TIMESTEPS:
        raise argparse.ArgumentTypeError(f"must be at most {LARGEST_TIMESTEPS:,}, not {text}")
    return int(number)


def timesteps(text: str) -> int:
    """
    :param text: Text such as "1000000" or "1e6"
    :return: The number
    :raises ArgumentTypeError: If it is less than 1, or does not fit 64 bits
    """
    return _at_least_one(whole_number(text))


def count(text: str) -> int:
    """
    :param text: Text on the command line
    :return: The number
    :raises ArgumentTypeError: If it is less than 1, or more than a million
    """
    number = _at_least_one(int(text))
    if number > LARGEST:
        raise argparse.ArgumentTypeError(f"must be at most {LARGEST:,}, not {text}")
    return number


def seconds(text: str) -> float:
    """
    :param text: Text on the command line
    :return: The number
    :raises ArgumentTypeError: If it is not greater than 0
    """
    number = float(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"must be greater than 0, not {text}")
    return number


def _at_least_one(number: int) -> int:
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: Parser that gets the arguments of all scripts
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
        help="keyword arguments for the environment: name:value …",
    )
    parser.add_argument(
        "--gym-packages",
        nargs="+",
        default=[],
        help="modules to import because they register environments, or because settings name "
        "their wrappers",
    )
    parser.add_argument(
        "--trust-pickle",
        action="store_true",
        help="load files of earlier versions, which are pickles: loading one can run any code that "
        "its author has put into it",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=-1,
        help="seed for the pseudo-random generators; negative for a random seed",
    )
    parser.add_argument("--device", default="auto", help="PyTorch's device: cpu, cuda, …")
    parser.add_argument(
        "--num-threads",
        type=int,
        default=-1,
        help="number of PyTorch's threads (-1 for the default)",
    )
    parser.add_argument(
        "--verbose",
        type=int,
        default=1,
        help="0: little output, 1: information, 2: tracebacks of errors as well",
    )


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: Parser that gets the arguments of all training scripts
    """
    parser.add_argument(
        "-n",
        "--n-timesteps",
        type=timesteps,
        default=-1,
        help="number of timesteps, instead of the entry's",
    )
    parser.add_argument("-f", "--log-folder", default="logs", help="log folder")
    parser.add_argument(
        "--eval-env-kwargs",
        nargs="+",
        action=StoreKwargs,
        help="keyword arguments for the environments of the evaluation, if they differ",
    )
    parser.add_argument(
        "-params",
        "--hyperparams",
        nargs="+",
        action=StoreHyperparams,
        help="hyperparameters that replace the entry's: name:value …",
    )
    parser.add_argument(
        "-conf",
        "--conf-file",
        help="YAML file or Python module with the hyperparameters, or name of a file in "
        "zoo/hyperparams",
    )
    parser.add_argument(
        "--n-eval-envs", type=count, default=1, help="number of environments for evaluation"
    )
    parser.add_argument(
        "--vec-env",
        choices=["auto", "dummy", "subproc"],
        default="auto",
        help="environments in this process (dummy), in worker processes (subproc), or in the "
        "faster of both ways (auto)",
    )
    parser.add_argument(
        "--step-timeout",
        type=seconds,
        help="seconds for a step of an environment, after which the training ends with an error; "
        "environments then run in worker processes",
    )


def prepare(args: argparse.Namespace) -> None:
    """
    Import the modules of ``--gym-packages``, seed the generators and set the number of threads.

    :param args: Parsed command line. A negative seed is replaced by a random one, which is added to
        ``command`` if that is set
    :raises ImportError: If a module is missing
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # for environments defined in the current folder
    for module in args.gym_packages:
        importlib.import_module(module)
    trust_modules(args.gym_packages)
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
    Print the message of an error without a traceback, and exit with code 2.

    :param parser: Parser of the command line
    :param verbose: Verbosity; from 2 on the error is raised with its traceback
    """
    try:
        yield
    except Exception as error:  # also any error of the user's expressions and classes
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
    :param argv: Arguments, None for those of the process
    :return: Shell command that repeats the call
    """
    arguments = sys.argv[1:] if argv is None else argv
    return shlex.join([*command_words(script), *arguments])
