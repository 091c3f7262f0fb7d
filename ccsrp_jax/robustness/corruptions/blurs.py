"""Blurs: Gaussian, glass, defocus, motion and zoom."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ccsrp_jax.robustness.corruptions.common import (
    Severity,
    at_severity,
    blur,
    image_by_image,
    pixel_scale,
    shifted,
)


@image_by_image
def gaussian_blur(image: Float[Array, "H W C"], severity: Severity, key: Array):
    """Gaussian blur; the border is repeated.

    As the source for sides up to 32; for larger images the published sigma, in pixels, is scaled.
    """
    sigmas = pixel_scale(image) * np.array((0.4, 0.6, 0.7, 0.8, 1.0))
    return blur(image, severity, sigmas, mode="nearest")


@image_by_image
def glass_blur(image: Float[Array, "H W C"], severity: Severity, key: Array):
    """Blurs, replaces each pixel by one of its neighbours, and blurs again.

    The published code means to swap pixels but copies them, since it swaps views of one array.
    So at its distance of 1 a pixel takes its own value or that of the pixel above, to the left,
    or both, as here. Unlike there, pixels next to the border move too, values are not cut to 8 bits
    in between, and sigma and distance are scaled for sides above 32.
    """
    sigmas = pixel_scale(image) * np.array((0.05, 0.25, 0.4, 0.25, 0.4))
    rounds, far = at_severity(severity, 1, 1, 1, 2, 2), round(pixel_scale(image))
    image = blur(image, severity, sigmas, mode="nearest")
    shifts = jax.random.randint(key, (2, 2, *image.shape[:2]), -far, far)
    image = shifted(image, *shifts[0])
    image = shifted(image, *jnp.where(rounds > 1, shifts[1], 0))
    return blur(image, severity, sigmas, mode="nearest")


@image_by_image
def defocus_blur(image: Float[Array, "H W C"], severity: Severity, key: Array):
    """Convolves with a disk that a Gaussian has smoothed; the border is mirrored.

    As the source for sides up to 32; for larger images radius and sigma, in pixels, are scaled.
    """
    from scipy import ndimage  # slow to import

    scale = pixel_scale(image)
    cut = round(scale)
    reach = int(1.5 * scale) + cut
    away = np.hypot(*np.mgrid[-reach : reach + 1, -reach : reach + 1]) / scale
    kernels = []
    for radius, sigma in ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)):
        disk = (away <= radius) / np.sum(away <= radius)
        kernels.append(ndimage.gaussian_filter(disk, sigma * scale, radius=cut))
    padded = jnp.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    convolve = functools.partial(jax.scipy.signal.convolve, mode="valid", precision="highest")
    return jax.vmap(convolve, (-1, None), -1)(padded, at_severity(severity, *kernels))


@image_by_image
def motion_blur(image: Float[Array, "H W C"], severity: Severity, key: Array):
    """Mean along a ray up to 45 degrees from the horizontal, weighted by half a Gaussian.

    The steps are rounded to pixels, as in ImageMagick, which the source calls; the border is
    repeated. Unlike there, nothing is rounded to 8 bits, and radius and sigma are scaled for sides
    above 32.
    """
    radius, sigma = pixel_scale(image) * at_severity(
        severity, (6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)
    )
    steps = np.arange(2 * round(9 * pixel_scale(image)) + 1)
    weights = jnp.exp(-((steps / sigma) ** 2) / 2) * (steps <= 2 * radius)
    weights /= weights.sum()
    angle = jnp.deg2rad(jax.random.uniform(key, minval=-45.0, maxval=45.0))
    down = jnp.ceil(steps * jnp.sin(angle) - 0.5).astype(int)
    right = jnp.ceil(steps * jnp.cos(angle) - 0.5).astype(int)

    def add(step, total):
        return total + weights[step] * shifted(image, down[step], right[step])

    return jax.lax.fori_loop(0, len(steps), add, jnp.zeros_like(image))


@image_by_image
def zoom_blur(image: Float[Array, "H W C"], severity: Severity, key: Array):
    """Mean of the image and of its enlargements by 0, 1, ... percent about the center.

    The source crops the middle to whole pixels, enlarges that by scipy's `zoom`, which maps the
    corners of the crop to those of the result, and cuts what is too much; here every enlargement is
    about the exact center. Whole pixels move the source's images by up to one: on digits of 32 x 32
    they are 0.03 from these in the mean, and further from the original (0.033 against 0.014 at
    severity 1, 0.069 against 0.062 at severity 5).
    """
    percent = at_severity(severity, 6, 11, 15, 20, 25)
    middle = jnp.array(image.shape[:2]) / 2

    def add(step, total):
        zoom = 1 + step / 100
        return total + jax.image.scale_and_translate(
            image, image.shape, (0, 1), jnp.full(2, zoom), middle * (1 - zoom), "linear"
        )

    return jax.lax.fori_loop(0, percent + 1, add, image) / (percent + 2)
