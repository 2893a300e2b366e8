"""
Bad input is refused before training, with an error that says what was wrong and what to do about
it.
"""

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_happo import HAPPO, HATRPO, IPPO, MAPPO, JointEnv, make_joint_vec_env
from sb3_happo.common.on_policy_algorithm import MultiAgentOnPolicyAlgorithm
from tests.algorithms import alike_team, every_algorithm, random_team, same, small, snapshot
from tests.envs import MaskedGame, MatrixGame, RandomTeam

VECTOR = spaces.Box(-1, 1, (3,), np.float32)


def one_agent(action_space: spaces.Space, observation_space: spaces.Space = VECTOR) -> RandomTeam:
    """A team in which only `arm` is special."""
    return RandomTeam(
        {"arm": action_space, "leg": spaces.Discrete(2)},
        observation_spaces={"arm": observation_space, "leg": VECTOR},
    )


# ---------------------------------------------------------------- spaces


@every_algorithm
def test_infinite_box(algorithm: type[HAPPO]) -> None:
    infinite = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    for space in (
        infinite,
        spaces.Box(0, np.inf, (2,), np.float32),
        spaces.Tuple([spaces.Discrete(2), infinite]),
    ):
        with pytest.raises(ValueError, match=r"agent 'arm'.*infinite Box.*wrap the env"):
            small(algorithm, one_agent(space))


@every_algorithm
def test_unsupported_action_spaces(algorithm: type[HAPPO]) -> None:
    for space in (
        spaces.Text(3),
        spaces.Sequence(spaces.Discrete(2)),
        spaces.Dict({"word": spaces.Text(3)}),
    ):
        with pytest.raises(
            TypeError,
            match=r"Unsupported action space.*use Box, Discrete|unsupported action space.*use Box",
        ):
            small(algorithm, one_agent(space))
    with pytest.raises(TypeError, match=r"agent 'arm'.*use MultiDiscrete for whole numbers"):
        small(algorithm, one_agent(spaces.Box(0, 5, (2,), np.int64)))


@every_algorithm
def test_unsupported_observation_spaces(algorithm: type[HAPPO]) -> None:
    for space in (spaces.Text(3), spaces.Sequence(VECTOR)):
        with pytest.raises(TypeError, match=r"agent 'arm'.*unsupported observation space"):
            small(algorithm, one_agent(spaces.Discrete(2), space))
    small(algorithm, one_agent(spaces.Discrete(2), spaces.Discrete(4, start=3))).learn(16)


class GrowsAtReset(RandomTeam):
    """Its agents see one number more after every reset."""

    resets = 0

    def observation_space(self, agent: str) -> spaces.Space:
        return spaces.Box(-1, 1, (3 + self.resets,), np.float32)

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        _, infos = super().reset(seed, options)
        self.resets += 1
        return {agent: self.observation_space(agent).sample() for agent in self.agents}, infos


def test_spaces_that_change_between_resets() -> None:
    model = small(HAPPO, GrowsAtReset({"arm": spaces.Discrete(2)}))
    before = snapshot(model.policy)
    with pytest.raises(ValueError, match=r"observation space of agent 'arm' has changed.*Pad it"):
        model.learn(64)
    assert same(before, snapshot(model.policy))


class Misfit(RandomTeam):
    """Its first agent's observation has the wrong shape from some step on."""

    def __init__(self, from_step: int) -> None:
        super().__init__({"arm": spaces.Discrete(2), "leg": spaces.Discrete(2)})
        self.from_step = from_step

    def _observations(self) -> dict[Any, Any]:
        right = super()._observations()
        if self._t >= self.from_step:
            right["arm"] = np.zeros(1, np.float32)  # NumPy would broadcast it
        return right


def test_observations_outside_their_spaces_shape() -> None:
    with pytest.raises(
        ValueError, match=r"agent 'arm'.*shape \(1,\).*correct the env's observation_space"
    ):
        small(HAPPO, Misfit(0))
    with pytest.raises(ValueError, match=r"agent 'arm'.*shape \(1,\)"):
        small(HAPPO, Misfit(5)).learn(64)


def test_empty_teams() -> None:
    with pytest.raises(ValueError, match="no agents"):
        HAPPO(RandomTeam({}))


def test_keys_that_collide_with_the_state() -> None:
    with pytest.raises(ValueError, match=r"'state'.*rename the agent"):
        HAPPO(RandomTeam({"state": spaces.Discrete(2), "leg": spaces.Discrete(2)}))
    # Inside an agent's own Dict the name is harmless
    inside = one_agent(spaces.Discrete(2), spaces.Dict({"state": VECTOR, "agent_states": VECTOR}))
    model = small(HAPPO, inside).learn(32)
    assert model.critic.keys == ["state"]


@pytest.mark.parametrize(
    "space",
    [spaces.Box(-1, 1, (), np.float32), spaces.MultiDiscrete(np.array([[2, 3], [2, 2]]))],
    ids=str,
)
def test_observations_of_no_or_two_dimensions(space: spaces.Space) -> None:
    model = small(HAPPO, one_agent(spaces.Discrete(2), space)).learn(16)
    assert isinstance(model.observation_space, spaces.Dict)
    shape = model.observation_space["arm"].shape
    assert shape is not None and len(shape) == 1


# ---------------------------------------------------------------- what the environment returns


class GoesWrong(RandomTeam):
    """Returns NaN or infinity somewhere at one step."""

    def __init__(self, what: str, value: float, step: int, truncate: bool = False) -> None:
        super().__init__({"arm": spaces.Discrete(2), "leg": spaces.Discrete(2)}, truncate=truncate)
        self.what, self.value, self.at = what, value, step

    def _observations(self) -> dict[Any, Any]:
        right = super()._observations()
        if self.what == "observation" and self._t == self.at:
            right["leg"] = np.array([0.0, self.value, 0.0], np.float32)
        return right

    def step(self, actions: dict[Any, Any]) -> Any:
        answer = super().step(actions)
        if self.what == "reward" and self._t == self.at:
            answer[1]["leg"] = self.value
        return answer


@every_algorithm
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_from_the_environment(algorithm: type[HAPPO], value: float) -> None:
    """Named are agent, environment and step; nothing has been learned from it."""
    for what, match in (("observation", "observation 'leg'"), ("reward", "reward.*'leg'")):
        right = partial(GoesWrong, what, value, -1)
        wrong = partial(GoesWrong, what, value, 5)
        envs = DummyVecEnv([lambda make=make: JointEnv(make()) for make in (right, wrong)])  # type: ignore[misc]
        model = small(algorithm, envs)
        before = snapshot(model.policy)
        with pytest.raises(
            ValueError, match=f"NaN or infinity in .*{match}.*environment 1.*10 timesteps"
        ):
            model.learn(128)
        assert same(before, snapshot(model.policy))


def test_nan_at_the_first_reset() -> None:
    model = small(HAPPO, GoesWrong("observation", np.nan, 0))
    with pytest.raises(ValueError, match=r"observation 'leg' \(environment 0, after 0 timesteps\)"):
        model.learn(32)


@every_algorithm
def test_nan_in_the_last_observation_of_a_truncated_episode(algorithm: type[HAPPO]) -> None:
    """It is not among the observations that the team answers, but its value is bootstrapped."""
    model = small(algorithm, GoesWrong("observation", np.nan, 10, truncate=True))
    before = snapshot(model.policy)
    with pytest.raises(
        ValueError, match=r"NaN or infinity in .*'leg'|NaN or infinity in .*'state'"
    ):
        model.learn(64)
    assert same(before, snapshot(model.policy))


def test_nan_in_a_reward_that_the_team_does_not_count() -> None:
    """IPPO learns from every agent's own reward, whatever the team's is."""
    env = JointEnv(GoesWrong("reward", np.nan, 5), team_reward="arm")
    with pytest.raises(ValueError, match=r"NaN or infinity in the reward.*'leg'"):
        small(IPPO, env).learn(32)
    small(HAPPO, env).learn(32)


class MasksEverything(MaskedGame):
    def _draw(self, n: int) -> np.ndarray:
        return np.zeros(n, np.int8) if self._t == 3 and n == 2 else super()._draw(n)


@pytest.mark.parametrize("masks_in", ["observation", "info"])
def test_masks_that_allow_nothing(masks_in: str) -> None:
    """One head of `agent_1`'s two has no legal choice."""
    with pytest.raises(
        ValueError,
        match=r"agent 'agent_1'.*mask allows nothing.*after 3 timesteps.*one legal action",
    ):
        small(HAPPO, MasksEverything(masks_in=masks_in)).learn(32)


@pytest.mark.parametrize("entry", ["active", "agent_0/action_mask"])
def test_masks_that_a_wrapper_has_changed(entry: str) -> None:
    env = gym.wrappers.FrameStackObservation(
        JointEnv(MaskedGame(), observe_active=entry == "active"), 2
    )
    with pytest.raises(
        ValueError,
        match=f"'{entry}' of the joint observation has the shape .* use SB3's VecFrameStack",
    ):
        small(HAPPO, env)


def test_masks_of_agents_with_nothing_to_mask() -> None:
    """A wrapper may give every agent the key; for a Box there is nothing in it."""
    masked = spaces.Dict({"observation": VECTOR, "action_mask": spaces.Box(0, 1, (0,), np.int8)})
    for space in (spaces.Box(-1, 1, (2,), np.float32), spaces.MultiBinary(2)):
        model = small(HAPPO, one_agent(space, masked)).learn(32)
        assert "arm" in model.predict({"arm": masked.sample()})[0]


class VectorsOnly(FlattenExtractor):
    def __init__(self, observation_space: spaces.Space) -> None:
        super().__init__(observation_space)
        if not isinstance(observation_space, spaces.Box):
            raise TypeError("vectors only")


class DictsOnly(CombinedExtractor):
    def __init__(self, observation_space: spaces.Space) -> None:
        super().__init__(observation_space)  # type: ignore[arg-type]


def test_an_extractor_that_does_not_take_what_somebody_observes() -> None:
    both = spaces.Dict({"near": VECTOR, "far": VECTOR})
    env, alone = (
        one_agent(spaces.Discrete(2), both),
        RandomTeam({"arm": spaces.Discrete(2)}, observation_spaces={"arm": both}),
    )
    for team, owner, where in (
        (alone, "the critic", "critic_kwargs"),
        (env, "agent 'leg'", "agent_kwargs"),
    ):
        with pytest.raises(
            ValueError,
            match=rf"DictsOnly cannot .* {owner}, .*AttributeError.*policy_kwargs\['{where}'\]",
        ):
            small(HAPPO, team, policy_kwargs=dict(features_extractor_class=DictsOnly))
    where = r"policy_kwargs\['agent_kwargs'\]\['arm'\]"
    match = rf"VectorsOnly cannot .* agent 'arm', Dict.*vectors only.*{where}"
    with pytest.raises(ValueError, match=match):
        small(HAPPO, env, policy_kwargs=dict(features_extractor_class=VectorsOnly))
    default = dict(features_extractor_class=None)
    small(
        HAPPO,
        env,
        policy_kwargs=dict(features_extractor_class=VectorsOnly, agent_kwargs={"arm": default}),
    )


# ---------------------------------------------------------------- which environment


@every_algorithm
def test_ids_that_do_not_resolve(algorithm: type[HAPPO]) -> None:
    for args in (("CartPol-v1",), ("MlpPolicy", "CartPol-v1")):
        with pytest.raises(
            ValueError, match=r"'CartPol-v1' does not resolve.*Did you mean 'CartPole-v1'"
        ):
            algorithm(*args)


def test_one_environment_for_many() -> None:
    team = RandomTeam(dict.fromkeys("ab", spaces.Discrete(2)))
    with pytest.raises(ValueError, match="Environments 0 and 1 are one and the same"):
        make_joint_vec_env(lambda: team, 3)
    with pytest.raises(
        TypeError, match="an id, or a function that makes a new environment at each call"
    ):
        make_joint_vec_env(team, 3)


def test_parts_of_the_critic_that_there_are_not() -> None:
    with pytest.raises(
        ValueError,
        match=r"policy_kwargs\['critic_kwargs'\] knows no 'net_arh'. Did you mean 'net_arch'?",
    ):
        small(HAPPO, alike_team(), policy_kwargs=dict(critic_kwargs=dict(net_arh=[8])))


@pytest.mark.parametrize(
    ("wrong", "right", "needs"),
    [
        (
            "mpe2/simple_spread",
            "mpe2/simple_spread_v3",
            "mpe2",
        ),  # a module that makes no environment
        ("envpol/HalfCheetah-2x3-v1", "envpool/HalfCheetah-2x3-v1", "gymnasium_robotics"),
        ("vmass/balance", "vmas/balance", "vmas"),
        ("balance", "vmas/balance", "vmas"),
    ],
)
def test_the_nearest_ids(wrong: str, right: str, needs: str) -> None:
    pytest.importorskip(needs)
    with pytest.raises(ValueError, match=rf"Did you mean .*'{right}'"):
        HAPPO(wrong)


def test_unknown_policies() -> None:
    with pytest.raises(ValueError, match=r"Unknown policy 'MlpPolcy'; did you mean 'MlpPolicy'"):
        HAPPO("MlpPolcy", MatrixGame())


@every_algorithm
def test_no_environment(algorithm: type[HAPPO]) -> None:
    with pytest.raises(ValueError, match="environment"):
        algorithm("MlpPolicy")
    with pytest.raises(ValueError, match="environment"):
        algorithm("MlpPolicy", None)


def test_things_that_are_no_environment() -> None:
    for thing in (42, object(), [MatrixGame()]):
        with pytest.raises(TypeError, match=r"cannot be joined|JointEnv takes"):
            HAPPO(thing)


def test_vec_envs_of_single_agents_with_infinite_boxes() -> None:
    class Endless(gym.Env):
        observation_space = VECTOR
        action_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)

        def reset(
            self, *, seed: int | None = None, options: dict | None = None
        ) -> tuple[np.ndarray, dict]:
            return np.zeros(3, np.float32), {}

        def step(self, action: np.ndarray) -> Any:
            return np.zeros(3, np.float32), 0.0, False, False, {}

    with pytest.raises(ValueError, match=r"agent 'agent_0'.*infinite Box"):
        HAPPO(make_vec_env(Endless, 2))


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize("name", ["batch_size", "critic_batch_size"])
def test_batches_that_do_not_divide_the_rollout(name: str) -> None:
    env = random_team(2)
    wrong: dict[str, Any] = {name: 24}
    right: dict[str, Any] = {name: 32}
    with pytest.warns(
        UserWarning, match=rf"`n_steps \* n_envs = 64` is not a multiple of `{name}=24`.*recommend"
    ):
        small(HAPPO, env, **wrong).learn(64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small(HAPPO, env, **right)


def test_one_warning_is_enough() -> None:
    """The critic takes the actors' batch size unless told otherwise."""
    with pytest.warns(UserWarning, match="not a multiple") as record:
        small(HAPPO, random_team(2), batch_size=24)
    assert len(record) == 1


def test_samples_that_cannot_be_normalised() -> None:
    with pytest.raises(ValueError, match="`batch_size` must be greater than 1"):
        small(HAPPO, alike_team(), batch_size=1)
    with pytest.raises(ValueError, match=r"`n_steps \* n_envs` must be greater than 1"):
        small(HAPPO, alike_team(), n_steps=1)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        (dict(normalize_advantage="epoch"), "normalize_advantage must be"),
        (dict(agent_order="sideways"), "agent_order must be one of"),
        (dict(policy_kwargs=dict(log_std_form="tanh")), "log_std_form must be"),
        (
            dict(policy_kwargs=dict(agent_kwargs={"agent_9": {}})),
            r"Unknown agent 'agent_9' in policy_kwargs\['agent_kwargs'\]",
        ),
        (
            dict(policy_kwargs=dict(share_parameters=[["agent_0", "agent_9"]])),
            "Unknown agent 'agent_9'",
        ),
        (
            dict(policy_kwargs=dict(share_parameters=[["agent_0", "agent_1"], ["agent_1"]])),
            "names an agent twice",
        ),
        (
            dict(policy_kwargs=dict(quux=3)),
            "policy_kwargs knows no 'quux'. There are activation_fn, ",
        ),
        (
            dict(policy_kwargs=dict(net_arh=[3])),
            "policy_kwargs knows no 'net_arh'. Did you mean 'net_arch'?",
        ),
        (dict(policy_kwargs=dict(share_parameter=True)), "Did you mean 'share_parameters'?"),
        (dict(policy_kwargs=dict(masked=True)), "policy_kwargs knows no 'masked'"),
        (
            dict(policy_kwargs=dict(agent_kwargs={"agent_1": dict(learning_rat=1e-3)})),
            r"policy_kwargs\['agent_kwargs'\]\['agent_1'\] knows no 'learning_rat'. "
            "Did you mean 'learning_rate'?",
        ),
    ],
    ids=str,
)
def test_wrong_settings(kwargs: dict[str, Any], match: str) -> None:
    env = alike_team(space=spaces.Box(-1, 1, (1,), np.float32))
    with pytest.raises(ValueError, match=match):
        small(HAPPO, env, **kwargs)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("target_kl", [None, 0.0, -1.0]),
        ("cg_max_steps", [0, 1.5]),
        ("cg_damping", [-1.0, None]),
        ("line_search_shrinking_factor", [0.0, 1.0]),
        ("line_search_max_iter", [0]),
        ("accept_ratio", [-0.1, 2.0]),
    ],
)
def test_a_trust_region_that_cannot_be(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=f"{name} must be"):
            small(HATRPO, alike_team(), **{name: value})


def test_a_value_loss_without_weight_is_no_error() -> None:
    # New statistics change the critic's output layer
    model = small(HAPPO, alike_team(), vf_coef=0.0, normalize_value=False)
    before = snapshot(model.critic.networks[0])
    model.learn(32)
    assert same(before, snapshot(model.critic.networks[0]))


def test_agents_too_different_to_share() -> None:
    team = RandomTeam({"arm": spaces.Discrete(2), "leg": spaces.Discrete(3)})
    with pytest.raises(
        ValueError, match=r"agents 'arm' and 'leg' cannot share parameters.*different groups"
    ):
        small(MAPPO, team, policy_kwargs=dict(share_parameters=[["arm", "leg"]]))
    assert small(MAPPO, team).policy.groups == [("arm",), ("leg",)]


def test_masks_are_not_to_be_normalised() -> None:
    env = DummyVecEnv([lambda: JointEnv(MaskedGame())])
    with pytest.raises(ValueError, match=r"norm_obs_keys=\['agent_0', 'agent_1', 'state'\]"):
        small(HAPPO, VecNormalize(env))
    model = small(HAPPO, VecNormalize(env, norm_obs_keys=["agent_0", "agent_1", "state"])).learn(32)
    with pytest.raises(ValueError, match="norm_obs_keys"):
        model.set_env(VecNormalize(env))


# ---------------------------------------------------------------- another team


@every_algorithm
def test_models_of_another_team(algorithm: type[HAPPO], tmp_path: Path) -> None:
    model = small(algorithm, alike_team(3))
    model.save(tmp_path / "model")
    team = r"trained for the team \['agent_0', 'agent_1', 'agent_2'\]"
    other_team = rf"{team}.*this environment has \['agent_0', 'agent_1'\]"
    other_space = r"'agent_0': Discrete\(3\) in the model, Discrete\(4\) here"
    others = {
        other_team: alike_team(2),
        rf"other action spaces.*{other_space}": alike_team(3, spaces.Discrete(4)),
    }
    for match, env in others.items():
        with pytest.raises(ValueError, match=match):
            algorithm.load(tmp_path / "model", env=env)
        with pytest.raises(ValueError, match=match):
            model.set_env(env)
    sees_more = JointEnv(
        RandomTeam(
            dict.fromkeys(model.agents, spaces.Discrete(3)),
            observation_spaces=dict.fromkeys(model.agents, spaces.Box(-1, 1, (4,), np.float32)),
        )
    )
    with pytest.raises(ValueError, match=r"other observation spaces.*same arguments and wrappers"):
        algorithm.load(tmp_path / "model", env=sees_more)
    reordered = JointEnv(RandomTeam(dict.fromkeys(model.agents[::-1], spaces.Discrete(3))))
    with pytest.raises(ValueError, match="trained for the team"):
        algorithm.load(tmp_path / "model", env=reordered)


def test_settings_that_are_changed_at_loading(tmp_path: Path) -> None:
    small(HAPPO, alike_team()).save(tmp_path / "model")
    with pytest.raises(ValueError, match="gamma must be"):
        HAPPO.load(tmp_path / "model", alike_team(), gamma=2)
    with pytest.raises(ValueError, match="agent_order must be one of"):
        HAPPO.load(tmp_path / "model", alike_team(), agent_order="randm")
    with pytest.raises(ValueError, match="normalize_advantage must be"):
        HAPPO.load(tmp_path / "model", alike_team(), normalize_advantage="Rollout")
    with pytest.raises(ValueError, match="batch_size must be a whole number, at least 2"):
        HAPPO.load(tmp_path / "model", alike_team(), batch_size=1)
    HAPPO.load(tmp_path / "model", alike_team(), max_grad_norm=None).learn(32)


def test_set_env_keeps_the_number_of_environments() -> None:
    model = small(HAPPO, DummyVecEnv([lambda: JointEnv(MatrixGame())] * 2))
    with pytest.raises((AssertionError, ValueError), match="number of environments"):
        model.set_env(DummyVecEnv([lambda: JointEnv(MatrixGame())] * 3))


def test_every_error_of_a_team_comes_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    What can be known from the spaces is known when the model is made: no step is made, no network
    built.
    """

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a network was built")

    monkeypatch.setattr(MultiAgentOnPolicyAlgorithm, "_setup_model", never)
    with pytest.raises(ValueError, match="infinite Box"):
        HAPPO(one_agent(spaces.Box(-np.inf, np.inf, (1,), np.float32)))
    with pytest.raises(TypeError, match="unsupported observation space"):
        HATRPO(one_agent(spaces.Discrete(2), spaces.Text(3)))


def test_images_too_small_for_the_cnn() -> None:
    tiny = spaces.Box(0, 255, (8, 8, 3), np.uint8)
    for space in (tiny, spaces.Dict({"view": tiny, "speed": VECTOR})):
        with pytest.warns(UserWarning, match=r"\(3, 8, 8\)\] are flattened.*extractor_class"):
            small(HAPPO, one_agent(spaces.Discrete(2), space)).learn(16)
    flat = dict(features_extractor_class=FlattenExtractor)
    policy_kwargs = dict(agent_kwargs={"arm": flat})
    env = JointEnv(one_agent(spaces.Discrete(2), tiny), state=lambda env, observations: np.zeros(2))
    small(HAPPO, env, policy_kwargs).learn(32)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(n_epochs=0), "^n_epochs must be a whole number, at least 1, not 0"),
        (dict(n_epochs=1.5), "^n_epochs must be a whole number, at least 1, not 1.5"),
        (dict(critic_n_epochs=0), "critic_n_epochs must be a whole number, at least 1"),
        (
            dict(chunk_length=2.5),
            "chunk_length must be a whole number, at least 1, or None, not 2.5",
        ),
        (dict(gamma=1.5), r"gamma must be in \[0, 1\], not 1.5"),
        (dict(gamma=float("nan")), "gamma must be"),
        (dict(gae_lambda=-1), "gae_lambda must be"),
        (dict(clip_range=0.0), "clip_range must be greater than 0, or a schedule of such, not 0.0"),
        (
            dict(clip_range=None),
            "clip_range must be greater than 0, or a schedule of such, not None",
        ),
        (
            dict(clip_range_vf=-0.2),
            "clip_range_vf must be greater than 0, or a schedule of such, or None, not -0.2",
        ),
        (dict(vf_coef=-1.0), "vf_coef must be finite and at least 0"),
        (dict(max_grad_norm=0), "max_grad_norm must be greater than 0, or None"),
        (dict(huber_delta=-1.0), "huber_delta must be"),
        (dict(target_kl=-1.0), "target_kl must be"),
        (
            dict(ent_coef=-0.1),
            "ent_coef must be finite and at least 0, or a schedule of such, not -0.1",
        ),
        (
            dict(ent_coef=None),
            "ent_coef must be finite and at least 0, or a schedule of such, not None",
        ),
        (
            dict(ent_coef=LinearSchedule(0.1, -0.1, 0.5)),
            "is -0.02.* when 70% of the training is left",
        ),
        (
            dict(ent_coef=LinearSchedule(0.1, 0.0, 0.0)),
            "ent_coef must be finite and at least 0, or a schedule",
        ),
        (dict(clip_range=lambda progress: -1.0), "is -1.0 when 100% of the training is left"),
        (
            dict(clip_range=LinearSchedule(0.2, 0.0, 0.5)),
            "clip_range must be .* is 0.0 when 50% of the training is left",
        ),
        (dict(gamma=lambda progress: 0.9), r"gamma must be in \[0, 1\], not <function"),
        (dict(n_epochs=lambda progress: 3), "n_epochs must be a whole number"),
        (dict(huber_delta=lambda progress: 1.0), "huber_delta must be"),
        (
            dict(critic_batch_size=3.5),
            "critic_batch_size must be a whole number, at least 2, or None, not 3.5",
        ),
        (dict(ent_coef=lambda progress: float("nan")), "is nan when 100% of the training is left"),
        (dict(agent_order=lambda agents: agents[:1]), "every agent once"),
    ],
    ids=lambda value: str(next(iter(value))) if isinstance(value, dict) else "",
)
def test_settings_that_cannot_work(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        HAPPO(MatrixGame(2), n_steps=8, batch_size=8, **settings)
