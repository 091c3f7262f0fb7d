"""Current-based LIF neurons against loops written from the equations, and a family from outside."""

import dataclasses
import json
from dataclasses import dataclass
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import busy, jit

from ccsrp_jax.data.splits import Split
from ccsrp_jax.networks import compaction, masks, register_neuron, serialization, zoo
from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.cuba_lif import CubaLIF
from ccsrp_jax.networks.gradients import (
    AdaptiveSharpness,
    Hart,
    RateGradient,
    Relu,
    StraightThrough,
    lif_with_backward,
)
from ccsrp_jax.networks.neurons import LIF, NEURON_KINDS, Neuron, Surrogate, lif
from ccsrp_jax.networks.spiking_network import SpikingNetwork
from ccsrp_jax.training.recipe import Recipe
from ccsrp_jax.training.trainer import train
from ccsrp_jax.utils.errors import InputError

T, N = 7, 40
KINDS = [
    CubaLIF(2.5, 1.7, 0.6, reset, decay, detach)
    for reset, detach in (("hard", False), ("soft", True), ("soft_delayed", False))
    for decay in (True, False)
]


def currents(scale=1.0, seed=0):
    return (scale * np.random.default_rng(seed).normal(0.4, 1, (T, N))).astype(np.float32)


def simulate(neuron, x):
    """Spikes and potentials of one neuron after another, in plain Python floats."""
    spikes, potentials = np.zeros((T, N)), np.zeros((T, N))
    for n in range(N):
        v = i = pending = 0.0
        for t in range(T):
            i = (1 - 1 / neuron.tau_syn) * i + float(x[t, n])
            if neuron.decay_input:
                v = v + (i - v) / neuron.tau_mem
            else:
                v = (1 - 1 / neuron.tau_mem) * v + i
            v, pending = v - pending, 0.0
            potentials[t, n] = v
            if v >= neuron.threshold:
                spikes[t, n] = 1
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
    spikes, potentials = lif(jnp.asarray(x), neuron, Surrogate(), T)
    expected = simulate(neuron, x)
    np.testing.assert_array_equal(spikes, expected[0])
    np.testing.assert_allclose(potentials, expected[1], rtol=1e-4, atol=1e-5)
    assert 0.1 < expected[0].mean() < 0.9


def test_without_decayed_input_and_with_a_late_reset_it_is_snntorchs_synaptic():
    """syn = alpha syn + x; mem = beta mem + syn - reset threshold, where reset is the spike of the
    step before (snnTorch's documentation of Synaptic)."""
    alpha, beta, threshold, x = 0.6, 0.8, 1.0, currents()
    syn, mem, expected = np.zeros(N), np.zeros(N), []
    for t in range(T):
        reset = (mem - threshold > 0).astype(float)
        syn = alpha * syn + x[t]
        mem = beta * mem + syn - reset * threshold
        expected.append(mem - threshold > 0)
    neuron = CubaLIF(1 / (1 - beta), 1 / (1 - alpha), threshold, "soft_delayed", False)
    np.testing.assert_array_equal(lif(jnp.asarray(x), neuron, Surrogate(), T)[0], expected)


def test_with_decayed_input_and_a_hard_reset_it_is_norses_cell_one_step_earlier():
    """v' = v + dt tau_mem_inv (i - v), i' = i - dt tau_syn_inv i + x, z = v' > v_th, v = (1 - z) v'
    (Norse's documentation of LIFCell): the input of a step charges the membrane in the next."""
    mem, syn, threshold, x = 0.4, 0.3, 0.5, currents()
    v, i, expected = np.zeros(N), np.zeros(N), []
    for t in range(T + 1):
        v = v + mem * (i - v)
        i = i - syn * i + (x[t] if t < T else 0)
        expected.append(v > threshold)
        v = np.where(expected[-1], 0, v)
    spikes, _ = lif(jnp.asarray(x), CubaLIF(1 / mem, 1 / syn, threshold), Surrogate(), T)
    np.testing.assert_array_equal(spikes, expected[1:])
    assert not np.any(expected[0])


@pytest.mark.parametrize("decay", (True, False))
def test_without_synaptic_memory_it_is_the_lif_neuron(decay):
    x = jnp.asarray(currents())
    ours = lif(x, CubaLIF(2.5, 1.0, 0.6, decay_input=decay), Surrogate(), T)
    chex.assert_trees_all_close(ours, lif(x, LIF(2.5, 0.6, decay_input=decay), Surrogate(), T))


def written_out(neuron, x, slope):
    """The recurrence with `slope(v)` as the derivative of the spikes, by automatic differentiation
    of a sum that has it."""
    v = i = pending = jnp.zeros(N)
    total = []
    for t in range(T):
        i = (1 - 1 / neuron.tau_syn) * i + x[t]
        v = v + (i - v) / neuron.tau_mem if neuron.decay_input else v * (1 - 1 / neuron.tau_mem) + i
        v = v - pending
        far = v - neuron.threshold
        hard = (far >= 0).astype(jnp.float32)
        stopped = jax.lax.stop_gradient(far)
        s = hard + slope(stopped) * (far - stopped)
        total.append(s)
        back = jax.lax.stop_gradient(s) if neuron.detach_reset else s
        if neuron.reset == "hard":
            v = v * (1 - back)
        elif neuron.reset == "soft":
            v = v - neuron.threshold * back
        else:
            pending = neuron.threshold * back
    return jnp.stack(total)


@pytest.mark.parametrize("neuron", KINDS, ids=str)
def test_gradients_through_time_are_those_of_the_recurrence(neuron):
    x, weights = jnp.asarray(currents()), jnp.asarray(currents(seed=1))
    for backward, slope in (
        (Surrogate("triangle", 0.8), lambda v: jnp.maximum(0, 1 - jnp.abs(v) / 0.8) / 0.8),
        (StraightThrough(), jnp.ones_like),
    ):
        ours = jax.grad(
            lambda x, b=backward: (lif_with_backward(x, neuron, b, T)[0] * weights).sum()
        )(x)
        theirs = jax.grad(lambda x, f=slope: (written_out(neuron, x, f) * weights).sum())(x)
        chex.assert_trees_all_close(ours, theirs, rtol=1e-4, atol=1e-5)
        assert np.abs(ours).max() > 0.1


@pytest.mark.parametrize("decay", (True, False))
def test_every_backward_leaves_the_spikes_and_rate_gradients_see_the_steady_current(decay):
    neuron, x = CubaLIF(2.5, 1.7, 0.6, decay_input=decay), jnp.asarray(currents())
    spikes, _ = lif(x, neuron, Surrogate(), T)
    for backward in (StraightThrough(), RateGradient("rga"), Hart(), AdaptiveSharpness()):
        out, vjp = jax.vjp(lambda x, b=backward: lif_with_backward(x, neuron, b, T)[0], x)
        np.testing.assert_array_equal(out, spikes)
        [slope] = vjp(jnp.ones_like(out))
        assert np.isfinite(slope).all() and np.abs(slope).max() > 1e-3
    gain = 1.7 / (0.6 * (2.5 if decay else 1))  # thresholds for a constant current of 1
    rate = jax.grad(lambda x: lif_with_backward(x, neuron, RateGradient(), T)[0].sum())(x)
    chex.assert_trees_all_close(rate, np.tile(np.asarray(spikes).any(0) * gain, (T, 1)), rtol=1e-5)
    relu, _, _ = lif_with_backward(x, neuron, Relu(), T)
    chex.assert_trees_all_close(relu, np.maximum(gain * x, 0), rtol=1e-5)


def test_a_network_of_them_is_trained_pruned_compacted_saved_and_loaded(digits, images, tmp_path):
    neuron = CubaLIF(3.0, 2.0, 0.5, "soft", False)
    architecture = zoo.plain((5, "A", 4), (8, 8, 1), 10, time_steps=2, neuron=neuron)
    split = Split(*(part[:32] for part in digits.train))
    recipe = Recipe(epochs=1, batch_size=32, learning_rate=0.1)
    variables = busy(architecture, seed=0)
    mask = masks.random(jax.random.key(2), architecture, 0.6)
    trained = train(jax.random.key(0), Classifier(architecture), variables, mask, split, recipe)
    assert (trained["params"]["conv2"]["kernel"] != variables["params"]["conv2"]["kernel"]).any()
    smaller, weights = compaction.compact(architecture, trained, mask)
    run = jit(lambda a, *args: SpikingNetwork(a).apply(*args), static_argnums=0)
    masked = run(architecture, trained, images, mask)
    chex.assert_trees_all_close(run(smaller, weights, images), masked, atol=1e-5)
    serialization.save(tmp_path / "network", smaller, weights)
    again, read = serialization.load(tmp_path / "network")
    assert again == smaller and again.neuron == neuron
    chex.assert_trees_all_equal(run(again, read, images), run(smaller, weights, images))


def test_only_other_families_than_lif_name_their_kind_in_files(monkeypatch):
    described = json.loads(zoo.plain((3,), (8, 8, 1), 10, neuron=LIF(3.0)).to_json())
    assert described["neuron"] == dataclasses.asdict(LIF(3.0))
    text = zoo.plain((3,), (8, 8, 1), 10, neuron=CubaLIF(3.0)).to_json()
    assert json.loads(text)["neuron"] == {"kind": "CubaLIF"} | dataclasses.asdict(CubaLIF(3.0))
    monkeypatch.delitem(NEURON_KINDS, "CubaLIF")
    with pytest.raises(InputError, match="neurons of kind 'CubaLIF', which is not registered"):
        Architecture.from_json(text)


class Potential(NamedTuple):
    v: jax.Array


@dataclass(frozen=True)
class QuadraticIF(Neuron):
    """A family from outside the library: dv = a v (v - c) + x, with a hard reset."""

    threshold: float = 1.0
    critical: float = 0.3
    reset: str = "hard"
    detach_reset: bool = False

    @property
    def membrane_tau(self):
        return 1.0

    def initial_state(self, shape):
        return Potential(jnp.zeros(shape))

    def charge(self, state, x, leak):
        return Potential(state.v + 0.5 * state.v * (state.v - self.critical) + x)


register_neuron(QuadraticIF)


def test_a_family_from_outside_runs_saves_and_loads(images, tmp_path):
    neuron, x = QuadraticIF(), currents(0.5)
    v, expected = np.zeros(N), []
    for t in range(T):
        v = v + 0.5 * v * (v - 0.3) + x[t]
        expected.append(v >= 1)
        v = np.where(expected[-1], 0, v)
    np.testing.assert_array_equal(lif(jnp.asarray(x), neuron, Surrogate(), T)[0], expected)
    with pytest.raises(InputError, match="rate-based gradients are not defined for QuadraticIF"):
        lif_with_backward(jnp.asarray(x), neuron, RateGradient(), T)
    architecture = zoo.plain((3,), (8, 8, 1), 10, time_steps=2, neuron=neuron)
    variables = busy(architecture, seed=0)
    serialization.save(tmp_path / "network", architecture, variables)
    again, read = serialization.load(tmp_path / "network")
    assert again == architecture
    assert np.isfinite(SpikingNetwork(again).apply(read, images[:2])).all()


def test_constants_and_registrations_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"CubaLIF tau_syn 0\.5"):
        CubaLIF(tau_syn=0.5)
    with pytest.raises(InputError, match=r"CubaLIF threshold 0\.0"):
        CubaLIF(threshold=0.0)
    with pytest.raises(InputError, match="a neuron 'LIF' is registered already"):
        register_neuron(dataclasses.make_dataclass("LIF", [], bases=(Neuron,), frozen=True))
    unknown = dataclasses.make_dataclass("Unknown", [], bases=(QuadraticIF,), frozen=True)
    with pytest.raises(InputError, match="Unknown, which is not registered"):
        zoo.plain((3,), (8, 8, 1), 10, neuron=unknown())
