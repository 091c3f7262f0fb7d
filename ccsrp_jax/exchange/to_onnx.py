"""Export as ONNX, by jax2onnx."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ccsrp_jax.exchange.report import (
    ExportReport,
    as_network,
    check_close,
    check_deterministic,
    check_images,
    imported,
    logits,
    target_path,
)
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.utils.errors import InputError, reason
from ccsrp_jax.utils.io import write_atomic

TOLERANCE = 1e-5  # of a logit: the runtimes sum in different order
INPUT, OUTPUT = "images", "logits"


def export_onnx(network: Any, path: Any, images: Any = None) -> ExportReport:
    """Writes a network, with its weights, as an ONNX model from images to logits.

    Its input `images` is (batch, H, W, C) in [0, 1], for a batch of any size; its output `logits`
    is averaged over time.

    Args:
      network: path of a saved network, or (architecture, variables).
      path: of the file.
      images: for the comparison; by default 16 of noise.

    Returns:
      The comparison of onnxruntime's logits with the network's.

    Raises:
      InputError: jax2onnx or onnxruntime is not installed, the network draws at random, or jax2onnx
        has no translation of an operation; nothing is written.
    """
    jax2onnx, onnxruntime = imported("jax2onnx", "onnx"), imported("onnxruntime", "onnx")
    target = target_path(path)
    architecture, variables = as_network(network)
    check_deterministic(architecture, "ONNX")
    images = check_images(architecture, images)
    values, classifier = jax.tree.map(jnp.asarray, variables), Classifier(architecture)
    try:
        model = jax2onnx.to_onnx(
            lambda images: classifier((values, None), images),
            [("batch", *architecture.input_shape)],
            model_name="ccsrp_jax",
            input_names=[INPUT],
            output_names=[OUTPUT],
        )
        data = model.SerializeToString()
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        [found] = session.run([OUTPUT], {INPUT: np.asarray(images)})
    except Exception as error:  # the converter and the runtime raise all kinds
        raise InputError(
            f"jax2onnx cannot export this network ({reason(error)}): export it to stablehlo or nir."
        ) from error
    difference = float(np.abs(found - logits(architecture, variables, images)).max())
    check_close("ONNX", difference, TOLERANCE)
    write_atomic(target, data)
    notes = (f"Input {INPUT!r}: (batch, H, W, C) in [0, 1]; output {OUTPUT!r}: (batch, classes).",)
    compared = "run in onnxruntime and compared with the network"
    return ExportReport(target, "onnx", compared, len(images), difference, notes=notes)
