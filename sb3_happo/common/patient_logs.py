"""Logs that end no training when the disk is full."""

from functools import partial
from typing import Any

from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat

from sb3_happo.vec_env.patient_files import make_patient


def keep_logging(logger: Logger) -> None:
    """
    Let the outputs of a logger warn instead of ending the training if they cannot be written, and
    try again with the next figures.

    :param logger: Logger
    """
    for output in logger.output_formats:
        if not hasattr(output, "__dict__"):
            continue
        methods = tuple(name for name in ("write", "write_sequence") if hasattr(output, name))
        if isinstance(output, TensorBoardOutputFormat):
            name = f"The log of TensorBoard in {output.writer.log_dir}"
            make_patient(output, methods, name, partial(_begin_file, output))
        else:
            file = getattr(output, "file", None)
            make_patient(output, methods, str(getattr(file, "name", type(output).__name__)))


def _begin_file(output: Any) -> None:
    """Begin a new file in the same folder: TensorBoard's writer does not survive a failure."""
    from torch.utils.tensorboard import SummaryWriter

    try:
        output.writer = SummaryWriter(log_dir=output.writer.log_dir)
    except OSError:
        return  # the next attempt fails, and leads here again
