"""From masks to a physically smaller network with the same function, and to one file."""

import dataclasses

import numpy as np

from ccsrp_jax.networks import masks as masking
from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.nodes import Conv, Dense, Norm


def compact(
    architecture: Architecture, variables: dict, masks: masking.MaskTree
) -> tuple[Architecture, dict]:
    """Cuts masked filters out of the weights.

    A masked filter never spikes, so removing it together with its batch norm and with the
    input channels that read it changes nothing else: the compact network gives the masked
    one's spikes (of the kept filters) and logits, to the order of float sums. Groups
    without a mask stay whole.

    Masks of weights are multiplied into the kernels: zeros stay, and save a dense machine nothing.

    Returns:
      The smaller architecture and its variables.

    Raises:
      InputError: the masks do not fit, or a group would keep no filter.
    """
    kept = {name: np.flatnonzero(bits) for name, bits in masking.alive(architecture, masks).items()}
    nodes, params, stats = (
        [],
        dict(masking.fold(variables, masks)["params"]),
        dict(variables.get("batch_stats", {})),
    )
    for node in architecture.nodes:
        into, out = kept[node.input], kept[node.name]
        match node:
            case Conv() | Dense():
                layer = dict(params[node.name])
                layer["kernel"] = layer["kernel"][..., into, :][..., out]
                if "bias" in layer:
                    layer["bias"] = layer["bias"][out]
                params[node.name] = layer
                node = dataclasses.replace(node, width=len(out))
            case Norm(name):
                params[name] = {key: value[out] for key, value in params[name].items()}
                stats[name] = {key: value[out] for key, value in stats[name].items()}
        nodes.append(node)
    smaller = dataclasses.replace(architecture, nodes=tuple(nodes))
    return smaller, {"params": params, "batch_stats": stats}
