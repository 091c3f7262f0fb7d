"""Digital corruptions: resolution, elastic deformation and compression."""

import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ccsrp_jax.robustness.corruptions.common import (
    Severity,
    at_severity,
    blur,
    image_by_image,
    map_sides,
)


@image_by_image
def pixelate(image: Float[Array, "H W C"], severity: Severity, key: Array):
    """Resizes to a fraction of the size and back, with pillow's box filter.

    As the source, but for its rounding to 8 bits after both steps. A side keeps one pixel at least.
    """

    from PIL import Image

    def maps(side):
        full = Image.fromarray(np.eye(side, dtype=np.float32))
        for fraction in (0.95, 0.9, 0.85, 0.75, 0.65):
            small = full.resize((side, max(int(side * fraction), 1)), Image.Resampling.BOX)
            yield np.asarray(small.resize((side, side), Image.Resampling.BOX))

    return map_sides(image, severity, maps)


@image_by_image
def elastic(image: Float[Array, "H W C"], severity: Severity, key: Array):
    """A random affine map and smooth random shifts, bilinear; the border is mirrored.

    The source interpolates after the map and again after the shifts, here once for both; and its
    lengths are in parts of 32 pixels, here of the shorter side.
    """
    shift, jitter = at_severity(
        severity, (0, 0.08), (0.05, 0.07), (0.08, 0.06), (0.1, 0.05), (0.1, 0.03)
    )
    key_corners, key_shifts = jax.random.split(key)
    shape = image.shape[:2]
    side = min(shape)
    reach = max(side // 3, 1)  # below 3 pixels the corners would coincide
    corners = np.array(shape) // 2 + reach * np.array([[1.0, 1], [1, -1], [-1, -1]])
    moved = corners + side * jitter * jax.random.uniform(key_corners, (3, 2), minval=-1.0)
    # the map from a target pixel to its source, in homogeneous coordinates
    back = jnp.linalg.solve(jnp.column_stack([moved, jnp.ones(3)]), corners)
    shifts = jax.random.uniform(key_shifts, (*shape, 2), minval=-1.0)
    sigmas = side * np.array((0, 0.2, 0.06, 0.04, 0.03))
    shifts = side * shift * blur(shifts, severity, sigmas, mode="reflect", truncate=3)
    lands = jnp.stack(jnp.mgrid[: shape[0], : shape[1]], -1) + shifts
    source = (lands[..., None] * back[:2]).sum(2) + back[2]
    if side == 1:  # nothing to mirror along such a side
        source = source * (np.array(shape) > 1)
    sample = functools.partial(jax.scipy.ndimage.map_coordinates, order=1, mode="mirror")
    return jax.vmap(sample, (-1, None), -1)(image, [source[..., 0], source[..., 1]])


def jpeg(images: Float[Array, "B H W C"], severity: int, key: Array) -> Float[Array, "B H W C"]:
    """JPEG compression by pillow, on the host: it does not run under `jit`.

    As the source; of images that are not RGB, every channel is a gray picture.
    """
    from PIL import Image

    quality = (80, 65, 58, 50, 40)[severity - 1]
    pixels = np.round(255 * np.asarray(images)).astype(np.uint8)
    rgb = images.shape[-1] == 3
    decoded = []
    for picture in pixels if rgb else np.moveaxis(pixels, -1, 1).reshape(-1, *images.shape[1:3]):
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=quality)
        decoded.append(np.asarray(Image.open(file)))
    whole = np.array(decoded)
    if not rgb:
        batch, height, width, channels = images.shape
        whole = np.moveaxis(whole.reshape(batch, channels, height, width), 1, -1)
    return jnp.array(whole) / 255
