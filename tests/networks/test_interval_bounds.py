"""Interval bounds of whole networks: no image of the ball leaves them, and where they are exact."""

import dataclasses
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise, product
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import busy, jit

from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.networks import compaction, interval_bounds, masks, register_node
from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.cuba_lif import CubaLIF
from ccsrp_jax.networks.interval_bounds import ball, margin_bounds, propagate
from ccsrp_jax.networks.intervals import UNIT, Interval, linear
from ccsrp_jax.networks.neurons import LIF
from ccsrp_jax.networks.node_base import Node
from ccsrp_jax.networks.nodes import (
    Add,
    Concat,
    Conv,
    Dense,
    DepthwiseConv,
    Dropout,
    Flatten,
    GlobalPool,
    Norm,
    Pool,
    Spike,
)
from ccsrp_jax.networks.spiking_network import SpikingNetwork
from ccsrp_jax.utils.errors import InputError

NODES = (
    Conv("stem", "image", 6, bias=True),
    Norm("stem.norm", "stem"),
    Spike("stem.lif", "stem.norm"),
    DepthwiseConv("deep", "stem.lif"),
    Conv("point", "deep", 6, kernel=1),
    Norm("point.norm", "point"),
    Add("sum", "point.norm", "stem.norm"),  # currents: one of them constant in time
    Spike("sum.lif", "sum"),
    Pool("max", "sum.lif", 2, "max"),
    Pool("avg", "stem.lif", 2, "avg"),
    Add("spikes", "max", "avg"),
    Concat("cat", "spikes", ("max",)),
    Dropout("drop", "cat", 0.4),
    Conv("mix", "drop", 7, stride=2),
    Norm("mix.norm", "mix"),
    Spike("mix.lif", "mix.norm"),
    GlobalPool("mean", "cat"),
    Flatten("means", "mean"),
    Flatten("flat", "mix.lif"),
    Concat("all", "flat", ("means",)),
    Dense("hidden", "all", 9),
    Spike("hidden.lif", "hidden"),
    Dense("classifier", "hidden.lif", 10),
)
MIXED = Architecture(NODES, (8, 8, 1), 2, LIF(), (0.3,), (0.4,))
NEURONS = (
    LIF(3.0, 0.4, "soft", learned=True),
    CubaLIF(2.0, 1.5, 0.5, "soft_delayed"),
)
KERNELS = ("point", "hidden")
EPS = 0.03


def masks_of(architecture, seed):
    """Masks of filters and of single weights, of the same names for every seed; 0 keeps all."""
    random = np.random.default_rng(seed)
    whole = masks.ones(architecture)
    tree = masks.random(jax.random.key(seed), architecture, 0.7) if seed else whole
    for name in KERNELS:
        shape = masks.kernel_shapes(architecture)[name]
        tree[masks.kernel(name)] = jnp.asarray(random.random(shape) < (0.8 if seed else 2), float)
    return {name: jnp.asarray(mask, jnp.float32) for name, mask in tree.items()}


@cache
def bounded(neuron):
    """Architecture, variables, and compiled functions for bounds and activity."""
    architecture = dataclasses.replace(MIXED, neuron=neuron)

    @partial(jit, static_argnames="unit")
    def bound(variables, images, labels, eps, tree, unit=UNIT):
        found = propagate(architecture, variables, ball(images, eps, unit), tree, unit=unit)
        margins = margin_bounds(architecture, variables, found, labels, tree, unit=unit)
        spikes = {name: found.values[name] for name in found.potentials}
        return spikes, found.potentials, margins

    network = partial(SpikingNetwork(architecture).apply, activity=True)
    variables = busy(architecture, seed=3)
    scale = variables["params"]["point.norm"]["scale"]
    variables["params"]["point.norm"]["scale"] = scale * jnp.array([1, -1] * 3)
    return architecture, variables, bound, jit(network)


def check_inside(found, logits, active, labels, copies):
    """That all copies of the images are inside the bounds of the images."""
    spikes, potentials, margins = found
    for intervals, values in ((spikes, active.spikes), (potentials, active.potentials)):
        assert intervals.keys() == values.keys()
        for name, (low, high) in intervals.items():
            value = values[name].reshape(values[name].shape[0], copies, *low.shape[1:])
            assert (value >= low[:, None]).all(), name
            assert (value <= high[:, None]).all(), name
    logits = np.asarray(logits).reshape(copies, len(labels), -1)
    own = np.take_along_axis(logits, np.asarray(labels)[None, :, None], -1)
    assert (logits - own <= margins).all()


@pytest.mark.parametrize("neuron", NEURONS, ids=lambda neuron: type(neuron).__name__ + neuron.reset)
@pytest.mark.parametrize("seed", range(3))
def test_no_image_of_the_ball_leaves_the_intervals(neuron, seed, images):
    architecture, variables, bound, network = bounded(neuron)
    random, x, tree = np.random.default_rng(seed), images[:4], masks_of(architecture, seed)
    labels, eps = jnp.arange(4), (0.002, 0.01, EPS)[seed]
    found = bound(variables, x, labels, eps, tree)
    moves = random.uniform(-1, 1, (64, *x.shape)).astype(np.float32)
    moves[:32] = np.sign(moves[:32])
    moves[:4] = np.array([-1, 1, 0, 0.5])[:, None, None, None, None]
    points = jnp.clip(x + eps * moves, 0, 1).reshape(-1, *x.shape[1:])
    logits, active = network(variables, points, tree)
    check_inside(found, logits, active, labels, 64)
    unstable = [float((high > low).mean()) for low, high in found[0].values()]
    assert min(unstable[:2]) > 0 and max(unstable[:2]) < 0.5  # they say something


def test_no_attack_leaves_the_intervals(images):
    architecture, variables, bound, network = bounded(NEURONS[0])
    x, labels = images[:4], jnp.arange(4)
    attacked = PGD(EPS, 4)(
        Classifier(architecture), (variables, None), x, labels, jax.random.key(0)
    )
    found = bound(variables, x, labels, EPS, masks_of(architecture, 0))
    points = jnp.concatenate([x, attacked] * 32)  # as many as above: one program
    check_inside(found, *network(variables, points, masks_of(architecture, 0)), labels, 64)
    assert (attacked != x).any()


def test_images_that_do_not_move_have_points_for_intervals(images):
    architecture, variables, bound, network = bounded(NEURONS[0])
    tree, labels = masks_of(architecture, 1), jnp.arange(4)
    logits, active = network(variables, jnp.tile(images[:4], (64, 1, 1, 1)), tree)
    spikes, potentials, margins = bound(variables, images[:4], labels, 0.0, tree, unit=0.0)
    for name, (low, high) in spikes.items():
        np.testing.assert_array_equal(low, high)
        np.testing.assert_array_equal(low, active.spikes[name][:, :4])
        for end in potentials[name]:
            np.testing.assert_allclose(end, active.potentials[name][:, :4], atol=1e-5)
    own = jnp.take_along_axis(logits[:4], labels[:, None], 1)
    np.testing.assert_allclose(margins, logits[:4] - own, atol=1e-5)
    slack = bound(variables, images[:4], labels, 0.0, tree)
    assert 0 < float((slack[2] - margins).max()) < 0.01  # that of rounding


def test_wider_balls_have_wider_intervals(images):
    architecture, variables, bound, _ = bounded(NEURONS[0])
    tree, labels = masks_of(architecture, 0), jnp.arange(4)
    radii = (0.0, 0.001, 0.01, EPS, 0.3)
    found = [bound(variables, images[:4], labels, eps, tree) for eps in radii]
    for small, large in pairwise(found):
        for inner, outer, rounding in zip(small[:2], large[:2], (0, 1e-5), strict=True):
            for name, (low, high) in inner.items():
                assert (low >= outer[name].lower - rounding).all()
                assert (high <= outer[name].upper + rounding).all()
        assert (small[2] <= large[2] + 1e-5).all()


def test_a_masked_network_has_the_bounds_of_its_compact_twin(images):
    architecture, variables, bound, _ = bounded(NEURONS[0])
    tree, labels = masks_of(architecture, 1), jnp.arange(4)
    spikes, potentials, margins = bound(variables, images[:4], labels, 0.01, tree)
    smaller, weights = compaction.compact(architecture, variables, tree)
    assert smaller != architecture
    found = jit(partial(propagate, smaller))(weights, ball(images[:4], 0.01))
    kept = masks.kept_channels(architecture, tree)
    for name, v in found.potentials.items():
        for end, twin in zip(potentials[name], v, strict=True):
            np.testing.assert_allclose(end[..., kept[name]], twin, atol=1e-3)
        same = [
            (end[..., kept[name]] == twin).mean()
            for end, twin in zip(spikes[name], found.values[name], strict=True)
        ]
        assert min(same) > 0.999
    twin = margin_bounds(smaller, weights, found, labels)
    np.testing.assert_allclose(margins, twin, atol=1e-3)


@partial(jit, static_argnums=0)
def bounds_and_margins(architecture, variables, images, labels, eps):
    """In real numbers."""
    found = propagate(architecture, variables, ball(images, eps, 0.0), unit=0.0)
    return found, margin_bounds(architecture, variables, found, labels, unit=0.0)


@partial(jit, static_argnums=0)
def run(architecture, variables, images):
    return SpikingNetwork(architecture).apply(variables, images, activity=True)


def few_inputs(seed, middle=()):
    nodes = (
        Flatten("flat", "image"),
        *middle,
        Dense("out", middle[-1].name if middle else "flat", 3),
    )
    architecture = Architecture(nodes, (2, 2, 1), 1, LIF(2.0, 0.3), (0.3,), (0.4,))
    return architecture, busy(architecture, seed)


def corners(image, eps):
    low, high = np.clip(image - eps, 0, 1), np.clip(image + eps, 0, 1)
    ends = np.stack([low.ravel(), high.ravel()])
    return np.array([[ends[i, n] for n, i in enumerate(at)] for at in product((0, 1), repeat=4)])


@pytest.mark.parametrize("seed", range(4))
def test_one_layer_and_one_step_equal_all_corners(seed):
    image = np.random.default_rng(seed).uniform(0, 1, (1, 2, 2, 1)).astype(np.float32)
    points = corners(image, 0.2).reshape(-1, 2, 2, 1).astype(np.float32)
    middle = (Dense("hidden", "flat", 20), Spike("lif", "hidden"))
    architecture, variables = few_inputs(seed, middle)
    labels, copies = jnp.arange(3), jnp.tile(image, (3, 1, 1, 1))
    found, _ = bounds_and_margins(architecture, variables, copies, labels, 0.2)
    _, active = run(architecture, variables, points)
    for intervals, values in (
        (found.potentials["lif"], active.potentials["lif"]),
        (found.values["lif"], active.spikes["lif"]),
    ):
        np.testing.assert_allclose(intervals.lower[0, 0], values[0].min(0), atol=1e-5)
        np.testing.assert_allclose(intervals.upper[0, 0], values[0].max(0), atol=1e-5)
    assert 0 < (found.values["lif"].lower != found.values["lif"].upper).mean() < 1
    linear_network, variables = few_inputs(seed)
    _, margins = bounds_and_margins(linear_network, variables, copies, labels, 0.2)
    z, _ = run(linear_network, variables, points)
    for label in range(3):  # every class is worst at a corner of its own
        np.testing.assert_allclose(margins[label], (z - z[:, [label]]).max(0), atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_two_layers_and_one_step_contain_all_corners_of_spikes(seed):
    """Every choice of the undecided spikes is between the bounds, and the worst one is attained."""
    image = np.random.default_rng(seed).uniform(0, 1, (1, 2, 2, 1)).astype(np.float32)
    architecture, variables = few_inputs(seed, (Dense("hidden", "flat", 8), Spike("lif", "hidden")))
    labels, copies = jnp.arange(3), jnp.tile(image, (3, 1, 1, 1))
    found, margins = bounds_and_margins(architecture, variables, copies, labels, 0.1)
    low, high = (np.asarray(end)[0, 0] for end in found.values["lif"])
    choices = np.array(list(product(*[sorted({a, b}) for a, b in zip(low, high, strict=True)])))
    out = variables["params"]["out"]
    z = choices @ np.asarray(out["kernel"]) + np.asarray(out["bias"])
    for label in range(3):
        np.testing.assert_allclose(margins[label], (z - z[:, [label]]).max(0), atol=1e-5)


@pytest.mark.parametrize("order", range(3))
def test_the_slack_covers_sums_in_any_order(order):
    """Large products that cancel: float32 sums differ in their leading digits."""
    random = np.random.default_rng(order)
    x = random.uniform(1, 2, (1, 1, 4096)).astype(np.float32)
    kernel = (1e4 * random.normal(size=(4096, 8))).astype(np.float32)
    point = Interval(jnp.asarray(x), jnp.asarray(x))
    product_of = lambda x, kernel: x @ kernel  # noqa: E731
    low, high = linear(product_of, point, jnp.asarray(kernel), None, 4096, UNIT)
    exact = x.astype(np.float64) @ kernel.astype(np.float64)
    sums = [exact]
    for _ in range(20):
        shuffled = random.permutation(4096)
        terms = x[..., shuffled, None] * kernel[shuffled]
        sums.append(np.cumsum(terms, axis=2, dtype=np.float32)[:, :, -1])
    assert np.abs(sums[1] - exact).max() > 1
    for each in sums:
        assert (low <= each).all() and (each <= high).all()


def test_potentials_that_overflow_certify_nothing(images):
    architecture, variables = few_inputs(0, (Dense("hidden", "flat", 8), Spike("lif", "hidden")))
    kernel = variables["params"]["hidden"]["kernel"]
    variables["params"]["hidden"]["kernel"] = kernel.at[0, 0].set(np.inf)
    labels = jnp.array([0, 1])
    _, margins = bounds_and_margins(architecture, variables, images[:2, :2, :2], labels, 0.1)
    assert np.isinf(np.asarray(margins)[[0, 0, 1, 1], [1, 2, 0, 2]]).all()


@dataclass(frozen=True)
class Halved(Node):
    """A kind from outside: half of its input."""

    keeps_zeros: ClassVar[bool] = True


@dataclass(frozen=True)
class Ruled(Halved):
    """The same, with a rule for intervals."""


register_node(Halved, lambda node, run, x: x / 2)
register_node(Ruled, lambda node, run, x: x / 2, lambda node, run, x: x.map(lambda end: end / 2))


def test_kinds_without_a_rule_are_refused_and_those_with_one_are_bounded(images):
    start = dataclasses.replace(MIXED, nodes=(Halved("half", "image"), *few_inputs(0)[0].nodes))
    with pytest.raises(InputError, match="'half' is a Halved, which has no rule for intervals"):
        interval_bounds.check_bounded(start)
    nodes = (Ruled("half", "image"), Flatten("flat", "half"), Dense("out", "flat", 3))
    architecture = dataclasses.replace(MIXED, nodes=nodes)
    found = jit(partial(propagate, architecture))(busy(architecture, 0), ball(images[:2], 0.1))
    value = (images[:2] - 0.3) / 0.4 / 2
    low, high = found.values["half"]
    assert (low[0] <= value).all() and (value <= high[0]).all() and (low < high).any()


@pytest.mark.parametrize("encoding", ("poisson", "gaussian", "frames"))
def test_other_encodings_are_refused(encoding):
    channels = 2 if encoding == "frames" else 1
    changed = dataclasses.replace(MIXED, encoding=encoding, input_shape=(8, 8, channels))
    with pytest.raises(InputError, match=f"the {encoding} encoding has no interval bounds"):
        interval_bounds.check_bounded(changed)
