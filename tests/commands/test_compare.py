"""The comparison of methods as a user runs it, and single methods through the main job."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import busy

from ccsrp_jax import cli
from ccsrp_jax.commands import compare
from ccsrp_jax.data.splits import to_unit_range
from ccsrp_jax.networks import cost, serialization, zoo
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.pipeline import stages
from ccsrp_jax.pipeline.config import settings
from ccsrp_jax.pipeline.parse_config import parse
from ccsrp_jax.pipeline.tensorboard import TensorBoardWriter
from ccsrp_jax.pruning import METHODS
from ccsrp_jax.utils import digests, io

TINY = [
    *("--train-images", "64", "--search-images", "32", "--test-images", "32"),
    *("--time-steps", "2", "--rounds", "1", "--target-macs", "0.5", "--batch-size", "32"),
    *("--latency-batch", "8", "--width", "0.25", "--training.finetune-epochs", "1"),
    *("--training.batch-size", "32", "--training.attack-steps", "1"),
    *("--attack.search-steps", "1", "--attack.test-steps", "2", "--attack.suite", "pgd"),
]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """As much of a run as the comparison reads: settings and the dense network."""
    folder = tmp_path_factory.mktemp("run")
    config = parse(TINY)
    architecture = zoo.build("small", (8, 8, 1), 10, width=0.25, time_steps=2)
    (folder / "networks").mkdir()
    serialization.save(
        folder / "networks" / "round00.safetensors", architecture, busy(architecture, seed=0)
    )
    io.write_json(folder / "config.json", settings(config))
    return folder


COMPARE = ["--methods", "l1", "magnitude", "--targets", "0.5", "--epochs", "1", "--suite", "pgd"]


@pytest.fixture(scope="module")
def compared(run_dir):
    assert compare.main([str(run_dir), *COMPARE, "--seeds", "0", "1"]) == 0
    return run_dir / "methods"


def test_every_cell_has_the_same_training_and_meets_its_target(compared):
    record = json.loads((compared / "methods.json").read_text())
    cells, dense = record["cells"], record["dense"]
    assert {(c["method"], c["seed"]) for c in cells} == {
        (method, seed) for method in ("l1", "magnitude") for seed in (0, 1)
    }
    assert {c["training"]["steps"] for c in cells} == {2}
    for cell in cells:
        cost = "params" if cell["weights"] else "macs"
        assert 0.4 * dense[cost] < cell[cost] <= 0.5 * dense[cost]
        assert 0 <= cell["robust_accuracy"] <= cell["accuracy"] <= 1
        assert cell["search"]["forward"] == cell["search"]["backward"] == 0
    weights = [c for c in cells if c["weights"]]
    assert {c["macs"] for c in weights} == {dense["macs"]}
    assert all(c["synops"] < dense["synops"] for c in weights)
    assert record["device"] and record["versions"]["jax"] and record["caveat"]


def test_pruned_networks_are_kept_and_are_those_of_the_table(compared):
    test = stages.data_of(parse(TINY)).test
    cells = json.loads((compared / "methods.json").read_text())["cells"]
    assert len(list((compared / "networks").iterdir())) == len(cells)
    for cell in cells:
        name = f"{cell['method']}-{cell['target']:g}-{cell['seed']}.safetensors"
        architecture, variables = serialization.load(compared / "networks" / name)
        logits = Classifier(architecture)((variables, {}), to_unit_range(jnp.asarray(test.images)))
        right = np.asarray(logits.argmax(-1)) == test.labels
        assert right.mean() == pytest.approx(cell["accuracy"])
        assert sum(cost.macs(architecture).values()) == cell["macs"]


def test_the_page_shows_every_method(compared):
    page = (compared / "index.html").read_text()
    assert "l1" in page and "magnitude" in page and "Methods and sources" in page and "<svg" in page
    assert "http://" not in page and "https://" not in page  # self-contained


def test_finished_cells_are_not_computed_again(run_dir, compared):
    cells = sorted((compared / "cells").iterdir())
    before = {path.name: path.read_bytes() for path in cells}
    gone = before.pop(cells[0].name)
    cells[0].unlink()
    marked = digests.without_digest(json.loads(cells[1].read_text())) | {"accuracy": 0.125}
    io.write_json(cells[1], digests.with_digest(marked))
    assert compare.main([str(run_dir), *COMPARE, "--seeds", "0", "1"]) == 0
    assert json.loads(cells[1].read_text())["accuracy"] == 0.125
    again, first = json.loads(cells[0].read_text()), json.loads(gone)
    for name in ("accuracy", "robust_accuracy", "macs", "params", "synops", "kept"):
        assert again[name] == first[name]  # an interrupted cell gives what it would have given
    cells[1].write_bytes(before[cells[1].name])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--methods", "l2"], "method 'l2'"),
        (["--targets", "1.5"], "target fraction"),
        (["--epochs", "2"], "other settings"),
        (["--suite", "all"], "suite"),
    ],
)
def test_bad_input_is_one_sentence(run_dir, compared, capsys, flags, said):
    assert compare.main([str(run_dir), *COMPARE, *flags]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error and error.count("\n") == 1


@pytest.mark.parametrize("damage", ("accuracy", "target", "seed", "sha256"))
def test_a_cell_that_was_changed_is_refused(run_dir, compared, capsys, damage):
    cell = min((compared / "cells").iterdir())
    before = cell.read_bytes()
    io.write_json(cell, json.loads(before) | {damage: "0" * 64 if damage == "sha256" else 0.125})
    assert compare.main([str(run_dir), *COMPARE, "--only-report"]) == 2
    error = capsys.readouterr().err
    assert f"{cell} is damaged" in error and error.count("\n") == 1
    cell.write_bytes(before)


@pytest.mark.parametrize("changed", ("network", "splits"))
def test_cells_of_another_network_or_other_data_are_not_mixed(run_dir, compared, capsys, changed):
    about = compared / "about.json"
    before = about.read_bytes()
    record = json.loads(before)
    record["inputs"][changed] = "of another run"
    io.write_json(about, record)
    assert compare.main([str(run_dir), *COMPARE]) == 2
    error = capsys.readouterr().err
    assert "another dense network or other data" in error and error.count("\n") == 1
    about.write_bytes(before)


def test_a_method_that_cannot_reach_a_target_leaves_the_others(run_dir, tmp_path, capsys):
    # magnitude leaves the classifier whole, which has more than 1 % of all weights
    flags = [*COMPARE, "--targets", "0.5", "0.01", "--measure", "params", "--seeds", "0"]
    assert compare.main([str(run_dir), *flags, "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "magnitude at 0.01, seed 0 is left out: a target of 0.01 of" in said
    assert "Traceback" not in said
    cells = json.loads((tmp_path / "methods.json").read_text())["cells"]
    assert {(cell["method"], cell["target"]) for cell in cells} >= {("l1", 0.5), ("magnitude", 0.5)}


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    assert compare.main([str(tmp_path), *COMPARE]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_a_method_runs_through_the_main_job(run_dir, tmp_path):
    network = str(run_dir / "networks" / "round00.safetensors")
    flags = [*TINY, "--method", "magnitude", "--dense", network, "--run-dir", str(tmp_path / "run")]
    assert cli.main(flags) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    dense, pruned = summary["dense"], summary["pruned"]
    assert summary["method"] == "magnitude" and summary["chosen_round"] == 1
    assert 0.4 * dense["params"] < pruned["params"] <= 0.5 * dense["params"]
    assert pruned["macs"] == dense["macs"] and pruned["synops"] < dense["synops"]
    _, variables = serialization.load(tmp_path / "run" / "pruned.safetensors")
    assert sum(int((leaf == 0).sum()) for leaf in jax.tree.leaves(variables["params"])) > 100


@pytest.mark.slow
def test_rounds_of_the_main_job_splice_at_a_price(run_dir, tmp_path):
    network = str(run_dir / "networks" / "round00.safetensors")
    flags = ["--preset", "priced", "--search.generations", "2", "--search.population", "2"]
    flags += ["--search.levels", "0.8", "0.5", "--rounds", "2", "--tolerance", "1"]
    assert cli.main([*TINY, *flags, "--dense", network, "--run-dir", str(tmp_path / "run")]) == 0
    rows = (tmp_path / "run" / "archive.jsonl").read_text().splitlines()
    dense, first, second = (json.loads(row)["macs"] for row in rows)
    assert 0.6 < first / dense <= 0.5**0.5 and 0.4 < second / dense <= 0.5


def test_a_page_is_made_of_a_table_alone(compared, tmp_path):
    (tmp_path / "methods.json").write_bytes((compared / "methods.json").read_bytes())
    assert compare.main([str(tmp_path), "--only-report"]) == 0
    assert (tmp_path / "index.html").read_text() == (compared / "index.html").read_text()


def test_a_comparison_goes_on_from_a_table_alone(run_dir, compared, tmp_path, capsys):
    (tmp_path / "methods.json").write_bytes((compared / "methods.json").read_bytes())
    flags = [*COMPARE, "--methods", "l1", "random", "--seeds", "0", "--out", str(tmp_path)]
    assert compare.main([str(run_dir), *flags]) == 0
    said = capsys.readouterr().out
    assert "random at 0.5, seed 0: accuracy" in said and "l1 at" not in said
    old, new = (json.loads((d / "methods.json").read_text()) for d in (compared, tmp_path))
    assert [cell for cell in new["cells"] if cell["method"] != "random"] == old["cells"]
    assert new["dense"] == old["dense"] and len(new["cells"]) == len(old["cells"]) + 1


def test_an_unknown_method_is_named(tmp_path, capsys):
    assert cli.main([*TINY, "--method", "l2", "--run-dir", str(tmp_path)]) == 2
    assert "method 'l2'" in capsys.readouterr().err


def test_all_methods_are_functions_of_key_and_problem():
    assert len(METHODS) > 25 and next(iter(METHODS)) == "ccsrp"
    assert all(callable(method) for method in METHODS.values())


def test_tensorboard_shows_the_numbers_of_a_methods_rows(tmp_path):
    board = TensorBoardWriter(tmp_path, {})
    board.add({"stage": "search", "round": 1, "generation": 2, "kept": {"conv1": 3}, "loss": 0.5})
    board.add({"stage": "round", "round": 1, "method": "ccsrp", "search_seconds": 2})
    board._writer.close()  # it writes in a thread
    [path] = (tmp_path / "tensorboard").iterdir()
    content = path.read_bytes()
    assert b"search/loss" in content and b"round/search_seconds" in content
    assert b"kept" not in content and b"method" not in content
