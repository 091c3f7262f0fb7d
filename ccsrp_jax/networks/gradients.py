"""Backward passes of spiking layers: surrogate gradients, and gradients for attacks.

The derivative of a spike is 0 almost everywhere, so training and attacks replace it, and an
attack is only as strong as the replacement. None of them changes the network's output, except
`Relu` and `SoftSpike`, which are different networks with the same weights.

In rate gradients and `Relu` the input current is in units of the threshold, as in their sources
(after the division by tau, for neurons that divide their input; see `Neuron.rate_gain`). Widths
of surrogates are in units of membrane potential.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float, Key

from ccsrp_jax.networks.neurons import Neuron, Noise, Surrogate, lif, spike, spike_of_width
from ccsrp_jax.utils.errors import InputError, check_number
from ccsrp_jax.utils.fields import check_fields


@dataclass(frozen=True)
class StraightThrough:
    """Backpropagation through time with a spike derivative of 1."""


@dataclass(frozen=True)
class RateGradient:
    """Gradient of the firing rate as a function of the mean current; none through time.

    Attributes:
      rule: `bptr`, 1 if the neuron fired at least once (Ding et al., SNN-RAT, NeurIPS 2022); or
        `rga`, with c the mean current and k the leak: (1 - g + g k) / (k + 1) for
        1 - k <= c <= 2, g = 0.2 for 0 <= c < 1 - k, else 0 (Bu et al., the rate-gradient
        approximation, as in the code of HART).
    """

    rule: Literal["bptr", "rga"] = "bptr"

    def __post_init__(self) -> None:
        check_fields(self, "rate gradient")


@dataclass(frozen=True)
class Hart:
    """Surrogate gradient within a time step, averaged over time in every layer; none through time.

    Hao et al., Threaten Spiking Neural Networks through Combining Rate and Temporal
    Information, ICLR 2024, who tune the width for every network.
    """

    surrogate: Surrogate = Surrogate("triangle", 1.0)

    def __post_init__(self) -> None:
        check_fields(self, "hart")


@dataclass(frozen=True)
class Relu:
    """A different network: max(0, current) instead of spikes, constant in time ("Act" in SNN-RAT).

    Its adversarial images are a transfer attack on the spiking network.
    """


class Distances(NamedTuple):
    """Running statistics of |v - threshold| at one time step, over an attack's iterations."""

    mean: Float[Array, "*N"]  # M, initially 1
    deviation: Float[Array, "*N"]  # D, initially 0


# For `AdaptiveSharpness` one element per time step, for `RandomWidth` the key of the next draw
LayerState = tuple[Distances, ...] | Key[Array, ""]
SurrogateState = dict[str, LayerState]  # by `Spike` node


@dataclass(frozen=True)
class AdaptiveSharpness:
    """ATan surrogate with an adaptive width for every neuron and time step (ASSG).

    The width depends on running means, over an attack's iterations, of the distance from the
    threshold and of its deviation, so that no neuron's gradient vanishes. A classifier with this
    backward pass is stateful, see `Classifier.apply_stateful`.

    Attributes:
      area: A, the surrogate's area within the distance M + 1.5 D.
      decay: beta of both running means.

    References:
      Wang et al., Towards Reliable Evaluation of Adversarial Robustness for Spiking Neural
      Networks, arXiv 2512.22522 (A / 2 = 0.425 in its code).
    """

    area: float = 0.85
    decay: float = 0.9

    def __post_init__(self) -> None:
        check_fields(self, "adaptive sharpness")
        if not 0 < self.area < 1:
            raise InputError(f"area {self.area} is not between 0 and 1: 0.85 is the source's.")
        check_number("decay", self.decay, 0, 1)

    def initial_state(self, time_steps: int, shape: tuple[int, ...]) -> tuple[Distances, ...]:
        """The statistics of a layer before an attack, one element per time step.

        Time steps are separate arrays, as stacking and slicing them costs as much as the network.
        """
        return (Distances(jnp.ones(shape), jnp.zeros(shape)),) * time_steps

    def update(self, statistics: Distances, v: Float[Array, "*N"]) -> Distances:
        """The statistics after an iteration, in which v are distances from the threshold."""
        b, v = self.decay, stop_gradient(v)
        mean = b * statistics.mean + (1 - b) * jnp.abs(v)
        return Distances(mean, b * statistics.deviation + (1 - b) * jnp.abs(jnp.abs(v) - mean))

    def width(self, statistics: Distances) -> Float[Array, "*N"]:
        """The surrogate's width: 2 / alpha, alpha = a / (M + 1.5 D + 1e-4)."""
        a = 2 * math.tan(math.pi * self.area / 2) / math.pi
        return 2 * (statistics.mean + 1.5 * statistics.deviation + 1e-4) / a


@dataclass(frozen=True)
class RandomWidth:
    """Surrogate gradient with widths drawn anew for every image, layer and iteration of an attack.

    A surrogate of one width passes gradients through the same neurons in every iteration, so an
    attack that stalls stalls for good. Widths here are log-uniform, and mostly narrow. A classifier
    with this backward pass is stateful, see `Classifier.apply_stateful`, and its state comes from
    a key. The rule is ours.

    Attributes:
      name: shape of the surrogate, see `Surrogate`.
      low, high: range of the widths.
    """

    name: str = "atan"
    low: float = 0.05
    high: float = 1.0

    def __post_init__(self) -> None:
        Surrogate(self.name, self.low), Surrogate(self.name, self.high)  # checks them
        if self.low > self.high:
            raise InputError(f"widths from {self.low} to {self.high}: give the smaller one first.")

    def draw(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "B *N"]:
        """A width for every image, shaped to broadcast against potentials of this shape."""
        share = jax.random.uniform(key, (shape[0], *[1] * (len(shape) - 1)))
        return self.low * (self.high / self.low) ** share


@dataclass(frozen=True)
class SoftSpike:
    """A different network: each spike is the sigmoid of its distance from the threshold.

    It keeps the dynamics over time, and its gradient is exact, so that no surrogate takes part in
    it; its adversarial images are a transfer attack on the spiking network. As the width falls,
    it becomes that network.

    Attributes:
      width: of the sigmoid, as for `Surrogate("sigmoid", width)`, its derivative.
    """

    width: float = 0.5

    def __post_init__(self) -> None:
        Surrogate("sigmoid", self.width)  # checks the width


Backward = (
    Surrogate
    | StraightThrough
    | RateGradient
    | Hart
    | Relu
    | AdaptiveSharpness
    | RandomWidth
    | SoftSpike
)


def lif_with_backward(
    current: Float[Array, "S *N"],
    neuron: Neuron,
    backward: Backward,
    time_steps: int,
    statistics: Sequence[Distances] | Key[Array, ""] | None = None,
    leak: Float[Array, ""] | None = None,
    *,
    self_weight: Float[Array, "C"] | None = None,
    noise: Noise | None = None,
) -> tuple[Float[Array, "R *N"], Float[Array, "R *N"], LayerState | None]:
    """A layer of neurons, `neurons.lif`, with this backward pass.

    Args:
      current, neuron, time_steps, leak, self_weight, noise: as for `lif`. Gradients of the rate
        leave the connection of neurons with themselves out, and `Relu` the noise too.
      backward: the backward pass.
      statistics: for `AdaptiveSharpness`, those of earlier iterations, one element per time step;
        for `RandomWidth`, the key of this iteration's widths.

    Returns:
      Spikes and membrane potentials, R = T, or for `Relu` its activations twice, R = S; and
      for `AdaptiveSharpness` the statistics updated with this iteration, for `RandomWidth` the
      key of the next one.

    Raises:
      InputError: a rate-based backward pass for neurons without a `rate_gain`.
    """
    options = {"time_steps": time_steps, "leak": leak, "self_weight": self_weight, "noise": noise}
    run = partial(lif, current, neuron, **options)
    match backward:
        case Surrogate():
            return *run(backward), None
        case StraightThrough():
            return *run(_straight_spike), None
        case AdaptiveSharpness():
            before = statistics or backward.initial_state(time_steps, current.shape[1:])
            return _adaptive(run, backward, before)
        case RandomWidth():
            key: Any = jax.random.key(0) if statistics is None else statistics
            key_next, key_widths = jax.random.split(key)
            widths = backward.draw(key_widths, current.shape[1:])
            return *run(partial(_spike_at, widths, backward.name)), key_next
        case SoftSpike():
            return *run(partial(_soft_spike, backward.width)), None
    tau = neuron.membrane_tau if leak is None else 1 / stop_gradient(leak)
    gain = neuron.rate_gain(tau)
    x = current.astype(jnp.float32)
    if isinstance(backward, Relu):
        rate = jax.nn.relu(gain * x).astype(current.dtype)
        return rate, rate, None
    spikes, potentials = stop_gradient(run(Surrogate()))
    if isinstance(backward, RateGradient):
        mean = x.mean(0) * gain
        rate = mean * stop_gradient(_rate_derivative(backward, mean, spikes, 1 - 1 / tau))
        differentiable = jnp.broadcast_to(rate, spikes.shape)
    else:
        zero = _averaged(x) - stop_gradient(x)  # with a gradient averaged over time
        zero = jnp.broadcast_to(zero, spikes.shape) * gain * neuron.threshold
        differentiable = spike(potentials - neuron.threshold + zero, backward.surrogate)
    change = differentiable - stop_gradient(differentiable)  # 0, with the chosen derivative
    return spikes + change.astype(spikes.dtype), potentials, None


def _adaptive(run, backward, before):
    """`lif_with_backward` of `AdaptiveSharpness`; `run` is `lif` but for its spike function."""
    after = []

    def fire(v, t):
        after.append(backward.update(before[t], v))
        return spike_of_width(v, backward.width(after[-1]), "atan")

    spikes, potentials = run(fire)
    return spikes, potentials, tuple(after)


def _rate_derivative(backward, mean, spikes, retention):
    """d(firing rate) / d(mean current in units of the threshold); `retention` is 1 - leak."""
    if backward.rule == "bptr":
        return spikes.any(0).astype(jnp.float32)
    g = 0.2
    slope = jnp.where(mean < 1 - retention, g, (1 - g + g * retention) / (retention + 1))
    return jnp.where((mean >= 0) & (mean <= 2), slope, 0.0)


def _spike_at(widths, name, v, t):
    return spike_of_width(v, widths, name)


def _soft_spike(width, v, t):
    return jax.nn.sigmoid(4 * v / width)


def _straight_spike(v, t):
    return (v >= 0).astype(v.dtype) + (v - stop_gradient(v))


@jax.custom_vjp
def _averaged(x):
    """The identity, with a gradient averaged over time."""
    return x


_averaged.defvjp(
    lambda x: (x, None), lambda _, g: (jnp.broadcast_to(g.mean(0, keepdims=True), g.shape),)
)
