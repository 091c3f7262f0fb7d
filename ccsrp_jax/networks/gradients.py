"""What is differentiated in place of the spikes: surrogates, and what attacks put instead.

The forward pass of a spiking network has no useful derivative, so whoever wants one picks
it, and an attack is only as strong as what it picks. All of these leave the network's output
as it is, but for `Relu`, which is another network with the same weights.

For rate gradients and `Relu` the input current is measured in thresholds (and, where the
neuron divides its input by tau, after that division), in which the sources state them.
Widths of surrogates are in units of membrane potential.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from ccsrp_jax.networks.neurons import LIF, Surrogate, lif, spike, spike_of_width
from ccsrp_jax.utils.errors import InputError, check_number, unknown


@dataclass(frozen=True)
class StraightThrough:
    """Backpropagation through time with 1 for the spike's derivative."""


@dataclass(frozen=True)
class RateGradient:
    """Differentiates the firing rate as a function of the mean current; nothing crosses time.

    Attributes:
      rule: `bptr`, 1 where the neuron fired at all (Ding et al., SNN-RAT, NeurIPS 2022); or
        `rga`, with c the mean current and k the leak: (1 - g + g k) / (k + 1) for
        1 - k <= c <= 2, g = 0.2 for 0 <= c < 1 - k, else 0 (Bu et al., the rate-gradient
        approximation, as in the code of HART).
    """

    rule: Literal["bptr", "rga"] = "bptr"

    def __post_init__(self) -> None:
        if self.rule not in ("bptr", "rga"):
            raise unknown("rate gradient", self.rule, ("bptr", "rga"))


@dataclass(frozen=True)
class Hart:
    """Surrogate within a step, none across steps; every layer's gradient is averaged over time.

    Hao et al., Threaten Spiking Neural Networks through Combining Rate and Temporal
    Information, ICLR 2024. There the width is scanned for every network.
    """

    surrogate: Surrogate = Surrogate("triangle", 1.0)


@dataclass(frozen=True)
class Relu:
    """Another network: max(0, current) in place of spikes, constant in time ("Act" in SNN-RAT).

    Its adversarial images are a transfer attack on the spiking network.
    """


class Distances(NamedTuple):
    """Of a layer's membrane potentials from the threshold, over an attack's iterations."""

    mean: Float[Array, "*N"]  # M, at first 1
    deviation: Float[Array, "*N"]  # D, at first 0


@dataclass(frozen=True)
class AdaptiveSharpness:
    """ATan surrogates as wide as each neuron needs in each step (ASSG).

    The width follows running means of the distance from the threshold and of its deviation,
    taken over an attack's iterations, so that gradients vanish in no neuron.

    Attributes:
      area: A, the surrogate's area within the distance that the statistics say is usual.
      decay: beta of both running means.

    References:
      Wang et al., Towards Reliable Evaluation of Adversarial Robustness for Spiking Neural
      Networks, arXiv 2512.22522 (A / 2 = 0.425 in its code).
    """

    area: float = 0.85
    decay: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.area < 1:
            raise InputError(f"area {self.area} is not between 0 and 1: 0.85 is the source's.")
        check_number("decay", self.decay, 0, 1)

    def fresh(self, time_steps: int, shape: tuple[int, ...]) -> tuple[Distances, ...]:
        """The statistics of a layer before an attack, a step each.

        Steps are kept apart since stacking and slicing them costs as much as the network.
        """
        return (Distances(jnp.ones(shape), jnp.zeros(shape)),) * time_steps

    def update(self, seen: Distances, v: Float[Array, "*N"]) -> Distances:
        """The statistics after one more look at the distances v from the threshold."""
        b, v = self.decay, stop_gradient(v)
        mean = b * seen.mean + (1 - b) * jnp.abs(v)
        return Distances(mean, b * seen.deviation + (1 - b) * jnp.abs(jnp.abs(v) - mean))

    def width(self, seen: Distances) -> Float[Array, "*N"]:
        """Of the surrogate: 2 / alpha, alpha = a / (M + 1.5 D + 1e-4)."""
        a = 2 * math.tan(math.pi * self.area / 2) / math.pi
        return 2 * (seen.mean + 1.5 * seen.deviation + 1e-4) / a


Backward = Surrogate | StraightThrough | RateGradient | Hart | Relu | AdaptiveSharpness


def respond(
    current: Float[Array, "S *N"],
    neuron: LIF,
    backward: Backward,
    time_steps: int,
    seen: Sequence[Distances] | None = None,
    leak: Float[Array, ""] | None = None,
) -> tuple[Float[Array, "R *N"], Float[Array, "R *N"], tuple[Distances, ...] | None]:
    """A layer of LIF neurons, `neurons.lif`, with that backward pass.

    Args:
      current, neuron, time_steps, leak: as for `lif`.
      backward: what to differentiate through.
      seen: for `AdaptiveSharpness`, the statistics of the iterations before, a step each.

    Returns:
      Spikes and membrane potentials, R = T, or for `Relu` its activations twice, R = S; and
      for `AdaptiveSharpness` the statistics with this iteration in them.
    """
    tau = neuron.tau if leak is None else 1 / stop_gradient(leak)
    gain = 1 / (neuron.threshold * (tau if neuron.decay_input else 1))
    x = current.astype(jnp.float32)
    match backward:
        case Surrogate():
            return *lif(current, neuron, backward, time_steps, leak), None
        case StraightThrough():
            return *lif(current, neuron, _straight_spike, time_steps, leak), None
        case AdaptiveSharpness():
            seen, after = seen or backward.fresh(time_steps, current.shape[1:]), []

            def fire(v, t):
                after.append(backward.update(seen[t], v))
                return spike_of_width(v, backward.width(after[-1]), "atan")

            spikes, potentials = lif(current, neuron, fire, time_steps, leak)
            return spikes, potentials, tuple(after)
        case Relu():
            rate = jax.nn.relu(gain * x).astype(current.dtype)
            return rate, rate, None
    spikes, potentials = stop_gradient(lif(current, neuron, Surrogate(), time_steps, leak))
    if isinstance(backward, RateGradient):
        mean = x.mean(0) * gain
        if backward.rule == "bptr":
            slope = spikes.any(0).astype(jnp.float32)
        else:
            kept, g = 1 - 1 / tau, 0.2
            slope = jnp.where(mean < 1 - kept, g, (1 - g + g * kept) / (kept + 1))
            slope = jnp.where((mean >= 0) & (mean <= 2), slope, 0.0)
        moved = mean * stop_gradient(slope)
        surrogate_spikes = jnp.broadcast_to(moved, spikes.shape)
    else:
        centred = _averaged(x) - stop_gradient(x)
        centred = jnp.broadcast_to(centred, spikes.shape) * gain * neuron.threshold
        v = potentials - neuron.threshold
        surrogate_spikes = spike(v + centred, backward.surrogate)
    change = surrogate_spikes - stop_gradient(surrogate_spikes)  # 0, with that derivative
    return spikes + change.astype(spikes.dtype), potentials, None


def _straight_spike(v, t):
    return (v >= 0).astype(v.dtype) + (v - stop_gradient(v))


@jax.custom_vjp
def _averaged(x):
    """x; its gradient is averaged over time."""
    return x


_averaged.defvjp(
    lambda x: (x, None), lambda _, g: (jnp.broadcast_to(g.mean(0, keepdims=True), g.shape),)
)
