"""Saving and loading a network as one safetensors file."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialize

from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.utils.errors import InputError
from ccsrp_jax.utils.io import write_atomic


def save(path: Path, architecture: Architecture, variables: dict) -> None:
    """Writes a network to one safetensors file: weights, and its description as metadata.

    Tensors are named as in Flax, `params/conv1/kernel`; the metadata key `architecture`
    holds `Architecture.to_json()`. The write is atomic.
    """
    flat = traverse_util.flatten_dict(variables, sep="/")
    tensors = {name: np.ascontiguousarray(value) for name, value in flat.items()}
    write_atomic(path, serialize(tensors, {"architecture": architecture.to_json()}))


def load(path: Path) -> tuple[Architecture, dict]:
    """Reads a network that `save` wrote. The file holds arrays and JSON, never code.

    Raises:
      InputError: the file is missing, damaged or no network of this library; or it has a node
        or neuron of a kind that is not registered.
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
