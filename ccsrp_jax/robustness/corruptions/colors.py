"""Changes of light and color: fog, brightness, contrast and saturation."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ccsrp_jax.robustness.corruptions.common import Severity, at_severity, image_by_image


@image_by_image
def fog(image: Float[Array, "H W C"], severity: Severity, key: Array):
    """Adds a fractal height map and rescales to the brightest value.

    The map's side is the next power of two of the image's longer side, where the source has 32 for
    images of 32 x 32; its first step then spans the image, as there.
    """
    amount, decay = at_severity(severity, (0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))
    height, width = image.shape[:2]
    size = 1 << (max(height, width, 2) - 1).bit_length()
    heights = _fractal_heights(key, size, decay)[:height, :width, None]
    return (image + amount * heights) * image.max() / (image.max() + amount)


def _fractal_heights(key, size, decay):
    """Fractal height map in [0, 1] on a torus, by diamond-square; the size is a power of 2."""
    jitter = jax.random.uniform(key, (size, size), minval=-1.0)
    corners = jnp.zeros((1, 1))
    for step in (size >> level for level in range(size.bit_length() - 1)):
        half = step // 2
        beside, below = jnp.roll(corners, -1, 1), jnp.roll(corners, -1, 0)
        middles = (corners + beside + below + jnp.roll(beside, -1, 0)) / 4
        middles += jitter[half::step, half::step]
        tops = (corners + beside + middles + jnp.roll(middles, 1, 0)) / 4
        lefts = (corners + below + middles + jnp.roll(middles, 1, 1)) / 4
        tops, lefts = tops + jitter[::step, half::step], lefts + jitter[half::step, ::step]
        cells = jnp.array([[corners, tops], [lefts, middles]])  # (2, 2, n, n)
        corners = cells.transpose(2, 0, 3, 1).reshape(2 * len(corners), -1)
        jitter /= decay**2
    return (corners - corners.min()) / (corners.max() - corners.min())


@image_by_image
def brightness(image: Float[Array, "H W C"], severity: Severity, key: Array):
    """Increases the value in HSV, as the source; of images that are not RGB, every value."""
    rise = at_severity(severity, 0.05, 0.1, 0.15, 0.2, 0.3)
    value = image.max(-1, keepdims=True) if image.shape[-1] == 3 else image
    colour = jnp.where(value > 0, image, 1) / jnp.where(value > 0, value, 1)
    return colour * jnp.minimum(value + rise, 1)


@image_by_image
def contrast(image: Float[Array, "H W C"], severity: Severity, key: Array):
    """Moves every value towards the mean of its channel, as the source."""
    kept = at_severity(severity, 0.75, 0.5, 0.4, 0.3, 0.15)
    mean = image.mean((0, 1))
    return mean + kept * (image - mean)


@image_by_image
def saturate(image: Float[Array, "H W C"], severity: Severity, key: Array):
    """Scales and shifts the saturation in HSV, as the source; changes RGB images only.

    Gray pixels of RGB images have hue 0, as usual, so that a shift makes them red.
    """
    if image.shape[-1] != 3:
        return image
    gain, shift = at_severity(severity, (0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))
    value, span = image.max(-1, keepdims=True), jnp.ptp(image, -1, keepdims=True)
    grey = span == 0
    saturation = span / jnp.where(grey, 1, value)
    below = jnp.where(grey, jnp.array([0, 1, 1]), (value - image) / jnp.where(grey, 1, span))
    return value * (1 - below * jnp.clip(gain * saturation + shift, 0, 1))
