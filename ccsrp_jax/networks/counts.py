"""Static costs of a network: parameters and MACs by layer, of masked networks too."""

import math
from collections.abc import Iterator, Mapping

import numpy as np

from ccsrp_jax.networks.architecture import (
    Architecture,
    gate_position,
    shapes,
    varies_in_time,
)
from ccsrp_jax.networks.masks import MaskTree, kept_channels, kernel
from ccsrp_jax.networks.nodes import Node, Shape


def _compact_shapes(
    architecture: Architecture, alive: Mapping[str, np.ndarray]
) -> Iterator[tuple[Node, list[Shape], Shape]]:
    """Every node with its input shapes and its output shape in the compact network."""
    shape = shapes(architecture)
    compact = {name: (*shape[name][:-1], int(bits.sum())) for name, bits in alive.items()}
    for node in architecture.nodes:
        yield node, [compact[name] for name in node.inputs], compact[node.name]


def macs(architecture: Architecture, masks: MaskTree | None = None) -> dict[str, int]:
    """MACs by layer with a kernel, and of neurons that are connected with themselves, one each;
    their sum is the network's."""
    connected, counts = self_connected(architecture), {}
    alive = kept_channels(architecture, masks)
    for node, inputs, output in _compact_shapes(architecture, alive):
        if node.has_kernel:
            counts[node.name] = node.macs(inputs, output)
        elif node.name in connected:
            counts[node.name] = math.prod(output)
    return counts


def self_connected(architecture: Architecture) -> frozenset[str]:
    """Layers of neurons that are connected with themselves, see `SelfConnectedLIF`."""
    if architecture.neuron.initial_self_weight is None:
        return frozenset()
    return frozenset(node.name for node in architecture.nodes if node.spiking)


def params(architecture: Architecture, masks: MaskTree | None = None) -> dict[str, int]:
    """Trainable parameters by layer; batch norm's scale and shift, learned leaks and weights of
    self-connections included."""
    alive, counts = kept_channels(architecture, masks), {}
    connected = self_connected(architecture)
    for node, inputs, output in _compact_shapes(architecture, alive):
        sizes = {
            name: math.prod(shape) for name, shape in node.param_shapes(inputs, output).items()
        }
        if node.spiking and architecture.neuron.learned:
            sizes["leak"] = 1
        if node.name in connected:
            sizes["self_weight"] = output[-1]
        weights = (masks or {}).get(kernel(node.name))
        if weights is not None:
            into = [alive[name] for name in node.inputs]
            cut = node.take({"kernel": np.asarray(weights)}, into, alive[node.name])
            sizes["kernel"] = int(cut["kernel"].sum())
        if sizes:
            counts[node.name] = sum(sizes.values())
    return counts


def layer_macs(architecture: Architecture, begin: int = 0) -> dict[str, int]:
    """MACs of a forward pass on one image, by layer: over all time steps, or once where the
    layer's input is constant in time. Self-connections of neurons count in every step.

    Args:
      architecture: the network.
      begin: position in `architecture.nodes` of the first node that counts.
    """
    varies, once = varies_in_time(architecture), macs(architecture)
    return {
        node.name: once[node.name]
        * (architecture.time_steps if node.spiking or varies[node.input] else 1)
        for node in architecture.nodes[begin:]
        if node.name in once
    }


def suffix_macs(architecture: Architecture, group: str) -> int:
    """MACs, over all time steps, of one candidate for the group on one image."""
    return sum(layer_macs(architecture, gate_position(architecture, group)).values())
