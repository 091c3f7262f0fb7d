"""What a network costs: parameters, MACs, synaptic operations, energy and latency.

Conventions:
  MACs       dense multiply-accumulates of one time step for one image. Positions that
             read padding count (as Torch-Pruning counts); batch norm folds into the
             convolution and costs nothing; T is left out, so that the figure compares
             with non-spiking networks.
  SynOps     additions caused by spikes, for one image over all T steps: a non-zero input
             counts once for every surviving synapse that it meets, stride and padding
             respected. A layer that reads images, direct or with Gaussian noise, does MACs
             and is left out; Poisson spikes and frames of events are counted. After average
             pooling an input is a fraction of a spike, and where spikes add it is more than
             one: it counts as one addition, which flatters networks that do so.
  energy     45 nm, 32 bit: 4.6 pJ a MAC of a layer that reads images (done once where they
             are constant in time) and 0.9 pJ a SynOp. Membrane updates, memory traffic and
             routing are ignored: a proxy for comparing networks.
  latency    median wall time of one jitted forward pass over all T steps.

Every function takes masks, and gives for masked networks what the compact one would cost. Masks
of weights save parameters and SynOps; a dense machine does their MACs all the same.
"""

import math
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ccsrp_jax.data.splits import Split, to_unit_range
from ccsrp_jax.networks import masks
from ccsrp_jax.networks.architecture import (
    Architecture,
    gate_position,
    shapes,
    varies_in_time,
)
from ccsrp_jax.networks.classifier import ClassifierFn, key_kwargs
from ccsrp_jax.networks.masks import MaskTree, alive_channels, gate, kernel
from ccsrp_jax.networks.nodes import IMAGE, Node, Shape
from ccsrp_jax.networks.spiking_network import SpikingNetwork

PICOJOULE_PER_MAC = 4.6  # 32-bit float multiply and add at 45 nm (Horowitz, ISSCC 2014)


PICOJOULE_PER_SYNOP = 0.9  # the add alone


def _compact_shapes(
    architecture: Architecture, masks: MaskTree | None
) -> Iterator[tuple[Node, list[Shape], Shape]]:
    """Every node with its input shapes and its output shape in the compact network."""
    alive, shape = alive_channels(architecture, masks), shapes(architecture)
    compact = {name: (*shape[name][:-1], int(bits.sum())) for name, bits in alive.items()}
    for node in architecture.nodes:
        yield node, [compact[name] for name in node.inputs], compact[node.name]


def macs(architecture: Architecture, masks: MaskTree | None = None) -> dict[str, int]:
    """MACs by layer with a kernel; their sum is the network's."""
    return {
        node.name: node.macs(inputs, output)
        for node, inputs, output in _compact_shapes(architecture, masks)
        if node.has_kernel
    }


def params(architecture: Architecture, masks: MaskTree | None = None) -> dict[str, int]:
    """Trainable parameters by layer; batch norm's scale and shift, and learned leaks, included."""
    alive, counts = alive_channels(architecture, masks), {}
    for node, inputs, output in _compact_shapes(architecture, masks):
        sizes = {
            name: math.prod(shape) for name, shape in node.param_shapes(inputs, output).items()
        }
        if node.spiking and architecture.neuron.learned:
            sizes["leak"] = 1
        weights = (masks or {}).get(kernel(node.name))
        if weights is not None:
            into = [alive[name] for name in node.inputs]
            cut = node.take({"kernel": np.asarray(weights)}, into, alive[node.name])
            sizes["kernel"] = int(cut["kernel"].sum())
        if sizes:
            counts[node.name] = sum(sizes.values())
    return counts


def _counted(architecture: Architecture) -> list[Node]:
    """Layers whose inputs are events, which do SynOps."""
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
    images: Float[Array, "B H W C"],
    masks: MaskTree | None = None,
    *,
    key: Array | None = None,
) -> dict[str, float]:
    """SynOps by layer, mean over the images; a stochastic encoding needs a key."""
    alive, counts = alive_channels(architecture, masks), {}
    synapses = jax.device_get(_synapses(architecture, variables, images, masks, key))
    for node in _counted(architecture):
        whole = not masks or kernel(node.name) not in masks
        each = node.fan_out(int(alive[node.name].sum())) if whole else 1
        counts[node.name] = float(synapses[node.name]) * each
    return counts


@partial(jax.jit, static_argnums=0)
def _synapses(architecture, variables, images, masks, key):
    """By layer, `Node.synapses` of the non-zero inputs, mean over images."""
    network, masks = SpikingNetwork(architecture), masks or {}
    layers = _counted(architecture)
    values = network.apply(variables, images, key, method="encode")
    rest, _ = network.apply(
        variables, values, masks, keep=[node.input for node in layers], method="walk"
    )
    values = values | rest
    zero = (0 - jnp.array(architecture.mean)) / jnp.array(architecture.std)  # normalised
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
    return counts


def energy_nj(
    architecture: Architecture, synops_by_layer: dict[str, float], masks: MaskTree | None = None
) -> float:
    """Energy of one image in nanojoule, from `synops`; see the module's conventions."""
    analog = sum(n for name, n in macs(architecture, masks).items() if name not in synops_by_layer)
    analog *= architecture.time_steps if architecture.encoding == "gaussian" else 1
    picojoule = PICOJOULE_PER_MAC * analog + PICOJOULE_PER_SYNOP * sum(synops_by_layer.values())
    return picojoule / 1000


def latency_ms(
    networks: Sequence[tuple[ClassifierFn, Any]],
    images: Float[Array, "B H W C"],
    repeats: int = 30,
    *,
    key: Array | None = None,
) -> list[float]:
    """Median milliseconds of a forward pass over the batch, for each network.

    The networks take turns, so that a drift of the machine's speed meets all of them.

    Args:
      networks: classifiers with their parameters, masked or compact, as in
        `(Classifier(architecture), (variables, masks))`.
      images: the batch.
      repeats: timed passes of each, after three that are not.
      key: for those that draw at random; drawing is part of their time.
    """
    passes = [jax.jit(logits) for logits, _ in networks]
    extra = [key_kwargs(logits, key) for logits, _ in networks]
    times = np.zeros((repeats + 3, len(networks)))
    for row in times:
        for i, (forward, (_, params)) in enumerate(zip(passes, networks, strict=True)):
            start = time.perf_counter()
            jax.block_until_ready(forward(params, images, **extra[i]))
            row[i] = 1000 * (time.perf_counter() - start)
    return np.median(times[3:], axis=0).tolist()


def layer_macs(architecture: Architecture, begin: int = 0) -> dict[str, int]:
    """MACs of a forward pass on one image, by layer: over all time steps, or once where the
    layer's input is constant in time.

    Args:
      architecture: the network.
      begin: position in `architecture.nodes` of the first node that counts.
    """
    varies, once = varies_in_time(architecture), macs(architecture)
    return {
        node.name: once[node.name] * (architecture.time_steps if varies[node.input] else 1)
        for node in architecture.nodes[begin:]
        if node.has_kernel
    }


def suffix_macs(architecture: Architecture, group: str) -> int:
    """MACs, over all time steps, of one candidate for the group on one image."""
    return sum(layer_macs(architecture, gate_position(architecture, group)).values())


COST_IMAGES = 256  # of the split, over which SynOps are averaged


def costs(
    architecture: Architecture,
    variables: dict,
    network_masks: MaskTree | None,
    split: Split,
    key: Array,
) -> dict:
    """What a network costs; SynOps are those of the split's first images, the key for their
    encoding. Weights that are 0 cost nothing but MACs."""
    images = to_unit_range(jnp.asarray(split.images[:COST_IMAGES]))
    network_masks = masks.of_zeros(architecture, variables) | dict(network_masks or {})
    by_layer = synops(architecture, variables, images, network_masks, key=key)
    return {
        "macs": sum(macs(architecture, network_masks).values()),
        "params": sum(params(architecture, network_masks).values()),
        "synops": sum(by_layer.values()),
        "energy_nj": energy_nj(architecture, by_layer, network_masks),
    }
