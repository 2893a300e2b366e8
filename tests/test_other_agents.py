"""A team among other agents, which given policies play."""

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from sb3_happo.envs import (
    JointEnv,
    as_joint_env,
)
from tests.envs import (
    MaskedGame,
    RandomTeam,
    Script,
    TurnGame,
    episode,
    one,
)


def test_others_play_at_random_within_their_masks() -> None:
    team = MaskedGame(length=50)
    env = JointEnv(team, agents=["agent_0"], other_agents="random")
    assert env.agents == ("agent_0",)
    assert list(env.observation_space) == ["agent_0", "agent_0/action_mask", "state"]
    first, again = ([reward for _, reward, *_ in episode(env, seed=4)] for _ in range(2))
    assert len(first) == 51
    assert first == again
    info = JointEnv(
        MaskedGame(length=50, masks_in="info"), agents=["agent_1"], other_agents="random"
    )
    assert sum(1 for _ in episode(info)) == 51


def test_others_as_functions_agents_and_models() -> None:
    class Highest:
        """An agent as SB3 saves it, that takes the highest legal number."""

        def __init__(self, kind: str) -> None:
            self.kind = kind
            self.seen: list[Any] = []

        def predict(
            self, observation: Any, deterministic: bool = False, action_masks: Any = None
        ) -> tuple[Any, None]:
            self.seen.append(observation)
            return np.flatnonzero(action_masks)[-1], None

    def highest(
        agent: str, observation: Any, action_space: spaces.Space, action_mask: np.ndarray
    ) -> int:
        assert agent == "agent_0"
        assert set(observation) == {"observation", "action_mask"}
        assert action_space.contains(int(action_mask.argmax()))
        return int(np.flatnonzero(action_mask)[-1])

    class Model:
        def __init__(self) -> None:
            self.policies = {"agent_0": Highest("model's")}

        def predict(self, *_: Any, **__: Any) -> None:
            raise AssertionError("the whole team's predict is not for one agent")

    saved, model = Highest("saved"), Model()
    for other_agents in (
        highest,
        saved,
        model,
        {"agent_0": saved, "agent_9": None},
        [[highest], {"agent_0": model}],
    ):
        team = MaskedGame(length=10)
        env = JointEnv(team, agents=["agent_1"], other_agents=other_agents)
        rewards: list[float] = []
        step = team.step

        def spy(actions: dict, step: Any = step, rewards: list = rewards) -> Any:
            result = step(actions)
            rewards.append(result[1]["agent_0"])
            return result

        team.step = spy  # type: ignore[method-assign]
        assert sum(1 for _ in episode(env)) == 11
        assert rewards == [1.0] * 10
    assert all(
        observation.shape == (1,) for observation in saved.seen + model.policies["agent_0"].seen
    )


def test_a_mixture_is_drawn_once_per_episode() -> None:
    class Constant:
        def __init__(self, action: int) -> None:
            self.action = action

        def predict(self, observation: Any, deterministic: bool = False) -> tuple[int, None]:
            return self.action, None

    team = RandomTeam(dict.fromkeys("abc", spaces.Discrete(2)), length=5)
    env = JointEnv(team, agents=["a"], other_agents=[Constant(0), Constant(1)])

    def opponents() -> list[int]:
        drawn = []
        for number in range(20):
            env.reset(seed=7 if number == 0 else None)
            played = set()
            for _ in range(5):
                env.step({"a": 0})
                played.add((team.actions["b"], team.actions["c"]))
            assert played in ({(0, 0)}, {(1, 1)})
            drawn.append(played.pop()[0])
        return drawn

    first = opponents()
    assert set(first) == {0, 1}
    assert opponents() == first


def test_others_take_their_turns() -> None:
    moves = []

    def opponent(
        agent: str, observation: Any, action_space: spaces.Space, action_mask: np.ndarray
    ) -> int:
        assert not action_mask[int(observation["observation"][0]) % 3], "the mask of its own turn"
        moves.append(agent)
        return int(np.flatnonzero(action_mask)[-1])

    env = JointEnv(TurnGame(3, 4), agents=["player_1"], other_agents=opponent)
    moves.clear()
    observation, _ = env.reset()
    for turn in range(4):
        assert observation["player_1"].tolist() == [1 + 3 * turn, 2], "it is its turn"
        assert moves == (["player_0"] + ["player_2", "player_0"] * 3)[: 1 + 2 * turn]
        move = int(np.flatnonzero(observation["player_1/action_mask"])[-1])
        observation, _, terminated, truncated, info = env.step({"player_1": move})
        assert info["agent_rewards"] == pytest.approx([move - (0.2 if turn < 3 else 0.1)]), (
            "with what the others' moves cost it"
        )
    assert (terminated, truncated) == (True, False)
    assert len(moves) == 8


def test_the_episode_ends_when_none_of_the_team_is_left() -> None:
    start = dict.fromkeys("abc", (one(), 0, False, False))
    steps: list[dict[str, Any]] = [
        start,
        {
            "a": (one(), 1, True, False),
            "b": (one(), 1, False, False),
            "c": (one(), 1, False, False),
        },
        {"b": (one(), 1, True, False), "c": (one(), 1, False, False)},
    ]
    env = JointEnv(Script(steps, ["a", "b", "c"]), agents=["b", "a"], other_agents="random")
    assert env.agents == ("a", "b"), "in the env's order"
    env.reset()
    assert env.step({"a": 0, "b": 0})[2:4] == (False, False)
    assert env.step({"b": 0})[2:4] == (True, False)


def test_others_that_cannot_play() -> None:
    team = MaskedGame()
    with pytest.raises(ValueError, match="other_agents='random'"):
        JointEnv(team, agents=["agent_0"])
    with pytest.raises(ValueError, match="must name some of"):
        JointEnv(team, agents=["agent_7"], other_agents="random")
    with pytest.raises(ValueError, match="name the team with `agents`"):
        JointEnv(team, other_agents="random")
    with pytest.raises(ValueError, match="no policy for agent 'agent_1'"):
        JointEnv(team, agents=["agent_0"], other_agents={"agent_0": "random"})
    with pytest.raises(TypeError, match="cannot play agent 'agent_1'"):
        JointEnv(team, agents=["agent_0"], other_agents=["random", 3])
    assert JointEnv(team, agents=["agent_1", "agent_0"]).agents == ("agent_0", "agent_1")


def test_the_old_name_of_other_agents_still_works() -> None:
    team = RandomTeam(dict.fromkeys("ab", spaces.Discrete(2)))
    with pytest.warns(DeprecationWarning, match="use `other_agents`"):
        env = JointEnv(team, agents=["a"], others="random")
    assert env.agents == ("a",)
    with pytest.warns(DeprecationWarning, match="use `other_agents`"):
        joint = as_joint_env(team, agents=["a"], others="random")
    assert list(joint.action_space) == ["a"]  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="deprecated name of `other_agents`"):
        JointEnv(team, agents=["a"], other_agents="random", others="random")
