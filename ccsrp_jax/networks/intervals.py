"""Intervals of arrays, with the slack that makes them hold for float32 arithmetic too.

A value that a network computes in float32 differs from the one in real numbers, and the compiler
may sum in any order. So every rule widens its result by a bound of both its own rounding errors and
those of the network: with the unit roundoff u, a sum of n products is off by at most
n u / (1 - n u) times the sum of their absolute values (Higham, Accuracy and Stability of Numerical
Algorithms, 2nd edition, section 3.1). Rules take u as an argument: `UNIT` for bounds that hold in
float32, or 0 for bounds in real numbers, computed up to rounding, as training uses them.

Underflow is not covered, nor is arithmetic of less precision, such as TF32 or bfloat16.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

UNIT = 2.0**-24  # unit roundoff of float32


class Interval(NamedTuple):
    """All arrays between two arrays, element by element."""

    lower: Float[Array, "*N"]
    upper: Float[Array, "*N"]

    @property
    def magnitude(self) -> Float[Array, "*N"]:
        """The largest absolute value in the interval."""
        return jnp.maximum(jnp.abs(self.lower), jnp.abs(self.upper))

    def map(self, function: Callable[[Array], Array]) -> "Interval":
        """The interval of a function that is non-decreasing and computed without rounding."""
        return Interval(function(self.lower), function(self.upper))

    def widened(self, slack: Float[Array, "..."] | float) -> "Interval":
        """The interval with `slack`, which is not negative, added on both sides."""
        return Interval(self.lower - slack, self.upper + slack)


def linear(
    layer: Callable[[Array, Array], Array],
    x: Interval,
    kernel: Float[Array, "*K"],
    bias: Float[Array, "N"] | None,
    terms: int,
    unit: float,
) -> Interval:
    """The interval of layer(x, kernel) + bias for a layer that is linear in x and in the kernel.

    The centre goes through the kernel and the radius through its absolute values, which is exact
    for one layer (Gowal et al., On the Effectiveness of Interval Bound Propagation for Training
    Verifiably Robust Models, arXiv 1810.12715).

    Args:
      layer: (input, kernel) -> output; all its products have the sign of their factors.
      x: of the input.
      kernel, bias: parameters.
      terms: products that an output is the sum of.
      unit: roundoff, see the module.
    """
    centre = (x.lower + x.upper) / 2
    radius = jnp.maximum(x.upper - centre, centre - x.lower)
    if unit:  # of the network's sum and of both sums below; 8 more for what is around them
        radius = radius + 4 * gamma(terms + 8, unit) * (jnp.abs(centre) + radius)
    centre, radius = layer(centre, kernel), layer(radius, jnp.abs(kernel))
    slack = 4 * unit * (jnp.abs(centre) + radius)
    if bias is not None:
        centre, slack = centre + bias, slack + 4 * unit * jnp.abs(bias)
    return Interval(centre - radius, centre + radius).widened(slack)


def affine(
    x: Interval,
    shift: Float[Array, "..."],
    scale: Float[Array, "..."],
    bias: Float[Array, "..."],
    unit: float,
) -> Interval:
    """The interval of (x - shift) scale + bias, element by element."""
    ends = [(end - shift) * scale for end in x]
    result = Interval(jnp.minimum(*ends) + bias, jnp.maximum(*ends) + bias)
    size = (x.magnitude + jnp.abs(shift)) * jnp.abs(scale) + jnp.abs(bias)
    return result.widened(16 * unit * size)


def mean(x: Interval, axes: tuple[int, ...], terms: int, unit: float, **options) -> Interval:
    """The interval of the mean of `terms` values over these axes."""
    averaged = x.map(lambda end: end.mean(axes, **options))
    if not unit:
        return averaged
    return averaged.widened(2 * gamma(terms + 2, unit) * x.magnitude.mean(axes, **options))


def gamma(terms: int, unit: float) -> float:
    """n u / (1 - n u), the relative error of a sum of n products."""
    return terms * unit / (1 - terms * unit)
