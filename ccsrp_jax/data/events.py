"""Event-camera recordings binned into frames.

A recording becomes an image whose channels are T frames in a row, each of two polarities. The
input encoding `frames` shows the network one frame per time step.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from ccsrp_jax.utils.errors import InputError, check_number, unknown

NMNIST_SHAPE = (34, 34)  # (H, W) in pixels
# Events per pixel and frame that give the maximum grey level. Of the pixels of N-MNIST that have
# any event, 93 % have no more in one of 4 frames and 98 % in one of 10. It divides 255, so that
# grey levels are exact.
SATURATION = 5


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

    All recordings share one mapping from counts to grey levels, so that equal counts give equal
    inputs and no events give 0. Scaling by the maximum of each recording would let one noisy
    pixel darken all others.

    Args:
      x, y, polarity, microseconds: as in `Events`, in any order.
      time_steps: T, the number of frames.
      shape: (H, W) of the camera in pixels.
      by: `time`, frames of equal duration from the first event to the last; or `count`, frames
        of N // T of the N events in temporal order, the last with the remainder (as SpikingJelly
        splits by number).
      saturation: number of events from which a pixel has the maximum grey level, 255.

    Returns:
      (H, W, 2 T) grey levels in 0..255; channel 2 t + p holds polarity p of frame t.

    Raises:
      InputError: a setting is out of range, or the arrays are not events of such a camera.
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
        elapsed = microseconds.astype(np.int64) - int(microseconds.min())
        frame = elapsed * time_steps // (elapsed.max() + 1)
    pixel = y.astype(np.int64) * width + x
    index = (pixel * time_steps + frame) * 2 + polarity
    counts = np.bincount(index, minlength=height * width * time_steps * 2)
    grey = np.rint(255 / saturation * np.minimum(counts, saturation)).astype(np.uint8)
    return grey.reshape(height, width, 2 * time_steps)


def bin_recordings(
    source: str, arrays: Mapping[str, np.ndarray], time_steps: int
) -> UInt8[np.ndarray, "N H W C"]:
    """Frames of recordings that are concatenated in arrays.

    Args:
      source: name of the file, for error messages.
      arrays: `x`, `y`, `p` and `t`, the fields of `Events`; `offset` (N + 1,), the index at which
        each recording begins, and the number of events last; optionally `shape`, (H, W) of the
        camera, by default the smallest that contains all events.
      time_steps: T, the number of frames.

    Raises:
      InputError: arrays that are not such recordings.
    """
    offset, events = arrays["offset"], Events(*(arrays[key] for key in ("x", "y", "p", "t")))
    try:
        _check_integers(events)
    except InputError as error:
        raise InputError(f"{source} cannot be used: {error}") from error
    _check_offset(source, offset, events.x.size)
    shape = arrays.get("shape", np.array([events.y.max() + 1, events.x.max() + 1]))
    if shape.shape != (2,) or shape.dtype.kind not in "iu" or shape.min() < 1:
        raise InputError(f"shape of {source} is {shape.tolist()}: give the camera's (H, W).")
    height, width = map(int, shape)
    images = np.empty((len(offset) - 1, height, width, 2 * time_steps), np.uint8)
    for number, image in enumerate(images):
        recording = (part[offset[number] : offset[number + 1]] for part in events)
        try:
            image[:] = bin_events(*recording, time_steps=time_steps, shape=(height, width))
        except InputError as error:
            raise InputError(f"recording {number} of {source} cannot be used: {error}") from error
    return images


def _check_integers(events: Events) -> None:
    for name, values in events._asdict().items():
        if values.dtype.kind not in "iub" or values.shape != (events.x.size,):
            raise InputError(
                f"{name} of the events has type {values.dtype} and shape {values.shape}: give "
                f"{events.x.size} integers, one per event."
            )


def _check_range(events: Events, shape: tuple[int, int]) -> None:
    height, width = shape
    for values, name, count in zip(events, events._fields, (width, height, 2), strict=False):
        if len(values) and not (values.min() >= 0 and values.max() < count):
            raise InputError(
                f"{name} of the events is from {values.min()} to {values.max()}: give 0 to "
                f"{count - 1}."
            )


def _check_offset(source: str, offset: np.ndarray, total: int) -> None:
    if not (
        offset.dtype.kind in "iu"
        and offset.ndim == 1
        and len(offset) > 1
        and offset[0] == 0
        and offset[-1] == total
        and (np.diff(offset.astype(np.int64)) > 0).all()
    ):
        raise InputError(
            f"offset of {source} does not divide its {total} events into recordings: give (N + 1,) "
            f"integers that increase from 0 to {total}."
        )
