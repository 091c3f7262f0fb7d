"""The benchmark scripts run, on tiny sizes; what they say of work, not of time, is checked."""

import importlib
import json
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from ccsrp_jax.networks import cost, zoo
from ccsrp_jax.networks.architecture import groups
from ccsrp_jax.networks.spiking_network import SpikingNetwork

SCRIPTS = Path(__file__).parents[2] / "experiments" / "benchmarks"
SMALL = zoo.build("small", (8, 8, 1), 10)
PARTS = {"layers", "gate", "neurons", "dispatch"}


@pytest.fixture
def record(request, tmp_path, monkeypatch, capsys):
    """What a script writes with --quick; it must write a figure too, and say something."""
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.setattr(sys, "argv", [request.param, "--quick", "--out", str(tmp_path)])
    importlib.import_module(request.param).main()
    assert capsys.readouterr().out
    assert (tmp_path / f"{request.param}.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((tmp_path / f"{request.param}.json").read_text())
    assert {"what", "device", "backend", "threads", "versions"} <= set(found)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("record", ["scaling"], indirect=True)
def test_scaling_covers_every_size_and_counts_the_work(record):
    curves = record["curves"]
    depth = {"depth_whole_networks", "depth_shared", "depth_last_group_but_one"}
    assert set(curves) == {"population", "time_steps", "width", "images", "devices"} | depth
    for name, curve in curves.items():
        size = len(curve["sizes"])
        for key in ("seconds", "timings", "gmacs", "gmacs_per_second"):
            assert len(curve[key]) == size
        if name not in depth | {"devices"}:
            assert all(set(parts["parts_seconds"]) == PARTS for parts in curve["ends"].values())
    population = curves["population"]
    one = 2 * record["images"] * cost.suffix_macs(SMALL, "conv1") / 1e9
    assert population["gmacs"] == pytest.approx([one * size for size in population["sizes"]])
    assert population["macs_slope"] == pytest.approx(1)
    assert isinstance(population["slope"], float) and len(population["local_slopes"]) == 1
    assert curves["depth_shared"]["gmacs"] < curves["depth_whole_networks"]["gmacs"]
    assert record["largest_relative_difference_of_sharing"] < 1e-5


@pytest.mark.parametrize("record", ["roofline"], indirect=True)
def test_roofline_counts_the_work_of_every_group(record):
    network, rate = record["networks"]["small"], record["product"]["gmacs_per_second"]
    assert list(network["groups"]) == list(groups(SMALL))
    evaluations = 2 * network["images"] * network["population"]
    for group, found in network["groups"].items():
        gmacs = evaluations * cost.suffix_macs(SMALL, group) / 1e9
        assert found["gmacs"] == pytest.approx(gmacs)
        assert found["floor_seconds"] == pytest.approx(gmacs / rate)
        assert found["fraction"] == pytest.approx(gmacs / rate / found["seconds"])
    assert sum(each["share_of_sweep"] for each in network["groups"].values()) == pytest.approx(1)
    for group, parts in network["breakdown"].items():
        found = network["groups"][group]
        assert set(parts["parts_seconds"]) == set(parts["parts_share"]) == PARTS
        call = found["gmacs"] / found["calls"]  # no chunk is filled up here
        assert sum(each["gmacs"] for each in parts["layers"].values()) == pytest.approx(call)


def test_every_layer_of_the_random_networks_spikes(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    network = zoo.plain((16,) * 8, (8, 8, 1), 10)
    variables = importlib.import_module("common").spiking_variables(network)
    images = np.random.default_rng(0).uniform(size=(4, 8, 8, 1)).astype(np.float32)
    apply = jax.jit(partial(SpikingNetwork(network).apply, activity=True))
    rates = {k: float(v.mean()) for k, v in apply(variables, images)[1].spikes.items()}
    assert len(rates) == 8 and all(0.2 < rate < 0.7 for rate in rates.values()), rates


@pytest.mark.parametrize("record", ["compact_latency"], indirect=True)
def test_compact_networks_answer_as_the_masked_ones_and_do_the_macs_left(record):
    network = record["networks"]["small"]
    (compact,), (row,) = network["compact"], network["summary"]
    assert compact["kept"] == {"conv1": 12, "conv2": 24, "conv3": 24}
    steps = SMALL.time_steps
    layers = [9 * 12 * 64, steps * 9 * 12 * 24 * 64, steps * 9 * 24 * 24 * 16, steps * 24 * 4 * 10]
    assert compact["macs_left"] * network["macs"] == pytest.approx(sum(layers))
    assert row["ideal_speedup"] == pytest.approx(1 / compact["macs_left"])
    assert compact["largest_logit_difference"] < 1e-3
    batches = {"1", "4"}
    assert (
        set(network["latency_ms"]) == set(compact["latency_ms"]) == set(row["speedup"]) == batches
    )
