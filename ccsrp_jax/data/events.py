"""Recordings of event cameras, binned into frames.

An image of events holds T frames one after the other in its channels, each of two polarities;
the encoding `frames` shows a network one of them in each step. Read are the official files of
N-MNIST (Orchard et al., Frontiers in Neuroscience 2015, arXiv 1507.07629), and arrays of
recordings, as from an .npz.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from ccsrp_jax.utils.errors import InputError, check_number, unknown

NMNIST_SHAPE = (34, 34)


KEYS = ("x", "y", "p", "t", "offset", "label")  # of arrays of recordings


MORE_KEYS = ("shape", "train")  # that they may also have


# Events a pixel and frame. Of N-MNIST's pixels that see any, 93 % see no more in one of 4 frames
# and 98 % in one of 10. It divides 255, so that grey levels are exact.
SATURATION = 5


OVERFLOW_ROW = 240  # an event there is none: the clock has gone round


OVERFLOW_TIME = 2**13  # microseconds that each adds to all times from there on


class Events(NamedTuple):
    """Events of a recording, an array of integers each."""

    x: np.ndarray  # column, from the left
    y: np.ndarray  # row, from the top
    polarity: np.ndarray  # 1 brighter, 0 darker
    microseconds: np.ndarray


def bin_events(
    x: np.ndarray,
    y: np.ndarray,
    polarity: np.ndarray,
    microseconds: np.ndarray,
    *,
    time_steps: int,
    shape: tuple[int, int] = NMNIST_SHAPE,
    by: str = "time",
    saturation: int = SATURATION,
) -> UInt8[np.ndarray, "H W C"]:
    """Counts the events of a recording by pixel, polarity and frame.

    A count becomes a grey level by the same rule everywhere, so that equal counts are equal
    inputs and silence is 0; scaling by a recording's own maximum would let one noisy pixel
    darken all others.

    Args:
      x, y, polarity, microseconds: as in `Events`, in any order.
      time_steps: T, the number of frames.
      shape: (H, W) of the camera.
      by: `time`, frames of equal length from the first event to the last; or `count`, frames of
        N // T of the N events in the order of their times, the last with what is left over
        (as SpikingJelly splits by number).
      saturation: from so many events on, a pixel is at its maximum.

    Returns:
      C = 2 T channels, of which 2 t + p is frame t's of polarity p; in 0..255.

    Raises:
      InputError: arrays that are no events of such a camera.
    """
    check_number("time_steps", time_steps, 1)
    check_number("saturation", saturation, 1)
    if by not in ("time", "count"):
        raise unknown("way to bin events", by, ("time", "count"))
    events = Events(x, y, polarity, microseconds)
    _check_integers(events)
    _check_range(events, shape)
    frame, (height, width) = np.zeros(len(x), np.int64), shape
    if by == "count":
        rank = np.arange(len(x)) // max(len(x) // time_steps, 1)
        frame[np.argsort(microseconds, kind="stable")] = np.minimum(rank, time_steps - 1)
    elif len(x):
        since = microseconds.astype(np.int64) - int(microseconds.min())
        frame = since * time_steps // (since.max() + 1)
    pixel = y.astype(np.int64) * width + x
    place = (pixel * time_steps + frame) * 2 + polarity
    counts = np.bincount(place, minlength=height * width * time_steps * 2)
    grey = np.rint(255 / saturation * np.minimum(counts, saturation)).astype(np.uint8)
    return grey.reshape(height, width, 2 * time_steps)


def _check_integers(events: Events) -> None:
    for name, values in events._asdict().items():
        if values.dtype.kind not in "iub" or values.shape != (events.x.size,):
            raise InputError(
                f"{name} of the events has type {values.dtype} and shape {values.shape}: give "
                f"{events.x.size} integers, one an event."
            )


def _check_range(events: Events, shape: tuple[int, int]) -> None:
    height, width = shape
    for values, name, count in zip(events, events._fields, (width, height, 2), strict=False):
        if len(values) and not (values.min() >= 0 and values.max() < count):
            raise InputError(
                f"{name} of the events is from {values.min()} to {values.max()}: give 0 to "
                f"{count - 1}."
            )


def read_bin(path: Path) -> Events:
    """One recording of N-MNIST.

    An event is 5 bytes: x, y, and a number of 24 bits, big endian, whose highest bit is the
    polarity and whose others are microseconds. Events in row 240 mark where the clock has gone
    round, as in the authors' reader.

    Raises:
      InputError: no file, or one of another format.
    """
    try:
        raw = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}): unpack N-MNIST again."
        ) from error
    if raw.size == 0 or raw.size % 5:
        raise InputError(
            f"{path} has {raw.size} bytes, but a recording of N-MNIST has 5 an event: unpack the "
            "official archives again."
        )
    x, y, high, middle, low = raw.reshape(-1, 5).T.astype(np.int64)
    over = y == OVERFLOW_ROW
    t = (high & 127) << 16 | middle << 8 | low
    t += OVERFLOW_TIME * np.cumsum(over)
    return Events(*(part[~over] for part in (x, y, high >> 7, t)))


def read_nmnist(
    folder: Path, time_steps: int
) -> tuple[UInt8[np.ndarray, "N H W C"], Int32[np.ndarray, "N"]]:
    """Frames and classes of a part of N-MNIST: of FOLDER/0/*.bin to FOLDER/9/*.bin.

    They come in the order of the files' numbers, which is MNIST's.

    Raises:
      InputError: no recordings, or one that cannot be used.
    """
    files = sorted(folder.glob("[0-9]/*.bin"), key=lambda path: (path.name, path.parent.name))
    if not files:
        raise InputError(
            f"there are no recordings in {folder}: expected {folder}/0/*.bin to {folder}/9/*.bin, "
            "as the official archives of N-MNIST unpack."
        )
    images = np.empty((len(files), *NMNIST_SHAPE, 2 * time_steps), np.uint8)
    for image, path in zip(images, files, strict=True):
        events = read_bin(path)
        try:
            image[:] = bin_events(*events, time_steps=time_steps)
        except InputError as error:
            raise InputError(f"{path} is no recording of N-MNIST: {error}") from error
    return images, np.array([path.parent.name for path in files]).astype(np.int32)


def bin_recordings(
    where: str, arrays: Mapping[str, np.ndarray], time_steps: int
) -> UInt8[np.ndarray, "N H W C"]:
    """Frames of recordings that lie one after the other in arrays.

    Args:
      where: the file that they are from.
      arrays: `x`, `y`, `p` and `t` as in `Events`; `offset` (N + 1,), where in them each
        recording begins, and where the last ends; and, if it is not the least that holds all
        events, `shape`, the camera's (H, W).
      time_steps: T.

    Raises:
      InputError: arrays that are none of these.
    """
    offset, events = arrays["offset"], Events(*(arrays[key] for key in ("x", "y", "p", "t")))
    total = events.x.size
    try:
        _check_integers(events)
    except InputError as error:
        raise InputError(f"{where} cannot be used: {error}") from error
    if not (
        offset.dtype.kind in "iu"
        and offset.ndim == 1
        and len(offset) > 1
        and offset[0] == 0
        and offset[-1] == total
        and (np.diff(offset.astype(np.int64)) > 0).all()
    ):
        raise InputError(
            f"offset of {where} does not divide its {total} events into recordings: give (N + 1,) "
            f"integers that rise from 0 to {total}."
        )
    shape = arrays.get("shape", np.array([events.y.max() + 1, events.x.max() + 1]))
    if shape.shape != (2,) or shape.dtype.kind not in "iu" or shape.min() < 1:
        raise InputError(f"shape of {where} is {shape.tolist()}: give the camera's (H, W).")
    height, width = map(int, shape)
    images = np.empty((len(offset) - 1, height, width, 2 * time_steps), np.uint8)
    for number, image in enumerate(images):
        some = (part[offset[number] : offset[number + 1]] for part in events)
        try:
            image[:] = bin_events(*some, time_steps=time_steps, shape=(height, width))
        except InputError as error:
            raise InputError(f"recording {number} of {where} cannot be used: {error}") from error
    return images
