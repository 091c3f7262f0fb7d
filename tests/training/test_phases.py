"""Training in phases: fewer time steps or ReLU first, and parameters that stay as they are."""

import dataclasses
from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import busy, jit, tiny
from workers import trainer

from ccsrp_jax.attacks.one_step import NFGSM
from ccsrp_jax.data.splits import Split
from ccsrp_jax.networks import zoo
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.gradients import Relu
from ccsrp_jax.networks.neurons import LIF, Surrogate
from ccsrp_jax.networks.spiking_network import SpikingNetwork
from ccsrp_jax.training import conversion, throughput, whitening
from ccsrp_jax.training import trainer as training
from ccsrp_jax.training.recipe import Recipe
from ccsrp_jax.utils.errors import InputError

SMALL = trainer.SMALL
PLAIN = Recipe(
    epochs=2, batch_size=12, precise_bn="off", adversarial=NFGSM(0.1), lookahead=2, ema=0.5
)


@pytest.fixture(scope="module")
def split(digits):
    return Split(digits.train.images[:24], digits.train.labels[:24])


def trained(split, plan, architecture=SMALL, variables=None, **options):
    start = busy(SMALL, seed=0) if variables is None else variables
    network = Classifier(architecture, **options.pop("classifier", {}))
    return training.train(jax.random.key(0), network, start, {}, split, plan, **options)


def test_early_epochs_are_those_of_a_network_with_fewer_time_steps(split):
    states = []
    plan = dataclasses.replace(PLAIN, early_epochs=1, early_time_steps=1)

    def keep(done, state):
        states.append(jax.device_get(state))

    trained(split, plan, on_checkpoint=keep)
    short = dataclasses.replace(SMALL, time_steps=1)
    plan = dataclasses.replace(plan, early_epochs=0)
    trained(split, plan, short, on_checkpoint=keep)
    whole = trained(split, plan, start=states[0], first_epoch=1)
    chex.assert_trees_all_equal(states[0], states[2])
    chex.assert_trees_all_equal(whole, states[1].ema)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(states[1], states[3])


def test_relu_epochs_are_those_of_the_relu_network_and_training_resumes_at_its_conversion(split):
    states = {}
    plan = dataclasses.replace(PLAIN, relu_epochs=1)

    def keep(done, state):
        states[done] = jax.device_get(state)

    whole = trained(split, plan, on_checkpoint=keep)
    again = trained(split, plan, start=states[1], first_epoch=1)
    chex.assert_trees_all_equal(again, whole)
    spiking = dataclasses.replace(plan, relu_epochs=0)
    relu = []
    trained(
        *(split, spiking),
        classifier={"surrogate": Relu()},
        on_checkpoint=lambda done, state: relu.append(jax.device_get(state)),
    )
    chex.assert_trees_all_equal(relu[0], states[1])
    assert throughput.training_macs(SMALL, plan, 0) < throughput.training_macs(SMALL, plan, 1)


def without_norms(architecture):
    """The same layers with biases in place of batch norm."""
    nodes = []
    for node in architecture.nodes:
        if node.name.startswith("conv"):
            nodes.append(dataclasses.replace(node, bias=True))
        elif node.name.startswith("lif"):
            nodes.append(dataclasses.replace(node, input=node.name.replace("lif", "conv")))
        elif not node.name.startswith("norm"):
            nodes.append(node)
    return dataclasses.replace(architecture, nodes=tuple(nodes))


@cache
def compiled(architecture, surrogate):
    return jit(partial(SpikingNetwork(architecture).apply, surrogate=surrogate, activity=True))


def activity(architecture, variables, images, surrogate=Relu()):
    logits, active = compiled(architecture, surrogate)(variables, images)
    return np.asarray(logits), active.spikes


@pytest.mark.parametrize("variant", ("batch norm", "biases"))
def test_a_converted_network_is_the_same_relu_network_and_spikes_at_its_rates(variant, digits):
    """Integrate-and-fire neurons with soft reset fire at the rate of the clipped activation."""
    neuron = LIF(tau=float("inf"), decay_input=False, reset="soft", threshold=0.5)
    options = {"time_steps": 16, "mean": (0.3,), "std": (0.4,), "neuron": neuron}
    architecture = zoo.plain((6, "A", 8, "G"), (8, 8, 1), 10, dense=(12,), **options)
    if variant == "biases":
        architecture = without_norms(architecture)
    variables, images = busy(architecture, seed=1), jnp.asarray(digits.train.images[:64])
    logits, spikes = activity(architecture, variables, images)
    by_layer = conversion.thresholds(architecture, variables, None, images, 0.9)
    for name, value in by_layer.items():
        expected = 0.9 * np.percentile(np.asarray(spikes[name]), 99.7)
        np.testing.assert_allclose(value, expected, rtol=1e-4)
    params = conversion.with_thresholds(architecture, variables["params"], by_layer)
    converted = {**variables, "params": params}
    same, scaled = activity(architecture, converted, images)
    np.testing.assert_allclose(same, logits, rtol=1e-4, atol=1e-5)
    for name, value in scaled.items():
        np.testing.assert_allclose(value, spikes[name] / by_layer[name], rtol=1e-3, atol=1e-5)
    if variant == "biases":
        return
    errors = [
        np.abs(activity(architecture, each, images, Surrogate())[0] - logits).mean()
        for each in (converted, variables)
    ]
    spread = np.abs(logits - logits.mean(1, keepdims=True)).mean()
    assert errors[0] < 0.5 * spread and errors[0] < 0.5 * errors[1], (errors, spread)


@pytest.mark.parametrize(
    ("changes", "architecture", "said"),
    (
        ({"relu_epochs": 1}, tiny("resnet8"), "one chain of layers"),
        ({"early_epochs": 1, "early_time_steps": 3}, SMALL, "early_time_steps 3"),
    ),
)
def test_networks_that_cannot_have_a_phase_are_refused(changes, architecture, said, split):
    with pytest.raises(InputError, match=said):
        plan = dataclasses.replace(PLAIN, **changes)
        trained(split, plan, architecture, busy(architecture, seed=0))


@pytest.mark.parametrize("changes", ({"relu_epochs": 2}, {"relu_epochs": 1, "membrane": 0.1}))
def test_recipes_that_cannot_have_a_phase_are_refused(changes):
    with pytest.raises(InputError, match="relu_epochs"):
        dataclasses.replace(PLAIN, **changes)


def test_a_whitening_first_layer_and_scales_of_batch_norm_stay_and_all_others_move(split):
    fixed = {"first_layer": "whitened", "norm_scale": "frozen", "weight_decay": 0.1}
    start = whitening.with_whitening(SMALL, busy(SMALL, seed=0), jnp.asarray(split.images))
    found = trained(split, dataclasses.replace(PLAIN, **fixed))["params"]
    still = {
        (name, leaf)
        for name, leaves in start["params"].items()
        for leaf, value in leaves.items()
        if np.allclose(value, found[name][leaf], rtol=1e-6)  # an average of equal ones
    }
    assert still == {("conv1", "kernel"), ("norm1", "scale"), ("norm2", "scale")}
    kernel = np.asarray(found["conv1"]["kernel"]).reshape(9, 4)
    np.testing.assert_array_equal(kernel[:, 2:], -kernel[:, :2])
    x = (np.asarray(split.images, np.float32) - 0.3) / 0.4
    patches = [x[:, i : i + 3, j : j + 3].reshape(24, -1) for i in range(6) for j in range(6)]
    responses = np.concatenate(patches) @ kernel[:, :2]
    np.testing.assert_allclose(responses.T @ responses / len(responses), np.eye(2), atol=0.02)


def test_all_whitening_filters_are_uncorrelated_and_in_order():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(300, 9, 9, 3)).cumsum(1).cumsum(2).astype(np.float32)
    filters = whitening.whitening_filters(images, 2)
    assert filters.shape == (2, 2, 3, 24)
    np.testing.assert_array_equal(filters[..., 12:], -filters[..., :12])
    patches = np.concatenate(
        [images[:, i : i + 2, j : j + 2].reshape(300, -1) for i in range(8) for j in range(8)]
    )
    responses = patches @ filters.reshape(12, 24)[:, :12]
    power = responses.T @ responses / len(responses)
    np.testing.assert_allclose(power, np.diag(np.diag(power)), atol=1e-3)
    assert (np.diag(power) > 0.99).all() and (np.diag(power) < 1.01).all()
    lengths = np.linalg.norm(filters.reshape(12, 24)[:, :12], axis=0)
    assert (np.diff(lengths) >= 0).all()  # the largest eigenvalue has the shortest filter
