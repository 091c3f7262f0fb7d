"""The committed results hold what the README and the experiment's docstring say of them."""

import json
from pathlib import Path

import pytest

RESULTS = Path(__file__).parents[1] / "experiments" / "results"


@pytest.fixture(params=["digits", "cifar10"])
def summary(request) -> dict:
    return json.loads((RESULTS / request.param / "summary.json").read_text())


def test_results_name_their_device_and_versions(summary):
    assert summary["device"] and summary["versions"].keys() >= {"jax", "flax", "evosax", "python"}
    assert "upper bound" in summary["attack"]["caveat"]


def test_digits_run_reached_its_targets():
    summary = json.loads((RESULTS / "digits" / "summary.json").read_text())
    dense, pruned = summary["dense"], summary["pruned"]
    assert dense["accuracy"] >= 0.97
    assert pruned["accuracy"] >= dense["accuracy"] - 0.015
    for measure in ("pgd_accuracy", "robust_accuracy"):
        assert pruned[measure] >= dense[measure] - 0.02
    assert dense["reliable"] and pruned["reliable"]
    saved = 1 - pruned["macs"] / dense["macs"]
    assert saved >= 0.5
    assert 1 - pruned["latency_ms"] / dense["latency_ms"] >= 0.6 * saved
    assert summary["seconds"] <= 180


def test_the_standard_suite_is_no_weaker_than_autoattack():
    record = json.loads((RESULTS / "strength.json").read_text())
    assert record["networks"] and record["versions"].keys() >= {"jax", "pyautoattack", "torch"}
    for network in record["networks"].values():
        assert network["images"] == 256
        assert network["largest_logit_difference"] < 1e-4
        assert network["largest_gradient_difference"] < 1e-3
        assert network["ours"] <= network["autoattack"] + 0.01
        assert network["ours"] < network["pgd_20"]
