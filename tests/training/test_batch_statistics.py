"""Running statistics of batch norm are those of the data, however short the training was."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import thinned

from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.data.splits import Split, to_unit_range
from ccsrp_jax.networks import zoo
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.nodes import Norm
from ccsrp_jax.networks.spiking_network import SpikingNetwork
from ccsrp_jax.robustness.accuracy import correct
from ccsrp_jax.training.recipe import Recipe, needs_precise_bn
from ccsrp_jax.training.trainer import train

SIX_STEPS = Recipe(epochs=2, batch_size=100, learning_rate=0.02, warmup=0.0)


@pytest.fixture(scope="module")
def architecture(digits):
    return zoo.plain((12, "M", 16), (8, 8, 1), 10, time_steps=2, mean=digits.mean, std=digits.std)


def trained(architecture, split: Split, recipe: Recipe, **options) -> dict:
    start = zoo.init(jax.random.key(0), architecture)
    return train(jax.random.key(1), Classifier(architecture), start, None, split, recipe, **options)


def accuracy_in_training_mode(architecture, variables: dict, split: Split) -> float:
    """With the statistics of the images themselves."""
    images = to_unit_range(jnp.asarray(split.images))
    network = SpikingNetwork(architecture)
    logits, _ = network.apply(variables, images, train=True, mutable=["batch_stats"])
    return float((logits.argmax(-1) == split.labels).mean())


@pytest.mark.parametrize("ema", thinned([0.0, 0.5], [0.5]))
def test_six_steps_score_on_test_images_what_they_score_in_training_mode(ema, digits, architecture):
    split = Split(digits.train.images[:300], digits.train.labels[:300])
    recipe, scores = dataclasses.replace(SIX_STEPS, ema=ema), {}
    for choice in ("auto", "off"):
        variables = trained(architecture, split, dataclasses.replace(recipe, precise_bn=choice))
        network_state = variables, None
        hits = correct(Classifier(architecture), network_state, digits.test, batch_size=128)
        expected = accuracy_in_training_mode(architecture, variables, digits.test)
        scores[choice] = float(np.mean(hits)), expected
    assert scores["auto"][1] == scores["off"][1] > 0.5  # the same weights, which have learned
    assert scores["auto"][0] == pytest.approx(scores["auto"][1], abs=0.03)
    assert scores["off"][0] < scores["off"][1] - 0.1


def test_the_statistics_are_those_of_all_images_of_an_epoch(digits, architecture):
    split = Split(digits.train.images[:120], digits.train.labels[:120])
    recipe = Recipe(epochs=1, batch_size=30)
    variables = trained(architecture, split, recipe)
    norm = next(name for name in variables["batch_stats"])
    conv = next(node.name for node in architecture.nodes if node.has_kernel)
    images = np.asarray(to_unit_range(jnp.asarray(split.images)), np.float64)
    images = np.pad((images - digits.mean[0]) / digits.std[0], ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel = np.asarray(variables["params"][conv]["kernel"], np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(images, (3, 3), (1, 2))  # N H W C 3 3
    outputs = np.einsum("nhwcij,ijco->nhwo", windows, kernel).reshape(-1, kernel.shape[-1])
    found = variables["batch_stats"][norm]
    np.testing.assert_allclose(found["mean"], outputs.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["var"], outputs.var(0), rtol=1e-4, atol=1e-5)


def test_training_that_is_long_enough_keeps_its_moving_average(architecture):
    assert needs_precise_bn(Recipe(), architecture, 43) and not needs_precise_bn(
        Recipe(), architecture, 44
    )
    assert needs_precise_bn(Recipe(precise_bn="on"), architecture, 1000)
    assert not needs_precise_bn(Recipe(precise_bn="off"), architecture, 1)
    assert not needs_precise_bn(Recipe(), architecture, 0)
    norms = {node.name: node.input for node in architecture.nodes if isinstance(node, Norm)}
    nodes = tuple(
        dataclasses.replace(node, input=norms.get(node.input, node.input))
        for node in architecture.nodes
        if node.name not in norms
    )
    without = dataclasses.replace(architecture, nodes=nodes)
    assert not needs_precise_bn(Recipe(precise_bn="on"), without, 5)


def test_a_resumed_training_ends_with_the_same_statistics(digits, architecture):
    split = Split(digits.train.images[:60], digits.train.labels[:60])
    recipe = Recipe(epochs=3, batch_size=20, adversarial=PGD(0.1, 1))
    kept = {}
    whole = trained(
        *(architecture, split, recipe),
        on_checkpoint=lambda done, state: kept.update({done: jax.tree.map(np.array, state)}),
    )
    for done in (2, 3):
        again = trained(architecture, split, recipe, start=kept[done], first_epoch=done)
        assert jax.tree.all(jax.tree.map(np.array_equal, whole, again))
