"""Export as a PyTorch module of SpikingJelly's neurons: a file of code, and one of weights."""

import types
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save as serialize

from ccsrp_jax.exchange.channel_order import channels_first, flattened_from
from ccsrp_jax.exchange.report import (
    ExportReport,
    as_network,
    check_close,
    check_deterministic,
    check_images,
    imported,
    logits,
    target_path,
)
from ccsrp_jax.networks.architecture import Architecture, shapes
from ccsrp_jax.networks.general_conv import GeneralConv
from ccsrp_jax.networks.interval_rules import NORM_EPSILON
from ccsrp_jax.networks.neurons import LIF
from ccsrp_jax.networks.node_base import IMAGE, Node, Shape
from ccsrp_jax.networks.nodes import (
    Add,
    Concat,
    Conv,
    Dense,
    DepthwiseConv,
    Dropout,
    Flatten,
    GlobalPool,
    Norm,
    Pool,
    Spike,
)
from ccsrp_jax.networks.spike_rate import SpikeRate
from ccsrp_jax.utils.errors import InputError
from ccsrp_jax.utils.io import write_atomic

TOLERANCE = 1e-4  # of a logit: both sum in float32, in different order

TEMPLATE = '''\
"""A spiking network in SpikingJelly, exported by ccsrp-jax; `load()` returns it with its weights.

It takes images (batch, channels, height, width) in [0, 1], and returns logits, averaged over its
{time_steps} time steps.
"""

from pathlib import Path

import torch
from spikingjelly.activation_based import functional, neuron
from torch import nn


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor({mean}).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor({std}).reshape(-1, 1, 1))
{layers}

    def step(self, image):
{code}
        return {last}

    def forward(self, images):
        functional.reset_net(self)
{inputs}
        return torch.stack([self.step(image) for image in steps]).mean(0)


def load():
    from safetensors.torch import load_file

    network = Network()
    network.load_state_dict(load_file(Path(__file__).with_suffix(".safetensors")))
    return network.eval()
'''


def export_torch(network: Any, path: Any, images: Any = None) -> ExportReport:
    """Writes a network as a Python module of SpikingJelly's neurons, with its weights beside it.

    `path` is the module, `NAME.py`; its state dict goes to `NAME.safetensors`. The module needs
    `torch`, `spikingjelly` and `safetensors` alone; its function `load` returns the network. Batch
    normalization stays as it is, so that training can go on.

    Args:
      network: path of a saved network, or (architecture, variables).
      path: of the module.
      images: for the comparison; by default 16 of noise.

    Returns:
      The comparison of the module's logits with the network's.

    Raises:
      InputError: torch or spikingjelly is not installed, or the network has what SpikingJelly does
        not; nothing is written.
    """
    target = target_path(path)
    if target.suffix != ".py":
        raise InputError(f"{target} is to be a Python module: give a name that ends in .py.")
    _check_kept(network, target.with_suffix(".safetensors"))
    torch = imported("torch", "oracles")
    imported("spikingjelly.activation_based", "oracles")
    architecture, variables = as_network(network)
    images = check_images(architecture, images)
    code, weights = module_code(architecture), state_dict(architecture, variables)
    module = types.ModuleType("exported_network")
    exec(compile(code, str(target), "exec"), module.__dict__)
    twin = module.Network()
    twin.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    x = torch.from_numpy(np.array(np.moveaxis(np.asarray(images), -1, 1)))
    with torch.no_grad():
        found = twin.eval()(x).numpy()
    difference = float(np.abs(found - logits(architecture, variables, images)).max())
    check_close("torch", difference, TOLERANCE)
    write_atomic(target.with_suffix(".safetensors"), serialize(weights))
    write_atomic(target, code.encode())
    notes = (f"The weights are in {target.with_suffix('.safetensors').name}.",)
    compared = "run in SpikingJelly and compared with the network"
    return ExportReport(target, "torch", compared, len(images), difference, notes=notes)


def _check_kept(network: Any, weights: Path) -> None:
    """Refuses weights of the module that would replace the network's own file."""
    given = isinstance(network, str | PathLike)
    if given and Path(network).resolve() == weights.resolve():
        raise InputError(
            f"the module's weights would replace the network {weights}: give the module another "
            "name."
        )


def module_code(architecture: Architecture) -> str:
    """The code of a module for a network.

    Raises:
      InputError: SpikingJelly has no such neurons, or this export no such layer.
    """
    check_deterministic(architecture, "torch")
    if type(architecture.neuron) is not LIF or architecture.neuron.reset == "soft_delayed":
        raise InputError(
            "SpikingJelly has no neurons such as "
            f"{type(architecture.neuron).__name__} with the reset {architecture.neuron.reset}: "
            "export a network of LIF neurons with a hard or soft reset."
        )
    flattened_from(architecture)  # refuses what has no order
    shape, layers, code = shapes(architecture), [], []
    names = {IMAGE: "image"}
    for number, node in enumerate(architecture.nodes):
        names[node.name] = f"x{number}"
        made = _layer(architecture, node, shape)
        reads = [names[name] for name in node.inputs]
        if made is not None:
            layers.append(f"        self.{attribute(node)} = {made}")
            value = f"self.{attribute(node)}({reads[0]})"
        else:
            value = _expression(node, reads)
        code.append(f"        {names[node.name]} = {value}  # {node.name!r}")
    frames = architecture.time_steps
    inputs = [
        "        x = (images - self.mean) / self.std",
        f"        steps = [x] * {frames}",
    ]
    if architecture.encoding == "frames":
        inputs = [
            f"        steps = [(x - self.mean) / self.std for x in images.chunk({frames}, 1)]"
        ]
    return TEMPLATE.format(
        time_steps=frames,
        mean=list(architecture.mean),
        std=list(architecture.std),
        layers="\n".join(layers),
        code="\n".join(code),
        last=names[architecture.nodes[-1].name],
        inputs="\n".join(inputs),
    )


def attribute(node: Node) -> str:
    """The name of a node's layer in the module."""
    return "layer_" + "".join(each if each.isalnum() else "_" for each in node.name)


def _layer(architecture: Architecture, node: Node, shape: Mapping[str, Shape]) -> str | None:
    """Code that makes the layer of a node; None if it has none."""
    read = shape[node.input]
    match node:
        case Conv(width=width, kernel=k, stride=s, bias=bias):
            return f"nn.Conv2d({read[-1]}, {width}, {k}, {s}, {k // 2}, bias={bias})"
        case DepthwiseConv(kernel=k, stride=s):
            c = read[-1]
            return f"nn.Conv2d({c}, {c}, {k}, {s}, {k // 2}, groups={c}, bias=False)"
        case GeneralConv():
            geometry = f"{node.kernel}, {node.stride}, {node.padding}, {node.dilation}"
            return f"nn.Conv2d({read[-1]}, {node.width}, {geometry}, {node.groups}, {node.bias})"
        case SpikeRate():
            return None
        case Dense(width=width, bias=bias):
            return f"nn.Linear({read[-1]}, {width}, bias={bias})"
        case Norm():
            kind = "BatchNorm2d" if len(read) == 3 else "BatchNorm1d"
            return f"nn.{kind}({read[-1]}, eps={NORM_EPSILON})"
        case Spike():
            return _neurons(architecture)
        case Dropout(rate=rate):
            return f"nn.Dropout({rate})"
    return None


def _neurons(architecture: Architecture) -> str:
    neuron = architecture.neuron
    assert isinstance(neuron, LIF)
    reset = 0.0 if neuron.reset == "hard" else None
    common = f"v_threshold={neuron.threshold}, v_reset={reset}, detach_reset={neuron.detach_reset}"
    if neuron.learned:
        leaky = f"init_tau={neuron.tau}, decay_input={neuron.decay_input}"
        return f"neuron.ParametricLIFNode({leaky}, {common})"
    if neuron.tau == np.inf:
        if neuron.decay_input:
            raise InputError("neurons with tau=inf and decay_input have no input: export others.")
        return f"neuron.IFNode({common})"
    if neuron.tau == 1:  # SpikingJelly's LIFNode takes larger ones only
        raise InputError("SpikingJelly has no LIF neurons with tau=1: export a network of others.")
    return f"neuron.LIFNode(tau={neuron.tau}, decay_input={neuron.decay_input}, {common})"


def _expression(node: Node, reads: list[str]) -> str:
    """Code of a node without a layer."""
    x = reads[0]
    match node:
        case Pool(window=w, kind=kind):
            call = f"nn.functional.{'max' if kind == 'max' else 'avg'}_pool2d({x}, {w})"
            return f"{call} * {w * w}" if kind == "sum" else call
        case GlobalPool():
            return f"{x}.mean((2, 3), keepdim=True)"
        case Flatten():
            return f"{x}.flatten(1)"
        case Add():
            return " + ".join(reads)
        case Concat():
            return f"torch.cat([{', '.join(reads)}], 1)"
        case SpikeRate():
            return x
    raise InputError(
        f"the torch export has no layer for node {node.name!r}, a {type(node).__name__}: export a "
        "network without it."
    )


def state_dict(architecture: Architecture, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The tensors of the module, by name."""
    order = flattened_from(architecture)
    found: dict[str, np.ndarray] = {
        name: np.asarray(getattr(architecture, name), np.float32).reshape(-1, 1, 1)
        for name in ("mean", "std")
    }
    for node in architecture.nodes:
        leaves = {
            **variables["params"].get(node.name, {}),
            **variables.get("batch_stats", {}).get(node.name, {}),
        }
        for key, value in leaves.items():
            name, convert = NAMES[key]
            array = np.asarray(value, np.float32)
            if key == "kernel" and array.ndim == 2:
                array = channels_first(array, order.get(node.input))
            else:
                array = convert(array)
            found[f"{attribute(node)}.{name}"] = np.ascontiguousarray(array)
        if isinstance(node, Norm):
            found[f"{attribute(node)}.num_batches_tracked"] = np.zeros((), np.int64)
    return found


def _same(array: np.ndarray) -> np.ndarray:
    return array


NAMES: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "kernel": ("weight", lambda array: array.transpose(3, 2, 0, 1)),
    "bias": ("bias", _same),
    "scale": ("weight", _same),
    "mean": ("running_mean", _same),
    "var": ("running_var", _same),
    "leak": ("w", lambda array: array.reshape(())),
}
