"""From a ReLU network to a spiking one with the same weights: firing thresholds by layer.

A network trained with the backward pass `gradients.Relu` is an ordinary ReLU network, constant in
time and so T times as cheap. Its spiking counterpart has the same parameters, but its neurons need
thresholds, and amplitudes of their spikes, that suit the layer's activations.

Both are folded into the weights, since all neurons of an architecture share their constants: with
threshold and amplitude theta a layer's current is divided by theta, in its batch norm or its
kernel, and what reads its spikes has its kernel multiplied by theta. Neurons are linear up to their
threshold and reset, so this is exact, and as scale and shift of batch norm are trained, so are the
thresholds, of every channel.

References:
  Özdenizci and Legenstein, Adversarially Robust Spiking Neural Networks Through Conversion, TMLR
  2024: thresholds from the 99.7th percentile of a layer's activations times 0.3, then learned while
  the network is trained adversarially. Their statistics are those of the spiking network, layer
  after layer; ours those of the ReLU network.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.gradients import Relu
from ccsrp_jax.networks.masks import MaskTree
from ccsrp_jax.networks.nodes import IMAGE, Norm
from ccsrp_jax.networks.spiking_network import SpikingNetwork
from ccsrp_jax.utils.errors import InputError

PERCENTILE = 99.7  # of a layer's activations
IMAGES = 256  # on which it is measured


def thresholds(
    architecture: Architecture,
    variables: dict,
    masks: MaskTree | None,
    images: Float[Array, "B H W C"],
    scale: float,
    *,
    key: Array | None = None,
) -> dict[str, Array]:
    """The threshold of every layer of neurons, in units of the architecture's.

    Args:
      architecture, variables, masks: a network trained with `Relu`.
      images: training images in [0, 1].
      scale: factor on the percentile.
      key: for a stochastic network.
    """
    found = _percentiles(architecture, variables, masks, images, key)
    return {name: jnp.where(value > 0, scale * value, 1.0) for name, value in found.items()}


@partial(jax.jit, static_argnums=0)
def _percentiles(architecture, variables, masks, images, key):
    output: Any = SpikingNetwork(architecture).apply(
        variables, images, masks, surrogate=Relu(), activity=True, key=key
    )
    active = output[1]
    return {name: jnp.percentile(each, PERCENTILE) for name, each in active.spikes.items()}


def with_thresholds(
    architecture: Architecture, params: Mapping[str, Any], by_layer: Mapping[str, Array]
) -> dict[str, Any]:
    """Parameters with the thresholds of layers folded in.

    Args:
      architecture: the network.
      params: its parameters.
      by_layer: for every `Spike` node, its threshold in units of the architecture's.

    Raises:
      InputError: what a layer's threshold would have to be folded into is no batch norm or kernel.
    """
    params = {name: dict(leaves) for name, leaves in params.items()}
    for node in architecture.nodes:
        if node.spiking:
            source = _source(architecture, node.input)
            for leaf in ("scale", "bias") if isinstance(source, Norm) else ("kernel", "bias"):
                if leaf in params[source.name]:
                    params[source.name][leaf] = params[source.name][leaf] / by_layer[node.name]
        elif node.has_kernel and node.input != IMAGE:
            source = _source(architecture, node.input)
            if source is not None:
                kernel = params[node.name]["kernel"]
                params[node.name]["kernel"] = kernel * by_layer[source.name]
    return params


def check_convertible(architecture: Architecture) -> None:
    """Raises InputError for a network whose thresholds cannot be folded into its weights."""
    every = {node.name: jnp.ones(()) for node in architecture.nodes if node.spiking}
    leaves = {"kernel": 1.0, "scale": 1.0, "bias": 1.0}
    with_thresholds(architecture, {node.name: leaves for node in architecture.nodes}, every)


def _source(architecture: Architecture, name: str) -> Any:
    """The layer that scales what a node puts out: neurons, batch norm or a kernel; pooling and the
    like are passed by. None for the images."""
    nodes = {node.name: node for node in architecture.nodes}
    while name != IMAGE:
        node = nodes[name]
        if node.spiking or isinstance(node, Norm) or node.has_kernel:
            return node
        if len(node.inputs) > 1 or not node.keeps_zeros:
            raise InputError(
                f"node {name!r} adds or joins branches, and a network that is converted from ReLU "
                "must be one chain of layers: use plain models, or give relu_epochs 0."
            )
        name = node.input
    return None
