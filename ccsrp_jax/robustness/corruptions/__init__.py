"""Natural corruptions of images, five severities each, to measure natural robustness.

These are the common corruptions of CIFAR-10-C with its published severities, for images of
any size and number of channels. A corruption is a function of images in [0, 1], a severity
from 1 to 5 and a key, and returns images in [0, 1]. Image i uses the key with i folded in, so
that the result does not depend on the number of images; a split that is corrupted in batches
needs a key for each batch.

Where it differs from CIFAR-10-C (each function says so too):

- The published lengths of `gaussian_blur`, `glass_blur`, `defocus_blur` and `motion_blur`
  are in pixels of 32 x 32 images. For larger images they are scaled by the shorter side / 32;
  smaller images keep them, since a blur of less than a pixel has no effect. Lengths of the
  others are relative to the side as published.
- Images that are not RGB are so many gray images, which share what is drawn for an image (a
  path of motion, a shuffle, a fog) but not noise, of which every value has its own.
- Results are floats, not rounded to 8 bits, except through `jpeg`.
- `zoom_blur` zooms about the exact center, not about a whole pixel; `elastic` interpolates
  once, not twice; `glass_blur` also moves the pixels next to the border.
- `frost` is omitted since it needs pictures of frost, `snow` and `spatter` since their
  flakes and drops are single pixels, which cannot be scaled.

The published severities are not always ordered by the distance from the original: with
severity, `elastic` replaces an affine map by local shifts, `glass_blur` replaces one shuffle
and more blur by two shuffles and less blur, `saturate` reduces saturation at 1 and 2 and
increases it from 3 on, and `motion_blur` is the same at 3 and 4 except for a tail of
negligible weight.

References:
  Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and
  Perturbations, ICLR 2019.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from ccsrp_jax.data.checks import checked_images
from ccsrp_jax.data.splits import to_unit_range
from ccsrp_jax.robustness.corruptions.blurs import (
    defocus_blur,
    gaussian_blur,
    glass_blur,
    motion_blur,
    zoom_blur,
)
from ccsrp_jax.robustness.corruptions.colors import brightness, contrast, fog, saturate
from ccsrp_jax.robustness.corruptions.common import Corruption
from ccsrp_jax.robustness.corruptions.digital import elastic, jpeg, pixelate
from ccsrp_jax.robustness.corruptions.noise import (
    gaussian_noise,
    impulse_noise,
    shot_noise,
    speckle_noise,
)
from ccsrp_jax.utils.errors import InputError, check_number, unknown
from ccsrp_jax.utils.keys import checked_key

CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "speckle_noise": speckle_noise,
    "gaussian_blur": gaussian_blur,
    "glass_blur": glass_blur,
    "defocus_blur": defocus_blur,
    "motion_blur": motion_blur,
    "zoom_blur": zoom_blur,
    "fog": fog,
    "brightness": brightness,
    "contrast": contrast,
    "saturate": saturate,
    "pixelate": pixelate,
    "elastic": elastic,
    "jpeg": jpeg,
}

# Pixels of the longer side: the limit of the file format, and that of the memory for matrices and
# maps with a row and a column for each.
MAX_SIDE = {"jpeg": 65_500} | dict.fromkeys(
    ("gaussian_blur", "glass_blur", "fog", "pixelate", "elastic"), 4096
)


def corrupt(
    images: Shaped[Array | np.ndarray, "B H W C"], name: str, severity: int, key: Array
) -> Float[Array, "B H W C"]:
    """Corrupted images, in [0, 1].

    Args:
      images: in [0, 1], or uint8; of any size and number of channels.
      name: one of `CORRUPTIONS`.
      severity: 1 (mild) to 5.
      key: image i uses it with i folded in.

    Raises:
      InputError: an unknown name, a severity out of range, images larger than the corruption
        takes, or images or a key that cannot be used.
    """
    images = checked_images(images)
    check_corruption(name, severity, images.shape[1:])
    return apply(to_unit_range(jnp.asarray(images)), name, severity, checked_key(key))


def apply(
    images: Float[Array, "B H W C"], name: str, severity: int, key: Array
) -> Float[Array, "B H W C"]:
    """As `corrupt`, without the check of its arguments."""
    return jnp.clip(CORRUPTIONS[name](images, int(severity), key), 0, 1)


def check_corruption(name: str, severity: int, shape: Sequence[int]) -> None:
    """Raises InputError for what `corrupt` does not take, with images of shape (H, W, C)."""
    height, width, _ = shape
    if name not in CORRUPTIONS:
        raise unknown("corruption", name, CORRUPTIONS)
    check_number("corruption severity", severity, 1, 5)
    if float(severity) % 1:
        raise InputError(f"corruption severity {severity} is no integer: give one from 1 to 5.")
    if max(height, width) > MAX_SIDE.get(name, math.inf):
        raise InputError(
            f"{name} takes images of at most {MAX_SIDE[name]} pixels a side, not "
            f"{height} x {width}: leave it out."
        )


def names(channels: int, side: int = 1) -> tuple[str, ...]:
    """The corruptions that change images of so many channels, and take a longer side of so many
    pixels; `saturate` changes RGB images only."""
    return tuple(
        name
        for name in CORRUPTIONS
        if (channels == 3 or name != "saturate") and side <= MAX_SIDE.get(name, math.inf)
    )
