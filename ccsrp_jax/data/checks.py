"""The check of images and labels, for every public function that takes them.

Shapes and types are checked always, values only of concrete arrays: under `jit` there are none.
Functions that call each other in a loop check once, at the outermost.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ccsrp_jax.data.splits import Split
from ccsrp_jax.utils.errors import InputError

ROUNDING = 1e-6  # distance to [0, 1] that a resize's rounding explains
MAX_LABEL = np.iinfo(np.int32).max


def checked_split(
    split: Any, *, classes: int | None = None, shape: Sequence[int] | None = None
) -> Split:
    """Images and labels that go together, the labels as int32.

    Args:
      split: a `Split`, or a pair of images and labels; lists become arrays.
      classes: number of classes, if it is known.
      shape: (H, W, C) of the network's images, if it is known.

    Raises:
      InputError: it is no such pair, or as `checked_images` and `checked_labels` do.
    """
    if hasattr(split, "images") and hasattr(split, "labels"):
        images, labels = split.images, split.labels
    elif isinstance(split, tuple | list) and len(split) == 2:
        images, labels = split
    else:
        hint = ", such as its train, search or test" if hasattr(split, "train") else ""
        raise InputError(
            f"images with labels were expected, not a {type(split).__name__}: give "
            f"ccsrp_jax.Split(images, labels){hint}."
        )
    images, labels = _as_array(images, "images"), _as_array(labels, "labels")
    if labels.ndim == 2 and images.ndim == 4:
        _refuse_one_hot(labels)
    if images.ndim != 4 or labels.shape != images.shape[:1]:
        raise InputError(
            f"images of shape {images.shape} and labels of shape {labels.shape} do not go "
            "together: give (N, H, W, C) and (N,)."
        )
    return Split(checked_images(images, shape), checked_labels(labels, len(images), classes))


def checked_images(images: Any, shape: Sequence[int] | None = None) -> Any:
    """Images (N, H, W, C), uint8 or floats in [0, 1].

    Floats that are outside [0, 1] by no more than rounding are clipped.

    Args:
      images: an array, or what becomes one.
      shape: (H, W, C) of the network's images, if it is known.

    Raises:
      InputError: another type, rank, size or range, no image, or a value that is not finite.
    """
    images = _as_array(images, "images")
    if images.ndim != 4 or 0 in images.shape[1:]:
        hint = " (add an axis of channels with images[..., None])" if images.ndim == 3 else ""
        raise InputError(f"images have shape {images.shape}: give (N, H, W, C){hint}.")
    if len(images) == 0:
        raise InputError("there are no images: give at least one.")
    if images.dtype != np.uint8 and not jnp.issubdtype(images.dtype, np.floating):
        raise InputError(
            f"images have type {images.dtype}: give uint8 in 0..255 or floats in [0, 1]."
        )
    if shape is not None and images.shape[1:] != tuple(shape):
        height, width, channels = shape
        first = images.shape[1:] == (channels, height, width)
        hint = "move the axis of channels to the end" if first else "give images of this shape"
        raise InputError(
            f"images have shape {images.shape[1:]}, but the network takes {tuple(shape)}: {hint}."
        )
    if images.dtype == np.uint8 or not _is_concrete(images):
        return images
    low, high = (float(value) for value in span(images))
    clipped = in_unit_range(images)
    if clipped is None:
        raise InputError(
            f"images span {low:g} to {high:g}: give pixels in [0, 1] or as uint8, and normalize "
            "them inside the network."
        )
    return clipped


def checked_labels(labels: Any, images: int, classes: int | None = None) -> Any:
    """Labels (N,) from 0 to `classes` - 1 of so many images, as int32.

    Raises:
      InputError: another type, shape or range.
    """
    labels = _as_array(labels, "labels")
    _refuse_one_hot(labels)
    if labels.shape != (images,):
        raise InputError(
            f"labels have shape {labels.shape} for {images} images: give one label an image."
        )
    if labels.dtype.kind not in "iu":
        raise InputError(f"labels have type {labels.dtype}: give integers from 0 to classes - 1.")
    if _is_concrete(labels) and images:
        low, high = (int(value) for value in span(labels))
        if low < 0 or high >= (classes or MAX_LABEL):
            known = f", but the network has {classes} classes" if classes else ""
            top = classes - 1 if classes else "classes - 1"
            raise InputError(f"labels span {low} to {high}{known}: give labels from 0 to {top}.")
    return labels if labels.dtype == np.int32 else labels.astype(np.int32)


def span(values: Any) -> tuple[Any, Any]:
    """Smallest and largest of concrete values; NaN if one is NaN."""
    host = np.asarray(values)
    return host.min(), host.max()


def in_unit_range(images: Any) -> Any | None:
    """Float images if they are in [0, 1], clipped if rounding explains what is outside, or None."""
    low, high = (float(value) for value in span(images))
    if low >= 0 and high <= 1:
        return images
    # a rounding step of a half-precision 1 is larger
    room = max(ROUNDING, float(jnp.finfo(images.dtype).eps))
    if low < -room or high > 1 + room or math.isnan(low):
        return None
    return images.clip(0, 1).astype(images.dtype)


def _as_array(values: Any, name: str) -> Any:
    if isinstance(values, jax.Array):
        return values
    try:
        array = None if isinstance(values, dict | set | str | bytes) else np.asarray(values)
    except Exception:  # whatever a foreign array's conversion raises
        array = None
    if array is None or array.dtype == object:
        raise InputError(f"{name} are of type {type(values).__name__}: give a NumPy or JAX array.")
    # JAX takes no other order of bytes, as files of other machines have it
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _refuse_one_hot(labels: Any) -> None:
    if labels.ndim == 2:
        raise InputError(
            f"labels have shape {labels.shape}, as one-hot vectors have: give the classes "
            "themselves, labels.argmax(-1)."
        )


def _is_concrete(array: Any) -> bool:
    """Whether its values can be read here."""
    if isinstance(array, Tracer):
        return False
    return not isinstance(array, jax.Array) or array.is_fully_addressable
