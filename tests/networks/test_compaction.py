import dataclasses
import json
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY, busy, enlarged, jit, thinned, tiny
from safetensors import safe_open

from ccsrp_jax.networks import compaction, masks, serialization
from ccsrp_jax.networks.architecture import Architecture, coupled, group_of, groups, kernel_shapes
from ccsrp_jax.networks.neurons import LIF
from ccsrp_jax.networks.nodes import Add, Conv, Dense, Flatten, Norm, Pool, Spike
from ccsrp_jax.networks.spiking_network import Activity, SpikingNetwork
from ccsrp_jax.utils.errors import InputError


def random_architecture(random: np.random.Generator) -> Architecture:
    """A chain with residual blocks, biases, strides, poolings and dense layers, or without; a
    third of them learn their leaks."""
    nodes, last = [], "image"

    def chance() -> bool:
        return bool(random.integers(2))

    def width() -> int:
        return int(random.integers(1, 6))

    def conv(name: str, source: str, channels: int, stride: int = 1) -> str:
        nodes.append(Conv(name, source, channels, 3 if chance() else 1, stride, chance()))
        if chance():
            nodes.append(Norm(f"{name}.norm", name))
        return nodes[-1].name

    for i in range(random.integers(1, 4)):
        channels = width()
        nodes.append(Spike(f"lif{i}", conv(f"conv{i}", last, channels, 2 if chance() else 1)))
        last = f"lif{i}"
        if chance():  # a residual block: spikes plus currents, then LIF
            nodes.append(Spike(f"inner{i}.lif", conv(f"inner{i}", last, width())))
            outer = conv(f"outer{i}", f"inner{i}.lif", channels)
            nodes += [Add(f"add{i}", outer, last), Spike(f"add{i}.lif", f"add{i}")]
            last = f"add{i}.lif"
        if i == 0 and chance():
            nodes.append(Pool("pool", last, 2, "max" if chance() else "avg"))
            last = "pool"
    nodes.append(Flatten("flatten", last))
    last = "flatten"
    if chance():
        nodes += [Dense("fc", last, width()), Spike("fc.lif", "fc")]
        last = "fc.lif"
    nodes.append(Dense("classifier", last, 10))
    reset, learned = "soft" if chance() else "hard", bool(random.random() < 1 / 3)
    neuron = LIF(threshold=0.4, reset=reset, learned=learned)
    return Architecture(tuple(nodes), (8, 8, 1), 2, neuron, (0.2,), (0.4,))


def run(architecture):
    return jit(partial(SpikingNetwork(architecture).apply, activity=True))


def random_weight_masks(random: np.random.Generator, architecture: Architecture) -> dict:
    """Masks of the weights of about every other layer, which keep 7 in 10."""
    return {
        masks.kernel(layer): random.random(shape) < 0.7
        for layer, shape in kernel_shapes(architecture).items()
        if random.integers(2)
    }


def assert_masked_equals_compact(architecture, variables, images, mask) -> Activity:
    """Logits to the order of float sums, spikes of kept filters exactly; no others spike."""
    variables = jax.tree.map(np.asarray, variables)  # XLA would compile every cut
    logits, seen = run(architecture)(variables, images, mask)
    smaller, weights = compaction.compact(architecture, variables, mask)
    assert groups(smaller) == masks.widths(architecture, mask)
    again, compact_seen = run(smaller)(weights, images, None)
    chex.assert_trees_all_close(logits, again, atol=1e-5)
    for name, spikes in seen.spikes.items():
        kept = np.flatnonzero(mask[group_of(architecture)[name]])
        assert spikes.sum() == spikes[..., kept].sum()
        chex.assert_trees_all_equal(spikes[..., kept], compact_seen.spikes[name])
    return seen


@pytest.mark.parametrize("seed", thinned(range(20), range(6)))
def test_masked_equals_compact(images, seed):
    random = np.random.default_rng(seed)
    architecture = random_architecture(random)
    mask = masks.random(jax.random.key(seed), architecture, 0.5 if seed % 2 else 0.05)
    if seed % 4 == 1:
        mask |= random_weight_masks(random, architecture)
    assert_masked_equals_compact(architecture, busy(architecture, seed), images[:4], mask)


@pytest.mark.parametrize("name", thinned(TINY, ("small", "vgg11", "resnet8", "sew_resnet18")))
def test_every_model_masked_equals_compact(images, name):
    """Residual streams are masked too, and half of the layers' weights."""
    architecture = tiny(name)
    variables, x = busy(architecture, seed=3), enlarged(images[:2], architecture)
    mask = masks.random(jax.random.key(3), architecture, 0.8)
    assert coupled(architecture) <= mask.keys()
    mask |= random_weight_masks(np.random.default_rng(3), architecture)
    seen = assert_masked_equals_compact(architecture, variables, x, mask)
    assert all(spikes.any() for spikes in seen.spikes.values())  # down to the last layer


def test_masked_weights_are_zeroed_weights(network, images):
    architecture, variables = network
    layers, random = ("conv2", "classifier"), np.random.default_rng(0)
    mask = {masks.kernel(a): random.random(kernel_shapes(architecture)[a]) < 0.7 for a in layers}
    params = {
        layer: values | {"kernel": values["kernel"] * mask[masks.kernel(layer)]}
        for layer, values in variables["params"].items()
        if layer in layers
    }
    zeroed = variables | {"params": variables["params"] | params}
    masked = run(architecture)(variables, images, mask)
    chex.assert_trees_all_equal(masked, run(architecture)(zeroed, images, None))
    assert (masked[0] != run(architecture)(variables, images, None)[0]).any()


@pytest.mark.parametrize("layer", ["conv3", "classifier"])
def test_population_of_weight_masks_equals_one_by_one(network, images, layer):
    architecture, variables = network
    name, shape = masks.kernel(layer), kernel_shapes(architecture)[layer]
    population = jax.random.bernoulli(jax.random.key(1), 0.5, (3, *shape))
    apply = jit(SpikingNetwork(architecture).apply)
    filters = masks.random(jax.random.key(2), architecture, 0.8)
    axes = {group: None for group in filters} | {name: 0}
    together = jax.vmap(apply, (None, None, axes))(variables, images, filters | {name: population})
    assert np.ptp(together, axis=0).max() > 0.01
    for logits, member in zip(together, population, strict=True):
        alone = apply(variables, images, filters | {name: member})
        chex.assert_trees_all_close(logits, alone, atol=1e-5)


def test_gradients_do_not_reach_masked_weights(network, images):
    architecture, variables = network
    mask = {"conv2/kernel": np.random.default_rng(0).random((3, 3, 6, 5)) < 0.5}
    apply = SpikingNetwork(architecture).apply
    gradient = jax.jit(jax.grad(lambda v: apply(v, images, mask).var()))(variables)
    moved = np.asarray(gradient["params"]["conv2"]["kernel"]) != 0
    assert moved.any() and not (moved & ~mask["conv2/kernel"]).any()


def test_one_filter_a_layer_is_enough(network, images):
    architecture, variables = network
    single = {name: jnp.arange(n) == n - 1 for name, n in groups(architecture).items()}
    smaller, weights = compaction.compact(architecture, variables, single)
    assert set(groups(smaller).values()) == {1}
    compact, _ = run(smaller)(weights, images, None)
    masked, _ = run(architecture)(variables, images, single)
    chex.assert_trees_all_close(compact, masked, atol=1e-5)


def test_branches_that_are_added_share_one_group():
    nodes = (
        Conv("stem", "image", 4),
        Spike("stem.lif", "stem"),
        Conv("inner", "stem.lif", 3),
        Spike("inner.lif", "inner"),
        Conv("outer", "inner.lif", 4),
        Add("add", "outer", "stem.lif"),
        Spike("add.lif", "add"),
        Flatten("flatten", "add.lif"),
        Dense("classifier", "flatten", 10),
    )
    assert groups(Architecture(nodes, (8, 8, 1))) == {"stem": 4, "inner": 3}


def test_groups_that_are_read_ungated_are_not_prunable():
    """A membrane shortcut: `first` is read by the addition before any LIF layer gates it."""
    nodes = (
        Conv("first", "image", 3),
        Spike("first.lif", "first"),
        Conv("inner", "first.lif", 2),
        Spike("inner.lif", "inner"),
        Conv("outer", "inner.lif", 3),
        Add("add", "outer", "first"),
        Conv("ungated", "add", 2),
        Norm("norm", "first.lif"),  # after the gate a norm's shift would come back
        Conv("shifted", "norm", 2),
        Add("sum", "ungated", "shifted"),
        Spike("sum.lif", "sum"),
        Flatten("flatten", "sum.lif"),
        Dense("classifier", "flatten", 10),
    )
    assert groups(Architecture(nodes, (8, 8, 1))) == {"inner": 2, "ungated": 2}


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        ((Conv("a", "imag", 2), Dense("b", "a", 2)), "unknown input of node 'a' 'imag'.*image"),
        ((Conv("a", "image", 2), Conv("a", "a", 2)), "two nodes are called 'a'"),
        ((Conv("a", "image", 2),), "the last node is 'a'"),
        ((), "the last node"),
    ],
)
def test_descriptions_that_are_no_network_are_refused(nodes, says):
    with pytest.raises(InputError, match=says):
        Architecture(nodes, (8, 8, 1))


def test_saved_network_reads_back_with_its_widths(network, images, tmp_path):
    architecture, variables = network
    mask = masks.random(jax.random.key(3), architecture, 0.5)
    smaller, weights = compaction.compact(architecture, variables, mask)
    path = tmp_path / "network.safetensors"
    serialization.save(path, smaller, weights)
    again, read = serialization.load(path)
    assert again == smaller
    chex.assert_trees_all_equal(read, jax.tree.map(np.asarray, weights))
    # readable without this library: tensors by name, the description as JSON
    with safe_open(path, framework="numpy") as file:
        assert json.loads(file.metadata()["architecture"])["time_steps"] == 3
        kernel = file.get_tensor("params/conv2/kernel")
    assert kernel.shape[2:] == (int(mask["conv1"].sum()), int(mask["conv2"].sum()))
    assert [p.name for p in tmp_path.iterdir()] == ["network.safetensors"]


@pytest.mark.parametrize("damage", ["missing", "truncated", "foreign", "no description"])
def test_damaged_network_file_is_refused(network, tmp_path, damage):
    path = tmp_path / "network.safetensors"
    if damage != "missing":
        serialization.save(path, *network)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    if damage == "foreign":
        path.write_text("hello")
    if damage == "no description":
        from safetensors.numpy import save_file

        save_file({"a": np.zeros(2)}, path)
    with pytest.raises(InputError, match=r"network\.safetensors"):
        serialization.load(path)


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        ({"conv9": np.ones(6)}, "unknown mask group 'conv9'.*conv1"),
        ({"conv1": np.ones(5)}, r"shape \(5,\).*\(6,\)"),
        ({"conv1": np.full(6, 0.5)}, "other than 0 and 1"),
        ({"conv1": np.zeros(6)}, "keeps no filter"),
        ({"conv9/kernel": np.ones(6)}, "layer of a weight mask 'conv9'.*conv1"),
        ({"conv1/kernel": np.ones(6)}, r"shape \(6,\).*\(3, 3, 1, 6\)"),
        ({"conv1/kernel": np.full((3, 3, 1, 6), 2)}, "other than 0 and 1"),
    ],
)
def test_masks_that_do_not_fit_are_refused(network, mask, says):
    with pytest.raises(InputError, match=says):
        compaction.compact(*network, mask)


def test_architecture_is_not_changed(network):
    architecture, variables = network
    before = dataclasses.replace(architecture), jax.tree.map(jnp.copy, variables)
    compaction.compact(architecture, variables, masks.random(jax.random.key(0), architecture, 0.3))
    assert architecture == before[0]
    chex.assert_trees_all_equal(variables, before[1])
