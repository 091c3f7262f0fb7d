"""LIF neurons that are connected with themselves, against plain loops and closed forms."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import busy, jit

from ccsrp_jax.data.splits import Split
from ccsrp_jax.networks import compaction, cost, masks, serialization, zoo
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.gradients import (
    AdaptiveSharpness,
    Hart,
    RateGradient,
    Relu,
    StraightThrough,
    lif_with_backward,
)
from ccsrp_jax.networks.neurons import LIF, Surrogate, lif
from ccsrp_jax.networks.self_connected_lif import SelfConnectedLIF
from ccsrp_jax.networks.spiking_network import SpikingNetwork
from ccsrp_jax.training.recipe import Recipe
from ccsrp_jax.training.trainer import train
from ccsrp_jax.utils.errors import InputError

T, B, C = 6, 8, 5
KINDS = [
    SelfConnectedLIF(2.5, 0.6, reset, decay, detach)
    for reset, detach in (("hard", False), ("soft", True), ("soft_delayed", False))
    for decay in (True, False)
]
WEIGHTS = jnp.array([-0.7, -0.2, 0.0, 0.3, 0.8])


def currents(seed=0):
    return np.random.default_rng(seed).normal(0.5, 0.8, (T, B, C)).astype(np.float32)


def simulate(neuron, x, weights):
    """Spikes and potentials of one neuron after another, in plain Python floats."""
    spikes, potentials = np.zeros(x.shape), np.zeros(x.shape)
    for b in range(B):
        for c in range(C):
            v = pending = before = 0.0
            for t in range(len(x)):
                current = float(x[t, b, c])
                if neuron.decay_input:
                    v = v + (current - v) / neuron.tau
                else:
                    v = (1 - 1 / neuron.tau) * v + current
                v = v - pending + float(weights[c]) * before
                pending = before = 0.0
                potentials[t, b, c] = v
                if v >= neuron.threshold:
                    spikes[t, b, c] = before = 1.0
                    if neuron.reset == "hard":
                        v = 0.0
                    elif neuron.reset == "soft":
                        v -= neuron.threshold
                    else:
                        pending = neuron.threshold
    return spikes, potentials


@pytest.mark.parametrize("neuron", KINDS, ids=str)
def test_spikes_and_potentials_equal_a_plain_loop(neuron):
    x = currents()
    spikes, potentials = lif(jnp.asarray(x), neuron, Surrogate(), T, self_weight=WEIGHTS)
    expected = simulate(neuron, x, WEIGHTS)
    np.testing.assert_array_equal(spikes, expected[0])
    np.testing.assert_allclose(potentials, expected[1], rtol=1e-4, atol=1e-5)
    assert (simulate(neuron, x, 0 * WEIGHTS)[0] != expected[0])[..., (0, 4)].any()


def test_in_the_first_step_and_without_weight_it_is_the_lif_neuron():
    x, plain = jnp.asarray(currents()), LIF(2.5, 0.6, "soft")
    neuron = SelfConnectedLIF(2.5, 0.6, "soft")
    first = lif(x[:1], neuron, Surrogate(), 1, self_weight=WEIGHTS)
    chex.assert_trees_all_equal(first, lif(x[:1], plain, Surrogate(), 1))
    chex.assert_trees_all_equal(
        lif(x, neuron, Surrogate(), T, self_weight=0 * WEIGHTS), lif(x, plain, Surrogate(), T)
    )


def written_out(neuron, x, weights, slope):
    """The recurrence with `slope(v)` as the derivative of the spikes, by automatic differentiation
    of a sum that has it."""
    v = pending = before = jnp.zeros((B, C))
    total = []
    for t in range(T):
        decay = 1 - 1 / neuron.tau
        v = decay * v + (x[t] / neuron.tau if neuron.decay_input else x[t])
        v = v - pending + weights * before
        far = v - neuron.threshold
        stopped = jax.lax.stop_gradient(far)
        before = (far >= 0).astype(jnp.float32) + slope(stopped) * (far - stopped)
        total.append(before)
        back = jax.lax.stop_gradient(before) if neuron.detach_reset else before
        if neuron.reset == "hard":
            v = v * (1 - back)
        elif neuron.reset == "soft":
            v = v - neuron.threshold * back
        else:
            pending = neuron.threshold * back
    return jnp.stack(total)


@pytest.mark.parametrize("neuron", KINDS[::3], ids=str)
def test_gradients_of_input_and_weight_are_those_of_the_recurrence(neuron):
    x, seen = jnp.asarray(currents()), jnp.asarray(currents(seed=1))
    backward = Surrogate("triangle", 0.8)

    def ours(x, w):
        return (lif_with_backward(x, neuron, backward, T, self_weight=w)[0] * seen).sum()

    def theirs(x, w):
        slope = lambda v: jnp.maximum(0, 1 - jnp.abs(v) / 0.8) / 0.8  # noqa: E731
        return (written_out(neuron, x, w, slope) * seen).sum()

    found, expected = (jax.grad(f, (0, 1))(x, WEIGHTS) for f in (ours, theirs))
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(found[1]).min() > 1e-3


def test_every_backward_leaves_the_spikes_and_all_but_rates_reach_the_weight():
    neuron, x = SelfConnectedLIF(2.5, 0.6), jnp.asarray(currents())
    spikes, _ = lif(x, neuron, Surrogate(), T, self_weight=WEIGHTS)
    for backward in (StraightThrough(), AdaptiveSharpness(), RateGradient("rga"), Hart()):
        rates = isinstance(backward, (RateGradient, Hart))

        def run(x, w, backward=backward):
            return lif_with_backward(x, neuron, backward, T, self_weight=w)[0]

        out, vjp = jax.vjp(run, x, WEIGHTS)
        np.testing.assert_array_equal(out, spikes)
        by_input, by_weight = vjp(jnp.ones_like(out))
        assert np.abs(by_input).max() > 1e-3
        assert (np.abs(by_weight).max() < 1e-6) == rates
    relu, _, _ = lif_with_backward(x, neuron, Relu(), T, self_weight=WEIGHTS)
    chex.assert_trees_all_close(relu, np.maximum(x / (2.5 * 0.6), 0), rtol=1e-5)


@pytest.fixture(scope="module")
def trained(digits):
    """A network and its masks, after an epoch on a few digits."""
    neuron = SelfConnectedLIF(2.0, 0.5, "soft", initial_weight=0.2, learned=True)
    architecture = zoo.plain((5, "A", 4), (8, 8, 1), 10, dense=(6,), time_steps=3, neuron=neuron)
    split = Split(*(part[:32] for part in digits.train))
    start = busy(architecture, seed=0)
    kept = masks.random(jax.random.key(2), architecture, 0.6)
    recipe = Recipe(epochs=1, batch_size=32, learning_rate=0.1)
    variables = train(jax.random.key(0), Classifier(architecture), start, kept, split, recipe)
    return architecture, start, variables, kept


def test_every_layer_learns_its_weights_but_not_those_of_removed_channels(trained):
    architecture, start, variables, kept = trained
    for layer, group in (("lif1", "conv1"), ("lif2", "conv2")):
        before, after = (tree["params"][layer]["self_weight"] for tree in (start, variables))
        np.testing.assert_array_equal(before != after, np.asarray(kept[group], bool))
        assert variables["params"][layer]["leak"] != start["params"][layer]["leak"]
    shapes = {
        name: leaves["self_weight"].shape
        for name, leaves in start["params"].items()
        if "self_weight" in leaves
    }
    assert sorted(shapes.values()) == [(4,), (5,), (6,)]
    fresh = zoo.init(jax.random.key(0), architecture)["params"]["lif1"]["self_weight"]
    np.testing.assert_array_equal(fresh, np.full(5, 0.2, np.float32))


def test_a_compact_network_is_the_masked_one_and_survives_a_file(trained, images, tmp_path):
    architecture, _, variables, kept = trained
    smaller, weights = compaction.compact(architecture, variables, kept)
    run = jit(lambda a, *args: SpikingNetwork(a).apply(*args), static_argnums=0)
    masked, compact = run(architecture, variables, images, kept), run(smaller, weights, images)
    chex.assert_trees_all_close(compact, masked, atol=1e-5)
    serialization.save(tmp_path / "network", smaller, weights)
    again, read = serialization.load(tmp_path / "network")
    assert again == smaller and again.neuron == architecture.neuron
    chex.assert_trees_all_equal(run(again, read, images), compact)
    del read["params"]["lif1"]["self_weight"]
    with pytest.raises(InputError, match="lacks the tensors params/lif1/self_weight"):
        serialization.save(tmp_path / "other", again, read)


def test_costs_of_the_connections_have_a_closed_form(trained, images):
    architecture, _, variables, kept = trained
    plain = zoo.plain(
        (5, "A", 4), (8, 8, 1), 10, dense=(6,), time_steps=3, neuron=LIF(learned=True)
    )
    one, two, three = (float(sum(kept[name])) for name in ("conv1", "conv2", "fc1"))
    neurons = {"lif1": one * 8 * 8, "lif2": two * 4 * 4, "fc1.lif": three}
    macs, without = cost.macs(architecture, kept), cost.macs(plain, kept)
    assert macs == without | neurons
    weights = {"lif1": one, "lif2": two, "fc1.lif": three}
    more = {name: n + weights.get(name, 0) for name, n in cost.params(plain, kept).items()}
    assert cost.params(architecture, kept) == more
    every = cost.layer_macs(architecture)
    assert every["lif1"] == 3 * 5 * 8 * 8 and every["conv1"] == cost.layer_macs(plain)["conv1"]
    found = cost.synops(architecture, variables, images, kept)
    run = jit(lambda *args: SpikingNetwork(architecture).apply(*args, activity=True))
    _, activity = run(variables, images, kept)
    for name in neurons:
        fed_back = np.asarray(activity.spikes[name])[:2].sum() / len(images)
        assert found[name] == pytest.approx(fed_back, rel=1e-5)
    assert found["lif1"] > 0 and found.keys() - neurons.keys() == {"conv2", "fc1", "classifier"}


def test_constants_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"SelfConnectedLIF tau 0\.5"):
        SelfConnectedLIF(tau=0.5)
    with pytest.raises(InputError, match="SelfConnectedLIF tau inf is where a learned leak starts"):
        SelfConnectedLIF(tau=float("inf"), learned=True)
    with pytest.raises(InputError, match="SelfConnectedLIF initial_weight nan"):
        SelfConnectedLIF(initial_weight=float("nan"))
