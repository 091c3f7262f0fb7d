"""Images whose sides differ: every pixel is seen, and every side has its own lengths."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import EAGER, busy, tiny

from ccsrp_jax.data.augmentation import augment
from ccsrp_jax.networks import compaction, cost, masks, zoo
from ccsrp_jax.networks.architecture import shapes
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.gradients import Relu
from ccsrp_jax.networks.neurons import LIF
from ccsrp_jax.networks.nodes import GlobalPool, Pool

SIDES = ((8, 12), (12, 8), (9, 16), (16, 5), (1, 8), (8, 1), (7, 9))
STAGES = ((4, 1, 1), (6, 1, 2), (8, 1, 2))


def residual(shape, **options):
    options = {"stem": 4, "time_steps": 2, "neuron": LIF(**EAGER)} | options
    return zoo.residual(STAGES, shape, 3, **options)


@pytest.mark.parametrize("sides", SIDES)
def test_residual_networks_see_every_pixel(sides):
    """Everything that is connected to the logits has a gradient through continuous neurons."""
    network = residual((*sides, 1), spikes_add=sides[0] > sides[1])
    variables, relu = busy(network, seed=0), Classifier(network, Relu())
    x = jax.random.uniform(jax.random.key(1), (4, *sides, 1))
    total = jax.jit(jax.grad(lambda x: (relu((variables, None), x) ** 2).sum()))
    assert (np.abs(total(x)).sum((0, 3)) > 0).all()


@pytest.mark.parametrize("name", [name for name in zoo.MODELS if "resnet" in name])
@pytest.mark.parametrize("sides", ((8, 16), (24, 8)))
def test_every_residual_model_averages_over_all_positions(name, sides):
    network = zoo.build(name, (*sides, 3), 10, width=1 / 16)
    before = network.nodes[[node.name for node in network.nodes].index("pool") - 1].name
    assert shapes(network)["pool"] == (1, 1, shapes(network)[before][-1])
    assert isinstance(network.nodes[[n.name for n in network.nodes].index("pool")], GlobalPool)


@pytest.mark.parametrize("side", (5, 8, 13, 28, 32))
def test_square_images_keep_their_architecture(side):
    network = residual((side, side, 1))
    [pool] = [node for node in network.nodes if node.name == "pool"]
    quarter = -(-side // 4)
    assert pool == Pool("pool", "stage3.block1.lif", quarter)
    assert shapes(network)["pool"] == (1, 1, 8)


def test_both_poolings_give_the_same_logits(images):
    network = tiny("resnet8")
    nodes = [GlobalPool("pool", n.input) if n.name == "pool" else n for n in network.nodes]
    other = dataclasses.replace(network, nodes=tuple(nodes))
    state = (busy(network, seed=0), None)
    same = [jax.jit(Classifier(each))(state, images) for each in (network, other)]
    np.testing.assert_allclose(*same, rtol=1e-5, atol=1e-5)
    assert np.ptp(same[0]) > 0.1


def test_a_wide_residual_network_is_pruned_and_compacted():
    network = residual((8, 20, 1))
    variables = busy(network, seed=2)
    x = jax.random.uniform(jax.random.key(0), (6, 8, 20, 1))
    mask = masks.random(jax.random.key(1), network, 0.6)
    smaller, weights = compaction.compact(network, variables, mask)
    masked = jax.jit(Classifier(network))((variables, mask), x)
    np.testing.assert_allclose(
        jax.jit(Classifier(smaller))((weights, None), x), masked, rtol=1e-4, atol=1e-4
    )
    assert cost.macs(network, mask) == cost.macs(smaller)


def moved(sides, count=300):
    """(count, 2) displacements that the augmentation gives a pixel in the middle."""
    middle = [side // 2 for side in sides]
    image = np.zeros((count, *sides, 1), np.float32)
    image[:, middle[0], middle[1]] = 1
    found = np.asarray(augment(jax.random.key(0), jnp.asarray(image), kind="shift"))
    assert (found.sum((1, 2, 3)) == 1).all()  # in the image still
    return np.argwhere(found[..., 0])[:, 1:] - middle


@pytest.mark.parametrize("sides", ((8, 32), (32, 8), (16, 16), (1, 16), (16, 1), (3, 40), (1, 1)))
def test_each_side_is_shifted_by_an_eighth_of_itself(sides):
    most = [min(max(1, side // 8), side - 1) for side in sides]
    found = moved(sides)
    np.testing.assert_array_equal(np.abs(found).max(0), most)
    np.testing.assert_array_equal(found.min(0), np.negative(most))


@pytest.mark.parametrize("side", (8, 28, 32))
def test_shifts_of_square_images_are_those_of_before(side):
    images = jax.random.uniform(jax.random.key(3), (5, side, side, 2))
    key_shift, _ = jax.random.split(jax.random.key(4))
    reach = max(1, side // 8)
    corners = jax.random.randint(key_shift, (5, 2), 0, 2 * reach + 1)
    padded = np.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    expected = [p[r : r + side, c : c + side] for p, (r, c) in zip(padded, corners, strict=True)]
    found = augment(jax.random.key(4), images, kind="shift")
    np.testing.assert_array_equal(found, expected)
