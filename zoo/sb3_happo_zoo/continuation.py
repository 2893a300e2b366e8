"""Models of earlier runs whose training goes on (``-i``), with their replay buffers."""

from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_happo.common.off_policy_algorithm import MultiAgentOffPolicyAlgorithm
from sb3_happo.common.replay_checks import check_learning_starts
from sb3_happo_zoo.algorithms import TEAM_ALGOS
from sb3_happo_zoo.run_folder import REPLAY_BUFFER


def load_trained(manager: Any, hyperparams: dict[str, Any], env: VecEnv) -> BaseAlgorithm:
    """
    :param manager: Manager of the new run
    :param hyperparams: Hyperparameters of the new run, without effect on the networks
    :param env: Environments of the new run
    :return: Model of the manager's ``trained_agent``; an off-policy one has the transitions of the
        replay buffer beside the model, if that was saved
    """
    settings = dict(hyperparams)
    for name in ("policy", "policy_kwargs"):
        settings.pop(name, None)
    if manager.trust_pickle:
        settings["trust_pickle"] = True
    print(f"Loading {manager.trained_agent}")
    model = TEAM_ALGOS[manager.algo].load(
        manager.trained_agent,
        env=env,
        seed=manager.seed,
        tensorboard_log=manager.tensorboard_log,
        verbose=manager.verbose,
        device=manager.device,
        **settings,
    )
    path = Path(manager.trained_agent).parent / REPLAY_BUFFER
    if isinstance(model, MultiAgentOffPolicyAlgorithm) and path.is_file():
        given = "learning_starts" in (manager.custom_hyperparams or {})
        _load_replay_buffer(model, path, manager.trust_pickle, given)
    return model


def _load_replay_buffer(
    model: MultiAgentOffPolicyAlgorithm, path: Path, trust_pickle: bool, given: bool
) -> None:
    """
    :param model: Model whose training goes on
    :param path: Path of the replay buffer
    :param trust_pickle: Whether the file may run code
    :param given: Whether the command line has ``learning_starts``
    """
    model.load_replay_buffer(path, trust_pickle=trust_pickle)
    assert model.replay_buffer is not None
    n_stored = model.replay_buffer.size() * model.n_envs
    print(f"Loading the replay buffer {path} with {n_stored:,} transitions")
    if n_stored >= model.batch_size and not given:
        # Random actions at the beginning would only fill the buffer again
        model.learning_starts = 0


def check_random_steps(results: tuple[BaseAlgorithm, Any] | None, n_timesteps: int) -> None:
    """
    :param results: Model of the run, and its hyperparameters
    :param n_timesteps: Number of timesteps of the run
    :raises ValueError: If the run would consist of random actions
    """
    if results is not None and isinstance(results[0], MultiAgentOffPolicyAlgorithm):
        check_learning_starts(results[0].learning_starts, n_timesteps)


def save_replay_buffer(model: BaseAlgorithm, folder: str) -> None:
    """
    :param model: Trained model; one without a replay buffer has nothing to save
    :param folder: Folder of its run
    """
    if isinstance(model, MultiAgentOffPolicyAlgorithm):
        path = Path(folder) / REPLAY_BUFFER
        print(f"Saving the replay buffer {path}")
        model.save_replay_buffer(path)
