"""Stochastic LIF neurons: closed forms of their law, plain loops, keys, compaction, attacks."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import busy, jit

from ccsrp_jax.attacks.gradients import loss_and_gradient
from ccsrp_jax.data.splits import Split
from ccsrp_jax.networks import compaction, cost, masks, serialization, zoo
from ccsrp_jax.networks.architecture import Architecture, varies_in_time
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.gradients import (
    AdaptiveSharpness,
    Hart,
    RateGradient,
    StraightThrough,
    lif_with_backward,
)
from ccsrp_jax.networks.neuron_layer import draw_noise
from ccsrp_jax.networks.neurons import LIF, Surrogate, lif
from ccsrp_jax.networks.spiking_network import SpikingNetwork
from ccsrp_jax.networks.stochastic_lif import StochasticLIF
from ccsrp_jax.robustness.accuracy import predict
from ccsrp_jax.training.recipe import Recipe
from ccsrp_jax.training.trainer import train
from ccsrp_jax.utils.errors import InputError

KEY, OTHER = jax.random.key(0), jax.random.key(1)
T, N = 6, 40


def currents():
    return np.random.default_rng(0).normal(0.5, 0.8, (T, N)).astype(np.float32)


def noisy(reset="hard", membrane=0.3, firing=0.2, **options):
    return StochasticLIF(2.5, 0.6, reset, membrane_noise=membrane, firing_noise=firing, **options)


def simulate(neuron, x, membrane, firing):
    """Spikes and potentials of one neuron after another with the given noise."""
    spikes, potentials = np.zeros(x.shape), np.zeros(x.shape)
    for n in range(N):
        v = pending = 0.0
        for t in range(T):
            current = float(x[t, n])
            if neuron.decay_input:
                v = v + (current - v) / neuron.tau
            else:
                v = (1 - 1 / neuron.tau) * v + current
            v, pending = v - pending + float(membrane[t, n]), 0.0
            potentials[t, n] = v
            if v + float(firing[t, n]) >= neuron.threshold:
                spikes[t, n] = 1
                if neuron.reset == "hard":
                    v = 0.0
                elif neuron.reset == "soft":
                    v -= neuron.threshold
                else:
                    pending = neuron.threshold
    return spikes, potentials


@pytest.mark.parametrize("reset", ("hard", "soft", "soft_delayed"))
@pytest.mark.parametrize("decay", (True, False))
def test_spikes_and_potentials_equal_a_plain_loop_with_the_same_noise(reset, decay):
    neuron, x = noisy(reset, decay_input=decay), currents()
    noise = neuron.noise(KEY, x.shape)
    spikes, potentials = lif(jnp.asarray(x), neuron, Surrogate(), T, noise=noise)
    expected = simulate(neuron, x, *noise)
    np.testing.assert_array_equal(spikes, expected[0])
    np.testing.assert_allclose(potentials, expected[1], rtol=1e-4, atol=1e-5)
    assert (simulate(neuron, x, *np.zeros((2, *x.shape)))[0] != expected[0]).any()


def test_in_one_step_the_chance_to_fire_has_a_closed_form():
    """A logistic law of escape noise, a normal one of membrane noise; five standard errors."""
    count, above = 40_000, np.array([-0.5, -0.1, 0.0, 0.2, 0.6])
    x = jnp.asarray(np.repeat((0.6 + above)[:, None], count, 1)[None], jnp.float32)
    laws = (
        (noisy(membrane=0.0, decay_input=False), 1 / (1 + np.exp(-above / 0.2))),
        (
            noisy(firing=0.0, decay_input=False),
            np.array([0.5 * math.erfc(-v / 0.3 / 2**0.5) for v in above]),
        ),
    )
    for neuron, chance in laws:
        spikes, _ = lif(x, neuron, Surrogate(), 1, noise=neuron.noise(KEY, x.shape))
        error = np.abs(np.asarray(spikes[0]).mean(1) - chance)
        assert (error < 5 * np.sqrt(chance * (1 - chance) / count)).all()


def test_the_membrane_keeps_its_noise_and_leaks_it():
    """Variances and correlations of an autoregressive process with the membrane's retention."""
    neuron = StochasticLIF(2.5, 1e6, membrane_noise=0.3, firing_noise=0.5)
    x = jnp.zeros((1, 20_000))
    _, potentials = lif(x, neuron, Surrogate(), T, noise=neuron.noise(KEY, (T, 20_000)))
    potentials, kept = np.asarray(potentials), 1 - 1 / 2.5
    for t in range(T):
        variance = 0.3**2 * sum(kept ** (2 * k) for k in range(t + 1))
        assert potentials[t].var() == pytest.approx(variance, rel=0.05)
    covariance = np.mean(potentials[3] * potentials[5])
    assert covariance == pytest.approx(kept**2 * potentials[3].var(), rel=0.08)


def test_every_backward_leaves_the_spikes_and_has_a_gradient():
    neuron, x = noisy(), jnp.asarray(currents())
    noise = neuron.noise(KEY, x.shape)
    spikes, _ = lif(x, neuron, Surrogate(), T, noise=noise)
    for backward in (StraightThrough(), AdaptiveSharpness(), RateGradient("rga"), Hart()):
        out, vjp = jax.vjp(
            lambda x, b=backward: lif_with_backward(x, neuron, b, T, noise=noise)[0], x
        )
        np.testing.assert_array_equal(out, spikes)
        assert np.abs(vjp(jnp.ones_like(out))[0]).max() > 1e-3
    # one step: the surrogate at the noisy distance from the threshold
    one = jax.tree.map(lambda part: part[:1], noise)
    slope = jax.grad(lambda x: lif(x, neuron, Surrogate("triangle", 0.8), 1, noise=one)[0].sum())
    far = x[:1] / 2.5 + one.membrane + one.firing - 0.6
    expected = np.maximum(0, 1 - np.abs(far) / 0.8) / 0.8 / 2.5
    chex.assert_trees_all_close(slope(x[:1]), expected, atol=1e-5)


def test_without_noise_it_is_the_lif_neuron_and_with_it_needs_some():
    x, still = jnp.asarray(currents()), noisy("soft", 0.0, 0.0)
    assert not still.stochastic
    chex.assert_trees_all_equal(
        lif(x, still, Surrogate(), T), lif(x, LIF(2.5, 0.6, "soft"), Surrogate(), T)
    )
    with pytest.raises(InputError, match="StochasticLIF neurons draw at random"):
        lif(x, noisy(), Surrogate(), T)


# ---- networks


@pytest.fixture(scope="module")
def network():
    architecture = zoo.plain(
        (5, "A", 4), (8, 8, 1), 10, time_steps=2, mean=(0.3,), std=(0.4,), neuron=noisy("soft")
    )
    return architecture, busy(architecture, seed=0)


run = jit(
    lambda architecture, variables, images, kept, key: SpikingNetwork(architecture).apply(
        variables, images, kept, key=key
    ),
    static_argnums=0,
)


def test_a_network_follows_its_key_and_asks_for_one(network, images):
    architecture, variables = network
    classifier = Classifier(architecture)
    assert architecture.stochastic and not architecture.stochastic_encoding
    assert classifier.stochastic and not architecture.draws_in_training
    assert not varies_in_time(architecture)["norm1"]  # the image itself is not drawn
    once, again, other = (run(*network, images, {}, key) for key in (KEY, KEY, OTHER))
    np.testing.assert_array_equal(once, again)
    assert (once != other).any()
    sentence = r"^StochasticLIF neurons draw at random: give the network a key\."
    with pytest.raises(InputError, match=sentence):
        classifier((variables, None), images)
    with pytest.raises(InputError, match=sentence):
        cost.synops(architecture, variables, images)
    with pytest.raises(InputError, match=r"^a stochastic network draws at random: give a key\.$"):
        predict(classifier, (variables, None), images)
    votes = [predict(classifier, (variables, None), images, key=key) for key in (KEY, KEY)]
    np.testing.assert_array_equal(*votes)


def test_every_value_has_its_own_draw_which_follows_its_channel():
    neuron, filters = noisy(), jnp.arange(6, dtype=jnp.float32)
    noise = draw_noise(neuron, KEY, filters, (3, 4, 5, 5, 6))
    for part in noise:
        assert part.shape == (3, 4, 5, 5, 6)
        assert len(np.unique(part)) > 0.99 * part.size
    assert abs(np.corrcoef(*(np.ravel(part) for part in noise))[0, 1]) < 0.1
    # a channel keeps its draws where others are removed, and a number that is not quite whole
    kept = draw_noise(neuron, KEY, filters[np.array([1, 4])] + 0.01, (3, 4, 5, 5, 2))
    chex.assert_trees_all_equal(kept, jax.tree.map(lambda part: part[..., (1, 4)], noise))


def test_a_compact_network_draws_what_the_masked_one_does(network, images, tmp_path):
    architecture, variables = network
    kept = {"conv1": np.array([0, 1, 0, 1, 1.0]), "conv2": np.array([1.0, 0, 0, 1])}
    smaller, weights = compaction.compact(architecture, variables, kept)
    np.testing.assert_array_equal(weights["batch_stats"]["lif1"]["filter"], [1, 3, 4])
    masked = run(architecture, variables, images, kept, KEY)
    compact = run(smaller, weights, images, {}, KEY)
    chex.assert_trees_all_close(compact, masked, atol=1e-5)
    assert np.abs(compact - run(smaller, weights, images, {}, OTHER)).max() > 0.01
    serialization.save(tmp_path / "network", smaller, weights)
    again, read = serialization.load(tmp_path / "network")
    assert again == smaller and again.neuron == noisy("soft")
    chex.assert_trees_all_equal(run(again, read, images, {}, KEY), compact)
    text = architecture.to_json()
    assert Architecture.from_json(text) == architecture and '"kind": "StochasticLIF"' in text


def test_costs_are_those_of_lif_neurons(network, images):
    architecture, variables = network
    plain = zoo.plain((5, "A", 4), (8, 8, 1), 10, time_steps=2)
    assert cost.params(architecture) == cost.params(plain)
    assert cost.macs(architecture) == cost.macs(plain)
    once, again, other = (
        cost.synops(architecture, variables, images, key=key) for key in (KEY, KEY, OTHER)
    )
    assert once == again and once != other and once.keys() == {"conv2", "classifier"}


def test_attacks_average_gradients_over_draws(network, images, digits):
    architecture, variables = network
    classifier, labels = Classifier(architecture), jnp.asarray(digits.train.labels[:16])
    arguments = classifier, (variables, None), images, labels
    mean = loss_and_gradient(*arguments, key=KEY, samples=3)
    each = [loss_and_gradient(*arguments, key=key) for key in jax.random.split(KEY, 3)]
    expected = sum(found.gradient for found in each) / 3
    chex.assert_trees_all_close(mean.gradient, expected, atol=1e-6)
    assert np.abs(each[0].gradient - each[1].gradient).max() > 1e-4


def test_training_follows_its_key_and_keeps_the_numbers_of_filters(network, digits):
    architecture, variables = network
    split = Split(*(part[:32] for part in digits.train))
    recipe = Recipe(epochs=1, batch_size=16, ema=0.9)
    kept = masks.ones(architecture)
    first, again = (
        train(KEY, Classifier(architecture), variables, kept, split, recipe) for _ in range(2)
    )
    chex.assert_trees_all_equal(first, again)
    assert (first["params"]["conv2"]["kernel"] != variables["params"]["conv2"]["kernel"]).any()
    for layer, width in (("lif1", 5), ("lif2", 4)):
        numbers = first["batch_stats"][layer]["filter"]
        np.testing.assert_allclose(numbers, np.arange(width), atol=1e-5)


def test_constants_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"StochasticLIF tau 0\.5"):
        StochasticLIF(tau=0.5)
    with pytest.raises(InputError, match=r"StochasticLIF membrane_noise -0\.1"):
        StochasticLIF(membrane_noise=-0.1)
    with pytest.raises(InputError, match="StochasticLIF tau inf is where a learned leak starts"):
        StochasticLIF(tau=float("inf"), learned=True)
