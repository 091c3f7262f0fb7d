"""What a network costs: parameters, MACs, synaptic operations, energy and latency.

Conventions:
  MACs       dense multiply-accumulates of one time step for one image. Positions that
             read padding count (as Torch-Pruning counts); batch norm folds into the
             convolution and costs nothing; T is left out, so that the figure compares
             with non-spiking networks.
  SynOps     additions caused by spikes, for one image over all T steps: a non-zero input
             counts once for every surviving synapse that it meets, stride and padding
             respected. The layer that reads the image does MACs and is left out. After
             average pooling an input is a fraction of a spike: it counts as one addition,
             which flatters networks that pool so.
  energy     45 nm, 32 bit: 4.6 pJ a MAC of the layer that reads the image (done once, as
             its input is constant in time) and 0.9 pJ a SynOp. Membrane updates, memory
             traffic and routing are ignored: a proxy for comparing networks.
  latency    median wall time of one jitted forward pass over all T steps.

Every function takes masks, and gives for masked networks what the compact one would cost.
"""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ccsrp_jax.architecture import (
    Architecture,
    Conv,
    Dense,
    Flatten,
    Norm,
    group_of,
    shapes,
    varies_in_time,
)
from ccsrp_jax.attacks import Logits
from ccsrp_jax.masks import MaskTree, widths
from ccsrp_jax.models import SpikingNetwork

PICOJOULE_PER_MAC = 4.6  # 32-bit float multiply and add at 45 nm (Horowitz, ISSCC 2014)
PICOJOULE_PER_SYNOP = 0.9  # the add alone


def _channels(architecture: Architecture, masks: MaskTree | None) -> dict[str, int]:
    """Channels (features, once flattened) of every node's output that survive the masks."""
    member, kept, shape = group_of(architecture), widths(architecture, masks), shapes(architecture)
    count = {name: kept.get(group, shape[group][-1]) for name, group in member.items()}
    for node in architecture.nodes:
        if isinstance(node, Flatten):
            h, w, _ = shape[node.input]
            count[node.name] = h * w * count[node.input]
    return count


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
    """Trainable parameters by layer, batch norm's scale and shift included."""
    channels = _channels(architecture, masks)
    cost = {}
    for node in architecture.nodes:
        out = channels[node.name]
        match node:
            case Conv(name=name, kernel=k, bias=bias):
                cost[name] = k * k * channels[node.input] * out + bias * out
            case Dense(name=name, bias=bias):
                cost[name] = channels[node.input] * out + bias * out
            case Norm(name=name):
                cost[name] = 2 * out
    return cost


def synops(
    architecture: Architecture,
    variables: dict,
    images: Float[Array, "B H W C"],
    masks: MaskTree | None = None,
) -> dict[str, float]:
    """SynOps by layer, mean over the images."""
    channels, varies = _channels(architecture, masks), varies_in_time(architecture)
    layers = [
        node for node in architecture.nodes if isinstance(node, Conv | Dense) and varies[node.input]
    ]
    meets = jax.device_get(_synapse_positions(architecture, variables, images, masks))
    return {node.name: float(meets[node.name]) * channels[node.name] for node in layers}


@partial(jax.jit, static_argnums=0)
def _synapse_positions(architecture, variables, images, masks):
    """By layer, how many output positions the non-zero inputs reach, mean over images."""
    varies = varies_in_time(architecture)
    layers = [
        node for node in architecture.nodes if isinstance(node, Conv | Dense) and varies[node.input]
    ]
    network = SpikingNetwork(architecture)
    values, _ = network.apply(
        variables,
        network.apply(variables, images, method="encode"),
        masks,
        keep=[node.input for node in layers],
        method="walk",
    )
    reach = {}
    for node in layers:
        events = (values[node.input] != 0).astype(jnp.float32)
        if isinstance(node, Conv):
            k, pad = node.kernel, (node.kernel // 2, node.kernel // 2)
            per_position = events.reshape(-1, *events.shape[2:]).sum(-1, keepdims=True)
            events = jax.lax.conv_general_dilated(
                per_position,
                jnp.ones((k, k, 1, 1)),
                (node.stride, node.stride),
                (pad, pad),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        reach[node.name] = events.sum() / images.shape[0]
    return reach


def energy_nj(
    architecture: Architecture, synops_by_layer: dict[str, float], masks: MaskTree | None = None
) -> float:
    """Energy of one image in nanojoule, from `synops`; see the module's conventions."""
    analog = sum(n for name, n in macs(architecture, masks).items() if name not in synops_by_layer)
    picojoule = PICOJOULE_PER_MAC * analog + PICOJOULE_PER_SYNOP * sum(synops_by_layer.values())
    return picojoule / 1000


def latency_ms(
    networks: Sequence[tuple[Logits, Any]],
    images: Float[Array, "B H W C"],
    repeats: int = 30,
) -> list[float]:
    """Median milliseconds of a forward pass over the batch, for each network.

    The networks take turns, so that a drift of the machine's speed meets all of them.

    Args:
      networks: classifiers with their parameters, masked or compact, as in
        `(Classifier(architecture), (variables, masks))`.
      images: the batch.
      repeats: timed passes of each, after three that are not.
    """
    passes = [jax.jit(logits) for logits, _ in networks]
    times = np.zeros((repeats + 3, len(networks)))
    for row in times:
        for i, (forward, (_, params)) in enumerate(zip(passes, networks, strict=True)):
            start = time.perf_counter()
            jax.block_until_ready(forward(params, images))
            row[i] = 1000 * (time.perf_counter() - start)
    return np.median(times[3:], axis=0).tolist()
