"""Splits: what they contain, that a seed determines them, and which settings are refused."""

import hashlib
import json

import jax
import numpy as np
import pytest
from data_files import arrays, refusal, shares, write_npz
from sklearn.datasets import load_digits

from ccsrp_jax.data.datasets import load
from ccsrp_jax.data.splits import to_unit_range


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


def test_to_unit_range_scales_bytes_and_keeps_floats_also_inside_jit():
    pixels = np.arange(256, dtype=np.uint8)
    expected = np.arange(256) / 255
    for scaled in (to_unit_range(pixels), jax.jit(to_unit_range)(pixels)):
        assert scaled.dtype == np.float32
        np.testing.assert_allclose(scaled, expected, rtol=1e-6)
    floats = np.array([0, 0.3, 1], np.float32)
    np.testing.assert_array_equal(to_unit_range(floats), floats)
    np.testing.assert_array_equal(jax.jit(to_unit_range)(floats), floats)


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
