"""Data sets by name, or from arrays in memory."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ccsrp_jax.data import digits, nmnist, npz, tfds
from ccsrp_jax.data.augmentation import Augmentation
from ccsrp_jax.data.division import SplitSettings, divide
from ccsrp_jax.data.source import ReadOptions, SourceDataset, validated_train_and_test
from ccsrp_jax.data.splits import Dataset, Encoding
from ccsrp_jax.utils.errors import check_number

# Data sets with a reader of their own; all other names are .npz files or TFDS data sets.
READERS: dict[str, Callable[[ReadOptions], SourceDataset]] = {
    "digits": digits.read,
    "nmnist": nmnist.read,
}


def load(
    name: str,
    *,
    data_dir: str | None = None,
    seed: int = 0,
    search_fraction: float = 0.2,
    train_images: int | None = None,
    search_images: int | None = None,
    test_images: int | None = None,
    time_steps: int = 4,
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

    Raises:
      InputError: a setting, the name, the folder or the data cannot be used.
    """
    settings = SplitSettings(seed, search_fraction, train_images, search_images, test_images)
    check_number("time_steps", time_steps, 1)
    options = ReadOptions(data_dir, seed, time_steps)
    if name in READERS:
        source = READERS[name](options)
    elif name.endswith(".npz"):
        source = npz.read(Path(name), options)
    else:
        source = tfds.read(name, data_dir, other_names=READERS)
    return divide(source, settings)


def from_arrays(
    x_train: np.ndarray,
    y_train: np.ndarray,
    x_test: np.ndarray,
    y_test: np.ndarray,
    *,
    name: str = "arrays",
    augmentation: Augmentation = "none",
    encoding: Encoding = "direct",
    settings: SplitSettings = SplitSettings(),
) -> Dataset:
    """Makes a data set from arrays in memory and divides it, as `load` does.

    Args:
      x_train, x_test: (N, H, W) or (N, H, W, C) images, uint8 or floats in [0, 1].
      y_train, y_test: (N,) integer classes from 0 to K - 1.
      name: of the data set, for records and reports.
      augmentation: suitable for the training images.
      encoding: `frames` if the channels are event frames; see `events`.
      settings: how to divide the images.

    Raises:
      InputError: the arrays cannot be used.
    """
    arrays = (x_train, y_train, x_test, y_test)
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
    return divide(source, settings)
