"""Compaction: a masked network to a smaller one that computes the same function."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from ccsrp_jax.networks import masks as masking
from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.variables import check_variables_fit


def compact(
    architecture: Architecture, variables: dict, masks: Mapping[str, Any]
) -> tuple[Architecture, dict]:
    """Removes masked filters from the weights.

    A masked filter never spikes, so it can be removed together with its batch norm and with the
    input channels of the layers that read it. The compact network has the spikes (of the kept
    filters) and logits of the masked one, up to rounding. Groups without a mask keep all filters.

    Weight masks are multiplied into the kernels; they do not make the network smaller.

    Returns:
      The smaller architecture and its variables.

    Raises:
      InputError: the variables or masks do not fit, or a group would keep no filter.
    """
    check_variables_fit(architecture, variables)
    masks = masking.as_floats(architecture, {} if masks is None else masks)
    channels = masking.kept_channels(architecture, masks)
    kept = {name: np.flatnonzero(bits) for name, bits in channels.items()}
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
