"""A network as data: the nodes of its graph, and what follows from their rules.

The Flax module, the mask groups, compaction, the costs and the shared prefix of the fitness
evaluation are each one loop over these nodes, so a new network is a new tuple of nodes.
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from ccsrp_jax.networks.neurons import LIF, NEURON_KINDS, Neuron, check_neuron_registered
from ccsrp_jax.networks.node_base import (
    IMAGE,
    NODE_KINDS,
    Channels,
    Node,
    Segment,
    Shape,
    check_registered,
)
from ccsrp_jax.networks.nodes import Dense
from ccsrp_jax.utils.errors import InputError, reason, shown, unknown
from ccsrp_jax.utils.fields import POSITIVE, Limits, check_fields, from_object, json_object

LIMITS = {
    "input_shape": Limits(1, 2**16),
    "time_steps": Limits(1, 10**4),  # the loop over them is unrolled
    "std": POSITIVE,
    "noise": Limits(0),
}
MOST_WEIGHTS = 2**33  # in all kernels, 32 GiB


@dataclass(frozen=True)
class Architecture:
    """Everything that determines a network's function except its weights; hashable.

    Fields are converted to plain numbers and tuples, see `utils.fields`, and checked; so are the
    shapes of all nodes.

    Attributes:
      nodes: in topological order; the last is the classifier, a `Dense`.
      input_shape: (H, W, C) of the image; for `frames`, C is T times the number of channels of
        one frame.
      time_steps: T, the number of steps per image.
      neuron: family and constants of the neurons of every `Spike` node.
      mean, std: per channel (of a frame), or one for all, by which images in [0, 1] are
        normalized, (x - mean) / std.
      encoding: the input of each step, from an image in [0, 1]: `direct`, the image
        itself; `poisson`, 1 with the pixel's value as probability, else 0; `gaussian`, the
        image and noise (the Gaussian part of randomized smoothing coding, RSC-SNN, arXiv
        2407.20099, without its quantized coding and its distillation); `frames`, the next C / T of
        the image's channels, as of binned events.
      noise: standard deviation of the `gaussian` encoding, in pixel units.

    Raises:
      InputError: a field that no network can have, or nodes that do not fit together.
    """

    nodes: tuple[Node, ...]
    input_shape: tuple[int, int, int]
    time_steps: int = 4
    neuron: Neuron = LIF()
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    encoding: Literal["direct", "poisson", "gaussian", "frames"] = "direct"
    noise: float = 0.1

    def __post_init__(self) -> None:
        check_fields(self, limits=LIMITS)
        if self.encoding == "frames" and self.input_shape[-1] % self.time_steps:
            raise InputError(
                f"{self.input_shape[-1]} channels are not divisible into {self.time_steps} frames: "
                "bin the events into as many frames as time steps."
            )
        check_neuron_registered(self.neuron)
        Neuron.__post_init__(self.neuron)  # a family from outside may not call it
        self._check_moments()
        self._check_nodes()
        check_size(self)

    def _check_moments(self) -> None:
        frames = self.time_steps if self.encoding == "frames" else 1
        channels = self.input_shape[-1] // frames
        for name in ("mean", "std"):
            value = getattr(self, name)
            if len(value) not in (1, channels):
                raise InputError(
                    f"{name} {shown(value)} has {len(value)} values for {channels} channels: give "
                    "one for each, or one for all."
                )

    def _check_nodes(self) -> None:
        known = [IMAGE]
        for node in self.nodes:
            check_registered(node)
            Node.__post_init__(node)  # a kind from outside may not call it
            for name in node.inputs:
                if name not in known:
                    raise unknown(f"input of node {node.name!r}", name, known)
            if node.name in known:
                raise InputError(f"two nodes are called {node.name!r}: give each its own name.")
            known.append(node.name)
        if not self.nodes or not isinstance(self.nodes[-1], Dense):
            raise InputError(f"the last node is {known[-1]!r}: end with a Dense, the classifier.")

    @property
    def stochastic(self) -> bool:
        """Whether two evaluations of an image may differ: its encoding or neurons are random."""
        return self.stochastic_encoding or self.neuron.stochastic

    @property
    def stochastic_encoding(self) -> bool:
        """Whether the input of each step is drawn at random."""
        return self.encoding in ("poisson", "gaussian")

    @property
    def classes(self) -> int:
        """Number of classes, the width of the last node."""
        assert isinstance(self.nodes[-1], Dense)  # see `__post_init__`
        return self.nodes[-1].width

    @property
    def draws_in_training(self) -> bool:
        """Whether training needs a random key beside that of the encoding, as for dropout."""
        return any(node.draws_in_training for node in self.nodes)

    def to_json(self) -> str:
        """The description as JSON; `from_json` gives the same object back."""
        fields = dataclasses.asdict(self)
        ops = [{"op": type(node).__name__} for node in self.nodes]
        fields["nodes"] = [op | node for op, node in zip(ops, fields["nodes"], strict=True)]
        if type(self.neuron) is not LIF:  # files of `LIF` networks name no kind
            fields["neuron"] = {"kind": type(self.neuron).__name__} | fields["neuron"]
        return json.dumps(fields)

    @staticmethod
    def from_json(text: str) -> "Architecture":
        """Reads what `to_json` wrote.

        Raises:
          InputError: a node or the neuron is of a kind that is not registered; or the text is no
            description of a network.
        """
        try:
            description = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise InputError(
                f"the network's description is no JSON ({reason(error)}): give the text that "
                "`to_json` wrote."
            ) from error
        fields = json_object("the network", description)
        if not isinstance(nodes := fields.get("nodes"), list):
            raise InputError(f"the network's nodes are {shown(nodes)}: give a list of objects.")
        fields["nodes"] = tuple(map(_node, nodes))
        fields["neuron"] = _neuron(fields.get("neuron"))
        return from_object("the network", Architecture, _without_lists(fields))


def _node(description: Any) -> Node:
    fields = json_object("a node", description)
    kind = fields.pop("op", None)
    if not isinstance(kind, str) or kind not in NODE_KINDS:
        raise InputError(
            f"the network has a node of kind {shown(kind)}, which is not registered: call "
            "ccsrp_jax.networks.register_node with its class before loading; known kinds are "
            f"{', '.join(NODE_KINDS)}."
        )
    return from_object(
        f"node {shown(fields.get('name'))}", NODE_KINDS[kind], _without_lists(fields)
    )


def _neuron(description: Any) -> Neuron:
    fields = json_object("the neuron", description)
    kind = fields.pop("kind", LIF.__name__)
    if not isinstance(kind, str) or kind not in NEURON_KINDS:
        raise InputError(
            f"the network has neurons of kind {shown(kind)}, which is not registered: call "
            "ccsrp_jax.networks.register_neuron with their class before loading; known kinds are "
            f"{', '.join(NEURON_KINDS)}."
        )
    return from_object("the neuron", NEURON_KINDS[kind], fields)


def _without_lists(fields: dict) -> dict:
    """JSON has lists where dataclasses hold tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}


@cache
def shapes(architecture: Architecture) -> dict[str, Shape]:
    """Feature shape of every node's output, without time and batch.

    Raises:
      InputError: a pooling or convolution leaves no position, or branches do not fit.
    """
    h, w, c = architecture.input_shape
    frames = architecture.time_steps if architecture.encoding == "frames" else 1
    known: dict[str, Shape] = {IMAGE: (h, w, c // frames)}
    for node in architecture.nodes:
        shape = node.shape(*[known[name] for name in node.inputs])
        if min(shape) < 1:
            raise InputError(
                f"node {node.name!r} has nothing left of its {known[node.input]} input: "
                f"use fewer poolings or larger images than {architecture.input_shape}."
            )
        known[node.name] = shape
    return known


def check_size(architecture: Architecture) -> None:
    """Refuses a network whose shapes do not fit together, or that is too large for any machine.

    Raises:
      InputError: naming the node, or the number of weights.
    """
    kernels = kernel_shapes(architecture)  # computes all shapes
    weights = sum(math.prod(shape) for shape in kernels.values())
    if weights > MOST_WEIGHTS:
        largest = max(kernels, key=lambda name: math.prod(kernels[name]))
        raise InputError(
            f"the network has {weights:,} weights, most of them in {largest!r}: choose a smaller "
            f"width, for at most {MOST_WEIGHTS:,}."
        )


@cache
def channel_groups(architecture: Architecture) -> dict[str, Channels]:
    """For every node, the mask groups of the channels along its output's last axis.

    Most outputs are one segment. A concatenation has those of all its parts, and flattened
    features repeat their segments at every position. Groups that an addition merges go under
    the name of the earliest. The image and the classifier are groups of their own.
    """
    return _grouping(architecture)[0]


@cache
def _grouping(architecture: Architecture) -> tuple[dict[str, Channels], frozenset[str]]:
    """`channel_groups`, and the groups that are merged in a way that masks cannot follow."""
    parent, unaligned, shape = {IMAGE: IMAGE}, set(), shapes(architecture)

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    opened: dict[str, Channels] = {IMAGE: (Segment(IMAGE, shape[IMAGE][-1]),)}
    for node in architecture.nodes:
        read = [opened[name] for name in node.inputs]
        opened[node.name] = node.channels(read, shape[node.name])
        if node.opens_group:
            parent[node.name] = node.name
        if not node.merges_groups:
            continue
        if len({tuple(width for _, width in segments) for segments in read}) > 1:
            unaligned |= {group for segments in read for group, _ in segments}
            continue
        for segments in zip(*read, strict=True):
            order = list(parent)
            first, *others = sorted({root(group) for group, _ in segments}, key=order.index)
            parent |= dict.fromkeys(others, first)
    found = {
        name: tuple(Segment(root(group), width) for group, width in segments)
        for name, segments in opened.items()
    }
    return found, frozenset(map(root, unaligned))


@cache
def group_of(architecture: Architecture) -> dict[str, str]:
    """The mask group of every node whose channels are all of one group, by the node's name.

    Nodes behind a concatenation of several groups are left out: see `channel_groups`.
    """
    every = {
        name: {group for group, _ in segments}
        for name, segments in channel_groups(architecture).items()
    }
    return {name: next(iter(names)) for name, names in every.items() if len(names) == 1}


@cache
def groups(architecture: Architecture) -> dict[str, int]:
    """Prunable groups in order, each with its number of filters.

    A group is prunable when every layer that mixes its channels (a convolution, a dense layer)
    reads them behind a LIF layer's gate, where a removed channel is exactly 0.
    """
    segments, unaligned = _grouping(architecture)
    shape = shapes(architecture)

    def groups_at(*names: str) -> set[str]:
        return {group for name in names for group, _ in segments[name]}

    zero = {IMAGE: False}  # whether removed channels are 0 there
    fixed = {*unaligned, *groups_at(IMAGE, architecture.nodes[-1].name)}
    for node in architecture.nodes:
        reads = all(zero[name] for name in node.inputs)
        zero[node.name] = node.spiking or (node.keeps_zeros and reads)
        if node.opens_group and not reads:
            fixed |= groups_at(*node.inputs)
        if node.fixes_channels:
            fixed |= groups_at(node.name, *node.inputs)
        if node.spiking and len(shape[node.name]) == 1:  # gates act on channels, not on features
            named = [group for group, _ in segments[node.name]]
            fixed |= {group for group in named if named.count(group) > 1}
    merged = groups_at(*segments)
    return {
        node.name: shape[node.name][-1]
        for node in architecture.nodes
        if node.opens_group and node.name in merged and node.name not in fixed
    }


def split_channels(architecture: Architecture, name: str, values):
    """Cuts an array whose last axis is a node's output channels into (group, part) pairs."""
    segments = channel_groups(architecture)[name]
    if len(segments) == 1:
        return [(segments[0].group, values)]
    parts, start = [], 0
    for group, width in segments:
        parts.append((group, values[..., start : start + width]))
        start += width
    return parts


@cache
def coupled(architecture: Architecture) -> frozenset[str]:
    """Groups that an addition merges: residual streams, read and written by several layers."""
    segments = channel_groups(architecture)
    merging = [node.name for node in architecture.nodes if node.merges_groups]
    return frozenset(group for name in merging for group, _ in segments[name])


@cache
def kernel_shapes(architecture: Architecture) -> dict[str, Shape]:
    """Shape of every kernel, by the name of its layer."""
    shape = shapes(architecture)
    return {
        node.name: node.param_shapes([shape[name] for name in node.inputs], shape[node.name])[
            "kernel"
        ]
        for node in architecture.nodes
        if node.has_kernel
    }


@cache
def varies_in_time(architecture: Architecture) -> dict[str, bool]:
    """Whether a node's output changes over the steps: it does behind a LIF layer, and everywhere
    if the encoding gives each step an input of its own."""
    varies = {IMAGE: architecture.encoding != "direct"}
    for node in architecture.nodes:
        varies[node.name] = node.spiking or any(varies[name] for name in node.inputs)
    return varies


def gate_position(architecture: Architecture, group: str) -> int:
    """Index of the first node that a group's mask acts on; all nodes before are its prefix."""
    segments = channel_groups(architecture)
    return next(
        i
        for i, node in enumerate(architecture.nodes)
        if node.spiking and group in [each.group for each in segments[node.name]]
    )


@cache
def live_at(architecture: Architecture, position: int) -> tuple[str, ...]:
    """Names of the values that nodes from `position` on still read from before it."""
    before = [IMAGE] + [node.name for node in architecture.nodes[:position]]
    read = {name for node in architecture.nodes[position:] for name in node.inputs}
    return tuple(name for name in before if name in read)
