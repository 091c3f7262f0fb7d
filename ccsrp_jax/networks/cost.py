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

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ccsrp_jax.data.splits import Split, to_unit_range
from ccsrp_jax.networks import cost, masks
from ccsrp_jax.networks.architecture import (
    Architecture,
    gate_position,
    group_of,
    shapes,
    varies_in_time,
)
from ccsrp_jax.networks.classifier import ClassifierFn, key_kwargs
from ccsrp_jax.networks.masks import MaskTree, alive, kernel
from ccsrp_jax.networks.nodes import IMAGE, Conv, Dense, Norm, Spike
from ccsrp_jax.networks.spiking_network import SpikingNetwork

PICOJOULE_PER_MAC = 4.6  # 32-bit float multiply and add at 45 nm (Horowitz, ISSCC 2014)


PICOJOULE_PER_SYNOP = 0.9  # the add alone


def _channels(architecture: Architecture, masks: MaskTree | None) -> dict[str, int]:
    """Channels (features, once flattened) of every node's output that survive the masks."""
    return {name: int(bits.sum()) for name, bits in alive(architecture, masks).items()}


def macs(architecture: Architecture, masks: MaskTree | None = None) -> dict[str, int]:
    """MACs by convolution and dense layer; their sum is the network's."""
    channels, shape = _channels(architecture, masks), shapes(architecture)
    cost = {}
    for node in architecture.nodes:
        match node:
            case Conv(name=name, kernel=k):
                h, w, _ = shape[name]
                cost[name] = k * k * channels[node.input] * channels[name] * h * w
            case Dense(name=name):
                cost[name] = channels[node.input] * channels[name]
    return cost


def params(architecture: Architecture, masks: MaskTree | None = None) -> dict[str, int]:
    """Trainable parameters by layer; batch norm's scale and shift, and learned leaks, included."""
    lives, cost = alive(architecture, masks), {}
    for node in architecture.nodes:
        out = int(lives[node.name].sum())
        match node:
            case Conv(bias=bias) | Dense(bias=bias):
                weights = (masks or {}).get(kernel(node.name))
                if weights is None:
                    window = node.kernel**2 if isinstance(node, Conv) else 1
                    kept = window * int(lives[node.input].sum()) * out
                else:
                    weights = np.asarray(weights)[..., lives[node.input], :][..., lives[node.name]]
                    kept = int(weights.sum())
                cost[node.name] = kept + bias * out
            case Norm(name=name):
                cost[name] = 2 * out
            case Spike(name=name) if architecture.neuron.learned:
                cost[name] = 1
    return cost


def _counted(architecture: Architecture) -> list[Conv | Dense]:
    """Layers whose inputs are events, which do SynOps."""
    varies = varies_in_time(architecture)
    noisy = {IMAGE} if architecture.encoding == "gaussian" else set()
    return [
        node
        for node in architecture.nodes
        if isinstance(node, Conv | Dense) and varies[node.input] and node.input not in noisy
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
    channels, met = _channels(architecture, masks), {}
    synapses = jax.device_get(_synapses(architecture, variables, images, masks, key))
    for node in _counted(architecture):
        each = 1 if masks and kernel(node.name) in masks else channels[node.name]
        met[node.name] = float(synapses[node.name]) * each
    return met


@partial(jax.jit, static_argnums=0)
def _synapses(architecture, variables, images, masks, key):
    """By layer, the synapses that the non-zero inputs meet, mean over images: for one output
    channel where the kernel is whole, else for all of them."""
    network, masks = SpikingNetwork(architecture), masks or {}
    member, layers = group_of(architecture), _counted(architecture)
    values = network.apply(variables, images, key, method="encode")
    rest, _ = network.apply(
        variables, values, masks, keep=[node.input for node in layers], method="walk"
    )
    values = values | rest
    zero = (0 - jnp.array(architecture.mean)) / jnp.array(architecture.std)  # normalised
    met = {}
    for node in layers:
        silence = zero if node.input == IMAGE else 0.0
        events = (jnp.abs(values[node.input] - silence) > 1e-6).astype(jnp.float32)
        weights = masks.get(kernel(node.name))
        if weights is not None and member[node.name] in masks:
            weights = weights * masks[member[node.name]]
        if isinstance(node, Conv):
            k, pad = node.kernel, (node.kernel // 2, node.kernel // 2)
            events = events.reshape(-1, *events.shape[2:])
            if weights is None:
                events, weights = events.sum(-1, keepdims=True), jnp.ones((k, k, 1, 1))
            events = jax.lax.conv_general_dilated(
                events,
                weights.astype(jnp.float32),
                (node.stride, node.stride),
                (pad, pad),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        elif weights is not None:
            events = events @ weights.astype(jnp.float32)
        met[node.name] = events.sum() / images.shape[0]
    return met


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


def layer_macs(architecture: Architecture) -> dict[str, int]:
    """MACs that a forward pass does on an image, by layer: over all steps, or once where the
    input is constant in time."""
    varies, macs = varies_in_time(architecture), cost.macs(architecture)
    return {
        node.name: macs[node.name] * (architecture.time_steps if varies[node.input] else 1)
        for node in architecture.nodes
        if isinstance(node, Conv | Dense)
    }


def suffix_macs(architecture: Architecture, group: str) -> int:
    """MACs, over all time steps, that one candidate for the group costs on one image."""
    gate, by_layer = gate_position(architecture, group), cost.macs(architecture)
    after = [node for node in architecture.nodes[gate:] if isinstance(node, Conv | Dense)]
    varies = varies_in_time(architecture)
    steps = {node.name: architecture.time_steps if varies[node.input] else 1 for node in after}
    return sum(by_layer[name] * count for name, count in steps.items())


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
    synops = cost.synops(architecture, variables, images, network_masks, key=key)
    return {
        "macs": sum(cost.macs(architecture, network_masks).values()),
        "params": sum(cost.params(architecture, network_masks).values()),
        "synops": sum(synops.values()),
        "energy_nj": cost.energy_nj(architecture, synops, network_masks),
    }
