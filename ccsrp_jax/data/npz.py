"""A user's .npz file of images or of event recordings."""

import hashlib
import zipfile
from pathlib import Path

import numpy as np
import psutil

from ccsrp_jax.data.division import draw_test_split
from ccsrp_jax.data.recordings import bin_recordings
from ccsrp_jax.data.source import (
    ReadOptions,
    SourceDataset,
    count_classes,
    validated_split,
    validated_train_and_test,
)
from ccsrp_jax.data.splits import Split
from ccsrp_jax.utils.devices import format_gib
from ccsrp_jax.utils.errors import InputError, reason

IMAGE_KEYS = ("x_train", "y_train", "x_test", "y_test")
EVENT_KEYS = ("x", "y", "p", "t", "offset", "label")
OPTIONAL_EVENT_KEYS = ("shape", "train")


def read(path: Path, options: ReadOptions) -> SourceDataset:
    """The images or recordings of a file; pickled objects are never loaded.

    A file of images has the arrays x_train, y_train, x_test and y_test. A file of recordings has
    x, y, p, t and offset as in `recordings.bin_recordings`, label with the class of each recording
    and, optionally, train: how many of the recordings, from the first, are for training. Without
    it a test split is drawn.

    Raises:
      InputError: the file or its arrays cannot be used.
    """
    arrays = _read_arrays(path)
    try:
        with path.open("rb") as file:
            version = "sha256 " + hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give another.") from error
    if "offset" in arrays:
        return _recordings(path, arrays, version, options)
    train, test, classes = validated_train_and_test(path.name, *(arrays[key] for key in IMAGE_KEYS))
    return SourceDataset(path.stem, train, test, classes, "none", str(path), version)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise InputError(f"there is no file {path}: give the path of an .npz file.")
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is no .npz, or a damaged one: write it with numpy.savez.")
    try:
        with zipfile.ZipFile(path) as file:
            found = {name.removesuffix(".npy"): name for name in file.namelist()}
            wanted = _wanted_keys(path, list(found))
            _check_room(path, [file.getinfo(found[key]) for key in wanted])
            return {key: _read_array(file, found[key]) for key in wanted}
    except InputError:
        raise
    except Exception as error:  # of any type: zip, four compressions, headers, memory
        raise InputError(
            f"{path} cannot be read as an .npz of plain number arrays ({reason(error)}): "
            "write it again with numpy.savez."
        ) from error


def _wanted_keys(path: Path, found: list[str]) -> list[str]:
    """The arrays to read of those found."""
    has_events = "offset" in found
    required = EVENT_KEYS if has_events else IMAGE_KEYS
    missing = sorted(set(required) - set(found))
    if missing:
        raise InputError(
            f"{path} has no {', '.join(missing)}: expected {', '.join(required)}, "
            f"found {', '.join(found) or 'nothing'}."
        )
    optional = OPTIONAL_EVENT_KEYS if has_events else ()
    return [*required, *(key for key in optional if key in found)]


def _check_room(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Refuses arrays that memory has no room for, as a damaged or hostile file may claim."""
    wanted, free = sum(member.file_size for member in members), psutil.virtual_memory().available
    if wanted > free:
        raise InputError(
            f"the arrays of {path} need {format_gib(wanted)} of memory where {format_gib(free)} "
            "are free: write it again with fewer images."
        )


def _read_array(file: zipfile.ZipFile, name: str) -> np.ndarray:
    """A plain array; reading to the very end has the checksum of its bytes compared."""
    shown = f"{name.removesuffix('.npy')} of {Path(str(file.filename)).name}"
    with file.open(name) as member:
        try:
            array = np.lib.format.read_array(member, allow_pickle=False)
        except ValueError as error:
            raise ValueError(f"{shown}: {reason(error)}") from error
        if member.read(1):
            raise ValueError(f"{shown} goes on after the end of its array")
    return array


def _recordings(
    path: Path, arrays: dict[str, np.ndarray], version: str, options: ReadOptions
) -> SourceDataset:
    frames = bin_recordings(path.name, arrays, options.time_steps)
    whole = validated_split(path.name, "recordings", frames.images, "label", arrays["label"])
    classes, footnotes = count_classes(path.name, "label", whole), ()
    if "train" in arrays:
        train, test = _divided_at(path.name, whole, arrays["train"])
    else:
        train, test, footnote = draw_test_split(whole, options.seed)
        footnotes = (footnote,)
    return SourceDataset(
        name=path.stem,
        train=train,
        test=test,
        classes=classes,
        augmentation="shift",
        source=str(path),
        version=version,
        footnotes=footnotes,
        encoding="frames",
        warnings=frames.warnings,
    )


def _divided_at(source: str, whole: Split, first: np.ndarray) -> tuple[Split, Split]:
    """The first recordings for training and the others for testing."""
    count = len(whole.labels)
    if first.dtype.kind not in "iu" or first.ndim or not 0 < first < count:
        raise InputError(
            f"train of {source} is {first.tolist()}: give how many of its {count} recordings, "
            "from the first, are for training."
        )
    return Split(*(part[:first] for part in whole)), Split(*(part[first:] for part in whole))
