"""Layers of NIR, but its neurons, as nodes of an architecture with their weights.

NIR has the channels first, (C, H, W), with convolution kernels (out, in, height, width); here they
are last, and kernels (height, width, in, out). Flattened features are in another order therefore,
which the linear layers that read them undo.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ccsrp_jax.exchange.nir_graph import FlatGraph
from ccsrp_jax.networks.general_conv import GeneralConv
from ccsrp_jax.networks.node_base import IMAGE, Node, Shape, check_name
from ccsrp_jax.networks.nodes import (
    Add,
    Conv,
    Dense,
    DepthwiseConv,
    Flatten,
    GlobalPool,
    Pool,
)
from ccsrp_jax.utils.errors import InputError


class Layer(NamedTuple):
    """A node and its parameters, by name."""

    node: Node
    weights: dict[str, np.ndarray]


@dataclass(frozen=True)
class Draft:
    """An architecture while it is made.

    Attributes:
      graph: that is imported.
      layers: by name of the node, in order.
      shapes: of the nodes' outputs, with the channels last.
      named: by name in the graph, the node whose output it is.
      order: by node of flattened features, the (H, W, C) of the image that they are of.
    """

    graph: FlatGraph
    layers: dict[str, Layer]
    shapes: dict[str, Shape]
    named: dict[str, str]
    order: dict[str, Shape]

    def fresh(self, name: str) -> str:
        """A name for a node that no other has."""
        name = name.replace("/", ".") or "node"
        while name in self.layers or not _can_be_named(name):
            name += "_"
        return name

    def add(self, nir_name: str, layer: Layer, order: Shape | None) -> None:
        """Appends a layer, which is the output of that node of the graph."""
        node = layer.node
        try:
            shape = node.shape(*[self.shapes[name] for name in node.inputs])
        except InputError as error:
            raise InputError(f"{self.graph.source} cannot be imported: {error}") from error
        if min(shape) < 1:
            raise InputError(
                f"{self.graph.source} cannot be imported: node {node.name!r} has nothing left of "
                f"its {self.shapes[node.inputs[0]]} input; give the input shape that it is for."
            )
        self.layers[node.name] = layer
        self.shapes[node.name] = shape
        if order is not None:
            self.order[node.name] = order
        if nir_name:
            self.named[nir_name] = node.name


def _can_be_named(name: str) -> bool:
    try:
        check_name(name)
    except InputError:
        return False
    return name != IMAGE


def add_inputs(draft: Draft, name: str) -> str:
    """The node whose output a node of the graph reads; several are added up."""
    first, *others = [draft.named[each] for each in draft.graph.reads[name]]
    for other in others:
        if draft.order.get(first) != draft.order.get(other):
            raise draft.graph.refused(
                name, "it adds features of different order", "flatten both or neither"
            )
        node = Add(draft.fresh(f"{name}.add"), first, other)
        draft.add("", Layer(node, {}), draft.order.get(first))
        first = node.name
    return first


def scale_input(draft: Draft, name: str, source: str, factor: np.ndarray) -> None:
    """Multiplies what a node reads by a factor, which goes into the weights before it.

    Args:
      draft: in which the weights are replaced.
      name: of the node in the graph.
      source: the node that it reads.
      factor: a scalar, or an array of the shape of the node's input, channels first.

    Raises:
      InputError: there are no weights, or others read what they compute.
    """
    if np.size(factor) == 1 and float(np.ravel(factor)[0]) == 1:
        return
    per_channel = factor.reshape(factor.shape[0], -1) if factor.ndim else factor.reshape(1, 1)
    if not np.allclose(per_channel, per_channel[:, :1], rtol=1e-5):
        raise draft.graph.refused(
            name, "its neurons of one channel differ", "give all neurons of a channel the same"
        )
    uniform = np.allclose(per_channel, per_channel.flat[0], rtol=1e-5)
    values = per_channel.flat[0] if uniform else per_channel[:, 0]
    _scale(draft, name, source, np.asarray(values))


def _scale(draft: Draft, name: str, source: str, factor: np.ndarray) -> None:
    if source == IMAGE:
        raise draft.graph.refused(
            name, "its scale has no weights before it to go into", "give it unit scale"
        )
    layer = draft.layers[source]
    if len(_readers(draft, source)) > 1:
        raise draft.graph.refused(
            name, f"its scale would change what else reads {source!r}", "give it unit scale"
        )
    if layer.weights and factor.size in (1, draft.shapes[source][-1]):
        scaled = {key: value * factor for key, value in layer.weights.items()}
        draft.layers[source] = layer._replace(weights=scaled)
    elif isinstance(layer.node, Add | Pool | GlobalPool) or (
        isinstance(layer.node, Flatten) and factor.size == 1
    ):
        for each in layer.node.inputs:
            _scale(draft, name, each, factor)
    else:
        raise draft.graph.refused(
            name, f"its scale cannot go into {source!r}", "give it unit scale"
        )


def _readers(draft: Draft, source: str) -> list[str]:
    """Nodes of the graph that read a node of the draft."""
    return [
        name
        for name, sources in draft.graph.reads.items()
        if any(draft.named.get(each) == source for each in sources)
        and (draft.named.get(name) != source or type(draft.graph.nodes[name]).__name__ == "Output")
    ]


def _pair(draft: Draft, name: str, field: str) -> tuple[int, int]:
    """A setting for height and width, which may be given as one number."""
    values = np.ravel(draft.graph.value(name, field))
    if values.size not in (1, 2) or not (values == values.astype(int)).all():
        raise draft.graph.refused(name, f"{field} is {values.tolist()}", "give one or two integers")
    return int(values[0]), int(values[-1])


def _padding(draft: Draft, name: str, kernel: tuple, stride: tuple, dilation: tuple) -> Any:
    given = draft.graph.nodes[name].padding
    given = given.decode() if isinstance(given, bytes) else given
    if not isinstance(given, str):
        return _pair(draft, name, "padding")
    if given == "valid":
        return (0, 0)
    total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if stride != (1, 1) or any(each % 2 for each in total):
        raise draft.graph.refused(
            name, "padding 'same' is not the same on both sides", "give it as numbers"
        )
    return (total[0] // 2, total[1] // 2)


def _conv(draft: Draft, name: str, source: str) -> None:
    graph = draft.graph
    weight, bias = graph.value(name, "weight"), graph.value(name, "bias")
    if weight.ndim != 4 or bias.shape not in ((), weight.shape[:1]):
        raise graph.refused(
            name, f"its weights have shapes {weight.shape} and {bias.shape}", "export it anew"
        )
    kernel, stride = weight.shape[2:], _pair(draft, name, "stride")
    dilation = _pair(draft, name, "dilation")
    padding = _padding(draft, name, kernel, stride, dilation)
    groups = int(graph.value(name, "groups"))
    shape = draft.shapes[source]
    if len(shape) != 3 or groups < 1 or weight.shape[1] * groups != shape[-1]:
        raise graph.refused(
            name,
            f"its weights {weight.shape} in {groups} groups do not fit what it reads, {shape}",
            "export it anew",
        )
    width, title = len(weight), draft.fresh(name)
    weights = {"kernel": weight.transpose(2, 3, 1, 0)}
    if bias.any():
        weights["bias"] = np.broadcast_to(bias, (width,))
    square = len({*kernel}) == len({*stride}) == 1 and dilation == (1, 1)
    usual = square and padding == (kernel[0] // 2, kernel[0] // 2)
    if usual and groups == 1:
        node: Node = Conv(title, source, width, kernel[0], stride[0], "bias" in weights)
    elif usual and groups == width == shape[-1] and "bias" not in weights:
        node = DepthwiseConv(title, source, kernel[0], stride[0])
    else:
        node = GeneralConv(
            *(title, source, width, kernel, stride, padding, dilation, groups),
            bias="bias" in weights,
        )
    draft.add(name, Layer(node, weights), None)


def _linear(draft: Draft, name: str, source: str) -> None:
    graph, weight = draft.graph, draft.graph.value(name, "weight")
    bias = graph.value(name, "bias") if hasattr(graph.nodes[name], "bias") else np.zeros(())
    shape = draft.shapes[source]
    fits = weight.ndim == 2 and weight.shape[1:] == shape
    if not fits or bias.shape not in ((), weight.shape[:1]):
        raise graph.refused(
            name,
            f"its weights {weight.shape} and bias {bias.shape} do not fit what it reads, {shape}",
            "put Flatten before it, or export it anew",
        )
    if (order := draft.order.get(source)) is not None:
        height, width, channels = order
        weight = weight.reshape(-1, channels, height, width).transpose(0, 2, 3, 1)
        weight = weight.reshape(len(weight), -1)
    weights = {"kernel": weight.T}
    if bias.any():
        weights["bias"] = np.broadcast_to(bias, (len(weight),))
    node = Dense(draft.fresh(name), source, len(weight), "bias" in weights)
    draft.add(name, Layer(node, weights), None)


def _pool(draft: Draft, name: str, source: str) -> None:
    window, stride = _pair(draft, name, "kernel_size"), _pair(draft, name, "stride")
    kind = "sum" if type(draft.graph.nodes[name]).__name__ == "SumPool2d" else "avg"
    shape, title = draft.shapes[source], draft.fresh(name)
    if any(_pair(draft, name, "padding")):
        raise draft.graph.refused(name, "it pads its input", "pool without padding")
    if kind == "avg" and window == shape[:2]:
        draft.add(name, Layer(GlobalPool(title, source), {}), None)
        return
    if len(set(window)) > 1 or window != stride:
        raise draft.graph.refused(
            name,
            f"its windows {window} overlap or are not square (stride {stride})",
            "use square windows with a stride of their size",
        )
    draft.add(name, Layer(Pool(title, source, window[0], kind), {}), None)


def _flatten(draft: Draft, name: str, source: str) -> None:
    shape, node = draft.shapes[source], draft.graph.nodes[name]
    if len(shape) == 1:
        draft.named[name] = source
        return
    # some exporters count the batch as axis 0, and some do not
    if int(node.start_dim) not in (0, 1) or int(node.end_dim) not in (-1, 2, 3):
        raise draft.graph.refused(
            name, f"it flattens axes {node.start_dim} to {node.end_dim} only", "flatten all of them"
        )
    draft.add(name, Layer(Flatten(draft.fresh(name), source), {}), shape)


def _scale_node(draft: Draft, name: str, source: str) -> None:
    scale_input(draft, name, source, draft.graph.value(name, "scale"))
    draft.named[name] = source


CONVERTERS = {
    "Conv2d": _conv,
    "Linear": _linear,
    "Affine": _linear,
    "SumPool2d": _pool,
    "AvgPool2d": _pool,
    "Flatten": _flatten,
    "Scale": _scale_node,
}
