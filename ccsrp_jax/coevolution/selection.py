"""Selection by three objectives: weighted sum, or NSGA-II's rank and crowding distance.

Objectives are the columns of an (N, M) array and are minimized.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

# Small enough that one image of 10,000 outweighs any difference in MACs.
TIE_BREAK = 1e-5


def weighted_sum(
    objectives: Float[Array | np.ndarray, "N 3"],
    robust_weight: float = 1.0,
    macs_weight: float = 0.0,
) -> Float[Array | np.ndarray, "N"]:
    """clean + robust_weight * robust + macs_weight * MACs; ties go to fewer MACs.

    With accuracies and no weight on MACs this is CCEP's rule (accuracy, then fewer filters)
    extended by robust accuracy; CCSRP's own rule is not known.
    """
    clean, robust, macs = objectives.T
    return clean + robust_weight * robust + (macs_weight + TIE_BREAK) * macs


@jax.jit
def front_ranks(objectives: Float[Array, "N M"]) -> Int[Array, "N"]:
    """Index of each row's non-dominated front, 0 for the Pareto front."""
    no_worse = (objectives[:, None] <= objectives[None]).all(-1)
    better = (objectives[:, None] < objectives[None]).any(-1)
    dominates = no_worse & better

    def assign_front(carry):
        rank, front = carry
        unranked = rank < 0
        dominated = (dominates & unranked[:, None]).any(0)
        return jnp.where(unranked & ~dominated, front, rank), front + 1

    unranked = jnp.full(objectives.shape[0], -1)
    ranks, _ = jax.lax.while_loop(lambda carry: (carry[0] < 0).any(), assign_front, (unranked, 0))
    return ranks


@jax.jit
def crowding(objectives: Float[Array, "N M"], ranks: Int[Array, "N"]) -> Float[Array, "N"]:
    """Crowding distance within each front; infinite at both ends of every objective that varies.

    An infinite objective counts as the largest finite one plus 1. All points of a front of one or
    two have infinite distance.

    References:
      Deb et al., A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II, 2002.
    """
    n = objectives.shape[0]
    front_size = jnp.zeros(n, jnp.int32).at[ranks].add(1)[ranks]

    def of_objective(values):
        finite = jnp.isfinite(values)
        values = jnp.where(finite, values, jnp.where(finite, values, -jnp.inf).max() + 1)
        values = jnp.nan_to_num(values)  # a column without any finite value
        order = jnp.lexsort((values, ranks))
        v, front = values[order], ranks[order]
        inside = jnp.concatenate([jnp.array([False]), front[1:] == front[:-1]])
        inside &= jnp.concatenate([front[1:] == front[:-1], jnp.array([False])])
        low = jax.ops.segment_min(v, front, n, indices_are_sorted=True)[front]
        high = jax.ops.segment_max(v, front, n, indices_are_sorted=True)[front]
        gap = (jnp.roll(v, -1) - jnp.roll(v, 1)) / jnp.where(high > low, high - low, 1.0)
        distance = jnp.where(inside, gap, jnp.inf)
        return jnp.zeros_like(v).at[order].set(jnp.where(high > low, distance, 0.0))

    distance = jax.vmap(of_objective, in_axes=1, out_axes=1)(objectives).sum(-1)
    return jnp.where(front_size <= 2, jnp.inf, distance)


@jax.jit
def nsga2(objectives: Float[Array, "N M"]) -> Float[Array, "N"]:
    """Each row's position in NSGA-II's order: by front, then by larger crowding distance."""
    ranks = front_ranks(objectives)
    order = jnp.lexsort((-crowding(objectives, ranks), ranks))
    positions = jnp.arange(objectives.shape[0], dtype=jnp.float32)
    return jnp.zeros_like(positions).at[order].set(positions)
