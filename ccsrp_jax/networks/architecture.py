"""A network as data: the nodes of its graph, from which everything else is derived.

The Flax module, the mask groups, compaction, the costs and the shared prefix of the
fitness evaluation are each one walk over these nodes, so a new network is a new list of
nodes and nothing more.
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

from ccsrp_jax.networks.neurons import LIF
from ccsrp_jax.networks.nodes import (
    IMAGE,
    NODE_KINDS,
    Add,
    Conv,
    Dense,
    Flatten,
    Node,
    Norm,
    Pool,
    Spike,
    inputs,
)
from ccsrp_jax.utils.errors import InputError, check_number, unknown

ENCODINGS = ("direct", "poisson", "gaussian", "frames")


@dataclass(frozen=True)
class Architecture:
    """Everything that fixes a network's function but its weights; hashable.

    Attributes:
      nodes: in topological order; the last is the classifier, a `Dense`.
      input_shape: (H, W, C) of the image; for `frames` its channels are T times those that
        the network sees.
      time_steps: T, the number of steps that the network runs for an image.
      neuron: constants of every LIF layer.
      mean, std: per channel, subtracted from and divided into images in [0, 1].
      encoding: what the network sees of an image in [0, 1] in each step: `direct`, the image
        itself; `poisson`, 1 with the pixel's value as probability, else 0; `gaussian`, the
        image and noise (randomized smoothing coding, RSC-SNN, arXiv 2407.20099); `frames`, the
        next C / T of the image's channels, as of binned events.
      noise: standard deviation of the `gaussian` encoding, in pixel units.
    """

    nodes: tuple[Node, ...]
    input_shape: tuple[int, int, int]
    time_steps: int = 4
    neuron: LIF = LIF()
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    encoding: Literal["direct", "poisson", "gaussian", "frames"] = "direct"
    noise: float = 0.1

    def __post_init__(self) -> None:
        check_number("time_steps", self.time_steps, 1)
        check_number("noise", self.noise, 0)
        if self.encoding not in ENCODINGS:
            raise unknown("encoding", self.encoding, ENCODINGS)
        if self.encoding == "frames" and self.input_shape[-1] % self.time_steps:
            raise InputError(
                f"{self.input_shape[-1]} channels are not divisible into {self.time_steps} frames: "
                "bin the events into as many frames as time steps."
            )
        known = [IMAGE]
        for node in self.nodes:
            for name in inputs(node):
                if name not in known:
                    raise unknown(f"input of node {node.name!r}", name, known)
            if node.name in known:
                raise InputError(f"two nodes are called {node.name!r}: give each its own name.")
            known.append(node.name)
        if not self.nodes or not isinstance(self.nodes[-1], Dense):
            raise InputError(f"the last node is {known[-1]!r}: end with a Dense, the classifier.")

    @property
    def stochastic(self) -> bool:
        """Whether two passes over an image may differ."""
        return self.encoding in ("poisson", "gaussian")

    @property
    def classes(self) -> int:
        return self.nodes[-1].width

    def to_json(self) -> str:
        """The description as JSON; `from_json` gives the same object back."""
        fields = dataclasses.asdict(self)
        ops = [{"op": type(node).__name__} for node in self.nodes]
        fields["nodes"] = [op | node for op, node in zip(ops, fields["nodes"], strict=True)]
        return json.dumps(fields)

    @staticmethod
    def from_json(text: str) -> "Architecture":
        """Reads what `to_json` wrote."""
        fields = json.loads(text)
        nodes = tuple(NODE_KINDS[node.pop("op")](**node) for node in fields.pop("nodes"))
        neuron = LIF(**fields.pop("neuron"))
        lists = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        return Architecture(nodes=nodes, neuron=neuron, **lists)


@cache
def shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Feature shape of every node's output, without time and batch.

    Raises:
      InputError: where a pooling or convolution leaves nothing, or branches differ.
    """
    h, w, c = architecture.input_shape
    frames = architecture.time_steps if architecture.encoding == "frames" else 1
    known = {IMAGE: (h, w, c // frames)}
    for node in architecture.nodes:
        shape = known[node.input]
        match node:
            case Conv(width=width, kernel=k, stride=stride):
                side = [(n + 2 * (k // 2) - k) // stride + 1 for n in shape[:2]]
                shape = (*side, width)
            case Dense(width=width):
                shape = (width,)
            case Pool(window=window):
                shape = (shape[0] // window, shape[1] // window, shape[2])
            case Flatten():
                shape = (math.prod(shape),)
            case Add(other=other) if known[other] != shape:
                raise InputError(
                    f"node {node.name!r} adds {shape} and {known[other]}: "
                    "its two branches must have the same shape."
                )
        if min(shape) < 1:
            raise InputError(
                f"node {node.name!r} has nothing left of its {known[node.input]} input: "
                f"use fewer poolings or larger images than {architecture.input_shape}."
            )
        known[node.name] = shape
    return known


@cache
def group_of(architecture: Architecture) -> dict[str, str]:
    """The mask group in which every node's channels live.

    A convolution or dense layer opens a group that carries its name; batch norm, spikes,
    pooling and flattening stay in it; an addition merges the groups of its branches under
    the earlier name. The image and the classifier are groups of their own.
    """
    parent: dict[str, str] = {IMAGE: IMAGE}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    group = {IMAGE: IMAGE}
    for node in architecture.nodes:
        if isinstance(node, Conv | Dense):
            parent[node.name] = group[node.name] = node.name
            continue
        group[node.name] = group[node.input]
        if isinstance(node, Add):
            first, second = root(group[node.input]), root(group[node.other])
            order = list(parent)
            early, late = sorted((first, second), key=order.index)
            parent[late] = early
    return {name: root(opened) for name, opened in group.items()}


@cache
def groups(architecture: Architecture) -> dict[str, int]:
    """Prunable groups in order, each with its number of filters.

    A group is prunable when whatever reads its channels into other ones (a convolution, a
    dense layer) does so behind a LIF layer's gate, where a removed channel is exactly 0.
    """
    member, shape = group_of(architecture), shapes(architecture)
    widths = {
        node.name: node.width for node in architecture.nodes if isinstance(node, Conv | Dense)
    }
    silent = {IMAGE: False}  # whether a masked channel is 0 there
    fixed = {IMAGE, member[architecture.nodes[-1].name]}
    for node in architecture.nodes:
        group, reads = member[node.name], [silent[name] for name in inputs(node)]
        match node:
            case Spike():
                silent[node.name] = True
                if shape[node.name][-1] != widths.get(group):  # features, no longer channels
                    fixed.add(group)
            case Conv() | Dense():
                silent[node.name] = False
                if not all(reads):
                    fixed.add(member[node.input])
            case _:
                silent[node.name] = all(reads) and not isinstance(node, Norm)
    return {
        name: width
        for name, width in widths.items()
        if name in member.values() and name not in fixed
    }


@cache
def coupled(architecture: Architecture) -> frozenset[str]:
    """Groups that an addition couples: residual streams, read and written by several layers."""
    member = group_of(architecture)
    return frozenset(member[node.name] for node in architecture.nodes if isinstance(node, Add))


@cache
def kernel_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Shape of every kernel, by the name of its convolution or dense layer."""
    shape = shapes(architecture)
    return {
        node.name: (*window, shape[node.input][-1], node.width)
        for node in architecture.nodes
        if isinstance(node, Conv | Dense)
        for window in [(node.kernel, node.kernel) if isinstance(node, Conv) else ()]
    }


@cache
def varies_in_time(architecture: Architecture) -> dict[str, bool]:
    """Whether a node's output changes over the steps: it does once it has met a LIF layer, and
    from the start where the encoding gives each step an input of its own."""
    varies = {IMAGE: architecture.encoding != "direct"}
    for node in architecture.nodes:
        varies[node.name] = isinstance(node, Spike) or any(varies[name] for name in inputs(node))
    return varies


def gate_position(architecture: Architecture, group: str) -> int:
    """Index of the first node that a group's mask touches: all before is its prefix."""
    member = group_of(architecture)
    return next(
        i
        for i, node in enumerate(architecture.nodes)
        if isinstance(node, Spike) and member[node.name] == group
    )


@cache
def live_at(architecture: Architecture, position: int) -> tuple[str, ...]:
    """Names of the values that nodes from `position` on still read from before it."""
    before = [IMAGE] + [node.name for node in architecture.nodes[:position]]
    read = {name for node in architecture.nodes[position:] for name in inputs(node)}
    return tuple(name for name in before if name in read)
