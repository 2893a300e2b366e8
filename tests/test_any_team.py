"""Teams of every kind, end to end: what is legal, what is learned, and who is paid for it."""

from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from pettingzoo import AECEnv, ParallelEnv
from pettingzoo.utils import BaseWrapper
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, NatureCNN
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_happo import HAPPO, IPPO, MAPPO, JointEnv, make_joint_vec_env
from sb3_happo.common.agent_policy import AgentPolicy
from sb3_happo.envs import joint_action_dtype
from sb3_happo.vec_env import JointDummyVecEnv
from tests.algorithms import every_algorithm, same, small, snapshot
from tests.envs import HeterogeneousTeam, MaskedGame, MatrixGame, RandomTeam, TurnGame
from tests.envs.games import Step


class Game(ParallelEnv):
    """
    Base of the games below: a team whose agents are always active, episodes of a fixed length, and
    all random numbers from ``_rng``.

    A game sets ``possible_agents``, ``observation_spaces`` and ``action_spaces``, and defines
    ``_observations`` and ``_rewards``.
    """

    metadata: ClassVar[dict[str, Any]] = {"name": "game", "render_modes": []}
    render_mode = None
    length = 8

    def observation_space(self, agent: str) -> spaces.Space:
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space:
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        if seed is not None or not hasattr(self, "_rng"):
            self._rng = np.random.default_rng(seed)
        self._t = 0
        self.agents = self.possible_agents[:]
        return self._observations(), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, Any]) -> Step:
        team, rewards = self.agents, self._rewards(actions)
        self._t += 1
        end = self._t == self.length
        self.agents = [] if end else self._living()
        observations = self._observations()
        terminations = {agent: end or agent not in self.agents for agent in team}
        return (
            observations,
            rewards,
            terminations,
            dict.fromkeys(team, False),
            {agent: {} for agent in observations},
        )

    def _living(self) -> list[str]:
        return self.agents

    def _observations(self) -> dict[str, Any]:
        raise NotImplementedError

    def _rewards(self, actions: dict[str, Any]) -> dict[str, float]:
        raise NotImplementedError


def copies(make: Any, n_envs: int, **joint_kwargs: Any) -> JointDummyVecEnv:
    """Several joint environments in one process."""
    env = make_joint_vec_env(
        make, n_envs, seed=0, vec_env_cls=JointDummyVecEnv, joint_kwargs=joint_kwargs
    )
    assert isinstance(env, JointDummyVecEnv)
    return env


def mean_return(model: HAPPO, env: JointEnv, n_episodes: int = 20) -> float:
    """Of deterministic episodes."""
    mean, _ = evaluate_policy(model, env, n_eval_episodes=n_episodes, warn=False)
    assert isinstance(mean, float)
    return mean


# ---------------------------------------------------------------- five kinds of agents


class CountingTeam(HeterogeneousTeam):
    """Counts masked actions, where the original raises, and puts a legal action in their place."""

    def __init__(self) -> None:
        super().__init__()
        self.illegal = 0
        self.n_steps = 0

    def step(self, actions: dict[str, Any]) -> Step:
        self.n_steps += 1
        actions = dict(actions)
        console = self._masks["console"]
        if "camera" in actions and not self._masks["camera"][actions["camera"]]:
            self.illegal += 1
            actions["camera"] = int(np.flatnonzero(self._masks["camera"])[0])
        if not (console[actions["console"][0]] and console[2 + actions["console"][1]]):
            self.illegal += 1
            actions["console"] = np.array(
                [np.flatnonzero(console[:2])[0], np.flatnonzero(console[2:])[0]]
            )
        return super().step(actions)


def counted(n_envs: int) -> tuple[list[CountingTeam], DummyVecEnv]:
    teams = [CountingTeam() for _ in range(n_envs)]
    return teams, DummyVecEnv([partial(JointEnv, team) for team in teams])


def test_the_count_of_illegal_actions_counts() -> None:
    team = CountingTeam()
    env = JointEnv(team)
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(11):
        env.step(env.action_space.sample())
    assert team.n_steps == 11 and team.illegal > 3


def test_no_masked_action_in_10_000_steps() -> None:
    """
    Learning rates high enough to make the policies nearly deterministic, also where that would be
    wrong.
    """
    teams, env = counted(16)
    settings: dict[str, Any] = dict(
        n_steps=125, n_epochs=1, learning_rate=1e-2, policy_kwargs=dict(net_arch=[8])
    )
    model = small(HAPPO, env, seed=0, **settings).learn(8_000)
    for deterministic in (True, False):
        evaluate_policy(model, env, n_eval_episodes=84, deterministic=deterministic, warn=False)
    assert sum(team.n_steps for team in teams) >= 10_000
    assert sum(team.illegal for team in teams) == 0


@every_algorithm
def test_a_team_of_five_kinds_trains_saves_loads_and_goes_on(
    algorithm: type[HAPPO], tmp_path: Path
) -> None:
    teams, env = counted(2)
    model = small(algorithm, env, n_steps=32, batch_size=32, seed=0).learn(128)
    model.save(tmp_path / "team")
    teams, env = counted(2)
    loaded = algorithm.load(tmp_path / "team", env=env, device="cpu")
    before = snapshot(loaded.policy)
    assert same(before, snapshot(model.policy))
    loaded.learn(64, reset_num_timesteps=False)
    assert not same(before, snapshot(loaded.policy))

    team = CountingTeam()
    observations, infos = team.reset(seed=0)
    while team.agents:
        masks = {"console": infos["console"]["action_mask"]}
        actions, _ = loaded.predict(observations, action_masks=masks, deterministic=True)
        assert list(actions) == team.agents
        observations, _, _, _, infos = team.step(actions)
    assert team.n_steps == 12 and sum(each.illegal for each in [team, *teams]) == 0


# ---------------------------------------------------------------- hybrid actions


class Lift(Game):
    """
    Two agents lift a load together. They observe which of three gears is right. Both must choose
    it, and the sum of their forces must match the load. The reward of each agent is 1 at best, and
    0 in a wrong gear.
    """

    def __init__(self) -> None:
        self.possible_agents = ["tuple", "dict"]
        self.observation_spaces = dict.fromkeys(
            self.possible_agents, spaces.Box(0, 1, (4,), np.float32)
        )
        force = spaces.Box(0, 2, (1,), np.float32)
        self.action_spaces = {
            "tuple": spaces.Tuple([spaces.Discrete(3, start=1), force]),
            "dict": spaces.Dict({"force": force, "gear": spaces.Discrete(3)}),
        }

    def _observations(self) -> dict[str, Any]:
        self._gear, self._load = int(self._rng.integers(3)), float(self._rng.uniform(0.5, 1))
        seen = np.append(np.eye(3)[self._gear], self._load).astype(np.float32)
        return dict.fromkeys(self.possible_agents, seen)

    def _rewards(self, actions: dict[str, Any]) -> dict[str, float]:
        (gear, force), other = actions["tuple"], actions["dict"]
        assert self.action_spaces["tuple"].contains(actions["tuple"]) and self.action_spaces[
            "dict"
        ].contains(other)
        right = [gear - 1 == self._gear, other["gear"] == self._gear]
        miss = abs(float(force[0] + other["force"][0]) - 2 * self._load)
        return dict.fromkeys(self.possible_agents, sum(right) / 2 * max(0.0, 1 - miss))


def test_hybrid_actions_are_learned_together() -> None:
    model = small(
        HAPPO,
        copies(Lift, 8),
        n_epochs=10,
        gamma=0.0,
        learning_rate=lambda progress: 1e-2 * progress,
        policy_kwargs=dict(net_arch=[32], activation_fn=th.nn.ReLU, log_std_init=-1.0),
        seed=0,
    ).learn(12_000)
    assert mean_return(model, JointEnv(Lift())) >= 0.95 * Lift.length


# ---------------------------------------------------------------- turns


def test_a_game_of_turns_is_learned() -> None:
    """Best is the highest legal number in every turn: 2, or 1 where 2 is not legal."""
    env = copies(TurnGame, 8)
    model = small(HAPPO, env, n_steps=96, n_epochs=5, learning_rate=1e-2, gamma=0.5, seed=0).learn(
        6_000
    )
    # 3 players x 4 rounds; each move costs each of the other two 0.1
    numbers = [1 if turn % 3 == 2 else 2 for turn in range(12)]
    best = (sum(numbers) - 12 * 2 * 0.1) / 3
    assert mean_return(model, JointEnv(TurnGame())) >= 0.95 * best


class Referee(BaseWrapper):
    """Looks at the board itself before each move."""

    def __init__(self, env: AECEnv) -> None:
        super().__init__(env)
        self.moves = self.illegal = 0

    def step(self, action: Any) -> None:
        if action is not None:
            board = self.unwrapped.board
            self.moves += 1
            self.illegal += bool(getattr(board, "squares", board)[action])
        super().step(action)


@pytest.mark.parametrize("game", ["tictactoe_v3", "connect_four_v3"])
@pytest.mark.parametrize("opponent", ["random", "itself"])
def test_board_games_are_played_by_the_rules(game: str, opponent: str) -> None:
    classic = pytest.importorskip(f"pettingzoo.classic.{game}")
    referee = Referee(classic.raw_env())
    joint_kwargs: dict[str, Any] = {}
    if opponent == "random":
        joint_kwargs = dict(agents=[referee.possible_agents[1]], other_agents="random")
    env = JointEnv(referee, **joint_kwargs)
    model = small(HAPPO, env, n_steps=128, learning_rate=1e-2, seed=0).learn(256)
    evaluate_policy(model, env, n_eval_episodes=5, warn=False)
    assert referee.moves > 256 and referee.illegal == 0
    # Who plays against itself is one team, of which the rewards of winner and loser cancel out
    assert model.agents == tuple(env.agents) and len(model.agents) == (
        1 if opponent == "random" else 2
    )


# ---------------------------------------------------------------- images


class Lamps(Game):
    """
    Each of two agents sees a tiny image in which one of two halves is bright, and is paid for
    naming it.
    """

    def __init__(self) -> None:
        self.possible_agents = ["first", "second"]
        self.observation_spaces = dict.fromkeys(
            self.possible_agents, spaces.Box(0, 255, (36, 36, 1), np.uint8)
        )
        self.action_spaces = dict.fromkeys(self.possible_agents, spaces.Discrete(2))

    def _observations(self) -> dict[str, Any]:
        self._bright = {agent: int(self._rng.integers(2)) for agent in self.possible_agents}
        images = {}
        for agent, half in self._bright.items():
            images[agent] = self._rng.integers(0, 100, (36, 36, 1), np.uint8)
            images[agent][:, 18 * half : 18 * (half + 1)] += 100
        return images

    def _rewards(self, actions: dict[str, Any]) -> dict[str, float]:
        return {agent: float(action == self._bright[agent]) for agent, action in actions.items()}


def test_a_team_learns_from_images() -> None:
    """By CNNs for actors and critic; they stay bytes until they are used."""
    settings: dict[str, Any] = dict(
        n_steps=32, n_epochs=4, batch_size=128, gamma=0.0, learning_rate=1e-3
    )
    model = small(
        HAPPO, copies(Lamps, 8), seed=0, policy_kwargs=dict(net_arch=[]), **settings
    ).learn(1_024)
    for policy in model.policies.values():
        assert any(isinstance(module, NatureCNN) for module in policy.modules())
    assert any(isinstance(module, NatureCNN) for module in model.critic.modules())
    shapes = {
        key: (array.dtype, tuple(array.shape[2:]))
        for key, array in model.rollout_buffer.observations.items()
    }
    assert shapes == {
        "first": (th.uint8, (1, 36, 36)),
        "second": (th.uint8, (1, 36, 36)),
        "state": (th.uint8, (2, 36, 36)),
    }
    assert mean_return(model, JointEnv(Lamps())) >= 0.9 * Lamps.length


# ---------------------------------------------------------------- one team among others


def test_best_response_to_a_saved_agent(tmp_path: Path) -> None:
    """
    A partner that prefers 1 is trained, saved, loaded, and played with; to match it, one must play
    1 as well.
    """
    prefers_one = np.array([[0.0, 1.0], [0.0, 1.0]])
    settings: dict[str, Any] = dict(n_steps=64, n_epochs=5, learning_rate=1e-2, gamma=0.0, seed=0)
    small(HAPPO, MatrixGame(payoff=prefers_one), **settings).learn(1_280).policies["agent_1"].save(
        str(tmp_path / "partner")
    )
    partner = AgentPolicy.load(str(tmp_path / "partner"), device="cpu")
    matching = partial(MatrixGame, payoff=np.array([[0.6, 0.0], [0.0, 1.0]]))
    env = JointEnv(matching(), agents=["agent_0"], other_agents=partner)
    model = small(HAPPO, env, **settings).learn(1_280)
    assert model.agents == ("agent_0",)
    assert mean_return(model, env) > 0.9


@every_algorithm
def test_a_mixture_of_others(algorithm: type[HAPPO]) -> None:
    """
    Random play, a function, and a trained team, of which each episode draws one; all keep to the
    masks.
    """
    trained = small(algorithm, MaskedGame(), seed=0).learn(32)
    drawn: list[str] = []

    def lowest(agent: str, observation: Any, space: spaces.Space, mask: np.ndarray | None) -> Any:
        drawn.append(agent)
        assert mask is not None
        return np.array([np.flatnonzero(mask[:3])[0], np.flatnonzero(mask[3:])[0]])

    env = copies(MaskedGame, 2, agents=["agent_0"], other_agents=["random", lowest, trained])
    model = small(algorithm, env, n_steps=128, seed=0).learn(256)
    assert model.agents == ("agent_0",)
    assert set(drawn) == {"agent_1"} and len(drawn) % MaskedGame().length == 0, "whole episodes"
    assert 0 < len(drawn) < 256, "but not all of them"


# ------------------------------------------------------------ the critic's state, the team's reward


@every_algorithm
@pytest.mark.parametrize(
    "team", [TurnGame, partial(TurnGame, drops_out={"player_1": 2}), MaskedGame]
)
def test_agent_specific_state_of_agents_that_come_and_go(algorithm: type[HAPPO], team: Any) -> None:
    model = small(algorithm, copies(team, 2, state="agent"), seed=0).learn(64)
    assert all(value.isfinite().all() for value in model.policy.state_dict().values())


class Temptation(Game):
    """
    ``thief`` may take 1 for itself, which costs ``owner`` 3; what ``owner`` does has no effect.
    """

    def __init__(self) -> None:
        self.possible_agents = ["thief", "owner"]
        self.observation_spaces = dict.fromkeys(
            self.possible_agents, spaces.Box(0, 1, (1,), np.float32)
        )
        self.action_spaces = dict.fromkeys(self.possible_agents, spaces.Discrete(2))

    def _observations(self) -> dict[str, Any]:
        return dict.fromkeys(self.possible_agents, np.ones(1, np.float32))

    def _rewards(self, actions: dict[str, Any]) -> dict[str, float]:
        return {"thief": float(actions["thief"]), "owner": -3.0 * actions["thief"]}


@pytest.mark.parametrize(
    ("algorithm", "team_reward", "steals"),
    [
        (HAPPO, "mean", 0),
        (HAPPO, "sum", 0),
        (HAPPO, "thief", 1),
        (HAPPO, "owner", 0),
        (HAPPO, max, 1),
        (MAPPO, "mean", 0),
        (IPPO, "mean", 1),  # learns from everybody's own reward, whatever the team's
    ],
)
def test_who_is_paid_for_what(algorithm: type[HAPPO], team_reward: Any, steals: int) -> None:
    env = copies(Temptation, 2, team_reward=team_reward)
    model = small(algorithm, env, n_epochs=10, learning_rate=1e-2, gamma=0.0, seed=0).learn(512)
    actions, _ = model.predict({"thief": np.ones(1, np.float32)}, deterministic=True)
    assert actions["thief"] == steals
    env.reset()
    joint_action = np.zeros(2, joint_action_dtype(JointEnv(Temptation()).action_space))
    joint_action["thief"] = 1
    rewards = env.step(joint_action)[1]
    expected = {"mean": -1.0, "sum": -2.0, "thief": 1.0, "owner": -3.0}.get(team_reward, 1.0)
    assert (rewards == expected).all()


# ---------------------------------------------------------------- SuperSuit


class Mortals(Game):
    """Three agents of vectors and Box actions, of whom ``second`` dies in the third step."""

    def __init__(self) -> None:
        self.possible_agents = ["first", "second", "third"]
        self.observation_spaces = dict.fromkeys(
            self.possible_agents, spaces.Box(0, 10, (3,), np.float32)
        )
        self.action_spaces = dict.fromkeys(
            self.possible_agents, spaces.Box(-1, 1, (2,), np.float32)
        )

    def _living(self) -> list[str]:
        return self.agents if self._t < 3 else ["first", "third"]

    def _observations(self) -> dict[str, Any]:
        return {
            agent: np.full(3, 5 + self._t / 2, np.float32)
            for agent in self.agents or ["first", "third"]
        }

    def _rewards(self, actions: dict[str, Any]) -> dict[str, float]:
        return {agent: float(action.sum()) for agent, action in actions.items()}


def wrapped(make: Any, *wrappers: Any, **joint_kwargs: Any) -> JointDummyVecEnv:
    env = make_joint_vec_env(
        make, 2, 0, vec_env_cls=JointDummyVecEnv, wrappers=wrappers, joint_kwargs=joint_kwargs
    )
    assert isinstance(env, JointDummyVecEnv)
    return env


def trained_on(env: JointDummyVecEnv) -> HAPPO:
    model = small(HAPPO, env, seed=0).learn(64)
    assert all(value.isfinite().all() for value in model.policy.state_dict().values())
    return model


def test_supersuits_wrappers_of_vectors() -> None:
    supersuit = pytest.importorskip("supersuit")
    env = wrapped(
        Mortals,
        partial(supersuit.normalize_obs_v0, env_min=-1, env_max=1),
        partial(supersuit.frame_stack_v1, stack_size=2),
        partial(supersuit.agent_indicator_v0, type_only=False),
        partial(supersuit.clip_actions_v0),
    )
    assert env.observation_space["first"].shape == (3 * 2 + 3,)
    observations = env.reset()
    assert np.allclose(observations["third"][0], [0, 0, 0, 0, 0, 0, 0, 0, 1]), (
        "5 is the middle of [0, 10]"
    )
    model = trained_on(env)
    active = model.rollout_buffer.active.numpy()
    assert active[:3].all() and not active[3:8, :, 1].any() and active[:, :, [0, 2]].all()


def test_supersuits_black_death() -> None:
    """It keeps the dead in the game, where they see zeros; then they do count."""
    supersuit = pytest.importorskip("supersuit")
    env = wrapped(Mortals, supersuit.black_death_v3)
    model = trained_on(env)
    assert model.rollout_buffer.active.all()
    assert (model.rollout_buffer.observations["second"][3:8] == 0).all()
    assert (model.rollout_buffer.observations["first"][3:8] != 0).all()


def test_supersuits_wrappers_of_images() -> None:
    supersuit = pytest.importorskip("supersuit")
    image = spaces.Box(0, 255, (60, 80, 3), np.uint8)
    team = partial(
        RandomTeam,
        {"a": spaces.Discrete(3), "b": spaces.Discrete(3)},
        observation_spaces={"a": image, "b": image},
    )
    env = wrapped(
        team,
        partial(supersuit.color_reduction_v0, mode="B"),
        partial(supersuit.resize_v1, x_size=40, y_size=36),
        partial(supersuit.frame_stack_v1, stack_size=4),
    )
    assert env.observation_space["a"] == spaces.Box(0, 255, (36, 40, 4), np.uint8)
    buffer = trained_on(env).rollout_buffer
    assert buffer.observations["a"].dtype == th.uint8 and buffer.observations["a"].shape[2:] == (
        4,
        36,
        40,
    )


# ------------------------------------------------------------ what a team observes, as it is stored


@pytest.mark.parametrize("outside", [True, False])
def test_whole_numbers_that_were_normalised_stay_fractions(outside: bool) -> None:
    """
    VecNormalize does not change the dtype of their space. The first pass starts at the policy of
    the rollout, so its KL divergence is 0.
    """
    counts = spaces.Box(0, 10, (3,), np.uint8)
    if outside:
        team = RandomTeam(
            {"a": spaces.Discrete(2), "b": spaces.Discrete(3)},
            observation_spaces=dict.fromkeys("ab", counts),
        )
        env = VecNormalize(make_joint_vec_env(lambda: deepcopy(team), 2, seed=0))
    else:
        env = VecNormalize(make_vec_env(partial(Counter, counts), 2, seed=0))
    model = small(HAPPO, env, n_steps=64, batch_size=None, n_epochs=1)
    model.learn(128, log_interval=100)
    figures = model.logger.name_to_value
    assert figures["train/n_updates"] == 1
    for agent in model.agents:
        assert abs(figures[f"{agent}/approx_kl"]) < 1e-6
    first = model.rollout_buffer.observations[next(iter(model.rollout_buffer.observations))]
    assert (first != first.round()).any()


class Counter(gym.Env):
    """A single agent that observes whole numbers."""

    action_space = spaces.Discrete(2)

    def __init__(self, observation_space: spaces.Box) -> None:
        self.observation_space = observation_space

    def reset(
        self, *, seed: int | None = None, options: dict | None = None
    ) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return self._observe(), {}

    def _observe(self) -> np.ndarray:
        return self.np_random.integers(0, 11, 3).astype(np.uint8)

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        return self._observe(), 0.0, bool(self.np_random.random() < 0.1), False, {}


@pytest.mark.parametrize(
    ("shape", "stacked"), [((40, 40, 3), True), ((40, 40, 12), False), ((12, 40, 40), False)]
)
def test_images_are_stacked_as_long_as_their_channels_are_told_from_their_sides(
    shape: tuple[int, ...], stacked: bool
) -> None:
    image = spaces.Box(0, 255, shape, np.uint8)
    agents = dict.fromkeys("abcd", spaces.Discrete(2))
    env = RandomTeam(agents, length=3, observation_spaces=dict.fromkeys(agents, image))
    assert ("state" in JointEnv(env).observation_space.spaces) == stacked
    model = small(
        HAPPO,
        env,
        n_steps=2,
        batch_size=2,
        n_epochs=1,
        policy_kwargs=dict(features_extractor_class=Pooled),
    )
    model.learn(2)


class Pooled(BaseFeaturesExtractor):
    """Hardly anything of images: enough to see that they arrive."""

    def __init__(self, observation_space: spaces.Space) -> None:
        super().__init__(observation_space, 1)

    def forward(self, observations: Any) -> th.Tensor:
        images = observations.values() if isinstance(observations, dict) else [observations]
        return th.stack(
            [image.flatten(start_dim=1).mean(dim=1, keepdim=True) for image in images]
        ).mean(dim=0)


def test_images_of_two_orders() -> None:
    images = {
        "a": spaces.Box(0, 255, (40, 40, 3), np.uint8),
        "b": spaces.Box(0, 255, (3, 40, 40), np.uint8),
    }
    env = RandomTeam(dict.fromkeys("ab", spaces.Discrete(2)), observation_spaces=images)
    with pytest.raises(
        ValueError,
        match=r"images \['b', .*\] have their channels first, \['a', .*\] have them last",
    ):
        HAPPO(env)


def test_an_entry_called_action_mask_inside_an_observation_is_no_mask() -> None:
    inner = spaces.Dict(
        {"x": spaces.Box(-1, 1, (2,)), "action_mask": spaces.Box(0, 1, (3,), np.int8)}
    )
    own = spaces.Dict({"inner": inner, "y": spaces.Box(-1, 1, (1,))})
    env = RandomTeam({"a": spaces.Discrete(3)}, observation_spaces={"a": own})
    model = small(HAPPO, env).learn(32)
    space = model.policies["a"].observation_space
    assert isinstance(space, spaces.Dict) and set(space.spaces) == {
        "inner/x",
        "inner/action_mask",
        "y",
    }
    assert model.predict({"a": own.sample()})[0]["a"] in range(3)


def test_actions_have_the_dtype_of_their_space() -> None:
    few = spaces.MultiDiscrete([2, 3], dtype=np.int32)
    env = RandomTeam({"a": few, "b": spaces.Discrete(2)})
    model = small(HAPPO, env).learn(32)
    assert few.contains(env.actions["a"])
    obs, _ = env.reset(seed=0)
    assert few.contains(model.predict(obs)[0]["a"])
