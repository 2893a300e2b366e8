"""Action masks that a method of the environment returns."""

from collections.abc import Callable
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from pettingzoo import ParallelEnv
from sb3_contrib.common.wrappers import ActionMasker
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_happo import HAPPO, JointEnv
from sb3_happo.vec_env import JointDummyVecEnv, JointSubprocVecEnv


class OneLegal(gym.Env):
    """One action is legal at a time; illegal ones raise. Without a method that tells it."""

    observation_space: spaces.Space = spaces.Box(-1.0, 1.0, (2,))
    action_space = spaces.Discrete(9)

    def look(self) -> np.ndarray:
        self.legal = int(self.np_random.integers(9))
        return np.zeros(2, np.float32)

    def legal_actions(self) -> np.ndarray:
        return np.arange(9) == self.legal

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.time = 0
        return self.look(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict]:
        if action != self.legal:
            raise RuntimeError("an illegal action")
        self.time += 1
        return self.look(), 1.0, False, self.time == 10, {}


class WithMethod(OneLegal):
    def action_masks(self) -> np.ndarray:
        return self.legal_actions()


def legal_actions(env: Any) -> np.ndarray:
    return env.unwrapped.legal_actions()


def masked() -> gym.Env:
    return ActionMasker(OneLegal(), legal_actions)


class Pair(ParallelEnv):
    """Two agents with one legal action each; illegal ones raise."""

    metadata: ClassVar = {"name": "pair_v0"}
    possible_agents: ClassVar = ["a", "b"]
    sizes: ClassVar = {"a": 3, "b": 5}

    def observation_space(self, agent: str) -> spaces.Space:
        return spaces.Box(-1.0, 1.0, (2,), np.float32)

    def action_space(self, agent: str) -> spaces.Space:
        return spaces.Discrete(self.sizes[agent])

    def look(self) -> dict[str, np.ndarray]:
        self.legal = {agent: int(self.rng.integers(n)) for agent, n in self.sizes.items()}
        return {agent: np.zeros(2, np.float32) for agent in self.agents}

    def mask_of(self, agent: str) -> np.ndarray:
        return (np.arange(self.sizes[agent]) == self.legal[agent]).astype(np.int8)

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[dict, dict]:
        self.rng = np.random.default_rng(seed)
        self.agents, self.time = ["a", "b"], 0
        return self.look(), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, Any]) -> tuple[dict, dict, dict, dict, dict]:
        if any(self.legal[agent] != action for agent, action in actions.items()):
            raise RuntimeError("an illegal action")
        self.time += 1
        team, over = self.agents, self.time == 10
        cut = dict.fromkeys(team, over)
        infos: dict = {agent: {} for agent in team}
        return self.look(), dict.fromkeys(team, 1.0), dict.fromkeys(team, False), cut, infos


class NamedMasks(Pair):
    def action_masks(self) -> dict[str, np.ndarray]:
        return {agent: self.mask_of(agent) for agent in self.agents}


class ListedMasks(Pair):
    def action_masks(self) -> list[np.ndarray]:
        return [self.mask_of(agent) for agent in self.possible_agents]


class FlatMasks(Pair):
    def action_masks(self) -> np.ndarray:
        return np.concatenate([self.mask_of(agent) for agent in self.possible_agents])


class AgentMasks(Pair):
    def action_masks(self, agent: str) -> np.ndarray:
        return self.mask_of(agent)


class AgentMask(Pair):
    def action_mask(self, agent: str) -> np.ndarray:
        return self.mask_of(agent)


@pytest.mark.parametrize(
    "make",
    [
        WithMethod,
        masked,
        lambda: JointDummyVecEnv([lambda: JointEnv(masked())]),
        lambda: DummyVecEnv([masked] * 2),
        lambda: DummyVecEnv([WithMethod] * 2),
        lambda: SubprocVecEnv([WithMethod] * 2),
        lambda: JointSubprocVecEnv([lambda: JointEnv(NamedMasks())] * 2),
        NamedMasks,
        ListedMasks,
        FlatMasks,
        AgentMasks,
        AgentMask,
    ],
)
def test_masks_are_heeded(make: Callable[[], Any]) -> None:
    model = HAPPO("MlpPolicy", make(), n_steps=16, batch_size=8, n_epochs=1, seed=0).learn(16)
    for agent, policy in model.policies.items():
        assert policy.masked, agent
    venv = model.get_env()
    assert venv is not None
    venv.close()


def test_a_mask_in_the_observation_comes_first() -> None:
    class Both(WithMethod):
        observation_space = spaces.Dict(
            {"observation": spaces.Box(-1.0, 1.0, (2,)), "action_mask": spaces.MultiBinary(9)}
        )

        def look(self) -> Any:
            own = super().look()
            return {"observation": own, "action_mask": self.legal_actions().astype(np.int8)}

        def action_masks(self) -> np.ndarray:
            raise AssertionError("not asked")

    env = JointEnv(Both())
    assert env.mask_sources == {"agent_0": "observation"}
    assert env.reset()[0]["agent_0/action_mask"].sum() == 1


def test_other_agents_heed_masks() -> None:
    env = JointEnv(NamedMasks(), agents=["a"], other_agents="random")
    obs, _ = env.reset(seed=0)
    for _ in range(10):
        obs = env.step({"a": int(np.argmax(obs["a/action_mask"]))})[0]


def test_found_masks_are_said_once(capsys: pytest.CaptureFixture) -> None:
    HAPPO("MlpPolicy", NamedMasks(), n_steps=16, batch_size=8, verbose=1)
    assert capsys.readouterr().out.count("Action masks: a, b (info or action_masks())") == 1
    HAPPO("MlpPolicy", DummyVecEnv([WithMethod]), n_steps=16, batch_size=8, verbose=1)
    assert "Action masks: agent_0 (action_masks())" in capsys.readouterr().out
    HAPPO("MlpPolicy", Pair(), n_steps=16, batch_size=8, verbose=1)
    assert "Action masks: none" in capsys.readouterr().out
    HAPPO("MlpPolicy", NamedMasks(), n_steps=16, batch_size=8)
    assert not capsys.readouterr().out


def test_masker_around_a_joint_environment() -> None:
    env = ActionMasker(JointEnv(Pair()), lambda env: np.ones(8))
    with pytest.raises(ValueError, match="do not reach the agents"):
        HAPPO("MlpPolicy", env)


def test_masks_of_a_wrong_size() -> None:
    class Wrong(Pair):
        def action_masks(self) -> np.ndarray:
            return np.ones(7)

    with pytest.raises(ValueError, match=r"action_masks\(\) returned 7 entries"):
        JointEnv(Wrong())
