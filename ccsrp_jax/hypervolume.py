"""Exact hypervolume in three objectives: how much a set of trade-offs dominates."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.jit
def hypervolume(points: Float[Array, "N 3"], reference: Float[Array, "3"]) -> Float[Array, ""]:
    """Volume between a reference point and the points, all objectives minimised.

    The third objective cuts space into slabs; in each, the area that the points below it dominate
    is a staircase in the first two. That is O(N^2) work in one program.

    Args:
      points: objectives of each; dominated ones and those beyond the reference add nothing.
      reference: the worst value of every objective.

    References:
      Zitzler & Thiele, PPSN 1998, for the measure.
    """
    x, y, z = jnp.minimum(points, reference).T
    order = jnp.argsort(x)
    x, y, z = x[order], y[order], z[order]
    levels = jnp.sort(z)
    widths = jnp.diff(x, append=reference[0])
    heights = jnp.diff(levels, append=reference[2])
    steps = jnp.where(z <= levels[:, None], y, reference[1])
    areas = ((reference[1] - jax.lax.cummin(steps, axis=1)) * widths).sum(1)
    return jnp.vdot(areas, heights)
