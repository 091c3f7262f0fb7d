"""Order of flattened features: channels last here, first in PyTorch and NIR."""

import numpy as np

from ccsrp_jax.networks.architecture import Architecture, shapes
from ccsrp_jax.networks.node_base import Shape
from ccsrp_jax.networks.nodes import Flatten
from ccsrp_jax.utils.errors import InputError


def flattened_from(architecture: Architecture) -> dict[str, Shape]:
    """By node of flattened features, the (H, W, C) of the image that they are of.

    Raises:
      InputError: a node reads features of different order.
    """
    shape, found = shapes(architecture), {}
    for node in architecture.nodes:
        if node.opens_group:
            continue
        if isinstance(node, Flatten) and len(shape[node.input]) == 3:
            found[node.name] = shape[node.input]
            continue
        orders = {found.get(name) for name in node.inputs}
        if len(orders) > 1 and len(shape[node.name]) == 1:
            raise InputError(
                f"node {node.name!r} reads features of different order, which only this library "
                "has: flatten both or neither."
            )
        if (order := orders.pop()) is not None:
            found[node.name] = order
    return found


def channels_first(kernel: np.ndarray, order: Shape | None) -> np.ndarray:
    """Weights (out, in) of a linear layer, from a kernel (in, out) of features in this order."""
    weight = kernel.T
    if order is None:
        return weight
    return weight.reshape(-1, *order).transpose(0, 3, 1, 2).reshape(len(weight), -1)


def channels_last(weight: np.ndarray, order: Shape | None) -> np.ndarray:
    """The inverse of `channels_first`."""
    if order is not None:
        height, width, channels = order
        weight = weight.reshape(-1, channels, height, width).transpose(0, 2, 3, 1)
        weight = weight.reshape(len(weight), -1)
    return weight.T
