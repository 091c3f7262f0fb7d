"""Leaky integrate-and-fire dynamics and the surrogate gradients that train them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ccsrp_jax.utils.errors import InputError, check_number, unknown

# Derivatives of unit area and unit peak: the surrogate of width w is g(v / w) / w.
SURROGATE_DERIVATIVES = {
    "atan": lambda z: 1 / (1 + (math.pi * z) ** 2),
    "triangle": lambda z: jnp.maximum(0.0, 1 - jnp.abs(z)),
    "rectangle": lambda z: (jnp.abs(z) < 0.5).astype(z.dtype),
    "sigmoid": lambda z: 4 * jax.nn.sigmoid(4 * z) * jax.nn.sigmoid(-4 * z),
}


@dataclass(frozen=True)
class Surrogate:
    """What replaces the derivative of the spike in the backward pass.

    Every shape has area 1 and peak 1 / width, so that widths compare across names.
    In the usual parameters: ATan alpha = 2 / width, triangle gamma = width, rectangle
    a = width, sigmoid alpha = 4 / width.

    Attributes:
      name: `atan`, `triangle`, `rectangle` or `sigmoid`.
      width: of the bump, in units of membrane potential; wider lets gradients through
        neurons that are further from their threshold.
    """

    name: str = "atan"
    width: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in SURROGATE_DERIVATIVES:
            raise unknown("surrogate", self.name, SURROGATE_DERIVATIVES)
        check_number("surrogate width", self.width, 0, above=True)

    def derivative(self, v: Float[Array, "*N"]) -> Float[Array, "*N"]:
        """d(spike)/dv at the distance v from the threshold."""
        return SURROGATE_DERIVATIVES[self.name](v / self.width) / self.width


@dataclass(frozen=True)
class LIF:
    """Leaky integrate-and-fire neuron, resting at 0.

    It charges by v <- v + (x - v) / tau with `decay_input`, else by v <- (1 - 1/tau) v + x;
    it fires s = 1 where v >= threshold; then it resets: `hard` by v <- v (1 - s), `soft` by
    v <- v - threshold s, and `soft_delayed` (snnTorch's default) by subtracting threshold s
    in the next step, after the leak.

    With `decay_input` and `hard` this is SpikingJelly's LIFNode and Norse's LIFBoxCell;
    `tau=inf` without `decay_input` is the integrate-and-fire neuron.

    Attributes:
      tau: membrane time constant in time steps, at least 1.
      threshold: firing threshold, in the unit of the input current.
      reset: `hard`, `soft` or `soft_delayed`.
      decay_input: whether the input is divided by tau too.
      detach_reset: whether gradients stop at the reset.
      learned: whether every layer learns its own 1 / tau, the sigmoid of a parameter that starts
        at the given tau (PLIF, Fang et al., ICCV 2021, arXiv 2007.05785).
    """

    tau: float = 2.0
    threshold: float = 1.0
    reset: Literal["hard", "soft", "soft_delayed"] = "hard"
    decay_input: bool = True
    detach_reset: bool = False
    learned: bool = False

    def __post_init__(self) -> None:
        if not self.tau >= 1:
            raise InputError(f"LIF tau {self.tau} is below 1: give a time constant of at least 1.")
        check_number("LIF threshold", self.threshold, 0, above=True)
        if self.reset not in ("hard", "soft", "soft_delayed"):
            raise unknown("reset", self.reset, ("hard", "soft", "soft_delayed"))
        if self.learned and not 1 < self.tau < math.inf:
            raise InputError(
                f"LIF tau {self.tau} is where a learned leak starts: give a finite value above 1."
            )


def spike(v: Float[Array, "*N"], surrogate: Surrogate) -> Float[Array, "*N"]:
    """1 where v >= 0, else 0; differentiates through the surrogate."""
    return spike_of_width(v, surrogate.width, surrogate.name)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def spike_of_width(
    v: Float[Array, "*N"], width: float | int | Float[Array, "..."], name: str
) -> Float[Array, "*N"]:
    """`spike` with a width of its own for every neuron; no gradient goes to the width."""
    return (v >= 0).astype(v.dtype)


@spike_of_width.defjvp
def _spike_jvp(name, primals, tangents):
    (v, width), (dv, _) = primals, tangents
    return spike_of_width(v, width, name), SURROGATE_DERIVATIVES[name](v / width) / width * dv


# Spikes of the distance from the threshold, in a step: (v, t) -> s
Fire = Callable[[Float[Array, "*N"], int], Float[Array, "*N"]]


def lif(
    current: Float[Array, "S *N"],
    neuron: LIF,
    surrogate: Surrogate | Fire,
    time_steps: int,
    leak: Float[Array, ""] | None = None,
) -> tuple[Float[Array, "T *N"], Float[Array, "T *N"]]:
    """Runs a layer of LIF neurons over time, from rest.

    The loop is unrolled: it holds element-wise work only, and a `scan` around it would
    keep XLA from fusing it with its neighbours.

    Args:
      current: input current, S = T steps, or S = 1 for one that is constant in time.
      neuron: constants and dialect.
      surrogate: what the backward pass puts in place of the spike's derivative, or a spike
        function that has one of its own.
      time_steps: T.
      leak: what takes the place of 1 / tau, where it is learned.

    Returns:
      Spikes in the dtype of `current`, and membrane potentials before the reset in
      float32 (the state is float32 whatever the compute type).
    """
    if current.shape[0] not in (1, time_steps):
        raise InputError(
            f"the current has {current.shape[0]} steps for {time_steps} time steps: give as many, "
            "or one that holds for all."
        )
    fire = surrogate if callable(surrogate) else lambda v, t: spike(v, surrogate)
    x_SxN = current.astype(jnp.float32)
    v = jnp.zeros(x_SxN.shape[1:], jnp.float32)
    late_reset = jnp.zeros_like(v)
    spikes, potentials = [], []
    for t in range(time_steps):
        x = x_SxN[t if x_SxN.shape[0] > 1 else 0]
        if neuron.decay_input:
            v = v + ((x - v) / neuron.tau if leak is None else (x - v) * leak)
        else:
            v = v * (1 - (1 / neuron.tau if leak is None else leak)) + x
        v = v - late_reset
        s = fire(v - neuron.threshold, t)
        spikes.append(s)
        potentials.append(v)
        s_reset = jax.lax.stop_gradient(s) if neuron.detach_reset else s
        if neuron.reset == "hard":
            v = v * (1 - s_reset)
        elif neuron.reset == "soft":
            v = v - neuron.threshold * s_reset
        else:
            late_reset = neuron.threshold * s_reset
    return jnp.stack(spikes).astype(current.dtype), jnp.stack(potentials)
