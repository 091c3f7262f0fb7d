"""The nodes of a network's graph."""

from dataclasses import dataclass
from typing import Literal

IMAGE = "image"  # the name under which the first nodes read the input


@dataclass(frozen=True)
class Conv:
    """k x k convolution with k // 2 zeros of padding on every side (as in torch)."""

    name: str
    input: str
    width: int
    kernel: int = 3
    stride: int = 1
    bias: bool = False


@dataclass(frozen=True)
class Dense:
    """Fully connected layer; the last one of a network is its classifier."""

    name: str
    input: str
    width: int
    bias: bool = True


@dataclass(frozen=True)
class Norm:
    """Batch normalisation over batch, space and time.

    Attributes:
      scale: where its learned scale starts; alpha V_th makes it threshold-dependent (tdBN,
        Zheng et al., AAAI 2021, arXiv 2011.05280).
    """

    name: str
    input: str
    scale: float = 1.0


@dataclass(frozen=True)
class Spike:
    """LIF neurons; their spikes are gated by the mask of their group."""

    name: str
    input: str


@dataclass(frozen=True)
class Pool:
    """Non-overlapping pooling; what is left over at the border is dropped."""

    name: str
    input: str
    window: int = 2
    kind: Literal["max", "avg"] = "avg"


@dataclass(frozen=True)
class Flatten:
    """(H, W, C) to one axis of H W C features, channel fastest."""

    name: str
    input: str


@dataclass(frozen=True)
class Add:
    """Sum of two branches; it couples their channels into one mask group."""

    name: str
    input: str
    other: str


Node = Conv | Dense | Norm | Spike | Pool | Flatten | Add


NODE_KINDS = {kind.__name__: kind for kind in (Conv, Dense, Norm, Spike, Pool, Flatten, Add)}


def inputs(node: Node) -> tuple[str, ...]:
    """Names of the nodes that this one reads."""
    return (node.input, node.other) if isinstance(node, Add) else (node.input,)
