"""TFDS data sets: what is read of prepared ones, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import thinned
from data_files import arrays, refusal, write_tfds

from ccsrp_jax.data import prepare as preparing
from ccsrp_jax.data.datasets import load
from ccsrp_jax.utils.errors import InputError

SHARED = Path(__file__).parents[3] / "shared" / "data" / "tfds"


OFFICIAL = {  # sizes, first labels of the official training and test images, augmentation
    "cifar10": ((50000, 10000), [6, 9, 9, 4, 1], [3, 8, 8, 0, 6], "crop_flip"),
    "mnist": ((60000, 10000), [5, 0, 4, 1, 9], [7, 2, 1, 0, 4], "shift"),
    "svhn_cropped": ((883, 200), [1, 9, 2, 3, 2], None, "shift"),
}


@pytest.mark.parametrize("name", thinned(OFFICIAL, ("mnist", "svhn_cropped")))
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
    assert f"`ccsrp prepare mnist {tmp_path}`" in message


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
        ({"shape": (7, 7, 1)}, ["cannot be read", "train image 0 has 6 x 5 pixels", "7 x 7"]),
        ({"shape": (5, 6, 1)}, ["cannot be read", "train image 0 has 6 x 5 pixels", "5 x 6"]),
        ({"shape": (30, 1, 1)}, ["train image 0 has 6 x 5 pixels", "30 x 1"]),
        ({"pixels": np.uint16}, ["train image 0 has pixels of type I;16"]),
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


@pytest.mark.parametrize("format", ("tfrecord", "riegeli", "parquet"))
def test_a_set_in_another_format_is_kept_and_the_way_to_this_one_is_told(tmp_path, format):
    folder = write_tfds(tmp_path, format=format)
    before = sorted(path.read_bytes() for path in folder.iterdir())
    message = refusal("mnist", data_dir=str(tmp_path))
    assert f"mnist in {folder} is prepared as {format}, which only TensorFlow reads" in message
    assert "`ccsrp prepare mnist OTHER`" in message
    assert f"tfds convert_format --dataset_version_dir={folder}" in message
    assert "--out_dir=OTHER/mnist/3.0.1" in message and "--data-dir" in message
    assert "remove" not in message
    with pytest.raises(InputError, match=f"is prepared as {format}"):
        preparing.prepare("mnist", str(tmp_path))
    assert before == sorted(path.read_bytes() for path in folder.iterdir())


def test_a_format_that_is_not_recorded_is_the_one_that_tfds_takes_by_default(tmp_path):
    edit_json(write_tfds(tmp_path) / "dataset_info.json", lambda info: info.pop("fileFormat"))
    assert "is prepared as tfrecord" in refusal("mnist", data_dir=str(tmp_path))


def test_a_set_that_was_converted_in_its_folder_is_told_to_be_written_to_another(tmp_path):
    """TFDS itself opens the first format only."""

    def convert(info):
        info["fileFormat"], info["alternativeFileFormats"] = "tfrecord", ["array_record"]

    edit_json(write_tfds(tmp_path) / "dataset_info.json", convert)
    assert "--out_dir=OTHER/mnist/3.0.1" in refusal("mnist", data_dir=str(tmp_path))


def edit_json(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize("file", ("features.json", "dataset_info.json"))
@pytest.mark.parametrize("text", ("[]", "3", "null", '"text"', '{"a": []}', "{}", DEEP, "1" * 5000))
def test_settings_of_a_wrong_type_are_refused(tmp_path, file, text):
    (write_tfds(tmp_path) / file).write_text(text)
    message = refusal("mnist", data_dir=str(tmp_path))
    assert "cannot be read" in message or "is prepared as tfrecord" in message
    assert "remove" not in message


@pytest.mark.parametrize(
    "change",
    (
        lambda f: f["featuresDict"].update(features=[]),
        lambda f: f["featuresDict"]["features"].update(image=3),
        lambda f: f["featuresDict"]["features"]["image"].update(pythonClassName=3),
        lambda f: f["featuresDict"]["features"]["image"]["image"].update(shape=3),
        lambda f: f["featuresDict"]["features"]["label"]["classLabel"].update(numClasses="many"),
        lambda f: f["featuresDict"]["features"]["label"]["classLabel"].update(numClasses=10**400),
        lambda f: f["featuresDict"]["features"]["label"]["classLabel"].update(numClasses=2),
        lambda f: f.update(pythonClassName="no.such.Class"),
    ),
)
def test_features_of_a_wrong_type_are_refused(tmp_path, change):
    edit_json(write_tfds(tmp_path) / "features.json", change)
    refusal("mnist", data_dir=str(tmp_path))


def test_files_of_a_mac_beside_the_shards_are_passed_over(tmp_path):
    folder = write_tfds(tmp_path)
    for path in list(folder.iterdir()):
        (folder / f"._{path.name}").write_bytes(b"\0\5\x16\7")
    (folder.parent / "._3.0.1").write_bytes(b"\0\5\x16\7")
    assert load("mnist", data_dir=str(tmp_path)).classes == 4
