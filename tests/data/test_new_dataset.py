"""A data set that the library does not know: from arrays in memory, and by a reader of its own."""

import hashlib

import jax
import numpy as np
import pytest
from data_files import arrays, shares, write_npz
from sklearn.datasets import load_digits

import ccsrp_jax as cc
from ccsrp_jax.data import datasets
from ccsrp_jax.data.source import SourceDataset
from ccsrp_jax.data.splits import Split


def parity() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits, to be classified as even or odd."""
    source = load_digits()
    return (source.images / 16).astype(np.float32), source.target % 2


def test_a_data_set_from_arrays_is_divided_and_trained_on():
    images, labels = parity()
    settings = cc.data.SplitSettings(seed=3, search_fraction=0.25, test_images=200)
    data = cc.data.from_arrays(
        images[:1200], labels[:1200], images[1200:], labels[1200:], name="parity", settings=settings
    )
    assert (data.name, data.classes, data.encoding) == ("parity", 2, "direct")
    searched = data.record["search_indices"]
    rest = np.setdiff1d(np.arange(1200), searched)
    assert len(searched) == 300 and len(data.test.labels) == 200
    for split, where in ((data.search, searched), (data.train, rest)):
        np.testing.assert_array_equal(split.images[..., 0], images[where])
        np.testing.assert_array_equal(split.labels, labels[where])
    np.testing.assert_allclose(shares(data.search.labels, 2), shares(labels[:1200], 2) / 4, atol=1)
    tested = {image.tobytes() for image in data.test.images}
    assert tested <= {image[..., None].tobytes() for image in images[1200:]}
    np.testing.assert_allclose(data.mean, images[rest].mean(), atol=5.1e-5)

    architecture = cc.plain((8, "A"), (8, 8, 1), 2, time_steps=2, mean=data.mean, std=data.std)
    variables = cc.init(jax.random.key(0), architecture)
    recipe = cc.Recipe(epochs=4, batch_size=60, learning_rate=1e-2)
    classifier = cc.Classifier(architecture)
    trained = cc.train(jax.random.key(1), classifier, variables, {}, data.train, recipe)
    hits = cc.correct(classifier, (trained, {}), data.test, batch_size=100)
    assert np.mean(hits) > 0.75  # of which 0.5 is chance


def test_arrays_in_memory_are_divided_as_those_of_a_file(tmp_path):
    content = arrays()
    loaded = cc.load_data(write_npz(tmp_path), seed=2)
    made = cc.data.from_arrays(**content, name="mine", settings=cc.data.SplitSettings(seed=2))
    for ours, theirs in zip(made[1:4], loaded[1:4], strict=True):
        np.testing.assert_array_equal(ours.images, theirs.images)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
    assert made.record["search_sha256"] == loaded.record["search_sha256"]
    assert (made.mean, made.std, made.classes) == (loaded.mean, loaded.std, loaded.classes)


def test_the_record_of_arrays_changes_with_a_pixel():
    content = arrays()
    before = cc.data.from_arrays(**content).record
    digest = hashlib.sha256(b"".join(content[key].tobytes() for key in content))
    assert before["version"] == f"sha256 {digest.hexdigest()}"
    content["x_test"][5, 0, 0, 0] ^= 1
    assert cc.data.from_arrays(**content).record != before


def test_unfit_arrays_in_memory_are_refused_by_their_name():
    content = arrays()
    with pytest.raises(cc.InputError, match="y_test of faces has shape"):
        cc.data.from_arrays(**content | {"y_test": content["y_test"][:7]}, name="faces")


def test_a_reader_makes_a_data_set_known_by_its_name(monkeypatch):
    def read(options):
        images, labels = parity()
        whole = Split(images[..., None], labels.astype(np.int32))
        train, test = (
            Split(*(part[half] for part in whole)) for half in (np.s_[:900], np.s_[900:])
        )
        return SourceDataset(
            "parity", train, test, 2, "shift", source=str(options.data_dir), version="1"
        )

    monkeypatch.setitem(datasets.READERS, "parity", read)
    data = cc.load_data("parity", data_dir="somewhere", train_images=100)
    assert (data.name, data.record["source"], len(data.train.labels)) == (
        "parity",
        "somewhere",
        100,
    )
    np.testing.assert_array_equal(data.test.images[..., 0], parity()[0][900:])
    with pytest.raises(cc.InputError, match="expected digits, nmnist, parity, a path that ends in"):
        cc.load_data("partiy")
