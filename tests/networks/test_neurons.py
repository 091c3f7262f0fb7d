"""LIF neurons and surrogates: SpikingJelly's answers, closed forms and precision."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccsrp_jax.networks.neuron_layer import NeuronLayer
from ccsrp_jax.networks.neurons import LIF, SURROGATE_DERIVATIVES, Surrogate, lif
from ccsrp_jax.utils.errors import InputError

FIXTURES = Path(__file__).parents[1] / "fixtures"
FROZEN = dict(np.load(FIXTURES / "lif_spikingjelly.npz"))
PLIF = dict(np.load(FIXTURES / "plif_spikingjelly.npz"))


def frozen(kind, name, value):
    """SpikingJelly's answer of that name; see tests/oracles/make_fixtures.py."""
    return FROZEN[f"{kind}/{value}"][FROZEN[f"{kind}/name"].tolist().index(name)]


def run(neuron, surrogate, current, d_spikes, d_potentials):
    """Spikes, potentials and the current's gradient, as numpy."""
    (spikes, potentials), vjp = jax.vjp(
        lambda x: lif(x, neuron, surrogate, len(d_spikes)), jnp.asarray(current)
    )
    (gradient,) = vjp((jnp.asarray(d_spikes), jnp.asarray(d_potentials)))
    return np.asarray(spikes), np.asarray(potentials), np.asarray(gradient)


QUESTION = [FROZEN[name] for name in ("current", "d_spikes", "d_potentials")]


@pytest.mark.parametrize("decay", (False, True))
@pytest.mark.parametrize("detach", (False, True))
@pytest.mark.parametrize("reset", ("hard", "soft"))
def test_spikes_potentials_and_gradients_equal_spikingjelly(reset, detach, decay):
    neuron = LIF(reset=reset, detach_reset=detach, decay_input=decay)
    spikes, potentials, gradient = run(neuron, Surrogate(), *QUESTION)
    name = f"{reset} detach={detach} decay={decay}"
    np.testing.assert_array_equal(spikes, frozen("dialect", name, "spikes"))
    np.testing.assert_allclose(potentials, frozen("dialect", name, "potentials"), atol=1e-6)
    np.testing.assert_allclose(gradient, frozen("dialect", name, "gradient"), atol=1e-6)


@pytest.mark.parametrize("width", (0.5, 1.0, 2.0))
@pytest.mark.parametrize("shape", SURROGATE_DERIVATIVES)
def test_gradients_through_every_surrogate_equal_spikingjelly(shape, width):
    *_, gradient = run(LIF(), Surrogate(shape, width), *QUESTION)
    expected = frozen("surrogate", f"{shape} {width}", "gradient")
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


@pytest.mark.parametrize("detach", (False, True))
def test_delayed_soft_reset_follows_its_recurrence_and_adjoint(detach):
    current, d_spikes, d_potentials = QUESTION
    neuron = LIF(4.0, 0.8, "soft_delayed", decay_input=False, detach_reset=detach)
    surrogate, beta = Surrogate("sigmoid", 0.7), 1 - 1 / 4
    spikes, potentials, gradient = run(neuron, surrogate, *QUESTION)
    v, s = np.zeros((7, 12)), np.zeros((7, 12))  # index -1 is the rest before the first step
    for t, x in enumerate(current):
        v[t] = beta * v[t - 1] + x - 0.8 * s[t - 1]
        s[t] = v[t] >= 0.8
    np.testing.assert_array_equal(spikes, s[:-1])
    np.testing.assert_allclose(potentials, v[:-1], atol=1e-5)
    slope = np.asarray(surrogate.derivative(jnp.asarray(v - 0.8, jnp.float32)))
    d_current = np.zeros((7, 12))
    for t in reversed(range(6)):
        later = d_current[t + 1]
        d_spike = d_spikes[t] - (0 if detach else 0.8 * later)
        d_current[t] = d_potentials[t] + slope[t] * d_spike + beta * later
    np.testing.assert_allclose(gradient, d_current[:-1], atol=1e-5)
    assert 0.2 < s.mean() < 0.8


@pytest.mark.parametrize("index", range(24))
def test_learned_leaks_equal_spikingjelly(index):
    """Spikes, and the gradients for the current and for the parameter behind the leak."""
    name = str(PLIF["name"][index])
    tau, reset, *switches = name.split()
    decay, detach = (switch.endswith("True") for switch in switches)
    neuron = LIF(float(tau), 0.8, reset, decay_input=decay, detach_reset=detach, learned=True)
    layer = NeuronLayer(neuron)
    spikes, vjp = jax.vjp(
        lambda x, variables: lif(x, neuron, Surrogate(), 6, layer.apply(variables, 1).leak)[0],
        jnp.asarray(PLIF["current"]),
        layer.init(jax.random.key(0), 1),
    )
    d_current, d_variables = vjp(jnp.asarray(PLIF["d_spikes"]))
    np.testing.assert_array_equal(spikes, PLIF["spikes"][index], name)
    np.testing.assert_allclose(d_current, PLIF["gradient"][index], atol=1e-5)
    np.testing.assert_allclose(d_variables["params"]["leak"], PLIF["leak"][index], atol=1e-5)


@pytest.mark.parametrize("detach", (False, True))
@pytest.mark.parametrize("decay", (False, True))
@pytest.mark.parametrize("reset", ("hard", "soft", "soft_delayed"))
def test_gradient_of_the_leak_follows_the_recurrence(reset, decay, detach):
    """Against derivatives for the leak carried forward through time, in double precision."""
    current, d_spikes, d_potentials = QUESTION
    neuron = LIF(4.0, 0.8, reset, decay_input=decay, detach_reset=detach, learned=True)
    surrogate, k = Surrogate("sigmoid", 0.7), 0.3  # the leak has moved from 1 / 4
    spikes, vjp = jax.vjp(
        lambda leak: lif(jnp.asarray(current), neuron, surrogate, 6, leak), jnp.float32(k)
    )
    (gradient,) = vjp((jnp.asarray(d_spikes), jnp.asarray(d_potentials)))
    expected, v, dv, s, ds = 0.0, *np.zeros((4, 12))
    for t, x in enumerate(current.astype(np.float64)):
        through = 0.0 if detach else ds
        # what the reset left, and its derivative
        u, du = {
            "hard": (v * (1 - s), dv * (1 - s) - v * through),
            "soft": (v - 0.8 * s, dv - 0.8 * through),
            "soft_delayed": (v, dv),
        }[reset]
        v, dv = u * (1 - k) + x * (k if decay else 1), du * (1 - k) - u + x * decay
        if reset == "soft_delayed":
            v, dv = v - 0.8 * s, dv - 0.8 * through
        s = (v >= 0.8).astype(float)
        np.testing.assert_array_equal(spikes[0][t], s)
        ds = np.asarray(surrogate.derivative(jnp.asarray(v - 0.8, jnp.float32))) * dv
        expected += d_spikes[t] @ ds + d_potentials[t] @ dv
    assert abs(expected) > 0.1
    assert gradient == pytest.approx(expected, rel=1e-4)


def test_gradient_of_the_leak_below_threshold_equals_differences():
    """There the potential is smooth in the leak, so it can be differentiated by two runs."""
    current, neuron = jnp.linspace(0.1, 0.6, 6)[:, None], LIF(detach_reset=True, learned=True)

    def last(leak):
        return lif(current, neuron, Surrogate(), 6, leak)[1][-1, 0]

    slope = (last(jnp.float32(0.41)) - last(jnp.float32(0.39))) / 0.02
    assert jax.grad(last)(jnp.float32(0.4)) == pytest.approx(float(slope), rel=1e-3)


def test_below_threshold_the_potential_relaxes_exponentially():
    _, potentials = lif(jnp.full((1, 1), 0.9), LIF(tau=3.0), Surrogate(), 8)
    expected = 0.9 * (1 - (1 - 1 / 3) ** np.arange(1, 9))
    np.testing.assert_allclose(potentials[:, 0], expected, rtol=1e-6)


@pytest.mark.parametrize("reset", ("hard", "soft", "soft_delayed"))
def test_without_leak_a_quarter_of_the_threshold_fires_every_fourth_step(reset):
    # 0.25 sums exactly, so this also fixes that reaching the threshold fires.
    neuron = LIF(math.inf, reset=reset, decay_input=False)
    spikes, _ = lif(jnp.full((1, 1), 0.25), neuron, Surrogate(), 12)
    np.testing.assert_array_equal(spikes[:, 0], [0, 0, 0, 1] * 3)


@pytest.mark.parametrize("width", (0.3, 1.0, 2.5))
@pytest.mark.parametrize("shape", SURROGATE_DERIVATIVES)
def test_surrogate_has_area_one_and_peak_one_over_width(shape, width):
    surrogate = Surrogate(shape, width)
    # v = width tan(u) spreads the line over an interval, heavy tails included.
    u = (np.arange(200_000) + 0.5) / 200_000 * np.pi - np.pi / 2
    slope = np.asarray(surrogate.derivative(jnp.asarray(width * np.tan(u), jnp.float32)))
    area = (slope * width / np.cos(u) ** 2).mean() * np.pi
    assert area == pytest.approx(1, abs=1e-3)
    assert slope.max() == pytest.approx(1 / width, rel=1e-5)
    assert surrogate.derivative(jnp.zeros(1))[0] == pytest.approx(1 / width, rel=1e-6)
    np.testing.assert_allclose(slope, slope[::-1], rtol=1e-4)  # even


def test_the_surrogate_changes_gradients_and_not_outputs():
    surrogates = [
        Surrogate(shape, width) for shape in SURROGATE_DERIVATIVES for width in (0.5, 2.0)
    ]
    answers = [run(LIF(), surrogate, *QUESTION) for surrogate in surrogates]
    for i, (spikes, potentials, gradient) in enumerate(answers):
        np.testing.assert_array_equal(spikes, answers[0][0])
        np.testing.assert_array_equal(potentials, answers[0][1])
        for *_, other in answers[:i]:
            assert np.abs(gradient - other).max() > 0.01


@pytest.mark.parametrize("reset", ("hard", "soft", "soft_delayed"))
def test_the_state_is_float32_under_bfloat16_currents(reset):
    current = jnp.asarray(FROZEN["current"], jnp.bfloat16)
    neuron = LIF(tau=3.0, reset=reset)
    spikes, potentials = lif(current, neuron, Surrogate(), 6)
    exact_spikes, exact = lif(current.astype(jnp.float32), neuron, Surrogate(), 6)
    assert spikes.dtype == jnp.bfloat16 and potentials.dtype == jnp.float32
    np.testing.assert_array_equal(potentials, exact)
    np.testing.assert_array_equal(spikes.astype(jnp.float32), exact_spikes)
    # The state does hold more than bfloat16 could.
    assert (exact != exact.astype(jnp.bfloat16).astype(jnp.float32)).any()


@pytest.mark.parametrize("reset", ("hard", "soft", "soft_delayed"))
def test_one_constant_step_equals_the_tiled_current(reset):
    _, d_spikes, d_potentials = QUESTION
    current = np.abs(FROZEN["current"][:1])
    once = run(LIF(reset=reset), Surrogate(), current, d_spikes, d_potentials)
    tiled = run(LIF(reset=reset), Surrogate(), current.repeat(6, 0), d_spikes, d_potentials)
    np.testing.assert_array_equal(once[0], tiled[0])
    np.testing.assert_array_equal(once[1], tiled[1])
    np.testing.assert_allclose(once[2], tiled[2].sum(0, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize(
    "make, message",
    (
        (lambda: LIF(tau=0.5), "tau 0.5 is below 1"),
        (lambda: LIF(tau=math.nan), "tau nan is below 1"),
        (lambda: LIF(tau=1.0, learned=True), "tau 1.0 is where a learned leak starts"),
        (lambda: LIF(tau=math.inf, learned=True), "tau inf is where a learned leak starts"),
        (lambda: LIF(threshold=0.0), "threshold 0.0 is out of range"),
        (lambda: Surrogate("atn"), "did you mean atan"),
        (lambda: Surrogate(width=0.0), "width 0.0 is out of range"),
    ),
)
def test_impossible_constants_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
