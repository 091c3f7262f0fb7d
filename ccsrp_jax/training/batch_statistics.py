"""Batch norm statistics as exact averages over batches, in place of a moving average.

A moving average lags behind weights that change, and after few steps most of it is still the value
that it began with: the network then answers otherwise than it did in training.

References:
  Wu and Johnson, Rethinking "Batch" in BatchNorm, arXiv 2105.07576, section 3 (PreciseBN).
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array

from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.lowering import NORM_MOMENTUM
from ccsrp_jax.networks.nodes import Norm
from ccsrp_jax.training.recipe import Recipe

FORGOTTEN = 0.01  # share of its initial value in a moving average that is as good as none
BATCHES = 16  # over which statistics are averaged, if an epoch has as many


def needs_precise_bn(recipe: Recipe, architecture: Architecture, steps: int) -> bool:
    """Whether training of so many steps ends by averaging statistics exactly."""
    if not steps or not any(isinstance(node, Norm) for node in architecture.nodes):
        return False
    remembers = NORM_MOMENTUM**steps > FORGOTTEN
    return recipe.precise_bn == "on" or (recipe.precise_bn == "auto" and remembers)


def with_zero_statistics(variables: dict) -> dict:
    """Variables of which a training step makes 1 - momentum times the statistics of its batch."""
    zeros = {path: jnp.zeros_like(each) for path, each in _statistics(variables).items()}
    return _replaced(variables, zeros)


def averaged(variables: dict, after: Sequence[dict]) -> dict:
    """Variables with the statistics of all images of some batches of equal size.

    Args:
      variables: a network's.
      after: what a training step on each batch made of its `with_zero_statistics`.
    """
    batches = [
        {path: each / (1 - NORM_MOMENTUM) for path, each in _statistics(variables).items()}
        for variables in after
    ]
    found = {}
    for path in (path for path in batches[0] if path[-1] == "mean"):
        path_var = (*path[:-1], "var")
        means = jnp.stack([batch[path] for batch in batches])
        squares = jnp.stack([batch[path_var] for batch in batches]) + means**2
        found[path] = means.mean(0)
        found[path_var] = jnp.maximum(squares.mean(0) - found[path] ** 2, 0)
    return _replaced(variables, found)


def _statistics(variables: dict) -> dict[tuple, Array]:
    """Means and variances by path; stochastic neurons keep something else there as well."""
    flat: dict[tuple, Any] = traverse_util.flatten_dict(variables["batch_stats"])
    return {path: each for path, each in flat.items() if path[-1] in ("mean", "var")}


def _replaced(variables: dict, statistics: dict[tuple, Array]) -> dict:
    flat = traverse_util.flatten_dict(variables["batch_stats"]) | statistics
    return {**variables, "batch_stats": traverse_util.unflatten_dict(flat)}
