"""Data sets of images or events, divided into those to train on, to search on and to test on.

The search split is held out of the official training images: whatever selects masks sees
it, and neither training nor the closing test does. Every choice is drawn from
`Generator(PCG64([seed, purpose]))`, so a seed gives the same splits everywhere.
"""

import hashlib
import zipfile
import zlib
from pathlib import Path

import numpy as np

from ccsrp_jax.data import events
from ccsrp_jax.data.splits import (
    SEARCH,
    SEARCH_CAP,
    TEST_CAP,
    Dataset,
    SourceDataset,
    Split,
    _drawn,
    _moments,
    _stratified,
    _take,
    checked_split,
)
from ccsrp_jax.utils.errors import InputError, check_number, reason

NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test")


NMNIST_SIZES = (60000, 10000)  # training and test recordings


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
      name: `digits`; a path that ends in .npz, with x_train, y_train, x_test, y_test, or with
        recordings of events; a prepared TFDS image-classification set, `cifar10` or
        `imagenette/160px-v2`; or `nmnist`, the official files of N-MNIST. The .npz of recordings
        has x, y, p, t and offset as in `events.bin_recordings`; label, a class each; and, if it
        says which are for testing, train: so many, from the first, are for training.
      data_dir: where TFDS sets lie prepared; by default TFDS's own folder. For `nmnist`, where
        the folders Train and Test lie, or N-MNIST that holds them.
      seed: of every choice made here.
      search_fraction: share of the training images held out as the search split.
      train_images, search_images, test_images: use at most this many, stratified; the
        training images are capped after the search split was taken.
      time_steps: T, frames that events are binned into; images have none.

    Raises:
      InputError: a setting, the name, the folder or the data cannot be used.
    """
    if seed < 0:
        raise InputError(f"seed {seed} is negative: give 0 or more.")
    if not 0 < search_fraction < 1:
        raise InputError(f"search_fraction {search_fraction} is outside (0, 1): give a share.")
    check_number("time_steps", time_steps, 1)
    if name == "digits":
        official = _digits(seed)
    elif name == "nmnist":
        official = _nmnist(data_dir, time_steps)
    elif name.endswith(".npz"):
        official = _npz(Path(name), seed, time_steps)
    else:
        from ccsrp_jax.data.tfds import read_prepared  # it builds on this module

        official = read_prepared(name, data_dir)
    train, test, classes = official.train, official.test, official.classes
    caps = {"train": train_images, "search": search_images, "test": test_images}
    for part, cap in caps.items():
        if cap is not None and cap < classes:
            raise InputError(
                f"{part}_images {cap} is below the {classes} classes of {name}: "
                "allow at least one image a class."
            )
    count = len(train.labels)
    held_out = round(search_fraction * count)
    if min(held_out, count - held_out) < classes:
        raise InputError(
            f"search_fraction {search_fraction} divides the {count} training images of {name} "
            f"into {count - held_out} and {held_out}, but each part needs at least one image for "
            f"each of its {classes} classes: change the share or give more images."
        )

    order = _stratified(train.labels, seed, SEARCH)
    kept, held = order[: count - held_out], order[count - held_out :]
    capped = _stratified(train.labels[held], seed, SEARCH_CAP)[:search_images]
    positions = np.sort(held[capped])
    tested = _stratified(test.labels, seed, TEST_CAP)[:test_images]
    splits = _take(train, kept[:train_images]), _take(train, positions), _take(test, tested)
    sizes = [len(split.labels) for split in splits]
    frames = official.encoding == "frames"
    mean, std = ((0.0,), (1.0,)) if frames else _moments(splits[0].images)
    record = {
        "name": official.name,
        "source": official.source,
        "version": official.version,
        "official_sizes": {"train": count, "test": len(test.labels)},
        "sizes": dict(zip(caps, sizes, strict=True)),
        "seed": seed,
        "search_fraction": search_fraction,
        "search_sha256": hashlib.sha256(positions.astype("<i8").tobytes()).hexdigest(),
        "search_indices": positions.tolist(),
        "footnote": "; ".join(official.footnotes) or None,
    }
    how = official.augmentation, record, official.encoding
    return Dataset(official.name, *splits, classes, mean, std, *how)


def _digits(seed: int) -> SourceDataset:
    """scikit-learn's 8 x 8 digits; their test split is drawn here, as they come without one."""
    import sklearn
    from sklearn.datasets import load_digits

    source = load_digits()
    whole = Split(
        (source.images[..., None] / 16).astype(np.float32), source.target.astype(np.int32)
    )
    train, test, footnote = _drawn(whole, seed)
    return SourceDataset(
        name="digits",
        train=train,
        test=test,
        classes=10,
        augmentation="none",  # they are centred; shifting them cost robust accuracy
        source="sklearn.datasets.load_digits",
        version=sklearn.__version__,
        footnotes=(footnote,),
    )


def _nmnist(data_dir: str | None, time_steps: int) -> SourceDataset:
    """The official files of N-MNIST, or a part of them."""
    if data_dir is None:
        raise InputError(
            "nmnist has no folder: give the --data-dir that holds Train and Test, as its official "
            "archives unpack."
        )
    root = Path(data_dir).expanduser()
    if not (root / "Train").is_dir() and (root / "N-MNIST").is_dir():
        root = root / "N-MNIST"
    train, test = (
        Split(*events.read_nmnist(root / part, time_steps)) for part in ("Train", "Test")
    )
    digest = hashlib.sha256(train.images)
    digest.update(test.images)
    sizes, footnotes = (len(train.labels), len(test.labels)), ()
    if sizes != NMNIST_SIZES:
        footnotes = (
            f"a part of N-MNIST, not to be reported as it: {sizes[0]} of {NMNIST_SIZES[0]} "
            f"training and {sizes[1]} of {NMNIST_SIZES[1]} test recordings",
        )
    return SourceDataset(
        name="nmnist",
        train=train,
        test=test,
        classes=10,
        augmentation="shift",
        source="the official files of N-MNIST",
        version=f"sha256 of the frames {digest.hexdigest()}",
        footnotes=footnotes,
        encoding="frames",
    )


def _npz(path: Path, seed: int, time_steps: int) -> SourceDataset:
    """A user's images, or recordings of events; pickled objects are never read."""
    if not path.is_file():
        raise InputError(f"there is no file {path}: give the path of an .npz file.")
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is no .npz, or a damaged one: write it with numpy.savez.")
    try:
        with np.load(path, allow_pickle=False) as file:
            recorded = "offset" in file.files
            wanted = events.KEYS if recorded else NPZ_KEYS
            missing = sorted(set(wanted) - set(file.files))
            if missing:
                raise InputError(
                    f"{path} has no {', '.join(missing)}: expected {', '.join(wanted)}, "
                    f"found {', '.join(file.files) or 'nothing'}."
                )
            more = set(events.MORE_KEYS if recorded else ()) & set(file.files)
            arrays = {key: np.asarray(file[key]) for key in (*wanted, *more)}
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"{path} cannot be read as an .npz of plain number arrays ({reason(error)}): "
            "write it again with numpy.savez."
        ) from error
    with path.open("rb") as file:
        version = "sha256 " + hashlib.file_digest(file, "sha256").hexdigest()
    if recorded:
        return _recordings(path, arrays, version, seed, time_steps)
    train = checked_split(path.name, "x_train", arrays["x_train"], "y_train", arrays["y_train"])
    classes = int(train.labels.max()) + 1
    if classes < 2:
        raise InputError(f"y_train of {path.name} holds label 0 only: give two classes or more.")
    test = checked_split(path.name, "x_test", arrays["x_test"], "y_test", arrays["y_test"], classes)
    if train.images.shape[1:] != test.images.shape[1:]:
        raise InputError(
            f"{path} has training images of shape {train.images.shape[1:]} and test images of "
            f"shape {test.images.shape[1:]}: give both the same (H, W, C)."
        )
    return SourceDataset(path.stem, train, test, classes, "none", str(path), version)


def _recordings(
    path: Path, arrays: dict[str, np.ndarray], version: str, seed: int, time_steps: int
) -> SourceDataset:
    """A user's recordings of events; a test split is drawn where they have none."""
    images = events.bin_recordings(path.name, arrays, time_steps)
    whole = checked_split(path.name, "recordings", images, "label", arrays["label"])
    classes, footnotes = int(whole.labels.max()) + 1, ()
    if classes < 2:
        raise InputError(f"label of {path.name} is 0 only: give two classes or more.")
    if "train" in arrays:
        first = arrays["train"]
        if first.dtype.kind not in "iu" or first.ndim or not 0 < first < len(images):
            raise InputError(
                f"train of {path.name} is {first.tolist()}: give the number of its {len(images)} "
                "recordings, from the first, that are for training."
            )
        train = Split(*(part[:first] for part in whole))
        test = Split(*(part[first:] for part in whole))
    else:
        train, test, footnote = _drawn(whole, seed)
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
    )
