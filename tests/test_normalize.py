"""Normalisation of teams with absent agents, and individual rewards behind wrappers of rewards."""

import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from pettingzoo import ParallelEnv
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    sync_envs_normalization,
)

from sb3_happo import HAPPO, IPPO, JointEnv, make_joint_vec_env
from sb3_happo.vec_env import JointDummyVecEnv, JointSubprocVecEnv, VecNormalizeTeam

KEYS = ["gardener", "inspector", "state"]


class Shift(ParallelEnv):
    """
    A gardener, and an inspector who comes every tenth hour; both read 100, give or take 1.

    :param reward: Reward of each agent and step
    """

    metadata: ClassVar = {"name": "shift_v0"}
    possible_agents: ClassVar = ["gardener", "inspector"]
    seen, choices = spaces.Box(-np.inf, np.inf, (2,), np.float32), spaces.Discrete(2)

    def __init__(self, reward: float = 1.0) -> None:
        self.reward = reward

    def observation_space(self, agent: str) -> spaces.Space:
        return self.seen

    def action_space(self, agent: str) -> spaces.Space:
        return self.choices

    def look(self) -> dict[str, np.ndarray]:
        here = ["gardener"] + ["inspector"] * (self.time % 10 == 0)
        return {agent: self.rng.normal(100, 1, 2).astype(np.float32) for agent in here}

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[dict, dict]:
        self.rng = np.random.default_rng(seed)
        self.agents, self.time = list(self.possible_agents), 0
        return self.look(), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, Any]) -> tuple[dict, dict, dict, dict, dict]:
        self.time += 1
        team, over = self.agents, self.time == 100
        self.agents = [] if over else team
        flags = dict.fromkeys(team, False)
        cut = dict.fromkeys(team, over)
        rewards = dict.fromkeys(team, self.reward)
        return self.look(), rewards, flags, cut, {agent: {} for agent in team}


def shift_vec_env(n_envs: int = 2, **kwargs: Any) -> VecEnv:
    return make_joint_vec_env(Shift, n_envs, seed=0, **kwargs)


def play(env: VecEnv, n_steps: int) -> list[dict[str, np.ndarray]]:
    """
    :param env: Joint environment of Shift
    :param n_steps: Number of steps
    :return: Observations
    """
    seen: list[Any] = [env.reset()]
    actions: Any = [{"gardener": 0, "inspector": 0}] * env.num_envs
    for _ in range(n_steps):
        seen.append(env.step(actions)[0])
    return seen


def assert_describes_the_sight(mean: np.ndarray, var: np.ndarray) -> None:
    assert np.all(np.abs(mean - 100) < 1.5)
    assert np.all((np.sqrt(var) > 0.4) & (np.sqrt(var) < 2.5))


@pytest.mark.parametrize("vec_env_cls", [JointDummyVecEnv, DummyVecEnv, JointSubprocVecEnv])
@pytest.mark.parametrize("state", ["observations", "agent"])
def test_statistics_count_active_agents_only(vec_env_cls: type[VecEnv], state: str) -> None:
    venv = shift_vec_env(vec_env_cls=vec_env_cls, joint_kwargs={"state": state})
    env = VecNormalizeTeam(VecMonitor(venv), norm_reward=False)
    seen = play(env, 99)
    for agent in ("gardener", "inspector"):
        statistics = env.obs_rms[agent]
        assert_describes_the_sight(statistics.mean, statistics.var)
    for obs in seen[1:10]:
        assert not obs["inspector"].any()
        assert obs["gardener"].any()
    if state == "observations":
        statistics = env.obs_rms["state"]
        assert_describes_the_sight(statistics.mean, statistics.var)
        assert not seen[5]["state"][:, 2:].any()
    else:
        # Rows: the shared state, the agent's own observation, its one-hot id
        rows = env.obs_rms["agent_states"]
        assert_describes_the_sight(rows.mean[:, :6], rows.var[:, :6])
        assert not seen[5]["agent_states"][:, :, 2:4].any()
        assert not seen[5]["agent_states"][:, 1, 4:6].any()
    env.close()


class Turns(ParallelEnv):
    """Two agents who are observed in turns, though both are alive."""

    metadata: ClassVar = {"name": "turns_v0"}
    possible_agents: ClassVar = ["a", "b"]

    def observation_space(self, agent: str) -> spaces.Space:
        return spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def action_space(self, agent: str) -> spaces.Space:
        return spaces.Discrete(2)

    def look(self) -> dict[str, np.ndarray]:
        agent = self.agents[self.time % 2]
        return {agent: self.rng.normal(50, 1, 1).astype(np.float32)}

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[dict, dict]:
        self.rng = np.random.default_rng(seed)
        self.agents, self.time = ["a", "b"], 0
        return self.look(), {}

    def step(self, actions: dict[str, Any]) -> tuple[dict, dict, dict, dict, dict]:
        self.time += 1
        flags, cut = dict.fromkeys(self.agents, False), dict.fromkeys(self.agents, self.time == 20)
        return self.look(), dict.fromkeys(self.agents, 1.0), flags, cut, {}


def test_state_of_agents_who_wait() -> None:
    """Where only the agent on turn is observed, the state shows no other agent either."""
    env = VecNormalize(JointDummyVecEnv([lambda: JointEnv(Turns())]), norm_reward=False)
    HAPPO("MlpPolicy", env, n_steps=40, batch_size=None, n_epochs=1).learn(40)
    for key in ("a", "b", "state"):
        assert np.all(np.abs(env.obs_rms[key].mean - 50) < 1)
        assert np.all(env.obs_rms[key].var < 9)


def test_state_of_turn_based_game_shows_waiting_agents() -> None:
    from pettingzoo.classic import tictactoe_v3

    def venv() -> VecEnv:
        return JointDummyVecEnv([lambda: JointEnv(tictactoe_v3.env(), state="observations")])

    env, plain = (cls(venv(), norm_obs_keys=["state"]) for cls in (VecNormalizeTeam, VecNormalize))
    for normalizer in (env, plain):
        normalizer.reset()
        for choice in range(4):
            actions: Any = [{"player_1": choice, "player_2": choice}]
            normalizer.step(actions)
    # Both players are alive, so that the state shows both
    np.testing.assert_array_equal(env.obs_rms["state"].mean, plain.obs_rms["state"].mean)


def test_equals_vecnormalize_without_absent_agents() -> None:
    def make(cls: type[VecNormalize]) -> VecNormalize:
        return cls(make_joint_vec_env("mpe2/simple_spread_v3", 2, seed=0))

    ours, plain = make(VecNormalizeTeam), make(VecNormalize)
    assert isinstance(ours.action_space, spaces.Dict)
    actions: Any = [dict.fromkeys(ours.action_space.spaces, 1)] * 2
    pairs: list[tuple[Any, Any]] = [(ours.reset(), plain.reset())]
    for _ in range(30):
        mine, theirs = ours.step(actions), plain.step(actions)
        pairs.append((mine[0], theirs[0]))
        np.testing.assert_array_equal(mine[1], theirs[1])
        for one, other in zip(mine[3], theirs[3], strict=True):
            assert ("terminal_observation" in one) == ("terminal_observation" in other)
            if "terminal_observation" in one:
                pairs.append((one["terminal_observation"], other["terminal_observation"]))
    for one, other in pairs:
        for key in other:
            np.testing.assert_array_equal(one[key], other[key])


def test_there_and_back() -> None:
    env = VecNormalizeTeam(shift_vec_env())
    obs = play(env, 13)[-1]
    original = env.get_original_obs()
    assert isinstance(original, dict)
    assert not original["inspector"].any()
    again, back = env.normalize_obs(original), env.unnormalize_obs(obs)
    for key in KEYS:
        np.testing.assert_array_equal(again[key], obs[key])
        np.testing.assert_allclose(back[key], original[key], rtol=1e-3)
    one = {key: values[0] for key, values in original.items()}
    masked = env.normalize_obs(one, active=np.array([True, False]))
    for key in KEYS:
        np.testing.assert_array_equal(masked[key], obs[key][0])


def test_terminal_observation_keeps_zeros() -> None:
    class Short(Shift):
        def look(self) -> dict[str, np.ndarray]:
            seen = super().look()
            if self.time == 100:
                seen.pop("inspector", None)
            return seen

    env = VecNormalizeTeam(make_joint_vec_env(Short, 1, seed=0))
    env.reset()
    actions: Any = [{"gardener": 0, "inspector": 0}]
    for _ in range(100):
        infos = env.step(actions)[3]
    last = infos[0]["terminal_observation"]
    assert not last["inspector"].any() and not last["state"][2:].any()
    assert last["gardener"].any() and np.abs(last["state"]).max() < 10


def test_saved_loaded_and_synchronised(tmp_path: Path) -> None:
    path = str(tmp_path / "vecnormalize.pkl")
    env = VecNormalizeTeam(shift_vec_env())
    play(env, 30)
    env.save(path)
    old = str(tmp_path / "pickle.pkl")
    VecNormalize.save(env, old)
    with pytest.warns(UserWarning, match=r"pickle\.pkl is a pickle"):
        trusted = VecNormalizeTeam.load(old, shift_vec_env(), trust_pickle=True)
    for again in (
        VecNormalizeTeam.load(path, shift_vec_env()),
        VecNormalize.load(old, shift_vec_env()),
        trusted,
    ):
        assert isinstance(again, VecNormalizeTeam)
        assert again.agent_ret_rms.count == env.agent_ret_rms.count
        again.training = False
        assert not play(again, 5)[-1]["inspector"].any()
    plain = VecNormalize(shift_vec_env(), norm_obs_keys=KEYS)
    plain.reset()
    plain.save(path)
    with pytest.raises(ValueError, match=r"pickle.*VecNormalizeTeam\.load\(path, trust_pickle"):
        VecNormalizeTeam.load(path, shift_vec_env())
    with pytest.warns(UserWarning, match="is a pickle"):
        again = VecNormalizeTeam.load(path, shift_vec_env(), trust_pickle=True)
    assert isinstance(again, VecNormalizeTeam)
    eval_env = VecNormalizeTeam(shift_vec_env(), training=False)
    sync_envs_normalization(env, eval_env)
    for key in KEYS:
        np.testing.assert_array_equal(eval_env.obs_rms[key].mean, env.obs_rms[key].mean)
    np.testing.assert_array_equal(eval_env.agent_ret_rms.var, env.agent_ret_rms.var)
    assert pickle.loads(pickle.dumps(env)).obs_rms["state"].mean.shape == (4,)


def test_algorithms_adopt_vecnormalize() -> None:
    env = VecNormalize(shift_vec_env(1), norm_reward=False, norm_obs_keys=KEYS)
    model = HAPPO("MlpPolicy", env, n_steps=100, batch_size=100, n_epochs=1, seed=0).learn(200)
    assert_describes_the_sight(env.obs_rms["inspector"].mean, env.obs_rms["inspector"].var)
    other = VecNormalize(VecMonitor(shift_vec_env(1)), norm_reward=False, norm_obs_keys=KEYS)
    model.set_env(other)
    model.learn(100)
    assert_describes_the_sight(other.obs_rms["state"].mean, other.obs_rms["state"].var)


def test_stacked_frames() -> None:
    env = VecNormalizeTeam(VecFrameStack(shift_vec_env(), 3))
    seen = play(env, 40)
    assert not seen[5]["inspector"].any()
    assert not seen[5]["state"].reshape(2, 3, 4)[:, :, 2:].any()


# ---------------------------------------------------------------- individual rewards


class Halved(VecEnvWrapper):
    """Halves the team's reward."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        obs, rewards, dones, infos = self.venv.step_wait()
        return obs, rewards / 2, dones, infos


class HalvedForAll(Halved):
    """Halves the agents' own rewards as well."""

    def step_wait(self) -> Any:
        obs, rewards, dones, infos = super().step_wait()
        changed = [{**info, "agent_rewards": info["agent_rewards"] / 2} for info in infos]
        return obs, rewards, dones, changed


def joint(**kwargs: Any) -> JointEnv:
    return JointEnv(Shift(reward=100.0), **kwargs)


def scaled() -> gym.Env:
    return gym.wrappers.TransformReward(joint(), lambda reward: float(reward) / 100)


def mean_reward(algorithm: type, env: Any) -> float:
    """Mean size of the rewards that a model of ``algorithm`` learns from."""
    model = algorithm("MlpPolicy", env, n_steps=16, batch_size=8, seed=0).learn(16)
    return float(model.rollout_buffer.rewards.abs().mean())


@pytest.mark.parametrize("monitor", [False, True])
def test_vecnormalize_reaches_own_rewards(monitor: bool) -> None:
    def make() -> VecEnv:
        env = VecNormalize(JointDummyVecEnv([joint]), norm_obs=False)
        return VecMonitor(env) if monitor else env

    team, own = mean_reward(HAPPO, make()), mean_reward(IPPO, make())
    assert own == pytest.approx(team, rel=1e-4)
    assert team < 10


@pytest.mark.parametrize(
    "make",
    [
        scaled,
        lambda: JointDummyVecEnv([scaled]),
        lambda: DummyVecEnv([scaled]),
        lambda: Halved(JointDummyVecEnv([joint])),
        lambda: VecNormalize(Halved(JointDummyVecEnv([joint])), norm_obs=False),
        lambda: Halved(VecNormalize(JointDummyVecEnv([joint]), norm_obs=False)),
        lambda: Halved(JointDummyVecEnv([partial(joint, team_reward="sum")])),
        lambda: Halved(JointDummyVecEnv([partial(joint, team_reward="inspector")])),
        lambda: Halved(JointDummyVecEnv([partial(joint, team_reward=np.max)])),
    ],
)
def test_other_wrappers_of_rewards_are_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match="a wrapper has changed the team's reward only"):
        mean_reward(IPPO, make())


@pytest.mark.parametrize("team_reward", ["mean", "inspector", np.max])
def test_unchanged_rewards_are_accepted(team_reward: Any) -> None:
    env = JointDummyVecEnv([partial(joint, team_reward=team_reward)] * 2)
    assert mean_reward(IPPO, env) == 100.0


def test_wrappers_may_change_all_rewards() -> None:
    assert mean_reward(IPPO, HalvedForAll(JointDummyVecEnv([joint]))) == 50.0


def test_normaliser_of_another_class() -> None:
    class Mine(VecNormalize):
        pass

    with pytest.raises(ValueError, match="which Mine does not normalise"):
        mean_reward(IPPO, Mine(JointDummyVecEnv([joint]), norm_obs=False))


def test_observations_are_normalised_before_the_first_reset() -> None:
    """SB3's ``VecNormalize`` needs no reset either, for example after loading."""
    env = VecNormalizeTeam(shift_vec_env())
    obs = {key: np.full((1, *space.shape), 0.5) for key, space in spaces_of(env).items()}
    for key, value in env.normalize_obs(obs).items():
        np.testing.assert_allclose(value, 0.5, rtol=1e-3, err_msg=key)


def spaces_of(env: VecEnv) -> dict[str, Any]:
    """Observation spaces by key."""
    assert isinstance(env.observation_space, spaces.Dict)
    return env.observation_space.spaces
