"""A run that begins with a trained network: only on the splits that this was trained with."""

import dataclasses

import pytest
from conftest import busy

from ccsrp_jax import cli
from ccsrp_jax.data import provenance
from ccsrp_jax.data.datasets import load
from ccsrp_jax.networks import serialization, zoo
from ccsrp_jax.pipeline import run
from ccsrp_jax.pipeline.config import Config, Training
from ccsrp_jax.pipeline.stages import data_of, provenance_of_run
from ccsrp_jax.utils.console import Terminal


@pytest.fixture
def dense(tmp_path):
    config = Config(seed=1)
    architecture = zoo.plain((4,), (8, 8, 1), 10, time_steps=2)
    path = tmp_path / "dense.safetensors"
    origin = provenance_of_run(config, data_of(config))
    serialization.save(path, architecture, busy(architecture, seed=0), origin)
    return path


@pytest.mark.parametrize(
    ("flags", "says"),
    (
        (("--seed", "0"), "was trained on 'digits', divided with seed 1"),
        (("--seed", "1", "--search-fraction", "0.3"), "may have been trained on images that seed"),
    ),
)
def test_a_run_on_other_splits_is_refused_before_it_writes(dense, tmp_path, capsys, flags, says):
    folder = tmp_path / "run"
    assert cli.main(["--dense", str(dense), "--run-dir", str(folder), *flags]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1 and not folder.exists()


@pytest.mark.parametrize("limits", ({}, {"train_images": 100, "search_images": 50}))
def test_a_run_on_the_same_splits_hands_the_provenance_on(dense, limits):
    config = Config(seed=1, dense=str(dense), **limits)
    data = data_of(config)
    _, _, origin = run.load_dense(config, data, Terminal())
    assert origin == provenance_of_run(config, data)
    assert (origin["seed"], origin["train_images"]) == (1, limits.get("train_images"))


def test_an_old_network_is_taken_with_a_warning_and_its_provenance_stays_unknown(dense, capsys):
    serialization.save(dense, *serialization.load(dense))
    config = Config(seed=4, dense=str(dense))
    _, _, origin = run.load_dense(config, data_of(config), Terminal())
    said = " ".join(capsys.readouterr().out.split())
    assert origin is None and "does not say what it was trained on" in said and "seed 4" in said


def test_what_a_run_says_of_its_networks_names_its_recipe_and_splits():
    config = Config(seed=2, train_images=300)
    data = data_of(config)
    origin = provenance_of_run(config, data)
    provenance.check("n", origin, load("digits", seed=2).record, also_search=True)
    other = Config(seed=2, train_images=300, training=Config().training.__class__(epochs=3))
    assert provenance_of_run(other, data)["recipe_sha256"] != origin["recipe_sha256"]


def test_files_say_the_trainings_that_their_network_went_through(dense):
    """Those of the file that a run began with, not the run's own dense recipe."""
    config = Config(seed=1, dense=str(dense), training=Training(adversarial=False))
    data = data_of(config)
    architecture, _, origin = run.load_dense(config, data, Terminal())
    [recipe] = origin["trainings"]
    assert recipe["adversarial"]["steps"] == Config().training.attack_steps
    tuned = dataclasses.asdict(config.finetune_recipe)
    further = provenance.trained_further(origin, tuned)
    assert further["trainings"] == [recipe, tuned] and origin["trainings"] == [recipe]
    assert provenance.trained_further(None, tuned) is None
    old = {"dataset": "digits"}  # of a file of an earlier version
    assert provenance.trained_further(old, tuned) == old
    assert run.model_name(config, architecture) == (
        "dense.safetensors (1 convolutional and 1 dense layers)"
    )
    assert run.model_name(Config(model="medium"), architecture) == "medium"
