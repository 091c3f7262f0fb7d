"""Prepared TFDS data sets, read without TensorFlow, from their files alone."""

import difflib
import io
import json
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ccsrp_jax.data.paths import user_path
from ccsrp_jax.data.source import CHUNK, SourceDataset, subset_footnotes, validated_split
from ccsrp_jax.utils.errors import InputError, reason

NAME_PATTERN = r"\w+(/[\w.-]+)?"  # NAME or NAME/CONFIG
VERSION_PATTERN = r"\d{1,9}\.\d{1,9}\.\d{1,9}"
OFFICIAL_SIZES = {  # training and test images
    "cifar10": (50000, 10000),
    "mnist": (60000, 10000),
    "svhn_cropped": (73257, 26032),
}
FILE_FORMAT = "array_record"  # which needs no TensorFlow
EIGHT_BIT_MODES = {"L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "1"}  # of Pillow
COLOUR_GLYPHS = {"cmaterdb", "omniglot", "svhn_cropped"}  # colour images that flips would change


def read(name: str, data_dir: str | None, other_names: Iterable[str] = ()) -> SourceDataset:
    """A prepared image-classification data set.

    Args:
      name: NAME or NAME/CONFIG of a TFDS data set.
      data_dir: folder of prepared data sets, by default that of TFDS.
      other_names: of data sets from other sources, for the error about an unknown name.

    Raises:
      InputError: TFDS has no such data set, it is not prepared there, it is no image
        classification, or its files are damaged.
    """
    import tensorflow_datasets as tfds

    root = data_folder(data_dir)
    folder = _prepared_folder(name, root, other_names)
    check_format(name, folder)
    try:
        builder = tfds.builder_from_directory(folder)
        splits = list(builder.info.splits)
        image, label = _features(name, folder, builder)
        _check_splits(name, folder, splits)
        arrays = {split: _decode(builder, split, image.shape) for split in ("train", "test")}
    except InputError:
        raise
    except Exception as error:  # of any type: JSON, protobuf, TFDS, array_record, Pillow, memory
        raise InputError(
            f"the files of {name} in {folder} cannot be read ({reason(error)}): prepare the data "
            f"set in another folder with {_prepare_command(name, 'OTHER')}."
        ) from error
    train, test = (
        validated_split(
            name, f"{split} images", images, f"{split} labels", labels, label.num_classes
        )
        for split, (images, labels) in arrays.items()
    )
    base = name.split("/")[0]
    footnotes = subset_footnotes(
        base, (len(train.labels), len(test.labels)), OFFICIAL_SIZES.get(base)
    )
    if builder.__module__.endswith("adhoc_builder"):
        footnotes += ("the files were not prepared by the data set's own TFDS builder",)
    return SourceDataset(
        name=name,
        train=train,
        test=test,
        classes=label.num_classes or int(train.labels.max()) + 1,
        augmentation="shift" if image.shape[-1] == 1 or base in COLOUR_GLYPHS else "crop_flip",
        source="tensorflow_datasets",
        version=str(builder.info.version),
        footnotes=footnotes,
    )


def data_folder(data_dir: str | None) -> Path:
    """The folder of prepared data sets, by default that of TFDS."""
    from tensorflow_datasets.core import constants

    return user_path(data_dir or constants.DATA_DIR)


def check_format(name: str, folder: Path) -> None:
    """Checks that a prepared data set is in the format that is read without TensorFlow.

    Raises:
      InputError: it is in another; the message says how to get this one.
    """
    try:
        info = json.loads((folder / "dataset_info.json").read_bytes())
        found = info.get("fileFormat") or "tfrecord"
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return  # damaged: reading says how
    if found != FILE_FORMAT:
        version = f"OTHER/{name}/{folder.name}"
        raise InputError(
            f"{name} in {folder} is prepared as {found}, which only "
            f"TensorFlow reads: keep that folder, write the data set as {FILE_FORMAT} into another "
            f"one, with {_prepare_command(name, 'OTHER')} or `tfds convert_format "
            f"--dataset_version_dir={shlex.quote(str(folder))} --out_file_format={FILE_FORMAT} "
            f"--out_dir={version}` where TensorFlow is installed, and give OTHER as --data-dir."
        )


def check_name(name: str, other_names: Iterable[str] = ()) -> None:
    """Checks that TFDS has a data set of that name.

    Raises:
      InputError: it has none; the message suggests the most similar names.
    """
    import tensorflow_datasets as tfds

    # community data sets would be looked up over the network
    known = tfds.list_builders(with_community_datasets=False)
    if name.split("/")[0] not in known or not re.fullmatch(NAME_PATTERN, name):
        others = list(other_names)
        near = difflib.get_close_matches(name, [*others, *known], n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else "check the spelling."
        raise InputError(
            f"unknown data set {name!r}: expected "
            f"{', '.join([*others, 'a path that ends in .npz'])} or the name of a TFDS data set; "
            f"{hint}"
        )


def _features(name: str, folder: Path, builder: Any) -> tuple[Any, Any]:
    """The features `image` and `label` of an image classification."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    is_dict = isinstance(features, tfds.features.FeaturesDict)
    features = dict(features.items()) if is_dict else {}
    image: Any = features.get("image")
    label: Any = features.get("label")
    is_image = isinstance(image, tfds.features.Image)
    if not is_image or not isinstance(label, tfds.features.ClassLabel):
        raise InputError(
            f"{name} in {folder} is no image-classification data set: expected the features image "
            f"and label, found {', '.join(sorted(features)) or 'none'}; choose one that has them."
        )
    shape: Any = image.shape
    dtype: Any = image.np_dtype
    if None in shape or shape[-1] not in (1, 3) or dtype != np.uint8:
        raise InputError(
            f"{name} has images of shape {shape} and type {np.dtype(dtype)}: "
            "expected 8-bit images of one size with 1 or 3 channels; convert them to an .npz file."
        )
    return image, label


def _check_splits(name: str, folder: Path, found: list[str]) -> None:
    for split in ("train", "test"):
        if split not in found:
            raise InputError(
                f"{name} in {folder} has no {split} split, only {', '.join(found) or 'none'}: "
                "choose a data set with both, or give its images as an .npz file."
            )


def _prepared_folder(name: str, root: Path, other_names: Iterable[str]) -> Path:
    """The folder of the newest prepared version."""
    newest = newest_version(name, root)
    if newest:
        return newest
    check_name(name, other_names)
    command = _prepare_command(name, root)
    if not root.is_dir():
        raise InputError(
            f"the data folder {root} does not exist: give the --data-dir in which {name} has been "
            f"prepared, or prepare it with {command}."
        )
    configs = sorted(
        {str(f.parents[1].relative_to(root)) for f in root.glob(f"{name}/*/*/features.json")}
    )
    if configs:
        raise InputError(
            f"{root / name} contains several data sets: give one of {', '.join(configs)}."
        )
    raise InputError(
        f"{name} is not prepared in {root}: expected {root / name}/VERSION/features.json; give "
        f"the right --data-dir, or prepare it with {command}."
    )


def newest_version(name: str, root: Path) -> Path | None:
    """The folder of the newest version that is prepared in any format, or None."""
    if not re.fullmatch(NAME_PATTERN, name):
        return None
    try:
        found = [file.parent for file in (root / name).glob("*/features.json")]
    except OSError as error:  # a loop of links
        raise InputError(f"{root / name} cannot be read ({error.strerror}): mend it.") from error
    versions = [folder for folder in found if re.fullmatch(VERSION_PATTERN, folder.name)]
    numbers = {folder: [int(n) for n in folder.name.split(".")] for folder in versions}
    return max(versions, key=numbers.__getitem__, default=None)


def _decode(builder: Any, split: str, shape: tuple) -> tuple[np.ndarray, np.ndarray]:
    """All images and labels of a split."""
    import tensorflow_datasets as tfds
    from PIL import Image

    # TFDS's own decoding logs a warning if OpenCV is not installed
    source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    images = np.empty((len(source), *shape), np.uint8)
    labels = np.empty(len(source), np.int64)
    mode = "L" if shape[-1] == 1 else "RGB"
    for start in range(0, len(source), CHUNK):
        chunk = range(start, min(start + CHUNK, len(source)))
        for i, example in zip(chunk, source.__getitems__(chunk), strict=True):
            with Image.open(io.BytesIO(example["image"])) as picture:
                _check_picture(picture, f"{split} image {i}", shape)
                images[i] = np.asarray(picture.convert(mode)).reshape(shape)
            labels[i] = example["label"]
    return images, labels


def _check_picture(picture: Any, name: str, shape: tuple) -> None:
    """Refuses what a change of shape or type would scramble or clip without a word."""
    width, height = picture.size
    if (height, width) != tuple(shape[:2]):
        raise ValueError(
            f"{name} has {height} x {width} pixels, and features.json says {shape[0]} x {shape[1]}"
        )
    if picture.mode not in EIGHT_BIT_MODES:
        raise ValueError(f"{name} has pixels of type {picture.mode}, not of 8 bits")


def _prepare_command(name: str, root: Path | str) -> str:
    return f"`ccsrp prepare {name} {shlex.quote(str(root))}`"
