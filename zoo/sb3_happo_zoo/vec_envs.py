"""Choice of the vectorised environment."""

from typing import Literal

#: Value of ``vec_env_cls`` with which :func:`~sb3_happo.make_joint_vec_env` measures whether
#: environments are faster in this process or in worker processes, and takes the faster way
FASTEST: Literal["auto"] = "auto"
