"""Batch norm statistics as exact averages over batches, in place of a moving average.

A moving average lags behind weights that change, and after few steps most of it is still the value
that it began with: the network then answers otherwise than it did in training.

References:
  Wu and Johnson, Rethinking "Batch" in BatchNorm, arXiv 2105.07576, section 3 (PreciseBN).
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.lowering import NORM_MOMENTUM
from ccsrp_jax.networks.nodes import Norm
from ccsrp_jax.training.recipe import Recipe

FORGOTTEN = 0.01  # share of its initial value in a moving average that is as good as none
BATCHES = 16  # over which statistics are averaged, if an epoch has as many


def reestimates(recipe: Recipe, architecture: Architecture, steps: int) -> bool:
    """Whether training of so many steps ends by averaging statistics exactly."""
    if not steps or not any(isinstance(node, Norm) for node in architecture.nodes):
        return False
    remembers = NORM_MOMENTUM**steps > FORGOTTEN
    return recipe.precise_bn == "on" or (recipe.precise_bn == "auto" and remembers)


def cleared(variables: dict) -> dict:
    """Variables with means and variances of 0, so that a training step leaves its batch's share."""
    return _map_norms(jnp.zeros_like, variables)


def averaged(variables: dict, after: Iterable[dict]) -> dict:
    """Variables with the statistics of all images of some batches of equal size.

    Args:
      variables: a network's.
      after: what a training step on each batch made of its `cleared` variables.
    """
    means, squares, count = None, None, 0
    for each in after:
        batch = _norms(jax.tree.map(lambda x: x / (1 - NORM_MOMENTUM), each["batch_stats"]))
        mean = {path: batch[path] for path in batch if path[-1] == "mean"}
        square = {path: batch[(*path[:-1], "var")] + mean[path] ** 2 for path in mean}
        means = mean if means is None else jax.tree.map(jnp.add, means, mean)
        squares = square if squares is None else jax.tree.map(jnp.add, squares, square)
        count += 1
    if means is None or squares is None:
        return variables
    found = {}
    for path, total in means.items():
        found[path] = total / count
        found[(*path[:-1], "var")] = jnp.maximum(squares[path] / count - found[path] ** 2, 0)
    flat = traverse_util.flatten_dict(variables["batch_stats"]) | found
    return {**variables, "batch_stats": traverse_util.unflatten_dict(flat)}


def _norms(statistics: Any) -> dict[tuple, Any]:
    """Means and variances by path; stochastic neurons keep something else there as well."""
    flat = traverse_util.flatten_dict(statistics)
    return {path: each for path, each in flat.items() if path[-1] in ("mean", "var")}


def _map_norms(function: Any, variables: dict) -> dict:
    flat = traverse_util.flatten_dict(variables.get("batch_stats", {}))
    flat = {path: function(x) if path[-1] in ("mean", "var") else x for path, x in flat.items()}
    return {**variables, "batch_stats": traverse_util.unflatten_dict(flat)}
