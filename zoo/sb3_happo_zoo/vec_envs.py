"""Choice of the vectorised environment."""

from stable_baselines3.common.vec_env import VecEnv

#: Value of ``vec_env_cls`` with which :func:`~sb3_happo.make_joint_vec_env` measures whether
#: environments are faster in this process or in worker processes, and takes the faster way
FASTEST: type[VecEnv] | None = None
