"""Costs against peers, loops, figures by hand and the compact network."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from ccsrp_jax.networks import compaction, cost, masks, zoo
from ccsrp_jax.networks.architecture import Architecture, group_of, kernel_shapes
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.neurons import LIF
from ccsrp_jax.networks.nodes import Add, Conv, Dense, Flatten, Norm, Pool, Spike
from ccsrp_jax.networks.spiking_network import SpikingNetwork

BUSY = LIF(threshold=0.5)


# Convolutions of many constants side by side, on spikes and on pooled spikes.
CONSTANTS = ((1, 2), (2, 1), (3, 1), (3, 2), (3, 3), (5, 2))
BRANCHES = Architecture(
    (
        Conv("conv1", "image", 5),
        Norm("norm1", "conv1"),
        Spike("lif1", "norm1"),
        Pool("avg", "lif1", kind="avg"),
        Pool("max", "lif1", kind="max"),
        *(
            Conv(f"{source}-{kernel}-{stride}", source, 4, kernel, stride)
            for source in ("lif1", "avg", "max")
            for kernel, stride in CONSTANTS
        ),
        Flatten("flatten", "lif1"),
        Dense("classifier", "flatten", 3),
    ),
    (7, 6, 2),
    time_steps=2,
    neuron=BUSY,
)
RESIDUAL = Architecture(
    (
        Conv("conv1", "image", 6, bias=True),
        Norm("norm1", "conv1"),
        Spike("lif1", "norm1"),
        Conv("conv2", "lif1", 8, stride=2),
        Norm("norm2", "conv2"),
        Conv("short", "lif1", 8, kernel=1, stride=2, bias=True),
        Add("sum", "norm2", "short"),
        Spike("lif2", "sum"),
        Pool("pool", "lif2"),
        Flatten("flatten", "pool"),
        Dense("fc1", "flatten", 12),
        Spike("fc1.lif", "fc1"),
        Dense("classifier", "fc1.lif", 10),
    ),
    (8, 8, 1),
    neuron=BUSY,
)
CHAIN = zoo.plain((6, "M", 8, "A"), (8, 8, 1), 10, dense=(7,), time_steps=2, neuron=BUSY)
LEARNED = zoo.plain((6, "M", 8), (8, 8, 1), 10, neuron=LIF(threshold=0.5, learned=True))


def random_variables(seed, architecture):
    """Variables drawn at random, batch statistics too."""
    rng = np.random.default_rng(seed)

    def draw(path, value):
        low = 0.5 if path[-1].key == "var" else -0.6
        return jnp.asarray(rng.uniform(low, 1.0, value.shape), value.dtype)

    shapes = jax.eval_shape(lambda key: zoo.init(key, architecture), jax.random.key(0))
    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="module")
def frozen():
    """What the peers answered; see tests/oracles/make_fixtures.py."""
    with np.load(Path(__file__).parents[1] / "fixtures" / "cost_torch.npz") as file:
        fields = unflatten_dict(dict(file), sep="/")
    return fields | {"architecture": Architecture.from_json(str(fields["architecture"]))}


def test_macs_and_parameters_equal_torch_pruning(frozen):
    assert cost.macs(frozen["architecture"]) == frozen["macs"]
    assert sum(cost.params(frozen["architecture"]).values()) == frozen["params"]


def test_synops_equal_spikingjelly(frozen):
    images = jnp.asarray(frozen["images"])
    ours = cost.synops(frozen["architecture"], frozen["variables"], images)
    theirs = {name: float(count) for name, count in frozen["synops"].items() if name != "conv1"}
    assert min(theirs.values()) > 100
    assert ours == pytest.approx(theirs, rel=1e-6)


def loop_synops(values, kernel, stride, filters, out_shape):
    """Counts, one by one, the synapses that the non-zero inputs (T, B, H, W, C) meet."""
    count, pad = 0, kernel // 2
    for *_, y, x, _ in np.argwhere(values != 0):
        for dy in range(kernel):
            for dx in range(kernel):
                row, rest_y = divmod(y + pad - dy, stride)
                column, rest_x = divmod(x + pad - dx, stride)
                inside = 0 <= row < out_shape[0] and 0 <= column < out_shape[1]
                count += filters * (rest_y == rest_x == 0 and inside)
    return count


def test_synops_and_macs_equal_loops_over_spikes_synapses_and_places():
    network = SpikingNetwork(BRANCHES)
    variables = random_variables(0, BRANCHES)
    images = jax.random.uniform(jax.random.key(1), (2, 7, 6, 2))
    names = [node.name for node in BRANCHES.nodes]
    values, _ = network.apply(
        variables,
        network.apply(variables, images, method="encode"),
        keep=names,
        method="walk",
    )
    values = {name: np.asarray(value) for name, value in values.items()}
    assert 0.1 < values["lif1"].mean() < 0.9
    assert not np.isin(values["avg"], (0, 1)).all()
    synops, macs = {}, {"conv1": 9 * 2 * 5 * 42, "classifier": 3 * 210}
    for node in BRANCHES.nodes:
        if isinstance(node, Conv) and node.input != "image":
            *_, height, width, channels = values[node.name].shape
            macs[node.name] = node.kernel**2 * 5 * channels * height * width
            synops[node.name] = loop_synops(
                values[node.input], node.kernel, node.stride, channels, (height, width)
            )
    synops["classifier"] = 3 * np.count_nonzero(values["lif1"])
    expected = {name: count / 2 for name, count in synops.items()}
    assert cost.synops(BRANCHES, variables, images) == pytest.approx(expected, rel=1e-6)
    assert cost.macs(BRANCHES) == macs


def masked_loop(values, kernel_mask, stride, out_shape):
    """As `loop_synops`, with a kernel's mask (k, k, in, out): synapses that it keeps."""
    kernel, (count, pad) = len(kernel_mask), (0, len(kernel_mask) // 2)
    for *_, y, x, c in np.argwhere(values != 0):
        for dy in range(kernel):
            for dx in range(kernel):
                row, rest_y = divmod(y + pad - dy, stride)
                column, rest_x = divmod(x + pad - dx, stride)
                inside = 0 <= row < out_shape[0] and 0 <= column < out_shape[1]
                if rest_y == rest_x == 0 and inside:
                    count += kernel_mask[dy, dx, c].sum()
    return count


@pytest.mark.parametrize("filters", (False, True))
def test_masks_of_weights_save_parameters_and_synops_as_loops_count_them(filters):
    """Beside masks of filters, a synapse survives where its weight and both filters do."""
    variables = random_variables(0, RESIDUAL)
    images = jax.random.uniform(jax.random.key(1), (2, 8, 8, 1))
    random = np.random.default_rng(0)
    kept = dict(masks.random(jax.random.key(2), RESIDUAL, 0.6)) if filters else {}
    layers = ("conv1", "conv2", "short", "classifier")  # fc1 stays whole
    weights = {
        masks.kernel(layer): (random.random(kernel_shapes(RESIDUAL)[layer]) < 0.5).astype(float)
        for layer in layers
    }
    every, network = kept | weights, SpikingNetwork(RESIDUAL)
    start = network.apply(variables, images, method="encode")
    names = [node.name for node in RESIDUAL.nodes]
    values, _ = network.apply(variables, start, every, keep=names, method="walk")
    values = {name: np.asarray(value) for name, value in (start | values).items()}
    member = group_of(RESIDUAL)
    synops, params = {}, {}
    for node in RESIDUAL.nodes:
        out = np.asarray(kept.get(member[node.name], np.ones(values[node.name].shape[-1])))
        if isinstance(node, Norm):
            params[node.name] = 2 * out.sum()
        if not isinstance(node, Conv | Dense):
            continue
        shape = kernel_shapes(RESIDUAL)[node.name]
        into = np.asarray(kept.get(member[node.input], np.ones(values["image"].shape[-1])))
        into = np.resize(into, shape[-2])  # channels are fastest where flattened
        alive = np.asarray(every.get(masks.kernel(node.name), np.ones(shape)))
        alive = alive * into[:, None] * out
        params[node.name] = alive.sum() + node.bias * out.sum()
        x = values[node.input]
        if node.input == "image":
            continue
        if isinstance(node, Dense):
            synops[node.name] = ((x != 0) @ alive).sum()
        else:
            synops[node.name] = masked_loop(x, alive, node.stride, values[node.name].shape[2:4])
    assert cost.params(RESIDUAL, every) == params
    ours = cost.synops(RESIDUAL, variables, images, every)
    assert min(ours.values()) > 0
    assert ours == pytest.approx({name: n / 2 for name, n in synops.items()}, rel=1e-6)
    assert cost.macs(RESIDUAL, every) == cost.macs(RESIDUAL, kept)


def test_whole_masks_of_weights_cost_what_no_masks_cost():
    variables, images = random_variables(0, RESIDUAL), jnp.full((1, 8, 8, 1), 0.8)
    whole = {masks.kernel(name): np.ones(n) for name, n in kernel_shapes(RESIDUAL).items()}
    assert cost.params(RESIDUAL, whole) == cost.params(RESIDUAL)
    ours = cost.synops(RESIDUAL, variables, images, whole)
    assert ours == pytest.approx(cost.synops(RESIDUAL, variables, images), rel=1e-6)


def test_events_of_poisson_and_frames_are_counted_and_noisy_images_are_not():
    images = jax.random.uniform(jax.random.key(1), (3, 4, 4, 2))
    images = jnp.where(images < 0.4, 0.0, images)
    for encoding, channels in (("poisson", 2), ("frames", 1), ("gaussian", 2)):
        architecture = zoo.plain(
            (3,), (4, 4, 2), 5, time_steps=2, encoding=encoding, mean=(0.2,), std=(0.3,)
        )
        variables, key = random_variables(0, architecture), jax.random.key(2)
        ours = cost.synops(architecture, variables, images, key=key)
        if encoding == "gaussian":
            assert set(ours) == {"classifier"}
            # 9 weights of 2 channels for 3 filters at 16 places, in both steps
            analog = 2 * 9 * 2 * 3 * 16
            by_hand = (4.6 * analog + 0.9 * ours["classifier"]) / 1000
            assert cost.energy_nj(architecture, ours) == pytest.approx(by_hand)
            continue
        network = SpikingNetwork(architecture)
        seen = network.apply(variables, images, key, method="encode")["image"] * 0.3 + 0.2
        events = np.asarray(jnp.abs(seen) > 1e-4)
        assert events.shape == (2, 3, 4, 4, channels) and 0.1 < events.mean() < 0.9
        assert ours["conv1"] == pytest.approx(loop_synops(events, 3, 1, 3, (4, 4)) / 3)
        by_hand = 0.9 * sum(ours.values()) / 1000
        assert cost.energy_nj(architecture, ours) == pytest.approx(by_hand)


def test_macs_and_parameters_by_hand():
    assert cost.macs(RESIDUAL) == {
        "conv1": 9 * 1 * 6 * 64,
        "conv2": 9 * 6 * 8 * 16,
        "short": 6 * 8 * 16,
        "fc1": 2 * 2 * 8 * 12,
        "classifier": 12 * 10,
    }
    assert cost.params(RESIDUAL) == {
        "conv1": 9 * 1 * 6 + 6,
        "norm1": 2 * 6,
        "conv2": 9 * 6 * 8,
        "norm2": 2 * 8,
        "short": 6 * 8 + 8,
        "fc1": 2 * 2 * 8 * 12 + 12,
        "classifier": 12 * 10 + 10,
    }


@pytest.mark.parametrize("architecture", (RESIDUAL, BRANCHES, LEARNED))
def test_parameters_are_those_of_the_network(architecture):
    variables = jax.eval_shape(lambda key: zoo.init(key, architecture), jax.random.key(0))
    by_layer = {
        name: sum(math.prod(value.shape) for value in layer.values())
        for name, layer in variables["params"].items()
    }
    assert cost.params(architecture) == by_layer


@pytest.mark.parametrize(
    "architecture, seed", ((RESIDUAL, 0), (RESIDUAL, 2), (CHAIN, 1), (LEARNED, 3))
)
def test_masked_costs_equal_those_of_the_compact_network(architecture, seed):
    variables = random_variables(0, architecture)
    images = jax.random.uniform(jax.random.key(seed), (4, *architecture.input_shape))
    kept = masks.random(jax.random.key(seed), architecture, 0.5)
    if seed == 2:
        kept.pop("conv1")  # a group without a mask is whole
    assert any(not mask.all() for mask in kept.values())
    compact = compaction.compact(architecture, variables, kept)
    assert cost.macs(architecture, kept) == cost.macs(compact[0])
    assert cost.params(architecture, kept) == cost.params(compact[0])
    ours = cost.synops(architecture, variables, images, kept)
    theirs = cost.synops(*compact, images)
    assert min(theirs.values()) > 0
    assert ours == pytest.approx(theirs, rel=1e-6)
    energy = cost.energy_nj(architecture, ours, kept)
    assert energy == pytest.approx(cost.energy_nj(compact[0], theirs), rel=1e-6)


def test_masks_of_ones_cost_what_no_masks_cost():
    variables = random_variables(0, RESIDUAL)
    images, whole = jnp.full((1, 8, 8, 1), 0.8), masks.ones(RESIDUAL)
    assert cost.macs(RESIDUAL, whole) == cost.macs(RESIDUAL)
    assert cost.params(RESIDUAL, whole) == cost.params(RESIDUAL)
    ours = cost.synops(RESIDUAL, variables, images, whole)
    assert ours == cost.synops(RESIDUAL, variables, images)


def test_energy_by_hand():
    architecture = zoo.plain((2,), (4, 4, 1), 3)
    kept = {"conv1": jnp.array([1.0, 0.0])}
    synops = {"classifier": 1000.0}
    # Nine synapses to two filters at 16 places, once; then 1000 additions.
    assert cost.energy_nj(architecture, synops) == pytest.approx((4.6 * 288 + 0.9 * 1000) / 1000)
    assert cost.energy_nj(architecture, synops, kept) == pytest.approx((4.6 * 144 + 900) / 1000)


def test_latency_is_one_positive_figure_a_network():
    architecture = zoo.plain((2,), (4, 4, 1), 3)
    variables = random_variables(0, architecture)
    masked = (Classifier(architecture), (variables, {"conv1": jnp.array([1.0, 0.0])}))
    whole = (Classifier(architecture), (variables, None))
    figures = cost.latency_ms([whole, masked], jnp.zeros((1, 4, 4, 1)), repeats=3)
    assert len(figures) == 2 and min(figures) > 0
