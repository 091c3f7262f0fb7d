"""Weights from PyTorch networks, and modules for it, against PyTorch itself."""

import subprocess
import sys

import numpy as np
import pytest
from conftest import busy, jit, tiny

torch = pytest.importorskip("torch")
pytest.importorskip("snntorch")
pytest.importorskip("spikingjelly")

import snntorch as snn
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from ccsrp_jax.exchange.from_torch import from_torch
from ccsrp_jax.exchange.to_torch import export_torch
from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.neurons import LIF
from ccsrp_jax.networks.nodes import IMAGE, Conv, Dense, Flatten, Norm, Pool, Spike
from ccsrp_jax.networks.spiking_network import SpikingNetwork
from ccsrp_jax.utils.errors import InputError

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]
STEPS = 4


def architecture(norm: bool, lif: LIF) -> Architecture:
    nodes = [Conv("conv1", IMAGE, 6, bias=True)]
    nodes += [Norm("norm1", "conv1"), Spike("lif1", "norm1")] if norm else [Spike("lif1", "conv1")]
    nodes += [Pool("pool", "lif1"), Conv("conv2", "pool", 8, stride=2, bias=True)]
    nodes += [Norm("norm2", "conv2"), Spike("lif2", "norm2")] if norm else [Spike("lif2", "conv2")]
    nodes += [Flatten("flatten", "lif2"), Dense("classifier", "flatten", 10)]
    return Architecture(tuple(nodes), (8, 8, 1), STEPS, lif, mean=(0.0,), std=(1.0,))


def drawn(net, seed=0):
    """Weights and moments that make all layers spike."""
    torch.manual_seed(seed)
    for each in net.modules():
        if isinstance(each, nn.Conv2d | nn.Linear):
            nn.init.normal_(each.weight, 0.1, 0.6)
        if isinstance(each, nn.BatchNorm2d):
            nn.init.uniform_(each.weight, 0.5, 1.5)
            nn.init.normal_(each.bias, 0.3, 0.3)
            each.running_mean.normal_(0, 0.3)
            each.running_var.uniform_(0.5, 2)
        if isinstance(each, neuron.ParametricLIFNode):
            nn.init.normal_(each.w, 0, 0.5)
    return net.eval()


def spikingjelly(node):
    return nn.Sequential(
        *(layer.Conv2d(1, 6, 3, padding=1), layer.BatchNorm2d(6), node(), layer.AvgPool2d(2)),
        *(layer.Conv2d(6, 8, 3, stride=2, padding=1), layer.BatchNorm2d(8), node()),
        *(layer.Flatten(), layer.Linear(32, 10)),
    )


def snntorch():
    def leaky():
        return snn.Leaky(beta=0.6, init_hidden=True)

    return nn.Sequential(
        *(nn.Conv2d(1, 6, 3, padding=1), leaky(), nn.AvgPool2d(2)),
        *(nn.Conv2d(6, 8, 3, stride=2, padding=1), leaky(), nn.Flatten(), nn.Linear(32, 10)),
    )


SNNTORCH_LIF = LIF(2.5, reset="soft_delayed", decay_input=False)
SOURCES = {
    "spikingjelly": (lambda: spikingjelly(neuron.LIFNode), architecture(True, LIF())),
    "plif": (
        lambda: spikingjelly(neuron.ParametricLIFNode),
        architecture(True, LIF(learned=True)),
    ),
    "snntorch": (snntorch, architecture(False, SNNTORCH_LIF)),
}


@pytest.mark.parametrize("source", SOURCES)
def test_logits_are_those_of_the_source(source, images):
    make, ours = SOURCES[source]
    net = drawn(make())
    variables = from_torch(ours, net.state_dict())
    x = torch.from_numpy(np.array(images[:16])).permute(0, 3, 1, 2).contiguous()
    with torch.no_grad():
        expected = torch.stack([net(x) for _ in range(STEPS)]).mean(0).numpy()
    run = jit(lambda v, x: SpikingNetwork(ours).apply(v, x, activity=True))
    found, active = run(variables, images[:16])
    assert all(0.02 < spikes.mean() < 0.98 for spikes in active.spikes.values())
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_another_beta_is_refused():
    net = snntorch()
    with pytest.raises(InputError, match="leak"):
        from_torch(architecture(False, LIF(3.0, decay_input=False)), net.state_dict())


@pytest.mark.parametrize("model", ["small", "resnet8", "6conv2fc"])
def test_a_module_computes_the_same_by_itself(model, tmp_path, images):
    ours = tiny(model)
    variables = busy(ours, 0)
    report = export_torch((ours, variables), tmp_path / "network.py", images[:8])
    assert report.largest_difference < 1e-5
    np.save(tmp_path / "x.npy", np.moveaxis(np.asarray(images[:8]), -1, 1))
    script = (
        "import numpy as np, torch, network\n"
        "with torch.no_grad():\n"
        "    y = network.load()(torch.from_numpy(np.load('x.npy')))\n"
        "np.save('y.npy', y.numpy())"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], cwd=tmp_path, check=True)
    expected = jit(SpikingNetwork(ours).apply)(variables, images[:8])
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, atol=1e-5)


def test_neurons_that_spikingjelly_lacks_are_refused(tmp_path):
    ours = tiny("small", neuron=LIF(reset="soft_delayed"))
    with pytest.raises(InputError, match="soft_delayed"):
        export_torch((ours, busy(ours, 0)), tmp_path / "network.py")
    assert not list(tmp_path.iterdir())


def test_a_spikingjelly_state_is_not_needed():
    net = spikingjelly(neuron.LIFNode)
    net(torch.ones(1, 1, 8, 8))
    functional.reset_net(net)
    from_torch(architecture(True, LIF()), net.state_dict())
