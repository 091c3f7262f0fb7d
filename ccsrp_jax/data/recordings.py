"""Recordings that are concatenated in arrays, as an .npz file holds them, and what is odd in them.

Nothing is refused here that can be binned: a recording without events or with a torn clock becomes
an image all the same, and a warning names it.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import psutil
from jaxtyping import UInt8

from ccsrp_jax.data.events import (
    MAX_SIDE,
    Events,
    bin_events,
    check_frames,
    check_integers,
    elapsed,
)
from ccsrp_jax.utils.devices import format_gib
from ccsrp_jax.utils.errors import InputError

MIN_EVENTS = 10  # from which a gap says something about the clock
CROWD = 0.1  # events crowd if all but this share of them lie in this share of the length
NAMED = 3  # recordings that a warning names
USUAL_SHARE = 0.999  # of the events, whose pixels give a camera's usual size
FEW_EVENTS = 100  # below which they say nothing about it


class Recordings(NamedTuple):
    """Frames of recordings, and warnings about what they were made of."""

    images: UInt8[np.ndarray, "N H W C"]
    warnings: tuple[str, ...]


def bin_recordings(source: str, arrays: Mapping[str, np.ndarray], time_steps: int) -> Recordings:
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
    events = Events(*(arrays[key] for key in ("x", "y", "p", "t")))
    try:
        check_integers(events)
    except InputError as error:
        raise InputError(f"{source} cannot be used: {error}") from error
    offset = _checked_offset(source, arrays["offset"], events.x.size)
    shape = _camera(source, arrays.get("shape"), events)
    images = empty_frames(source, len(offset) - 1, shape, time_steps)
    clocks = []
    for number, image in enumerate(images):
        recording = Events(*(part[offset[number] : offset[number + 1]] for part in events))
        try:
            image[:] = bin_events(*recording, time_steps=time_steps, shape=shape)
        except InputError as error:
            raise InputError(f"recording {number} of {source} cannot be used: {error}") from error
        clocks.append(oddity(recording, time_steps))
    names = [f"recording {number}" for number in range(len(clocks))]
    warnings = oddity_warnings(source, names, clocks)
    if "shape" not in arrays:
        warnings += _camera_warnings(source, events, shape)
    return Recordings(images, warnings)


def empty_frames(
    source: str, count: int, shape: tuple[int, int], time_steps: int
) -> UInt8[np.ndarray, "N H W C"]:
    """Room for the frames of `count` recordings.

    Raises:
      InputError: there can be no such frames, or memory has no room for them.
    """
    height, width = check_frames(shape, time_steps)
    wanted = count * height * width * 2 * time_steps
    free = psutil.virtual_memory().available
    if wanted > free:
        raise InputError(
            f"{time_steps} frames of the {count} recordings of {source}, {height} x {width} pixels "
            f"each, need {format_gib(wanted)} of memory where {format_gib(free)} are free: use "
            "fewer time steps, fewer recordings or a smaller camera."
        )
    return np.empty((count, height, width, 2 * time_steps), np.uint8)


def oddity(events: Events, time_steps: int) -> str | None:
    """What is odd in a recording that can be binned, or None: a key of `ODDITIES`."""
    total = len(events.microseconds)
    if not total:
        return "silent"
    if total < MIN_EVENTS or time_steps == 1:
        return None
    times = np.sort(elapsed(events.microseconds))
    if times[-1] + 1 < time_steps:
        return "short"
    most = total - int(CROWD * total)
    crowded = (times[most - 1 :] - times[: total - most + 1]).min() < CROWD * times[-1]
    return "torn" if crowded or 2 * np.diff(times).max() > times[-1] else None


ODDITIES = {
    "silent": "without any event, so that its image is black: leave out what recorded nothing",
    "short": "with fewer different times than frames, so that some frames are always empty: give "
    "times in microseconds, or fewer time steps",
    "torn": "with a gap of more than half its length, or most events in a tenth of it, so that "
    "they crowd into few frames: check its first and last times, and that its clock does not jump",
}


def oddity_warnings(
    source: str, names: Sequence[str], found: Sequence[str | None]
) -> tuple[str, ...]:
    """A warning for each oddity that was found; `names` are those of the recordings."""
    warnings = []
    for kind, meaning in ODDITIES.items():
        odd = [name for name, each in zip(names, found, strict=True) if each == kind]
        if odd:
            more = f" and {len(odd) - NAMED} more" if len(odd) > NAMED else ""
            warnings.append(
                f"{source} has {len(odd)} of {len(names)} recordings {meaning} "
                f"({', '.join(odd[:NAMED])}{more})."
            )
    return tuple(warnings)


def _camera(source: str, shape: np.ndarray | None, events: Events) -> tuple[int, int]:
    """(H, W) of the camera: as given, or the smallest that contains all events."""
    if shape is not None:
        if shape.shape != (2,) or shape.dtype.kind not in "iu" or shape.min() < 1:
            raise InputError(f"shape of {source} is {shape.tolist()}: give the camera's (H, W).")
        sides = int(shape[0]), int(shape[1])
        if max(sides) > MAX_SIDE:
            raise InputError(
                f"shape of {source} is {shape.tolist()}: give the camera's (H, W), at most "
                f"{MAX_SIDE} each."
            )
        return sides
    if not events.x.size:
        raise InputError(
            f"{source} has recordings without a single event: give their events, or the camera's "
            "(H, W) as shape."
        )
    height, width = (int(values.max()) + 1 for values in (events.y, events.x))
    for name, side in (("y", height), ("x", width)):
        if side > MAX_SIDE:
            raise InputError(
                f"{name} of the events of {source} reaches {side - 1}: give pixels from 0 to "
                f"{MAX_SIDE - 1}, and the camera's (H, W) as shape."
            )
    return max(height, 1), max(width, 1)  # negative pixels are refused with their recording


def _camera_warnings(source: str, events: Events, shape: tuple[int, int]) -> tuple[str, ...]:
    """A warning if a few events alone make the camera more than twice as high or wide."""
    warnings, total = [], events.x.size
    rank = int(USUAL_SHARE * (total - 1))
    for name, values, side in (("y", events.y, shape[0]), ("x", events.x, shape[1])):
        usual = int(np.partition(values, rank)[rank]) + 1 if total >= FEW_EVENTS else side
        if side > 2 * usual:
            warnings.append(
                f"{name} of the events of {source} reaches {side - 1}, but {USUAL_SHARE:.1%} of "
                f"them are below {usual}: give the camera's (H, W) as shape, or remove the others."
            )
    return tuple(warnings)


def _checked_offset(source: str, offset: np.ndarray, total: int) -> np.ndarray:
    """The offsets as int64; equal neighbours are a recording without events."""
    if not (
        offset.dtype.kind in "iu"
        and offset.ndim == 1
        and len(offset) > 1
        and offset[0] == 0
        and offset[-1] == total
        and offset.max() == total
        and offset.min() == 0
        and (np.diff(offset.astype(np.int64)) >= 0).all()
    ):
        raise InputError(
            f"offset of {source} does not divide its {total} events into recordings: give (N + 1,) "
            f"integers that increase from 0 to {total}."
        )
    return offset.astype(np.int64)
