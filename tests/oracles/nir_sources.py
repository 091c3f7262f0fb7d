"""Networks that other libraries export to NIR themselves, and the spikes that they then have.

`python tests/oracles/nir_sources.py` freezes both as the fixtures of tests/exchange.
"""

import json
import sys
import tarfile
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import nir
import norse.torch as norse
import numpy as np
import snntorch as snn
import torch
from sklearn.datasets import load_digits
from snntorch import utils as snn_utils
from snntorch.export_nir import export_to_nir as from_snntorch
from spikingjelly.activation_based import functional, layer, neuron, nir_exchange
from torch import nn

STEPS, IMAGES = 4, 6
FIXTURES = Path(__file__).parents[1] / "fixtures" / "nir_sources.tar.xz"


class Source(NamedTuple):
    """A network of another library.

    Attributes:
      graph: what it exports.
      output: of the network in each step, (T, B, K).
      spikes: by layer of neurons in order, (T, B, *features) with the channels first.
      options: with which `from_nir` reads the graph.
    """

    graph: nir.NIRGraph
    output: np.ndarray
    spikes: list[np.ndarray]
    options: dict[str, Any]


def images() -> torch.Tensor:
    """Digits, (B, 1, 8, 8) in [0, 1]."""
    return torch.tensor(load_digits().images[:IMAGES, None] / 16, dtype=torch.float32)


def _run(net: nn.Module, kinds: tuple, x: torch.Tensor, stateful: bool) -> tuple:
    """Outputs and spikes over time; `stateful` networks take and return their state."""
    layers = [each for each in net.modules() if isinstance(each, kinds)]
    found: list[list[np.ndarray]] = [[] for _ in layers]

    def record(i):
        def hook(module, inputs, output):
            spikes = output[0] if isinstance(output, tuple) else output
            found[i].append(spikes.detach().numpy().copy())

        return hook

    hooks = [each.register_forward_hook(record(i)) for i, each in enumerate(layers)]
    outputs, state = [], None
    with torch.no_grad():
        for _ in range(STEPS):
            output = net(x, state) if stateful else net(x)
            output, state = output if stateful else (output, None)
            outputs.append(output.numpy().copy())
    for hook in hooks:
        hook.remove()
    return np.stack(outputs), [np.stack(each) for each in found]


def _lively(net: nn.Module, seed: int, scale: float = 3.0) -> nn.Module:
    """Larger weights, so that all layers spike."""
    torch.manual_seed(seed)
    for each in net.modules():
        if isinstance(each, nn.Conv2d | nn.Linear):
            nn.init.normal_(each.weight, 0.05, scale / each.weight[0].numel() ** 0.5)
            if each.bias is not None:
                nn.init.normal_(each.bias, 0, 0.2)
    return net.eval()


def _spikingjelly(net: nn.Module, seed: int, **options: Any) -> Source:
    net, x = _lively(net, seed), images()
    graph = nir_exchange.export_to_nir(net, x)
    functional.reset_net(net)
    return Source(graph, *_run(net, (neuron.BaseNode,), x, False), options)


class Residual(nn.Module):
    """Currents of a convolution and of a shortcut are added before the neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = layer.Conv2d(1, 4, 3, padding=1), neuron.LIFNode()
        self.conv, self.shortcut = layer.Conv2d(4, 4, 3, padding=1), layer.Conv2d(4, 4, 1)
        self.second, self.flatten = neuron.LIFNode(), layer.Flatten()
        self.classifier = layer.Linear(256, 10)

    def forward(self, x):
        x = self.first(self.stem(x))
        x = self.second(self.conv(x) + self.shortcut(x))
        return self.classifier(self.flatten(x))


def spikingjelly_conv() -> Source:
    """Convolutions of all kinds that it exports, LIF neurons with another reset potential."""
    lif = {"tau": 2.5, "v_threshold": 0.8, "v_reset": -0.1}
    net = nn.Sequential(
        layer.Conv2d(1, 4, 3, padding=1, bias=False),
        neuron.LIFNode(**lif),
        layer.AvgPool2d(2),
        layer.Conv2d(4, 6, 3, stride=(1, 2)),
        neuron.LIFNode(**lif),
        layer.Flatten(),
        layer.Linear(12, 10),
    )
    return _spikingjelly(net, 0)


def spikingjelly_plif() -> Source:
    """Layers with time constants and thresholds of their own, and spikes as output."""
    net = nn.Sequential(
        layer.Conv2d(1, 4, 3, padding=2, dilation=2),
        neuron.ParametricLIFNode(init_tau=1.5, v_threshold=0.7),
        layer.Flatten(),
        layer.Linear(256, 20),
        neuron.LIFNode(tau=4.0),
        layer.Linear(20, 10),
        neuron.LIFNode(tau=3.0),
    )
    return _spikingjelly(net, 1)


def spikingjelly_if() -> Source:
    """IF neurons, and LIF neurons whose input is not divided by tau."""
    net = nn.Sequential(
        layer.Conv2d(1, 4, 3, stride=2, padding=1),
        neuron.IFNode(),
        layer.Conv2d(4, 6, 3, padding=1),
        neuron.LIFNode(tau=2.0, decay_input=False),
        layer.Flatten(),
        layer.Linear(96, 10),
    )
    return _spikingjelly(net, 2)


def spikingjelly_residual() -> Source:
    """A residual network."""
    return _spikingjelly(Residual(), 3)


def spikingjelly_cuba() -> Source:
    """CUBA-LIF neurons."""
    net = nn.Sequential(
        layer.Flatten(),
        layer.Linear(64, 30),
        neuron.CUBALIFNode(c_decay=0.5, v_decay=0.75),
        layer.Linear(30, 10),
        neuron.CUBALIFNode(c_decay=0.5, v_decay=0.75),
    )
    return _spikingjelly(net, 4)


def _snntorch(net: nn.Module, seed: int, reset: str) -> Source:
    net, x = _lively(net, seed), images()
    graph = from_snntorch(net, x[:1], ignore_dims=[0])
    snn_utils.reset(net)
    return Source(graph, *_run(net, (snn.SpikingNeuron,), x, False), {"reset": reset})


def _leaky(*shape: int, **options: Any) -> nn.Module:
    beta, threshold = torch.full(shape, 0.75), torch.ones(shape)
    return snn.Leaky(beta=beta, threshold=threshold, init_hidden=True, **options)


def snntorch_leaky() -> Source:
    """Its default neuron, whose reset subtracts the threshold in the next step."""
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        _leaky(4, 8, 8),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 10),
        _leaky(10),
    )
    return _snntorch(net, 5, "soft_delayed")


def snntorch_zero() -> Source:
    """Leaky neurons that reset to zero at once."""
    options: dict[str, Any] = {"reset_mechanism": "zero", "reset_delay": False}
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        _leaky(4, 8, 8, **options),
        nn.Flatten(),
        nn.Linear(256, 10),
        _leaky(10, **options),
    )
    return _snntorch(net, 6, "hard")


def snntorch_synaptic() -> Source:
    """Neurons with a synaptic current."""

    def synaptic(width):
        alpha, beta = torch.full((width,), 0.5), torch.full((width,), 0.75)
        threshold = torch.ones(width)
        return snn.Synaptic(alpha=alpha, beta=beta, threshold=threshold, init_hidden=True)

    net = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 30), synaptic(30), nn.Linear(30, 10), synaptic(10)
    )
    return _snntorch(net, 7, "soft_delayed")


def _norse(net: nn.Module, kinds: tuple, seed: int, dt: float) -> Source:
    net, x = _lively(net, seed), images().flatten(1)
    graph = norse.to_nir(net, x[0], dt=1)
    return Source(graph, *_run(net, kinds, x, True), {"dt": dt, "input_shape": (8, 8, 1)})


def norse_lif() -> Source:
    """Its LIFBoxCell, with time constants in seconds and steps of 1 ms."""

    def lif(width):
        inverse, zeros = torch.full((width,), 400.0), torch.zeros(width)
        return norse.LIFBoxCell(
            norse.LIFBoxParameters(inverse, v_leak=zeros, v_th=torch.full((width,), 0.6))
        )

    net = norse.SequentialState(nn.Linear(64, 30), lif(30), nn.Linear(30, 10), lif(10))
    return _norse(net, (norse.LIFBoxCell,), 8, 1e-3)


def norse_iaf() -> Source:
    """Its IAFCell, which adds its input in every step: dt is 1 with r 1."""

    def iaf(width):
        return norse.IAFCell(norse.IAFParameters(v_th=torch.ones(width)))

    net = norse.SequentialState(nn.Linear(64, 30), iaf(30), nn.Linear(30, 10), iaf(10))
    return _norse(net, (norse.IAFCell,), 9, 1.0)


SOURCES = {
    each.__name__: each
    for each in (
        spikingjelly_conv,
        spikingjelly_plif,
        spikingjelly_if,
        spikingjelly_residual,
        spikingjelly_cuba,
        snntorch_leaky,
        snntorch_zero,
        snntorch_synaptic,
        norse_lif,
        norse_iaf,
    )
}


def freeze(archive: Path = FIXTURES) -> None:
    """Writes every graph, the spikes of its source and the options of its import."""
    with tempfile.TemporaryDirectory() as folder, tarfile.open(archive, "w:xz") as tar:
        for name, make in SOURCES.items():
            found, path = make(), Path(folder) / name
            nir.write(path.with_suffix(".nir"), found.graph)
            packed = {f"layer{i}": np.packbits(each > 0) for i, each in enumerate(found.spikes)}
            shapes = {f"shape{i}": each.shape for i, each in enumerate(found.spikes)}
            np.savez(path.with_suffix(".npz"), output=found.output, **packed, **shapes)
            path.with_suffix(".json").write_text(json.dumps(found.options))
            for suffix in (".nir", ".npz", ".json"):
                tar.add(path.with_suffix(suffix), name + suffix)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    freeze(*map(Path, sys.argv[1:]))
