"""Small data sets as files, and the messages with which `load` refuses bad ones."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from ccsrp_jax.data.datasets import load
from ccsrp_jax.utils.errors import InputError

NPZ = ("x_train", "y_train", "x_test", "y_test")


def arrays(n: int = 60, classes: int = 4, shape=(6, 5, 3), seed: int = 0) -> dict:
    """uint8 images, of which the first three pixels spell the image's number."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (2 * n, *shape), dtype=np.uint8)
    images.reshape(2 * n, -1)[:, 0] = np.arange(2 * n)
    labels = np.tile(np.arange(classes), 2 * n)[: 2 * n]
    return dict(zip(NPZ, (images[:n], labels[:n], images[n:], labels[n:]), strict=True))


def write_npz(folder: Path, **changes) -> str:
    path = folder / "mine.npz"
    content = {k: v for k, v in (arrays() | changes).items() if v is not None}
    np.savez(path, **content)
    return str(path)


def write_tfds(root: Path, name: str = "mnist", version: str = "3.0.1", **changes) -> Path:
    """A prepared TFDS set of grey 6 x 5 images, written without TFDS."""
    settings = {
        "shape": (6, 5, 1),
        "label": "class_label_feature.ClassLabel",
        "splits": ("train", "test"),
        "format": "array_record",
        "pixels": np.uint8,
    } | changes
    folder = root / name / version
    folder.mkdir(parents=True)
    base = name.split("/")[0]
    data = arrays(shape=(6, 5))
    infos = []
    for split in settings["splits"]:
        images, labels = data[f"x_{split}"], data[f"y_{split}"]
        path = folder / f"{base}-{split}.{settings['format']}-00000-of-00001"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for image, label in zip(images, labels, strict=True):
            png = io.BytesIO()
            Image.fromarray(image.astype(settings["pixels"])).save(png, "png")
            example = tf_example_pb2.Example()
            example.features.feature["image"].bytes_list.value.append(png.getvalue())
            example.features.feature["label"].int64_list.value.append(int(label))
            writer.write(example.SerializeToString())
        writer.close()
        infos.append({"name": split, "numBytes": "1", "shardLengths": [str(len(labels))]})
    info = {
        "name": base,
        "version": version,
        "fileFormat": settings["format"],
        "splits": [
            {"filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"} | split
            for split in infos
        ],
    }
    kinds = "tensorflow_datasets.core.features."
    dimensions = [str(n) for n in settings["shape"]]
    features = {
        "image": {
            "pythonClassName": kinds + "image_feature.Image",
            "image": {"shape": {"dimensions": dimensions}, "dtype": "uint8"},
        },
        "label": {
            "pythonClassName": kinds + settings["label"],
            "classLabel": {"numClasses": "4"},
        },
    }
    if settings["label"] == "text_feature.Text":
        features["label"] = {"pythonClassName": kinds + "text_feature.Text", "text": {}}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "features.json").write_text(
        json.dumps(
            {
                "pythonClassName": kinds + "features_dict.FeaturesDict",
                "featuresDict": {"features": features},
            }
        )
    )
    return folder


def shares(labels: np.ndarray, classes: int) -> np.ndarray:
    return np.bincount(labels, minlength=classes)


def refusal(*args, **kwargs) -> str:
    """The message with which `load` refuses, once seen to be one line."""
    with pytest.raises(InputError) as error:
        load(*args, **kwargs)
    message = str(error.value)
    assert "\n" not in message and message[-1] in ".?"
    return message
