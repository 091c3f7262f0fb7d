"""`ccsrp robustness` tests a network on the test split that it was not trained on."""

import json

import numpy as np
import pytest

from ccsrp_jax.commands import robustness as command
from ccsrp_jax.data import provenance
from ccsrp_jax.data.datasets import load
from ccsrp_jax.networks import serialization

pytestmark = pytest.mark.usefixtures("untyped")
FLAGS = ("--suite", "pgd", "--images", "12")


def save(path, network, dataset="digits", **settings):
    data = load(dataset, time_steps=3, **settings)
    origin = provenance.describe(dataset, data.record, recipe={})
    serialization.save(path, *network, origin)
    return path


@pytest.fixture
def saved(network, tmp_path):
    return save(tmp_path / "net.safetensors", network, seed=1)


def attacked_images(monkeypatch, flags):
    """The test images that the command gives to the suite."""
    seen = []

    def stop(classifier, state, split, **options):
        seen.append(np.asarray(split.images))
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "evaluate", stop)
    assert command.main([str(flag) for flag in flags]) == 130
    return seen[0]


@pytest.mark.parametrize("flags", ((), ("--seed", "0"), ("--seed", "7"), ("--dataset", "digits")))
def test_the_split_is_that_of_the_file_whatever_the_seed(saved, monkeypatch, flags):
    images = attacked_images(monkeypatch, (saved, *flags))
    np.testing.assert_array_equal(images, load("digits", seed=1).test.images)


def test_an_old_file_gets_the_split_of_the_seed_and_a_warning(
    network, tmp_path, monkeypatch, capsys
):
    path = tmp_path / "old.safetensors"
    serialization.save(path, *network)
    images = attacked_images(monkeypatch, (path, "--seed", "3"))
    np.testing.assert_array_equal(images, load("digits", seed=3).test.images)
    said = " ".join(capsys.readouterr().out.split())
    assert "does not say what it was trained on" in said and "seed 3" in said
    images = attacked_images(monkeypatch, (path, "--seed", "3", "--split-seed", "1"))
    np.testing.assert_array_equal(images, load("digits", seed=1).test.images)


@pytest.mark.parametrize("flags", (("--split-seed", "0"), ("--split-seed", "2", "--seed", "1")))
def test_another_split_is_refused(saved, capsys, flags):
    assert command.main([str(saved), *FLAGS, *flags]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "was trained on 'digits', divided with seed 1" in error
    assert len(list(saved.parent.iterdir())) == 1


def write_images(path, seed):
    random = np.random.default_rng(seed)
    images, labels = random.integers(0, 255, (100, 8, 8, 1), np.uint8), np.arange(100) % 10
    np.savez(path, x_train=images[:60], y_train=labels[:60], x_test=images[60:], y_test=labels[60:])


def test_other_data_under_the_same_name_is_refused(network, tmp_path, capsys, monkeypatch):
    data = tmp_path / "mine.npz"
    write_images(data, seed=0)
    saved = save(tmp_path / "net.safetensors", network, str(data))
    assert attacked_images(monkeypatch, (saved,)).shape == (40, 8, 8, 1)
    write_images(data, seed=1)
    for flags in ((), ("--dataset", str(data)), ("--dataset", "digits")):
        assert command.main([str(saved), *FLAGS, *flags]) == 2
        assert "was trained on 'mine'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "damage",
    (
        *({"seed": "one"}, {"seed": -1}, {"seed": 10**400}, {"dataset": 3}, {"dataset": None}),
        *({"search_fraction": "half"}, {"search_fraction": 2}, {"train_and_test_sha256": None}),
    ),
)
def test_a_file_that_says_nonsense_of_its_data_is_refused(saved, network, capsys, damage):
    origin = serialization.load_with_provenance(saved).provenance | damage
    serialization.save(saved, *network, origin)
    assert command.main([str(saved), *FLAGS]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_report_carries_what_the_network_was_trained_on(saved):
    assert command.main([str(saved), *FLAGS]) == 0
    record = json.loads((saved.parent / "robustness.json").read_text())
    assert record["split_seed"] == 1 and record["provenance"]["seed"] == 1
