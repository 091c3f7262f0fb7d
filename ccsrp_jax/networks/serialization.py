"""Saving and loading a network as one safetensors file.

What `load` refuses, `save` refuses before it writes, by the same check (`check_variables`).
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialize

from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.nodes import Shape
from ccsrp_jax.networks.spiking_network import SpikingNetwork
from ccsrp_jax.utils.errors import InputError, reason, shown
from ccsrp_jax.utils.fields import json_object
from ccsrp_jax.utils.io import as_path, write_atomic

ARCHITECTURE, PROVENANCE, DIGEST = "architecture", "provenance", "sha256"  # keys of the metadata
NAMED = 3  # tensors that a message names


class SavedNetwork(NamedTuple):
    """Content of a network file.

    Attributes:
      architecture, variables: the network.
      provenance: what it was trained on, see `data.provenance`; None where that is not known.
    """

    architecture: Architecture
    variables: dict
    provenance: dict[str, Any] | None


def save(
    path: str | PathLike[str],
    architecture: Architecture,
    variables: Mapping[str, Any],
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Writes a network to one safetensors file: weights, and its description as metadata.

    Tensors are float32 and named as in Flax, `params/conv1/kernel`; the metadata key
    `architecture` holds `Architecture.to_json()`, `provenance` what it was trained on, and
    `sha256` a digest of all that. The write is atomic.

    Args:
      path: of the file.
      architecture, variables: the network.
      provenance: JSON-compatible; see `data.provenance`.

    Raises:
      InputError: the variables are not those of the architecture, or are not finite.
    """
    path = as_path(path)
    if not path.name:
        raise InputError(f"{shown(str(path))} names no file: give the path of one.")
    if not isinstance(variables, Mapping):
        raise InputError(f"the variables are {shown(variables)}: give those of `init` or `train`.")
    paths = traverse_util.flatten_dict(dict(variables))
    flat = {"/".join(map(str, path)): value for path, value in paths.items()}
    tensors = {name: _float32(name, value) for name, value in flat.items()}
    check_variables("the network to save", architecture, tensors)
    metadata = {ARCHITECTURE: architecture.to_json()}
    if provenance is not None:
        metadata[PROVENANCE] = _as_json(provenance)
    metadata[DIGEST] = _digest(metadata, tensors)
    write_atomic(path, _in_order(serialize(tensors, metadata)))


def load(path: str | PathLike[str]) -> tuple[Architecture, dict]:
    """Reads a network that `save` wrote. The file holds arrays and JSON, never code.

    Raises:
      InputError: the file is missing, damaged or no network of this library; its tensors are not
        those of its description; or it has a node or neuron of a kind that is not registered.
    """
    found = load_with_provenance(path)
    return found.architecture, found.variables


def load_with_provenance(path: str | PathLike[str]) -> SavedNetwork:
    """Reads a network and what it was trained on; otherwise as `load`."""
    path = as_path(path)
    metadata, tensors = _read(path)
    try:
        architecture = Architecture.from_json(metadata[ARCHITECTURE])
        provenance = _provenance(metadata)
    except InputError as error:
        raise InputError(f"{path} cannot be loaded: {error}") from error
    check_variables(str(path), architecture, tensors)
    # older files have no digest
    if DIGEST in metadata and metadata[DIGEST] != _digest(metadata, tensors):
        raise InputError(
            f"{path} is damaged: its content is not what its SHA-256 says; use a copy of the file."
        )
    variables = {name: jnp.asarray(value) for name, value in tensors.items()}
    return SavedNetwork(architecture, traverse_util.unflatten_dict(variables, sep="/"), provenance)


def check_variables(
    what: str, architecture: Architecture, tensors: Mapping[str, np.ndarray]
) -> None:
    """Compares tensors with those that an architecture has, and checks their values.

    Args:
      what: they come from, for messages.
      architecture: the network.
      tensors: by name, as in a file.

    Raises:
      InputError: a tensor is missing or too many, or has another shape or type; a value is not
        finite, or a variance negative.
    """
    expected = tensor_shapes(architecture)
    for said, names in (
        ("lacks", expected.keys() - tensors.keys()),
        ("has, beside those of its architecture,", tensors.keys() - expected.keys()),
    ):
        if names:
            listed = ", ".join(shown(name).strip("'") for name in sorted(names)[:NAMED])
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            raise InputError(
                f"{what} {said} the tensors {listed}{more}: use the variables and the architecture "
                "of one network, as `save` writes them."
            )
    for name, shape in expected.items():
        tensor = tensors[name]
        if tensor.shape != shape or tensor.dtype != np.float32:
            raise InputError(
                f"tensor {name} of {what} has shape {tensor.shape} and type {tensor.dtype}: its "
                f"architecture needs {shape} and float32."
            )
        if not np.isfinite(tensor).all():
            raise InputError(
                f"tensor {name} of {what} has values that are not finite: train the network "
                "again, with a lower learning rate."
            )
        if name.endswith("/var") and tensor.size and tensor.min() < 0:
            raise InputError(
                f"tensor {name} of {what} has a negative variance, {tensor.min():g}: use the "
                "batch statistics of a trained network."
            )


@cache
def tensor_shapes(architecture: Architecture) -> dict[str, Shape]:
    """Shape of every parameter and batch statistic, by its name in a file; computes no values."""
    height, width, channels = architecture.input_shape
    if architecture.encoding == "frames":
        channels //= architecture.time_steps
    # shapes do not depend on the number of steps, over which a trace is unrolled
    single = dataclasses.replace(architecture, time_steps=1, input_shape=(height, width, channels))
    image, key = jax.ShapeDtypeStruct((1, *single.input_shape), jnp.float32), jax.random.key(0)
    variables: Any = jax.eval_shape(SpikingNetwork(single).init, key, image, key=key)
    flat: dict[str, Any] = traverse_util.flatten_dict(variables, sep="/")
    return {name: tuple(leaf.shape) for name, leaf in flat.items()}


def _read(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Metadata and tensors of a file, as they are."""
    try:
        if not path.is_file():
            raise InputError(
                f"{path} is not a readable network file (there is no such file): give a file that "
                "`save` wrote."
            )
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is not a readable network file ({reason(error)}): give a file that `save` "
            "wrote."
        ) from error
    if ARCHITECTURE not in metadata:
        raise InputError(
            f"{path} has no description of a network: give a file that `save` wrote, with "
            f"{ARCHITECTURE!r} in its metadata."
        )
    return metadata, tensors


def _provenance(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    if PROVENANCE not in metadata:
        return None
    try:
        return json_object("what it was trained on", json.loads(metadata[PROVENANCE]))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"what it was trained on is no JSON ({reason(error)}): use a copy of the file."
        ) from error


def _as_json(provenance: Any) -> str:
    try:  # arrays and numbers of NumPy have `tolist`
        return json.dumps(dict(provenance), sort_keys=True, default=lambda each: each.tolist())
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"provenance {shown(provenance)} is no JSON object: give one of `data.provenance`."
        ) from error


def _float32(name: str, value: Any) -> np.ndarray:
    array = np.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise InputError(
            f"tensor {name} of the network to save has type {array.dtype}: give its variables as "
            "floats."
        )
    return np.ascontiguousarray(array, np.float32).reshape(array.shape)


def _in_order(data: bytes) -> bytes:
    """A safetensors file with its metadata in order of their keys, which the library shuffles.

    So the same network gives the same bytes.
    """
    start = int.from_bytes(data[:8], "little") + 8
    header = json.loads(data[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text + data[start:]


def _digest(metadata: Mapping[str, str], tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of all metadata but the digest, and of names, shapes and values of the tensors."""
    kept = {name: text for name, text in metadata.items() if name in (ARCHITECTURE, PROVENANCE)}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(json.dumps([name, tensors[name].shape]).encode())
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()
