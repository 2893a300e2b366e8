"""Action masks of a joint environment."""

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from sb3_happo.envs import (
    JointEnv,
)
from sb3_happo.envs.spaces import flatten_mask, n_choices, split_mask
from tests.envs import (
    MaskedGame,
    episode,
)


@pytest.mark.parametrize("masks_in", ["observation", "info"])
def test_masks_come_in_both_forms(masks_in: str) -> None:
    team = MaskedGame(length=20, masks_in=masks_in)
    env = JointEnv(team)
    assert env.observation_space["agent_1/action_mask"] == spaces.Box(0, 1, (5,), np.int8)
    for observation, *_ in episode(env):
        for agent in env.agents:
            assert np.array_equal(
                observation[f"{agent}/action_mask"], np.concatenate(team.masks[agent])
            )
        assert observation["agent_0"].shape == (1,)
        assert observation["state"].shape == (2,), "masks are no part of the state"


def test_masks_of_nested_actions() -> None:
    space = spaces.Dict(
        {
            "a": spaces.Discrete(2),
            "b": spaces.Box(0, 1, (3,)),
            "c": spaces.Tuple([spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2)]),
        }
    )
    assert n_choices(space) == 7
    flat = np.array([0, 1, 1, 0, 0, 0, 1], np.int8)
    nested = split_mask(space, flat)
    assert np.array_equal(flatten_mask(space, nested), flat)
    assert np.array_equal(flatten_mask(space, flat.astype(bool)), flat)
    partly = {"a": np.array([0, 1], np.int8), "b": None, "c": None}
    assert flatten_mask(space, partly).tolist() == [0, 1, 1, 1, 1, 1, 1]
    for _ in range(20):
        sample = space.sample(nested)
        assert sample["a"] == 1
        assert sample["c"][0].tolist() == [0, 2]
    heads = spaces.MultiDiscrete(np.array([[2, 2], [3, 1]]))
    mask = np.array([1, 0, 0, 1, 0, 0, 1, 1], np.int8)
    assert np.array_equal(heads.sample(split_mask(heads, mask)), [[0, 1], [2, 0]])
    with pytest.raises(ValueError, match="needs 2 entries"):
        flatten_mask(spaces.Discrete(2), np.ones(3))


def test_a_mask_that_comes_too_late_or_only_once_or_is_too_long() -> None:
    class LateMask(MaskedGame):
        def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
            return super().reset(seed, options)[0], {}

    late = LateMask(masks_in="info")
    env = JointEnv(late)
    env.reset()
    best = {
        agent: np.array([np.flatnonzero(mask)[-1] for mask in masks])
        for agent, masks in late.masks.items()
    }
    with pytest.raises(ValueError, match="agent 'agent_0' has an action mask in its info now"):
        env.step({"agent_0": best["agent_0"][0], "agent_1": best["agent_1"]})

    class OnlyOneMask(MaskedGame):
        def step(self, actions: dict[str, Any]) -> Any:
            return *super().step(actions)[:4], {}

    once = OnlyOneMask(length=2, masks_in="info")
    env = JointEnv(once)
    env.reset()
    best = {
        agent: np.array([np.flatnonzero(mask)[-1] for mask in masks])
        for agent, masks in once.masks.items()
    }
    with pytest.raises(ValueError, match="agent 'agent_0' has no action mask in its info now"):
        env.step({"agent_0": best["agent_0"][0], "agent_1": best["agent_1"]})

    team = MaskedGame(masks_in="info")
    env = JointEnv(team)
    team.heads = {"agent_0": [4], "agent_1": [3, 3]}  # type: ignore[misc]
    with pytest.raises(ValueError, match="needs 5 entries"):
        env.reset()
