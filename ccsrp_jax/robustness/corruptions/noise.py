"""Noise: Gaussian, shot, impulse and speckle."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ccsrp_jax.robustness.corruptions.common import Severity, at_severity, image_by_image


@image_by_image
def gaussian_noise(image: Float[Array, "H W C"], severity: Severity, key: Array):
    """Adds normal noise, as the source."""
    std = at_severity(severity, 0.04, 0.06, 0.08, 0.09, 0.10)
    return image + std * jax.random.normal(key, image.shape)


@image_by_image
def shot_noise(image: Float[Array, "H W C"], severity: Severity, key: Array):
    """Poisson noise of counted photons, as the source; the severity sets the photons of white."""
    photons = at_severity(severity, 500, 250, 100, 75, 50)
    return jax.random.poisson(key, image * photons) / photons


@image_by_image
def impulse_noise(image: Float[Array, "H W C"], severity: Severity, key: Array):
    """Salt and pepper: a share of the values becomes 0 or 1 with equal probability.

    The law is the source's (skimage's `random_noise`), which draws each value's salt or pepper
    apart from whether it is struck; here one draw decides both.
    """
    share = at_severity(severity, 0.01, 0.02, 0.03, 0.05, 0.07)
    draw = jax.random.uniform(key, image.shape)
    return jnp.where(draw < share, (draw < share / 2).astype(image.dtype), image)


@image_by_image
def speckle_noise(image: Float[Array, "H W C"], severity: Severity, key: Array):
    """Adds normal noise proportional to the value, as the source."""
    std = at_severity(severity, 0.06, 0.1, 0.12, 0.16, 0.2)
    return image * (1 + std * jax.random.normal(key, image.shape))
