"""What a network costs: parameters, MACs, synaptic operations, energy and latency.

Conventions:
  MACs       dense multiply-accumulates of one time step for one image. Positions that
             read padding count (as Torch-Pruning counts); batch norm folds into the
             convolution and costs nothing; T is left out, so that the figure compares
             with non-spiking networks.
             A neuron that is connected with itself has one MAC more.
  SynOps     additions caused by spikes, for one image over all T steps: a non-zero input
             counts once for every remaining synapse that it reaches, stride and padding
             respected. A layer that reads images, direct or with Gaussian noise, does MACs
             and is left out; Poisson spikes and frames of events are counted. After average
             pooling an input is a fraction of a spike, and where spikes add it is more than
             one: it counts as one addition, which favors networks that do so.
  energy     45 nm, 32 bit: 4.6 pJ a MAC of a layer that reads images (done once where they
             are constant in time) and 0.9 pJ a SynOp. Membrane updates, memory traffic and
             routing are ignored: a proxy for comparing networks.
  latency    median wall time of one jitted forward pass over all T steps.

The functions take masks and return the costs of the compact network. Weight masks reduce
parameters and SynOps, but not MACs, which dense hardware does for zeros too.

Counts by layer are in `counts`, SynOps and energy in `synops`.
"""

import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from ccsrp_jax.data.splits import Split, to_unit_range
from ccsrp_jax.networks import masks
from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.classifier import ClassifierFn, key_kwargs
from ccsrp_jax.networks.counts import layer_macs, macs, params, suffix_macs
from ccsrp_jax.networks.inputs import checked_batch
from ccsrp_jax.networks.masks import MaskTree
from ccsrp_jax.networks.synops import (
    PICOJOULE_PER_MAC,
    PICOJOULE_PER_SYNOP,
    energy_nj,
    synops,
)
from ccsrp_jax.utils.fields import SIZE, integer

__all__ = [
    "COST_IMAGES",
    "PICOJOULE_PER_MAC",
    "PICOJOULE_PER_SYNOP",
    "costs",
    "energy_nj",
    "latency_ms",
    "layer_macs",
    "macs",
    "params",
    "suffix_macs",
    "synops",
]

COST_IMAGES = 256  # images over which SynOps are averaged


def costs(
    architecture: Architecture,
    variables: dict,
    network_masks: MaskTree | None,
    split: Split,
    key: Array,
) -> dict:
    """The costs of a network as one record.

    Args:
      architecture, variables, network_masks: the network. Weights that are 0 count as masked.
      split: whose first `COST_IMAGES` images SynOps are averaged over.
      key: for a stochastic network.
    """
    images = jnp.asarray(to_unit_range(jnp.asarray(split.images[:COST_IMAGES])))
    network_masks = {**masks.of_zeros(architecture, variables), **(network_masks or {})}
    by_layer = synops(architecture, variables, images, network_masks, key=key)
    return {
        "macs": sum(macs(architecture, network_masks).values()),
        "params": sum(params(architecture, network_masks).values()),
        "synops": sum(by_layer.values()),
        "energy_nj": energy_nj(architecture, by_layer, network_masks),
    }


def latency_ms(
    networks: Sequence[tuple[ClassifierFn, Any]],
    images: Shaped[Array | np.ndarray, "B H W C"],
    repeats: int = 30,
    *,
    key: Array | None = None,
) -> list[float]:
    """Median milliseconds of a forward pass over the batch, for each network.

    The networks take turns, so that a drift of the machine's speed affects all of them.

    Args:
      networks: classifiers with their parameters, masked or compact, as in
        `(Classifier(architecture), (variables, masks))`.
      images: the batch.
      repeats: timed passes of each, after three warm-up passes.
      key: for stochastic networks; the draws are part of their time.

    Raises:
      InputError: images that a network cannot take, or no repeat.
    """
    repeats = integer("repeats", repeats, SIZE)
    for classifier, network_state in networks:
        images = checked_batch(classifier, network_state, images)
    images = to_unit_range(jnp.asarray(images))
    passes = [jax.jit(logits) for logits, _ in networks]
    extra = [key_kwargs(logits, key) for logits, _ in networks]
    times = np.zeros((repeats + 3, len(networks)))
    for row in times:
        for i, (forward, (_, network_state)) in enumerate(zip(passes, networks, strict=True)):
            start = time.perf_counter()
            jax.block_until_ready(forward(network_state, images, **extra[i]))
            row[i] = 1000 * (time.perf_counter() - start)
    return np.median(times[3:], axis=0).tolist()
