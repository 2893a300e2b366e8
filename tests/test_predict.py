"""
Deployment: the team or a part of it, one observation or a batch, and one agent's policy alone.
"""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_happo import HAPPO, JointEnv
from sb3_happo.common.agent_policy import AgentPolicy
from sb3_happo.envs import joint_action_dtype
from tests.algorithms import PLAIN_SPACES, every_algorithm, random_team, small
from tests.envs import HeterogeneousTeam, MaskedGame, RandomTeam, TurnGame

NESTED: dict[str, spaces.Space] = {
    "pair": spaces.Tuple([spaces.Discrete(3, start=-1), spaces.Box(0, 2, (2,), np.float32)]),
    "tree": spaces.Dict(
        [
            ("zoom", spaces.Box(-1, 1, (), np.float32)),
            ("buttons", spaces.Tuple([spaces.MultiBinary(2), spaces.MultiDiscrete([2, 3])])),
        ]
    ),
}
SPACES = {**PLAIN_SPACES, **NESTED}


def team() -> RandomTeam:
    return RandomTeam(SPACES)


@pytest.fixture(scope="module")
def model() -> HAPPO:
    return small(
        HAPPO, DummyVecEnv([lambda: JointEnv(team())] * 2), seed=0, learning_rate=1e-2
    ).learn(64)


@every_algorithm
def test_answers_of_every_algorithm(algorithm: type[HAPPO]) -> None:
    """
    `predict` draws from the policies: deterministic answers are their modes, random ones differ.
    """
    model = small(algorithm, random_team(), seed=0).learn(32)
    obs = {agent: np.ones(3, np.float32) for agent in PLAIN_SPACES}
    first, second = (model.predict(obs, deterministic=True)[0] for _ in range(2))
    assert all(np.array_equal(first[agent], second[agent]) for agent in PLAIN_SPACES)
    logits = model.policies["discrete"].get_distribution(th.ones(1, 3)).distribution.logits  # type: ignore[union-attr]
    assert first["discrete"] == 2 + int(logits.argmax())
    mean = model.policies["box"].get_distribution(th.ones(1, 3)).distribution.mean  # type: ignore[union-attr]
    space = PLAIN_SPACES["box"]
    assert isinstance(space, spaces.Box)
    middle, half = (space.high + space.low) / 2, (space.high - space.low) / 2
    assert np.allclose(first["box"], middle + half * mean.detach().numpy().reshape(1, 2), atol=1e-6)
    drawn = [model.predict(obs)[0]["box"] for _ in range(2)]
    assert not np.array_equal(*drawn)


def test_one_observation_gives_a_dict(model: HAPPO) -> None:
    """In the environment's own form: an action that `env.step` takes."""
    env = team()
    obs, _ = env.reset(seed=0)
    for deterministic in (True, False):
        actions, state = model.predict(obs, deterministic=deterministic)
        assert state is None and list(actions) == list(SPACES)
        for agent, action in actions.items():
            assert SPACES[agent].contains(action), (agent, action)
    assert isinstance(actions["pair"], tuple) and isinstance(actions["tree"], dict)
    env.step(actions)


def test_observation_of_the_joint_environment(model: HAPPO) -> None:
    env = JointEnv(team())
    joint, _ = env.reset(seed=0)
    assert "state" in joint
    actions, _ = model.predict(joint, deterministic=True)
    env.step(actions)
    own = {agent: joint[agent] for agent in SPACES}
    again, _ = model.predict(own, deterministic=True)
    assert str(actions) == str(again)


def test_a_batch_gives_joint_actions(model: HAPPO) -> None:
    env = DummyVecEnv([lambda: JointEnv(team())] * 3)
    obs = env.reset()
    assert isinstance(obs, dict)
    actions, _ = model.predict(obs, deterministic=True)
    assert isinstance(env.action_space, spaces.Dict)
    assert actions.shape == (3,) and actions.dtype == joint_action_dtype(env.action_space)
    env.step(actions)
    for index in range(3):
        single, _ = model.predict(
            {agent: obs[agent][index] for agent in SPACES}, deterministic=True
        )
        for agent in PLAIN_SPACES:
            assert np.allclose(single[agent], actions[index][agent], atol=1e-6)
        assert single["pair"][0] == actions["pair"]["0"][index]
        assert np.allclose(single["tree"]["zoom"], actions["tree"]["zoom"][index], atol=1e-6)


@pytest.mark.parametrize("n", [None, 1, 4])
def test_only_those_asked_are_answered(model: HAPPO, n: int | None) -> None:
    asked = ["tree", "discrete"]
    obs = {agent: np.ones(3 if n is None else (n, 3), np.float32) for agent in asked}
    actions, _ = model.predict(obs, deterministic=True)
    if n is None:
        assert set(actions) == set(asked)
    else:
        assert set(actions.dtype.names) == set(asked) and len(actions) == n


def test_nobody_asked_nobody_answered(model: HAPPO) -> None:
    assert model.predict({}) == ({}, None)


def test_unknown_agents_are_named(model: HAPPO) -> None:
    with pytest.raises(ValueError, match=r"Unknown agent 'discret'.*'discrete', 'box'"):
        model.predict({"discret": np.ones(3, np.float32)})
    with pytest.raises(ValueError, match="Unknown agent 'nobody' in `action_masks`"):
        model.predict({"discrete": np.ones(3, np.float32)}, action_masks={"nobody": np.ones(3)})


def test_wrong_observations_name_the_agent(model: HAPPO) -> None:
    with pytest.raises(ValueError, match="agent 'box'"):
        model.predict({"discrete": np.ones(3, np.float32), "box": np.ones(4, np.float32)})
    with pytest.raises(ValueError, match="dict of observations"):
        model.predict(np.ones(3, np.float32))


def test_integer_names_of_agents() -> None:
    """They are answered by the names by which they ask; a joint environment has texts."""
    env = RandomTeam({0: spaces.Discrete(2), 1: spaces.Discrete(3)})
    model = small(HAPPO, env).learn(32)
    obs, _ = env.reset(seed=0)
    actions, _ = model.predict(obs)
    assert set(actions) == {0, 1}
    env.step(actions)
    joint, _ = JointEnv(env).reset(seed=0)
    assert set(model.predict(joint)[0]) == {"0", "1"}


def test_integer_names_of_agents_in_arguments() -> None:
    team = RandomTeam({0: spaces.Discrete(2), 1: spaces.Discrete(2), 2: spaces.Discrete(2)})
    env = JointEnv(team, team_reward=0, agents=[0, 1], other_agents={2: "random"})  # type: ignore[arg-type]
    model = small(HAPPO, env, policy_kwargs=dict(share_parameters=[[0, 1]]))
    assert model.policy.groups == [("0", "1")]
    model = small(HAPPO, env, policy_kwargs=dict(agent_kwargs={0: dict(net_arch=[7])}))
    assert model.policies["0"].options.net_arch == [7]
    assert model.policies["1"].options.net_arch != [7]
    masked = RandomMasks({0: spaces.Discrete(2), 1: spaces.Discrete(2)})
    model = small(HAPPO, masked)
    obs, infos = masked.reset(seed=0)
    masks = {agent: np.eye(2, dtype=np.int8)[agent] for agent in infos}
    assert model.predict(obs, action_masks=masks)[0] == {0: 0, 1: 1}


class RandomMasks(RandomTeam):
    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        obs, infos = super().reset(seed, options)
        return obs, {agent: {"action_mask": np.ones(2, np.int8)} for agent in infos}


def test_batches_of_different_lengths(model: HAPPO) -> None:
    three, one = np.ones((3, 3), np.float32), np.ones((1, 3), np.float32)
    for other, words in ((one, "'box' of 1"), (one[0], "'box' of one, without a batch")):
        with pytest.raises(ValueError, match=f"'discrete' of 3, {words}"):
            model.predict({"discrete": three, "box": other})


# ---------------------------------------------------------------- masks


@pytest.mark.parametrize("masks_in", ["observation", "info"])
def test_masks_in_predict(masks_in: str) -> None:
    """The environment raises on illegal actions. Masks come as PettingZoo gives them, or apart."""
    model = small(HAPPO, MaskedGame(masks_in=masks_in), seed=0).learn(64)
    env = MaskedGame(length=200, masks_in=masks_in)
    obs, infos = env.reset(seed=1)
    while env.agents:
        masks = (
            None
            if masks_in == "observation"
            else {agent: info["action_mask"] for agent, info in infos.items()}
        )
        actions, _ = model.predict(obs, action_masks=masks)
        obs, _, _, _, infos = env.step(actions)


def test_a_single_legal_action_is_taken() -> None:
    model = small(HAPPO, MaskedGame(), seed=0).learn(64)
    own = np.zeros(1, np.float32)
    for choice in range(4):
        for deterministic in (True, False):
            obs = {"agent_0": {"observation": own, "action_mask": np.eye(4, dtype=np.int8)[choice]}}
            assert model.predict(obs, deterministic=deterministic)[0] == {"agent_0": choice}
    # Heads of MultiDiscrete([3, 2]), one after the other
    obs = {"agent_1": {"observation": own, "action_mask": np.array([0, 0, 1, 0, 1], np.int8)}}
    assert list(model.predict(obs)[0]["agent_1"]) == [2, 1]


def test_masks_that_may_not_be_written_to(recwarn: pytest.WarningsRecorder) -> None:
    """Such as the zeros broadcast for an agent that is absent."""
    model = small(HAPPO, MaskedGame(), seed=0)
    mask = np.eye(4, dtype=np.int8)[2]
    mask.flags.writeable = False
    assert model.predict(
        {"agent_0": {"observation": np.zeros(1, np.float32), "action_mask": mask}}
    )[0] == {"agent_0": 2}
    assert not [warning for warning in recwarn if "writ" in str(warning.message)]


def test_masks_of_a_batch() -> None:
    model = small(HAPPO, MaskedGame(), seed=0)
    own, masks = np.zeros((4, 1), np.float32), np.eye(4, dtype=np.int8)
    for obs, kwargs in (
        ({"agent_0": {"observation": own, "action_mask": masks}}, {}),
        ({"agent_0": own, "agent_0/action_mask": masks}, {}),
        ({"agent_0": own}, {"action_masks": {"agent_0": masks}}),
    ):
        assert list(model.predict(obs, **kwargs)[0]["agent_0"]) == [0, 1, 2, 3]  # type: ignore[arg-type]


def test_missing_and_empty_masks() -> None:
    model = small(HAPPO, MaskedGame(), seed=0)
    own = np.zeros(1, np.float32)
    with pytest.raises(ValueError, match=r"agent 'agent_0'.*action_masks"):
        model.predict({"agent_0": own})
    with pytest.raises(ValueError, match=r"agent 'agent_1'.*allows no action"):
        # One head of two without a choice
        model.predict(
            {"agent_1": {"observation": own, "action_mask": np.array([1, 1, 1, 0, 0], np.int8)}}
        )
    with pytest.raises(ValueError, match=r"agent 'agent_1'.*shape \(7,\).*needs 5 entries"):
        model.predict({"agent_1": {"observation": own, "action_mask": np.ones(7, np.int8)}})


def test_masks_nested_as_the_environment_gives_them() -> None:
    model = small(HAPPO, MaskedGame(), seed=0)
    own = np.zeros(1, np.float32)
    for mask in ((np.array([0, 0, 1]), np.array([0, 1])), [0, 0, 1, 0, 1]):
        assert list(
            model.predict({"agent_1": {"observation": own, "action_mask": mask}})[0]["agent_1"]
        ) == [2, 1]
    both: Any = {"agent_0": [[0, 1, 0, 0], [0, 0, 0, 1]]}
    assert list(model.predict({"agent_0": np.zeros((2, 1))}, action_masks=both)[0]["agent_0"]) == [
        1,
        3,
    ]


def test_masks_that_nobody_would_heed() -> None:
    model = small(
        HAPPO, RandomTeam({"a": spaces.Discrete(3), "b": spaces.Box(-1, 1, (2,))}), seed=0
    )
    with pytest.raises(ValueError, match=r"agent 'a'.*trained without action masks"):
        model.predict({"a": np.zeros(3, np.float32)}, action_masks={"a": np.array([0, 0, 1])})


# ---------------------------------------------------------------- a team of one


@pytest.mark.parametrize("vectorised", [True, False])
def test_team_of_one_takes_bare_arrays(vectorised: bool) -> None:
    env = make_vec_env("CartPole-v1", 3) if vectorised else gym.make("CartPole-v1")
    model = small(HAPPO, env, seed=0).learn(96)
    single = np.zeros(4, np.float32)
    action, _ = model.predict(single, deterministic=True)
    assert env.action_space.contains(action) and np.ndim(action) == 0
    batch, _ = model.predict(np.zeros((3, 4), np.float32), deterministic=True)
    assert batch.shape == (3,) and (batch == action).all()
    assert model.predict({"agent_0": single}, deterministic=True)[0] == {"agent_0": action}


# ---------------------------------------------------------------- one agent alone


def hetero_observations() -> dict[str, Any]:
    class Complete(HeterogeneousTeam):
        """A team whose agents are all alive at the first step."""

        def alive(self, t: int) -> list[str]:
            return self.possible_agents

    return Complete().reset(seed=0)[0]


@every_algorithm
def test_a_policy_stands_alone(algorithm: type[HAPPO], tmp_path: Path) -> None:
    model = small(algorithm, HeterogeneousTeam(), seed=0).learn(64)
    env = HeterogeneousTeam()
    spaces_ = {agent: env.action_space(agent) for agent in env.possible_agents}
    masks = {"console": np.array([0, 1, 1, 0, 1], np.int8)}
    for agent, obs in hetero_observations().items():
        policy = model.policies[agent]
        policy.save(str(tmp_path / "agent"))
        loaded = AgentPolicy.load(str(tmp_path / "agent"))
        for which in (policy, loaded):
            action, _ = which.predict(obs, deterministic=True, action_masks=masks.get(agent))
            assert spaces_[agent].contains(action), (agent, action)
            through_team, _ = model.predict(
                {agent: obs}, deterministic=True, action_masks=masks if agent == "console" else None
            )
            assert str(through_team[agent]) == str(action)


def test_a_policy_that_shares_parameters_stands_alone(tmp_path: Path) -> None:
    """It keeps its own place among those it shared with."""
    from sb3_happo import MAPPO

    pair = RandomTeam(dict.fromkeys(["left", "right"], spaces.Box(-1, 1, (2,), np.float32)))
    model = small(
        MAPPO, pair, policy_kwargs=dict(append_agent_id=True, output_gain=1.0), seed=0
    ).learn(64)
    obs = np.ones(3, np.float32)
    actions = {}
    for agent in ("left", "right"):
        model.policies[agent].save(str(tmp_path / agent))
        actions[agent] = AgentPolicy.load(str(tmp_path / agent)).predict(obs, deterministic=True)[0]
        assert np.array_equal(
            actions[agent], model.policies[agent].predict(obs, deterministic=True)[0]
        )
    assert not np.array_equal(actions["left"], actions["right"])


def test_batches_of_one_agent(model: HAPPO) -> None:
    for agent, space in SPACES.items():
        actions, _ = model.policies[agent].predict(np.ones((6, 3), np.float32), deterministic=True)
        assert len(actions) == 6
        single, _ = model.policies[agent].predict(np.ones(3, np.float32), deterministic=True)
        assert space.contains(single)


def test_images_are_taken_as_the_environment_gives_them() -> None:
    """Channels last, though the networks have them first; batches too."""
    model = small(HAPPO, HeterogeneousTeam(), seed=0)
    obs = hetero_observations()["camera"]
    assert obs["observation"].shape == (36, 36, 3)
    single, _ = model.predict({"camera": obs}, deterministic=True)
    batch = {key: np.stack([value] * 2) for key, value in obs.items()}
    both, _ = model.predict({"camera": batch}, deterministic=True)
    assert list(both["camera"]) == [single["camera"]] * 2


def test_get_distribution_of_a_policy(model: HAPPO) -> None:
    """
    The documented name, on tensors: probabilities that add up, and those that actions are drawn
    with.
    """
    distribution = model.policies["discrete"].get_distribution(th.ones(1, 3))
    probs = distribution.distribution.probs[0]  # type: ignore[union-attr]
    assert probs.sum().item() == pytest.approx(1.0, abs=1e-6)
    drawn, _ = model.policies["discrete"].predict(np.ones((4000, 3), np.float32))
    shares = np.bincount(drawn - 2, minlength=3) / 4000
    assert np.allclose(shares, probs.detach().numpy(), atol=0.04)


def test_games_of_turns() -> None:
    """
    PettingZoo's AEC loop, with the saved team's answer for whoever is on turn; illegal actions
    raise.
    """
    model = small(HAPPO, TurnGame(), seed=0).learn(64)
    env = TurnGame()
    env.reset(seed=0)
    for agent in env.agent_iter():
        obs, _, terminated, truncated, _ = env.last()
        env.step(None if terminated or truncated else model.predict({agent: obs})[0][agent])


# ------------------------------------------------------- observations in the environment's own form


def test_nested_observations_as_the_environment_gives_them() -> None:
    observation_spaces = {
        "tree": spaces.Dict(
            {"deep": spaces.Dict({"x": spaces.Box(-1, 1, (2,)), "n": spaces.Discrete(3)})}
        ),
        "pair": spaces.Tuple([spaces.Box(-1, 1, (2,)), spaces.Discrete(4)]),
        "numbers": spaces.MultiDiscrete([2, 3]),
        "bits": spaces.MultiBinary(3),
        "number": spaces.Discrete(5),
    }
    env = RandomTeam(
        dict.fromkeys(observation_spaces, spaces.Discrete(3)), observation_spaces=observation_spaces
    )
    model = small(HAPPO, env, seed=0).learn(32)
    own, _ = env.reset(seed=0)
    joint, _ = JointEnv(env).reset(seed=0)
    actions, _ = model.predict(own, deterministic=True)
    assert actions == model.predict(joint, deterministic=True)[0]
    for agent, obs in own.items():
        assert model.policies[agent].predict(obs, deterministic=True)[0] == actions[agent]


class OneRobot(gym.Env):
    """A single agent with a Dict observation, with which it also gets its mask, or not."""

    def __init__(self, masked: bool) -> None:
        parts: dict[str, spaces.Space] = {
            "position": spaces.Box(-1, 1, (2,)),
            "mode": spaces.Discrete(3),
        }
        if masked:
            parts["action_mask"] = spaces.Box(0, 1, (4,), np.int8)
        self.observation_space = spaces.Dict(parts)
        self.action_space = spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        obs = self.observation_space.sample()
        if "action_mask" in obs:
            obs["action_mask"] = np.eye(4, dtype=np.int8)[2]
        return obs, {}

    def step(self, action: int) -> Any:
        return self.reset()[0], 0.0, False, True, {}


@pytest.mark.parametrize("masked", [False, True])
def test_team_of_one_takes_bare_dicts(masked: bool) -> None:
    env = OneRobot(masked)
    model = small(HAPPO, env, seed=0).learn(32)
    obs, _ = env.reset(seed=0)
    action, _ = model.predict(obs, deterministic=True)
    assert {"agent_0": action} == model.predict({"agent_0": obs}, deterministic=True)[0]
    if masked:
        assert action == 2
        bare = {key: value for key, value in obs.items() if key != "action_mask"}
        assert model.predict(bare, action_masks={"agent_0": np.eye(4)[1]})[0] == 1
    with pytest.raises(ValueError, match="Unknown agent 'agent_1'"):
        model.predict({"agent_1": obs})


def test_an_observation_of_one_with_a_key_of_the_critics() -> None:
    class Stateful(OneRobot):
        def __init__(self) -> None:
            super().__init__(masked=False)
            self.observation_space = spaces.Dict(
                {"state": spaces.Box(-1, 1, (2,)), "active": spaces.Discrete(2)}
            )

    env = JointEnv(Stateful())
    model = small(HAPPO, env, seed=0).learn(32)
    joint, _ = env.reset(seed=0)
    actions, _ = model.predict(joint, deterministic=True)
    own = {
        key.removeprefix("agent_0/"): value
        for key, value in joint.items()
        if key.startswith("agent_0/")
    }
    assert actions == {"agent_0": model.predict(own, deterministic=True)[0]}
