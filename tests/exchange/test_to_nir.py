"""Networks exported to NIR are the same networks; what NIR lacks is refused."""

import dataclasses

import jax
import numpy as np
import pytest
from conftest import busy, tiny

from ccsrp_jax.exchange.from_nir import from_nir
from ccsrp_jax.exchange.to_nir import export_nir
from ccsrp_jax.networks import masks
from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.compaction import compact
from ccsrp_jax.networks.cuba_lif import CubaLIF
from ccsrp_jax.networks.general_conv import GeneralConv
from ccsrp_jax.networks.neurons import LIF
from ccsrp_jax.networks.nodes import (
    IMAGE,
    Concat,
    Conv,
    Dense,
    DepthwiseConv,
    Flatten,
    Norm,
    Pool,
    Spike,
)
from ccsrp_jax.networks.stochastic_lif import StochasticLIF
from ccsrp_jax.networks.zoo import plain
from ccsrp_jax.utils.errors import InputError

nir = pytest.importorskip("nir")


def mixed(neuron) -> Architecture:
    """All kinds of layers that NIR has, in one small network."""
    nodes = (
        Conv("conv", IMAGE, 4, bias=True),
        Norm("norm", "conv"),
        Spike("lif", "norm"),
        DepthwiseConv("each", "lif", 3, 2),
        Norm("each.norm", "each"),
        GeneralConv("wide", "each.norm", 6, (3, 3), (1, 2), (2, 1), (1, 1), 2, True),
        Spike("wide.lif", "wide"),
        Pool("pool", "wide.lif", kind="sum"),
        Flatten("flatten", "pool"),
        Dense("fc", "flatten", 8),
        Spike("fc.lif", "fc"),
        Dense("classifier", "fc.lif", 10),
    )
    return Architecture(nodes, (8, 8, 1), 3, neuron)


@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(tiny("small"), id="small"),
        pytest.param(tiny("resnet8"), id="resnet8"),
        pytest.param(mixed(LIF(np.inf, decay_input=False)), id="if"),
        pytest.param(mixed(CubaLIF(3.0, 1.5, reset="soft_delayed")), id="cuba"),
    ],
)
def test_what_is_exported_has_the_spikes_of_the_network(architecture, tmp_path, images):
    variables = busy(architecture, 0)
    report = export_nir((architecture, variables), tmp_path / "a.nir", images[:6])
    assert report.spike_differences == 0 and report.largest_difference < 1e-4
    assert "largest difference" in report.sentence and str(report.path) in report.sentence
    graph = nir.read(report.path, type_check=False)
    assert not any("Norm" in type(node).__name__ for node in graph.nodes.values())


def test_filters_that_were_pruned_are_not_in_the_file(tmp_path, images):
    architecture = tiny("small")
    kept = masks.random(jax.random.key(0), architecture, 0.5)
    smaller = compact(architecture, busy(architecture, 1), kept)
    export_nir(smaller, tmp_path / "a.nir", images[:4])
    graph = nir.read(tmp_path / "a.nir")
    filters = {name: len(node.weight) for name, node in graph.nodes.items() if "conv" in name}
    assert filters == {name: int(mask.sum()) for name, mask in kept.items() if "conv" in name}


def test_the_input_normalization_can_be_left_to_the_reader(tmp_path, images):
    architecture = tiny("small")
    network = (architecture, busy(architecture, 0))
    report = export_nir(network, tmp_path / "a.nir", images[:4], normalization=False)
    assert report.largest_difference < 1e-4
    plain_graph = nir.read(report.path)
    assert "normalize" not in plain_graph.nodes and any("normalized" in n for n in report.notes)


def after(*nodes, neuron=LIF()):
    head = (Flatten("flatten", nodes[-1].name), Dense("classifier", "flatten", 10))
    return Architecture((*nodes, *head), (8, 8, 1), 2, neuron)


CONV, SPIKE = Conv("conv", IMAGE, 4), Spike("lif", "conv")
REFUSED = {
    "max pooling": after(CONV, SPIKE, Pool("pool", "lif", kind="max")),
    "a Concat": after(CONV, SPIKE, Concat("concat", "lif", ("conv",))),
    "batch normalization 'norm'": after(CONV, SPIKE, Norm("norm", "lif")),
    "StochasticLIF": after(CONV, SPIKE, neuron=StochasticLIF()),
    "poisson": dataclasses.replace(after(CONV, SPIKE), encoding="poisson"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_nir_lacks_is_refused_and_nothing_is_written(what, tmp_path):
    architecture = REFUSED[what]
    with pytest.raises(InputError, match=what):
        export_nir((architecture, busy(architecture, 0)), tmp_path / "a.nir")
    assert not list(tmp_path.iterdir())


def test_a_failed_export_leaves_the_former_file(tmp_path, monkeypatch):
    architecture = plain((4,), (8, 8, 1), 10)
    path = tmp_path / "a.nir"
    path.write_bytes(b"former")
    monkeypatch.setattr("ccsrp_jax.exchange.to_nir.folded_weights", halved)
    with pytest.raises(InputError, match="differs from the network"):
        export_nir((architecture, busy(architecture, 0)), path)
    assert path.read_bytes() == b"former" and len(list(tmp_path.iterdir())) == 1


def halved(architecture, variables, form):
    """A wrong fold, which the check of the export must find."""
    from ccsrp_jax.exchange.folding import folded_weights

    found = folded_weights(architecture, variables, form)
    return {name: (kernel / 2, bias) for name, (kernel, bias) in found.items()}


def test_a_file_says_its_steps(tmp_path):
    architecture = plain((4,), (8, 8, 1), 10, time_steps=7, neuron=LIF(3.0, reset="soft"))
    export_nir((architecture, busy(architecture, 0)), tmp_path / "a.nir", dt=1e-3)
    again, _ = from_nir(tmp_path / "a.nir")
    assert again.time_steps == 7 and again.neuron == architecture.neuron
