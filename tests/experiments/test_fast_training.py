"""The ablation of fast training: every ingredient is a recipe; it resumes by ingredient."""

import json

import pytest
from conftest import experiment

from ccsrp_jax.networks.cost import layer_macs
from ccsrp_jax.networks.zoo import build
from ccsrp_jax.training.throughput import training_macs


@pytest.fixture(scope="module")
def script():
    return experiment("fast_training")


def test_every_ingredient_is_a_recipe_that_differs_from_the_base_in_what_it_names(script):
    settings = script.Settings()
    base = script.recipe_of(settings, {})
    found = {name: script.recipe_of(settings, each) for name, each in script.INGREDIENTS.items()}
    assert found.pop("base") == base
    assert base not in found.values() and len({repr(each) for each in found.values()}) == len(found)


def test_a_relu_start_of_equal_cost_has_more_epochs_of_it(script):
    settings, model = script.Settings(), build("wide5", (32, 32, 3), 10, time_steps=2)
    names = ("base", "relu start", "relu start, equal MACs")
    recipes = [script.recipe_of(settings, script.INGREDIENTS[name])[0] for name in names]
    costs = [sum(training_macs(model, each, i) for i in range(each.epochs)) for each in recipes]
    # constant layers are computed once in either, and the first epoch is clean
    assert costs[1] < 0.8 * costs[0] and abs(costs[2] - costs[0]) < 0.1 * costs[0]
    assert sum(layer_macs(model).values()) > 0


def test_it_resumes_by_ingredient_and_refuses_other_settings(script, tmp_path, capsys):
    out = tmp_path / "fast.json"
    flags = ["--dataset", "digits", "--train-images", "64", "--judge-images", "16", "--epochs", "3"]
    flags += ["--width", "0.05", "--batch-size", "32", "--out", str(out), "--only"]
    assert script.main([*flags, "base"]) == 0
    first = json.loads(out.read_text())["rows"]["base"]
    assert first["images"] == 16 and len(first["epochs"]) == 3
    assert first["robust_accuracy"] <= first["pgd_accuracy"] <= first["accuracy"]
    assert script.main([*flags, "base", "relu start"]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert rows["base"] == first and rows["relu start"]["macs"] < first["macs"]
    assert "relu start: accuracy" in capsys.readouterr().out
    assert script.main([*flags, "base", "--seed", "1"]) != 0
    assert "other settings" in capsys.readouterr().err
    assert json.loads(out.read_text())["rows"] == rows
