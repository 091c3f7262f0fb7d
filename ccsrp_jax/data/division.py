"""Division of a data set into training, search and test splits.

The search split is held out of the official training images. Every choice is drawn, stratified
by class, from `Generator(PCG64([int(seed), purpose]))`, so a seed gives the same splits everywhere.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from ccsrp_jax.data.quality import check_layout, quality_warnings
from ccsrp_jax.data.source import CHUNK, SourceDataset
from ccsrp_jax.data.splits import Dataset, Split, to_unit_range
from ccsrp_jax.utils.digests import sha256_arrays
from ccsrp_jax.utils.errors import InputError

# One random stream for each purpose: a size limit on one split does not change the others.
DRAWN_TEST, SEARCH, SEARCH_LIMIT, TEST_LIMIT = range(4)
DRAWN = "no official test split"  # how the footnote of a data set without one begins
MIN_STD = 1e-3  # avoids division by 0 where a channel is constant


@dataclass(frozen=True)
class SplitSettings:
    """How a data set is divided.

    Attributes:
      seed: of all random choices; at least 0.
      search_fraction: share of the training images held out as the search split, in (0, 1).
      train_images, search_images, test_images: maximum number of images of each split, selected
        stratified by class, or None for all. `train_images` applies after the search split has
        been held out.

    Raises:
      InputError: a setting is out of range, or no whole number.
    """

    seed: int | np.integer = 0
    search_fraction: float = 0.2
    train_images: int | np.integer | None = None
    search_images: int | np.integer | None = None
    test_images: int | np.integer | None = None

    def __post_init__(self) -> None:
        for name in ("seed", "train_images", "search_images", "test_images"):
            value = getattr(self, name)
            if value is not None or name == "seed":
                object.__setattr__(self, name, whole_number(name, value))
        if self.seed < 0:
            raise InputError(f"seed {self.seed} is negative: give 0 or more.")
        if not isinstance(self.search_fraction, float | int | np.floating):
            raise InputError(
                f"search_fraction {self.search_fraction!r} is no number: give a share."
            )
        share = float(min(self.search_fraction, 2))  # integers may be too large for a float
        object.__setattr__(self, "search_fraction", share)
        if not 0 < self.search_fraction < 1:
            raise InputError(
                f"search_fraction {self.search_fraction} is outside (0, 1): give a share."
            )


def whole_number(name: str, value: object) -> int:
    """A whole number as Python's own, which the record can hold.

    Raises:
      InputError: it is none.
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise InputError(f"{name} {value!r} is no whole number: give one.")
    return int(value)


def divide(source: SourceDataset, settings: SplitSettings = SplitSettings()) -> Dataset:
    """Divides a data set into training, search and test splits.

    Raises:
      InputError: the settings leave too few images for the classes, or the images are of one
        class only or have their channels first.
    """
    train, test = source.train, source.test
    check_layout(source)
    _check_sizes(source, settings)
    kept, searched = _hold_out(train.labels, settings)
    tested = stratified_order(test.labels, settings.seed, TEST_LIMIT)[: settings.test_images]
    splits = _take(train, kept), _take(train, searched), _take(test, tested)
    is_direct = source.encoding == "direct"
    mean, std = _channel_moments(splits[0].images) if is_direct else ((0.0,), (1.0,))
    record = {
        "name": source.name,
        "source": source.source,
        "version": source.version,
        "official_sizes": {"train": len(train.labels), "test": len(test.labels)},
        "sizes": {
            name: len(split.labels)
            for name, split in zip(("train", "search", "test"), splits, strict=True)
        },
        "seed": settings.seed,
        "search_fraction": settings.search_fraction,
        "train_and_test_sha256": [split_digest(each) for each in (source.train, source.test)],
        "search_sha256": hashlib.sha256(searched.astype("<i8").tobytes()).hexdigest(),
        "search_indices": searched.tolist(),
        "footnote": "; ".join(source.footnotes) or None,
        "warnings": [*source.warnings, *quality_warnings(source, *splits)],
    }
    return Dataset(
        source.name,
        *splits,
        classes=source.classes,
        mean=mean,
        std=std,
        augmentation=source.augmentation,
        record=record,
        encoding=source.encoding,
    )


def split_digest(split: Split) -> str:
    """SHA-256 of the type, shape and values of images, and of their labels."""
    return sha256_arrays([split.images, np.asarray(split.labels, "<i8")])


def draw_test_split(whole: Split, seed: int) -> tuple[Split, Split, str]:
    """Training and test images of a data set without an official test split, and a footnote."""
    order = stratified_order(whole.labels, seed, DRAWN_TEST)
    rest = len(order) - round(len(order) / 5)
    footnote = f"{DRAWN}: a stratified fifth is drawn with seed {seed}"
    return _take(whole, order[:rest]), _take(whole, order[rest:]), footnote


def stratified_order(
    labels: np.ndarray, seed: int | np.integer, purpose: int
) -> Int[np.ndarray, "N"]:
    """A random order of the positions in which every prefix is stratified by class.

    A prefix contains the same share of each class, rounded up, so one that is at least as long
    as the number of classes present has an image of each of them.
    """
    random = np.random.Generator(np.random.PCG64([int(seed), purpose])).random(len(labels))
    order = np.lexsort((random, labels))  # sorted by class, shuffled within each
    sizes = np.bincount(labels)
    by_class = labels[order]
    rank = np.arange(len(labels)) - (np.cumsum(sizes) - sizes)[by_class]
    return order[np.lexsort((by_class, rank / sizes[by_class]))]


def _check_sizes(source: SourceDataset, settings: SplitSettings) -> None:
    name = f"{source.name} ({source.source})"
    for split in ("train", "search", "test"):
        limit = getattr(settings, f"{split}_images")
        if limit is not None and limit < source.classes:
            raise InputError(
                f"{split}_images {limit} is below the {source.classes} classes of {name}: "
                "allow at least one image per class."
            )
    count = len(source.train.labels)
    held_out = round(settings.search_fraction * count)
    if min(held_out, count - held_out) < source.classes:
        raise InputError(
            f"search_fraction {settings.search_fraction} divides the {count} training images of "
            f"{name} into {count - held_out} and {held_out}, but each part needs at least "
            f"one image for each of the {source.classes} classes: change the share or give more "
            "images."
        )


def _hold_out(labels: np.ndarray, settings: SplitSettings) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the images to train on, and of those in the search split, in order."""
    rest = len(labels) - round(settings.search_fraction * len(labels))
    order = stratified_order(labels, settings.seed, SEARCH)
    held_out = order[rest:]
    selected = stratified_order(labels[held_out], settings.seed, SEARCH_LIMIT)
    return order[:rest][: settings.train_images], np.sort(
        held_out[selected[: settings.search_images]]
    )


def _take(split: Split, positions: np.ndarray) -> Split:
    positions = np.sort(positions)
    return Split(split.images[positions], split.labels[positions])


def _channel_moments(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of the images in [0, 1], to 4 digits."""
    total = np.zeros((2, images.shape[-1]))
    for start in range(0, len(images), CHUNK):
        x = to_unit_range(images[start : start + CHUNK]).astype(np.float64)
        total += [x.sum((0, 1, 2)), (x * x).sum((0, 1, 2))]
    mean, square = total / np.prod(images.shape[:3])
    std = np.maximum(np.sqrt(np.maximum(square - mean**2, 0)), MIN_STD)
    return tuple(mean.round(4).tolist()), tuple(std.round(4).tolist())
