"""Nodes of an architecture as nodes of NIR, with the channels first."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ccsrp_jax.exchange.channel_order import channels_first
from ccsrp_jax.networks.architecture import Architecture, shapes
from ccsrp_jax.networks.cuba_lif import CubaLIF
from ccsrp_jax.networks.general_conv import GeneralConv
from ccsrp_jax.networks.neurons import LIF
from ccsrp_jax.networks.node_base import IMAGE, Node, Shape
from ccsrp_jax.networks.nodes import (
    Add,
    Conv,
    Dense,
    DepthwiseConv,
    Dropout,
    Flatten,
    GlobalPool,
    Pool,
    Spike,
)
from ccsrp_jax.utils.errors import InputError


@dataclass(frozen=True)
class GraphDraft:
    """A NIR graph while it is made.

    Attributes:
      nir: the module.
      architecture, variables, weights: the network, and its kernels with all norms folded in.
      dt: length of a step.
      nodes, edges: of the graph.
      sources: by node of the architecture, the nodes of the graph whose sum is its output.
      order: see `channel_order.flattened_from`.
    """

    nir: Any
    architecture: Architecture
    variables: Mapping[str, Any]
    weights: dict[str, tuple[np.ndarray, np.ndarray]]
    dt: float
    nodes: dict[str, Any]
    edges: list[tuple[str, str]]
    sources: dict[str, list[str]]
    order: dict[str, Shape]

    def add(self, name: str, node: Any, reads: list[str]) -> str:
        """Adds a node; returns the name that it has in the graph, which torch takes too."""
        name = "".join(each if each.isalnum() else "_" for each in name)
        while name in self.nodes:
            name += "_"
        if len(set(reads)) < len(reads):
            raise InputError(
                f"NIR cannot hold that {name!r} reads one node twice: double its weights instead."
            )
        self.nodes[name] = node
        self.edges.extend((each, name) for each in reads)
        return name

    def put(self, node: Node, made: Any) -> None:
        """Adds the node of the graph that stands for one of the architecture."""
        reads = [each for name in node.inputs for each in self.sources[name]]
        self.sources[node.name] = [self.add(node.name, made, reads)]

    def passes(self, node: Node) -> None:
        """The node's output is its input."""
        self.sources[node.name] = self.sources[node.inputs[0]]

    def normalize(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """Adds the input normalization, as a convolution of every channel with itself."""
        height, width, channels = shapes(self.architecture)[IMAGE]
        scale = np.broadcast_to(1 / np.array(std), (channels,))
        shift = -np.broadcast_to(np.array(mean), (channels,)) * scale
        if (scale == 1).all() and (shift == 0).all():
            return
        kernel = np.diag(scale)[None, None]
        made = _conv_node(self, (height, width), kernel, shift, (1, 1), (0, 0))
        self.sources[IMAGE] = [self.add("normalize", made, self.sources[IMAGE])]


def _conv_node(
    draft: GraphDraft,
    sides: tuple[int, int],
    kernel: np.ndarray,
    bias: np.ndarray,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> Any:
    return draft.nir.Conv2d(
        input_shape=sides,
        weight=np.ascontiguousarray(kernel.transpose(3, 2, 0, 1), np.float32),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=np.asarray(bias, np.float32),
    )


def _conv(draft: GraphDraft, node: Conv | DepthwiseConv | GeneralConv) -> Any:
    height, width, channels = shapes(draft.architecture)[node.input]
    kernel, bias = draft.weights[node.name]
    if isinstance(node, GeneralConv):
        settings = (node.stride, node.padding, node.dilation, node.groups)
    else:
        pad = node.kernel // 2
        groups = channels if isinstance(node, DepthwiseConv) else 1
        settings = ((node.stride, node.stride), (pad, pad), (1, 1), groups)
    return _conv_node(draft, (height, width), kernel, bias, *settings)


def _dense(draft: GraphDraft, node: Dense) -> Any:
    kernel, bias = draft.weights[node.name]
    weight = channels_first(kernel, draft.order.get(node.input))
    weight = np.ascontiguousarray(weight, np.float32)
    return draft.nir.Affine(weight=weight, bias=np.asarray(bias, np.float32))


def _pool(draft: GraphDraft, node: Pool) -> Any:
    if node.kind == "max":
        raise InputError(
            f"NIR cannot hold the max pooling {node.name!r}: train a network with average pooling."
        )
    kind = draft.nir.AvgPool2d if node.kind == "avg" else draft.nir.SumPool2d
    window = np.array([node.window, node.window])
    return kind(kernel_size=window, stride=window, padding=np.array([0, 0]))


def _global_pool(draft: GraphDraft, node: GlobalPool) -> Any:
    window = np.array(shapes(draft.architecture)[node.input][:2])
    return draft.nir.AvgPool2d(kernel_size=window, stride=window, padding=np.array([0, 0]))


def _flatten(draft: GraphDraft, node: Flatten) -> Any:
    shape = shapes(draft.architecture)[node.input]
    shape = np.array([shape[-1], *shape[:-1]])
    return draft.nir.Flatten(input_type={"input": shape}, start_dim=0, end_dim=-1)


def _spike(draft: GraphDraft, node: Spike) -> Any:
    neuron, dt = _leaky(draft.architecture), draft.dt
    shape = shapes(draft.architecture)[node.input]
    shape = (shape[-1], *shape[:-1])

    def full(value: float) -> np.ndarray:
        return np.full(shape, value, np.float64)

    threshold, zero = full(neuron.threshold), full(0.0)
    common = {"v_threshold": threshold, "v_reset": zero}
    if isinstance(neuron, CubaLIF):
        tau, r = neuron.tau_mem, 1.0 if neuron.decay_input else neuron.tau_mem
        return draft.nir.CubaLIF(
            tau_syn=full(neuron.tau_syn * dt),
            tau_mem=full(tau * dt),
            r=full(r),
            v_leak=zero,
            w_in=full(neuron.tau_syn),
            **common,
        )
    tau = _tau(draft, node)
    if tau == math.inf:
        return draft.nir.IF(r=full(1 / dt), **common)
    r = 1.0 if neuron.decay_input else tau
    return draft.nir.LIF(tau=full(tau * dt), r=full(r), v_leak=zero, **common)


def _leaky(architecture: Architecture) -> LIF | CubaLIF:
    neuron = architecture.neuron
    assert isinstance(neuron, LIF | CubaLIF)  # see `check_step_of`
    return neuron


def _tau(draft: GraphDraft, node: Spike) -> float:
    """Time constant of a layer, in steps."""
    neuron = _leaky(draft.architecture)
    if not neuron.learned:
        return neuron.membrane_tau
    leak = np.asarray(draft.variables["params"][node.name]["leak"], np.float32)
    leak = float(np.asarray(jax.nn.sigmoid(leak))[0])
    if leak == 0 and neuron.decay_input:
        raise InputError(
            f"NIR cannot hold the neurons {node.name!r}, whose learned leak is 0: set it higher."
        )
    return math.inf if leak == 0 else 1 / leak


def check_step_of(architecture: Architecture, dt: float) -> None:
    """Refuses neurons that NIR has none for, and what is no time step.

    Raises:
      InputError: naming them.
    """
    if isinstance(dt, bool) or not isinstance(dt, int | float) or not 0 < dt < math.inf:
        raise InputError(f"dt is {dt!r}: give the time step in seconds, such as 1e-4.")
    neuron = architecture.neuron
    if type(neuron) not in (LIF, CubaLIF):
        raise InputError(
            f"NIR cannot hold {type(neuron).__name__} neurons: export a network of LIF or CubaLIF."
        )


def neuron_note(architecture: Architecture, dt: float) -> str:
    """How the neurons are to be simulated."""
    reset = {
        "hard": "resets to 0",
        "soft": "resets by subtracting the threshold (which NIR does not say)",
        "soft_delayed": "resets by subtracting the threshold in the next step (which NIR does not "
        "say)",
    }[architecture.neuron.reset]
    return f"Neurons are to be simulated in steps of {dt:g} s, with {reset}."


def _add(draft: GraphDraft, node: Add) -> None:
    draft.sources[node.name] = [
        *draft.sources[node.inputs[0]],
        *draft.sources[node.inputs[1]],
    ]


CONVERTERS: dict[type[Node], Callable[..., Any]] = {
    Conv: _conv,
    DepthwiseConv: _conv,
    GeneralConv: _conv,
    Dense: _dense,
    Pool: _pool,
    GlobalPool: _global_pool,
    Flatten: _flatten,
    Spike: _spike,
}


def convert(draft: GraphDraft, node: Node) -> None:
    """Adds what stands for a node of the architecture.

    Raises:
      InputError: nothing does.
    """
    if isinstance(node, Dropout):
        draft.passes(node)
    elif isinstance(node, Add):
        _add(draft, node)
    elif (converter := CONVERTERS.get(type(node))) is None:
        raise InputError(
            f"NIR cannot hold node {node.name!r}, a {type(node).__name__}: export a network "
            "without it."
        )
    else:
        draft.put(node, converter(draft, node))
