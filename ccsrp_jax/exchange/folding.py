"""Batch normalization folded into the layer before it, for formats that have none."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.interval_rules import NORM_EPSILON
from ccsrp_jax.networks.nodes import Norm
from ccsrp_jax.utils.errors import InputError


def affine_of_norm(variables: Mapping[str, Any], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Scale and shift, by channel, of a batch normalization in evaluation, in float64."""
    learned, moments = variables["params"][name], variables["batch_stats"][name]
    mean, var = (np.asarray(moments[key], np.float64) for key in ("mean", "var"))
    scale = np.asarray(learned["scale"], np.float64) / np.sqrt(var + NORM_EPSILON)
    return scale, np.asarray(learned["bias"], np.float64) - mean * scale


def folded_weights(
    architecture: Architecture, variables: Mapping[str, Any], form: str
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Kernel and bias of every layer, with the batch normalization that reads it folded in.

    Args:
      architecture, variables: the network.
      form: of the export, for messages.

    Returns:
      By name of the layer, kernel and bias in float64, in this library's order of axes.

    Raises:
      InputError: a normalization does not stand directly behind a layer that nothing else reads.
    """
    weights = {}
    for node in architecture.nodes:
        if node.has_kernel:
            leaves = variables["params"][node.name]
            kernel = np.asarray(leaves["kernel"], np.float64)
            bias = leaves.get("bias", np.zeros(kernel.shape[-1]))
            weights[node.name] = (kernel, np.asarray(bias, np.float64))
    for node in architecture.nodes:
        if not isinstance(node, Norm):
            continue
        readers = [each.name for each in architecture.nodes if node.input in each.inputs]
        if node.input not in weights or len(readers) > 1:
            raise InputError(
                f"{form} cannot hold the batch normalization {node.name!r}, which folds into no "
                "layer: export a network with each of them directly behind a convolution or a "
                "Dense that nothing else reads."
            )
        scale, shift = affine_of_norm(variables, node.name)
        kernel, bias = weights[node.input]
        weights[node.input] = (kernel * scale, bias * scale + shift)
    return weights
