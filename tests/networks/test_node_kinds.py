"""Depthwise convolution, dropout, concatenation and global pooling, and a kind from outside."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import EAGER, busy, jit

from ccsrp_jax.coevolution import fitness, subproblem
from ccsrp_jax.data.splits import Split
from ccsrp_jax.networks import compaction, cost, masks, register_node, serialization, zoo
from ccsrp_jax.networks.architecture import Architecture, channel_groups, coupled, groups
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.lowering import fold_time
from ccsrp_jax.networks.neurons import LIF
from ccsrp_jax.networks.node_base import NODE_KINDS, Node
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
from ccsrp_jax.training.recipe import Recipe
from ccsrp_jax.training.trainer import train
from ccsrp_jax.utils.errors import InputError

MIXED = Architecture(
    (
        Conv("stem", "image", 6),
        Spike("stem.lif", "stem"),
        DepthwiseConv("deep", "stem.lif"),  # on spikes, then mixed without neurons in between
        Conv("point", "deep", 5, kernel=1),
        Norm("point.norm", "point"),
        Spike("point.lif", "point.norm"),
        Conv("left", "point.lif", 4),
        Norm("left.norm", "left"),
        DepthwiseConv("wide", "left.norm", kernel=5),  # on currents, before the gate
        Concat("cat", "wide", ("point.lif", "wide")),
        Spike("cat.lif", "cat"),
        Dropout("drop", "cat.lif", 0.4),
        Conv("mix", "drop", 7, stride=2),
        Norm("mix.norm", "mix"),
        Spike("mix.lif", "mix.norm"),
        Pool("pool", "cat.lif", 2, "max"),
        Concat("all", "mix.lif", ("pool",)),
        GlobalPool("mean", "all"),
        Flatten("flatten", "mean"),
        Dense("classifier", "flatten", 10),
    ),
    (8, 8, 1),
    time_steps=2,
    neuron=LIF(**EAGER),
    mean=(0.3,),
    std=(0.4,),
)
GROUPS = {"stem": 6, "point": 5, "left": 4, "mix": 7}


@pytest.fixture(scope="module")
def variables():
    return busy(MIXED, seed=1)


def logits(architecture, variables, images, mask=None):
    return jit(SpikingNetwork(architecture).apply)(variables, images, mask)


def test_groups_are_those_of_the_mixing_layers_and_concatenations_have_several():
    assert groups(MIXED) == GROUPS
    segments = channel_groups(MIXED)
    assert segments["deep"] == segments["stem"]
    assert segments["cat.lif"] == (("left", 4), ("point", 5), ("left", 4))
    assert segments["flatten"] == (("mix", 7), *segments["cat.lif"])
    assert coupled(MIXED) == frozenset()


@pytest.mark.parametrize("seed", range(3))
def test_masked_equals_compact(variables, images, seed):
    mask = masks.random(jax.random.key(seed), MIXED, (0.5, 0.3, 0.8)[seed])
    smaller, weights = compaction.compact(MIXED, variables, mask)
    assert groups(smaller) == {name: int(np.sum(bits)) for name, bits in mask.items()}
    whole, masked = logits(MIXED, variables, images), logits(MIXED, variables, images, mask)
    chex.assert_trees_all_close(logits(smaller, weights, images), masked, atol=1e-5)
    assert np.abs(whole - masked).max() > 0.01


def test_a_following_layer_reads_the_parts_that_are_left_in_order(variables):
    mask = masks.ones(MIXED) | {"left": np.array([0, 1, 1, 0]), "point": np.array([1, 0, 0, 0, 1])}
    _, weights = compaction.compact(MIXED, variables, mask)
    kept = [1, 2, 4 + 0, 4 + 4, 9 + 1, 9 + 2]
    kernel = np.asarray(variables["params"]["mix"]["kernel"])
    np.testing.assert_array_equal(weights["params"]["mix"]["kernel"], kernel[:, :, kept])
    filters = np.asarray(variables["params"]["wide"]["kernel"])
    np.testing.assert_array_equal(weights["params"]["wide"]["kernel"], filters[..., [1, 2]])


def test_macs_and_parameters_are_their_closed_forms(variables):
    assert cost.macs(MIXED) == {
        "stem": 9 * 1 * 6 * 64,
        "deep": 9 * 6 * 64,
        "point": 6 * 5 * 64,
        "left": 9 * 5 * 4 * 64,
        "wide": 25 * 4 * 64,
        "mix": 9 * 13 * 7 * 16,
        "classifier": 20 * 10,
    }
    sizes = {
        name: sum(leaf.size for leaf in layer.values())
        for name, layer in variables["params"].items()
    }
    assert cost.params(MIXED) == sizes


@pytest.mark.parametrize("seed", (0, 1))
def test_masked_costs_equal_those_of_the_compact_network(variables, images, seed):
    mask = masks.random(jax.random.key(seed), MIXED, 0.5)
    smaller, weights = compaction.compact(MIXED, variables, mask)
    assert cost.macs(MIXED, mask) == cost.macs(smaller)
    assert cost.params(MIXED, mask) == cost.params(smaller)
    ours = cost.synops(MIXED, variables, images[:4], mask)
    assert ours == pytest.approx(cost.synops(smaller, weights, images[:4]), rel=1e-6)
    assert min(ours.values()) > 0


@pytest.mark.parametrize("masked", (False, True))
def test_synops_of_depthwise_convolutions_equal_a_loop_over_events(variables, images, masked):
    weights = np.ones((3, 3, 1, 6))
    if masked:
        weights = (np.random.default_rng(0).random((3, 3, 1, 6)) < 0.5).astype(float)
    mask = {masks.kernel("deep"): weights} if masked else None
    network = SpikingNetwork(MIXED)
    start = network.apply(variables, images[:2], method="encode")
    values, _ = network.apply(variables, start, mask, keep=["stem.lif"], method="walk")
    count = 0
    for *_, y, x, c in np.argwhere(np.asarray(values["stem.lif"]) != 0):
        for dy in range(3):
            for dx in range(3):
                inside = 0 <= y + 1 - dy < 8 and 0 <= x + 1 - dx < 8
                count += weights[dy, dx, 0, c] * inside
    assert cost.synops(MIXED, variables, images[:2], mask)["deep"] == pytest.approx(count / 2)


def test_a_layer_is_its_definition_channel_by_channel(images):
    nodes = (
        Spike("lif", "image"),
        DepthwiseConv("deep", "image", kernel=3, stride=2),
        GlobalPool("mean", "deep"),
        Concat("cat", "mean", ("mean",)),
        Flatten("flatten", "cat"),
        Dense("out", "flatten", 3),
    )
    architecture = Architecture(nodes, (8, 8, 2), 2)
    variables = busy(architecture, seed=0)
    x = jnp.concatenate([images[:3], 1 - images[:3] ** 2], -1)
    kernel = np.asarray(variables["params"]["deep"]["kernel"])
    padded = np.pad((np.asarray(x) - 0.5) / 0.5, ((0, 0), (1, 1), (1, 1), (0, 0)))
    deep = np.zeros((3, 4, 4, 2))
    for b, y, z, c in np.ndindex(deep.shape):
        window = padded[b, 2 * y : 2 * y + 3, 2 * z : 2 * z + 3, c]
        deep[b, y, z, c] = (window * kernel[:, :, 0, c]).sum()
    mean = deep.mean((1, 2))
    out = variables["params"]["out"]
    expected = np.concatenate([mean, mean], 1) @ np.asarray(out["kernel"]) + np.asarray(out["bias"])
    chex.assert_trees_all_close(logits(architecture, variables, x), expected, atol=1e-5)


@pytest.mark.parametrize("group", GROUPS)
def test_scores_equal_those_of_whole_masked_networks(variables, digits, group):
    clean = Split(*(part[:20] for part in digits.search))
    adversarial = Split(np.clip(clean.images + 0.1, 0, 1).astype(np.float32), clean.labels)
    current = masks.random(jax.random.key(3), MIXED, 0.7)
    members = np.array([[1] * GROUPS[group], [1, 0] * GROUPS[group]], object)
    members = np.stack([np.resize(member, GROUPS[group]) for member in members]).astype(np.float32)
    task = subproblem.make_task(
        Classifier(MIXED), variables, current, group, clean, adversarial, batch_size=8
    )
    scores = fitness.score(task, members)
    for i, member in enumerate(members):
        whole = current | {group: jnp.asarray(member)}
        z = logits(MIXED, variables, jnp.asarray(clean.images), whole)
        loss = optax.softmax_cross_entropy_with_integer_labels(z, jnp.asarray(clean.labels))
        assert scores.loss[i] == pytest.approx(float(loss.mean()), abs=1e-5)
        assert scores.error[i] == pytest.approx(float((z.argmax(-1) != clean.labels).mean()))
        share = sum(cost.macs(MIXED, whole).values()) / sum(cost.macs(MIXED).values())
        assert scores.macs[i] == pytest.approx(share, abs=1e-6)


def test_a_population_of_masks_equals_one_by_one(variables, images):
    population = {
        name: jnp.stack([masks.random(jax.random.key(i), MIXED, 0.6)[name] for i in range(3)])
        for name in GROUPS
    }
    apply = SpikingNetwork(MIXED).apply
    together = jit(jax.vmap(apply, (None, None, 0)))(variables, images[:4], population)
    for i, member in enumerate(together):
        one = {name: bits[i] for name, bits in population.items()}
        chex.assert_trees_all_close(member, logits(MIXED, variables, images[:4], one), atol=1e-5)


def test_saved_networks_read_back(variables, images, tmp_path):
    serialization.save(tmp_path / "network", MIXED, variables)
    again, read = serialization.load(tmp_path / "network")
    assert again == MIXED
    chex.assert_trees_all_equal(
        logits(again, read, images[:2]), logits(MIXED, variables, images[:2])
    )


def test_dropout_drops_its_share_alike_in_all_steps_and_only_in_training(images):
    nodes = (
        Dropout("drop", "image", 0.25),
        Spike("lif", "drop"),
        Flatten("flatten", "drop"),
        Dense("out", "flatten", 3),
    )
    architecture = Architecture(nodes, (8, 8, 1), 2, encoding="gaussian")
    variables, network = busy(architecture, seed=0), SpikingNetwork(architecture)
    x = network.apply(variables, images, jax.random.key(0), method="encode")
    start = x["image"]

    def dropped(key=None, train=True):
        options = {"keep": ["drop"], "train": train, "key": key, "method": "walk"}
        (values, _), _ = network.apply(variables, x, mutable=["batch_stats"], **options)
        return np.asarray(values["drop"])

    np.testing.assert_array_equal(dropped(train=False), start)
    one = dropped(jax.random.key(1))
    gone = one == 0
    assert abs(gone.mean() - 0.25) < 0.04
    np.testing.assert_array_equal(gone[0], gone[1])
    np.testing.assert_allclose(one[~gone], np.asarray(start)[~gone] / 0.75, rtol=1e-6)
    np.testing.assert_array_equal(dropped(jax.random.key(1)), one)
    assert ((dropped(jax.random.key(2)) == 0) != gone).any()
    with pytest.raises(InputError, match="dropout 'drop' draws at random"):
        dropped()


def test_training_draws_dropout_from_its_key(variables, digits):
    split = Split(*(part[:32] for part in digits.train))
    recipe = Recipe(epochs=1, batch_size=16, learning_rate=1e-2)

    def trained(architecture, key):
        mask = masks.ones(architecture)
        key = jax.random.key(key)
        return train(key, Classifier(architecture), variables, mask, split, recipe)["params"]

    first, again = trained(MIXED, 0), trained(MIXED, 0)
    chex.assert_trees_all_equal(first, again)
    nodes = [
        dataclasses.replace(node, rate=0.0) if isinstance(node, Dropout) else node
        for node in MIXED.nodes
    ]
    without = trained(dataclasses.replace(MIXED, nodes=tuple(nodes)), 0)
    assert (first["mix"]["kernel"] != without["mix"]["kernel"]).any()


def test_sums_of_parts_that_do_not_match_are_not_pruned():
    nodes = (
        Conv("a", "image", 2),
        Spike("a.lif", "a"),
        Conv("b", "image", 3),
        Spike("b.lif", "b"),
        Conv("c", "image", 5),
        Spike("c.lif", "c"),
        Concat("cat", "a.lif", ("b.lif",)),
        Add("sum", "cat", "c.lif"),
        Conv("d", "sum", 4),
        Spike("d.lif", "d"),
        Flatten("flatten", "d.lif"),
        Dense("classifier", "flatten", 10),
    )
    assert groups(Architecture(nodes, (8, 8, 1))) == {"d": 4}


@dataclass(frozen=True)
class Scale(Node):
    """A kind from outside the library: a learned factor for every channel."""

    start: float = 1.0

    keeps_zeros: ClassVar[bool] = True
    output_axis: ClassVar[dict[str, int]] = {"factor": -1}

    def param_shapes(self, inputs, output):
        return {"factor": output[-1:]}


@dataclass(frozen=True)
class ChannelNorm(Node):
    """A kind whose channels cannot be removed: it divides by their norm."""

    fixes_channels: ClassVar[bool] = True


class _Factor(nn.Module):
    start: float

    @nn.compact
    def __call__(self, x):
        start = nn.initializers.constant(self.start)
        return x * self.param("factor", start, x.shape[-1:])


register_node(Scale, lambda node, run, x: fold_time(_Factor(node.start, name=node.name), x))
register_node(
    ChannelNorm, lambda node, run, x: x / (1 + jnp.linalg.norm(x, axis=-1, keepdims=True))
)


def outside(middle: Node) -> Architecture:
    nodes = (
        Conv("conv1", "image", 5),
        Spike("lif1", "conv1"),
        middle,
        Conv("conv2", middle.name, 4),
        Spike("lif2", "conv2"),
        Flatten("flatten", "lif2"),
        Dense("classifier", "flatten", 10),
    )
    return Architecture(nodes, (8, 8, 1), 2, LIF(**EAGER), (0.3,), (0.4,))


def test_a_kind_from_outside_is_trained_pruned_compacted_saved_and_loaded(digits, images, tmp_path):
    architecture = outside(Scale("scale", "lif1", 1.5))
    variables = zoo.init(jax.random.key(0), architecture)
    np.testing.assert_array_equal(variables["params"]["scale"]["factor"], np.full(5, 1.5))
    split = Split(*(part[:32] for part in digits.train))
    recipe = Recipe(epochs=1, batch_size=32, learning_rate=0.1)
    whole = masks.ones(architecture)
    assert set(whole) == {"conv1", "conv2"}
    trained = train(jax.random.key(1), Classifier(architecture), variables, whole, split, recipe)
    factor = np.asarray(trained["params"]["scale"]["factor"])
    assert (factor != 1.5).any()
    mask = {"conv1": np.array([0, 1, 1, 0, 1]), "conv2": np.array([1, 1, 0, 1])}
    smaller, weights = compaction.compact(architecture, trained, mask)
    np.testing.assert_array_equal(weights["params"]["scale"]["factor"], factor[[1, 2, 4]])
    assert cost.params(architecture, mask)["scale"] == 3
    masked = logits(architecture, trained, images, mask)
    chex.assert_trees_all_close(logits(smaller, weights, images), masked, atol=1e-5)
    serialization.save(tmp_path / "network", smaller, weights)
    again, read = serialization.load(tmp_path / "network")
    assert again == smaller
    chex.assert_trees_all_close(logits(again, read, images), masked, atol=1e-5)


def test_channels_that_a_kind_fixes_are_not_pruned():
    assert groups(outside(ChannelNorm("norm", "lif1"))) == {"conv2": 4}


def test_a_network_of_an_unregistered_kind_is_refused_in_a_sentence(tmp_path, monkeypatch):
    architecture = outside(Scale("scale", "lif1"))
    serialization.save(
        tmp_path / "network", architecture, zoo.init(jax.random.key(0), architecture)
    )
    monkeypatch.delitem(NODE_KINDS, "Scale")
    with pytest.raises(InputError, match=r"kind 'Scale', which is not registered: call .*register"):
        serialization.load(tmp_path / "network")
    with pytest.raises(InputError, match=r"class .*Scale, which is not registered"):
        outside(Scale("scale", "lif1"))


def test_names_that_exist_and_classes_that_are_no_kinds_are_refused():
    same = dataclasses.make_dataclass("Conv", [], bases=(Node,), frozen=True)
    with pytest.raises(InputError, match="a node kind 'Conv' is registered already"):
        register_node(same, lambda node, run, x: x)
    with pytest.raises(InputError, match="a node kind 'Scale' is registered already"):
        register_node(Scale, lambda node, run, x: x)
    opens = type("Opens", (), {"opens_group": True})
    wide = dataclasses.make_dataclass("Opening", [], bases=(opens, Node), frozen=True)
    with pytest.raises(InputError, match="Opening opens a mask group: give it a field `width`"):
        register_node(wide, lambda node, run, x: x)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Concat("cat", "a", ()), r"'cat' has others=\(\)"),
        (lambda: Dropout("drop", "a", 1.0), "dropout rate 1.0"),
        (lambda: groups(outside(Flatten("flat", "lif1"))), r"'conv2' reads features of shape"),
    ],
)
def test_settings_that_do_not_fit_are_refused(make, says):
    with pytest.raises(InputError, match=says):
        make()
