"""Data sets: what the splits are, that a seed fixes them, and what bad input is told."""

import hashlib
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from sklearn.datasets import load_digits
from tensorflow_datasets.proto import tf_example_pb2

from ccsrp_jax.data import prepare as preparing
from ccsrp_jax.data.datasets import load
from ccsrp_jax.data.splits import to_unit_range
from ccsrp_jax.utils.errors import InputError

SHARED = Path(__file__).parents[3] / "shared" / "data" / "tfds"
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
            Image.fromarray(image).save(png, "png")
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


# --- splits ---------------------------------------------------------------------------------


def test_digits_splits_are_a_partition_of_the_source():
    data = load("digits")
    source = load_digits()
    expected = sorted(
        (image.tobytes(), label)
        for image, label in zip((source.images / 16).astype(np.float32), source.target, strict=True)
    )
    splits = (data.train, data.search, data.test)
    found = sorted(
        (image.tobytes(), label)
        for split in splits
        for image, label in zip(split.images, split.labels, strict=True)
    )
    assert found == expected
    assert [len(split.labels) for split in splits] == [1150, 288, 359]
    assert all(split.images.shape[1:] == (8, 8, 1) for split in splits)
    assert all(split.images.dtype == np.float32 for split in splits)
    assert all(split.labels.dtype == np.int32 for split in splits)


def test_digits_splits_are_stratified():
    data = load("digits", search_fraction=0.3)
    whole = shares(load_digits().target, 10) / 1797
    for split in (data.train, data.search, data.test):
        n = len(split.labels)
        np.testing.assert_allclose(shares(split.labels, 10), whole * n, atol=2)


def test_same_seed_gives_the_same_splits_and_another_seed_does_not():
    first, again, other = load("digits", seed=3), load("digits", seed=3), load("digits", seed=4)
    assert first.record == again.record
    for a, b in zip(first[1:4], again[1:4], strict=True):
        np.testing.assert_array_equal(a.images, b.images)
        np.testing.assert_array_equal(a.labels, b.labels)
    assert first.record["search_sha256"] != other.record["search_sha256"]
    assert not np.array_equal(first.test.images, other.test.images)


def test_splits_of_seed_0_stay_what_they_are():
    digest = load("digits").record["search_sha256"]
    assert digest == "28cd8c0f602065eed200a1bf2a3b398be61308c9a2cb4f4aa18f2a4fb8d2381b"


def test_search_is_held_out_of_the_training_images(tmp_path):
    content = arrays()
    data = load(write_npz(tmp_path), search_fraction=0.25)
    positions = data.record["search_indices"]
    rest = np.setdiff1d(np.arange(60), positions)
    assert positions == sorted(set(positions)) and len(positions) == 15
    for split, where in ((data.search, positions), (data.train, rest)):
        np.testing.assert_array_equal(split.images, content["x_train"][where])
        np.testing.assert_array_equal(split.labels, content["y_train"][where])
    np.testing.assert_array_equal(data.test.images, content["x_test"])
    np.testing.assert_array_equal(data.test.labels, content["y_test"])


@pytest.mark.parametrize("which", ["train", "search", "test"])
def test_a_cap_takes_a_stratified_part_of_its_split_and_leaves_the_others(which):
    whole, capped = load("digits"), load("digits", **{f"{which}_images": 50})
    for name in ("train", "search", "test"):
        a, b = getattr(whole, name), getattr(capped, name)
        if name != which:
            np.testing.assert_array_equal(a.images, b.images)
            continue
        assert len(b.labels) == 50 == capped.record["sizes"][name]
        np.testing.assert_allclose(shares(b.labels, 10), 5, atol=1)
        assert {x.tobytes() for x in b.images} <= {x.tobytes() for x in a.images}


def test_caps_keep_every_class_and_rare_classes_stay_in_training(tmp_path):
    labels = np.repeat(np.arange(4), (200, 30, 5, 1))
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    path = write_npz(tmp_path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    data = load(path, train_images=4, test_images=4)
    assert shares(data.train.labels, 4).tolist() == [1, 1, 1, 1]
    assert shares(data.test.labels, 4).tolist() == [1, 1, 1, 1]
    assert shares(load(path).search.labels, 4).tolist() == [40, 6, 1, 0]


def test_a_cap_above_the_size_takes_everything():
    assert load("digits", train_images=10**6).record["sizes"]["train"] == 1150


def test_record_is_json_and_describes_the_splits():
    record = load("digits", seed=5, search_images=100).record
    assert json.loads(json.dumps(record)) == record
    indices = np.array(record["search_indices"], "<i8")
    assert record["search_sha256"] == hashlib.sha256(indices.tobytes()).hexdigest()
    assert record["sizes"] == {"train": 1150, "search": 100, "test": 359}
    assert (record["seed"], record["search_fraction"], len(indices)) == (5, 0.2, 100)


# --- images ---------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [None, 1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_npz_round_trip(tmp_path, dtype, channels):
    shape = (6, 5) if channels is None else (6, 5, channels)
    content = arrays(shape=shape)
    if dtype != np.uint8:
        content["x_train"] = (content["x_train"] / 255).astype(dtype)
        content["x_test"] = (content["x_test"] / 255).astype(dtype)
    data = load(write_npz(tmp_path, **content))
    assert data.test.images.dtype == (np.uint8 if dtype == np.uint8 else np.float32)
    assert data.test.images.shape == (60, 6, 5, channels or 1)
    expected = content["x_test"].reshape(60, 6, 5, -1)
    np.testing.assert_allclose(data.test.images, expected, rtol=1e-7)
    assert (data.name, data.classes, data.augmentation) == ("mine", 4, "none")


def test_mean_and_std_are_those_of_the_training_split(tmp_path):
    data = load(write_npz(tmp_path))
    x = data.train.images / 255.0
    np.testing.assert_allclose(data.mean, x.mean((0, 1, 2)), atol=5.1e-5)
    np.testing.assert_allclose(data.std, x.std((0, 1, 2)), atol=5.1e-5)


def test_std_of_a_constant_channel_is_floored(tmp_path):
    x = arrays()["x_train"]
    x[..., 1] = 77
    data = load(write_npz(tmp_path, x_train=x))
    assert data.std[1] == 1e-3 and data.mean[1] == round(77 / 255, 4)


def test_unit_scales_bytes_and_passes_floats_also_inside_jit():
    pixels = np.arange(256, dtype=np.uint8)
    expected = np.arange(256) / 255
    for scaled in (to_unit_range(pixels), jax.jit(to_unit_range)(pixels)):
        assert scaled.dtype == np.float32
        np.testing.assert_allclose(scaled, expected, rtol=1e-6)
    floats = np.array([0, 0.3, 1], np.float32)
    np.testing.assert_array_equal(to_unit_range(floats), floats)
    np.testing.assert_array_equal(jax.jit(to_unit_range)(floats), floats)


# --- TFDS -----------------------------------------------------------------------------------

OFFICIAL = {  # sizes, first labels of the official training and test images, augmentation
    "cifar10": ((50000, 10000), [6, 9, 9, 4, 1], [3, 8, 8, 0, 6], "crop_flip"),
    "mnist": ((60000, 10000), [5, 0, 4, 1, 9], [7, 2, 1, 0, 4], "shift"),
    "svhn_cropped": ((883, 200), [1, 9, 2, 3, 2], None, "shift"),
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_prepared_sets_are_read_whole_and_in_order(name):
    if not (SHARED / name).is_dir():
        pytest.skip(f"{SHARED / name} is absent")
    sizes, first_train, first_test, augmentation = OFFICIAL[name]
    data = load(name, data_dir=str(SHARED))
    count = sizes[0]
    searched = np.array(data.record["search_indices"])
    labels = np.full(count, -1)
    labels[searched] = data.search.labels
    labels[np.setdiff1d(np.arange(count), searched)] = data.train.labels
    assert labels[:5].tolist() == first_train
    if first_test:
        assert data.test.labels[:5].tolist() == first_test
    info = json.loads(next((SHARED / name).glob("*/dataset_info.json")).read_text())
    assert data.record["version"] == info["version"]
    stated = {s["name"]: sum(map(int, s["shardLengths"])) for s in info["splits"]}
    assert data.record["official_sizes"] == stated == {"train": count, "test": sizes[1]}
    assert len(data.train.labels) + len(data.search.labels) == count
    assert data.train.images.dtype == np.uint8
    assert (data.classes, data.augmentation) == (10, augmentation)
    if name == "mnist":  # the figures everyone normalises with
        np.testing.assert_allclose((*data.mean, *data.std), (0.1307, 0.3081), atol=1e-3)
    if name == "cifar10":
        np.testing.assert_allclose(data.mean, (0.4914, 0.4822, 0.4465), atol=1e-3)
    part = "only a part of svhn_cropped, do not report results as svhn_cropped: 883 of 73257"
    assert (part in data.record["footnote"]) == (name == "svhn_cropped")


def test_tfds_pixels_and_labels_are_those_written(tmp_path):
    write_tfds(tmp_path)
    data = load("mnist", data_dir=str(tmp_path))
    content = arrays(shape=(6, 5))
    np.testing.assert_array_equal(data.test.images[..., 0], content["x_test"])
    np.testing.assert_array_equal(data.test.labels, content["y_test"])
    np.testing.assert_array_equal(
        data.search.images[..., 0], content["x_train"][data.record["search_indices"]]
    )
    assert data.classes == 4


def test_the_newest_prepared_version_is_read(tmp_path):
    for version in ("3.0.9", "3.0.10", "2.11.0"):
        write_tfds(tmp_path, version=version)
    assert load("mnist", data_dir=str(tmp_path)).record["version"] == "3.0.10"


def test_reading_needs_neither_tensorflow_nor_the_network(tmp_path):
    prepared, packages = tmp_path / "prepared", tmp_path / "packages"
    write_tfds(prepared)
    (packages / "tensorflow").mkdir(parents=True)  # found if looked for, fatal if imported
    (packages / "tensorflow" / "__init__.py").write_text("import os; os._exit(3)")
    script = f"""
import os, socket, sys
sys.path.insert(0, {str(packages)!r})
socket.socket.connect = socket.getaddrinfo = lambda *args, **kwargs: os._exit(4)
from ccsrp_jax import data
assert not [name for name in ("tensorflow_datasets", "sklearn") if name in sys.modules]
from ccsrp_jax.utils.errors import InputError
data.load("mnist", data_dir={str(prepared)!r})
for name in ("cifar10", "nosuchset"):
    try: data.load(name, data_dir={str(prepared)!r})
    except InputError: pass
    else: raise AssertionError(name)
assert "tensorflow" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in prepared.iterdir()] == ["mnist"]  # nothing was written


# --- bad input ------------------------------------------------------------------------------


def refusal(*args, **kwargs) -> str:
    """The message with which `load` refuses, once seen to be one line."""
    with pytest.raises(InputError) as error:
        load(*args, **kwargs)
    message = str(error.value)
    assert "\n" not in message and message[-1] in ".?"
    return message


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("cifr10", ["'cifr10'", "did you mean cifar10"]),
        ("digit", ["'digit'", "digits"]),
        ("", ["''", ".npz"]),
        ("../mnist", ["'../mnist'"]),
        ("mine.npy", ["'mine.npy'", ".npz"]),
    ],
)
def test_unknown_names_are_told_the_nearest(tmp_path, name, parts):
    message = refusal(name, data_dir=str(tmp_path))
    assert all(part in message for part in ["unknown data set", *parts])


def test_missing_folders_are_named_with_the_way_out(tmp_path):
    absent = tmp_path / "no such"
    message = refusal("mnist", data_dir=str(absent))
    assert f"{absent} does not exist" in message and "--data-dir" in message
    message = refusal("mnist", data_dir=str(tmp_path))
    assert f"{tmp_path}/mnist/VERSION/features.json" in message
    assert f"`python -m ccsrp_jax.data.prepare mnist {tmp_path}`" in message


def test_a_set_with_configurations_lists_them(tmp_path):
    write_tfds(tmp_path, name="imagenette/160px", version="1.0.0")
    assert "imagenette/160px" in refusal("imagenette", data_dir=str(tmp_path))
    assert load("imagenette/160px", data_dir=str(tmp_path)).name == "imagenette/160px"


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"splits": ("train",)}, ["no test split", "only train"]),
        ({"splits": ("test",)}, ["no train split", "only test"]),
        ({"label": "text_feature.Text"}, ["no image-classification data set", "image, label"]),
        ({"shape": (-1, -1, 1)}, ["(None, None, 1)"]),
        ({"shape": (6, 5, 4)}, ["(6, 5, 4)", "1 or 3 channels"]),
        ({"shape": (7, 7, 1)}, ["cannot be read"]),
        ({"format": "tfrecord"}, ["cannot be read"]),
    ],
)
def test_unfit_tfds_sets_are_refused(tmp_path, changes, parts):
    write_tfds(tmp_path, **changes)
    message = refusal("mnist", data_dir=str(tmp_path))
    assert all(part in message for part in ["mnist", *parts])


@pytest.mark.parametrize(
    "file", ["mnist-train.array_record-00000-of-00001", "dataset_info.json", "features.json"]
)
@pytest.mark.parametrize("damage", ["missing", "empty", "garbled"])
def test_damaged_tfds_files_are_refused(tmp_path, file, damage):
    path = write_tfds(tmp_path) / file
    whole = path.read_bytes()
    path.unlink()
    if damage == "empty":
        path.touch()
    elif damage == "garbled":
        path.write_bytes(b"\0\1" * (len(whole) // 2))
    message = refusal("mnist", data_dir=str(tmp_path))
    gone = (file, damage) == ("features.json", "missing")
    assert ("VERSION/features.json" if gone else "cannot be read") in message


x, y = arrays()["x_train"], arrays()["y_train"]


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"x_test": None, "y_test": None}, ["has no x_test, y_test", "found x_train, y_train"]),
        ({"x_train": x.reshape(60, -1)}, ["x_train", "(60, 90)", "(N, H, W)"]),
        ({"x_train": x[:0], "y_train": y[:0]}, ["x_train", "(0, 6, 5, 3)"]),
        ({"x_test": x[:, :4]}, ["(6, 5, 3)", "(4, 5, 3)"]),
        ({"x_test": x[..., 0]}, ["(6, 5, 3)", "(6, 5, 1)"]),
        ({"y_train": y[:7]}, ["y_train", "(7,)", "60 images"]),
        ({"y_train": y[:, None]}, ["y_train", "(60, 1)"]),
        ({"y_test": np.int64(3)}, ["y_test", "()"]),
        ({"y_train": y.astype(float)}, ["y_train", "float64", "integers"]),
        ({"y_train": y.astype(str)}, ["y_train", "integers"]),
        ({"y_train": y > 1}, ["y_train", "bool"]),
        ({"y_train": y - 1}, ["y_train", "-1"]),
        ({"y_train": y + 2**40}, ["y_train", str(2**40)]),
        ({"y_train": y + 10**6}, ["1000004 classes"]),
        ({"y_train": y * 0}, ["y_train", "label 0 only"]),
        ({"y_test": y + 1}, ["y_test", "1 to 4", "0 to 3"]),
        ({"y_test": y - 1}, ["y_test", "-1 to 2"]),
        ({"x_train": x.astype(np.int64)}, ["x_train", "int64", "uint8"]),
        ({"x_train": x.astype(complex)}, ["x_train", "complex128"]),
        ({"x_train": x.astype(np.float32)}, ["x_train", "0 to 255", "divide by 255"]),
        ({"x_train": x / 255 - 0.5}, ["x_train", "-0.5 to 0.5"]),
        ({"x_test": np.where(x == x[3, 2, 1, 0], np.nan, x / 255)}, ["x_test", "NaN"]),
        ({"x_test": np.where(x == x[3, 2, 1, 0], np.inf, x / 255)}, ["x_test", "inf"]),
        ({"x_train": x.astype(object)}, ["plain number arrays", "allow_pickle"]),
    ],
)
def test_unfit_arrays_are_refused(tmp_path, changes, parts):
    message = refusal(write_npz(tmp_path, **changes))
    assert all(part in message for part in ["mine.npz", *parts]), message


def test_files_that_are_no_npz_are_refused(tmp_path):
    path = tmp_path / "mine.npz"
    assert f"no file {path}" in refusal(str(path))
    path.mkdir()
    assert f"no file {path}" in refusal(str(path))
    path.rmdir()
    write_npz(tmp_path)
    whole = path.read_bytes()
    npy = io.BytesIO()
    np.save(npy, x)
    for content in (b"", b"not a zip", whole[: len(whole) // 2], npy.getvalue()):
        path.write_bytes(content)
        assert f"{path} is no .npz" in refusal(str(path))
    broken = bytearray(whole)
    broken[1000:1100] = bytes(100)  # inside x_train: the zip opens, its checksum fails
    path.write_bytes(broken)
    assert f"{path} cannot be read" in refusal(str(path))
    with zipfile.ZipFile(path, "w") as file:
        for key in NPZ:
            file.writestr(key, b"no array")
    assert "x_train of mine.npz" in refusal(str(path))


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_search_fraction_must_be_a_share(share):
    message = refusal("digits", search_fraction=share)
    assert f"search_fraction {share}" in message and "(0, 1)" in message


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_a_share_that_leaves_too_few_images_is_refused(share):
    message = refusal("digits", search_fraction=share)
    assert f"search_fraction {share}" in message and "10 classes" in message


@pytest.mark.parametrize("part", ["train", "search", "test"])
@pytest.mark.parametrize("cap", [9, 0, -1])
def test_caps_below_the_number_of_classes_are_refused(part, cap):
    message = refusal("digits", **{f"{part}_images": cap})
    assert f"{part}_images {cap} is below the 10 classes" in message


def test_a_negative_seed_is_refused():
    assert "seed -1" in refusal("digits", seed=-1)


# --- preparing ------------------------------------------------------------------------------


def test_preparing_without_tensorflow_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(preparing.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs TensorFlow.*\[prepare\]"):
        preparing.prepare("mnist", str(tmp_path))
    assert preparing.main(["mnist", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: preparing mnist needs TensorFlow")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "part"), [("mnits", "mnist"), ("digits", "no preparing")])
def test_what_cannot_be_prepared_is_refused(tmp_path, name, part):
    with pytest.raises(InputError, match=part):
        preparing.prepare(name, str(tmp_path))
