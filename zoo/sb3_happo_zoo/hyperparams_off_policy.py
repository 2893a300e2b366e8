"""Search spaces of the off-policy algorithms: RL Zoo's for SAC, TD3 and DQN, for teams."""

from collections.abc import Callable
from typing import Any

import optuna

from sb3_happo_zoo.noise import NOISES

NET_ARCHS = {"small": [64, 64], "medium": [128, 128], "big": [256, 256]}
NORMALIZE = {"nothing": False, "observations": "dict(norm_obs=True, norm_reward=False)"}
#: Gradient steps per transition. RL Zoo's 1 is slow where several environments collect
RATIOS = [0.0625, 0.125, 0.25, 0.5, 1.0]


def rounded(value: float) -> float:
    """
    :param value: Number that a trial suggests
    :return: Number of four digits, which a YAML file holds exactly in a short form
    """
    return float(f"{value:.4g}")


def _sample_off_policy(
    trial: optuna.Trial,
    n_envs: int,
    fixed: dict[str, Any],
    more: dict[str, Callable[[], Any]],
) -> dict[str, Any]:
    """
    Sample the hyperparameters of all off-policy algorithms.

    :param trial: Trial that suggests values
    :param n_envs: Number of environments of the entry
    :param fixed: Hyperparameters that are not searched, for which the trial suggests no value
    :param more: Function per further hyperparameter that asks the trial for a value
    :return: Hyperparameters that are searched
    """

    def gradient_steps() -> int:
        frequency = sampled.get("train_freq") or fixed.get("train_freq", 1)
        n_steps = frequency if isinstance(frequency, int) else 1
        ratio = trial.suggest_categorical("gradient_steps_per_transition", RATIOS)
        return max(round(ratio * n_steps * n_envs), 1)

    candidates: dict[str, Callable[[], Any]] = {
        "gamma": lambda: rounded(1 - trial.suggest_float("one_minus_gamma", 0.002, 0.2, log=True)),
        "learning_rate": lambda: rounded(
            trial.suggest_float("learning_rate", 5e-5, 3e-3, log=True)
        ),
        "batch_size": lambda: 2 ** trial.suggest_int("batch_size_pow", 5, 10),
        "tau": lambda: rounded(trial.suggest_float("tau", 0.001, 0.08, log=True)),
        "train_freq": lambda: trial.suggest_int("train_freq", 1, 10),
        "gradient_steps": gradient_steps,
        "policy_kwargs": lambda: {
            "net_arch": NET_ARCHS[trial.suggest_categorical("net_arch", list(NET_ARCHS))]
        },
        "normalize": lambda: NORMALIZE[trial.suggest_categorical("normalize", list(NORMALIZE))],
    }
    sampled: dict[str, Any] = {}
    for name, ask in (candidates | more).items():
        if name not in fixed:
            sampled[name] = ask()
    return sampled


def sample_td3_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    :param trial: Trial that suggests values
    :param n_actions: Unused (RL Zoo's signature)
    :param n_envs: Number of environments of the entry
    :param additional_args: ``continuous``: whether an agent has continuous actions; ``fixed``:
        hyperparameters that are not searched
    :return: Hyperparameters of HATD3, HADDPG, MATD3 and MADDPG: with noise for continuous actions
    """
    fixed = additional_args.get("fixed", {})
    sampled = _sample_off_policy(trial, n_envs, fixed, {})
    has_noise = {"action_noise", "noise_type", "noise_std"} & fixed.keys()
    if additional_args.get("continuous") and not has_noise:
        kind = trial.suggest_categorical("noise_type", [*NOISES, "none"])
        deviation = trial.suggest_float("noise_std", 0.02, 0.5)
        sampled["action_noise"] = None
        sampled["noise_type"] = None if kind == "none" else kind
        sampled["noise_std"] = None if kind == "none" else rounded(deviation)
    return sampled


def sample_sac_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    :param trial: Trial that suggests values
    :param n_actions: Unused (RL Zoo's signature)
    :param n_envs: Number of environments of the entry
    :param additional_args: ``fixed``: hyperparameters that are not searched
    :return: Hyperparameters of HASAC and MASAC
    """

    def ent_coef() -> float | str:
        if trial.suggest_categorical("temperature", ["learned", "fixed"]) == "learned":
            return "auto"
        return rounded(trial.suggest_float("ent_coef", 1e-3, 0.5, log=True))

    fixed = additional_args.get("fixed", {})
    return _sample_off_policy(trial, n_envs, fixed, {"ent_coef": ent_coef})


def sample_dqn_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    :param trial: Trial that suggests values
    :param n_actions: Unused (RL Zoo's signature)
    :param n_envs: Number of environments of the entry
    :param additional_args: ``fixed``: hyperparameters that are not searched
    :return: Hyperparameters of IQL, VDN and QMIX
    """
    more: dict[str, Callable[[], Any]] = {
        # Targets are copies, as in DQN
        "tau": lambda: 1.0,
        "target_update_interval": lambda: trial.suggest_int(
            "target_update_interval", 50, 20_000, log=True
        ),
        "exploration_fraction": lambda: rounded(
            trial.suggest_float("exploration_fraction", 0.02, 0.5)
        ),
        "exploration_final_eps": lambda: rounded(
            trial.suggest_float("exploration_final_eps", 0.0, 0.2)
        ),
    }
    return _sample_off_policy(trial, n_envs, additional_args.get("fixed", {}), more)


Sampler = Callable[[optuna.Trial, int, int, dict[str, Any]], dict[str, Any]]
OFF_POLICY_SAMPLERS: dict[str, Sampler] = {
    "hatd3": sample_td3_params,
    "haddpg": sample_td3_params,
    "matd3": sample_td3_params,
    "maddpg": sample_td3_params,
    "hasac": sample_sac_params,
    "masac": sample_sac_params,
    "iql": sample_dqn_params,
    "vdn": sample_dqn_params,
    "qmix": sample_dqn_params,
}
