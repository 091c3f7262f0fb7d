"""Importance of single filters, and the order of filters that a strategy starts from."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def removal_importance(
    current: Float[np.ndarray, "n"], value: Callable[[np.ndarray], np.ndarray]
) -> Float[np.ndarray, "n"]:
    """For each filter, the increase of a value if that filter alone is removed.

    0 for filters that the current mask has removed, and for the last one left.

    Args:
      current: the group's current 0/1 mask.
      value: (M, n) masks to (M,) values, minimized; an infinite one counts as the worst finite one.
    """
    kept = np.flatnonzero(current)
    importance = np.zeros_like(current)
    if len(kept) == 1:
        return importance
    removals = np.repeat(current[None], len(kept), axis=0)
    removals[np.arange(len(kept)), kept] = 0
    values = value(np.concatenate([current[None], removals]))
    worst = np.nanmax(np.where(np.isinf(values), 0, values))
    values = np.where(np.isfinite(values), values, worst)
    importance[kept] = values[1:] - values[0]
    return importance


def genes_by_importance(
    current: Float[np.ndarray, "n"], importance: Float[np.ndarray, "n"]
) -> Float[Array, "n"]:
    """Genes in the order of importance, 0 for filters that the current mask has removed.

    They are twice the quantiles of a standard normal distribution, so that a strategy's first
    steps, of length 1, vary the order but do not erase it.
    """
    kept = np.flatnonzero(current)
    ranks = np.argsort(np.argsort(importance[kept], kind="stable"), kind="stable")
    genes = np.zeros(len(current), np.float32)
    genes[kept] = 2 * jax.scipy.stats.norm.ppf((ranks + 0.5) / len(kept))
    return jnp.asarray(genes)
