"""From a masked network to a physically smaller one with the same function."""

import dataclasses

import numpy as np

from ccsrp_jax.networks import masks as masking
from ccsrp_jax.networks.architecture import Architecture


def compact(
    architecture: Architecture, variables: dict, masks: masking.MaskTree
) -> tuple[Architecture, dict]:
    """Cuts masked filters out of the weights.

    A masked filter never spikes, so removing it together with its batch norm and with the
    input channels that read it changes nothing else: the compact network gives the masked
    one's spikes (of the kept filters) and logits, up to the order of float sums. Groups
    without a mask stay whole.

    Weight masks are multiplied into the kernels; they do not make the network smaller.

    Returns:
      The smaller architecture and its variables.

    Raises:
      InputError: the masks do not fit, or a group would keep no filter.
    """
    alive = masking.alive_channels(architecture, masks)
    kept = {name: np.flatnonzero(bits) for name, bits in alive.items()}
    nodes = []
    params = dict(masking.fold(variables, masks)["params"])
    stats = dict(variables.get("batch_stats", {}))
    for node in architecture.nodes:
        into, out = [kept[name] for name in node.inputs], kept[node.name]
        for collection in (params, stats):
            if node.name in collection:
                collection[node.name] = node.take(collection[node.name], into, out)
        nodes.append(node.narrowed(len(out)))
    smaller = dataclasses.replace(architecture, nodes=tuple(nodes))
    return smaller, {"params": params, "batch_stats": stats}
