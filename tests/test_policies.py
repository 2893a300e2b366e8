"""
One agent's policy: distributions of every action space, masks, forms of the standard deviation,
networks, overrides.
"""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from pettingzoo import ParallelEnv
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
)
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from sb3_happo import HAPPO, JointEnv
from sb3_happo.common.agent_policy import AgentPolicy
from sb3_happo.common.batched_actors import BatchedActors, _choose
from tests.algorithms import (
    PLAIN_SPACES,
    alike_team,
    collect,
    every_algorithm,
    same,
    small,
    snapshot,
)
from tests.envs import HeterogeneousTeam, MaskedGame, RandomTeam

VECTOR = spaces.Box(-1, 1, (3,), np.float32)
BOX = spaces.Box(np.array([-2, 0], np.float32), np.array([3, 0.5], np.float32))
HYBRID = spaces.Dict(
    [
        ("turn", spaces.Discrete(3, start=5)),
        ("move", spaces.Tuple([spaces.Box(-1, 1, (2,), np.float32), spaces.MultiDiscrete([2, 3])])),
        ("lights", spaces.MultiBinary(2)),
        ("zoom", spaces.Box(0, 10, (1,), np.float32)),
    ]
)


def make_policy(
    space: spaces.Space, observation_space: spaces.Space = VECTOR, **kwargs: Any
) -> AgentPolicy:
    return AgentPolicy(
        observation_space, space, lambda _: 1e-3, **{"net_arch": [8], "output_gain": 1.0, **kwargs}
    )


# ---------------------------------------------------------------- distributions


def normal_log_prob(x: th.Tensor, mean: th.Tensor, std: th.Tensor) -> th.Tensor:
    return (-0.5 * ((x - mean) / std) ** 2 - std.log() - 0.5 * np.log(2 * np.pi)).sum(dim=1)


def test_hybrid_actions_have_joint_log_probabilities_and_entropies() -> None:
    """
    Written out from the network's outputs: three, then two means, two heads, two bits, one mean.
    """
    th.manual_seed(0)
    policy = make_policy(HYBRID, log_std_init=-0.5)
    with th.no_grad():
        assert policy.log_std is not None
        policy.log_std.copy_(th.tensor([-0.5, 0.1, 0.3]))
    obs = th.randn(50, 3)
    actions, log_prob = policy(obs)
    assert actions.shape == (50, 1 + 2 + 2 + 2 + 1) and log_prob.shape == (50,)
    out, std = policy.head(policy.body(obs)), policy.log_std.exp()
    assert out.shape == (50, 3 + 2 + 5 + 2 + 1)
    turn, mean, first, second, bits, zoom = out.split([3, 2, 2, 3, 2, 1], dim=1)
    choices = actions.long()
    heads = [(turn, choices[:, 0]), (first, choices[:, 3]), (second, choices[:, 4])]
    expected = sum(
        logits.log_softmax(1).gather(1, chosen[:, None]).squeeze(1) for logits, chosen in heads
    )
    expected = (
        expected
        + normal_log_prob(actions[:, 1:3], mean, std[:2])
        + normal_log_prob(actions[:, 7:8], zoom, std[2:])
    )
    expected = expected - nn.functional.binary_cross_entropy_with_logits(
        bits, actions[:, 5:7], reduction="none"
    ).sum(dim=1)
    assert th.allclose(log_prob, expected, atol=1e-5)
    again, entropy = policy.evaluate_actions(obs, actions)
    assert th.allclose(again, expected, atol=1e-5)
    wanted = -sum((logits.softmax(1) * logits.log_softmax(1)).sum(dim=1) for logits, _ in heads)
    wanted = wanted + (0.5 + 0.5 * np.log(2 * np.pi) + std.log()).sum()
    p = bits.sigmoid()
    wanted = wanted - (p * p.log() + (1 - p) * (1 - p).log()).sum(dim=1)
    assert th.allclose(entropy, wanted, atol=1e-5)


@pytest.mark.parametrize("space", [*PLAIN_SPACES.values(), HYBRID], ids=str)
def test_samples_follow_the_distribution(space: spaces.Space) -> None:
    """The mean of the samples' log-probabilities is minus the entropy."""
    th.manual_seed(0)
    policy = make_policy(space)
    obs = th.tensor([[0.3, -0.8, 0.5]]).expand(20_000, -1)
    with th.no_grad():
        _, log_prob = policy(obs)
        _, entropy = policy.evaluate_actions(obs[:1], policy(obs[:1])[0])
    assert log_prob.mean().item() == pytest.approx(-entropy.item(), abs=0.03)


def test_deterministic_actions_are_the_most_likely() -> None:
    th.manual_seed(0)
    for space in (*PLAIN_SPACES.values(), HYBRID):
        policy = make_policy(space)
        obs = th.randn(1, 3).expand(500, -1)
        with th.no_grad():
            best, best_log_prob = policy(obs[:1], deterministic=True)
            _, log_prob = policy(obs)
        assert (log_prob <= best_log_prob + 1e-5).all()
        assert th.equal(best, policy(obs[:1], deterministic=True)[0])


# ---------------------------------------------------------------- masks

MASKABLE: list[tuple[spaces.Space, list[int], list[int]]] = [
    (spaces.Discrete(4, start=-2), [4], [0, 1, 0, 1]),
    (spaces.MultiDiscrete([2, 3]), [2, 3], [0, 1, 1, 0, 1]),
    (HYBRID, [3, 2, 3], [1, 0, 1, 1, 0, 0, 0, 1]),
]


def choices(space: spaces.Space, actions: np.ndarray) -> list[np.ndarray]:
    """The discrete choices in an agent's actions, head by head, counted from 0."""
    if isinstance(space, spaces.Discrete):
        return [actions - space.start]
    if isinstance(space, spaces.MultiDiscrete):
        return list(actions.T)
    return [actions["turn"] - 5, *actions["move"]["1"].T]


def discrete_outputs(policy: AgentPolicy) -> list[int]:
    """Which of the network's outputs are logits of maskable choices."""
    found, start = [], 0
    for leaf in policy.leaves:
        found += list(range(start, start + leaf.n_choices))
        start += leaf.n_params
    return found


@pytest.mark.parametrize(
    ("space", "heads", "mask"), MASKABLE, ids=["discrete", "multi_discrete", "hybrid"]
)
def test_masked_choices_have_no_probability_and_no_gradient(
    space: spaces.Space, heads: list[int], mask: list[int]
) -> None:
    th.manual_seed(0)
    policy = make_policy(space, masked=True)
    obs, masks = th.randn(400, 3), th.tensor([mask]).expand(400, -1)
    assert policy.masks.n_choices == len(mask)
    actions, log_prob = policy(obs, action_masks=masks)
    assert log_prob.isfinite().all()
    for index, chosen in enumerate(choices(space, policy.to_env_actions(actions.detach().numpy()))):
        legal = [
            number
            for number, allowed in enumerate(np.split(mask, np.cumsum(heads)[:-1])[index])
            if allowed
        ]
        assert np.unique(chosen).tolist() == legal, "every legal choice is drawn, and no other"
    log_prob, entropy = policy.evaluate_actions(obs, actions, masks)
    (log_prob.sum() + entropy.sum()).backward()
    gradient = policy.head.bias.grad[discrete_outputs(policy)]  # type: ignore[index]
    masked = th.tensor(mask) == 0
    assert gradient[masked].abs().max() < 1e-4 < gradient[~masked].abs().max()
    free = make_policy(space, masked=True)
    log_prob, _ = free.evaluate_actions(
        obs, free(obs, action_masks=th.ones_like(masks))[0], th.ones_like(masks)
    )
    log_prob.sum().backward()
    assert (free.head.bias.grad[discrete_outputs(free)] != 0).any()  # type: ignore[index]


@every_algorithm
def test_what_is_never_legal_is_never_learned(algorithm: type[HAPPO]) -> None:
    """
    Over a whole training the output of a choice that is always illegal stays where it was, rounding
    errors aside.
    """

    class NeverThree(MaskedGame):
        def _draw(self, n: int) -> np.ndarray:
            mask = super()._draw(n)
            if n == 4:
                mask[3] = 0
                mask[0] = 1
            return mask

    model = small(algorithm, NeverThree(), seed=0, ent_coef=0.01, learning_rate=1e-2)
    head = model.policies["agent_0"].head
    assert isinstance(head, nn.Linear)
    weight, bias = head.weight.detach().clone(), head.bias.detach().clone()
    model.learn(96)
    assert th.allclose(head.weight[3], weight[3], atol=1e-4) and th.allclose(
        head.bias[3], bias[3], atol=1e-4
    )
    assert not th.allclose(head.weight[0], weight[0], atol=1e-3)


# ---------------------------------------------------------------- Box actions


def test_rescaled_actions() -> None:
    """
    The Gaussian's [-1, 1] is the Box, linearly; beyond it actions are clipped; the raw action is
    kept for learning.
    """
    policy = make_policy(BOX)
    raw = np.array([[-1.0, 1.0], [0.0, 0.0], [0.5, -0.5], [7.0, -7.0]], np.float32)
    expected = np.array([[-2.0, 0.5], [0.5, 0.25], [1.75, 0.125], [3.0, 0.0]])
    assert np.allclose(policy.to_env_actions(raw), expected)
    assert policy.to_env_actions(raw).dtype == np.float32


def test_actions_as_they_are() -> None:
    policy = make_policy(BOX, rescale_actions=False)
    raw = np.array([[-1.0, 0.4], [2.5, 7.0], [-9.0, -9.0]], np.float32)
    assert np.allclose(policy.to_env_actions(raw), [[-1.0, 0.4], [2.5, 0.5], [-2.0, 0.0]])


def test_both_are_the_same_on_the_unit_box() -> None:
    raw = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32) * 2
    unit = spaces.Box(-1, 1, (2,), np.float32)
    scaled, bare = (
        make_policy(unit, rescale_actions=flag).to_env_actions(raw) for flag in (True, False)
    )
    assert np.allclose(scaled, bare, atol=1e-6)


def test_boxes_of_several_dimensions() -> None:
    space = spaces.Box(-3, 1, (2, 1, 2), np.float32)
    policy = make_policy(space)
    actions, _ = policy.predict(np.zeros((5, 3), np.float32))
    assert actions.shape == (5, 2, 1, 2) and all(space.contains(action) for action in actions)
    raw = np.array([[-1.0, 0.0, 1.0, 0.5]], np.float32)
    assert np.allclose(policy.to_env_actions(raw)[0].ravel(), [-3, -1, 1, 0])


def test_raw_actions_are_stored_and_scaled_ones_sent() -> None:
    team = RandomTeam({"arm": BOX})
    model = small(HAPPO, team, policy_kwargs=dict(log_std_init=1.0), seed=0)
    collect(model)
    raw = model.rollout_buffer.actions["arm"][-1, 0].numpy()
    assert (np.abs(model.rollout_buffer.actions["arm"].numpy()) > 1).any()
    sent = model.policies["arm"].to_env_actions(raw[None])[0]
    assert BOX.contains(sent) and np.allclose(team.actions["arm"], sent)


def test_discrete_actions_count_from_their_start() -> None:
    policy = make_policy(spaces.Discrete(3, start=-4))
    assert policy.to_env_actions(np.array([[0.0], [1.0], [2.0]])).tolist() == [-4, -3, -2]
    policy = make_policy(spaces.MultiDiscrete([2, 2], start=[3, -1]))
    assert policy.to_env_actions(np.array([[0.0, 1.0]])).tolist() == [[3, 0]]


@every_algorithm
def test_discrete_actions_of_several_dimensions(algorithm: type[HAPPO]) -> None:
    team = {
        "grid": spaces.MultiDiscrete(np.array([[2, 3], [2, 2]]), start=np.array([[0, 1], [-5, 0]])),
        "bits": spaces.MultiBinary([2, 3]),
        "both": spaces.Tuple(
            [spaces.MultiBinary([2, 2]), spaces.MultiDiscrete(np.array([[2], [3]]))]
        ),
    }
    env = RandomTeam(team)
    model = small(algorithm, env, seed=0)
    obs = dict.fromkeys(team, np.ones(3, np.float32))
    drawn: dict[str, list[Any]] = {agent: [] for agent in team}
    for _ in range(3):
        model.learn(32)
        for actions in (env.actions, *(model.predict(obs)[0] for _ in range(20))):
            for agent, space in team.items():
                assert space.contains(actions[agent]), (agent, actions[agent])
                drawn[agent].append(actions[agent])
    assert np.unique(np.stack(drawn["grid"])[:, 0, 1]).tolist() == [1, 2, 3]
    assert np.unique(np.stack(drawn["grid"])[:, 1, 0]).tolist() == [-5, -4]


def test_boxes_of_float64_whose_bounds_float32_overshoots() -> None:
    """
    float32(0.1) > 0.1, so that an action clipped to the rounded bound would be outside the space.
    """
    space = spaces.Box(-0.1, 0.1, (2,), np.float64)
    env = RandomTeam({"arm": space})
    model = small(HAPPO, env, policy_kwargs=dict(log_std_init=5.0), seed=0)
    for _ in range(20):
        actions, _ = model.predict({"arm": np.ones(3, np.float32)})
        assert space.contains(actions["arm"]) and (np.abs(actions["arm"]) > 0.09).any(), (
            "with this deviation, mostly at a bound"
        )
    for _ in range(5):
        model.learn(32)
        assert space.contains(env.actions["arm"])


# ---------------------------------------------------------------- standard deviations


def test_sigmoid_log_std_is_harls() -> None:
    """``std = y * sigmoid(x / x_coef)``, with ``x`` starting at ``x_coef``."""
    policy = make_policy(BOX, log_std_form="sigmoid", std_x_coef=2.0, std_y_coef=0.7)
    assert policy.log_std is not None and policy.log_std.tolist() == [2.0, 2.0]
    std = policy.get_distribution(th.zeros(1, 3)).distribution.stddev[0]  # type: ignore[union-attr]
    assert std.tolist() == pytest.approx([0.7 / (1 + np.exp(-1))] * 2)
    with th.no_grad():
        policy.log_std.copy_(th.tensor([1000.0, -1.0]))
    std = policy.get_distribution(th.zeros(1, 3)).distribution.stddev[0]  # type: ignore[union-attr]
    assert std.tolist() == pytest.approx([0.7, 0.7 / (1 + np.exp(0.5))]), "the sigmoid bounds it"


def test_log_std_as_a_parameter_is_sb3s() -> None:
    policy = make_policy(BOX, log_std_init=-1.0)
    std = policy.get_distribution(th.zeros(1, 3)).distribution.stddev[0]  # type: ignore[union-attr]
    assert std.tolist() == pytest.approx([np.exp(-1)] * 2)


@every_algorithm
@pytest.mark.parametrize("form", ["parameter", "sigmoid", "constant"])
def test_which_standard_deviations_are_learned(algorithm: type[HAPPO], form: str) -> None:
    env = RandomTeam({"arm": BOX, "leg": spaces.Discrete(2)})
    model = small(algorithm, env, policy_kwargs=dict(log_std_form=form, log_std_init=-0.5), seed=0)
    policy = model.policies["arm"]
    before = policy.effective_log_std().detach().clone()  # type: ignore[union-attr]
    assert model.policies["leg"].effective_log_std() is None
    model.learn(64)
    after = policy.effective_log_std()
    assert after is not None and th.equal(before, after) == (form == "constant")
    if form == "constant":
        assert after.tolist() == [-0.5, -0.5]
        assert not any("log_std" in name for name, _ in policy.named_parameters())


# ---------------------------------------------------------------- networks


def layers(policy: Any, kind: type[nn.Module]) -> list[Any]:
    return [layer for layer in policy.body if isinstance(layer, kind)]


def test_networks_as_asked() -> None:
    kwargs: dict[str, Any] = dict(
        net_arch=dict(pi=[5, 6], vf=[7]),
        activation_fn=nn.Tanh,
        input_layer_norm=True,
        layer_norm=True,
    )
    model = small(HAPPO, RandomTeam(PLAIN_SPACES), policy_kwargs=kwargs)
    for policy in model.policies.values():
        assert [layer.out_features for layer in layers(policy, nn.Linear)] == [5, 6]
        assert len(layers(policy, nn.Tanh)) == 2
        assert [layer.normalized_shape for layer in layers(policy, nn.LayerNorm)] == [
            (3,),
            (5,),
            (6,),
        ]
    value_net = model.critic.networks[0]
    assert [layer.out_features for layer in layers(value_net, nn.Linear)] == [7]
    assert [layer.normalized_shape for layer in layers(value_net, nn.LayerNorm)] == [(12,), (7,)]
    plain = small(HAPPO, RandomTeam(PLAIN_SPACES), policy_kwargs=dict(net_arch=[4]))
    assert not any(layers(policy, nn.LayerNorm) for policy in plain.policies.values())
    assert [
        layer.out_features for layer in layers(HAPPO(alike_team()).policies["agent_0"], nn.Linear)
    ] == [128, 128]
    no_hidden = small(HAPPO, alike_team(), policy_kwargs=dict(net_arch=[])).learn(32)
    assert not list(no_hidden.policies["agent_0"].body)


def test_initialisation() -> None:
    """
    Orthogonal, hidden layers with gain sqrt(2), outputs with their own gains; or PyTorch's own.
    """
    model = small(
        HAPPO,
        alike_team(1),
        policy_kwargs=dict(net_arch=[3, 3], output_gain=0.3, critic_kwargs=dict(output_gain=2.0)),
    )
    policy = model.policies["agent_0"]
    for layer, gain in ((policy.body[0], np.sqrt(2)), (policy.head, 0.3)):
        assert isinstance(layer, nn.Linear)
        assert th.allclose(layer.weight @ layer.weight.T, gain**2 * th.eye(3), atol=1e-5)
        assert not layer.bias.any()
    value_head = model.critic.networks[0].head
    assert isinstance(value_head, nn.Linear) and value_head.weight.norm().item() == pytest.approx(
        2.0, rel=1e-5
    )
    other = small(HAPPO, alike_team(1), policy_kwargs=dict(ortho_init=False)).policies["agent_0"]
    assert isinstance(other.head, nn.Linear) and other.head.bias.any()


def test_small_output_gain_starts_near_uniform() -> None:
    model = small(HAPPO, alike_team(1), seed=0)
    probs = model.policies["agent_0"].get_distribution(th.randn(20, 3)).distribution.probs  # type: ignore[union-attr]
    assert (probs - 1 / 3).abs().max() < 0.02


def test_agents_start_with_different_weights() -> None:
    model = small(HAPPO, alike_team(2), seed=0)
    assert not same(*(snapshot(policy) for policy in model.policies.values()))


class Halves(BaseFeaturesExtractor):
    """Sees the first number only."""

    def __init__(self, observation_space: spaces.Space, n: int = 1) -> None:
        super().__init__(observation_space, n)
        self.n = n

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return observations[:, : self.n]


def test_own_features_extractors_and_optimisers() -> None:
    kwargs: dict[str, Any] = dict(
        features_extractor_class=Halves,
        features_extractor_kwargs=dict(n=2),
        optimizer_class=th.optim.RMSprop,
        optimizer_kwargs=dict(alpha=0.9),
    )
    model = small(HAPPO, alike_team(), policy_kwargs=kwargs).learn(32)
    for network in [*model.policies.values(), *model.critic.networks]:
        assert isinstance(network.features_extractor, Halves) and network.body[0].in_features == 2
    for optimizer in (model.critic.optimizer, model.policies["agent_1"].optimizer):
        assert isinstance(optimizer, th.optim.RMSprop) and optimizer.param_groups[0]["alpha"] == 0.9


def test_overrides_for_one_agent_and_for_the_critic() -> None:
    model = small(
        HAPPO,
        RandomTeam({"arm": BOX, "leg": spaces.Discrete(2), "eye": BOX}),
        learning_rate=1e-3,
        policy_kwargs=dict(
            net_arch=[16],
            log_std_init=-1.0,
            agent_kwargs={
                "arm": dict(
                    net_arch=[4, 5], learning_rate=0.02, layer_norm=True, activation_fn=nn.Tanh
                ),
                "eye": dict(log_std_form="constant", rescale_actions=False),
            },
            critic_kwargs=dict(net_arch=[9], activation_fn=nn.ELU),
        ),
    ).learn(32)
    arm, leg, eye = model.policies.values()
    assert [layer.out_features for layer in layers(arm, nn.Linear)] == [4, 5]
    assert (
        len(layers(arm, nn.LayerNorm)) == 2
        and len(layers(arm, nn.Tanh)) == 2
        and not layers(leg, nn.Tanh)
    )
    assert [layer.out_features for layer in layers(leg, nn.Linear)] == [16]
    assert (
        arm.optimizer.param_groups[0]["lr"] == 0.02 and leg.optimizer.param_groups[0]["lr"] == 1e-3
    )
    assert model.critic.optimizer.param_groups[0]["lr"] == 1e-3
    assert arm.rescale_actions and not eye.rescale_actions and eye.log_std_form == "constant"
    value_net = model.critic.networks[0]
    assert [layer.out_features for layer in layers(value_net, nn.Linear)] == [9] and layers(
        value_net, nn.ELU
    )


# ---------------------------------------------------------------- kinds of observations


def test_every_observation_gets_sb3s_features_extractor() -> None:
    model = small(HAPPO, HeterogeneousTeam(), seed=0)
    kinds = {agent: type(policy.features_extractor) for agent, policy in model.policies.items()}
    assert kinds == {
        "camera": NatureCNN,
        "arm": CombinedExtractor,
        "crane": FlattenExtractor,
        "console": FlattenExtractor,
        "switch": FlattenExtractor,
    }
    assert isinstance(model.critic.networks[0].features_extractor, CombinedExtractor)
    collect(model)
    stored = model.rollout_buffer.observations
    assert stored["camera"].dtype == th.uint8 and stored["camera"].shape == (32, 1, 3, 36, 36)
    assert stored["camera"].max() > 1, "images are divided by 255 when they are used, not before"
    assert stored["switch"].dtype == th.int64 and stored["camera/action_mask"].dtype == th.int8


def test_one_hot_observations() -> None:
    policy = make_policy(spaces.Discrete(2), spaces.Discrete(4), net_arch=[])
    logits = policy.get_distribution(th.tensor([2])).distribution.logits  # type: ignore[union-attr]
    assert isinstance(policy.head, nn.Linear)
    assert th.allclose(
        logits[0], (policy.head.weight[:, 2] + policy.head.bias).log_softmax(0), atol=1e-6
    )


# ---------------------------------------------------------------- together or one by one


TEAMS: dict[str, Any] = {
    "alike": lambda: alike_team(),
    "Box": lambda: alike_team(space=BOX),
    "hybrid": lambda: alike_team(2, space=HYBRID),
    "masked": lambda: JointEnv(HeterogeneousTeam()),
    "numbers": lambda: alike_team(
        observation_spaces=dict.fromkeys(["agent_0", "agent_1", "agent_2"], spaces.Discrete(4))
    ),
    "mixed": lambda: JointEnv(
        RandomTeam(
            {**PLAIN_SPACES, "discrete_2": PLAIN_SPACES["discrete"], "box_2": PLAIN_SPACES["box"]}
        )
    ),
}


@pytest.mark.parametrize("team", TEAMS)
@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        dict(layer_norm=True, input_layer_norm=True, activation_fn=nn.Tanh),
        dict(log_std_form="sigmoid", share_parameters=True, append_agent_id=True),
        dict(agent_kwargs={"agent_1": dict(net_arch=[3])}),
        dict(net_arch=[], share_parameters=[["agent_0", "agent_1"]], append_agent_id=True),
    ],
    ids=["plain", "layer norms", "shared with ids", "override", "some with ids, without layers"],
)
def test_collecting_together_is_collecting_one_by_one(team: str, kwargs: dict[str, Any]) -> None:
    """
    Agents of one form are evaluated in one call: log-probabilities are those of the policies,
    actions those sent.
    """
    env = TEAMS[team]()
    if "agent_1" in str(kwargs) and "agent_1" not in env.agents:
        pytest.skip("there is no such agent")
    sent: list[Any] = []
    original = env.step

    def step(action: np.void) -> Any:
        sent.append(action.copy())
        return original(action)

    env.step = step
    model = small(HAPPO, env, policy_kwargs={"output_gain": 1.0, **kwargs}, seed=0)
    for layer in model.policy.modules():
        if isinstance(layer, nn.LayerNorm):  # at first they scale by one
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
    collect(model)
    for agent, policy in model.policies.items():
        rows = model.rollout_buffer.agent_data(agent, th.ones(32))
        with th.no_grad():
            log_prob, _ = policy.evaluate_actions(
                rows.observations, rows.actions, rows.action_masks
            )
        assert th.allclose(log_prob, rows.old_log_prob, atol=1e-4), agent
        raw = model.rollout_buffer.actions[agent][:, 0].numpy()
        assert str(policy.to_env_actions(raw).tolist()) == str(
            [action[agent].tolist() for action in sent]
        )


def test_boxes_that_print_alike_are_not_alike() -> None:
    bounds = {
        "narrow": np.array([0.40, 0.2], np.float32),
        "wide": np.array([0.44, 0.2], np.float32),
    }
    model = small(
        HAPPO, RandomTeam({name: spaces.Box(-high, high) for name, high in bounds.items()})
    )
    with np.printoptions(precision=1):
        team = BatchedActors(model.policy)
    assert model.env is not None
    first = model.env.reset()
    assert isinstance(first, dict)
    obs = {key: th.as_tensor(value) for key, value in first.items()}
    step = team(obs, model.policy.initial_states(1))
    joint = team.to_env_actions(
        step._replace(actions={name: th.full((1, 2), 5.0) for name in bounds})
    )
    for name, high in bounds.items():
        assert np.array_equal(joint[name][0], high)


def test_choices_are_drawn_as_likely_as_they_are() -> None:
    """And never an impossible one, whatever the random number."""
    th.manual_seed(0)
    logits = th.tensor([[0.0, 1.0, 2.0, -1.0], [3.0, 3.0, 3.0, 3.0]])
    masks = th.tensor([[1, 1, 1, 1], [0, 1, 1, 0]], dtype=th.int8)
    choices, log_probs = _choose(
        logits.repeat(100_000, 1), masks.repeat(100_000, 1), deterministic=False
    )
    expected = logits.masked_fill(masks == 0, -th.inf).softmax(dim=1)
    shares = th.stack([choices[row::2].bincount(minlength=4) / 100_000 for row in (0, 1)])
    assert th.allclose(shares, expected, atol=5e-3)
    assert th.allclose(
        log_probs, expected.log().repeat(100_000, 1).gather(1, choices[:, None])[:, 0]
    )
    assert _choose(logits, masks, deterministic=True)[0].tolist() == [2, 1]
    for number in (0.0, 1.0 - 2**-24):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(th, "rand", lambda *shape, number=number, **_: th.full(shape, number))
            assert set(
                _choose(logits[1:].repeat(9, 1) / 7, masks[1:].repeat(9, 1), deterministic=False)[
                    0
                ].tolist()
            ) <= {1, 2}


# ---------------------------------------------------------------- learning with hybrid actions


class Aim(ParallelEnv):
    """
    One step for two agents that each choose a tool and a pair of numbers. The reward of an agent is
    1 for tool 2 (of 1 to 3), minus the distance of the numbers from 0.5.
    """

    metadata: dict[str, Any] = {"name": "aim"}  # noqa: RUF012
    render_mode = None
    possible_agents = ["left", "right"]  # noqa: RUF012

    def observation_space(self, agent: str) -> spaces.Space:
        return VECTOR

    def action_space(self, agent: str) -> spaces.Space:
        return spaces.Tuple([spaces.Discrete(3, start=1), spaces.Box(0, 4, (2,), np.float32)])

    def _observations(self) -> dict[str, np.ndarray]:
        return {agent: np.ones(3, np.float32) for agent in self.possible_agents}

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        self.agents = self.possible_agents[:]
        return self._observations(), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, Any]) -> Any:
        rewards = {
            agent: float(tool == 2) - float(np.abs(aim - 0.5).mean())
            for agent, (tool, aim) in actions.items()
        }
        self.agents = []
        over = dict.fromkeys(self.possible_agents, True)
        return (
            self._observations(),
            rewards,
            over,
            dict.fromkeys(over, False),
            {agent: {} for agent in over},
        )


def test_hybrid_actions_are_learned() -> None:
    """
    The optimum is 1: the right tool, and the numbers where they should be, at -0.75 of the
    Gaussian's own range.
    """
    env = DummyVecEnv([lambda: JointEnv(Aim())] * 8)
    model = small(
        HAPPO, env, learning_rate=lambda progress: 2e-2 * progress, n_epochs=10, seed=0
    ).learn(12_000)
    actions, _ = model.predict(
        {agent: np.ones(3, np.float32) for agent in ("left", "right")}, deterministic=True
    )
    joint = Aim()
    joint.reset()
    rewards = joint.step(actions)[1]
    assert sum(rewards.values()) / 2 >= 0.95
