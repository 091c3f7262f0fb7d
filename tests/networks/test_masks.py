"""Masks of weights multiplied into a network, and read off it again."""

import chex
import jax
import numpy as np
import pytest
from conftest import EAGER, busy, tiny

from ccsrp_jax.networks import cost, masks, zoo
from ccsrp_jax.networks.architecture import groups, kernel_shapes
from ccsrp_jax.networks.neurons import LIF
from ccsrp_jax.networks.spiking_network import SpikingNetwork


def plain():
    neuron = LIF(**EAGER)
    return zoo.plain(
        *((6, "A", 5), (8, 8, 1), 10), dense=(7,), time_steps=2, mean=(0.3,), neuron=neuron
    )


@pytest.fixture(scope="module", params=(plain, lambda: tiny("resnet8")), ids=("plain", "resnet8"))
def pruned(request):
    """A network, and masks of filters and of most layers' weights, the classifier among them."""
    architecture = request.param()
    shapes, random = kernel_shapes(architecture), np.random.default_rng(0)
    chosen = [name for name in shapes if name not in ("conv2", "stage2.block1.shortcut")]
    weights = {
        masks.kernel(name): (random.random(shapes[name]) < 0.6).astype(np.float32)
        for name in chosen
    }
    filters = dict(masks.random(jax.random.key(1), architecture, 0.8))
    filters.popitem()  # a group without a mask is whole
    return architecture, busy(architecture, seed=2), {**filters, **weights}


def test_a_folded_network_answers_as_with_masks(pruned, images):
    architecture, variables, both = pruned
    apply = jax.jit(SpikingNetwork(architecture).apply)
    folded, filters = masks.fold(variables, both), masks.filters(architecture, both)
    masked = apply(variables, images, both)
    chex.assert_trees_all_equal(apply(folded, images, filters), masked)
    assert np.ptp(masked) > 0.1
    assert not np.allclose(apply(variables, images, filters), masked, atol=1e-3)


def test_folding_changes_masked_weights_alone(pruned):
    _, variables, both = pruned
    before = jax.tree.map(np.array, variables)
    folded = masks.fold(variables, both)
    chex.assert_trees_all_equal(variables, before)  # it makes a copy
    for layer, values in folded["params"].items():
        for name, value in values.items():
            expected = np.array(before["params"][layer][name])
            if name == "kernel" and masks.kernel(layer) in both:
                expected[both[masks.kernel(layer)] == 0] = 0
            np.testing.assert_array_equal(value, expected)
    chex.assert_trees_all_equal(folded["batch_stats"], before["batch_stats"])
    chex.assert_trees_all_equal(masks.fold(folded, both), folded)


def test_filters_are_one_mask_for_every_group(pruned):
    architecture, _, both = pruned
    found = masks.filters(architecture, both)
    assert {name: len(mask) for name, mask in found.items()} == groups(architecture)
    for name, mask in found.items():
        np.testing.assert_array_equal(mask, both.get(name, np.ones(len(mask))))
    assert sum(name not in both for name in found) == 1
    chex.assert_trees_all_equal(masks.filters(architecture, {}), masks.ones(architecture))


def test_zeros_tell_the_masks_that_were_folded(pruned):
    architecture, variables, both = pruned
    assert masks.of_zeros(architecture, variables) == {}
    found = masks.of_zeros(architecture, masks.fold(variables, both))
    weights = {name: mask for name, mask in both.items() if name.endswith(masks.KERNEL)}
    assert found.keys() == weights.keys()
    chex.assert_trees_all_equal(found, weights)
    masks.check(architecture, found)


def test_a_folded_network_costs_what_it_did_with_masks(pruned, digits):
    architecture, variables, both = pruned
    folded, filters = masks.fold(variables, both), masks.filters(architecture, both)
    key = jax.random.key(0)
    asked = cost.costs(architecture, variables, both, digits.search, key)
    costs = cost.costs(architecture, folded, filters, digits.search, key)
    assert costs == asked
    unmasked = cost.costs(architecture, variables, filters, digits.search, key)
    assert costs["macs"] == unmasked["macs"]  # a dense machine multiplies by 0 too
    for measure in ("params", "synops", "energy_nj"):
        assert 0 < costs[measure] < unmasked[measure]
    kept = dict(both)  # weights of filters that are gone are not counted twice
    name = next(name for name in filters if not np.all(filters[name]))
    kept[masks.kernel(name)] = kept[masks.kernel(name)] * np.asarray(filters[name], np.float32)
    assert cost.costs(architecture, variables, kept, digits.search, key) == asked
