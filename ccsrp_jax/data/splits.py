"""Images with labels, and how a data set is divided."""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Array, Float32, Int32, Shaped, UInt8

from ccsrp_jax.data.augmentation import Augmentation
from ccsrp_jax.utils.errors import InputError

# What a draw is for: one stream each, so that a cap on one split leaves the others alone.
DRAWN_TEST, SEARCH, SEARCH_CAP, TEST_CAP = range(4)


CHUNK = 1000  # images handled at a time, to bound memory


STD_FLOOR = 1e-3  # keeps a constant channel from being divided by 0


class Split(NamedTuple):
    """Images, uint8 in 0..255 or float32 in [0, 1] (see `to_unit_range`), and their classes."""

    images: UInt8[np.ndarray, "N H W C"] | Float32[np.ndarray, "N H W C"]
    labels: Int32[np.ndarray, "N"]


class Dataset(NamedTuple):
    """A divided data set.

    Attributes:
      name: of the data set; for an .npz, the file's name without its ending.
      train, search, test: the splits, each in the order of its source.
      classes: number of classes K; labels are 0..K-1.
      mean, std: per channel of the `train` images scaled to [0, 1].
      augmentation: what the data set calls for; see `training.augment`.
      record: source, sizes, seed and held-out positions, as JSON-able data.
      encoding: the architecture's that the images ask for: `frames` of events, which have mean
        0 and std 1 so that silence stays 0, or `direct`.
    """

    name: str
    train: Split
    search: Split
    test: Split
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation
    record: dict
    encoding: Literal["direct", "frames"] = "direct"


class SourceDataset(NamedTuple):
    """A data set as its source divides it."""

    name: str
    train: Split
    test: Split
    classes: int
    augmentation: Augmentation
    source: str
    version: str
    footnotes: tuple[str, ...] = ()
    encoding: Literal["direct", "frames"] = "direct"


def to_unit_range(images: Shaped[Array | np.ndarray, "*N"]) -> Float32[Array | np.ndarray, "*N"]:
    """Images as float32 in [0, 1]: uint8 is divided by 255, floats pass."""
    scaled = images.astype(np.float32)
    return scaled / 255 if images.dtype == np.uint8 else scaled


def _stratified(labels: np.ndarray, seed: int, purpose: int) -> np.ndarray:
    """Positions in an order whose every head takes the same share of each class, rounded up.

    So a head no shorter than the number of classes present has an image of each of them.
    """
    random = np.random.Generator(np.random.PCG64([seed, purpose])).random(len(labels))
    order = np.lexsort((random, labels))  # class by class, shuffled within
    sizes = np.bincount(labels)
    by_class = labels[order]
    rank = np.arange(len(labels)) - (np.cumsum(sizes) - sizes)[by_class]
    return order[np.lexsort((by_class, rank / sizes[by_class]))]


def _take(split: Split, positions: np.ndarray) -> Split:
    positions = np.sort(positions)
    return Split(split.images[positions], split.labels[positions])


def _moments(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation by channel of images in [0, 1], to 4 digits."""
    total = np.zeros((2, images.shape[-1]))
    for start in range(0, len(images), CHUNK):
        x = to_unit_range(images[start : start + CHUNK]).astype(np.float64)
        total += [x.sum((0, 1, 2)), (x * x).sum((0, 1, 2))]
    mean, square = total / np.prod(images.shape[:3])
    std = np.maximum(np.sqrt(np.maximum(square - mean**2, 0)), STD_FLOOR)
    return tuple(mean.round(4).tolist()), tuple(std.round(4).tolist())


def _drawn(whole: Split, seed: int) -> tuple[Split, Split, str]:
    """Training and test images of a set that comes without a test split, and what to say of it."""
    order = _stratified(whole.labels, seed, DRAWN_TEST)
    rest = len(order) - round(len(order) / 5)
    footnote = f"no official test split: a stratified fifth is drawn with seed {seed}"
    return _take(whole, order[:rest]), _take(whole, order[rest:]), footnote


def checked_split(
    where: str,
    x: str,
    images: np.ndarray,
    y: str,
    labels: np.ndarray,
    classes: int | None = None,
) -> Split:
    """Images as NHWC with their labels, once they are known to be usable.

    Raises:
      InputError: a type, shape or value that is none of an image or a class.
    """
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise InputError(
            f"{x} of {where} has type {images.dtype}: give uint8 in 0..255 or floats in [0, 1]."
        )
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise InputError(
            f"{x} of {where} has shape {images.shape}: give images as (N, H, W) or (N, H, W, C)."
        )
    if labels.dtype.kind not in "iu":
        raise InputError(
            f"{y} of {where} has type {labels.dtype}: give integers from 0 to classes - 1."
        )
    if labels.shape != images.shape[:1]:
        raise InputError(
            f"{y} of {where} has shape {labels.shape} for {len(images)} images: give one label "
            f"an image, shape ({len(images)},)."
        )
    if images.dtype != np.uint8:
        low, high = float(images.min()), float(images.max())
        if np.isnan(low):
            raise InputError(f"{x} of {where} has NaN: give floats in [0, 1].")
        if low < 0 or high > 1:
            raise InputError(
                f"{x} of {where} has values from {low:g} to {high:g}: give floats in [0, 1] "
                "(divide by 255 what was 0..255)."
            )
        images = images.astype(np.float32)
    least, most = int(labels.min()), int(labels.max())
    limit = classes or np.iinfo(np.int32).max
    if least < 0 or most >= limit:
        raise InputError(
            f"{y} of {where} has labels from {least} to {most}: give integers from 0 to "
            f"{limit - 1 if classes else 'classes - 1'}."
        )
    if images.ndim == 3:
        images = images[..., None]
    return Split(images, labels.astype(np.int32))
