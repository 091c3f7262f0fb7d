"""Nodes of imported networks: convolutions of any geometry, sum pooling, rates as logits."""

import jax
import numpy as np
from conftest import busy, jit

from ccsrp_jax.networks import masks
from ccsrp_jax.networks.architecture import Architecture, groups
from ccsrp_jax.networks.compaction import compact
from ccsrp_jax.networks.counts import macs
from ccsrp_jax.networks.general_conv import GeneralConv
from ccsrp_jax.networks.interval_bounds import ball, propagate
from ccsrp_jax.networks.neurons import LIF
from ccsrp_jax.networks.nodes import IMAGE, Conv, Dense, Flatten, Pool, Spike
from ccsrp_jax.networks.spike_rate import SpikeRate
from ccsrp_jax.networks.spiking_network import SpikingNetwork


def network(first, second, *end) -> Architecture:
    pooled = Pool("pool", "lif2", kind="sum")
    nodes = (first, Spike("lif1", "conv1"), second, Spike("lif2", "conv2"), pooled)
    end = end or (Dense("classifier", "flatten", 10),)
    return Architecture(
        (*nodes, Flatten("flatten", "pool"), *end),
        (8, 8, 1),
        2,
        LIF(threshold=0.2, decay_input=False),
    )


USUAL = network(Conv("conv1", IMAGE, 6, 3, 1, True), Conv("conv2", "lif1", 8, 3, 2))
GENERAL = network(
    GeneralConv("conv1", IMAGE, 6, padding=(1, 1), bias=True),
    GeneralConv("conv2", "lif1", 8, stride=(2, 2), padding=(1, 1)),
)
GROUPED = network(
    GeneralConv("conv1", IMAGE, 6, (3, 1), padding=(2, 0), dilation=(2, 1)),
    GeneralConv("conv2", "lif1", 8, groups=2, bias=True),
    Dense("fc", "flatten", 10),
    Spike("fc.lif", "fc"),
    SpikeRate("rates", "fc.lif", 10),
)


def test_a_general_convolution_of_the_usual_geometry_is_the_usual_one(images):
    variables = busy(USUAL, 0)
    expected = jit(SpikingNetwork(USUAL).apply)(variables, images)
    found = jit(SpikingNetwork(GENERAL).apply)(variables, images)
    np.testing.assert_array_equal(found, expected)
    assert np.std(expected) > 0.01
    assert macs(GENERAL) == macs(USUAL) and groups(GENERAL) == groups(USUAL)


def test_groups_and_classes_that_spike_are_not_pruned():
    assert set(groups(GENERAL)) == {"conv1", "conv2"}
    assert not groups(GROUPED)  # conv1 is read by groups, and the last layer is the classes
    assert macs(GROUPED)["conv2"] == 9 * 6 // 2 * 8 * 6 * 6
    assert "rates" not in macs(GROUPED)


def test_a_compact_network_computes_what_the_masked_one_does(images):
    variables = busy(GENERAL, 1)
    kept = masks.random(jax.random.key(0), GENERAL, 0.5)
    smaller, weights = compact(GENERAL, variables, kept)
    expected = jit(SpikingNetwork(GENERAL).apply)(variables, images, kept)
    found = jit(SpikingNetwork(smaller).apply)(weights, images)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert sum(macs(smaller).values()) < sum(macs(GENERAL).values())


def test_rates_are_the_shares_of_steps_with_a_spike(images):
    variables = busy(GROUPED, 2)
    run = jit(lambda v, x: SpikingNetwork(GROUPED).apply(v, x, activity=True))
    logits, active = run(variables, images)
    np.testing.assert_array_equal(logits, active.spikes["fc.lif"].mean(0))
    assert 0.02 < logits.mean() < 0.98


def test_bounds_hold_for_sums_and_general_convolutions(images):
    variables, names = busy(GENERAL, 0), ("conv2", "pool")
    bounds = propagate(GENERAL, variables, ball(images[:4], 1e-3)).values
    noise = jax.random.uniform(jax.random.key(0), images[:4].shape, minval=-1e-3, maxval=1e-3)
    net = SpikingNetwork(GENERAL)

    def walk(variables, images):
        return net.apply(variables, net.encode(images), keep=names, method="walk")[0]

    found = jit(walk)(variables, np.clip(images[:4] + noise, 0, 1))
    for name in names:
        assert (bounds[name].lower <= found[name]).all(), name
        assert (found[name] <= bounds[name].upper).all(), name
    assert (bounds["pool"].lower > 0).any() and found["pool"].max() > 1
