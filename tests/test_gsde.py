"""State-dependent noise (gSDE): the numbers of SB3 with one agent, and teams of any spaces."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_happo import HAPPO, HASAC, HATD3, HATRPO, IPPO, MAPPO, make_joint_vec_env
from sb3_happo.common.agent_policy import AgentPolicy
from tests.algorithms import ALGORITHMS
from tests.envs import HeterogeneousTeam, RandomTeam
from tests.test_team_of_one import NET, SETTINGS, pairs

BOX = spaces.Box(-1, 1, (2,), np.float32)
SMALL: dict[str, Any] = dict(n_steps=16, batch_size=32, n_epochs=2, seed=0, device="cpu")
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "expln": dict(use_expln=True, log_std_init=0.1),
    "per feature": dict(full_std=False, log_std_init=-2.0),
    "squashed": dict(squash_output=True, log_std_init=-2.0),
}


def team(n_envs: int = 2, **action_spaces: spaces.Space) -> Any:
    given = action_spaces or {"a": BOX, "b": BOX}
    return make_joint_vec_env(lambda: RandomTeam(given, length=7), n_envs, seed=1)


class Actions(BaseCallback):
    """Raw actions of each step, by agent, ``(n_envs, action_dim)``."""

    def _on_training_start(self) -> None:
        self.steps: list[dict[str, th.Tensor]] = []

    def _on_step(self) -> bool:
        self.steps.append({name: raw.clone() for name, raw in self.locals["actions"].items()})
        return True


@pytest.mark.parametrize(
    ("algorithm", "form", "sde_sample_freq", "n_envs"),
    [
        (HAPPO, "plain", -1, 4),
        (HAPPO, "plain", 4, 1),
        (HAPPO, "expln", 4, 4),
        (HAPPO, "per feature", 1, 4),
        (HAPPO, "squashed", -1, 4),
        (MAPPO, "plain", 4, 4),
        (IPPO, "per feature", -1, 1),
    ],
)
def test_team_of_one_is_ppo_with_gsde(
    algorithm: type[HAPPO], form: str, sde_sample_freq: int, n_envs: int
) -> None:
    """After 5 updates that have changed every parameter."""
    net = {**NET, "net_arch": [32, 32], **FORMS[form]}
    settings: dict[str, Any] = SETTINGS | dict(
        n_steps=32, batch_size=32 * n_envs, use_sde=True, sde_sample_freq=sde_sample_freq
    )
    ppo = PPO(
        "MlpPolicy",
        make_vec_env("Pendulum-v1", n_envs),
        max_grad_norm=float("inf"),
        policy_kwargs=net,
        **settings,
    )
    before = [param.detach().clone() for param in ppo.policy.parameters()]
    ppo.learn(5 * 32 * n_envs)
    for old, new in zip(before, ppo.policy.parameters(), strict=True):
        assert (old - new).abs().max() > 1e-4
    happo = algorithm(
        "MlpPolicy",
        make_vec_env("Pendulum-v1", n_envs),
        max_grad_norm=None,
        normalize_value=False,
        # Actions that are not squashed are clipped in SB3, not scaled
        policy_kwargs=dict(rescale_actions=form == "squashed", **net),
        **settings,
    )
    happo.learn(5 * 32 * n_envs)
    for mine, theirs in pairs(happo, ppo):
        assert th.allclose(mine, theirs, atol=1e-5), (mine - theirs).abs().max()


@pytest.mark.parametrize("policy", ["MlpPolicy", "MlpLstmPolicy", "MlpGruPolicy"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_algorithms_and_recurrent_policies_learn(
    algorithm: type[HAPPO], policy: str, tmp_path: Path
) -> None:
    net = dict(net_arch=[16]) if policy == "MlpPolicy" else dict(lstm_hidden_size=8)
    model = algorithm(policy, team(), use_sde=True, policy_kwargs=net, **SMALL)
    before = {}
    for agent, own in model.policies.items():
        assert own.log_std is not None
        before[agent] = own.log_std.clone()
    model.learn(64)
    for agent, own in model.policies.items():
        n_features = own.head.in_features
        assert own.log_std is not None and own.log_std.shape == (n_features, 2)
        assert not th.equal(own.log_std, before[agent])
    model.save(tmp_path / "model.zip")
    loaded = type(model).load(tmp_path / "model.zip", env=team())
    obs: Any = team().reset()
    mine, _ = model.predict(obs, deterministic=True)
    theirs, _ = loaded.predict(obs, deterministic=True)
    assert mine.tobytes() == theirs.tobytes()
    loaded.learn(32, reset_num_timesteps=False)


def test_mixed_spaces_get_noise_in_their_continuous_parts_only() -> None:
    """One agent is discrete, one has masks, one a Dict of several kinds of actions."""
    hybrid = spaces.Dict(
        {"push": BOX, "tool": spaces.Discrete(3), "turn": spaces.Box(-2, 2, (1,), np.float32)}
    )
    model = HAPPO(team(choice=spaces.Discrete(3), hybrid=hybrid), use_sde=True, **SMALL)
    assert not model.policies["choice"].use_sde and model.policies["choice"].log_std is None
    own = model.policies["hybrid"]
    assert own.log_std is not None and own.log_std.shape == (128, 3)
    actions = Actions()
    model.learn(96, actions)
    # Within a rollout the noise is a function of the observation; discrete actions are drawn
    assert {float(x) for step in actions.steps for x in step["hybrid"][:, 2]} == {0.0, 1.0, 2.0}
    masked = HAPPO(HeterogeneousTeam(), use_sde=True, **SMALL).learn(32)
    assert any(policy.use_sde for policy in masked.policies.values())


class Still(RandomTeam):
    """The same observation at every step."""

    def __init__(self) -> None:
        super().__init__({"a": BOX, "b": BOX}, length=5)

    def reset(self, *args: Any, **kwargs: Any) -> Any:
        obs, infos = super().reset(*args, **kwargs)
        return {agent: np.ones_like(value) for agent, value in obs.items()}, infos

    def step(self, actions: Any) -> Any:
        obs, *rest = super().step(actions)
        return ({agent: np.ones_like(value) for agent, value in obs.items()}, *rest)


@pytest.mark.parametrize("share_parameters", [False, True])
def test_noise_stays_between_draws_and_differs_by_agent_and_environment(
    share_parameters: bool,
) -> None:
    model = HAPPO(
        make_joint_vec_env(Still, 3, seed=0),
        use_sde=True,
        sde_sample_freq=4,
        policy_kwargs=dict(share_parameters=share_parameters),
        **SMALL | dict(n_steps=12, batch_size=36, learning_rate=0.0),
    )
    actions = Actions()
    model.learn(2 * 36, actions)
    raw = th.stack([th.stack([step["a"], step["b"]]) for step in actions.steps])
    stretches = raw.unflatten(0, (-1, 4))  # (6, 4, 2 agents, 3 environments, 2 actions)
    assert th.equal(stretches, stretches[:, :1].expand_as(stretches))
    # Each stretch, agent and environment has noise of its own
    noise = stretches[:, 0].reshape(-1, 2)
    assert len(th.unique(noise, dim=0)) == len(noise)


def test_variance_is_that_of_the_distribution() -> None:
    """Over draws of the matrix, the actions have the mean and deviation that ratios count with."""
    kwargs: dict[str, Any] = dict(net_arch=[8], log_std_init=-1.0)
    policy = AgentPolicy(BOX, BOX, lambda _: 0.0, use_sde=True, **kwargs)
    obs = th.tensor([[0.3, -0.8]]).repeat(5000, 1)
    policy.reset_noise(5000)
    with th.no_grad():
        actions = policy.step(obs).actions
        distribution: Any = policy.get_distribution(obs[:1])
    deviation = distribution.distribution.stddev[0]
    assert th.allclose(actions.std(dim=0), deviation, rtol=0.05)
    assert ((actions.mean(dim=0) - distribution.mode()[0]).abs() < 5 * deviation / 70).all()


def test_squashed_actions_keep_within_their_bounds_in_every_form_of_a_policy(
    tmp_path: Path,
) -> None:
    low, high = np.array([-3, 0], np.float32), np.array([1, 10], np.float32)
    box = spaces.Box(low, high)
    kwargs = dict(squash_output=True, log_std_init=0.0)
    model = HAPPO(team(a=box, b=box), use_sde=True, policy_kwargs=kwargs, **SMALL).learn(64)
    policy = model.policies["a"]
    obs = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
    taken, _ = policy.predict(obs)
    assert (taken >= low).all() and (taken <= high).all()
    assert len(np.unique(taken)) == taken.size  # tanh, not clipped
    policy.save(tmp_path / "agent.zip")
    alone = AgentPolicy.load(tmp_path / "agent.zip")
    best, _ = policy.predict(obs, deterministic=True)
    assert (alone.predict(obs, deterministic=True)[0] == best).all()
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    policy.export_onnx(tmp_path / "agent.onnx")  # compares with `predict`


def test_natural_steps_change_the_deviations() -> None:
    model = HATRPO(team(), use_sde=True, **SMALL)
    before = model.policies["a"].log_std.clone()  # type: ignore[union-attr]
    model.learn(64)
    assert not th.equal(model.policies["a"].log_std, before)  # type: ignore[arg-type]


@pytest.mark.parametrize("log_std_form", ["sigmoid", "constant"])
def test_other_forms_of_the_deviation(log_std_form: str) -> None:
    kwargs: dict[str, Any] = dict(log_std_form=log_std_form, log_std_init=-1.0)
    HAPPO(team(), use_sde=True, policy_kwargs=kwargs, **SMALL).learn(32)


def test_noise_of_a_single_agent() -> None:
    kwargs = dict(agent_kwargs={"b": {"use_sde": True}})
    model = HAPPO(team(), sde_sample_freq=1, policy_kwargs=kwargs, **SMALL)
    assert not model.policies["a"].use_sde and model.policies["b"].use_sde
    model.learn(32)
    without = HAPPO(
        team(), use_sde=True, policy_kwargs=dict(agent_kwargs={"b": {"use_sde": False}}), **SMALL
    )
    assert without.policies["a"].use_sde and not without.policies["b"].use_sde


DISCRETE = {"a": spaces.Discrete(2), "b": spaces.MultiBinary(2)}
WRONG: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no continuous agent": (DISCRETE, dict(use_sde=True), "no agent has some.*Discrete.*Omit it"),
    "a discrete agent": (
        {"a": BOX, "b": spaces.Discrete(2)},
        dict(policy_kwargs=dict(agent_kwargs={"b": {"use_sde": True}})),
        "agent 'b': use_sde=True needs continuous actions, and Discrete",
    ),
    "in policy_kwargs": ({}, dict(policy_kwargs=dict(use_sde=True)), r"HAPPO\(..., use_sde="),
    "no flag": ({}, dict(use_sde="yes"), "use_sde must be True or False, not 'yes'"),
    "frequency 0": ({}, dict(use_sde=True, sde_sample_freq=0), "sde_sample_freq must be .* not 0"),
    "squashed without": (
        {},
        dict(policy_kwargs=dict(squash_output=True)),
        "only available when using gSDE",
    ),
    "squashed unscaled": (
        {},
        dict(use_sde=True, policy_kwargs=dict(squash_output=True, rescale_actions=False)),
        "agent 'a': squash_output=True needs rescale_actions=True",
    ),
    "two kinds of noise": ({}, dict(use_sde=True, exploration_noise="ou"), "agent 'a' has state"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_settings_are_named(case: str) -> None:
    action_spaces, settings, words = WRONG[case]
    with pytest.raises(ValueError, match=words):
        HAPPO(team(**action_spaces), **SMALL | settings)


@pytest.mark.parametrize("algorithm", [HASAC, HATD3])
def test_off_policy_algorithms_refuse_it_by_name(algorithm: Any) -> None:
    with pytest.raises(ValueError, match=f"{algorithm.__name__}.*use_sde.*HAPPO"):
        algorithm(team(), use_sde=True)
    with pytest.raises(ValueError, match="use_sde"):
        algorithm(team(), policy_kwargs=dict(use_sde=True))
