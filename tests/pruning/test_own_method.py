"""A pruning method from outside the library: called, compared with others, and registered."""

import json

import jax
import numpy as np
import pytest
from conftest import busy, experiment, pruning_problem

from ccsrp_jax import cli
from ccsrp_jax.commands import compare_settings
from ccsrp_jax.networks import masks as masking
from ccsrp_jax.networks import serialization, zoo
from ccsrp_jax.pipeline.config import settings
from ccsrp_jax.pipeline.parse_config import parse
from ccsrp_jax.pruning import METHODS, Passes, Problem, Pruned, budget, finetune
from ccsrp_jax.utils import io

FLAGS = [
    *("--train-images", "64", "--search-images", "32", "--test-images", "32"),
    *("--time-steps", "2", "--rounds", "1", "--target-macs", "0.5", "--batch-size", "32"),
    *("--latency-batch", "8", "--width", "0.25", "--training.finetune-epochs", "1"),
    *("--training.batch-size", "32", "--training.attack-steps", "1"),
    *("--attack.search-steps", "1", "--attack.test-steps", "2", "--attack.suite", "pgd"),
]


def first_filters(key: jax.Array, problem: Problem, *, reverse: bool = False) -> Pruned:
    """Keeps the first (or last) filters of every group, the same share of each, and fine-tunes."""
    dense = masking.ones(problem.architecture)
    sign = 1 if reverse else -1
    scores = {name: sign * np.arange(len(mask), dtype=float) for name, mask in dense.items()}
    ranking = budget.uniform_ranking(scores)
    masks = budget.prune_to_budget(ranking, problem.cost(), problem.limit())
    variables, _ = finetune(key, problem, problem.variables, masks)
    return Pruned(variables, masks, Passes())


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run's settings and a dense network."""
    folder = tmp_path_factory.mktemp("run")
    architecture = zoo.build("small", (8, 8, 1), 10, width=0.25, time_steps=2)
    (folder / "networks").mkdir()
    network = folder / "networks" / "round00.safetensors"
    serialization.save(network, architecture, busy(architecture, seed=0))
    io.write_json(folder / "config.json", settings(parse(FLAGS)))
    return folder


@pytest.mark.parametrize("reverse", (False, True))
def test_a_method_from_outside_takes_a_problem_and_meets_its_target(digits, reverse):
    problem = pruning_problem(digits)
    pruned = first_filters(jax.random.key(0), problem, reverse=reverse)
    masking.check_fit(problem.architecture, pruned.masks)
    assert problem.cost()(pruned.masks) <= problem.limit()
    for mask in pruned.masks.values():
        kept = np.flatnonzero(mask)
        first = len(mask) - len(kept) if reverse else 0
        assert np.array_equal(kept, np.arange(first, first + len(kept)))


def test_a_method_from_outside_takes_part_in_a_comparison(run_dir, tmp_path, monkeypatch):
    script = experiment("compare_methods")
    monkeypatch.setitem(compare_settings.KNOWN, "first", first_filters)
    flags = ["--methods", "first", "l1", "--targets", "0.5", "--seeds", "0", "--epochs", "1"]
    assert script.main([str(run_dir), *flags, "--suite", "pgd", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "methods.json").read_text())
    cells = {cell["method"]: cell for cell in record["cells"]}
    assert cells.keys() == {"first", "l1"}
    assert cells["first"]["macs"] <= 0.5 * record["dense"]["macs"]
    assert cells["first"]["training"]["steps"] == cells["l1"]["training"]["steps"] == 2
    assert not cells["first"]["weights"]


@pytest.mark.slow
def test_a_registered_method_runs_through_the_main_job(run_dir, tmp_path, monkeypatch):
    """Registering is one entry of METHODS; the flag, its check and the summary follow from it."""
    flags = [*FLAGS, "--method", "first", "--run-dir", str(tmp_path / "run")]
    flags += ["--dense", str(run_dir / "networks" / "round00.safetensors")]
    assert cli.main(flags) == 2  # not registered yet
    monkeypatch.setitem(METHODS, "first", first_filters)
    assert cli.main(flags) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["method"] == "first"
    assert 0.3 < summary["pruned"]["macs"] / summary["dense"]["macs"] <= 0.5
