"""Synaptic operations of a network on images, and a proxy of its energy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from ccsrp_jax.data.checks import checked_images
from ccsrp_jax.data.splits import to_unit_range
from ccsrp_jax.networks.architecture import Architecture, varies_in_time
from ccsrp_jax.networks.counts import macs, self_connected
from ccsrp_jax.networks.masks import MaskTree, gate, kept_channels, kernel
from ccsrp_jax.networks.nodes import IMAGE, Node
from ccsrp_jax.networks.spiking_network import SpikingNetwork

PICOJOULE_PER_MAC = 4.6  # 32-bit float multiply and add at 45 nm (Horowitz, ISSCC 2014)
PICOJOULE_PER_SYNOP = 0.9  # the add alone


def _counted(architecture: Architecture) -> list[Node]:
    """Layers that do SynOps: those whose inputs are events."""
    varies = varies_in_time(architecture)
    noisy = {IMAGE} if architecture.encoding == "gaussian" else set()
    return [
        node
        for node in architecture.nodes
        if node.has_kernel and varies[node.input] and node.input not in noisy
    ]


def synops(
    architecture: Architecture,
    variables: dict,
    images: Shaped[Array | np.ndarray, "B H W C"],
    masks: MaskTree | None = None,
    *,
    key: Array | None = None,
) -> dict[str, float]:
    """SynOps by layer, mean over the images; a stochastic network needs a key.

    Of neurons that are connected with themselves, every spike but those of the last step counts
    once, under the name of their layer.

    Raises:
      InputError: images that the network cannot take.
    """
    images = to_unit_range(jnp.asarray(checked_images(images, architecture.input_shape)))
    kept, counts = kept_channels(architecture, masks), {}
    synapses = jax.device_get(_synapses(architecture, variables, images, masks, key))
    for node in _counted(architecture):
        whole = not masks or kernel(node.name) not in masks
        each = node.fan_out(int(kept[node.name].sum())) if whole else 1
        counts[node.name] = float(synapses[node.name]) * each
    return counts | {name: float(synapses[name]) for name in self_connected(architecture)}


@partial(jax.jit, static_argnums=0)
def _synapses(architecture, variables, images, masks, key):
    """By layer, `Node.synapses` of the non-zero inputs, mean over images."""
    network, masks = SpikingNetwork(architecture), masks or {}
    layers = _counted(architecture)
    values = network.apply(variables, images, key, method="encode")
    connected = self_connected(architecture)
    keep = [*(node.input for node in layers), *connected]
    rest, _ = network.apply(variables, values, masks, keep=keep, key=key, method="walk")
    values = values | rest
    zero = (0 - jnp.array(architecture.mean)) / jnp.array(architecture.std)  # after normalization
    counts = {}
    for node in layers:
        silence = zero if node.input == IMAGE else 0.0
        events = (jnp.abs(values[node.input] - silence) > 1e-6).astype(jnp.float32)
        weights, kept = masks.get(kernel(node.name)), gate(architecture, node.name, masks)
        if kept is not None and not node.opens_group:  # it may read channels before their gate
            events = events * kept
        if weights is not None and kept is not None:
            weights = weights * kept
        counts[node.name] = node.synapses(events, weights) / images.shape[0]
    for name in connected:  # the spikes of the last step reach nothing
        counts[name] = values[name][:-1].sum() / images.shape[0]
    return counts


def energy_nj(
    architecture: Architecture, synops_by_layer: dict[str, float], masks: MaskTree | None = None
) -> float:
    """Energy of one image in nanojoule, from `synops`; conventions as in `cost`."""
    analog = sum(n for name, n in macs(architecture, masks).items() if name not in synops_by_layer)
    analog *= architecture.time_steps if architecture.encoding == "gaussian" else 1
    picojoule = PICOJOULE_PER_MAC * analog + PICOJOULE_PER_SYNOP * sum(synops_by_layer.values())
    return picojoule / 1000
