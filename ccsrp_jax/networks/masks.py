"""Filter masks: one pytree, group name to a 0/1 vector over the group's filters.

Masks gate spikes. They are ordinary arguments of `apply`, so that `jax.vmap` runs a
population of them, for all groups or for one:

    jax.vmap(apply, in_axes=(None, None, 0))(variables, images, population)
    jax.vmap(apply, in_axes=(None, None, {"conv1": 0, "conv2": None}))(...)

The same tree may hold masks of single weights: under the name of a convolution or dense layer
and "/kernel", an array of the kernel's shape, in (k, k, in, out) or (in, out).
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ccsrp_jax.networks.architecture import Architecture, group_of, groups, kernel_shapes, shapes
from ccsrp_jax.networks.nodes import IMAGE, Conv, Dense, Flatten
from ccsrp_jax.utils.errors import InputError, unknown

MaskTree = Mapping[str, Array | np.ndarray]


KERNEL = "/kernel"  # ends the name of a mask of weights


def kernel(layer: str) -> str:
    """Under what name a mask of that layer's weights stands in a `MaskTree`."""
    return layer + KERNEL


def ones(architecture: Architecture) -> MaskTree:
    """The mask that keeps every filter."""
    return {name: jnp.ones(width) for name, width in groups(architecture).items()}


def random(key: Array, architecture: Architecture, keep: float) -> MaskTree:
    """Keeps each filter with probability `keep`, and at least one in every group."""
    masks = {}
    for name, width in groups(architecture).items():
        key, key_bits, key_one = jax.random.split(key, 3)
        bits = jax.random.bernoulli(key_bits, keep, (width,))
        spare = jnp.arange(width) == jax.random.randint(key_one, (), 0, width)
        masks[name] = jnp.where(bits.any(), bits, spare).astype(jnp.float32)
    return masks


def check_fit(architecture: Architecture, masks: MaskTree) -> None:
    """Refuses masks of unknown groups or of a wrong length; looks at shapes only.

    Raises:
      InputError: naming the group.
    """
    widths, kernels = groups(architecture), kernel_shapes(architecture)
    for name, mask in masks.items():
        if name.endswith(KERNEL):
            layer = name.removesuffix(KERNEL)
            if layer not in kernels:
                raise unknown("layer of a weight mask", layer, kernels)
            if mask.shape != kernels[layer]:
                raise InputError(
                    f"mask {name!r} has shape {mask.shape}: expected the kernel's, "
                    f"{kernels[layer]}."
                )
            continue
        if name not in widths:
            raise unknown("mask group", name, widths)
        if mask.shape != (widths[name],):
            raise InputError(
                f"mask {name!r} has shape {mask.shape}: expected ({widths[name]},), one a filter."
            )


def check(architecture: Architecture, masks: MaskTree) -> None:
    """Refuses masks that do not fit a network, their values included.

    Raises:
      InputError: as `check_fit`; or values other than 0 and 1, or no filter kept.
    """
    check_fit(architecture, masks)
    for name, mask in masks.items():
        bits = np.asarray(mask)
        if not np.isin(bits, (0, 1)).all():
            raise InputError(f"mask {name!r} holds values other than 0 and 1: give a 0/1 array.")
        if not (bits.any() or name.endswith(KERNEL)):
            raise InputError(f"mask {name!r} keeps no filter: keep at least one in every group.")


def alive(architecture: Architecture, masks: MaskTree | None) -> dict[str, np.ndarray]:
    """By node, which channels (features, once flattened) of its output survive the masks."""
    masks = masks or {}
    check(architecture, masks)
    member, shape = group_of(architecture), shapes(architecture)
    known = {IMAGE: np.ones(shape[IMAGE][-1], bool)}
    for node in architecture.nodes:
        match node:
            case Conv() | Dense():
                known[node.name] = np.asarray(
                    masks.get(member[node.name], np.ones(node.width)), bool
                )
            case Flatten(input=source):
                known[node.name] = np.broadcast_to(known[source], shape[source]).ravel()
            case _:
                known[node.name] = known[node.input]
    return known


def of_zeros(architecture: Architecture, variables: dict) -> MaskTree:
    """Masks of the weights that are not 0, for kernels in which some are: what was pruned from a
    network whose masks are multiplied into it."""
    found = {}
    for layer in kernel_shapes(architecture):
        weights = np.asarray(variables["params"][layer]["kernel"])
        if not weights.all():
            found[kernel(layer)] = (weights != 0).astype(np.float32)
    return found


def fold(variables: dict, masks: MaskTree) -> dict:
    """The variables with masks of weights multiplied into their kernels."""
    params = dict(variables["params"])
    for name, mask in masks.items():
        if name.endswith(KERNEL):
            layer = name.removesuffix(KERNEL)
            params[layer] = {**params[layer], "kernel": params[layer]["kernel"] * mask}
    return {**variables, "params": params}


def filters(architecture: Architecture, masks: MaskTree) -> MaskTree:
    """The masks of filters alone, one for every group."""
    return {name: jnp.asarray(masks.get(name, one)) for name, one in ones(architecture).items()}


def widths(architecture: Architecture, masks: MaskTree | None) -> dict[str, int]:
    """Number of filters that each group keeps; groups without a mask are whole."""
    full = groups(architecture)
    if masks is None:
        return dict(full)
    check(architecture, masks)
    return {name: int(np.sum(masks[name])) if name in masks else n for name, n in full.items()}
