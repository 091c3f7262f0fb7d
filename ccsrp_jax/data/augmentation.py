"""Random shifts, flips and cutout of training images."""

from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ccsrp_jax.utils.errors import unknown

Augmentation = Literal["none", "shift", "crop_flip", "crop_flip_cutout"]


@partial(jax.jit, static_argnames="kind")
def augment(
    key: Array, images: Float[Array, "B H W C"], *, kind: Augmentation
) -> Float[Array, "B H W C"]:
    """Augments a batch, each image on its own.

    `shift` moves an image by up to an eighth of its height up or down, and of its width to the
    left or right (at least one pixel, but for a side of one), with zero padding. `crop_flip` also
    mirrors every second image on average. `crop_flip_cutout` then sets a square of half the
    shorter side around a random pixel to 0, as far as it lies in the image (DeVries and Taylor,
    arXiv 1708.04552, who fill it with the mean colour).

    Raises:
      InputError: an unknown kind.
    """
    if kind not in get_args(Augmentation):
        raise unknown("augmentation", kind, get_args(Augmentation))
    if kind == "none":
        return images
    key_shift, key_flip = jax.random.split(key)
    images = _shift(key_shift, images)
    if kind != "shift":
        flips = jax.random.bernoulli(key_flip, 0.5, (len(images), 1, 1, 1))
        images = jnp.where(flips, images[:, :, ::-1], images)
    if kind == "crop_flip_cutout":
        images = _cut_out(jax.random.fold_in(key, 2), images)
    return images


def _shift(key: Array, images: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    b, h, w, c = images.shape
    down, right = (min(max(1, side // 8), side - 1) for side in (h, w))
    padded = jnp.pad(images, ((0, 0), (down, down), (right, right), (0, 0)))
    corners = jax.random.randint(key, (b, 2), 0, jnp.array([2 * down + 1, 2 * right + 1]))

    def crop(image, corner):
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (h, w, c))

    return jax.vmap(crop)(padded, corners)


def _cut_out(key: Array, images: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    b, h, w, _ = images.shape
    half = min(h, w) // 4
    key_rows, key_columns = jax.random.split(key)
    rows, columns = _band(key_rows, h, b, half), _band(key_columns, w, b, half)
    return jnp.where(rows[:, :, None, None] & columns[:, None, :, None], 0.0, images)


def _band(key: Array, side: int, count: int, half: int) -> Bool[Array, "B side"]:
    """Which pixels along an axis are within `half` of a random one, for each image."""
    centres = jax.random.randint(key, (count, 1), 0, side)
    pixels = jnp.arange(side)
    return (centres - half <= pixels) & (pixels < centres + half)
