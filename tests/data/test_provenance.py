"""What a network was trained on: said by its file, compared with the data at hand."""

import json

import numpy as np
import pytest

from ccsrp_jax.data import provenance
from ccsrp_jax.data.datasets import from_arrays, load
from ccsrp_jax.data.division import SplitSettings, split_digest
from ccsrp_jax.data.splits import Split
from ccsrp_jax.utils.errors import InputError

RECIPE = {"epochs": 3, "learning_rate": 0.1}


def described(data, **limits):
    return provenance.describe("digits", data.record, recipe=RECIPE, **limits)


@pytest.fixture(scope="module")
def origin():
    return described(load("digits", seed=1))


def test_it_is_plain_json_and_names_data_seed_and_recipe(origin):
    assert json.loads(json.dumps(origin)) == origin
    assert (origin["dataset"], origin["seed"], origin["search_fraction"]) == ("digits", 1, 0.2)
    other = provenance.describe("digits", load("digits", seed=1).record, recipe={"epochs": 4})
    assert origin["recipe_sha256"] != other["recipe_sha256"]
    assert {name for name in origin if origin[name] != other[name]} == {"recipe_sha256"}


@pytest.mark.parametrize("limits", ({}, {"test_images": 50}, {"train_images": 90}))
def test_the_same_split_is_taken_whatever_the_limits(origin, limits):
    provenance.check("n", origin, load("digits", seed=1, **limits).record, also_search=True)


def test_the_split_of_another_seed_is_refused(origin):
    record = load("digits", seed=0).record
    for also_search in (False, True):
        with pytest.raises(InputError, match=r"n was trained on 'digits', divided with seed 1"):
            provenance.check("n", origin, record, also_search=also_search)


def arrays(seed=0, flip=None):
    random = np.random.default_rng(seed)
    images, labels = random.integers(0, 255, (60, 4, 4, 1), np.uint8), np.arange(60) % 3
    test, test_labels = images[40:].copy(), labels[40:].copy()
    if flip == "pixel":
        test[3, 2, 1, 0] ^= 1
    if flip == "label":
        test_labels[0] ^= 1
    if flip == "order":
        test, test_labels = test[::-1], test_labels[::-1]
    return images[:40], labels[:40], test, test_labels


@pytest.mark.parametrize("flip", ("pixel", "label", "order"))
def test_any_change_of_an_official_test_split_is_noticed(flip):
    origin = described(from_arrays(*arrays()))
    provenance.check("n", origin, from_arrays(*arrays()).record)
    with pytest.raises(InputError, match="are others"):
        provenance.check("n", origin, from_arrays(*arrays(flip=flip)).record)


@pytest.mark.parametrize("changed", ({"seed": 5}, {"search_fraction": 0.3}))
def test_official_splits_suit_any_seed_but_a_selection_needs_the_same(changed):
    origin = described(from_arrays(*arrays()))
    record = from_arrays(*arrays(), settings=SplitSettings(**changed)).record
    provenance.check("n", origin, record)
    with pytest.raises(InputError, match="may have been trained on images that seed"):
        provenance.check("n", origin, record, also_search=True)


@pytest.mark.parametrize("name", ("dataset", "seed", "train_and_test_sha256", "search_fraction"))
def test_a_provenance_without_what_is_compared_is_refused(origin, name):
    cut = {key: value for key, value in origin.items() if key != name}
    with pytest.raises(InputError, match=f"does not say the {name}"):
        provenance.check("n", cut, load("digits", seed=1).record)


@pytest.mark.parametrize("value", ("1", None, [1], {"a": 1}, float("nan")))
def test_a_provenance_of_wrong_types_is_a_mismatch(origin, value):
    for name in ("train_and_test_sha256", "seed"):
        with pytest.raises(InputError):
            provenance.check(
                "n", origin | {name: value}, load("digits", seed=1).record, also_search=True
            )


def test_drawn_splits_are_told_from_official_ones():
    drawn = load("digits", seed=2).record
    assert provenance.is_drawn(drawn) and "seed 2" in provenance.not_known("n", drawn)
    assert not provenance.is_drawn(from_arrays(*arrays()).record)


def test_the_digest_of_a_split_tells_types_shapes_and_values_apart():
    images, labels = np.zeros((2, 2, 3, 1), np.uint8), np.array([0, 1], np.int32)
    others = [
        Split(images, labels),
        Split(images.reshape(2, 3, 2, 1), labels),
        Split(images.astype(np.float32), labels),
        Split(images, labels[::-1]),
        Split(images + 1, labels),
    ]
    assert len({split_digest(split) for split in others}) == len(others)
    assert split_digest(Split(images, labels.astype(np.int64))) == split_digest(others[0])
