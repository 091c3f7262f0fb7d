"""What the reader of a data set is given, what it returns, and the validation of its arrays."""

from typing import NamedTuple

import numpy as np

from ccsrp_jax.data.augmentation import Augmentation
from ccsrp_jax.data.checks import in_unit_range, span
from ccsrp_jax.data.splits import Encoding, Split
from ccsrp_jax.utils.errors import InputError

CHUNK = 1000  # images processed at a time, to bound memory


class ReadOptions(NamedTuple):
    """Options of `load` that readers may need.

    Attributes:
      data_dir: folder of the data set, or None for the default of its source.
      seed: of a test split that has to be drawn; see `draw_test_split`.
      time_steps: T, the number of frames that events are binned into.
    """

    data_dir: str | None = None
    seed: int = 0
    time_steps: int = 4


class SourceDataset(NamedTuple):
    """A data set as read from its source, with training and test images only.

    Attributes:
      name, train, test, classes, augmentation, encoding: as in `Dataset`.
      source, version: where the data comes from, for the record.
      footnotes: what a report on this data has to mention.
      warnings: sentences on what its reader saw that may be wrong; see `Dataset.record`.
    """

    name: str
    train: Split
    test: Split
    classes: int
    augmentation: Augmentation
    source: str
    version: str
    footnotes: tuple[str, ...] = ()
    encoding: Encoding = "direct"
    warnings: tuple[str, ...] = ()


def subset_footnotes(
    name: str, sizes: tuple[int, int], official: tuple[int, int] | None
) -> tuple[str, ...]:
    """A footnote if there are not as many training and test samples as in the official data."""
    if official is None or sizes == official:
        return ()
    return (
        f"only a part of {name}, do not report results as {name}: {sizes[0]} of {official[0]} "
        f"training and {sizes[1]} of {official[1]} test samples",
    )


def validated_train_and_test(
    source: str, x_train: np.ndarray, y_train: np.ndarray, x_test: np.ndarray, y_test: np.ndarray
) -> tuple[Split, Split, int]:
    """Training split, test split and number of classes of arrays; see `validated_split`.

    Raises:
      InputError: arrays that are not images and classes, or do not match each other.
    """
    train = validated_split(source, "x_train", x_train, "y_train", y_train)
    classes = count_classes(source, "y_train", train)
    test = validated_split(source, "x_test", x_test, "y_test", y_test, classes)
    if train.images.shape[1:] != test.images.shape[1:]:
        raise InputError(
            f"{source} has training images of shape {train.images.shape[1:]} and test images of "
            f"shape {test.images.shape[1:]}: give both the same (H, W, C)."
        )
    return train, test, classes


def validated_split(
    source: str,
    x: str,
    images: np.ndarray,
    y: str,
    labels: np.ndarray,
    classes: int | None = None,
) -> Split:
    """Images as (N, H, W, C) with their labels, after validation.

    Args:
      source: name of the file or data set, for error messages.
      x, y: names of the two arrays, for error messages.
      images: (N, H, W) or (N, H, W, C), uint8 or floats in [0, 1].
      labels: (N,) integers.
      classes: number of classes, if it is known.

    Raises:
      InputError: a type, shape or value that images or classes cannot have.
    """
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise InputError(
            f"{x} of {source} has type {images.dtype}: give uint8 in 0..255 or floats in [0, 1]."
        )
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise InputError(
            f"{x} of {source} has shape {images.shape}: give images as (N, H, W) or (N, H, W, C)."
        )
    if labels.dtype.kind not in "iu":
        raise InputError(
            f"{y} of {source} has type {labels.dtype}: give integers from 0 to classes - 1."
        )
    if labels.shape != images.shape[:1]:
        raise InputError(
            f"{y} of {source} has shape {labels.shape} for {len(images)} images: give one label "
            f"per image, shape ({len(images)},)."
        )
    if images.dtype != np.uint8:
        images = _in_unit_range(source, x, images).astype(np.float32)
    _check_labels(source, y, labels, classes)
    if images.ndim == 3:
        images = images[..., None]
    return Split(images, labels.astype(np.int32))


def count_classes(source: str, y: str, split: Split) -> int:
    """Number of classes that the labels of the training images imply.

    Raises:
      InputError: there is only one, or there are more than images.
    """
    first, classes, count = split.labels[0], int(split.labels.max()) + 1, len(split.labels)
    if (split.labels == first).all():
        raise InputError(
            f"{y} of {source} contains label {first} only: give images of at least two classes."
        )
    if classes > count:
        raise InputError(
            f"{y} of {source} has labels up to {classes - 1}, which makes {classes} classes, for "
            f"{count} images: number the classes from 0 without large gaps."
        )
    return classes


def _in_unit_range(source: str, x: str, images: np.ndarray) -> np.ndarray:
    low, high = (float(value) for value in span(images))
    if np.isnan(low):
        raise InputError(f"{x} of {source} contains NaN: give floats in [0, 1].")
    clipped = in_unit_range(images)
    if clipped is None:
        raise InputError(
            f"{x} of {source} has values from {low:g} to {high:g}: give floats in [0, 1] "
            "(8-bit values must be uint8; divide by 255 if they are floats)."
        )
    return clipped


def _check_labels(source: str, y: str, labels: np.ndarray, classes: int | None) -> None:
    low, high = int(labels.min()), int(labels.max())
    limit = classes or np.iinfo(np.int32).max
    if low < 0 or high >= limit:
        raise InputError(
            f"{y} of {source} has labels from {low} to {high}: give integers from 0 to "
            f"{limit - 1 if classes else 'classes - 1'}."
        )
