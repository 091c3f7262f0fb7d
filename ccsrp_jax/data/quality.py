"""What in a data set may be wrong although every array is valid: data that cannot teach.

`check_layout` refuses what no training can use. `quality_warnings` names what may be meant, but
rarely is: missing classes, images that are blank, equal, or in training and test, and dark scales.
"""

import hashlib

import numpy as np

from ccsrp_jax.data.source import CHUNK, SourceDataset
from ccsrp_jax.data.splits import Split
from ccsrp_jax.utils.errors import InputError

MOST_CHANNELS = 4  # of what people call images
DARK = 0.1  # largest pixel of images that were scaled twice, or hold 0 and 1 in 8 bits
NAMED = 5  # classes that a warning names


def check_layout(source: SourceDataset) -> None:
    """Refuses splits without images, images of one class only, and those with channels first.

    Raises:
      InputError: with what was seen.
    """
    name, labels = f"{source.name} ({source.source})", source.train.labels
    for part, split in (("training", source.train), ("test", source.test)):
        if not len(split.labels):
            raise InputError(f"{name} has no {part} images: give some of each class.")
    if (labels == labels[0]).all():
        raise InputError(
            f"the training images of {name} are of class {labels[0]} only: give images of at least "
            "two classes."
        )
    height, width, channels = source.train.images.shape[1:]
    if _is_channels_first(source) and width == channels:
        raise InputError(
            f"the images of {name} have {height} rows and {channels} channels, shape "
            f"{(height, width, channels)}, which looks like channels first: give (N, H, W, C), "
            "by numpy.moveaxis(x, 1, -1)."
        )


def quality_warnings(
    source: SourceDataset, train: Split, search: Split, test: Split
) -> tuple[str, ...]:
    """A sentence for everything in the splits of a data set that may be wrong."""
    splits = {"training": train, "search": search, "test": test}
    found = [_missing_classes(part, split, source.classes) for part, split in splits.items()]
    if _is_channels_first(source):
        height, width, channels = train.images.shape[1:]
        found.append(
            f"the images have {height} rows, {width} columns and {channels} channels: give "
            "(N, H, W, C) if the channels come first"
        )
    for part, split in (("training", train), ("test", test)):
        if source.encoding == "direct":  # black frames are named by their reader
            found += [_blank(part, split), _dark(part, split)]
    found.append(_constant_channels(train) if source.encoding == "direct" else None)
    found += _repeated(train, search, test)
    return tuple(f"{source.name}: {text}." for text in found if text)


def _is_channels_first(source: SourceDataset) -> bool:
    height, width, channels = source.train.images.shape[1:]
    return source.encoding == "direct" and height <= MOST_CHANNELS < min(width, channels)


def _missing_classes(part: str, split: Split, classes: int) -> str | None:
    present = np.unique(split.labels)
    missing = np.setdiff1d(np.arange(classes), present)
    if len(present) == 1:
        return f"the {part} images are of class {present[0]} only, of {classes} classes"
    if not len(missing):
        return None
    more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
    return (
        f"the {part} images have none of class {', '.join(map(str, missing[:NAMED]))}{more}, of "
        f"{classes} classes"
    )


def _blank(part: str, split: Split) -> str | None:
    """Images of which every pixel has the same value in all channels."""
    if split.images[0].size == 1:
        return None
    blank = np.zeros(len(split.images), bool)
    for start in range(0, len(blank), CHUNK):
        flat = split.images[start : start + CHUNK].reshape(len(blank[start : start + CHUNK]), -1)
        blank[start : start + CHUNK] = (flat == flat[:, :1]).all(1)
    if not blank.any():
        return None
    return (
        f"{blank.sum()} of {len(blank)} {part} images have the same value in all pixels, the first "
        f"of them number {np.argmax(blank)}"
    )


def _dark(part: str, split: Split) -> str | None:
    """Images that use a small part of [0, 1], as 0 and 1 do in 8 bits."""
    largest = split.images.max()
    unit = float(largest) / (255 if split.images.dtype == np.uint8 else 1)
    if unit >= DARK:
        return None
    return (
        f"the largest pixel of the {part} images is {largest} of type {split.images.dtype}, which "
        f"is {unit:.2g} where images span 0 to 1: give uint8 in 0..255 or floats in [0, 1]"
    )


def _constant_channels(train: Split) -> str | None:
    low, high = train.images.min((0, 1, 2)), train.images.max((0, 1, 2))
    constant = np.flatnonzero(low == high)
    if not len(constant):
        return None
    if len(constant) == len(low):
        return "all training images are the same, of one value per channel"
    more = f" and {len(constant) - NAMED} more" if len(constant) > NAMED else ""
    return (
        f"channel {', '.join(map(str, constant[:NAMED]))}{more} has the same value in all training "
        "images"
    )


def _repeated(train: Split, search: Split, test: Split) -> list[str | None]:
    """Equal images: all of them, with different labels, or in training and in test."""
    labels = {}
    for split in (train, search):
        for image, label in zip(split.images, split.labels.tolist(), strict=True):
            labels.setdefault(_fingerprint(image), set()).add(label)
    if len(labels) == 1:
        return ["all training and search images are the same"]
    known = sum(_fingerprint(image) in labels for image in test.images)
    unclear = sum(len(each) > 1 for each in labels.values())
    return [
        f"{unclear} of {len(labels)} different training images come with several labels"
        if unclear
        else None,
        f"{known} of {len(test.labels)} test images are also training or search images, so that "
        "results on them say nothing about new images"
        if known
        else None,
    ]


def _fingerprint(image: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
