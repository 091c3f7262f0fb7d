"""Reads TFDS sets that lie prepared, without TensorFlow."""

import difflib
import io
import re
import shlex
from pathlib import Path

import numpy as np

from ccsrp_jax.data.splits import CHUNK, SourceDataset, checked_split
from ccsrp_jax.utils.errors import InputError, reason

TFDS_NAME = r"\w+(/[\w.-]+)?"  # a set, or one of its configurations


OFFICIAL_SIZES = {  # training and test images
    "cifar10": (50000, 10000),
    "mnist": (60000, 10000),
    "svhn_cropped": (73257, 26032),
}


COLOUR_GLYPHS = {"cmaterdb", "omniglot", "svhn_cropped"}  # a flip would change what they show


def read_prepared(name: str, data_dir: str | None) -> SourceDataset:
    """A prepared TFDS set, read from its files alone: no builder code, no download."""
    import tensorflow_datasets as tfds
    from google.protobuf import json_format

    root = _root(data_dir)
    folder = _prepared_folder(name, root)
    damaged = (OSError, RuntimeError, ValueError, KeyError, json_format.Error)
    try:
        builder = tfds.builder_from_directory(folder)
        found = list(builder.info.splits)
    except damaged as error:
        raise _unreadable(name, root, folder, error) from error
    features = builder.info.features
    is_dict = isinstance(features, tfds.features.FeaturesDict)
    features = dict(features.items()) if is_dict else {}
    image, label = features.get("image"), features.get("label")
    kinds = tfds.features.Image, tfds.features.ClassLabel
    if not isinstance(image, kinds[0]) or not isinstance(label, kinds[1]):
        raise InputError(
            f"{name} in {folder} is no image-classification set: expected the features image and "
            f"label, found {', '.join(sorted(features)) or 'none'}; choose a set that has them."
        )
    if None in image.shape or image.shape[-1] not in (1, 3) or image.np_dtype != np.uint8:
        raise InputError(
            f"{name} has images of shape {image.shape} and type {np.dtype(image.np_dtype)}: "
            "expected 8-bit images of one size with 1 or 3 channels; resize them into an .npz."
        )
    for split in ("train", "test"):
        if split not in found:
            raise InputError(
                f"{name} in {folder} has no {split} split, only {', '.join(found) or 'none'}: "
                "choose a set with both, or give its images as an .npz."
            )
    try:
        raw = {split: _decoded(builder, split, image.shape) for split in ("train", "test")}
    except damaged as error:
        raise _unreadable(name, root, folder, error) from error
    train, test = (
        checked_split(name, f"{split} images", images, f"{split} labels", labels, label.num_classes)
        for split, (images, labels) in raw.items()
    )
    base, sizes = name.split("/")[0], (len(train.labels), len(test.labels))
    footnotes = []
    if OFFICIAL_SIZES.get(base, sizes) != sizes:
        footnotes.append(
            f"a part of {base}, not to be reported as it: {sizes[0]} of "
            f"{OFFICIAL_SIZES[base][0]} training and {sizes[1]} test images"
        )
    if builder.__module__.endswith("adhoc_builder"):
        footnotes.append("the files were not prepared by the set's own TFDS builder")
    return SourceDataset(
        name=name,
        train=train,
        test=test,
        classes=label.num_classes or int(train.labels.max()) + 1,
        augmentation="shift" if image.shape[-1] == 1 or base in COLOUR_GLYPHS else "crop_flip",
        source="tensorflow_datasets",
        version=str(builder.info.version),
        footnotes=tuple(footnotes),
    )


def _root(data_dir: str | None) -> Path:
    import tensorflow_datasets as tfds

    return Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()


def _check_name(name: str) -> None:
    """Refuses a name that TFDS does not know, with the nearest that it does.

    Raises:
      InputError: TFDS has no builder of that name.
    """
    import tensorflow_datasets as tfds

    # the community's sets would be looked up in the cloud
    known = tfds.list_builders(with_community_datasets=False)
    if name.split("/")[0] not in known or not re.fullmatch(TFDS_NAME, name):
        near = difflib.get_close_matches(name, ["digits", "nmnist", *known], n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else "check the spelling."
        raise InputError(
            f"unknown data set {name!r}: expected digits, nmnist, a path that ends in .npz or the "
            f"name of a TFDS set; {hint}"
        )


def _prepared_folder(name: str, root: Path) -> Path:
    """Folder of the newest prepared version of a TFDS set."""
    found = list((root / name).glob("*/features.json")) if re.fullmatch(TFDS_NAME, name) else []
    versions = [file.parent for file in found if re.fullmatch(r"\d+\.\d+\.\d+", file.parent.name)]
    if versions:
        return max(versions, key=lambda folder: [int(n) for n in folder.name.split(".")])
    _check_name(name)
    command = _command(name, root)
    if not root.is_dir():
        raise InputError(
            f"the data folder {root} does not exist: give the --data-dir under which {name} lies "
            f"prepared, or prepare it with {command}."
        )
    configs = sorted(
        {str(f.parents[1].relative_to(root)) for f in root.glob(f"{name}/*/*/features.json")}
    )
    if configs:
        raise InputError(
            f"{root / name} holds several data sets: name one of {', '.join(configs)}."
        )
    raise InputError(
        f"{name} is not prepared in {root}: expected {root / name}/VERSION/features.json; give "
        f"the right --data-dir, or prepare it with {command}."
    )


def _decoded(builder, split: str, shape: tuple) -> tuple[np.ndarray, np.ndarray]:
    """All images and labels of a split."""
    import tensorflow_datasets as tfds
    from PIL import Image

    # decoded here, as TFDS's own decoding logs a warning where OpenCV is absent
    source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    images = np.empty((len(source), *shape), np.uint8)
    labels = np.empty(len(source), np.int64)
    mode = "L" if shape[-1] == 1 else "RGB"
    for start in range(0, len(source), CHUNK):
        chunk = range(start, min(start + CHUNK, len(source)))
        for i, example in zip(chunk, source.__getitems__(chunk), strict=True):
            with Image.open(io.BytesIO(example["image"])) as picture:
                images[i] = np.asarray(picture.convert(mode)).reshape(shape)
            labels[i] = example["label"]
    return images, labels


def _unreadable(name: str, root: Path, folder: Path, error: Exception) -> InputError:
    return InputError(
        f"the files of {name} in {folder} cannot be read ({reason(error)}): remove that folder and "
        f"prepare the set again with {_command(name, root)}."
    )


def _command(name: str, root: Path) -> str:
    return f"`python -m ccsrp_jax.data.prepare {name} {shlex.quote(str(root))}`"
