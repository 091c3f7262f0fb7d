"""Backward passes: the output they leave alone, and plain numpy oracles of what they return."""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import thinned
from scipy.signal import correlate2d

from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.coevolution import subproblem
from ccsrp_jax.networks import cost, masks
from ccsrp_jax.networks.architecture import Architecture, varies_in_time
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.gradients import (
    AdaptiveSharpness,
    Distances,
    Hart,
    RandomWidth,
    RateGradient,
    Relu,
    SoftSpike,
    StraightThrough,
    lif_with_backward,
)
from ccsrp_jax.networks.neurons import LIF, Surrogate, lif
from ccsrp_jax.networks.nodes import Conv, Dense, Flatten, Norm, Pool, Spike
from ccsrp_jax.networks.spiking_network import SpikingNetwork
from ccsrp_jax.networks.zoo import init
from ccsrp_jax.robustness.accuracy import predict
from ccsrp_jax.utils.errors import InputError

T, N = 5, 60
KEEPING = (
    Surrogate("atan", 0.7),
    Surrogate("triangle", 2.0),
    StraightThrough(),
    RateGradient("bptr"),
    RateGradient("rga"),
    Hart(),
    Hart(Surrogate("sigmoid", 0.5)),
    AdaptiveSharpness(),
    AdaptiveSharpness(0.6, 0.3),
    RandomWidth(),
)
DIALECTS = [
    LIF(3.3, 0.37, reset, decay, detach_reset=detach)
    for reset, detach in (("hard", False), ("soft", True), ("soft_delayed", False))
    for decay in (False, True)
] + [
    LIF(2.0, 1.0, "hard", detach_reset=True),
    LIF(1.6, 0.8, "soft", decay_input=False),
    LIF(1.6, 0.8, "soft_delayed", detach_reset=True),
    LIF(math.inf, decay_input=False),
]
IN_DIALECTS = [(neuron, (T, 1)[i % 2]) for i, neuron in enumerate(DIALECTS)]
in_every_dialect = pytest.mark.parametrize("neuron, steps", IN_DIALECTS, ids=str)


def question(neuron, steps=T, seed=0):
    """Currents under which about half of the neurons spike, and gradients for what they do."""
    rng = np.random.default_rng(seed)
    scale = neuron.threshold * (neuron.tau if neuron.decay_input else 1)
    current = (scale * rng.normal(0.5, 1, (steps, N))).astype(np.float32)
    return current, *rng.normal(size=(2, T, N)).astype(np.float32)


def answer(neuron, backward, current, d_spikes, d_potentials, seen=None):
    """Spikes, potentials and the current's gradient; `seen` holds all steps' statistics."""
    if seen is not None:
        seen = tuple(Distances(*step) for step in zip(*seen, strict=True))
    out, vjp = jax.vjp(
        lambda x: lif_with_backward(x, neuron, backward, T, seen)[:2], jnp.asarray(current)
    )
    return *out, *vjp((jnp.asarray(d_spikes), jnp.asarray(d_potentials)))


def simulate(neuron, current):
    """Potentials and spikes by the recurrence, in double precision; S = T or 1."""
    v, late = np.zeros(N), np.zeros(N)
    potentials, spikes = [], []
    for t in range(T):
        x = current[t % len(current)].astype(float)
        v = (1 - 1 / neuron.tau) * v + (x / neuron.tau if neuron.decay_input else x) - late
        s = (v >= neuron.threshold).astype(float)
        potentials.append(v)
        spikes.append(s)
        if neuron.reset == "hard":
            v = v * (1 - s)
        elif neuron.reset == "soft":
            v = v - neuron.threshold * s
        else:
            late = neuron.threshold * s
    return np.array(potentials), np.array(spikes)


def through_time(neuron, current, slopes, d_spikes, d_potentials):
    """Backpropagation through time by hand, with those slopes (T, N) for the spikes'."""
    v, s = simulate(neuron, current)
    leak, gain = 1 - 1 / neuron.tau, 1 / neuron.tau if neuron.decay_input else 1
    attached = 0 if neuron.detach_reset else 1
    later = np.zeros(N)  # gradient for the potential of the next step
    d_current = np.zeros((T, N))
    for t in reversed(range(T)):
        d_spike = d_spikes[t].astype(float)
        if neuron.reset == "hard":
            d_spike = d_spike - attached * v[t] * leak * later
            kept = 1 - s[t]
        elif neuron.reset == "soft":
            d_spike = d_spike - attached * neuron.threshold * leak * later
            kept = 1
        else:
            d_spike = d_spike - attached * neuron.threshold * later
            kept = 1
        later = d_potentials[t] + slopes[t] * d_spike + kept * leak * later
        d_current[t] = gain * later
    return d_current if len(current) == T else d_current.sum(0, keepdims=True)


def atan(v, width):
    return 1 / (1 + (math.pi * v / width) ** 2) / width


def triangle(v, width):
    return np.maximum(0, 1 - np.abs(v) / width) / width


def sigmoid(v, width):
    a = 4 / width
    return a / (2 + np.exp(a * v) + np.exp(-a * v))


SLOPES = {"atan": atan, "triangle": triangle, "sigmoid": sigmoid}


def close(ours, theirs):
    theirs = np.asarray(theirs)
    assert np.abs(theirs).max() > 1e-3
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("neuron, steps", thinned(IN_DIALECTS, IN_DIALECTS[::3]), ids=str)
def test_every_backward_leaves_spikes_and_potentials_of_a_layer_as_they_are(neuron, steps):
    asked = question(neuron, steps)
    spikes, potentials = jax.jit(lambda x: lif(x, neuron, Surrogate(), T))(asked[0])
    assert 0.1 < spikes.mean() < 0.9
    ours = jax.jit(lambda *asked: [answer(neuron, backward, *asked) for backward in KEEPING])
    for found in ours(*asked):
        np.testing.assert_array_equal(found[0], spikes)
        # two programs, which XLA may round differently in the last place
        np.testing.assert_allclose(found[1], potentials, rtol=3e-7, atol=1e-7)
        assert np.isfinite(found[2]).all() and np.abs(found[2]).max() > 1e-3


def test_currents_in_half_precision_leave_spikes_in_it_and_potentials_out_of_it():
    current, d_spikes, d_potentials = question(LIF())
    asked = jnp.asarray(current, jnp.bfloat16), jnp.asarray(d_spikes, jnp.bfloat16), d_potentials
    spikes, potentials = lif(asked[0], LIF(), Surrogate(), T)
    for backward in KEEPING:
        found = answer(LIF(), backward, *asked)
        assert [each.dtype for each in found] == [jnp.bfloat16, jnp.float32, jnp.bfloat16]
        np.testing.assert_array_equal(found[0], spikes)
        np.testing.assert_array_equal(found[1], potentials)


@pytest.mark.parametrize(
    "reset, decay", thinned([("hard", True), ("soft_delayed", False)], [("soft_delayed", False)])
)
def test_every_backward_leaves_a_network_as_it_is(network, images, reset, decay):
    architecture, variables = network
    architecture = dataclasses.replace(architecture, neuron=LIF(1.7, 0.6, reset, decay))

    def run(backward):
        def forward(x):
            return SpikingNetwork(architecture).apply(
                variables, x, surrogate=backward, activity=True
            )

        # without optimisation, programs that differ also round differently
        @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3})
        def forward_and_back(x):
            out, vjp = jax.vjp(forward, x)
            return out, vjp(jax.tree.map(jnp.ones_like, out))

        return forward_and_back(images)

    (logits, activity), _ = run(Surrogate())
    assert all(0.01 < s.mean() < 0.99 for s in activity.spikes.values())
    for backward in (StraightThrough(), RateGradient(), Hart(), AdaptiveSharpness()):
        (ours, active), (gradient,) = run(backward)
        np.testing.assert_array_equal(ours, logits)
        for name in activity.spikes:
            np.testing.assert_array_equal(active.spikes[name], activity.spikes[name])
            np.testing.assert_array_equal(active.potentials[name], activity.potentials[name])
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


@in_every_dialect
def test_surrogates_and_straight_through_are_backpropagation_through_time(neuron, steps):
    asked = question(neuron, steps)
    v, spikes = simulate(neuron, asked[0])
    np.testing.assert_array_equal(answer(neuron, Surrogate(), *asked)[0], spikes)
    for name, slope in SLOPES.items():
        ours = answer(neuron, Surrogate(name, 0.8), *asked)[2]
        close(ours, through_time(neuron, asked[0], slope(v - neuron.threshold, 0.8), *asked[1:]))
    ours = answer(neuron, StraightThrough(), *asked)[2]
    close(ours, through_time(neuron, asked[0], np.ones((T, N)), *asked[1:]))


def test_straight_through_is_the_slope_of_a_threshold_made_a_ramp():
    # The same recurrence with v - threshold + 1/2 for the spike, around the same spikes.
    neuron = LIF(2.0, 1.0, "soft", decay_input=False)
    current, d_spikes, _ = question(neuron)
    _, s = simulate(neuron, current)

    def ramp(x):
        v, total = jnp.zeros(N), 0.0
        for t in range(T):
            v = v / 2 + x[t]
            spike = v - jax.lax.stop_gradient(v) + s[t]
            total = total + (spike * d_spikes[t]).sum()
            v = v - spike
        return total

    ours = answer(neuron, StraightThrough(), current, d_spikes, np.zeros((T, N), np.float32))
    close(ours[2], jax.jit(jax.grad(ramp))(jnp.asarray(current)))


def rate_slope(rule, neuron, mean, spikes):
    """d(rate)/d(mean current in thresholds), as the sources define it."""
    if rule == "bptr":
        return (spikes.sum(0) > 0).astype(float)
    k, g = 1 - 1 / neuron.tau, 0.2
    slope = np.zeros(N)
    slope[(mean >= 0) & (mean < 1 - k)] = g
    slope[(mean >= 1 - k) & (mean <= 2)] = (1 - g + g * k) / (k + 1)
    return slope


@in_every_dialect
@pytest.mark.parametrize("rule", ("bptr", "rga"))
def test_rate_gradients_are_their_closed_forms_of_the_mean_current(rule, neuron, steps):
    # Currents of several sizes, so that neurons end up in every branch.
    current, d_spikes, d_potentials = question(neuron, steps)
    current = current * np.linspace(0, 3, N, dtype=np.float32)
    divided = neuron.tau if neuron.decay_input else 1
    mean = current.mean(0) / divided / neuron.threshold
    _, spikes = simulate(neuron, current)
    slope = rate_slope(rule, neuron, mean, spikes)
    assert len(np.unique(slope)) == 2 + (rule == "rga" and math.isfinite(neuron.tau))
    # Every spike of the T sees the mean of the S currents.
    expected = slope * d_spikes.sum(0) / (divided * neuron.threshold * steps)
    ours = answer(neuron, RateGradient(rule), current, d_spikes, d_potentials)[2]
    close(ours, np.broadcast_to(expected, (steps, N)))


def test_the_two_lines_of_rga_meet_and_reach_a_rate_of_one_at_twice_the_threshold():
    # The rate is 0 at 0, g (1 - k) at 1 - k and 1 at 2, and straight in between.
    k, g = 1 - 1 / 3, 0.2
    neuron = LIF(3.0, 0.5, decay_input=False)
    means = np.array([-0.1, 0.1, 1 - k - 0.05, 1 - k + 0.05, 1.0, 1.9, 2.1], np.float32)

    def rate(current):
        return lif_with_backward(current, neuron, RateGradient("rga"), T)[0].sum() / T

    slope = jax.jit(jax.grad(rate))(jnp.asarray(0.5 * means)[None])[0] * 0.5
    np.testing.assert_allclose(slope[:3], (0, g, g), rtol=1e-6)
    np.testing.assert_allclose(g * (1 - k) + slope[3:6] * (2 - (1 - k)), 1, rtol=1e-6)
    assert slope[6] == 0


@in_every_dialect
@pytest.mark.parametrize("surrogate", (Surrogate("triangle", 1.0), Surrogate("atan", 0.5)), ids=str)
def test_hart_crosses_no_time_and_averages_over_it(surrogate, neuron, steps):
    asked = question(neuron, steps)
    v, _ = simulate(neuron, asked[0])
    gain = 1 / neuron.tau if neuron.decay_input else 1
    per_step = []
    for t in range(T):
        slope = SLOPES[surrogate.name](v[t] - neuron.threshold, surrogate.width)
        per_step.append(gain * slope * asked[1][t])
    # An input that is constant in time is every step's; each of T steps gets their average.
    expected = np.mean(per_step, 0) if steps == T else np.sum(per_step, 0)
    ours = answer(neuron, Hart(surrogate), *asked)[2]
    close(ours, np.broadcast_to(expected, (steps, N)))


def widths_by_hand(area, decay, distances):
    """Running means and widths over iterations, neuron by neuron and step by step."""
    shape = distances[0].shape
    mean, deviation = np.ones(shape), np.zeros(shape)
    for v in distances:
        for place in np.ndindex(shape):
            mean[place] = decay * mean[place] + (1 - decay) * abs(v[place])
            off = abs(abs(v[place]) - mean[place])
            deviation[place] = decay * deviation[place] + (1 - decay) * off
        alpha = 2 / math.pi * math.tan(math.pi * area / 2) / (mean + 1.5 * deviation + 1e-4)
        yield Distances(mean.copy(), deviation.copy()), 2 / alpha


@pytest.mark.parametrize("area, decay", ((0.85, 0.9), (0.5, 0.3), (0.85, 0.0)))
def test_adaptive_statistics_and_widths_are_their_running_means(area, decay):
    backward = AdaptiveSharpness(area, decay)
    distances = np.random.default_rng(0).normal(0, 2, (3, 4, 6)).astype(np.float32)
    seen = Distances(jnp.ones((4, 6)), jnp.zeros((4, 6)))
    expected = list(widths_by_hand(area, decay, distances))
    for v, (statistics, width) in zip(distances, expected, strict=True):
        seen = backward.update(seen, jnp.asarray(v))
        np.testing.assert_allclose(seen.mean, statistics.mean, rtol=1e-5)
        np.testing.assert_allclose(seen.deviation, statistics.deviation, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(backward.width(seen), width, rtol=1e-5)


@pytest.mark.parametrize("area", (0.1, 0.5, 0.85, 0.99))
def test_that_area_of_the_adaptive_surrogate_is_within_the_usual_distance(area):
    seen = Distances(jnp.array([0.3, 2.0]), jnp.array([0.1, 1.0]))
    width = np.asarray(AdaptiveSharpness(area).width(seen))
    reach = np.array([0.3, 2.0]) + 1.5 * np.array([0.1, 1.0])
    v = (np.arange(100_000) + 0.5) / 100_000 * reach[:, None]
    within = 2 * reach * atan(v, width[:, None]).mean(-1)
    np.testing.assert_allclose(within, area, rtol=2e-3)


@in_every_dialect
def test_adaptive_sharpness_is_bptt_with_each_neurons_own_width(neuron, steps):
    backward = AdaptiveSharpness(0.85, 0.6)
    questions = [question(neuron, steps, seed) for seed in range(3)]
    distances = [simulate(neuron, current)[0] - neuron.threshold for current, *_ in questions]
    seen = None
    for asked, v, (statistics, width) in zip(
        questions, distances, widths_by_hand(0.85, 0.6, distances), strict=True
    ):
        ours = answer(neuron, backward, *asked, seen)[2]
        close(ours, through_time(neuron, asked[0], atan(v, width), *asked[1:]))
        seen = Distances(*(jnp.asarray(each, jnp.float32) for each in statistics))


def direction(gradient):
    return gradient / max(np.linalg.norm(gradient), 1e-30)


@pytest.mark.parametrize("reset", ("hard", "soft", "soft_delayed"))
@pytest.mark.parametrize("scale", (0.01, 100.0))
def test_adaptive_gradients_do_not_mind_the_scale_of_membranes_and_fixed_ones_do(reset, scale):
    # The statistics start at 1 whatever the scale, so they are given time to settle.
    def gradients(backward, c, memory):
        neuron = LIF(2.0, c, reset)
        current, d_spikes, _ = question(LIF(2.0, 1.0, reset))
        asked = (jnp.float32(c) * current, d_spikes, np.zeros((T, N), np.float32))
        seen = None
        if memory:
            v = jnp.asarray(simulate(neuron, np.asarray(asked[0]))[0], jnp.float32) - c
            seen = Distances(jnp.ones((T, N)), jnp.zeros((T, N)))
            for _ in range(200):
                seen = backward.update(seen, v)
        return answer(neuron, backward, *asked, seen)[2]

    ours = [direction(gradients(AdaptiveSharpness(decay=0.8), c, True)) for c in (1.0, scale)]
    # A neuron on its threshold has a width of 1e-4 / a alone, which does not scale.
    assert (ours[0] * ours[1]).sum() > 0.99
    assert (np.abs(ours[1]) > 1e-4).mean() > 0.5
    fixed = [gradients(Surrogate("triangle", 1.0), c, False) for c in (1.0, scale)]
    share = [(np.abs(direction(gradient)) > 1e-4).mean() for gradient in fixed]
    if scale > 1:
        assert share[1] < 0.1 < 0.5 < share[0]
    else:  # far too wide, it is the straight-through gradient and tells nothing
        assert (direction(fixed[0]) * direction(fixed[1])).sum() < 0.9


def dense_network(seed=0, time_steps=4, neuron=LIF(2.5, 0.8, "soft")):
    """A hidden layer of LIF neurons, and its weights in double precision."""
    rng = np.random.default_rng(seed)
    nodes = (
        Flatten("flat", "image"),
        Dense("hidden", "flat", 10),
        Spike("lif", "hidden"),
        Dense("out", "lif", 3),
    )
    architecture = Architecture(nodes, (4, 4, 1), time_steps, neuron, (0.4,), (0.5,))
    draw = {
        "hidden": {"kernel": rng.normal(0, 1.2, (16, 10)), "bias": rng.normal(1, 0.5, 10)},
        "out": {"kernel": rng.normal(size=(10, 3)), "bias": rng.normal(size=3)},
    }
    weights = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), draw)
    images = rng.uniform(0, 1, (6, 4, 4, 1)).astype(np.float32)
    return architecture, {"params": weights}, draw, images


def test_a_stateful_gradient_follows_the_iterations_so_far():
    neuron = LIF(2.5, 0.8, "soft")
    architecture, variables, w, images = dense_network(neuron=neuron)
    backward, time_steps = AdaptiveSharpness(0.85, 0.7), architecture.time_steps
    classifier = Classifier(architecture, backward)
    assert classifier.stateful and not Classifier(architecture).stateful
    d_logits = np.random.default_rng(9).normal(size=(6, 3)).astype(np.float32)

    @jax.jit
    def ask(x, memory):
        def value(x):
            logits, after = classifier.apply_stateful((variables, None), x, memory)
            return (logits * d_logits).sum(), (logits, after)

        return jax.grad(value, has_aux=True)(x)

    leak, memory = 1 - 1 / 2.5, classifier.initial_state(6)
    mean, deviation = np.ones((time_steps, 6, 10)), np.zeros((time_steps, 6, 10))
    for iteration in range(3):
        x = np.clip(images + 0.2 * iteration * np.sign(images - 0.5), 0, 1)
        gradient, (logits, memory) = ask(x, memory)
        np.testing.assert_array_equal(
            logits, jax.jit(Classifier(architecture))((variables, None), x)
        )
        flat = ((x - 0.4) / 0.5).reshape(6, 16)
        current = flat @ w["hidden"]["kernel"] + w["hidden"]["bias"]
        v, vs, s = np.zeros((6, 10)), [], []
        for _ in range(time_steps):
            v = leak * v + current / 2.5
            vs.append(v)
            s.append((v >= 0.8).astype(float))
            v = v - 0.8 * s[-1]
        far = np.abs(np.array(vs) - 0.8)
        mean = 0.7 * mean + 0.3 * far
        deviation = 0.7 * deviation + 0.3 * np.abs(far - mean)
        assert list(memory) == ["lif"]
        now = Distances(*map(np.array, zip(*memory["lif"], strict=True)))
        np.testing.assert_allclose(now.mean, mean, rtol=1e-4)
        np.testing.assert_allclose(now.deviation, deviation, rtol=1e-3, atol=1e-5)
        alpha = 2 / math.pi * math.tan(math.pi * 0.425) / (mean + 1.5 * deviation + 1e-4)
        slope = atan(np.array(vs) - 0.8, 2 / alpha)
        d_spike = d_logits @ w["out"]["kernel"].T / time_steps
        later, d_current = np.zeros((6, 10)), np.zeros((6, 10))
        for t in reversed(range(time_steps)):
            later = slope[t] * (d_spike - 0.8 * leak * later) + leak * later
            d_current += later / 2.5
        close(gradient, (d_current @ w["hidden"]["kernel"].T / 0.5).reshape(x.shape))


def test_an_attack_through_adaptive_sharpness_keeps_its_memory():
    architecture, variables, _, images = dense_network()
    classifier = Classifier(architecture, AdaptiveSharpness(decay=0.5))
    params = (variables, None)
    labels = jnp.asarray(np.arange(6) % 3)

    def by_hand(remembering):
        fresh = classifier.initial_state(6)
        x, memory = jnp.asarray(images), fresh
        for _ in range(6):

            def loss(x, memory):
                logits, after = classifier.apply_stateful(params, x, memory)
                chance = jax.nn.log_softmax(logits)
                return -jnp.take_along_axis(chance, labels[:, None], 1).sum(), after

            gradient, after = jax.jit(jax.grad(loss, has_aux=True))(x, memory)
            memory = after if remembering else fresh
            x = jnp.clip(x + 0.3 * 2.5 / 6 * jnp.sign(gradient), images - 0.3, images + 0.3)
            x = jnp.clip(x, 0, 1)
        return x

    attack = PGD(0.3, 6, random_start=False)
    ours = attack(classifier, params, jnp.asarray(images), labels, jax.random.key(0))
    np.testing.assert_allclose(ours, by_hand(True), atol=1e-6)
    assert np.abs(ours - by_hand(False)).max() > 1e-3


def test_random_widths_are_bptt_with_each_images_own_width():
    neuron, backward, key = DIALECTS[0], RandomWidth("sigmoid", 0.1, 2.0), jax.random.key(3)
    current, d_spikes, d_potentials = question(neuron)
    v, _ = simulate(neuron, current)

    def run(x):
        spikes, potentials, after = lif_with_backward(x, neuron, backward, T, key)
        return (spikes, potentials), after

    _, vjp, after = jax.vjp(run, jnp.asarray(current), has_aux=True)
    widths = np.asarray(backward.draw(jax.random.split(key)[1], (N,)))
    slopes = sigmoid(v - neuron.threshold, widths)
    (ours,) = vjp((jnp.asarray(d_spikes), jnp.asarray(d_potentials)))
    close(ours, through_time(neuron, current, slopes, d_spikes, d_potentials))
    assert (jax.random.key_data(after) != jax.random.key_data(key)).any()


def test_random_widths_are_log_uniform_and_one_for_an_image():
    widths = RandomWidth("atan", 0.05, 0.8).draw(jax.random.key(0), (4000, 3, 2))
    assert widths.shape == (4000, 1, 1)
    np.testing.assert_allclose(
        np.quantile(widths, (0.0, 0.25, 0.5, 0.75, 1.0)), 0.05 * 2.0 ** np.arange(5), rtol=0.1
    )


def test_an_attack_draws_widths_anew_in_every_step_and_layer_by_its_key():
    architecture, variables, _, images = dense_network()
    params, labels = (variables, None), jnp.asarray(np.arange(6) % 3)
    random, fixed = (
        Classifier(architecture, RandomWidth("triangle", low, 3.0)) for low in (0.3, 3.0)
    )
    state = random.initial_state(6, jax.random.key(1))
    logits, after = random.apply_stateful(params, jnp.asarray(images), state)
    np.testing.assert_allclose(
        logits, Classifier(architecture)(params, jnp.asarray(images)), atol=1e-6
    )
    keys = [jax.random.key_data(key).tobytes() for key in (*state.values(), *after.values())]
    assert len(set(keys)) == 2 * len(state) == len(keys)
    attack = PGD(0.3, 4, random_start=False)

    def moved(classifier, seed):
        return attack(classifier, params, jnp.asarray(images), labels, jax.random.key(seed))

    np.testing.assert_array_equal(moved(random, 0), moved(random, 0))
    assert (moved(random, 0) != moved(random, 1)).any()  # other widths
    np.testing.assert_array_equal(moved(fixed, 0), moved(fixed, 1))
    single = attack(
        Classifier(architecture, Surrogate("triangle", 3.0)),
        params,
        jnp.asarray(images),
        labels,
        jax.random.key(0),
    )
    np.testing.assert_array_equal(moved(fixed, 0), single)


@pytest.mark.parametrize("reset, decay", (("hard", True), ("soft", False)))
def test_a_soft_spike_has_its_own_gradient_and_becomes_the_spike(reset, decay):
    neuron = LIF(1.6, 0.7, reset, decay)
    current, d_spikes, _ = question(neuron)

    @partial(jax.jit, static_argnums=1)
    def run(x, width):
        return lif_with_backward(x, neuron, SoftSpike(width), T)[0]

    spikes = lif(jnp.asarray(current), neuron, Surrogate(), T)[0]
    assert np.abs(run(current, 1e-5) - spikes).max() < 1e-3
    assert np.abs(run(current, 0.5) - spikes).max() > 0.2
    way = np.random.default_rng(1).normal(size=current.shape)

    def total(step):
        v, sum_ = np.zeros(N), 0.0
        for t in range(T):
            x = current[t] + step * way[t]
            v = (1 - 1 / neuron.tau) * v + (x / neuron.tau if decay else x)
            s = 1 / (1 + np.exp(-4 * (v - neuron.threshold) / 0.5))
            sum_ += (s * d_spikes[t]).sum()
            v = v * (1 - s) if reset == "hard" else v - neuron.threshold * s
        return sum_

    slope = (total(1e-5) - total(-1e-5)) / 2e-5
    gradient = jax.grad(lambda x: (run(x, 0.5) * d_spikes).sum())(jnp.asarray(current))
    assert abs(float((gradient * way).sum()) - slope) < 1e-3 * abs(slope)


def relu_by_hand(variables, images, gain):
    """A convolution, batch norm, ReLU, average pooling and two dense layers, in numpy."""
    w, moments = variables["params"], variables["batch_stats"]["norm"]
    padded = np.pad((images - 0.3) / 0.4, ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel = w["conv"]["kernel"]
    _, _, inputs, outputs = kernel.shape
    x = np.zeros((*images.shape[:3], outputs))
    for b, i, o in np.ndindex(len(images), inputs, outputs):
        x[b, ..., o] += correlate2d(padded[b, ..., i], kernel[..., i, o], "valid")
    x = (x - moments["mean"]) / np.sqrt(moments["var"] + 1e-5)
    first = np.maximum(gain * (x * w["norm"]["scale"] + w["norm"]["bias"]), 0)
    b, height, width, c = first.shape
    x = first.reshape(b, height // 2, 2, width // 2, 2, c).mean((2, 4)).reshape(b, -1)
    second = np.maximum(gain * (x @ w["fc"]["kernel"] + w["fc"]["bias"]), 0)
    return first, second, second @ w["out"]["kernel"] + w["out"]["bias"]


@pytest.mark.parametrize("decay, gain", ((False, 1 / 0.7), (True, 1 / (0.7 * 1.6))))
def test_relu_is_the_relu_network_of_the_same_weights_constant_in_time(decay, gain):
    nodes = (
        Conv("conv", "image", 5),
        Norm("norm", "conv"),
        Spike("lif1", "norm"),
        Pool("pool", "lif1"),
        Flatten("flat", "pool"),
        Dense("fc", "flat", 7),
        Spike("lif2", "fc"),
        Dense("out", "lif2", 4),
    )
    neuron = LIF(1.6, 0.7, decay_input=decay)
    architecture = Architecture(nodes, (6, 6, 2), 4, neuron, (0.3,) * 2, (0.4,) * 2)
    rng = np.random.default_rng(0)
    variables = jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            jnp.asarray(rng.uniform(0.3, 1.5, leaf.shape), jnp.float32)
            if path[-1].key in ("var", "scale")
            else jnp.asarray(rng.normal(0, 0.4, leaf.shape), jnp.float32)
        ),
        jax.eval_shape(lambda: init(jax.random.key(0), architecture)),
    )
    images = rng.uniform(0, 1, (3, 6, 6, 2)).astype(np.float32)
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, float), variables)
    first, second, expected = relu_by_hand(exact, images, gain)
    network = SpikingNetwork(architecture)
    logits, activity = jax.jit(
        lambda x: network.apply(variables, x, surrogate=Relu(), activity=True)
    )(images)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    for name, rates in (("lif1", first), ("lif2", second)):
        assert 0.2 < (rates > 0).mean() < 0.9
        assert activity.spikes[name].shape == (1, *rates.shape)
        np.testing.assert_allclose(activity.spikes[name][0], rates, rtol=1e-4, atol=1e-4)
    longer = dataclasses.replace(architecture, time_steps=9)
    classifiers = (Classifier(each, Relu()) for each in (architecture, longer))
    once, again = (jax.jit(each)((variables, None), images) for each in classifiers)
    np.testing.assert_array_equal(once, again)
    # Its gradient is the ReLU network's: central differences, for it is piecewise linear.
    d_logits = rng.normal(size=4)
    classifier = Classifier(architecture, Relu())
    gradient = jax.jit(jax.grad(lambda x: (classifier((variables, None), x) @ d_logits).sum()))(
        jnp.asarray(images)
    )
    moves = rng.normal(size=(5, *images.shape))
    for move in moves:
        ends = [
            relu_by_hand(exact, images + sign * 1e-6 * move, gain)[2] @ d_logits for sign in (1, -1)
        ]
        rise = (ends[0] - ends[1]).sum() / 2e-6
        assert rise == pytest.approx(float((gradient * move).sum()), rel=1e-3, abs=1e-3)


def stochastic(network, encoding, **options):
    architecture, variables = network
    return dataclasses.replace(architecture, encoding=encoding, **options), variables


def encoded(architecture, images, key):
    """The network's input in pixel units: (T, B, H, W, C)."""
    values = jax.jit(lambda x, k: SpikingNetwork(architecture).encode(x, k))(images, key)
    return np.asarray(values["image"]) * 0.4 + 0.3


def test_poisson_input_is_zero_or_one_with_the_image_for_its_mean(network, images):
    architecture, _ = stochastic(network, "poisson", time_steps=4000)
    steps = encoded(architecture, images[:4], jax.random.key(1))
    assert steps.shape == (4000, 4, 8, 8, 1)
    np.testing.assert_allclose(steps, steps.round(), atol=1e-6)
    assert set(steps.round().ravel()) == {0, 1}
    expected = np.asarray(images[:4])
    error = steps.mean(0) - expected
    deviation = np.sqrt(expected * (1 - expected) / 4000)
    assert (np.abs(error) <= 5 * deviation + 1e-6).all()
    # Steps, images and pixels are independent of each other.
    grey = np.isclose(expected, 0.5, atol=0.2)
    noise = (steps - expected)[:, grey] / np.sqrt(expected * (1 - expected))[grey]
    together = noise.T @ noise / 4000
    assert np.abs(together - np.diag(np.diag(together))).max() < 6 / np.sqrt(4000)
    assert abs((noise[1:] * noise[:-1]).mean()) < 6 / np.sqrt(noise.size)


def test_poisson_gradients_pass_straight_through_the_draws(network, images):
    architecture, _ = stochastic(network, "poisson")
    d_input = jnp.asarray(np.random.default_rng(0).normal(size=(3, *images.shape)), jnp.float32)

    def value(x):
        values = SpikingNetwork(architecture).encode(x, jax.random.key(1))
        return (values["image"] * d_input).sum()

    np.testing.assert_allclose(
        jax.jit(jax.grad(value))(images), d_input.sum(0) / 0.4, rtol=1e-4, atol=1e-5
    )


def test_gaussian_input_is_the_image_with_noise_of_that_deviation(network, images):
    architecture, _ = stochastic(network, "gaussian", noise=0.25, time_steps=4000)
    steps = encoded(architecture, images[:4], jax.random.key(1))
    noise = (steps - np.asarray(images[:4])) / 0.25
    assert (np.abs(noise.mean(0)) < 5 / np.sqrt(4000)).all()
    assert np.abs(noise.std(0) - 1).max() < 5 / np.sqrt(2 * 4000)
    assert abs((noise**4).mean() - 3) < 0.05  # a Gaussian's
    assert steps.min() < 0 and steps.max() > 1  # not cut off at the box
    silent, _ = stochastic(network, "gaussian", noise=0.0)
    np.testing.assert_allclose(
        encoded(silent, images, jax.random.key(1)),
        np.broadcast_to(images, (3, *images.shape)),
        atol=1e-6,
    )


@pytest.mark.parametrize("encoding", ("poisson", "gaussian"))
def test_a_stochastic_network_follows_its_key_and_asks_for_one(network, images, encoding):
    architecture, variables = stochastic(network, encoding)
    classifier = Classifier(architecture)
    assert classifier.stochastic and not Classifier(network[0]).stochastic
    forward = jax.jit(lambda x, key: classifier((variables, None), x, key=key))
    once, again, other = (forward(images, jax.random.key(seed)) for seed in (4, 4, 5))
    np.testing.assert_array_equal(once, again)
    assert (once != other).any()
    with pytest.raises(InputError, match=f"{encoding} encoding draws at random: give it a key"):
        jax.jit(classifier)((variables, None), images)


@pytest.mark.parametrize("encoding", ("poisson", "gaussian"))
def test_a_stochastic_input_varies_in_time_and_so_does_all_that_reads_it(network, encoding):
    architecture, _ = stochastic(network, encoding)
    assert all(varies_in_time(architecture).values())
    varies = varies_in_time(network[0])
    assert not varies["image"] and not varies["norm1"] and varies["lif1"]


@pytest.mark.parametrize("encoding", ("poisson", "gaussian"))
def test_costs_and_fitness_need_a_key_for_a_stochastic_network(network, digits, images, encoding):
    architecture, variables = stochastic(network, encoding)
    assert cost.macs(architecture) == cost.macs(network[0])
    assert cost.params(architecture) == cost.params(network[0])
    whole = masks.ones(architecture)
    with pytest.raises(InputError, match="draws at random"):
        cost.synops(architecture, variables, images)
    with pytest.raises(InputError, match="draw at random: give a key"):
        network = Classifier(architecture), variables, whole
        subproblem.make_task(*network, next(iter(whole)), digits.search, digits.search)


def biased(params, images, *, key):
    """Answers by a draw: class 1 with a chance that the image gives, else 0 or, seldom, 2."""
    u = jax.random.uniform(key, (len(images),))
    first = images[:, 0, 0, 0]
    classes = jnp.where(u < first, 1, jnp.where(u > 0.95, 2, 0))
    return params * jax.nn.one_hot(classes, 3)


class Biased:
    stochastic = True

    def __call__(self, params, images, *, key):
        return biased(params, images, key=key)


@pytest.mark.parametrize("votes", (1, 4, 15, 40))
def test_predictions_are_the_majority_of_the_passes(votes):
    images = jnp.broadcast_to(jnp.linspace(0, 1, 50)[:, None, None, None], (50, 2, 2, 1))
    key = jax.random.key(3)
    ballots = [biased(2.0, images, key=each).argmax(-1) for each in jax.random.split(key, votes)]
    ballots = np.array(ballots)
    ours = np.asarray(predict(Biased(), 2.0, images, key=key, votes=votes))
    for image, answered in enumerate(ours):
        counts = np.bincount(ballots[:, image], minlength=3)
        assert counts[answered] == counts.max()
    assert len(np.unique(ours)) > 1
    if votes > 1:
        assert (ours != ballots[0]).any()


def test_of_equal_votes_the_higher_mean_probability_wins_and_never_against_more_votes():
    # Pass number i answers the i-th of some given logits.
    class Fixed:
        stochastic = True

        def __call__(self, params, images, *, key):
            keys = jax.random.split(jax.random.key(0), len(params))
            turn = (jax.random.key_data(keys) == jax.random.key_data(key)).all(-1).argmax()
            return jnp.broadcast_to(params[turn], (len(images), 3))

    key = jax.random.key(0)
    images = jnp.zeros((2, 2, 2, 1))
    even = jnp.asarray([[1.0, 0.9, 0], [0, 5.0, 0], [1.0, 0.9, 0], [0, 5.0, 0]])
    assert (predict(Fixed(), even, images, key=key, votes=4) == 1).all()
    assert (predict(Fixed(), even[:, ::-1], images, key=key, votes=4) == 1).all()
    most = jnp.asarray([[0.1, 0, 0]] * 3 + [[0, 50.0, 0]] * 2)  # 3 unsure against 2 sure
    assert (predict(Fixed(), most, images, key=key, votes=5) == 0).all()
    flipped = even[:, jnp.array([1, 0, 2])]
    assert (predict(Fixed(), flipped, images, key=key, votes=4) == 0).all()


def test_a_network_that_draws_nothing_is_asked_once(network, images):
    architecture, variables = network
    classifier = Classifier(architecture)
    expected = jax.jit(classifier)((variables, None), images).argmax(-1)
    np.testing.assert_array_equal(predict(classifier, (variables, None), images), expected)


@pytest.mark.parametrize(
    "make, message",
    (
        (lambda: AdaptiveSharpness(1.0), "area 1.0 is not between 0 and 1"),
        (lambda: AdaptiveSharpness(0.0), "area 0.0 is not between 0 and 1"),
        (lambda: AdaptiveSharpness(decay=1.5), "decay 1.5 is out of range"),
        (lambda: RandomWidth(low=0.5, high=0.1), "widths from 0.5 to 0.1"),
        (lambda: RandomWidth("bell"), "surrogate 'bell'"),
        (lambda: SoftSpike(0.0), "width 0.0"),
    ),
)
def test_impossible_backward_passes_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
