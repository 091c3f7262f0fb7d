"""Natural corruptions of images, five severities each, to measure natural robustness.

These are the common corruptions of CIFAR-10-C with its published severities, for images of
any size, grey or RGB. A corruption is a function of images in [0, 1], a severity from 1 to
5 and a key, and returns images in [0, 1]. Image i draws from the key with i folded in, so
that it does not depend on how many images follow it; a split that is corrupted in batches
needs a key for each.

Where it differs from CIFAR-10-C:

- The published lengths of `gaussian_blur`, `glass_blur`, `defocus_blur` and `motion_blur`
  are pixels of 32 x 32 images. Larger images scale them by their shorter side / 32; smaller
  ones keep them, since a blur of less than a pixel is none. Those of the others are
  relative to the side as published.
- Results are floats, not rounded to 8 bits, except through `jpeg`.
- `zoom_blur` zooms about the exact centre, not about a whole pixel; `elastic` interpolates
  once, not twice; `glass_blur` also moves the pixels next to the border.
- `frost` is left out since it needs pictures of frost, `snow` and `spatter` since their
  flakes and drops are single pixels, of no size to scale.

The published severities are not ordered by the distance from the original everywhere:
`elastic` trades an affine map for local shifts, `glass_blur` one shuffle with more blur for
two with less, `saturate` fades at 1 and 2 and strengthens from 3 on, and `motion_blur` is
the same at 3 and 4 but for a tail of no weight.

References:
  Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and
  Perturbations, ICLR 2019.
"""

import functools
import io
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from PIL import Image
from scipy import ndimage

from ccsrp_jax.utils.errors import InputError, check_number, unknown

Severity = Int[Array, ""]


Corruption = Callable[[Float[Array, "B H W C"], int, Array], Float[Array, "B H W C"]]


def corrupt(
    images: Float[Array | np.ndarray, "B H W C"], name: str, severity: int, key: Array
) -> Float[Array, "B H W C"]:
    """Images after one of `CORRUPTIONS`, in [0, 1].

    Args:
      images: float32 in [0, 1], grey or RGB.
      name: of the corruption.
      severity: 1 (mild) to 5.
      key: image i draws from it with i folded in.

    Raises:
      InputError: an unknown name, a severity out of range, or images of other channels.
    """
    check_corruption(name, severity, images.shape[-1])
    return jnp.clip(CORRUPTIONS[name](jnp.asarray(images), severity, key), 0, 1)


def check_corruption(name: str, severity: int, channels: int) -> None:
    """Refuses a name, a severity or a number of channels that `corrupt` cannot serve."""
    if name not in CORRUPTIONS:
        raise unknown("corruption", name, CORRUPTIONS)
    check_number("corruption severity", severity, 1, 5)
    if channels not in (1, 3):
        raise InputError(
            f"images of {channels} channels cannot be corrupted: give grey images (1) or "
            "RGB images (3)."
        )


def names(channels: int) -> tuple[str, ...]:
    """The corruptions that change images of so many channels: `saturate` changes no grey one."""
    return tuple(name for name in CORRUPTIONS if channels > 1 or name != "saturate")


@functools.partial(jax.jit, static_argnums=1)
def _keys(key, count):
    return jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(count))


def _image_by_image(corruption) -> Corruption:
    """Makes a corruption of one image (H, W, C) one of batches, clipped, with a key each.

    The severity is traced, so that all five share what is compiled.
    """

    @jax.jit
    def of_images(images, severity, keys):
        return jnp.clip(jax.vmap(corruption, (0, None, 0))(images, severity, keys), 0, 1)

    @functools.wraps(corruption)
    def of_batch(images, severity, key):
        return of_images(images, severity, _keys(key, len(images)))

    return of_batch


def _at(severity, *values):
    """The value, or array of values, of a traced severity."""
    return jnp.array(values)[severity - 1]


def _scale(image) -> float:
    """By how much lengths in pixels of a 32 x 32 image grow for this one."""
    return max(1.0, min(image.shape[:2]) / 32)


def _map_sides(image, severity, maps):
    """A linear map along both sides of (H, W, ...): maps(side) has a matrix for each severity."""
    rows, columns = (_at(severity, *maps(side)) for side in image.shape[:2])
    return jnp.einsum("ah,bw,hw...->ab...", rows, columns, image, precision="highest")


def _blur(image, severity, sigmas, **border):
    """Gaussian blur of (H, W, ...), with scipy's weights and borders."""

    def maps(side):
        return [ndimage.gaussian_filter(np.eye(side), (s, 0), **border) for s in sigmas]

    return _map_sides(image, severity, maps)


def _shifted(image, down, right):
    """Each pixel's value so far down and right of it, the border repeated."""
    height, width = image.shape[:2]
    rows = jnp.clip(jnp.arange(height)[:, None] + down, 0, height - 1)
    return image[rows, jnp.clip(jnp.arange(width) + right, 0, width - 1)]


def _plasma(key, size, decay):
    """A fractal height map in [0, 1] on a torus, by diamonds and squares; size is a power of 2."""
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


@_image_by_image
def gaussian_noise(image: Float[Array, "H W C"], severity: Severity, key: Array):
    """Adds normal noise."""
    std = _at(severity, 0.04, 0.06, 0.08, 0.09, 0.10)
    return image + std * jax.random.normal(key, image.shape)


@_image_by_image
def shot_noise(image: Float[Array, "H W C"], severity: Severity, key: Array):
    """Counts photons: Poisson noise, where white is so many photons."""
    photons = _at(severity, 500, 250, 100, 75, 50)
    return jax.random.poisson(key, image * photons) / photons


@_image_by_image
def impulse_noise(image: Float[Array, "H W C"], severity: Severity, key: Array):
    """Salt and pepper: a share of the values becomes 0 or 1, either as likely."""
    share = _at(severity, 0.01, 0.02, 0.03, 0.05, 0.07)
    draw = jax.random.uniform(key, image.shape)
    return jnp.where(draw < share, (draw < share / 2).astype(image.dtype), image)


@_image_by_image
def speckle_noise(image: Float[Array, "H W C"], severity: Severity, key: Array):
    """Adds normal noise in proportion to the value."""
    std = _at(severity, 0.06, 0.1, 0.12, 0.16, 0.2)
    return image * (1 + std * jax.random.normal(key, image.shape))


@_image_by_image
def gaussian_blur(image: Float[Array, "H W C"], severity: Severity, key: Array):
    """Gaussian blur; the border is repeated."""
    sigmas = _scale(image) * np.array((0.4, 0.6, 0.7, 0.8, 1.0))
    return _blur(image, severity, sigmas, mode="nearest")


@_image_by_image
def glass_blur(image: Float[Array, "H W C"], severity: Severity, key: Array):
    """Blurs, replaces each pixel by one of its neighbours, and blurs again.

    The published swap of pixels copies instead, since it swaps views of one array. So at its
    distance of 1 a pixel takes the value of itself, or of one above, left, or both, as here.
    """
    sigmas = _scale(image) * np.array((0.05, 0.25, 0.4, 0.25, 0.4))
    rounds, far = _at(severity, 1, 1, 1, 2, 2), round(_scale(image))
    image = _blur(image, severity, sigmas, mode="nearest")
    shifts = jax.random.randint(key, (2, 2, *image.shape[:2]), -far, far)
    image = _shifted(image, *shifts[0])
    image = _shifted(image, *jnp.where(rounds > 1, shifts[1], 0))
    return _blur(image, severity, sigmas, mode="nearest")


@_image_by_image
def defocus_blur(image: Float[Array, "H W C"], severity: Severity, key: Array):
    """Convolves with a disk, itself softened by a Gaussian; the border is mirrored."""
    scale = _scale(image)
    cut = round(scale)
    reach = int(1.5 * scale) + cut
    away = np.hypot(*np.mgrid[-reach : reach + 1, -reach : reach + 1]) / scale
    kernels = []
    for radius, sigma in ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)):
        disk = (away <= radius) / np.sum(away <= radius)
        kernels.append(ndimage.gaussian_filter(disk, sigma * scale, radius=cut))
    padded = jnp.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    convolve = functools.partial(jax.scipy.signal.convolve, mode="valid", precision="highest")
    return jax.vmap(convolve, (-1, None), -1)(padded, _at(severity, *kernels))


@_image_by_image
def motion_blur(image: Float[Array, "H W C"], severity: Severity, key: Array):
    """Mean along a ray up to 45 degrees from the horizontal, weighted by half a Gaussian.

    The steps are rounded to pixels, as in ImageMagick; the border is repeated.
    """
    radius, sigma = _scale(image) * _at(severity, (6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))
    steps = np.arange(2 * round(9 * _scale(image)) + 1)
    weights = jnp.exp(-((steps / sigma) ** 2) / 2) * (steps <= 2 * radius)
    weights /= weights.sum()
    angle = jnp.deg2rad(jax.random.uniform(key, minval=-45.0, maxval=45.0))
    down = jnp.ceil(steps * jnp.sin(angle) - 0.5).astype(int)
    right = jnp.ceil(steps * jnp.cos(angle) - 0.5).astype(int)

    def add(step, total):
        return total + weights[step] * _shifted(image, down[step], right[step])

    return jax.lax.fori_loop(0, len(steps), add, jnp.zeros_like(image))


@_image_by_image
def zoom_blur(image: Float[Array, "H W C"], severity: Severity, key: Array):
    """Mean of the image and of its enlargements by 0, 1, ... percent about the centre."""
    percent = _at(severity, 6, 11, 15, 20, 25)
    middle = jnp.array(image.shape[:2]) / 2

    def add(step, total):
        zoom = 1 + step / 100
        return total + jax.image.scale_and_translate(
            image, image.shape, (0, 1), jnp.full(2, zoom), middle * (1 - zoom), "linear"
        )

    return jax.lax.fori_loop(0, percent + 1, add, image) / (percent + 2)


@_image_by_image
def fog(image: Float[Array, "H W C"], severity: Severity, key: Array):
    """Adds a fractal height map, and scales back to the brightest value."""
    amount, decay = _at(severity, (0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))
    height, width = image.shape[:2]
    size = 1 << (max(height, width) - 1).bit_length()
    heights = _plasma(key, size, decay)[:height, :width, None]
    return (image + amount * heights) * image.max() / (image.max() + amount)


@_image_by_image
def brightness(image: Float[Array, "H W C"], severity: Severity, key: Array):
    """Raises the value of HSV."""
    rise = _at(severity, 0.05, 0.1, 0.15, 0.2, 0.3)
    value = image.max(-1, keepdims=True)
    colour = jnp.where(value > 0, image, 1) / jnp.where(value > 0, value, 1)
    return colour * jnp.minimum(value + rise, 1)


@_image_by_image
def contrast(image: Float[Array, "H W C"], severity: Severity, key: Array):
    """Draws every value towards the mean of its channel."""
    kept = _at(severity, 0.75, 0.5, 0.4, 0.3, 0.15)
    mean = image.mean((0, 1))
    return mean + kept * (image - mean)


@_image_by_image
def saturate(image: Float[Array, "H W C"], severity: Severity, key: Array):
    """Scales and shifts the saturation of HSV; leaves grey images as they are.

    Grey pixels of RGB images have hue 0, as usual, so that a shift reddens them.
    """
    if image.shape[-1] == 1:
        return image
    gain, shift = _at(severity, (0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))
    value, span = image.max(-1, keepdims=True), jnp.ptp(image, -1, keepdims=True)
    grey = span == 0
    saturation = span / jnp.where(grey, 1, value)
    below = jnp.where(grey, jnp.array([0, 1, 1]), (value - image) / jnp.where(grey, 1, span))
    return value * (1 - below * jnp.clip(gain * saturation + shift, 0, 1))


@_image_by_image
def pixelate(image: Float[Array, "H W C"], severity: Severity, key: Array):
    """Down to a fraction of the size and up again, by pillow's box filter."""

    def maps(side):
        full = Image.fromarray(np.eye(side, dtype=np.float32))
        for fraction in (0.95, 0.9, 0.85, 0.75, 0.65):
            small = full.resize((side, int(side * fraction)), Image.Resampling.BOX)
            yield np.asarray(small.resize((side, side), Image.Resampling.BOX))

    return _map_sides(image, severity, maps)


@_image_by_image
def elastic(image: Float[Array, "H W C"], severity: Severity, key: Array):
    """A random affine map and smooth random shifts, bilinear; the border is mirrored."""
    shift, jitter = _at(severity, (0, 0.08), (0.05, 0.07), (0.08, 0.06), (0.1, 0.05), (0.1, 0.03))
    key_corners, key_shifts = jax.random.split(key)
    shape = image.shape[:2]
    side = min(shape)
    corners = np.array(shape) // 2 + side // 3 * np.array([[1.0, 1], [1, -1], [-1, -1]])
    moved = corners + side * jitter * jax.random.uniform(key_corners, (3, 2), minval=-1.0)
    # The map from where a pixel lands to where it comes from, in homogeneous coordinates.
    back = jnp.linalg.solve(jnp.column_stack([moved, jnp.ones(3)]), corners)
    shifts = jax.random.uniform(key_shifts, (*shape, 2), minval=-1.0)
    sigmas = side * np.array((0, 0.2, 0.06, 0.04, 0.03))
    shifts = side * shift * _blur(shifts, severity, sigmas, mode="reflect", truncate=3)
    lands = jnp.stack(jnp.mgrid[: shape[0], : shape[1]], -1) + shifts
    source = (lands[..., None] * back[:2]).sum(2) + back[2]
    sample = functools.partial(jax.scipy.ndimage.map_coordinates, order=1, mode="mirror")
    return jax.vmap(sample, (-1, None), -1)(image, [source[..., 0], source[..., 1]])


def jpeg(images: Float[Array, "B H W C"], severity: int, key: Array) -> Float[Array, "B H W C"]:
    """JPEG by pillow, on the host: not for use under `jit`."""
    quality = (80, 65, 58, 50, 40)[severity - 1]
    pixels = np.round(255 * np.asarray(images)).astype(np.uint8)
    decoded = []
    for image in pixels.squeeze(-1) if images.shape[-1] == 1 else pixels:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        decoded.append(np.asarray(Image.open(file)))
    return jnp.array(decoded).reshape(images.shape) / 255


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
