"""Data that cannot teach: what is refused, and what is named in a warning."""

import json
import logging

import numpy as np
import pytest
from data_files import arrays, refusal, write_npz, write_tfds

import ccsrp_jax as cc
from ccsrp_jax.data import datasets
from ccsrp_jax.data.source import SourceDataset
from ccsrp_jax.data.splits import Split
from ccsrp_jax.pipeline.parse_config import parse
from ccsrp_jax.pipeline.run import run
from ccsrp_jax.utils.console import Terminal
from ccsrp_jax.utils.errors import InputError


def warnings_of(folder, **changes) -> list[str]:
    said = []
    data = cc.load_data(write_npz(folder, **changes), warn=said.append)
    assert said == data.record["warnings"] == json.loads(json.dumps(said))
    assert all("\n" not in text and text.startswith("mine: ") for text in said)
    return said


def test_sound_images_get_no_warning(tmp_path):
    assert warnings_of(tmp_path) == []
    assert cc.load_data("digits").record["warnings"] == []


x, y = arrays()["x_train"], arrays()["y_train"]
x_test, y_test = arrays()["x_test"], arrays()["y_test"]
unit = x / np.float32(255)
blank = np.where(np.arange(60)[:, None, None, None] % 20 == 7, 9, x).astype(np.uint8)
one_channel = x.copy()
one_channel[..., 1] = 7


@pytest.mark.parametrize(
    "changes, parts",
    (
        ({"y_train": np.where(y == 2, 4, y)}, ["training images have none of class 2, of 5"]),
        ({"y_train": y + 1}, ["training images have none of class 0, of 5"]),
        ({"y_train": y % 3 * 5}, ["none of class 1, 2, 3, 4, 6 and 3 more, of 11 classes"]),
        ({"y_test": np.where(y_test == 2, 1, y_test)}, ["test images have none of class 2, of 4"]),
        ({"y_test": y_test * 0 + 3}, ["test images are of class 3 only, of 4 classes"]),
        ({"x_train": x * 0 + 9}, ["all training images are the same", "same value in all pixels"]),
        ({"x_train": np.repeat(x[:1], 60, 0)}, ["all training and search images are the same"]),
        ({"x_train": blank}, ["training images have the same value in all pixels, the first of"]),
        ({"x_test": blank}, ["3 of 60 test images have the same value in all pixels"]),
        ({"x_train": one_channel}, ["channel 1 has the same value in all training images"]),
        ({"x_train": x // 128}, ["largest pixel of the training images is 1 of type uint8"]),
        ({"x_train": unit / 255}, ["largest pixel of the training images is 0.0039"]),
        ({"x_test": x_test // 16}, ["largest pixel of the test images is 15 of type uint8"]),
        ({"x_test": x}, ["60 of 60 test images are also training or search images"]),
        ({"x_test": np.concatenate([x[:5], x_test[5:]])}, ["5 of 60 test images are also"]),
        (
            {"x_train": x[np.arange(60) // 2]},
            ["different training images come with several labels"],
        ),
        (
            {"x_train": x.reshape(60, 3, 6, 5), "x_test": x_test.reshape(60, 3, 6, 5)},
            ["3 rows, 6 columns and 5 channels", "if the channels come first"],
        ),
    ),
)
def test_what_may_be_wrong_is_named(tmp_path, changes, parts):
    said = "\n".join(warnings_of(tmp_path, **changes))
    assert all(part in said for part in parts), said


@pytest.mark.parametrize("channels", (1, 2, 3, 4))
@pytest.mark.parametrize("side", (5, 8, 32))
def test_square_images_with_their_channels_first_are_refused(tmp_path, channels, side):
    content = arrays(shape=(channels, side, side))
    message = refusal(write_npz(tmp_path, **content))
    assert f"have {channels} rows and {side} channels" in message
    assert "(N, H, W, C), by numpy.moveaxis(x, 1, -1)" in message
    turned = {key: np.moveaxis(content[key], 1, -1) for key in ("x_train", "x_test")}
    assert cc.load_data(write_npz(tmp_path, **content | turned)).test.images.shape[-1] == channels


@pytest.mark.parametrize("shape", ((1, 9), (1, 9, 3), (3, 40), (4, 4, 4), (1, 1, 12), (3, 3, 9)))
def test_flat_and_small_images_are_no_channels(tmp_path, shape):
    content = arrays(shape=shape)
    assert not [text for text in warnings_of(tmp_path, **content) if "channels" in text]


@pytest.mark.parametrize("label", (0, 1, 3))
def test_images_of_one_class_are_refused_from_every_source(tmp_path, monkeypatch, label):
    changed = arrays() | {"y_train": y * 0 + label}
    with pytest.raises(InputError, match=f"label {label} only"):
        cc.data.from_arrays(**changed)
    assert f"label {label} only" in refusal(write_npz(tmp_path, y_train=y * 0 + label))

    def read(options):
        train, test = Split(x, (y * 0 + label).astype(np.int32)), Split(x_test, y_test)
        return SourceDataset("mine", train, test, 4, "none", source="a reader", version="1")

    monkeypatch.setitem(datasets.READERS, "mine", read)
    assert f"of class {label} only" in refusal("mine")


def test_a_prepared_set_without_a_class_is_named(tmp_path):
    folder = write_tfds(tmp_path)
    text = (folder / "features.json").read_text()
    (folder / "features.json").write_text(text.replace('"numClasses": "4"', '"numClasses": "6"'))
    said = []
    cc.load_data("mnist", data_dir=str(tmp_path), warn=said.append)
    assert "mnist: the training images have none of class 4, 5, of 6 classes." in said


def test_a_split_without_images_is_refused(monkeypatch):
    def read(options):
        train = Split(x, y.astype(np.int32))
        return SourceDataset("mine", train, Split(x[:0], train.labels[:0]), 4, "none", "r", "1")

    monkeypatch.setitem(datasets.READERS, "mine", read)
    assert "mine (r) has no test images" in refusal("mine")


def test_warnings_reach_the_log_by_default(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="ccsrp_jax"):
        cc.load_data(write_npz(tmp_path, x_test=x))
        cc.data.from_arrays(**arrays() | {"x_test": x}, name="mine")
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2 and lines[0] == lines[1]
    assert lines[0].startswith("warning: mine: 60 of 60 test images are also")


def test_a_run_says_a_warning_in_one_line(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(Terminal, "line", lambda self, text: lines.append(text))
    monkeypatch.setattr("ccsrp_jax.pipeline.run._execute", lambda *args: {})
    flags = ["--dataset", write_npz(tmp_path, x_test=x), "--run-dir", str(tmp_path / "run")]
    run(parse(flags))
    assert sum(line.startswith("warning: mine: 60 of 60 test images") for line in lines) == 1


@pytest.mark.parametrize(
    "given, part",
    (
        ({"x_train": [[1, 2], [3]]}, "x_train of arrays is no array"),
        ({"y_train": object()}, "y_train of arrays has type object"),
        ({"x_train": None}, "x_train of arrays has type object"),
        ({"y_test": "labels"}, "y_test of arrays has type"),
        ({"y_train": {"a": 1}}, "y_train of arrays has type object"),
    ),
)
def test_what_is_no_array_is_refused(given, part):
    with pytest.raises(InputError) as error:
        cc.data.from_arrays(**arrays() | given)
    assert part in str(error.value)


def test_lists_and_jax_arrays_are_taken_as_arrays():
    import jax.numpy as jnp

    content = arrays()
    lists = {key: content[key].tolist() for key in ("y_train", "y_test")}
    images = {key: jnp.asarray(content[key]) for key in ("x_train", "x_test")}
    made, expected = cc.data.from_arrays(**lists, **images), cc.data.from_arrays(**content)
    assert made.record["version"] == expected.record["version"]
    np.testing.assert_array_equal(made.train.images, expected.train.images)


@pytest.mark.parametrize("name", ("seed", "train_images", "search_images", "test_images"))
def test_numbers_of_numpy_are_recorded_as_plain_ones(name):
    plain, numpy = (cc.load_data("digits", **{name: kind(50)}) for kind in (int, np.int64))
    assert json.loads(json.dumps(numpy.record)) == plain.record
