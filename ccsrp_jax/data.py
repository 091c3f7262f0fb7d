"""Data sets of images or events, divided into those to train on, to search on and to test on.

The search split is held out of the official training images: whatever selects masks sees
it, and neither training nor the closing test does. Every choice is drawn from
`Generator(PCG64([seed, purpose]))`, so a seed gives the same splits everywhere.
"""

import hashlib
import zipfile
import zlib
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Array, Float32, Int32, Shaped, UInt8

from ccsrp_jax import events
from ccsrp_jax.errors import InputError, check_number, reason

Augmentation = Literal["none", "shift", "crop_flip"]
# What a draw is for: one stream each, so that a cap on one split leaves the others alone.
DRAWN_TEST, SEARCH, SEARCH_CAP, TEST_CAP = range(4)
NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test")
NMNIST_SIZES = (60000, 10000)  # training and test recordings
CHUNK = 1000  # images handled at a time, to bound memory
STD_FLOOR = 1e-3  # keeps a constant channel from being divided by 0


class Split(NamedTuple):
    """Images, uint8 in 0..255 or float32 in [0, 1] (`unit` scales both), and their classes."""

    images: UInt8[np.ndarray, "N H W C"] | Float32[np.ndarray, "N H W C"]
    labels: Int32[np.ndarray, "N"]


class Dataset(NamedTuple):
    """A divided data set.

    Attributes:
      name: of the data set; for an .npz, the file's name without its ending.
      train, search, test: the splits, each in the order of its source.
      classes: number of classes K; labels are 0..K-1.
      mean, std: per channel of the `train` images scaled to [0, 1].
      augmentation: what the data set calls for; see `training.augment`.
      record: source, sizes, seed and held-out positions, as JSON-able data.
      encoding: the architecture's that the images ask for: `frames` of events, which have mean
        0 and std 1 so that silence stays 0, or `direct`.
    """

    name: str
    train: Split
    search: Split
    test: Split
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation
    record: dict
    encoding: Literal["direct", "frames"] = "direct"


class Official(NamedTuple):
    """A data set as its source divides it."""

    name: str
    train: Split
    test: Split
    classes: int
    augmentation: Augmentation
    source: str
    version: str
    footnotes: tuple[str, ...] = ()
    encoding: Literal["direct", "frames"] = "direct"


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
        from ccsrp_jax.prepare import read_prepared  # it builds on this module

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


def unit(images: Shaped[Array | np.ndarray, "*N"]) -> Float32[Array | np.ndarray, "*N"]:
    """Images as float32 in [0, 1]: uint8 is divided by 255, floats pass."""
    scaled = images.astype(np.float32)
    return scaled / 255 if images.dtype == np.uint8 else scaled


def _stratified(labels: np.ndarray, seed: int, purpose: int) -> np.ndarray:
    """Positions in an order whose every head takes the same share of each class, rounded up.

    So a head no shorter than the number of classes present has an image of each of them.
    """
    random = np.random.Generator(np.random.PCG64([seed, purpose])).random(len(labels))
    order = np.lexsort((random, labels))  # class by class, shuffled within
    sizes = np.bincount(labels)
    by_class = labels[order]
    rank = np.arange(len(labels)) - (np.cumsum(sizes) - sizes)[by_class]
    return order[np.lexsort((by_class, rank / sizes[by_class]))]


def _take(split: Split, positions: np.ndarray) -> Split:
    positions = np.sort(positions)
    return Split(split.images[positions], split.labels[positions])


def _moments(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation by channel of images in [0, 1], to 4 digits."""
    total = np.zeros((2, images.shape[-1]))
    for start in range(0, len(images), CHUNK):
        x = unit(images[start : start + CHUNK]).astype(np.float64)
        total += [x.sum((0, 1, 2)), (x * x).sum((0, 1, 2))]
    mean, square = total / np.prod(images.shape[:3])
    std = np.maximum(np.sqrt(np.maximum(square - mean**2, 0)), STD_FLOOR)
    return tuple(mean.round(4).tolist()), tuple(std.round(4).tolist())


def _digits(seed: int) -> Official:
    """scikit-learn's 8 x 8 digits; their test split is drawn here, as they come without one."""
    import sklearn
    from sklearn.datasets import load_digits

    source = load_digits()
    whole = Split(
        (source.images[..., None] / 16).astype(np.float32), source.target.astype(np.int32)
    )
    train, test, footnote = _drawn(whole, seed)
    return Official(
        name="digits",
        train=train,
        test=test,
        classes=10,
        augmentation="none",  # they are centred; shifting them cost robust accuracy
        source="sklearn.datasets.load_digits",
        version=sklearn.__version__,
        footnotes=(footnote,),
    )


def _drawn(whole: Split, seed: int) -> tuple[Split, Split, str]:
    """Training and test images of a set that comes without a test split, and what to say of it."""
    order = _stratified(whole.labels, seed, DRAWN_TEST)
    rest = len(order) - round(len(order) / 5)
    footnote = f"no official test split: a stratified fifth is drawn with seed {seed}"
    return _take(whole, order[:rest]), _take(whole, order[rest:]), footnote


def _nmnist(data_dir: str | None, time_steps: int) -> Official:
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
    return Official(
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


def _npz(path: Path, seed: int, time_steps: int) -> Official:
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
    return Official(path.stem, train, test, classes, "none", str(path), version)


def _recordings(
    path: Path, arrays: dict[str, np.ndarray], version: str, seed: int, time_steps: int
) -> Official:
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
    return Official(
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


def checked_split(
    where: str,
    x: str,
    images: np.ndarray,
    y: str,
    labels: np.ndarray,
    classes: int | None = None,
) -> Split:
    """Images as NHWC with their labels, once they are known to be usable.

    Raises:
      InputError: a type, shape or value that is none of an image or a class.
    """
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise InputError(
            f"{x} of {where} has type {images.dtype}: give uint8 in 0..255 or floats in [0, 1]."
        )
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise InputError(
            f"{x} of {where} has shape {images.shape}: give images as (N, H, W) or (N, H, W, C)."
        )
    if labels.dtype.kind not in "iu":
        raise InputError(
            f"{y} of {where} has type {labels.dtype}: give integers from 0 to classes - 1."
        )
    if labels.shape != images.shape[:1]:
        raise InputError(
            f"{y} of {where} has shape {labels.shape} for {len(images)} images: give one label "
            f"an image, shape ({len(images)},)."
        )
    if images.dtype != np.uint8:
        low, high = float(images.min()), float(images.max())
        if np.isnan(low):
            raise InputError(f"{x} of {where} has NaN: give floats in [0, 1].")
        if low < 0 or high > 1:
            raise InputError(
                f"{x} of {where} has values from {low:g} to {high:g}: give floats in [0, 1] "
                "(divide by 255 what was 0..255)."
            )
        images = images.astype(np.float32)
    least, most = int(labels.min()), int(labels.max())
    limit = classes or np.iinfo(np.int32).max
    if least < 0 or most >= limit:
        raise InputError(
            f"{y} of {where} has labels from {least} to {most}: give integers from 0 to "
            f"{limit - 1 if classes else 'classes - 1'}."
        )
    if images.ndim == 3:
        images = images[..., None]
    return Split(images, labels.astype(np.int32))
