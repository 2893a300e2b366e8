"""Search spaces for tuning hyperparameters: RL Zoo's samplers, for teams."""

from collections.abc import Callable
from typing import Any

import optuna
import torch as th
from rl_zoo3.hyperparams_opt import HYPERPARAMS_SAMPLER
from torch import nn

from sb3_happo_zoo.hyperparams_off_policy import (
    NET_ARCHS,
    NORMALIZE,
    OFF_POLICY_SAMPLERS,
    rounded,
)

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}
#: Noise of continuous actions: independent draws, state-dependent noise with new matrices every 4
#: or 16 steps, correlated draws
EXPLORATION: dict[str, dict[str, Any]] = {
    "independent": {"use_sde": False, "exploration_noise": None},
    "gsde 4": {"use_sde": True, "sde_sample_freq": 4, "exploration_noise": None},
    "gsde 16": {"use_sde": True, "sde_sample_freq": 16, "exploration_noise": None},
    "ou": {"use_sde": False, "exploration_noise": "ou"},
    "colored 0.5": {"use_sde": False, "exploration_noise": 0.5},
    "pink": {"use_sde": False, "exploration_noise": "pink"},
}

# Divisor of n_steps, so that rollouts can be divided into 2, 4 or 8 equal minibatches
_N_STEPS_UNIT = 8


def _sample(additional_args: dict[str, Any], **candidates: Callable[[], Any]) -> dict[str, Any]:
    """
    :param additional_args: ``fixed``: hyperparameters that are not searched, for which the trial
        suggests no value
    :param candidates: Function per hyperparameter that asks the trial for a value
    :return: Values of the hyperparameters that are searched
    """
    fixed = additional_args.get("fixed", {})
    return {name: ask() for name, ask in candidates.items() if name not in fixed}


def _sample_exploration(trial: optuna.Trial, additional_args: dict[str, Any]) -> dict[str, Any]:
    """
    :param trial: Trial that suggests values
    :param additional_args: ``continuous``: whether an agent has continuous actions; ``fixed``:
        hyperparameters that are not searched
    :return: Noise of the continuous actions; nothing without any, or where a part of it is fixed
    """
    parts = {"use_sde", "sde_sample_freq", "exploration_noise"}
    if not additional_args.get("continuous") or parts & additional_args.get("fixed", {}).keys():
        return {}
    return dict(EXPLORATION[trial.suggest_categorical("exploration", list(EXPLORATION))])


def _sample_target_critic(trial: optuna.Trial) -> float | None:
    """
    :param trial: Trial that suggests values
    :return: Share of the critic that a target critic takes over at each update; None for none
    """
    if trial.suggest_categorical("target_critic", [False, True]):
        return rounded(trial.suggest_float("target_critic_tau", 0.05, 1.0, log=True))
    return None


def _sample_team(
    trial: optuna.Trial,
    n_envs: int,
    additional_args: dict[str, Any],
    rollout_pow: tuple[int, int],
    minibatches: bool = True,
    policy_kwargs: dict[str, Callable[[], Any]] | None = None,
) -> dict[str, Any]:
    """
    Sample the hyperparameters of all algorithms: rollouts, critic, networks.

    :param trial: Trial that suggests values
    :param n_envs: Number of environments of the entry
    :param additional_args: ``continuous``: whether an agent has continuous actions;
        ``target_critic``: whether the entry goes together with a target critic; ``fixed``:
        hyperparameters that are not searched
    :param rollout_pow: Exponents (to the base 2) of the smallest and the largest rollout, in joint
        transitions
    :param minibatches: Whether to sample a minibatch size
    :param policy_kwargs: Function per further keyword argument of the policy that asks the trial
        for a value
    :return: Hyperparameters
    """

    exploration = _sample_exploration(trial, additional_args)

    def n_steps() -> int:
        n_rows = 2 ** trial.suggest_int("rollout_pow", *rollout_pow)
        return max(round(n_rows / n_envs / _N_STEPS_UNIT), 1) * _N_STEPS_UNIT

    def networks() -> dict[str, Any]:
        net_arch = trial.suggest_categorical("net_arch", list(NET_ARCHS))
        activation_fn = trial.suggest_categorical("activation_fn", list(ACTIVATIONS))
        kwargs: dict[str, Any] = {
            "net_arch": NET_ARCHS[net_arch],
            "activation_fn": ACTIVATIONS[activation_fn],
        }
        if exploration.get("use_sde"):
            # The variance is a sum over the features
            kwargs["log_std_init"] = rounded(trial.suggest_float("sde_log_std_init", -4.0, -1.0))
        elif additional_args.get("continuous"):
            kwargs["log_std_init"] = rounded(trial.suggest_float("log_std_init", -1.5, 0.0))
        return kwargs | {name: ask() for name, ask in (policy_kwargs or {}).items()}

    hyperparams = _sample(
        additional_args,
        n_steps=n_steps,
        policy_kwargs=networks,
        gamma=lambda: rounded(1 - trial.suggest_float("one_minus_gamma", 0.002, 0.3, log=True)),
        gae_lambda=lambda: rounded(
            1 - trial.suggest_float("one_minus_gae_lambda", 0.005, 0.2, log=True)
        ),
        max_grad_norm=lambda: rounded(trial.suggest_float("max_grad_norm", 0.3, 10.0, log=True)),
        normalize=lambda: NORMALIZE[trial.suggest_categorical("normalize", list(NORMALIZE))],
    )
    hyperparams |= exploration
    if additional_args.get("target_critic"):
        hyperparams |= _sample(
            additional_args, target_critic_tau=lambda: _sample_target_critic(trial)
        )
    if minibatches:
        n_rows = int(hyperparams.get("n_steps") or additional_args["fixed"]["n_steps"]) * n_envs

        def batch_size() -> int:
            return max(n_rows // trial.suggest_categorical("n_minibatches", [1, 2, 4, 8]), 2)

        hyperparams |= _sample(additional_args, batch_size=batch_size)
    return hyperparams


def _sample_ent_coef(trial: optuna.Trial) -> float | str:
    """
    :param trial: Trial that suggests values
    :return: Coefficient of the entropy bonus, constant or with a schedule to zero. Only the latter
        may be large, which keeps a team from converging to the first division of labour that works
    """
    if trial.suggest_categorical("entropy", ["stays", "falls"]) == "falls":
        return f"lin_{rounded(trial.suggest_float('falling_ent_coef', 1e-3, 0.2, log=True))}"
    return rounded(trial.suggest_float("ent_coef", 1e-4, 5e-2, log=True))


def sample_happo_params(
    trial: optuna.Trial,
    n_actions: int,
    n_envs: int,
    additional_args: dict[str, Any],
    policy_kwargs: dict[str, Callable[[], Any]] | None = None,
) -> dict[str, Any]:
    """
    :param trial: Trial that suggests values
    :param n_actions: Unused (RL Zoo's signature)
    :param n_envs: Number of environments of the entry
    :param additional_args: ``continuous``: whether an agent has continuous actions; ``fixed``:
        hyperparameters that are not searched
    :param policy_kwargs: Function per further keyword argument of the policy that asks the trial
        for a value
    :return: Hyperparameters of HAPPO
    """
    return _sample_team(
        trial, n_envs, additional_args, rollout_pow=(9, 13), policy_kwargs=policy_kwargs
    ) | _sample(
        additional_args,
        learning_rate=lambda: rounded(trial.suggest_float("learning_rate", 5e-5, 3e-3, log=True)),
        critic_learning_rate=lambda: rounded(
            trial.suggest_float("critic_learning_rate", 1e-4, 5e-3, log=True)
        ),
        n_epochs=lambda: trial.suggest_int("n_epochs", 2, 20, log=True),
        clip_range=lambda: trial.suggest_categorical("clip_range", [0.1, 0.2, 0.3]),
        ent_coef=lambda: _sample_ent_coef(trial),
    )


def sample_mappo_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    :param trial: Trial that suggests values
    :param n_actions: Unused (RL Zoo's signature)
    :param n_envs: Number of environments of the entry
    :param additional_args: ``continuous``: whether an agent has continuous actions; ``fixed``:
        hyperparameters that are not searched
    :return: Hyperparameters of MAPPO and IPPO: HAPPO's, and whether the agents share a network
    """

    def sharing(*kinds: str) -> bool:
        # A trial suggests the same value for the same name
        return (
            trial.suggest_categorical(
                "sharing", ["shared", "shared with agent's id", "each its own"]
            )
            in kinds
        )

    more: dict[str, Callable[[], Any]] = {
        "share_parameters": lambda: sharing("shared", "shared with agent's id"),
        "append_agent_id": lambda: sharing("shared with agent's id"),
    }
    return sample_happo_params(trial, n_actions, n_envs, additional_args, more)


def sample_hatrpo_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    :param trial: Trial that suggests values
    :param n_actions: Unused (RL Zoo's signature)
    :param n_envs: Number of environments of the entry
    :param additional_args: ``continuous``: whether an agent has continuous actions; ``fixed``:
        hyperparameters that are not searched
    :return: Hyperparameters of HATRPO, where learning rate, minibatches and epochs concern the
        critic only
    """
    return _sample_team(trial, n_envs, additional_args, rollout_pow=(9, 13)) | _sample(
        additional_args,
        learning_rate=lambda: rounded(trial.suggest_float("learning_rate", 1e-4, 5e-3, log=True)),
        n_epochs=lambda: trial.suggest_int("n_epochs", 2, 20, log=True),
        target_kl=lambda: rounded(trial.suggest_float("target_kl", 1e-3, 3e-2, log=True)),
        cg_damping=lambda: rounded(trial.suggest_float("cg_damping", 1e-2, 0.5, log=True)),
        accept_ratio=lambda: trial.suggest_categorical("accept_ratio", [0.1, 0.3, 0.5]),
    )


def sample_haa2c_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    :param trial: Trial that suggests values
    :param n_actions: Unused (RL Zoo's signature)
    :param n_envs: Number of environments of the entry
    :param additional_args: ``continuous``: whether an agent has continuous actions; ``fixed``:
        hyperparameters that are not searched
    :return: Hyperparameters of HAA2C: one epoch of the actors over short rollouts, several of the
        critic
    """
    return _sample_team(
        trial, n_envs, additional_args, rollout_pow=(7, 11), minibatches=False
    ) | _sample(
        additional_args,
        learning_rate=lambda: rounded(trial.suggest_float("learning_rate", 5e-5, 5e-3, log=True)),
        critic_learning_rate=lambda: rounded(
            trial.suggest_float("critic_learning_rate", 1e-4, 5e-3, log=True)
        ),
        batch_size=lambda: None,
        critic_n_epochs=lambda: trial.suggest_int("critic_n_epochs", 1, 15, log=True),
        ent_coef=lambda: _sample_ent_coef(trial),
    )


Sampler = Callable[[optuna.Trial, int, int, dict[str, Any]], dict[str, Any]]
TEAM_SAMPLERS: dict[str, Sampler] = {
    "happo": sample_happo_params,
    "hatrpo": sample_hatrpo_params,
    "haa2c": sample_haa2c_params,
    "mappo": sample_mappo_params,
    "ippo": sample_mappo_params,
    **OFF_POLICY_SAMPLERS,
}
HYPERPARAMS_SAMPLER.update(TEAM_SAMPLERS)


def as_entry(
    base: dict[str, Any], sampled: dict[str, Any], evaluated_policy_kwargs: dict[str, Any]
) -> dict[str, Any]:
    """
    :param base: Entry that is tuned, with values as in YAML
    :param sampled: Sampled hyperparameters, which replace those of the entry
    :param evaluated_policy_kwargs: Evaluated ``policy_kwargs`` of the entry, into which the sampled
        ones are merged
    :return: Entry that a YAML file can hold, with dicts as the texts of expressions
    """
    entry = base | sampled
    if "policy_kwargs" in sampled:
        entry["policy_kwargs"] = evaluated_policy_kwargs | sampled["policy_kwargs"]
    for key, value in entry.items():
        if isinstance(value, dict):
            entry[key] = expression(value)
    return entry


def expression(value: Any) -> str:
    """
    :param value: Value in ``policy_kwargs``
    :return: Python expression of the value, in the form of RL Zoo's YAML files
    """
    if isinstance(value, dict):
        items = {key: expression(item) for key, item in value.items()}
        if all(map(_is_keyword, items)):
            return f"dict({', '.join(map('='.join, items.items()))})"
        return f"{{{', '.join(f'{key!r}: {item}' for key, item in items.items())}}}"
    if isinstance(value, type) and value in vars(nn).values():
        return f"nn.{value.__name__}"
    if isinstance(value, type) and value in vars(th.optim).values():
        return f"th.optim.{value.__name__}"
    return repr(value)


def _is_keyword(key: Any) -> bool:
    return isinstance(key, str) and key.isidentifier()
