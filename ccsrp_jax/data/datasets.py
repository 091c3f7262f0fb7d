"""Data sets by name, or from arrays in memory."""

import hashlib
import logging
import os
from collections.abc import Callable
from typing import Any, get_args

import numpy as np

from ccsrp_jax.data import digits, nmnist, npz, tfds
from ccsrp_jax.data.augmentation import Augmentation
from ccsrp_jax.data.division import SplitSettings, divide, whole_number
from ccsrp_jax.data.paths import user_path
from ccsrp_jax.data.source import ReadOptions, SourceDataset, validated_train_and_test
from ccsrp_jax.data.splits import Dataset, Encoding
from ccsrp_jax.utils.errors import InputError, check_number, reason, unknown

# Data sets with a reader of their own; all other names are .npz files or TFDS data sets.
READERS: dict[str, Callable[[ReadOptions], SourceDataset]] = {
    "digits": digits.read,
    "nmnist": nmnist.read,
}


def log_warning(text: str) -> None:
    """Writes a warning to Python's log, which shows it on stderr by default."""
    logging.getLogger("ccsrp_jax").warning("warning: %s", text)


def load(
    name: str | os.PathLike,
    *,
    data_dir: str | os.PathLike | None = None,
    seed: int | np.integer = 0,
    search_fraction: float = 0.2,
    train_images: int | np.integer | None = None,
    search_images: int | np.integer | None = None,
    test_images: int | np.integer | None = None,
    time_steps: int | np.integer = 4,
    warn: Callable[[str], None] = log_warning,
) -> Dataset:
    """Reads a data set and divides it, without TensorFlow and without downloading.

    Args:
      name: one of:
        - `digits`, scikit-learn's handwritten digits;
        - `nmnist`, the official files of N-MNIST;
        - a path that ends in .npz, of images or of event recordings; see `npz.read`;
        - a TFDS image-classification data set that has been prepared, as `cifar10` or
          `imagenette/160px-v2`; see `prepare`.
      data_dir: folder of prepared TFDS data sets, by default that of TFDS; for `nmnist`, the
        folder that holds Train and Test.
      seed, search_fraction, train_images, search_images, test_images: see `SplitSettings`.
      time_steps: T, the number of frames that events are binned into; images have none.
      warn: is given each sentence of `Dataset.record["warnings"]`.

    Raises:
      InputError: a setting, the name, the folder or the data cannot be used.
    """
    settings = SplitSettings(seed, search_fraction, train_images, search_images, test_images)
    check_number("time_steps", whole_number("time_steps", time_steps), 1)
    if not isinstance(name, str | os.PathLike):
        raise InputError(f"data set {name!r} is no name: give a name or the path of an .npz file.")
    if not isinstance(data_dir, str | os.PathLike | None):
        raise InputError(f"data_dir {data_dir!r} is no path: give the folder of the data set.")
    name = os.fspath(name)
    data_dir = None if data_dir is None else os.fspath(data_dir)
    options = ReadOptions(data_dir, int(settings.seed), int(time_steps))
    if name in READERS:
        source = READERS[name](options)
    elif name.endswith(".npz"):
        source = npz.read(user_path(name), options)
    else:
        source = tfds.read(name, data_dir, other_names=READERS)
    return _divided(source, settings, warn)


def from_arrays(
    x_train: Any,
    y_train: Any,
    x_test: Any,
    y_test: Any,
    *,
    name: str = "arrays",
    augmentation: Augmentation = "none",
    encoding: Encoding = "direct",
    settings: SplitSettings = SplitSettings(),
    warn: Callable[[str], None] = log_warning,
) -> Dataset:
    """Makes a data set from arrays in memory and divides it, as `load` does.

    Args:
      x_train, x_test: (N, H, W) or (N, H, W, C) images, uint8 or floats in [0, 1]: NumPy arrays, or
        what NumPy makes arrays of.
      y_train, y_test: (N,) integer classes from 0 to K - 1.
      name: of the data set, for records and reports.
      augmentation: suitable for the training images.
      encoding: `frames` if the channels are event frames; see `events`.
      settings: how to divide the images.
      warn: as in `load`.

    Raises:
      InputError: the arrays cannot be used.
    """
    for what, given, options in (
        ("augmentation", augmentation, get_args(Augmentation)),
        ("encoding", encoding, get_args(Encoding)),
    ):
        if given not in options:
            raise unknown(what, given, options)
    arrays = [
        _as_array(name, key, given)
        for key, given in zip(npz.IMAGE_KEYS, (x_train, y_train, x_test, y_test), strict=True)
    ]
    train, test, classes = validated_train_and_test(name, *arrays)
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    source = SourceDataset(
        name=name,
        train=train,
        test=test,
        classes=classes,
        augmentation=augmentation,
        source="arrays in memory",
        version=f"sha256 {digest.hexdigest()}",
        encoding=encoding,
    )
    return _divided(source, settings, warn)


def _as_array(source: str, key: str, given: Any) -> np.ndarray:
    try:
        return np.asarray(given)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{key} of {source} is no array ({reason(error)}): give one.") from error


def _divided(
    source: SourceDataset, settings: SplitSettings, warn: Callable[[str], None]
) -> Dataset:
    data = divide(source, settings)
    for text in data.record["warnings"]:
        warn(text)
    return data
