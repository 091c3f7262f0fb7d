"""Export as StableHLO, which XLA compilers and runtimes run without this library."""

from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from ccsrp_jax.exchange.report import (
    ExportReport,
    as_network,
    check_close,
    check_deterministic,
    check_images,
    imported,
    target_path,
)
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.utils.io import write_atomic

PLATFORMS = ("cpu", "cuda", "tpu")
TOLERANCE = 1e-5  # of a logit, where the machine compiles a constant and an argument differently


def export_stablehlo(network: Any, path: Any, images: Any = None) -> ExportReport:
    """Writes a network, with its weights, as the function from images to logits.

    The file is what `jax.export` serializes, for CPUs, CUDA devices and TPUs, with a batch of any
    size: `jax.export.deserialize(bytearray(open(path, "rb").read())).call(images)` runs it with JAX
    alone, and its `mlir_module()` is the StableHLO text.

    Args:
      network: path of a saved network, or (architecture, variables).
      path: of the file.
      images: for the comparison; by default 16 of noise.

    Returns:
      The comparison of what the file computes here, on the default device, with the network.

    Raises:
      InputError: the network draws at random or cannot be loaded, or `flatbuffers` is not
        installed; nothing is written.
    """
    imported("flatbuffers", "stablehlo")  # with which `jax.export` serializes
    target = target_path(path)
    architecture, variables = as_network(network)
    check_deterministic(architecture, "StableHLO")
    images = check_images(architecture, images)
    variables, classifier = jax.tree.map(jnp.asarray, variables), Classifier(architecture)

    @jax.jit
    def run(images):
        return classifier((variables, None), images)

    shape = jax.export.symbolic_shape(
        ", ".join(["batch", *map(str, architecture.input_shape)]), constraints=["batch >= 1"]
    )
    given = jax.ShapeDtypeStruct(shape, jnp.float32)
    data = jax.export.export(run, platforms=PLATFORMS)(given).serialize()
    found = np.asarray(jax.export.deserialize(data).call(images))
    difference = float(np.abs(found - np.asarray(run(images))).max())
    check_close("StableHLO", difference, TOLERANCE)
    write_atomic(target, bytes(data))
    notes = (
        "Images are float32 in [0, 1], (batch, H, W, C); logits are averaged over time.",
        f"Compiled for {', '.join(PLATFORMS)}; compared on {jax.default_backend()} only.",
    )
    compared = "deserialized and compared with the network"
    return ExportReport(target, "stablehlo", compared, len(images), difference, notes=notes)
