"""Event-camera recordings binned into frames.

A recording becomes an image whose channels are T frames in a row, each of two polarities. The
input encoding `frames` shows the network one frame per time step.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from ccsrp_jax.utils.errors import InputError, check_number, unknown

NMNIST_SHAPE = (34, 34)  # (H, W) in pixels
# Events per pixel and frame that give the maximum grey level. Of the pixels of N-MNIST that have
# any event, 93 % have no more in one of 4 frames and 98 % in one of 10. It divides 255, so that
# grey levels are exact.
SATURATION = 5
MAX_SIDE = 2**14  # pixels: more than any event camera has
MAX_FRAMES = 2**11
MAX_SPAN = 2**51  # from the first event to the last; times MAX_FRAMES, it fits into 64 bits
MAX_VALUES = 2**28  # grey levels of one recording, which are counted in 8 bytes each


class Events(NamedTuple):
    """Events of a recording, an array of integers each, of any width and sign."""

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
    height, width = check_frames(shape, time_steps)
    check_number("saturation", saturation, 1)
    if by not in ("time", "count"):
        raise unknown("way to bin events", by, ("time", "count"))
    events = _checked(Events(x, y, polarity, microseconds), (height, width))
    frame, total = np.zeros(len(events.x), np.int64), len(events.x)
    if by == "count":
        rank = np.arange(total) // max(total // time_steps, 1)
        order = np.argsort(events.microseconds, kind="stable")
        frame[order] = np.minimum(rank, time_steps - 1)
    elif total:
        frame = events.microseconds * time_steps // (events.microseconds.max() + 1)
    pixel = events.y * width + events.x
    index = (pixel * time_steps + frame) * 2 + events.polarity
    counts = np.bincount(index, minlength=height * width * time_steps * 2)
    grey = np.rint(255 / saturation * np.minimum(counts, saturation)).astype(np.uint8)
    return grey.reshape(height, width, 2 * time_steps)


def check_frames(shape: Sequence[int], time_steps: int) -> tuple[int, int]:
    """The (H, W) of a camera as plain numbers, once they and the number of frames are checked.

    Raises:
      InputError: there can be no such camera, or its frames would be too large to count.
    """
    check_number("time_steps", time_steps, 1, MAX_FRAMES)
    if len(shape) != 2 or not all(isinstance(side, int | np.integer) for side in shape):
        raise InputError(f"camera shape {shape} is no (H, W): give two whole numbers of pixels.")
    height, width = map(int, shape)
    for name, side in (("height", height), ("width", width)):
        check_number(f"camera {name}", side, 1, MAX_SIDE)
    if height * width * time_steps * 2 > MAX_VALUES:
        raise InputError(
            f"{time_steps} frames of {height} x {width} pixels and two polarities are more than "
            f"{MAX_VALUES} values: use fewer time steps or crop the recordings."
        )
    return height, width


def check_integers(events: Events) -> None:
    """Checks that all columns are integers, one per event.

    Raises:
      InputError: one is not.
    """
    for name, values in events._asdict().items():
        if values.dtype.kind not in "iub" or values.shape != (events.x.size,):
            raise InputError(
                f"{name} of the events has type {values.dtype} and shape {values.shape}: give "
                f"{events.x.size} integers, one per event."
            )


def elapsed(microseconds: np.ndarray) -> Int64[np.ndarray, "N"]:
    """Times since the first event of a recording, in whatever width and sign they come.

    Raises:
      InputError: they span more than any recording does, so one of them must be wrong.
    """
    if not microseconds.size:
        return np.zeros(0, np.int64)
    first, last = int(microseconds.min()), int(microseconds.max())
    if last - first > MAX_SPAN:
        raise InputError(
            f"microseconds of the events are from {first} to {last}, further apart than any "
            "recording is long: remove the events with a wrong time."
        )
    if microseconds.dtype.kind == "u":  # may be above the range of int64
        return (microseconds - microseconds.dtype.type(first)).astype(np.int64)
    return microseconds.astype(np.int64) - first  # narrow types would overflow


def _checked(events: Events, shape: tuple[int, int]) -> Events:
    """The events as int64, with times since the first of them."""
    check_integers(events)
    height, width = shape
    for values, name, count in zip(events, events._fields, (width, height, 2), strict=False):
        if len(values) and not (values.min() >= 0 and values.max() < count):
            raise InputError(
                f"{name} of the events is from {values.min()} to {values.max()}: give 0 to "
                f"{count - 1}."
            )
    x, y, polarity = (values.astype(np.int64) for values in events[:3])
    return Events(x, y, polarity, elapsed(events.microseconds))
