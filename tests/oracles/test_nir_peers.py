"""Our NIR files in three other simulators, and theirs here, without the frozen fixtures."""

import json
import tarfile

import jax
import numpy as np
import pytest
from conftest import busy, tiny

nir = pytest.importorskip("nir")
torch = pytest.importorskip("torch")
pytest.importorskip("norse")
pytest.importorskip("snntorch")
pytest.importorskip("spikingjelly")

import nir_sources
import norse.torch as norse
from snntorch.import_nir import import_from_nir as into_snntorch
from spikingjelly.activation_based import nir_exchange

from ccsrp_jax.exchange.from_nir import from_nir
from ccsrp_jax.exchange.to_nir import export_nir
from ccsrp_jax.networks import masks
from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.compaction import compact
from ccsrp_jax.networks.neurons import LIF
from ccsrp_jax.networks.nodes import IMAGE, Add, Conv, Dense, Flatten, Norm, Spike
from ccsrp_jax.networks.spiking_network import SpikingNetwork

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore"),
]


@pytest.mark.parametrize("name", nir_sources.SOURCES)
def test_the_frozen_fixtures_are_what_the_libraries_write_today(name):
    found = nir_sources.SOURCES[name]()
    with tarfile.open(nir_sources.FIXTURES) as tar:
        with np.load(tar.extractfile(f"{name}.npz")) as frozen:
            for i, spikes in enumerate(found.spikes):
                np.testing.assert_array_equal(frozen[f"layer{i}"], np.packbits(spikes > 0))
        assert json.loads(tar.extractfile(f"{name}.json").read()) == json.loads(
            json.dumps(found.options)
        )
    architecture, variables = from_nir(found.graph, time_steps=4, **found.options)
    images = nir_sources.images().permute(0, 2, 3, 1).numpy()
    logits = jax.jit(SpikingNetwork(architecture).apply)(variables, images)
    np.testing.assert_allclose(logits, found.output.mean(0), atol=2e-5)


def in_spikingjelly(graph, x, steps, dt):
    net = nir_exchange.import_from_nir(graph, dt=dt)
    return stepped(net, x, steps)


def in_snntorch(graph, x, steps, dt):
    # its neurons keep their state, so each image has its own network
    return np.concatenate([stepped(into_snntorch(graph), one, steps) for one in x], 1)


def in_norse(graph, x, steps, dt):
    net = norse.from_nir(graph, dt=dt)
    return np.concatenate([stepped(net, one, steps) for one in x], 1)


def stepped(net, x, steps):
    """Outputs of each step, (T, B, K); the state is passed on."""
    outputs, state = [], None
    with torch.no_grad():
        for _ in range(steps):
            output, state = net(x, state)
            outputs.append(output.numpy().reshape(-1, output.shape[-1]).copy())
    return np.stack(outputs)


SIMULATORS = {each.__name__: each for each in (in_spikingjelly, in_snntorch, in_norse)}


def strided(residual: bool) -> Architecture:
    """Without pooling, which Norse does not read."""
    nodes = [*layer("conv1", IMAGE, 6), *layer("conv2", "conv1.lif", 6, stride=2)]
    last = "conv2.lif"
    if residual:
        nodes += [*layer("conv3", last, 6)[:2], *layer("short", last, 6, kernel=1)[:2]]
        nodes += [Add("add", "conv3.norm", "short.norm"), Spike("add.lif", "add")]
        last = "add.lif"
    nodes += [Flatten("flatten", last), Dense("fc", "flatten", 12), Spike("fc.lif", "fc")]
    nodes += [Dense("classifier", "fc.lif", 10)]
    return Architecture(tuple(nodes), (8, 8, 1), 4, mean=(0.3,), std=(0.4,))


def layer(name: str, source: str, width: int, kernel: int = 3, stride: int = 1) -> list:
    conv = Conv(name, source, width, kernel, stride)
    return [conv, Norm(f"{name}.norm", name), Spike(f"{name}.lif", f"{name}.norm")]


NETWORKS = {
    "pooled": (tiny("small", neuron=LIF(), time_steps=4), ("in_spikingjelly", "in_snntorch")),
    "strided": (strided(False), tuple(SIMULATORS)),
    "residual": (strided(True), ("in_spikingjelly", "in_snntorch")),
    "resnet8": (tiny("resnet8", neuron=LIF(), time_steps=4), ("in_spikingjelly", "in_snntorch")),
}


@pytest.fixture(scope="module", params=NETWORKS)
def exported(request, tmp_path_factory, images):
    """A pruned network, its NIR file, and its output in each step."""
    architecture, _ = NETWORKS[request.param]
    kept = masks.random(jax.random.key(0), architecture, 0.5)
    network = compact(architecture, busy(architecture, 1), kept)
    path = tmp_path_factory.mktemp("nir") / "a.nir"
    report = export_nir(network, path, images[:8])
    assert report.spike_differences == 0
    run = jax.jit(lambda v, x: SpikingNetwork(network[0]).apply(v, x, per_step=True))
    return request.param, path, np.asarray(run(network[1], images[:8]))


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_other_simulators_compute_the_same(exported, simulator, images):
    name, path, expected = exported
    if simulator not in NETWORKS[name][1]:
        pytest.skip("Norse reads no average pooling, and runs no branches")
    x = torch.from_numpy(np.array(images[:8])).permute(0, 3, 1, 2).contiguous()
    found = SIMULATORS[simulator](nir.read(path), x, len(expected), 1e-4)
    assert expected.std(0).max() > 1e-3  # it is not constant in time
    np.testing.assert_allclose(found, expected, atol=1e-4)
