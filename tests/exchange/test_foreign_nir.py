"""NIR files that cannot be used end in one sentence that says why."""

import copy
import itertools

import h5py
import numpy as np
import pytest

from ccsrp_jax.exchange.from_nir import from_nir
from ccsrp_jax.networks.neurons import LIF
from ccsrp_jax.networks.nodes import Pool
from ccsrp_jax.utils.errors import InputError

nir = pytest.importorskip("nir")


def lif(*shape, tau=2e-4, **changes):
    full = {"tau": tau, "r": 1.0, "v_leak": 0.0, "v_threshold": 1.0, "v_reset": 0.0} | changes
    return nir.LIF(**{name: np.full(shape, value) for name, value in full.items()})


def conv(channels=1, width=2, **changes):
    settings = {"stride": 1, "padding": 1, "dilation": 1, "groups": 1, "bias": np.ones(width)}
    settings |= {"weight": np.ones((width, channels, 3, 3), np.float32), "input_shape": (4, 4)}
    return nir.Conv2d(**settings | changes)


def graph(*changes, edges=(), drop=""):
    """Convolution, neurons, pooling, linear layer; with nodes exchanged or added."""
    nodes = {
        "input": nir.Input(np.array([1, 4, 4])),
        "conv": conv(),
        "lif": lif(2, 4, 4),
        "pool": nir.AvgPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])),
        "flatten": nir.Flatten({"input": np.array([2, 2, 2])}, 0, -1),
        "fc": nir.Affine(np.ones((3, 8), np.float32), np.ones(3)),
        "output": nir.Output(np.array([3])),
    }
    every = [pair for pair in itertools.pairwise(nodes) if drop not in pair]
    nodes |= dict(changes)
    nodes.pop(drop, None)
    return nir.NIRGraph(nodes, [*every, *edges], type_check=False)


NAN = np.full((3, 8), np.nan, np.float32)
BAD = {
    "'pool'.*Delay": graph(("pool", nir.Delay(np.ones(1)))),
    "recurrent": graph(edges=[("pool", "lif")]),
    "no node of it": graph(edges=[("lif", "nowhere")]),
    "'fc'.*do not fit": graph(("fc", nir.Affine(np.ones((3, 7)), np.ones(3)))),
    "'conv'.*do not fit": graph(("conv", conv(channels=2))),
    "weight of node 'fc'.*not finite": graph(("fc", nir.Affine(NAN, np.ones(3)))),
    "'lif'.*v_leak": graph(("lif", lif(2, 4, 4, v_reset=0.5))),
    "'lif'.*at least one step": graph(("lif", lif(2, 4, 4, tau=1e-6))),
    "'lif'.*resting potential": graph(("lif", lif(2, 4, 4, v_threshold=0.0))),
    "'pool'.*overlap": graph(
        ("pool", nir.AvgPool2d(np.array([2, 2]), np.array([1, 1]), np.array([0, 0])))
    ),
    "'pool'.*pads": graph(
        ("pool", nir.SumPool2d(np.array([2, 2]), np.array([2, 2]), np.array([1, 1])))
    ),
    "'more'.*nothing leads": graph(("more", lif(3)), edges=[("more", "output")]),
    "2 inputs": graph(("other", nir.Input(np.array([3]))), edges=[("other", "output")]),
    "'more'.*does not lead": graph(("more", lif(3)), edges=[("fc", "more")]),
    "end with a Dense": graph(drop="fc", edges=[("flatten", "output")]),
    "twice": graph(edges=[("fc", "output")]),
}


@pytest.mark.parametrize("why", BAD)
def test_a_graph_that_cannot_be_represented(why):
    with pytest.raises(InputError, match=why) as caught:
        from_nir(BAD[why], time_steps=2)
    assert "\n" not in str(caught.value)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.nir"
    nir.write(path, graph())
    return path


def test_a_damaged_or_foreign_file(path, tmp_path):
    data = path.read_bytes()
    for wrong in (data[:1000], b"", b"not a file of anything", data[:-50]):
        path.write_bytes(wrong)
        with pytest.raises(InputError, match="cannot be read as a NIR file"):
            from_nir(path, time_steps=2)
    with pytest.raises(InputError, match="no file"):
        from_nir(tmp_path / "absent.nir", time_steps=2)
    with pytest.raises(InputError, match="give the path"):
        from_nir({"nodes": 3}, time_steps=2)


def test_a_file_of_a_later_version(path):
    with h5py.File(path, "r+") as file:
        del file["version"]
        file["version"] = "2.0"
    with pytest.raises(InputError, match=r"has version '2.0'"):
        from_nir(path, time_steps=2)


def test_options_that_are_none(path):
    for options, why in (
        ({}, "time_steps"),
        ({"time_steps": 2, "dt": 0.0}, "dt is 0.0"),
        ({"time_steps": 2, "reset": "none"}, "reset is 'none'"),
        ({"time_steps": 2, "colour": 1}, "colour is no setting"),
        ({"time_steps": 2, "input_shape": (3, 3, 1)}, "takes"),
    ):
        with pytest.raises(InputError, match=why):
            from_nir(path, **options)


def test_thresholds_and_resistances_go_into_the_weights():
    plain, _ = from_nir(graph(), time_steps=2)
    assert plain.neuron == LIF(2.0) and isinstance(plain.nodes[2], Pool)
    _, weights = from_nir(graph(), time_steps=2)
    per_channel = np.broadcast_to(np.array([0.5, 4.0])[:, None, None], (2, 4, 4))
    scaled = lif(2, 4, 4, r=3.0)
    scaled.v_threshold = per_channel
    architecture, variables = from_nir(graph(("lif", scaled)), time_steps=2)
    assert architecture.neuron == LIF(2.0)
    expected = weights["params"]["conv"]["kernel"] * np.float32([3 / 0.5, 3 / 4.0])
    np.testing.assert_allclose(variables["params"]["conv"]["kernel"], expected, rtol=1e-6)


def test_graphs_within_graphs_are_dissolved():
    inner = nir.NIRGraph(
        {
            "in": nir.Input(np.array([2, 4, 4])),
            "neurons": lif(2, 4, 4),
            "out": nir.Output(np.array([2, 4, 4])),
        },
        [("in", "neurons"), ("neurons", "out")],
        type_check=False,
    )
    nested = graph(("lif", inner))
    flat, weights = from_nir(graph(), time_steps=2)
    architecture, others = from_nir(nested, time_steps=2)
    assert [type(node) for node in architecture.nodes] == [type(node) for node in flat.nodes]
    assert "lif.neurons" in [node.name for node in architecture.nodes]
    np.testing.assert_array_equal(
        weights["params"]["fc"]["kernel"], others["params"]["fc"]["kernel"]
    )


def test_the_graph_is_not_changed():
    given = graph()
    before = copy.deepcopy(given)
    from_nir(given, time_steps=2)
    np.testing.assert_array_equal(given.nodes["conv"].weight, before.nodes["conv"].weight)
    assert given.edges == before.edges
