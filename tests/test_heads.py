"""Heads of actors: sizes, masks, encodings, log-probabilities, gradients, identities with SB3."""

import itertools
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution, make_proba_distribution
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.sac.policies import Actor as SACActor
from stable_baselines3.td3.policies import Actor as TD3Actor

from sb3_happo.common.distributions import kl_divergence
from sb3_happo.common.heads import GreedyHead, Head, HeadName, make_head
from sb3_happo.common.leaf_heads import gumbel_softmax

HEADS: list[HeadName] = ["gaussian", "squashed", "deterministic", "greedy"]
SAMPLING: list[HeadName] = ["gaussian", "squashed"]
SPACES: dict[str, spaces.Space] = {
    "box": spaces.Box(-1, 1, (3,), np.float32),
    "box_2d": spaces.Box(np.array([[-2.0, 0.1], [0, 1]]), np.array([[3, 0.5], [1, 9.0]])),
    "discrete": spaces.Discrete(4, start=-2),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
    "multi_discrete_2d": spaces.MultiDiscrete(
        np.array([[2, 3], [4, 2]]), start=np.array([[0, 5], [-1, 2]])
    ),
    "multi_binary": spaces.MultiBinary(3),
    "multi_binary_2d": spaces.MultiBinary([2, 2]),
    "dict": spaces.Dict(
        [
            ("turn", spaces.Discrete(3, start=5)),
            ("move", spaces.Tuple([spaces.Box(-1, 1, (2,)), spaces.MultiDiscrete([2, 3])])),
            ("lights", spaces.MultiBinary(2)),
            ("zoom", spaces.Box(0, 10, (1,))),
        ]
    ),
    "tuple": spaces.Tuple([spaces.MultiDiscrete([2, 2]), spaces.Discrete(3)]),
}
CHOOSING = {name: space for name, space in SPACES.items() if not name.startswith("box")}


def has_box(space: spaces.Space) -> bool:
    return "Box(" in str(space)


def cases(maskable: bool = False) -> list[Any]:
    """All pairs of a head and a space that it supports; those with action masks if asked for."""
    pairs = []
    for head, name in itertools.product(HEADS, SPACES):
        supported = head != "greedy" or not has_box(SPACES[name])
        if supported and not (maskable and name.startswith(("box", "multi_binary"))):
            pairs.append(pytest.param(head, name, id=f"{head}-{name}"))
    return pairs


class Layout:
    """
    The columns of an action space, written down by hand: one entry per raw column.

    :param space: The action space
    """

    def __init__(self, space: spaces.Space) -> None:
        self.kinds: list[str] = []
        self.sizes: list[int] = []
        self.starts: list[int] = []
        self.add(space)

    def add(self, space: spaces.Space) -> None:
        if isinstance(space, spaces.Dict):
            for part in space.spaces.values():
                self.add(part)
        elif isinstance(space, spaces.Tuple):
            for part in space.spaces:
                self.add(part)
        elif isinstance(space, spaces.Discrete):
            self.append("choice", int(space.n), int(space.start))
        elif isinstance(space, spaces.MultiDiscrete):
            for n, start in zip(space.nvec.ravel(), space.start.ravel(), strict=True):
                self.append("choice", int(n), int(start))
        else:
            kind = "box" if isinstance(space, spaces.Box) else "bit"
            for _ in range(int(np.prod(space.shape or (1,)))):
                self.append(kind, 1, 0)

    def append(self, kind: str, size: int, start: int) -> None:
        self.kinds.append(kind)
        self.sizes.append(size)
        self.starts.append(start)

    def encode(self, raw: th.Tensor, bit_pairs: bool = False) -> th.Tensor:
        """The encoded form of raw actions; with ``bit_pairs`` a bit is a one-hot of two."""
        rows = []
        for row in raw.tolist():
            encoded: list[float] = []
            for kind, size, value in zip(self.kinds, self.sizes, row, strict=True):
                if kind == "choice":
                    encoded.extend(float(option == value) for option in range(size))
                elif kind == "bit" and bit_pairs:
                    encoded.extend([1 - value, value])
                else:
                    encoded.append(value)
            rows.append(encoded)
        return th.tensor(rows)

    def maskable(self, encoded_bits: int) -> th.Tensor:
        """Which encoded columns an action mask covers, in order."""
        flags: list[bool] = []
        for kind, size in zip(self.kinds, self.sizes, strict=True):
            width = encoded_bits if kind == "bit" else size
            flags.extend([kind == "choice"] * width)
        return th.tensor(flags)

    def random_masks(self, batch: int) -> th.Tensor:
        """Action masks that leave at least one option of each choice."""
        choices = [
            size for kind, size in zip(self.kinds, self.sizes, strict=True) if kind == "choice"
        ]
        columns = []
        for size in choices:
            mask = th.rand(batch, size) < 0.5
            mask[th.arange(batch), th.randint(size, (batch,))] = True
            columns.append(mask)
        return th.cat(columns, dim=1).to(th.int8)


def raw_sample(space: spaces.Space) -> list[float]:
    """A sample of the environment's space as a row of raw columns."""

    def flat(part: Any, subspace: spaces.Space) -> list[float]:
        if isinstance(subspace, spaces.Dict):
            pairs = [(part[key], inner) for key, inner in subspace.spaces.items()]
        elif isinstance(subspace, spaces.Tuple):
            pairs = list(zip(part, subspace.spaces, strict=True))
        else:
            return [float(value) for value in np.ravel(part)]
        return [value for inner, inner_space in pairs for value in flat(inner, inner_space)]

    layout = Layout(space)
    values = flat(space.sample(), space)
    return [value - start for value, start in zip(values, layout.starts, strict=True)]


def log_std_of(head: Head) -> th.Tensor | None:
    return th.linspace(-0.5, 0.3, head.n_log_std) if head.n_log_std else None


def log_prob_of(distribution: Distribution, raw: th.Tensor, space: spaces.Space) -> th.Tensor:
    return distribution.log_prob(raw.flatten() if isinstance(space, spaces.Discrete) else raw)


def rows_of(actions: th.Tensor) -> th.Tensor:
    return actions.reshape(len(actions), -1).float()


# ---------------------------------------------------------------- sizes and forms


@pytest.mark.parametrize(("name", "space_name"), cases())
@pytest.mark.parametrize("masked", [False, True])
def test_sizes_and_shapes(name: HeadName, space_name: str, masked: bool) -> None:
    th.manual_seed(0)
    space, layout = SPACES[space_name], Layout(SPACES[space_name])
    head = make_head(name, space, masked)
    per_box = 2 if name == "squashed" else 1
    per_bit = 2 if name == "greedy" else 1
    widths = {"box": per_box, "bit": per_bit, "choice": 1}
    pairs = list(zip(layout.kinds, layout.sizes, strict=True))
    n_boxes = layout.kinds.count("box")
    assert head.n_params == sum(widths[kind] * size for kind, size in pairs)
    assert head.n_log_std == (n_boxes if name == "gaussian" else 0)
    assert head.n_encoded == sum(layout.sizes) + (per_bit - 1) * layout.kinds.count("bit")
    params = th.randn(6, head.n_params)
    masks = layout.random_masks(6) if masked and "choice" in layout.kinds else None
    distribution = head.distribution(params, log_std_of(head), masks)
    for deterministic in (False, True):
        raw = distribution.get_actions(deterministic)
        assert rows_of(raw).shape == (6, len(layout.kinds))
        log_prob = distribution.log_prob(raw)
        assert log_prob.shape == (6,) and log_prob.isfinite().all()
        encoded = head.encode(raw)
        assert encoded.shape == (6, head.n_encoded) and encoded.dtype == th.float32
        assert th.equal(encoded, layout.encode(rows_of(raw), bit_pairs=name == "greedy"))
        assert th.equal(head.decode(encoded), rows_of(raw))
    assert th.allclose(head.mode(params, masks), head.encode(distribution.mode()))
    entropy = distribution.entropy()
    if name == "squashed" and n_boxes:
        assert entropy is None  # not the entropy of the other parts alone
    else:
        assert entropy is not None and entropy.shape == (6,)


@pytest.mark.parametrize("name", SPACES)
def test_encoding_of_actions_of_the_environment(name: str) -> None:
    space = SPACES[name]
    space.seed(0)
    raw = th.tensor([raw_sample(space) for _ in range(20)])
    for head in (make_head("gaussian", space), make_head("squashed", space, masked=True)):
        encoded = head.encode(raw)
        assert th.equal(encoded, Layout(space).encode(raw))
        assert th.equal(head.decode(encoded), raw)


def test_heads_can_be_pickled() -> None:
    """They are part of policies that subprocesses receive."""
    for name in SAMPLING:
        head = make_head(name, SPACES["dict"], masked=True)
        copy = pickle.loads(pickle.dumps(head))
        params = th.randn(5, head.n_params)
        assert th.equal(copy.mode(params), head.mode(params))


# ---------------------------------------------------------------- masks


@pytest.mark.parametrize(("name", "space_name"), cases(maskable=True))
def test_illegal_choices_are_never_taken(name: HeadName, space_name: str) -> None:
    th.manual_seed(0)
    space, layout = SPACES[space_name], Layout(SPACES[space_name])
    head = make_head(name, space, masked=True)
    params, masks = 3 * th.randn(500, head.n_params), layout.random_masks(500)
    assert (masks == 0).any()
    log_std = log_std_of(head)
    illegal = th.zeros(500, head.n_encoded)
    illegal[:, layout.maskable(2 if name == "greedy" else 1)] = (masks == 0).float()
    distribution = head.distribution(params, log_std, masks)
    drawn = [head.encode(distribution.sample()), head.encode(distribution.mode())]
    drawn.append(head.mode(params, masks))
    if name == "greedy":
        assert (head.values(params, masks)[illegal == 1] < -1e7).all()
    else:
        drawn.append(head.rsample(params, log_std, masks)[0])
    for encoded in drawn:
        assert (encoded * illegal).sum() == 0
    if head.n_combinations < 200:
        expansion = head.expand(params, log_std, masks)
        hits = (expansion.actions * illegal.unsqueeze(1)).sum(dim=2)
        assert (expansion.probs[hits > 0] == 0).all()
        assert th.allclose(expansion.probs.sum(dim=1), th.ones(500), atol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_gradients_stay_finite_under_masks(name: HeadName) -> None:
    head = make_head(name, SPACES["tuple"], masked=True)
    params = th.randn(3, head.n_params, requires_grad=True)
    # One legal option per choice, all, and none at all, as of an agent that has terminated
    masks = th.tensor([[1, 0, 0, 1, 0, 1, 0], [1] * 7, [0] * 7])
    if name == "greedy":
        outputs = [head.values(params, masks)]
    else:
        outputs = list(head.rsample(params, None, masks))
        outputs.extend(head.probabilities(params, masks))
        expansion = head.expand(params, None, masks)
        outputs.append(expansion.probs * expansion.log_probs)
    outputs.append(head.mode(params, masks))
    (gradient,) = th.autograd.grad(th.cat([output.flatten() for output in outputs]).sum(), params)
    assert all(output.isfinite().all() for output in outputs) and gradient.isfinite().all()


def test_masks_that_do_not_fit_are_refused() -> None:
    space = spaces.Discrete(3)
    params = th.zeros(2, 3)
    for name in HEADS:
        with pytest.raises(ValueError, match=r"shape \(2, 4\).*3 choices"):
            make_head(name, space, masked=True).mode(params, th.ones(2, 4))
        with pytest.raises(ValueError, match="masked=True"):
            make_head(name, space).distribution(params, None, th.ones(2, 3))


# ---------------------------------------------------------------- identities with SB3


@pytest.mark.parametrize("name", [name for name in SPACES if name not in ("dict", "tuple")])
def test_gaussian_head_is_sb3s_distribution(name: str) -> None:
    """For plain spaces of one dimension SB3 has the distribution itself: same seed, same draws."""
    space = SPACES[name]
    if isinstance(space, spaces.MultiDiscrete):
        space = spaces.MultiDiscrete(space.nvec.ravel())
    if isinstance(space, spaces.MultiBinary):
        space = spaces.MultiBinary(int(np.prod(space.shape)))
    head = make_head("gaussian", space)
    th.manual_seed(0)
    params, log_std = th.randn(50, head.n_params), log_std_of(head)
    theirs = make_proba_distribution(space)
    theirs.proba_distribution(params, *([] if log_std is None else [log_std]))
    ours = head.distribution(params, log_std)
    th.manual_seed(1)
    actions = ours.sample()
    th.manual_seed(1)
    assert th.equal(actions, theirs.sample())
    assert th.equal(ours.log_prob(actions), theirs.log_prob(actions))
    assert th.equal(ours.mode(), theirs.mode())


def sb3_actor(kind: type[Any]) -> tuple[Any, th.Tensor]:
    th.manual_seed(0)
    space = spaces.Box(-1, 1, (5,), np.float32)
    extractor = FlattenExtractor(space)
    actor = kind(space, SPACES["box"], [16], extractor, features_dim=5)
    return actor, 3 * th.randn(200, 5)


def test_squashed_head_is_sacs() -> None:
    actor, obs = sb3_actor(SACActor)
    with th.no_grad():
        actor.log_std.weight.mul_(200)  # beyond both bounds of the deviations
        latent = actor.latent_pi(obs)
        params = th.cat([actor.mu(latent), actor.log_std(latent)], dim=1)
        assert params[:, 3:].min() < -20 and params[:, 3:].max() > 2
        head = make_head("squashed", SPACES["box"])
        th.manual_seed(1)
        actions, log_prob = head.rsample(params)
        th.manual_seed(1)
        their_actions, their_log_prob = actor.action_log_prob(obs)
        assert th.allclose(actions, their_actions, atol=1e-6)
        assert th.allclose(log_prob, their_log_prob, rtol=1e-6, atol=1e-6)
        th.manual_seed(1)
        distribution = head.distribution(params)
        assert th.allclose(distribution.sample(), their_actions, atol=1e-6)
        their_log_prob = actor.action_dist.log_prob(their_actions)
        assert th.allclose(distribution.log_prob(their_actions), their_log_prob)
        assert th.allclose(distribution.mode(), actor(obs, deterministic=True), atol=1e-6)


def test_deterministic_head_is_td3s() -> None:
    actor, obs = sb3_actor(TD3Actor)
    params = actor.mu[:-1](obs)  # without the last tanh
    head = make_head("deterministic", SPACES["box"])
    assert th.equal(head.mode(params), actor(obs))
    assert th.equal(head.distribution(params).sample(), actor(obs))
    actions, log_prob = head.rsample(params)
    assert th.equal(actions, actor(obs)) and (log_prob == 0).all()


# ---------------------------------------------------------------- log-probabilities


def test_squashed_density_is_that_of_the_change_of_variables() -> None:
    """Its integral over (-1, 1), by the trapezoidal rule, is 1, and it is finite at the bounds."""
    head = make_head("squashed", spaces.Box(-1, 1, (1,), np.float32))
    points = th.linspace(-1, 1, 20_001, dtype=th.float64).unsqueeze(1)
    for mean, log_std in ((0.0, -0.5), (0.7, -1.0), (-0.4, -2.0)):
        params = th.tensor([[mean, log_std]], dtype=th.float64).expand(len(points), -1)
        density = head.distribution(params).log_prob(points).exp()
        assert th.trapezoid(density, points[:, 0]).item() == pytest.approx(1.0, abs=1e-3)
    for log_std in (-50.0, 0.0, 50.0):
        params = th.tensor([[0.3, log_std]] * 2)
        assert head.distribution(params).log_prob(th.tensor([[-1.0], [1.0]])).isfinite().all()


def by_hand(space_name: str, params: th.Tensor, log_std: th.Tensor, raw: th.Tensor) -> th.Tensor:
    """Log-probability of raw actions of "dict" under means, logits and deviations per row."""
    turn, mean, first, second, bits, zoom = params.split([3, 2, 2, 3, 2, 1], dim=1)
    assert space_name == "dict"
    total = th.zeros(len(raw))
    for logits, column in ((turn, 0), (first, 3), (second, 4)):
        index = raw[:, [column]].long()
        total = total + (logits - logits.logsumexp(dim=1, keepdim=True)).gather(1, index)[:, 0]
    for means, stds, columns in ((mean, log_std[:, :2], [1, 2]), (zoom, log_std[:, 2:], [7])):
        z = (raw[:, columns] - means) / stds.exp()
        total = total - (0.5 * z**2 + stds + 0.5 * np.log(2 * np.pi)).sum(dim=1)
    ones = bits.sigmoid()
    chosen = th.where(raw[:, 5:7] == 1, ones, 1 - ones)
    return total + chosen.log().sum(dim=1)


def test_hybrid_log_probability_of_the_gaussian_head() -> None:
    th.manual_seed(0)
    head = make_head("gaussian", SPACES["dict"])
    params, log_std = th.randn(40, 13), th.tensor([0.1, -0.3, 0.2])
    encoded, log_prob = head.rsample(params, log_std)
    raw = head.decode(encoded)
    expected = by_hand("dict", params, log_std.expand(40, -1), raw)
    assert th.allclose(log_prob, expected, atol=1e-5)
    assert th.allclose(head.distribution(params, log_std).log_prob(raw), expected, atol=1e-5)


def test_hybrid_log_probability_of_the_squashed_head() -> None:
    """The Gaussians' below tanh, less the logarithm of its derivative."""
    th.manual_seed(0)
    head = make_head("squashed", SPACES["dict"])
    turn, mean, log_std, rest = th.randn(40, 3), th.randn(40, 2), th.randn(40, 2), th.randn(40, 7)
    zoom, zoom_log_std = th.randn(40, 1), th.randn(40, 1)
    params = th.cat([turn, mean, log_std, rest, zoom, zoom_log_std], dim=1)
    encoded, log_prob = head.rsample(params)
    raw = head.decode(encoded)
    boxes = [1, 2, 7]
    assert (raw[:, boxes].abs() <= 1).all()
    keep = (raw[:, boxes].abs() < 0.999).all(dim=1)  # where the inverse of tanh is accurate
    assert keep.sum() > 20
    below = raw.clone()
    below[:, boxes] = raw[:, boxes].clamp(-0.9999, 0.9999).atanh()
    plain = th.cat([turn, mean, rest, zoom], dim=1)
    expected = by_hand("dict", plain, th.cat([log_std, zoom_log_std], dim=1), below)
    expected = expected - (1 - raw[:, boxes] ** 2 + 1e-6).log().sum(dim=1)
    assert th.allclose(log_prob[keep], expected[keep], atol=1e-2)
    again = head.distribution(params).log_prob(raw)
    assert th.allclose(again[keep], expected[keep], atol=1e-2)


@pytest.mark.parametrize("name", SAMPLING)
@pytest.mark.parametrize("space_name", CHOOSING)
def test_differentiable_samples_have_the_distributions_log_probability(
    name: HeadName, space_name: str
) -> None:
    th.manual_seed(0)
    space, layout = SPACES[space_name], Layout(SPACES[space_name])
    head = make_head(name, space, masked=True)
    params = 0.5 * th.randn(100, head.n_params)
    masks = layout.random_masks(100) if "choice" in layout.kinds else None
    log_std = log_std_of(head)
    encoded, log_prob = head.rsample(params, log_std, masks)
    raw = head.decode(encoded)
    again = log_prob_of(head.distribution(params, log_std, masks), raw, space)
    if name == "squashed":
        # Where the inverse of tanh is accurate; one-hots and bits are whole numbers
        keep = (encoded.abs() < 0.999).logical_or(encoded == 1).all(dim=1)
        assert keep.sum() > 50
        log_prob, again = log_prob[keep], again[keep]
    assert th.allclose(log_prob, again, atol=1e-2 if has_box(space) else 1e-5)


@pytest.mark.parametrize("space_name", ["box", "dict"])
def test_divergence_of_squashed_heads(space_name: str) -> None:
    """The exact one is the mean over samples of the difference of log-probabilities."""
    th.manual_seed(0)
    head = make_head("squashed", SPACES[space_name])
    old, new = 0.3 * th.randn(1, head.n_params), 0.3 * th.randn(1, head.n_params)
    exact = kl_divergence(head.distribution(old), head.distribution(new)).item()
    many = head.distribution(old.expand(50_000, -1))
    actions = many.sample()
    others = head.distribution(new.expand(50_000, -1))
    estimate = (many.log_prob(actions) - others.log_prob(actions)).mean().item()
    assert exact == pytest.approx(estimate, rel=0.05, abs=0.02)


# ---------------------------------------------------------------- one action per observation


@pytest.mark.parametrize("name", ["deterministic", "greedy"])
def test_points_have_probability_one(name: HeadName) -> None:
    head = make_head(name, SPACES["tuple"])
    distribution = head.distribution(th.randn(9, head.n_params))
    actions = distribution.sample()
    assert th.equal(actions, distribution.mode())
    assert (distribution.log_prob(actions) == 0).all()
    entropy = distribution.entropy()
    assert entropy is not None and (entropy == 0).all()
    others = actions.clone()
    others[:, 0] = 1 - others[:, 0]
    assert (distribution.log_prob(others) == -th.inf).all()
    with pytest.raises(TypeError, match="KL divergence"):
        kl_divergence(distribution, distribution)


def test_greedy_choices() -> None:
    head = make_head("greedy", spaces.MultiDiscrete([3, 2]), masked=True)
    values = th.tensor([[1.0, 1.0, 0.0, 5.0, 5.0], [0.0, 2.0, 1.0, -9.0, -8.0]])
    assert head.distribution(values).mode().tolist() == [[0, 0], [1, 1]]
    masks = th.tensor([[0, 1, 1, 1, 1], [1, 0, 1, 1, 0]])
    assert head.distribution(values, None, masks).sample().tolist() == [[1, 0], [2, 0]]
    legal = head.values(values, masks)
    assert th.equal(legal[masks == 1], values[masks == 1]) and (legal[masks == 0] == -1e8).all()
    raw = th.tensor([[2.0, 1.0], [0.0, 0.0]])
    assert (head.values(values) * head.encode(raw)).sum(dim=1).tolist() == [5.0, -9.0]
    expansion = head.expand(values, None, masks)
    taken = (expansion.actions * expansion.probs.unsqueeze(2)).sum(dim=1)
    assert th.equal(taken, head.mode(values, masks)) and taken.tolist()[0] == [0, 1, 0, 1, 0]
    first, second = head.probabilities(values, masks)
    assert first.tolist() == [[0, 1, 0], [0, 0, 1]] and second.tolist() == [[1, 0], [1, 0]]


def test_greedy_choices_differ_by_the_last_digit() -> None:
    """A softmax would round the difference away."""
    values = th.tensor([[100.0, np.nextafter(np.float32(100), np.float32(101))]])
    assert make_head("greedy", spaces.Discrete(2)).distribution(values).mode().item() == 1


def test_greedy_bits_are_choices_between_two_values() -> None:
    head = make_head("greedy", spaces.MultiBinary(2))
    assert head.n_params == head.n_encoded == 4
    values = th.tensor([[1.0, 2.0, 0.5, 0.0]])
    raw = head.distribution(values).mode()
    assert raw.tolist() == [[1, 0]]
    assert (head.values(values) * head.encode(raw)).sum().item() == 2.5


def test_refusals_name_the_remedy() -> None:
    with pytest.raises(TypeError, match=r"part 'move/0'.*'squashed' or 'deterministic'"):
        make_head("greedy", SPACES["dict"])
    with pytest.raises(TypeError, match="infinitely many"):
        GreedyHead(SPACES["box"])
    with pytest.raises(NotImplementedError, match="'deterministic'"):
        make_head("greedy", spaces.Discrete(2)).rsample(th.zeros(1, 2))
    with pytest.raises(NotImplementedError, match="use the head 'greedy'"):
        make_head("squashed", spaces.Discrete(2)).values(th.zeros(1, 2))
    with pytest.raises(ValueError, match="Did you mean 'squashed'"):
        make_head("squash", spaces.Discrete(2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="temperature"):
        make_head("squashed", spaces.Discrete(2)).rsample(th.zeros(1, 2), temperature=0.0)
    with pytest.raises(ValueError, match="log_std"):
        make_head("gaussian", SPACES["box"]).rsample(th.zeros(1, 3))


# ---------------------------------------------------------------- gradients


def gradient_of(function: Callable[[th.Tensor], th.Tensor], params: th.Tensor) -> th.Tensor:
    params = params.clone().requires_grad_()
    return th.autograd.grad(function(params), params)[0]


def test_the_modes_gradient_is_that_of_the_probabilities() -> None:
    th.manual_seed(0)
    head = make_head("deterministic", spaces.Tuple([spaces.Discrete(3), spaces.MultiBinary(2)]))
    params, weights = th.randn(4, 5), th.randn(4, 5)
    gradient = gradient_of(lambda p: (head.mode(p) * weights).sum(), params)

    def relaxed(p: th.Tensor) -> th.Tensor:
        return (th.cat([p[:, :3].softmax(dim=1), p[:, 3:].sigmoid()], dim=1) * weights).sum()

    assert th.allclose(gradient, gradient_of(relaxed, params), atol=1e-6)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 3.0])
def test_a_straight_through_samples_gradient_is_the_softmaxs(temperature: float) -> None:
    """Softmax of the logits plus Gumbel noise (recovered from the seed), over the temperature."""
    th.manual_seed(0)
    logits, weights = th.randn(8, 4), th.randn(8, 4)

    def drawn(p: th.Tensor) -> th.Tensor:
        th.manual_seed(1)
        return (gumbel_softmax(p, temperature) * weights).sum()

    def relaxed(p: th.Tensor) -> th.Tensor:
        th.manual_seed(1)
        noise = -th.empty_like(p).exponential_().log()
        return (((p + noise) / temperature).softmax(dim=1) * weights).sum()

    assert th.allclose(gradient_of(drawn, logits), gradient_of(relaxed, logits), atol=1e-6)


@pytest.mark.parametrize("name", ["squashed", "deterministic"])
def test_every_output_gets_a_gradient(name: HeadName) -> None:
    th.manual_seed(0)
    head = make_head(name, SPACES["dict"])

    def loss(p: th.Tensor) -> th.Tensor:
        actions, log_prob = head.rsample(p)
        return (actions * th.arange(1, head.n_encoded + 1)).sum() + log_prob.sum()

    gradient = gradient_of(loss, 0.1 * th.randn(50, head.n_params))
    assert gradient.isfinite().all() and (gradient.abs().sum(dim=0) > 0).all()


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.MultiBinary(3)], ids=str)
def test_the_log_probability_of_samples_lowers_and_raises_the_entropy(space: spaces.Space) -> None:
    """Its mean gradient points along that of minus the entropy, which the score alone would not."""
    th.manual_seed(0)
    head = make_head("squashed", space)
    params = th.tensor([[1.5, 0.0, -0.5]])

    def mean_log_prob(p: th.Tensor) -> th.Tensor:
        return head.rsample(p.expand(50_000, -1), temperature=0.5)[1].mean()

    def minus_entropy(p: th.Tensor) -> th.Tensor:
        entropy = head.distribution(p).entropy()
        assert entropy is not None
        return -entropy.sum()

    drawn, exact = gradient_of(mean_log_prob, params), gradient_of(minus_entropy, params)
    assert th.cosine_similarity(drawn, exact).item() > 0.95
    assert 0.5 < (drawn.norm() / exact.norm()).item() < 2.0


# ---------------------------------------------------------------- probabilities and expectations


@pytest.mark.parametrize("temperature", [0.5, 2.0])
@pytest.mark.parametrize("name", ["squashed", "deterministic"])
def test_samples_follow_the_probabilities(name: HeadName, temperature: float) -> None:
    th.manual_seed(0)
    space = spaces.Tuple(
        [spaces.Discrete(3), spaces.MultiBinary(2), spaces.MultiDiscrete([2, 3]), spaces.Box(-1, 1)]
    )
    head = make_head(name, space, masked=True)
    params = th.randn(1, head.n_params)
    masks = th.tensor([[1, 0, 1, 1, 1, 0, 1, 1]])
    n = 40_000
    expanded, many_masks = params.expand(n, -1), masks.expand(n, -1)
    mean = head.rsample(expanded, None, many_masks, temperature)[0].mean(dim=0)[:10]
    turn, one, two, first, second = head.probabilities(params, masks)
    expected = th.cat([turn[0], one[0, 1:], two[0, 1:], first[0], second[0]])
    assert th.allclose(mean, expected, atol=4 * 0.5 / n**0.5)
    assert turn[0, 1] == 0 and second[0, 0] == 0
    assert th.allclose(one[0, 1], params[0, 3].sigmoid()) and one.sum().item() == pytest.approx(1)


def test_expansion_of_choices_by_hand() -> None:
    th.manual_seed(0)
    head = make_head(
        "squashed", spaces.Tuple([spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(1)])
    )
    params = th.randn(4, 6)
    expansion = head.expand(params)
    assert head.factors == [2, 3, 2] and head.n_combinations == 12
    assert expansion.actions.shape == (4, 12, 6) and expansion.probs.shape == (4, 12)
    first, second = params[:, :2].softmax(dim=1), params[:, 2:5].softmax(dim=1)
    on = params[:, 5].sigmoid()
    for index, (i, j, bit) in enumerate(itertools.product(range(2), range(3), range(2))):
        encoded = th.cat([th.eye(2)[i], th.eye(3)[j], th.tensor([float(bit)])])
        assert (expansion.actions[:, index] == encoded).all()
        expected = first[:, i] * second[:, j] * (on if bit else 1 - on)
        assert th.allclose(expansion.probs[:, index], expected)
        assert th.allclose(expansion.log_probs[:, index], expected.log(), atol=1e-5)


@pytest.mark.parametrize("name", [*SAMPLING, "deterministic"])
@pytest.mark.parametrize("space_name", ["discrete", "multi_binary", "dict"])
def test_exact_expectations_are_the_mean_over_samples(name: HeadName, space_name: str) -> None:
    th.manual_seed(0)
    space = SPACES[space_name]
    head = make_head(name, space)
    params, log_std = 0.5 * th.randn(1, head.n_params), log_std_of(head)
    network = th.nn.Sequential(th.nn.Linear(head.n_encoded, 8), th.nn.Tanh(), th.nn.Linear(8, 1))
    n = 20_000
    with th.no_grad():
        actions, log_prob = head.rsample(params.expand(n, -1), log_std)
        values = network(actions).squeeze(1) + 0.3 * log_prob
        n_rows = 4_000 if has_box(space) else 1
        expansion = head.expand(params.expand(n_rows, -1), log_std)
        table = network(expansion.actions).squeeze(2) + 0.3 * expansion.log_probs
        exact = (expansion.probs * table).sum(dim=1).mean()
    error = values.std() * (1 / n + (1 / n_rows if has_box(space) else 0)) ** 0.5
    assert (values.mean() - exact).abs() < 4 * error


def test_expansion_of_boxes_and_of_too_many_choices() -> None:
    th.manual_seed(0)
    head = make_head("squashed", SPACES["box"])
    params = th.randn(5, 6)
    th.manual_seed(1)
    expansion = head.expand(params)
    th.manual_seed(1)
    actions, log_prob = head.rsample(params)
    assert th.equal(expansion.actions[:, 0], actions) and th.equal(
        expansion.log_probs[:, 0], log_prob
    )
    assert (expansion.probs == 1).all() and expansion.probs.shape == (5, 1)
    large = make_head("squashed", spaces.MultiBinary(70))
    assert large.n_combinations == 2**70
    with pytest.raises(ValueError, match="use rsample"):
        large.expand(th.zeros(1, 70))
