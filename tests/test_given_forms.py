"""Forms in which users give things: lists to `predict`, agents by number, odd names, `net_arch`."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.torch_layers import CombinedExtractor

from sb3_happo import HAPPO, IPPO, MAPPO
from sb3_happo.common.agent_policy import AgentPolicy
from tests.algorithms import LstmHAPPO, small
from tests.envs import MatrixGame, RandomTeam

VECTOR = spaces.Box(-1, 1, (2,), np.float32)
IMAGE = spaces.Box(0, 255, (3, 36, 36), np.uint8)


def team(names: list[Any], space: spaces.Space) -> RandomTeam:
    actions = dict.fromkeys(names, spaces.Discrete(3))
    return RandomTeam(actions, observation_spaces=dict.fromkeys(names, space))


def dict_of(*keys: str) -> spaces.Dict:
    return spaces.Dict([(key, VECTOR) for key in keys])


# Names and keys that PyTorch does not take for modules

NAMES = [
    ["drone.1", "drone.2"],
    ["a/b", "c.d/e"],
    [" ", "."],
    ["type", "keys"],
    ["self", "0.5"],
    ["state.x", "%s"],
    [0, 1.5],
]
SPACES = {
    "plain": dict_of("position", "velocity"),
    "attributes": dict_of("type", "keys", "values", "forward", "training"),
    "odd": dict_of("a.b", "", "x/y", " ", "ü"),
    "tuple": spaces.Tuple((VECTOR, VECTOR)),
    "vector": VECTOR,
}


@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("names", NAMES, ids=str)
def test_agents_and_keys_of_any_name(names: list[Any], kind: str, tmp_path: Path) -> None:
    env = team(names, SPACES[kind])
    algorithm = IPPO if kind == "odd" else HAPPO
    model = small(algorithm, env, n_steps=8, n_epochs=1).learn(8)
    observations, _ = env.reset()
    actions, _ = model.predict(observations, deterministic=True)
    assert list(actions) == names
    model.save(tmp_path / "model.zip")
    loaded = algorithm.load(tmp_path / "model.zip", env=env)
    assert loaded.predict(observations, deterministic=True)[0] == actions
    model.policies[names[1]].save(tmp_path / "agent.zip")
    alone = AgentPolicy.load(tmp_path / "agent.zip")
    action, _ = alone.predict(observations[names[1]], deterministic=True)
    assert action == actions[names[1]]


@pytest.mark.parametrize("algorithm", [HAPPO, IPPO, MAPPO, LstmHAPPO])
def test_states_of_separate_entries(algorithm: type[HAPPO]) -> None:
    """Images beside vectors: the critic reads "state/drone.1/camera"."""
    space = spaces.Dict([("camera", IMAGE), ("wheel.speed", VECTOR)])
    model = small(algorithm, team(["drone.1", "drone.2"], space), n_steps=4, n_epochs=1)
    model.learn(4)
    assert "state/drone.1/wheel.speed" in model.observation_space.spaces  # type: ignore[attr-defined]


def test_the_named_extractor_of_sb3_takes_any_key() -> None:
    kwargs = dict(
        features_extractor_class=CombinedExtractor,
        critic_kwargs=dict(features_extractor_class=None),
    )
    small(HAPPO, team(["drone.1", "b"], dict_of("x", "y.z")), policy_kwargs=kwargs)


# Lists and tuples


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-1, 1, (3,), np.float32),
        spaces.Box(-1, 1, (2, 2), np.float32),
        spaces.MultiDiscrete([3, 4]),
        spaces.MultiBinary(3),
        spaces.Discrete(4),
        dict_of("arm", "hand"),
        spaces.Tuple((VECTOR, spaces.Discrete(2))),
    ],
    ids=str,
)
@pytest.mark.parametrize("algorithm", [HAPPO, LstmHAPPO])
def test_predict_takes_lists_and_tuples(algorithm: type[HAPPO], space: spaces.Space) -> None:
    env = team(["a", "b"], space)
    model = small(algorithm, env)
    observations, _ = env.reset()
    expected, _ = model.predict(observations, deterministic=True)
    for form in (list, tuple):
        given = {agent: in_form(value, form) for agent, value in observations.items()}
        assert model.predict(given, deterministic=True)[0] == expected
        for agent, policy in model.policies.items():
            assert policy.predict(given[agent], deterministic=True)[0] == expected[agent]
    # Batches, by agent
    batch = {agent: batch_of(value, 3) for agent, value in observations.items()}
    as_lists = {agent: in_form(value, list) for agent, value in batch.items()}
    assert (
        model.predict(as_lists, deterministic=True)[0]
        == model.predict(batch, deterministic=True)[0]
    ).all()


def in_form(value: Any, form: type) -> Any:
    """The observation with lists or tuples in the place of arrays."""
    if isinstance(value, dict):
        return {key: in_form(part, form) for key, part in value.items()}
    if isinstance(value, tuple):
        return form(in_form(part, form) for part in value)
    value = np.asarray(value).tolist()
    return form(value) if isinstance(value, list) else value


def batch_of(value: Any, n: int) -> Any:
    if isinstance(value, dict):
        return {key: batch_of(part, n) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(batch_of(part, n) for part in value)
    return np.stack([np.asarray(value)] * n)


def test_predict_of_a_team_of_one_takes_lists() -> None:
    model = small(HAPPO, "CartPole-v1")
    array = np.zeros(4, np.float32)
    expected, _ = model.predict(array, deterministic=True)
    for given in ([0.0] * 4, (0.0,) * 4, {"agent_0": [0.0] * 4}):
        answer, _ = model.predict(given, deterministic=True)  # type: ignore[arg-type]
        assert answer == expected or answer == {"agent_0": expected}


def test_predict_explains_what_it_does_not_take() -> None:
    env = team(["a", "b"], VECTOR)
    model = small(HAPPO, env)
    with pytest.raises(ValueError, match=r"dict of observations.*reset\(\)` returns two dicts"):
        model.predict(env.reset())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"agent 'a'.*dict with the keys \['x'\]"):
        model.predict({"a": {"x": [0.0, 0.0]}, "b": [0.0, 0.0]})
    model = small(HAPPO, team(["a", "b"], dict_of("x", "y")))
    for wrong in ({"x": [0.0, 0.0]}, {"x": [0.0, 0.0], "y": [0.0, 0.0], "z": 1.0}):
        with pytest.raises(ValueError, match=r"agent 'a'.*has the parts \['x'.*needs \['x', 'y'\]"):
            model.predict({"a": wrong})
    with pytest.raises(ValueError, match="pass a dict"):
        model.policies["a"].predict(np.zeros(2))


# Agents by number


def test_policies_of_agents_that_are_numbers() -> None:
    env = team([0, 1], VECTOR)
    model = small(HAPPO, env, policy_kwargs=dict(agent_kwargs={1: dict(net_arch=[8])}))
    observations, _ = env.reset()
    actions, _ = model.predict(observations, deterministic=True)
    for agent in env.possible_agents:
        policy = model.policies[agent]
        assert policy is model.policies[str(agent)] is model.policies.get(agent)
        assert agent in model.policies and str(agent) in model.policies
        assert policy.predict(observations[agent], deterministic=True)[0] == actions[agent]
    assert list(model.policies) == ["0", "1"]
    missing: Any = 2
    assert missing not in model.policies and model.policies.get(missing) is None
    with pytest.raises(KeyError, match=r"no agent 2\. There are '0', '1'"):
        model.policies[missing]
    with pytest.raises(KeyError, match="Did you mean 'agent_"):
        small(HAPPO, MatrixGame()).policies["agent_O"]


# net_arch

WRONG = [64, "64,64", [64.0, 64.0], [-64], [0], [True], dict(pi=8, vf=8), [[8]], [None], {64}]


@pytest.mark.parametrize("net_arch", WRONG, ids=str)
def test_wrong_forms_of_net_arch(net_arch: Any) -> None:
    env = team(["a", "b"], VECTOR)
    for place, kwargs in {
        r"policy_kwargs\['net_arch'\]": dict(net_arch=net_arch),
        r"\['agent_kwargs'\]\['b'\]\['net_arch'\]": dict(
            agent_kwargs={"b": dict(net_arch=net_arch)}
        ),
        r"\['critic_kwargs'\]\['net_arch'\]": dict(critic_kwargs=dict(net_arch=net_arch)),
    }.items():
        with pytest.raises(ValueError, match=rf"{place}.*must be the units of each hidden layer"):
            HAPPO(env, policy_kwargs=kwargs)


def test_unknown_parts_of_net_arch() -> None:
    for net_arch in (dict(pi=[8], qf=[16]), dict(policy=[8]), [dict(pi=[8], vc=[8])]):
        with pytest.raises(ValueError, match=r"\['net_arch'\] knows no '(qf|policy|vc)'"):
            small(HAPPO, MatrixGame(), policy_kwargs=dict(net_arch=net_arch))


def test_right_forms_of_net_arch() -> None:
    for net_arch, actor, critic in (
        ([8, 8], [8, 8], [8, 8]),
        ((8,), [8], [8]),
        (np.array([8]), [8], [8]),
        ([np.int64(8)], [8], [8]),
        (dict(pi=[8], vf=(4, 4)), [8], [4, 4]),
        (dict(pi=[8]), [8], []),
        ([], [], []),
    ):
        model = small(HAPPO, MatrixGame(), policy_kwargs=dict(net_arch=net_arch))
        assert widths(model.policies["agent_0"].body) == actor
        assert widths(model.critic.networks[0].body) == critic


def test_the_old_form_of_net_arch_is_taken_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="form of SB3 before 1.8"):
        model = small(HAPPO, MatrixGame(), policy_kwargs=dict(net_arch=[dict(pi=[8], vf=[4])]))
    assert widths(model.policies["agent_0"].body) == [8]
    assert widths(model.critic.networks[0].body) == [4]


def widths(body: Any) -> list[int]:
    return [layer.out_features for layer in body if hasattr(layer, "out_features")]
