"""The official files of N-MNIST.

Orchard et al., Frontiers in Neuroscience 2015, arXiv 1507.07629.
"""

import hashlib
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from ccsrp_jax.data.events import NMNIST_SHAPE, Events, bin_events
from ccsrp_jax.data.paths import user_path
from ccsrp_jax.data.recordings import Recordings, empty_frames, oddity, oddity_warnings
from ccsrp_jax.data.source import ReadOptions, SourceDataset, subset_footnotes
from ccsrp_jax.data.splits import Split
from ccsrp_jax.utils.errors import InputError

OFFICIAL_SIZES = (60000, 10000)  # training and test recordings
OVERFLOW_ROW = 240  # not a pixel row: marks that the clock has overflowed
OVERFLOW_TIME = 2**13  # microseconds that each overflow adds to all later times


def read(options: ReadOptions) -> SourceDataset:
    """N-MNIST, or a part of it, as event frames.

    `data_dir` holds the folders Train and Test, or a folder N-MNIST that does.

    Raises:
      InputError: there are no recordings there, or one that cannot be read.
    """
    if options.data_dir is None:
        raise InputError(
            "nmnist has no folder: give the --data-dir that holds Train and Test, as its official "
            "archives unpack."
        )
    root = user_path(options.data_dir)
    if not (root / "Train").is_dir() and (root / "N-MNIST").is_dir():
        root = root / "N-MNIST"
    recorded = [read_recordings(root / part, options.time_steps) for part in ("Train", "Test")]
    train, test = (Split(frames.images, labels) for frames, labels in recorded)
    digest = hashlib.sha256(train.images.data)
    digest.update(test.images.data)
    return SourceDataset(
        name="nmnist",
        train=train,
        test=test,
        classes=10,
        augmentation="shift",
        source="the official files of N-MNIST",
        version=f"sha256 of the frames {digest.hexdigest()}",
        footnotes=subset_footnotes(
            "N-MNIST", (len(train.labels), len(test.labels)), OFFICIAL_SIZES
        ),
        encoding="frames",
        warnings=recorded[0][0].warnings + recorded[1][0].warnings,
    )


def read_recordings(folder: Path, time_steps: int) -> tuple[Recordings, Int32[np.ndarray, "N"]]:
    """Frames and classes of the recordings FOLDER/0/*.bin to FOLDER/9/*.bin.

    They are in the order of the file numbers, which is the order of MNIST. Hidden files, such as
    the `._` files of a Mac, are none of them.

    Raises:
      InputError: there are no recordings, or one that cannot be read.
    """
    found = (path for path in folder.glob("[0-9]/*.bin") if not path.name.startswith("."))
    files = sorted(found, key=lambda path: (path.name, path.parent.name))
    if not files:
        raise InputError(
            f"there are no recordings in {folder}: expected {folder}/0/*.bin to {folder}/9/*.bin, "
            "as the official archives of N-MNIST unpack."
        )
    images = empty_frames(str(folder), len(files), NMNIST_SHAPE, time_steps)
    clocks = []
    for image, path in zip(images, files, strict=True):
        events = read_recording(path)
        try:
            image[:] = bin_events(*events, time_steps=time_steps)
        except InputError as error:
            raise InputError(f"{path} is no recording of N-MNIST: {error}") from error
        clocks.append(oddity(events, time_steps))
    names = [f"{path.parent.name}/{path.name}" for path in files]
    warnings = oddity_warnings(str(folder), names, clocks)
    labels = np.array([path.parent.name for path in files]).astype(np.int32)
    return Recordings(images, warnings), labels


def read_recording(path: Path) -> Events:
    """The events of one recording.

    An event is 5 bytes: x, y, and a big-endian 24-bit number whose highest bit is the polarity
    and whose other bits are the time in microseconds. As in the authors' reader, events in row
    240 mark clock overflows and are dropped.

    Raises:
      InputError: there is no such file, or it has another format.
    """
    try:
        raw = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}): unpack N-MNIST again."
        ) from error
    if raw.size == 0 or raw.size % 5:
        raise InputError(
            f"{path} has {raw.size} bytes, but a recording of N-MNIST has 5 per event: unpack the "
            "official archives again."
        )
    x, y, high, middle, low = raw.reshape(-1, 5).T.astype(np.int64)
    overflow = y == OVERFLOW_ROW
    t = (high & 127) << 16 | middle << 8 | low
    t += OVERFLOW_TIME * np.cumsum(overflow)
    return Events(*(part[~overflow] for part in (x, y, high >> 7, t)))
