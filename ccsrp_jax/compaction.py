"""From masks to a physically smaller network with the same function, and to one file."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialise

from ccsrp_jax import masks as masking
from ccsrp_jax.architecture import Architecture, Conv, Dense, Norm
from ccsrp_jax.errors import InputError
from ccsrp_jax.files import write_whole


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


def save(path: Path, architecture: Architecture, variables: dict) -> None:
    """Writes a network to one safetensors file: weights, and its description as metadata.

    Tensors are named as in Flax, `params/conv1/kernel`; the metadata key `architecture`
    holds `Architecture.to_json()`. The file appears whole or not at all.
    """
    flat = traverse_util.flatten_dict(variables, sep="/")
    tensors = {name: np.ascontiguousarray(value) for name, value in flat.items()}
    write_whole(path, serialise(tensors, {"architecture": architecture.to_json()}))


def load(path: Path) -> tuple[Architecture, dict]:
    """Reads a network that `save` wrote; no pickle, and no code but this library's.

    Raises:
      InputError: the file is missing, damaged or holds no network of ours.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            architecture = Architecture.from_json(file.metadata()["architecture"])
            flat = {name: jnp.asarray(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is not a readable network file ({error}): give a file that `save` wrote."
        ) from error
    return architecture, traverse_util.unflatten_dict(flat, sep="/")
