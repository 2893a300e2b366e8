"""Loop of rollouts and updates that continues to count where a checkpoint was made."""

from typing import TypeVar

from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback

SelfLoop = TypeVar("SelfLoop", bound="OnPolicyLoop")


class OnPolicyLoop(OnPolicyAlgorithm):
    """
    SB3's ``OnPolicyAlgorithm``. The number of the present update is an attribute instead of a local
    variable of ``learn``, so that a training that continues a checkpoint writes its log after the
    same updates as an unbroken one.
    """

    #: Updates in the present call of ``learn``
    _n_iterations: int = 0

    def learn(
        self: SelfLoop,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = 1,
        tb_log_name: str = "OnPolicyAlgorithm",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfLoop:
        """
        Train, as SB3's ``OnPolicyAlgorithm.learn``.

        :param total_timesteps: Timesteps to train for, at least
        :param callback: Callback
        :param log_interval: Updates between two logs; None for no log
        :param tb_log_name: Name of the run in TensorBoard
        :param reset_num_timesteps: Restart of the count of timesteps
        :param progress_bar: Progress bar
        :return: Trained model
        """
        total_timesteps, callback = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        self._n_iterations = 0
        callback.on_training_start(locals(), globals())
        assert self.env is not None
        while self.num_timesteps < total_timesteps:
            continue_training = self.collect_rollouts(
                self.env, callback, self.rollout_buffer, n_rollout_steps=self.n_steps
            )
            if not continue_training:
                break
            self._n_iterations += 1
            self._update_current_progress_remaining(self.num_timesteps, total_timesteps)
            if log_interval is not None and self._n_iterations % log_interval == 0:
                self.dump_logs(self._n_iterations)
            self.train()
        callback.on_training_end()
        return self
