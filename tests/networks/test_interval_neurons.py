"""Intervals of layers of neurons against the neurons themselves."""

from dataclasses import dataclass, replace
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import pytest

from ccsrp_jax.networks.cuba_lif import CubaLIF
from ccsrp_jax.networks.interval_neurons import neuron_bounds
from ccsrp_jax.networks.intervals import UNIT, Interval
from ccsrp_jax.networks.neurons import LIF, Surrogate, lif
from ccsrp_jax.utils.errors import InputError

T, N = 5, 60
RESETS = ("hard", "soft", "soft_delayed")
KINDS = [
    *(LIF(2.0, 1.0, reset, decay) for reset in RESETS for decay in (True, False)),
    *(LIF(np.inf, 0.7, reset, False) for reset in RESETS),
    *(CubaLIF(2.5, 1.7, 0.6, reset, reset != "soft") for reset in RESETS),
    LIF(3.0, 0.9, "soft", learned=True),
]


def leak_of(neuron):
    return jnp.asarray(0.31) if neuron.learned else None


def bounds(neuron, lower, upper, unit=UNIT):
    x = Interval(jnp.asarray(lower), jnp.asarray(upper))
    return neuron_bounds(x, neuron, Surrogate(), T, leak_of(neuron), unit)


def run(neuron, x):
    return lif(jnp.asarray(x), neuron, Surrogate(), T, leak_of(neuron))


def drawn(seed, steps, width):
    random = np.random.default_rng(seed)
    lower = random.normal(0.4, 1.2, (steps, N)).astype(np.float32)
    return random, lower, (lower + random.uniform(0, width, (steps, N))).astype(np.float32)


@pytest.mark.parametrize("steps", (T, 1), ids=("varying", "constant"))
@pytest.mark.parametrize("neuron", KINDS, ids=str)
def test_no_current_inside_its_interval_leaves_those_of_potentials_and_spikes(neuron, steps):
    random, lower, upper = drawn(0, steps, 0.8)
    spikes, potentials = bounds(neuron, lower, upper)
    share = random.uniform(size=(2000, steps, 1))
    share[: 2**steps] = np.array(list(np.ndindex(*[2] * steps)))[:, :, None]  # the corners
    share = np.where(random.uniform(size=(2000, 1, 1)) < 0.5, share, share.round())
    x = np.moveaxis(lower + share * (upper - lower), 0, 1).astype(np.float32)
    x = np.clip(x, lower[:, None], upper[:, None])
    fired, v = run(neuron, x)
    for values, (low, high) in ((fired, spikes), (v, potentials)):
        assert (values >= low[:, None]).all() and (values <= high[:, None]).all()
    unstable = np.asarray(spikes.lower != spikes.upper)
    assert 0.1 < unstable.mean() < 0.9
    changes = np.asarray(fired.min(1) != fired.max(1))
    assert changes.sum() > 0.5 * unstable.sum()  # not for want of tightness


@pytest.mark.parametrize("neuron", KINDS, ids=str)
def test_the_first_step_is_exact(neuron):
    _, lower, upper = drawn(1, 1, 0.8)
    spikes, potentials = bounds(neuron, lower, upper, unit=0.0)
    for end, low, high in zip((lower, upper), spikes, potentials, strict=False):
        fired, v = run(neuron, end)
        np.testing.assert_array_equal(fired[0], low[0] if end is lower else spikes.upper[0])
        np.testing.assert_array_equal(v[0], potentials.lower[0] if end is lower else high[0])


@pytest.mark.parametrize("neuron", KINDS, ids=str)
def test_a_point_stays_a_point(neuron):
    _, x, _ = drawn(2, T, 0.0)
    fired, v = run(neuron, x)
    spikes, potentials = bounds(neuron, x, x, unit=0.0)
    for low, high, value in ((*spikes, fired), (*potentials, v)):
        np.testing.assert_array_equal(low, value)
        np.testing.assert_array_equal(high, value)
    _, (low, high) = bounds(neuron, x, x)
    assert 0 < float(jnp.median(high - low)) < 1e-4


@pytest.mark.parametrize("neuron", KINDS, ids=str)
def test_wider_currents_have_wider_intervals(neuron):
    _, lower, upper = drawn(3, T, 0.3)
    inner, outer = bounds(neuron, lower, upper), bounds(neuron, lower - 0.1, upper + 0.2)
    for small, large in zip(inner, outer, strict=True):
        assert (small.lower >= large.lower).all() and (small.upper <= large.upper).all()


def test_both_branches_of_an_undecided_neuron_are_kept():
    """The current is 0.9 to 1.5 in the first step and 0 in the second; threshold 1, no leak."""
    neuron = LIF(np.inf, 1.0, "hard", False)
    x = np.array([[0.9], [0.0]], np.float32), np.array([[1.5], [0.0]], np.float32)
    expected = {"hard": (0.0, 1.0), "soft": (0.0, 1.0), "soft_delayed": (0.0, 1.0)}
    for reset, (low, high) in expected.items():
        current = Interval(*map(jnp.asarray, x))
        _, v = neuron_bounds(current, replace(neuron, reset=reset), Surrogate(), 2, None, 0.0)
        # fired: 0, or 0 to 0.5; silent: 0.9 to 1
        assert (float(v.lower[1, 0]), float(v.upper[1, 0])) == (low, high)


@dataclass(frozen=True)
class Derived(LIF):
    """Its reset may be another one: it says nothing about intervals."""


@dataclass(frozen=True)
class Declared(LIF):
    monotone: ClassVar[bool] = True


def test_a_family_that_does_not_say_that_it_is_monotone_is_refused():
    _, lower, upper = drawn(4, T, 0.3)
    with pytest.raises(InputError, match="Derived neurons cannot be bounded by intervals"):
        bounds(Derived(), lower, upper)
    same, expected = bounds(Declared(), lower, upper), bounds(LIF(), lower, upper)
    np.testing.assert_array_equal(same, expected)
