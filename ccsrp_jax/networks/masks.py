"""Filter masks: a pytree from group name to a 0/1 vector over the group's filters.

Masks gate spikes. They are ordinary arguments of `apply`, so `jax.vmap` evaluates a population
of them, for all groups or for one:

    jax.vmap(apply, in_axes=(None, None, 0))(variables, images, population)
    jax.vmap(apply, in_axes=(None, None, {"conv1": 0, "conv2": None}))(...)

The same tree may hold masks of single weights: under the name of a layer and "/kernel", a 0/1
array of the kernel's shape, (k, k, in, out) for a convolution or (in, out) for a dense layer.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ccsrp_jax.networks.architecture import (
    Architecture,
    channel_groups,
    groups,
    kernel_shapes,
)
from ccsrp_jax.utils.errors import InputError, reason, unknown
from ccsrp_jax.utils.fields import Limits, real
from ccsrp_jax.utils.keys import checked_key

MaskTree = Mapping[str, Array | np.ndarray]

KERNEL = "/kernel"  # suffix of the name of a weight mask


def kernel(layer: str) -> str:
    """Name of the mask of that layer's weights in a `MaskTree`."""
    return layer + KERNEL


def layer_of(name: str) -> str:
    """The layer that a mask's name refers to: that of `kernel(layer)`, or the name itself."""
    return name.removesuffix(KERNEL)


def masked_kernel(variables: dict, name: str) -> Array | np.ndarray:
    """The weights that the weight mask of this name applies to."""
    return variables["params"][layer_of(name)]["kernel"]


def ones(architecture: Architecture) -> MaskTree:
    """The mask that keeps every filter."""
    return {name: jnp.ones(width) for name, width in groups(architecture).items()}


def random(key: Array, architecture: Architecture, keep: float) -> MaskTree:
    """Keeps each filter with probability `keep`, and at least one filter in every group."""
    key, keep = checked_key(key), real("keep", keep, Limits(0, 1))
    masks = {}
    for name, width in groups(architecture).items():
        key, key_bits, key_one = jax.random.split(key, 3)
        bits = jax.random.bernoulli(key_bits, keep, (width,))
        one = jnp.arange(width) == jax.random.randint(key_one, (), 0, width)
        masks[name] = jnp.where(bits.any(), bits, one).astype(jnp.float32)
    return masks


def check_fit(architecture: Architecture, masks: Mapping[str, Any]) -> None:
    """Checks that masks have known names and the right shapes; values are not checked.

    Raises:
      InputError: naming the group.
    """
    widths, kernels = groups(architecture), kernel_shapes(architecture)
    for name, mask in masks.items():
        if name.endswith(KERNEL):
            layer = layer_of(name)
            if layer not in kernels:
                raise unknown("layer of a weight mask", layer, kernels)
            if _shape(name, mask) != kernels[layer]:
                raise InputError(
                    f"mask {name!r} has shape {mask.shape}: expected the kernel's, "
                    f"{kernels[layer]}."
                )
            continue
        if name not in widths:
            raise unknown("mask group", name, widths)
        if _shape(name, mask) != (widths[name],):
            raise InputError(
                f"mask {name!r} has shape {mask.shape}: expected ({widths[name]},), one per filter."
            )


def _shape(name: str, mask: Any) -> tuple[int, ...]:
    if not hasattr(mask, "shape"):
        raise InputError(
            f"mask {name!r} is a {type(mask).__name__}: give a 0/1 array, such as "
            "numpy.array([1, 0, 1])."
        )
    return mask.shape


def as_floats(architecture: Architecture, masks: Mapping[str, Any]) -> MaskTree:
    """Masks as float32 arrays, from those of any number type, booleans or lists.

    Raises:
      InputError: as `check`.
    """
    if not isinstance(masks, Mapping):
        raise InputError(
            f"masks are a {type(masks).__name__}: give a dictionary from group to 0/1 array."
        )
    lists = {name: value for name, value in masks.items() if isinstance(value, (list, tuple))}
    try:
        arrays = {name: np.asarray(value, np.float32) for name, value in lists.items()}
    except (TypeError, ValueError) as error:
        raise InputError(
            f"a mask of {', '.join(lists)} is no array ({reason(error)}): give 0/1 arrays."
        ) from error
    masks = {**masks, **arrays}
    check(architecture, masks)
    return {
        name: mask if mask.dtype == np.float32 else np.asarray(mask, np.float32)
        for name, mask in masks.items()
    }


def check(architecture: Architecture, masks: MaskTree) -> None:
    """Checks names, shapes and values of masks for a network.

    Raises:
      InputError: as in `check_fit`; or a mask has values other than 0 and 1, or keeps no filter.
    """
    check_fit(architecture, masks)
    for name, mask in masks.items():
        bits = np.asarray(mask)
        if not np.isin(bits, (0, 1)).all():
            raise InputError(f"mask {name!r} holds values other than 0 and 1: give a 0/1 array.")
        if not (bits.any() or name.endswith(KERNEL)):
            raise InputError(f"mask {name!r} keeps no filter: keep at least one in every group.")


def gate(architecture: Architecture, name: str, masks: MaskTree) -> Array | np.ndarray | None:
    """The mask of a node's output channels (or features), or None if no group there has one."""
    segments = channel_groups(architecture)[name]
    if not any(group in masks for group, _ in segments):
        return None
    parts = [masks[group] if group in masks else jnp.ones(width) for group, width in segments]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)


def kept_channels(
    architecture: Architecture, masks: Mapping[str, Any] | None
) -> dict[str, np.ndarray]:
    """By node, which channels (or features) of its output the masks keep, as booleans."""
    masks = as_floats(architecture, {} if masks is None else masks)
    filters = {name: mask for name, mask in masks.items() if not name.endswith(KERNEL)}
    kept = {name: np.asarray(mask, bool) for name, mask in filters.items()}
    channels = {}
    for name, segments in channel_groups(architecture).items():
        parts = [kept.get(group, np.ones(width, bool)) for group, width in segments]
        channels[name] = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return channels


def of_zeros(architecture: Architecture, variables: dict) -> MaskTree:
    """Weight masks of all kernels that contain zeros: 1 where a weight is not 0.

    They are the masks that `fold` multiplied into the kernels.
    """
    masks = {}
    for layer in kernel_shapes(architecture):
        weights = np.asarray(variables["params"][layer]["kernel"])
        if not weights.all():
            masks[kernel(layer)] = (weights != 0).astype(np.float32)
    return masks


def fold(variables: dict, masks: MaskTree) -> dict:
    """The variables with the weight masks multiplied into their kernels."""
    params = dict(variables["params"])
    for name, mask in masks.items():
        if name.endswith(KERNEL):
            layer = layer_of(name)
            params[layer] = {**params[layer], "kernel": params[layer]["kernel"] * mask}
    return {**variables, "params": params}


def filters(architecture: Architecture, masks: MaskTree) -> MaskTree:
    """The filter masks without the weight masks, one for every group."""
    return {name: jnp.asarray(masks.get(name, one)) for name, one in ones(architecture).items()}


def widths(architecture: Architecture, masks: Mapping[str, Any] | None) -> dict[str, int]:
    """Number of filters that each group keeps; a group without a mask keeps all."""
    full = groups(architecture)
    if masks is None:
        return dict(full)
    masks = as_floats(architecture, masks)
    return {name: int(np.sum(masks[name])) if name in masks else n for name, n in full.items()}
