"""
Export of one agent's policy: an ONNX file, a ``torch.export`` file, or a folder for a robot.

The exported graph takes observations in the environment's own form and returns the actions that
``predict(deterministic=True)`` returns; encodings, the normalisation of ``VecNormalize``, the index
of an agent in a shared network, action masks, and the scaling and clipping of actions are inside.
Hidden states of recurrent policies are inputs and outputs. A file is compared with the policy
before it is written.
"""

from sb3_happo.common.export.check import CheckResult, ExportError
from sb3_happo.common.export.exporter import Format, export

__all__ = ["CheckResult", "ExportError", "Format", "export"]
