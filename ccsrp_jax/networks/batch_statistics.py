"""Batch norm statistics as exact averages over batches, in place of a moving average.

A moving average lags behind weights that change, and after few steps most of it is still the value
that it began with: the network then answers otherwise than it did in training. When filters are
removed, the statistics of all layers behind them are those of another network: `refreshed` are the
masked network's own.

References:
  Wu and Johnson, Rethinking "Batch" in BatchNorm, arXiv 2105.07576, section 3 (PreciseBN).
  Li et al., EagleEye: Fast Sub-net Evaluation for Efficient Neural Network Pruning, ECCV 2020,
  arXiv 2007.02491 (statistics of the pruned network before it is compared).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float

from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.lowering import NORM_MOMENTUM
from ccsrp_jax.networks.masks import MaskTree
from ccsrp_jax.networks.spiking_network import SpikingNetwork


def refreshed(
    architecture: Architecture,
    variables: dict,
    masks: MaskTree | None,
    batches: Sequence[Float[Array | np.ndarray, "B H W C"]],
    key: Array | None = None,
) -> dict:
    """Variables with the batch norm statistics of the masked network on some images.

    Args:
      architecture, variables, masks: the network.
      batches: images in [0, 1], in batches of equal size; each batch is normalized by its own
        statistics, as in training.
      key: for a network that draws at random in training.
    """
    start = with_zero_statistics(variables)
    after = [
        _after_a_batch(
            *(architecture, start, masks, images),
            None if key is None else jax.random.fold_in(key, number),
        )
        for number, images in enumerate(batches)
    ]
    return averaged(variables, after)


@partial(jax.jit, static_argnums=0)
def _after_a_batch(architecture, variables, masks, images, key):
    network = SpikingNetwork(architecture)
    _, updates = network.apply(
        variables, images, masks, train=True, key=key, mutable=["batch_stats"]
    )
    return updates


# Means and variances by path in `batch_stats`, such as ("norm1", "mean").
Statistics = dict[tuple[str, ...], Array]


def with_zero_statistics(variables: dict) -> dict:
    """Variables of which a pass in training mode makes 1 - momentum times the statistics of its
    batch; see `batch_moments`."""
    zeros = {path: jnp.zeros_like(each) for path, each in _statistics(variables).items()}
    return with_statistics(variables, zeros)


def with_statistics(variables: dict, statistics: Statistics) -> dict:
    """Variables with these statistics in place of their own, where there are any."""
    flat = traverse_util.flatten_dict(variables.get("batch_stats", {})) | statistics
    return {**variables, "batch_stats": traverse_util.unflatten_dict(flat)}


def batch_moments(after: dict) -> Statistics:
    """The statistics of a batch: a pass in training mode made this of `with_zero_statistics`."""
    return {path: each / (1 - NORM_MOMENTUM) for path, each in _statistics(after).items()}


def pooled(batches: Sequence[Statistics]) -> Statistics:
    """The statistics of all images of some batches of equal size."""
    found = {}
    for path in (path for path in batches[0] if path[-1] == "mean"):
        path_var = (*path[:-1], "var")
        means = jnp.stack([batch[path] for batch in batches])
        squares = jnp.stack([batch[path_var] for batch in batches]) + means**2
        found[path] = means.mean(0)
        found[path_var] = jnp.maximum(squares.mean(0) - found[path] ** 2, 0)
    return found


def averaged(variables: dict, after: Sequence[dict]) -> dict:
    """Variables with the statistics of all images of some batches of equal size.

    Args:
      variables: a network's.
      after: what a pass in training mode on each batch made of its `with_zero_statistics`.
    """
    return with_statistics(variables, pooled([batch_moments(each) for each in after]))


def _statistics(variables: dict) -> Statistics:
    """Means and variances by path; stochastic neurons keep something else there as well."""
    flat: dict[tuple, Any] = traverse_util.flatten_dict(variables.get("batch_stats", {}))
    return {path: each for path, each in flat.items() if path[-1] in ("mean", "var")}
