"""Building blocks of corruptions."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Severity = Int[Array, ""]
Corruption = Callable[[Float[Array, "B H W C"], int, Array], Float[Array, "B H W C"]]


MAX_VALUES = 2**26  # of the squares that images corrupted at once may take


@functools.partial(jax.jit, static_argnums=1)
def _keys(key, count):
    return jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(count))


def image_by_image(corruption) -> Corruption:
    """Turns a corruption of one image (H, W, C) into one of batches, clipped, with a key per image.

    The severity is traced, so that one compiled program serves all five. Large images are corrupted
    a few at a time: the fog over an image is a square of its longer side, so that a long flat one
    takes much more memory than its own.
    """

    @jax.jit
    def of_images(images, severity, keys):
        side = 1 << (max(images.shape[1:3]) - 1).bit_length()
        at_once = max(MAX_VALUES // (side * side), 1)
        if at_once >= len(images):
            return jnp.clip(jax.vmap(corruption, (0, None, 0))(images, severity, keys), 0, 1)

        def of_image(image_and_key):
            image, key = image_and_key
            return jnp.clip(corruption(image, severity, key), 0, 1)

        return jax.lax.map(of_image, (images, keys), batch_size=at_once)

    @functools.wraps(corruption)
    def of_batch(images, severity, key):
        return of_images(images, severity, _keys(key, len(images)))

    return of_batch


def at_severity(severity, *values):
    """The value, or array of values, of a traced severity."""
    return jnp.array(values)[severity - 1]


def pixel_scale(image) -> float:
    """Factor from lengths in pixels of a 32 x 32 image to those of this image."""
    return max(1.0, min(image.shape[:2]) / 32)


def map_sides(image, severity, maps):
    """Linear map along both sides of (H, W, ...); maps(side) has a matrix for each severity."""
    rows, columns = (at_severity(severity, *maps(side)) for side in image.shape[:2])
    return jnp.einsum("ah,bw,hw...->ab...", rows, columns, image, precision="highest")


def blur(image, severity, sigmas, **border):
    """Gaussian blur of (H, W, ...), with scipy's weights and borders."""

    from scipy import ndimage  # slow to import

    def maps(side):
        return [ndimage.gaussian_filter(np.eye(side), (s, 0), **border) for s in sigmas]

    return map_sides(image, severity, maps)


def shifted(image, down, right):
    """The image shifted up and left by so many pixels, its border repeated."""
    height, width = image.shape[:2]
    rows = jnp.clip(jnp.arange(height)[:, None] + down, 0, height - 1)
    return image[rows, jnp.clip(jnp.arange(width) + right, 0, width - 1)]
