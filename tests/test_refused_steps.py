"""Steps, ratios and factors that are not finite are refused, with one warning for each agent."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_happo import HAA2C, HAPPO, HATRPO, JointEnv
from sb3_happo.common.factor import is_collapsed
from sb3_happo.common.formulas import FACTOR_BOUNDS, update_factor
from sb3_happo.common.trust_region import line_search, natural_step
from sb3_happo.common.type_aliases import ActorBatch
from sb3_happo.common.warn_once import warn_once
from tests.algorithms import (
    PLAIN_SPACES,
    LstmHAPPO,
    alike_team,
    collect,
    random_team,
    same,
    small,
    snapshot,
)
from tests.envs import HeterogeneousTeam, MaskedGame, RandomTeam

HYBRID = spaces.Dict({"move": spaces.Box(-1, 1, (2,)), "word": spaces.Discrete(3)})
SPACES = {**PLAIN_SPACES, "hybrid": HYBRID}
#: Bounds on the divergence: the first gives steps so long that the network's outputs overflow, the
#: second a step that is infinite
BOUNDS = (1e30, 3e38)


def texts(record: Any) -> list[str]:
    return [str(warning.message) for warning in record]


# ---------------------------------------------------------------- HATRPO


@pytest.mark.parametrize("target_kl", BOUNDS)
@pytest.mark.parametrize("name", SPACES)
def test_steps_that_are_not_numbers_are_refused(name: str, target_kl: float) -> None:
    """The parameters keep their bits, the log says so, and the training goes on."""
    env = JointEnv(RandomTeam({"arm": SPACES[name], "leg": SPACES[name]}))
    model = small(HATRPO, env, target_kl=target_kl, seed=0)
    before = snapshot(model.policy.actors)
    with pytest.warns(UserWarning, match="trust-region step was NaN or infinite") as record:
        model.learn(64)
    assert same(before, snapshot(model.policy.actors))
    refusals = [text for text in texts(record) if "trust-region step" in text]
    assert sorted(refusals)[0].startswith("agent 'arm': ")
    assert sorted(refusals)[1].startswith("agent 'leg': ")
    assert len(refusals) == 2, "two updates, one warning for each agent"
    for agent in model.agents:
        assert model.logger.name_to_value[f"{agent}/step_fraction"] == 0.0
        assert model.logger.name_to_value[f"{agent}/kl"] == 0.0


@pytest.mark.parametrize(
    ("env", "policy_kwargs"),
    [
        (MaskedGame, {}),
        (HeterogeneousTeam, {}),
        (alike_team, dict(recurrent="gru", lstm_hidden_size=4)),
        (alike_team, dict(share_parameters=True)),
    ],
)
def test_other_teams_keep_their_parameters(env: Any, policy_kwargs: dict[str, Any]) -> None:
    model = small(HATRPO, env(), policy_kwargs, target_kl=BOUNDS[0], seed=0)
    before = snapshot(model.policy.actors)
    with pytest.warns(UserWarning, match="trust-region step was NaN or infinite"):
        model.learn(32)
    assert same(before, snapshot(model.policy.actors))


def test_a_gradient_that_is_infinite_is_refused() -> None:
    model = small(HATRPO, alike_team(2), normalize_advantage=False, seed=0)
    collect(model)
    model.rollout_buffer.advantages[3] = 1e38
    model.rollout_buffer.advantages[4] = -np.inf
    before = snapshot(model.policy.actors)
    with pytest.warns(UserWarning, match="agent 'agent_0': the trust-region step"):
        model.train()
    assert same(before, snapshot(model.policy.actors))


def test_shortened_steps_follow_those_that_overflow() -> None:
    """The search goes on behind a step that is not a number, and then there is no warning."""
    model = small(
        HATRPO,
        alike_team(1),
        target_kl=1e30,
        line_search_shrinking_factor=0.01,
        line_search_max_iter=40,
        accept_ratio=0.0,
        seed=0,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "agent 'agent_0': the trust-region step")
        model.learn(32)
    assert 0 < model.logger.name_to_value["agent_0/step_fraction"] < 1


def test_natural_steps_of_broken_curvature_are_not_numbers() -> None:
    gradient = th.ones(3)
    for product in (lambda v: -v, lambda v: v * th.nan, lambda v: v * th.inf):
        step = natural_step(gradient, product, 0.01, 10)
        # A negative curvature ends the conjugate gradients at 0
        assert not step.isfinite().all() or not step.any()
    assert not natural_step(gradient * th.nan, lambda v: v, 0.01, 10).isfinite().any()


def test_line_search_refuses_what_is_not_a_number() -> None:
    params = [th.ones(2, requires_grad=True)]
    for bad in (th.nan, th.inf):
        assert line_search(params, th.tensor([0.0, bad]), lambda _: True, 0.8, 10) == 0.0
        assert params[0].tolist() == [1.0, 1.0]


# ---------------------------------------------------------------- the factor


def test_factor_of_a_ratio_that_is_not_a_number_stays() -> None:
    old, factor = th.zeros(5), th.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    log_prob = th.tensor([th.nan, th.inf, 0.5, -th.inf, 200.0])
    expected = [1.0, 2.0, 3 * np.exp(0.5), FACTOR_BOUNDS[0], FACTOR_BOUNDS[1]]
    assert update_factor(factor, log_prob, old).tolist() == pytest.approx(expected)
    rows = th.tensor([4, 3, 2, 1, 0])
    turned = update_factor(factor.flip(0), log_prob, old, rows).flip(0)
    assert turned.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("log_ratio", [6.0, -6.0, 80.0, -80.0])
def test_factor_of_thirty_agents_is_finite(log_ratio: float) -> None:
    factor = th.ones(4)
    log_prob = th.full((4,), log_ratio)
    for _ in range(30):
        factor = update_factor(factor, log_prob, th.zeros(4))
    assert factor.isfinite().all() and (factor > 0).all()
    assert (factor**2).isfinite().all() and (factor**2 > 0).all()
    # It comes back
    for _ in range(30):
        factor = update_factor(factor, -log_prob.clamp(-0.5, 0.5), th.zeros(4))
    assert factor.isfinite().all() and (factor > 0).all()


def test_ordinary_factors_keep_their_bits() -> None:
    th.manual_seed(0)
    factor, log_prob, old = th.rand(100) + 0.5, th.randn(100), th.randn(100)
    assert update_factor(factor, log_prob, old).equal(factor * th.exp(log_prob - old))


MOVE = spaces.Box(-1, 1, (1,))


class Shifted(HAPPO):
    """Every update shifts the first output of the first agent far too much."""

    weight = 1e4
    changes = ("agent_0",)

    def _update_actors(self, data: dict[str, ActorBatch]) -> None:
        super()._update_actors(data)
        for agent in data:
            if agent in self.changes:
                with th.no_grad():
                    self.policies[agent].head.bias[0] += self.weight


class ShiftedHAA2C(Shifted, HAA2C):
    """The same with HAA2C's loss."""


class ShiftedHATRPO(Shifted, HATRPO):
    """The same with HATRPO's step."""


class ShiftedLstm(Shifted, LstmHAPPO):
    """The same with a memory."""


@pytest.mark.parametrize("algorithm", [Shifted, ShiftedHAA2C, ShiftedHATRPO, ShiftedLstm])
def test_agents_behind_an_overflow_learn(algorithm: type[HAPPO]) -> None:
    model = small(algorithm, alike_team(3), agent_order="fixed", seed=0)
    before = [snapshot(model.policies[agent]) for agent in model.agents[1:]]
    with pytest.warns(UserWarning, match="factor of agent 'agent_0' overflowed") as record:
        model.learn(32)
    assert not any("'agent_1' overflowed" in text for text in texts(record)), "its ratios are sound"
    for old, agent in zip(before, model.agents[1:], strict=True):
        after = snapshot(model.policies[agent])
        assert not same(old, after), agent
        assert all(value.isfinite().all() for value in after.values())
    for name in ("factor_mean", "factor_std", "factor_ess"):
        assert np.isfinite(model.logger.name_to_value[f"train/{name}"])


# ---------------------------------------------------------------- effective rows


@pytest.mark.parametrize(
    ("share", "n_rows", "collapsed"),
    [
        (0.026, 200, True),  # one row of 155 among 199 of 1
        (0.04, 4000, True),
        (0.06, 4000, False),
        (0.06, 100, True),  # 6 rows
        (0.15, 50, True),
        (0.5, 16, False),
        (0.15, 16, True),
        (1.0, 2, False),
    ],
)
def test_collapse(share: float, n_rows: int, collapsed: bool) -> None:
    assert is_collapsed(share, n_rows) is collapsed


@pytest.mark.parametrize("algorithm", [Shifted, ShiftedHAA2C, ShiftedHATRPO])
def test_a_collapse_is_said_once(algorithm: type[Shifted]) -> None:
    model = small(algorithm, alike_team(3, MOVE), agent_order="fixed", n_steps=64, seed=0)
    model.weight = 3.0
    with pytest.warns(UserWarning, match="have collapsed") as record:
        model.learn(128, log_interval=100)
    said = [text for text in texts(record) if "factor_ess" in text]
    assert len(said) == 1 and "n_steps" in said[0] and "target_kl" in said[0]


def test_sound_updates_and_single_agents_say_nothing() -> None:
    alone = small(Shifted, alike_team(1, MOVE), seed=0)
    alone.weight = 3.0
    for model in (alone, small(HAPPO, random_team(), seed=0), small(HATRPO, alike_team(3), seed=0)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.learn(64)


def test_warnings_are_given_once_per_object_and_key() -> None:
    first, second = small(HAPPO, alike_team(1)), small(HAPPO, alike_team(1))
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        for owner, key in ((first, "a"), (first, "a"), (first, "b"), (second, "a")):
            warn_once(owner, key, f"warning {key}")
    assert texts(record) == ["warning a", "warning b", "warning a"]
