"""Random shifts, flips and cutout of training images."""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Augmentation = Literal["none", "shift", "crop_flip"]


Augmentation = Literal["none", "shift", "crop_flip", "crop_flip_cutout"]


@partial(jax.jit, static_argnames="kind")
def augment(
    key: Array, images: Float[Array, "B H W C"], *, kind: Augmentation
) -> Float[Array, "B H W C"]:
    """Random shifts with zero padding: by 1/8 of the side, with flips for `crop_flip`.

    A shift of less than a pixel counts as one. `crop_flip_cutout` then blackens a square of half
    the side around a random pixel, as far as it lies in the image (DeVries and Taylor,
    arXiv 1708.04552, where it gets the mean colour).
    """
    if kind == "none":
        return images
    b, h, w, _ = images.shape
    reach = max(1, h // 8)
    key_shift, key_flip = jax.random.split(key)
    padded = jnp.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    corners = jax.random.randint(key_shift, (b, 2), 0, 2 * reach + 1)

    def crop(image, corner):
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (h, w, image.shape[-1]))

    images = jax.vmap(crop)(padded, corners)
    if kind != "shift":
        flips = jax.random.bernoulli(key_flip, 0.5, (b, 1, 1, 1))
        images = jnp.where(flips, images[:, :, ::-1], images)
    if kind == "crop_flip_cutout":
        half = min(h, w) // 4
        keys = jax.random.split(jax.random.fold_in(key, 2))
        rows, columns = (_band(*each, b, half) for each in zip(keys, (h, w), strict=True))
        images = jnp.where(rows[:, :, None, None] & columns[:, None, :, None], 0.0, images)
    return images


def _band(key, side, count, half):
    """Along one axis, which pixels are around a random one; by image."""
    centres = jax.random.randint(key, (count, 1), 0, side)
    pixels = jnp.arange(side)
    return (centres - half <= pixels) & (pixels < centres + half)
