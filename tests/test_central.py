"""A team as one agent: the algorithms of SB3 and sb3-contrib on `as_single_agent`."""

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import TQC, CrossQ, MaskablePPO, RecurrentPPO
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecNormalize

from sb3_happo import HAPPO, CentralTeam, JointEnv, as_single_agent
from sb3_happo.envs.central import DiscreteSingleAgentEnv, SingleAgentEnv
from sb3_happo.envs.games import GAMES, Climbing, LQTeam, MatrixGame, Penalty, Relay
from tests.envs import ALL_KINDS, HeterogeneousTeam, MaskedGame, RandomTeam, TurnGame

BOX = spaces.Box(-1, 1, (2,), np.float32)
IMAGE = spaces.Box(0, 255, (36, 36, 1), np.uint8)


def play_once(model: BaseAlgorithm, game: MatrixGame) -> float:
    """Reward of the most likely joint action, played in the game itself."""
    team = CentralTeam(model, as_single_agent(game))
    observations, _ = game.reset()
    actions, _ = team.predict(observations, deterministic=True)
    assert list(actions) == game.possible_agents
    return game.step(actions)[1]["agent_0"]


def trained_ppo(make: Callable[[], Any], seed: int, form: str = "product") -> PPO:
    """PPO after six updates, a second."""
    env = make_vec_env(lambda: as_single_agent(make(), form), n_envs=16)
    net: dict[str, Any] = dict(net_arch=[])
    settings: dict[str, Any] = dict(n_steps=16, batch_size=256, learning_rate=0.02, device="cpu")
    return PPO("MlpPolicy", env, seed=seed, policy_kwargs=net, **settings).learn(6 * 256)


# ---------------------------------------------------------------- right answers


@pytest.mark.parametrize(
    ("game", "answer"), [(Climbing(), 11), (Penalty(-100), 10)], ids=["climbing", "penalty"]
)
def test_one_agent_finds_the_optimum(game: MatrixGame, answer: float) -> None:
    assert play_once(trained_ppo(lambda: game, seed=0), game) == answer


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 20))
def test_one_agent_finds_the_optimum_with_every_seed(seed: int) -> None:
    assert play_once(trained_ppo(Climbing, seed), Climbing()) == 11
    assert play_once(trained_ppo(Penalty, seed), Penalty()) == 10


class FlatLQ(gym.Env):
    """The uneven LQ team, flattened by hand."""

    def __init__(self) -> None:
        self.game = LQTeam(length=10)
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = spaces.Box(-2, 2, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        observations, _ = self.game.reset(seed=seed)
        return np.concatenate(list(observations.values())), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        actions = {"agent_0": action[:1], "agent_1": action[1:]}
        observations, rewards, _, truncations, _ = self.game.step(actions)
        flat = np.concatenate(list(observations.values()))
        return flat, rewards["agent_0"], False, truncations["agent_0"], {}


class FlatClimbing(gym.Env):
    """The climbing game, flattened by hand."""

    observation_space = spaces.Box(0, 1, (2,), np.float32)
    action_space = spaces.Discrete(9)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        return np.ones(2, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        payoffs = [11, -30, 0, -30, 7, 6, 0, 0, 5]
        return np.ones(2, np.float32), float(payoffs[action]), True, False, {}


ON_POLICY: dict[str, Any] = dict(n_steps=32, batch_size=32, n_epochs=3)
OFF_POLICY: dict[str, Any] = dict(learning_starts=40, batch_size=16, buffer_size=500)


@pytest.mark.parametrize(
    ("algorithm", "by_hand", "make", "settings"),
    [
        (PPO, FlatLQ, lambda: LQTeam(length=10), ON_POLICY),
        (PPO, FlatClimbing, Climbing, ON_POLICY),
        (SAC, FlatLQ, lambda: LQTeam(length=10), OFF_POLICY),
        (TQC, FlatLQ, lambda: LQTeam(length=10), OFF_POLICY),
        (DQN, FlatClimbing, Climbing, OFF_POLICY),
    ],
    ids=["ppo_lq", "ppo_climbing", "sac", "tqc", "dqn"],
)
def test_the_numbers_are_those_of_the_environment_flattened_by_hand(
    algorithm: type[BaseAlgorithm],
    by_hand: type[gym.Env],
    make: Callable[[], Any],
    settings: dict[str, Any],
) -> None:
    parameters = []
    for make_env in (by_hand, lambda: as_single_agent(make())):
        env = make_vec_env(make_env, n_envs=2, seed=5)
        model = algorithm(
            "MlpPolicy",
            env,
            policy_kwargs=dict(net_arch=[16]),
            seed=5,
            device="cpu",
            **settings,
        )
        before = th.nn.utils.parameters_to_vector(model.policy.parameters()).detach().clone()
        model.learn(128)
        after = th.nn.utils.parameters_to_vector(model.policy.parameters()).detach()
        assert (after - before).abs().max() > 1e-3, "it has learnt something"
        parameters.append(after)
    assert th.equal(*parameters)


# ---------------------------------------------------------------- algorithms


@pytest.mark.parametrize(
    ("algorithm", "policy", "make", "settings"),
    [
        (RecurrentPPO, "MlpLstmPolicy", Relay, ON_POLICY),
        (MaskablePPO, "MlpPolicy", Relay, ON_POLICY),
        (CrossQ, "MlpPolicy", LQTeam, OFF_POLICY),
        (MaskablePPO, "MlpPolicy", lambda: TurnGame(drops_out={"player_1": 2}), ON_POLICY),
    ],
    ids=["recurrent_ppo", "maskable_ppo", "crossq", "turns"],
)
def test_every_algorithm_trains_saves_and_acts_for_the_team(
    algorithm: type[BaseAlgorithm],
    policy: str,
    make: Callable[[], Any],
    settings: dict[str, Any],
    tmp_path: Path,
) -> None:
    env = as_single_agent(make())
    net = dict(net_arch=[8])
    model = algorithm(policy, env, policy_kwargs=net, seed=0, device="cpu", **settings)
    model.learn(64)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", device="cpu")
    if isinstance(env.joint.env, TurnGame):
        with pytest.raises(ValueError, match="act in turns"):
            CentralTeam(loaded, as_single_agent(make()))
        return
    team = CentralTeam(loaded, as_single_agent(make()))
    game = make()
    observations, _ = game.reset(seed=0)
    state: Any = None
    episode_start = np.ones(1, bool)
    while game.agents:
        actions, state = team.predict(observations, state, episode_start, deterministic=True)
        episode_start = np.zeros(1, bool)
        assert all(game.action_space(agent).contains(actions[agent]) for agent in game.agents)
        observations, *_ = game.step(actions)
    assert (state is None) == (algorithm is not RecurrentPPO)


@pytest.mark.parametrize("form", ["product", "factored"])
@pytest.mark.parametrize("masks_in", ["observation", "info"])
def test_maskable_ppo_takes_no_illegal_action(form: str, masks_in: str) -> None:
    """The game raises if it is given one, in training as in play."""
    env = make_vec_env(lambda: as_single_agent(MaskedGame(masks_in=masks_in), form), n_envs=2)
    model = MaskablePPO("MlpPolicy", env, seed=0, device="cpu", **ON_POLICY).learn(256)
    game = MaskedGame(masks_in=masks_in)
    team = CentralTeam(model, as_single_agent(MaskedGame(masks_in=masks_in), form))
    observations, infos = game.reset(seed=1)
    masks = None
    for _ in range(5):
        if masks_in == "info":
            masks = {agent: info["action_mask"] for agent, info in infos.items()}
            with pytest.raises(ValueError, match="mask of agent 'agent_0' is missing"):
                team.predict(observations)
        actions, _ = team.predict(observations, action_masks=masks)
        observations, *_, infos = game.step(actions)


def test_evaluation_and_the_rest_of_sb3() -> None:
    env = make_vec_env(lambda: as_single_agent("games/climbing"), n_envs=2)
    model = PPO("MlpPolicy", env, device="cpu", **ON_POLICY)
    mean, _ = evaluate_policy(model, Monitor(as_single_agent("games/climbing")), n_eval_episodes=3)
    assert -30 <= float(np.mean(mean)) <= 11
    assert env.get_attr("n_agents") == [2, 2] and env.get_attr("payoffs")[0].shape == (2, 3, 3)
    env.set_attr("truncate", False)
    assert env.env_is_wrapped(Monitor) == [True, True]
    # It is an environment of one agent for this package too
    settings: dict[str, Any] = dict(n_steps=8, batch_size=8, device="cpu")
    model_of_one = HAPPO("MlpPolicy", as_single_agent("games/climbing"), **settings).learn(8)
    assert list(model_of_one.policies) == ["agent_0"]


# ---------------------------------------------------------------- spaces


DISCRETE = {agent: ALL_KINDS[agent] for agent in ("discrete", "multi", "binary")} | {
    "nested": spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Tuple([spaces.Discrete(3)])})
}
CONTINUOUS: dict[str, spaces.Space] = {
    "box": ALL_KINDS["box"],
    "scalar": ALL_KINDS["scalar"],
    "double": ALL_KINDS["double"],
    "nested": spaces.Dict({"move": BOX, "say": spaces.Tuple([spaces.Box(0, 3, (1,))])}),
}


@pytest.mark.parametrize("form", ["product", "factored"])
def test_every_joint_action_is_there_once(form: str) -> None:
    team = RandomTeam(DISCRETE)
    env = as_single_agent(team, form)
    sizes = [3, 2, 3, 2, 2, 2, 2, 2, 3]
    if form == "product":
        assert env.action_space == spaces.Discrete(int(np.prod(sizes)))
        all_actions: Any = range(int(np.prod(sizes)))
    else:
        assert env.action_space == spaces.MultiDiscrete(sizes)
        all_actions = map(np.array, itertools.product(*map(range, sizes)))
    joint = spaces.Dict(DISCRETE)
    seen = set()
    for action in all_actions:
        actions = env.actions.split(action)
        assert joint.contains(actions)
        seen.add(str(actions))
    assert len(seen) == np.prod(sizes)
    # The last choice changes fastest, and a start other than 0 is heeded
    first = 0 if form == "product" else np.zeros(9, int)
    assert env.actions.split(first)["discrete"] == 2
    env.reset()
    env.step(first)
    assert team.actions["discrete"] == 2 and team.actions["multi"].tolist() == [0, 0]


def test_continuous_actions_are_side_by_side() -> None:
    team = RandomTeam(CONTINUOUS)
    env = as_single_agent(team)
    assert isinstance(env.action_space, spaces.Box) and env.action_space.shape == (4 + 1 + 2 + 3,)
    assert env.action_space.high.tolist() == [1] * 5 + [5, 5, 1, 1, 3]
    numbers = np.linspace(-1, 1, 10, dtype=np.float32)
    actions = env.actions.split(numbers)
    assert np.array_equal(actions["box"], numbers[:4].reshape(2, 2))
    assert actions["scalar"].shape == () and actions["scalar"] == numbers[4]
    assert actions["double"].dtype == np.float64
    assert np.array_equal(actions["nested"]["move"], numbers[7:9])
    assert np.array_equal(actions["nested"]["say"][0], numbers[9:])
    assert spaces.Dict(CONTINUOUS).contains(env.actions.split(env.action_space.sample()))
    check_env(env, warn=False)


def test_combined_masks_by_enumeration() -> None:
    """A joint action is legal if and only if every agent's part of it is."""
    product, factored = (as_single_agent(MaskedGame(), form) for form in ("product", "factored"))
    for env in (product, factored):
        assert isinstance(env, DiscreteSingleAgentEnv)
        assert env.action_masks().all(), "before the first reset"
        for seed in range(5):
            env.reset(seed=seed)
            own = env.joint.env.masks
            masks = [*own["agent_0"], *own["agent_1"]]
            if env is factored:
                assert env.action_masks().tolist() == np.concatenate(masks).astype(bool).tolist()
                continue
            assert env.action_masks().shape == (24,)
            for index, choices in enumerate(np.ndindex(4, 3, 2)):
                legal = all(mask[choice] for mask, choice in zip(masks, choices, strict=True))
                assert env.action_masks()[index] == legal
    nested = RandomTeam(DISCRETE)
    env = as_single_agent(nested, "factored")
    assert isinstance(env, DiscreteSingleAgentEnv)
    assert env.action_masks().shape == (3 + 2 + 3 + 2 * 4 + 2 + 3,)
    assert not hasattr(as_single_agent(LQTeam()), "action_masks")


def test_observations_are_side_by_side() -> None:
    observation_spaces: dict[str, spaces.Space] = {
        "a": spaces.Dict(
            {"place": spaces.Box(-2, 5, (2,), np.float64), "mode": spaces.Discrete(3)}
        ),
        "b": spaces.MultiDiscrete([2, 2]),
    }
    action_spaces = dict.fromkeys(observation_spaces, spaces.Discrete(2))
    team = RandomTeam(action_spaces, observation_spaces=observation_spaces)
    env = as_single_agent(team)
    check_env(env, warn=False)
    assert isinstance(env.observation_space, spaces.Box)
    assert env.observation_space.shape == (2 + 3 + 4,)
    assert env.observation_space.low.min() == -2 and env.observation_space.high.max() == 5
    observation, _ = env.reset(seed=3)
    own, _ = team.reset(seed=3)
    one_hot = np.eye(3)[own["a"]["mode"]]
    pairs = np.concatenate([np.eye(2)[one] for one in own["b"]])
    parts = {"mode": one_hot, "place": own["a"]["place"]}
    expected = [parts[key] for key in observation_spaces["a"].spaces] + [pairs]  # type: ignore[attr-defined]
    assert np.allclose(observation, np.concatenate(expected))


def test_images_are_stacked_or_entries_of_a_dict() -> None:
    two = dict.fromkeys(("left", "right"), spaces.Discrete(2))
    stacked = as_single_agent(RandomTeam(two, 4, dict.fromkeys(two, IMAGE)))
    assert stacked.observation_space == spaces.Box(0, 255, (36, 36, 2), np.uint8)
    check_env(stacked, warn=False)
    mixed = as_single_agent(
        RandomTeam(
            two,
            4,
            {"left": spaces.Dict({"eye": IMAGE, "speed": BOX}), "right": spaces.Discrete(3)},
        )
    )
    assert isinstance(mixed.observation_space, spaces.Dict)
    assert set(mixed.observation_space.spaces) == {"left/eye", "vector"}
    assert mixed.observation_space["vector"].shape == (5,)
    check_env(mixed, warn=False)
    model = PPO("MultiInputPolicy", mixed, n_steps=8, batch_size=8, n_epochs=1, device="cpu")
    model.learn(8)
    assert set(CentralTeam(model, mixed).predict(mixed.joint.env.reset()[0])[0]) == set(two)


# ---------------------------------------------------------------- activity and ends


class Leaving(RandomTeam):
    """``b`` leaves after three steps."""

    def step(self, actions: dict[Any, Any]) -> Any:
        assert set(actions) == set(self.agents), "no actions of agents that have left"
        results = super().step(actions)
        if self.t == 3:
            self.agents.remove("b")
            results[2]["b"] = True
        if self.t > 3:
            for result in results:
                result.pop("b")
        return results


@pytest.mark.parametrize("space", [spaces.Discrete(2), BOX], ids=["discrete", "box"])
def test_agents_that_leave(space: spaces.Space) -> None:
    own = {"a": BOX, "b": spaces.Discrete(3)}
    env = as_single_agent(
        Leaving(dict.fromkeys(own, space), 6, own, truncate=True), observe_active=True
    )
    check_env(env, warn=False)
    observation, _ = env.reset(seed=0)
    assert observation.shape == (2 + 3 + 2,) and observation[2:5].sum() == 1
    assert observation[5:].tolist() == [1, 1]
    n_steps = 0
    ends = (False, False)
    while not any(ends):
        observation, reward, *ends, info = env.step(env.action_space.sample())  # type: ignore[assignment]
        n_steps += 1
        assert reward == pytest.approx(info["agent_rewards"].mean())
        if n_steps >= 3:
            assert not observation[2:5].any(), "zeros, not the first of three"
            assert observation[5:].tolist() == [1, 0]
    assert n_steps == 6 and list(ends) == [False, True]
    team = CentralTeam(PPO("MlpPolicy", env, device="cpu"), env)
    actions, _ = team.predict({"a": np.zeros(2, np.float32)})
    assert set(actions) == {"a"}


def test_turns_show_all_agents() -> None:
    env = as_single_agent(TurnGame())
    assert isinstance(env, DiscreteSingleAgentEnv)
    observation, info = env.reset(seed=0)
    n_observations = observation[:-3]
    assert observation[-3:].tolist() == info["active"].tolist() == [1, 0, 0]
    assert n_observations.any()
    masks = env.action_masks().reshape(env.actions.sizes)
    assert not masks.all(), "the mask of the agent on turn"
    for _ in range(5):
        legal = int(np.flatnonzero(env.action_masks())[0])
        observation, *_ = env.step(legal)
        assert env.observation_space.contains(observation)


# ---------------------------------------------------------------- the team


def test_normalised_models_act_on_raw_observations() -> None:
    venv = VecNormalize(make_vec_env(lambda: as_single_agent(LQTeam()), n_envs=2, seed=0))
    model = PPO("MlpPolicy", venv, seed=0, device="cpu", **ON_POLICY).learn(128)
    env = as_single_agent(LQTeam())
    raw = {agent: np.full(1, 0.7, np.float32) for agent in env.agents}
    normalised = venv.normalize_obs(np.full(2, 0.7, np.float32))
    assert isinstance(normalised, np.ndarray)
    expected = env.actions.split(model.predict(normalised, deterministic=True)[0])
    for team in (CentralTeam(model, env), CentralTeam(model.policy, env, vec_normalize=venv)):
        actions, _ = team.predict(raw, deterministic=True)
        np.testing.assert_equal(actions, expected)
    different = CentralTeam(model.policy, env).predict(raw, deterministic=True)[0]
    assert different["agent_0"] != expected["agent_0"]


def test_agents_may_have_other_names_than_text() -> None:
    env = as_single_agent(RandomTeam({0: spaces.Discrete(2), 1: spaces.Discrete(3)}))
    model = PPO("MlpPolicy", env, device="cpu")
    observations, _ = env.joint.env.reset()
    actions, _ = CentralTeam(model, env).predict(observations)
    assert list(actions) == [0, 1]


def test_joint_environments_and_wrappers() -> None:
    joint = JointEnv(Climbing(render_mode="rgb_array"), team_reward="sum", state=None)
    monitored = Monitor(joint)
    env = as_single_agent(monitored)
    env.reset()
    assert env.step(0)[1] == 22 and monitored.get_episode_rewards() == [22]
    assert env.render().shape[2] == 3 and env.render_mode == "rgb_array"
    env.close()
    by_name = as_single_agent(Climbing(), team_reward="agent_1")
    assert by_name.get_wrapper_attr("team_reward") == "agent_1"
    assert by_name.has_wrapper_attr("length") and not by_name.has_wrapper_attr("width")
    assert by_name.set_wrapper_attr("length", 5) and by_name.get_wrapper_attr("length") == 5


# ---------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: as_single_agent(HeterogeneousTeam()), TypeError, r"\['arm', 'crane'\] are contin"),
        (
            lambda: as_single_agent(RandomTeam({"a": BOX, "b": spaces.Discrete(2)})),
            TypeError,
            r"The actions of \['a'\] are continuous and those of \['b'\] discrete",
        ),
        (
            lambda: as_single_agent("games/levers", env_kwargs={"n_levers": 6}),
            ValueError,
            r"46,656 joint actions \(6 x 6 x 6 x 6 x 6 x 6\), more than max_actions=4,096",
        ),
        (lambda: as_single_agent("games/halves", n_agents=20), ValueError, "knows no 'n_agents'"),
        (
            lambda: as_single_agent("games/halves", env_kwargs={"n_agents": 40}),
            ValueError,
            r"1,099,511,627,776 joint actions .*actions='factored'",
        ),
        (lambda: as_single_agent(Climbing(), "products"), ValueError, "Did you mean 'product'"),
        (lambda: as_single_agent(Climbing(), "joint"), ValueError, r"\['product', 'factored'\]"),
        (lambda: as_single_agent(Climbing(), env_kwargs={"k": 1}), ValueError, "made already"),
        (lambda: as_single_agent("games/climing"), ValueError, "Did you mean 'games/climbing'"),
        (lambda: as_single_agent(JointEnv(Climbing()), state=None), ValueError, "no effect"),
        (
            lambda: as_single_agent(make_vec_env(lambda: as_single_agent(Climbing()))),
            TypeError,
            "not a vectorised one",
        ),
        (
            lambda: CentralTeam(PPO("MlpPolicy", "CartPole-v1"), as_single_agent(Climbing())),
            ValueError,
            "The model's observation_space",
        ),
        (lambda: CentralTeam(None, JointEnv(Climbing())), TypeError, "made by as_single_agent"),  # type: ignore[arg-type]
    ],
)
def test_wrong_arguments_are_refused(
    make: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()


def test_wrong_actions_and_observations_are_refused() -> None:
    product, factored = (as_single_agent(Climbing(), form) for form in ("product", "factored"))
    lq = as_single_agent(LQTeam())
    wrong: list[tuple[SingleAgentEnv, Any]] = [
        *((product, action) for action in (9, -1, 0.5, [1], None)),
        *((factored, action) for action in ([3, 0], [0], 1, [0.5, 0.0])),
        *((lq, action) for action in ([1.0], 1.0)),
    ]
    for env, action in wrong:
        env.reset()
        with pytest.raises(ValueError, match=r"is not in|has shape"):
            env.step(action)
    team = CentralTeam(PPO("MlpPolicy", product, device="cpu"), product)
    one = np.ones(1, np.float32)
    with pytest.raises(ValueError, match=r"observations of \['agent_2'\]; the agents are"):
        team.predict({"agent_0": one, "agent_2": one})
    with pytest.raises(ValueError, match=r"action masks of \['agent_7'\]"):
        team.predict({"agent_0": one, "agent_1": one}, action_masks={"agent_7": [1]})
    with pytest.raises(ValueError, match="agent 'agent_1': an observation of shape"):
        team.predict({"agent_0": one, "agent_1": np.ones(2, np.float32)})


# ---------------------------------------------------------------- documentation


def test_the_page_of_the_games_does_what_it_says() -> None:
    text = (Path(__file__).parents[1] / "docs" / "games.md").read_text()
    block = re.search(r"<!-- test: central -->\n```python\n(.+?)```", text, re.DOTALL)
    assert block is not None
    names: dict[str, Any] = {}
    exec(block[1], names)
    assert names["rewards"] == {"agent_0": 11.0, "agent_1": 11.0}
    listed = set(re.findall(r"^\| `games/(\w+)`", text, re.MULTILINE))
    assert listed <= set(GAMES), "games that do not exist"
