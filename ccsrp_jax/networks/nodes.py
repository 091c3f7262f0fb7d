"""The kinds of nodes, each with the rules by which it differs from `Node`.

The class names are the "op" of saved networks.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from ccsrp_jax.networks.node_base import (
    IMAGE,
    NODE_KINDS,
    Channels,
    Node,
    Segment,
    Shape,
    check_registered,
)
from ccsrp_jax.utils.errors import InputError
from ccsrp_jax.utils.fields import Limits

__all__ = [
    "IMAGE",
    "NODE_KINDS",
    "Add",
    "Channels",
    "Concat",
    "Conv",
    "Dense",
    "DepthwiseConv",
    "Dropout",
    "Flatten",
    "GlobalPool",
    "Node",
    "Norm",
    "Pool",
    "Segment",
    "Shape",
    "Spike",
    "check_registered",
]


SIDE = Limits(1, 2**12)  # of a kernel, stride or window, in pixels


@dataclass(frozen=True)
class Conv(Node):
    """k x k convolution with k // 2 zeros of padding on every side (as in torch)."""

    width: int
    kernel: int = 3
    stride: int = 1
    bias: bool = False

    limits: ClassVar[Mapping[str, Limits]] = {"kernel": SIDE, "stride": SIDE}
    opens_group: ClassVar[bool] = True
    has_kernel: ClassVar[bool] = True
    input_axis: ClassVar[dict[str, int]] = {"kernel": -2}
    output_axis: ClassVar[dict[str, int]] = {"kernel": -1, "bias": -1}

    def shape(self, *inputs: Shape) -> Shape:
        return (*_conv_sides(self, inputs[0]), self.width)

    def param_shapes(self, inputs: Sequence[Shape], output: Shape) -> dict[str, Shape]:
        kernel = (self.kernel, self.kernel, inputs[0][-1], output[-1])
        return {"kernel": kernel} | ({"bias": output[-1:]} if self.bias else {})

    def macs(self, inputs: Sequence[Shape], output: Shape) -> int:
        return self.kernel**2 * inputs[0][-1] * math.prod(output)

    def synapses(self, events, kernel):
        return _conv_synapses(self, events, kernel)


@dataclass(frozen=True)
class DepthwiseConv(Node):
    """k x k convolution of every channel by itself, without bias; padding as in `Conv`.

    Its filters belong to the channels that it reads: removing a channel removes its filter.
    """

    kernel: int = 3
    stride: int = 1

    limits: ClassVar[Mapping[str, Limits]] = {"kernel": SIDE, "stride": SIDE}
    keeps_zeros: ClassVar[bool] = True
    has_kernel: ClassVar[bool] = True
    output_axis: ClassVar[dict[str, int]] = {"kernel": -1}

    def shape(self, *inputs: Shape) -> Shape:
        return (*_conv_sides(self, inputs[0]), inputs[0][-1])

    def param_shapes(self, inputs: Sequence[Shape], output: Shape) -> dict[str, Shape]:
        return {"kernel": (self.kernel, self.kernel, 1, output[-1])}

    def macs(self, inputs: Sequence[Shape], output: Shape) -> int:
        return self.kernel**2 * math.prod(output)

    def fan_out(self, width: int) -> int:
        return 1

    def synapses(self, events, kernel):
        groups = 1 if kernel is None else kernel.shape[-1]
        return _conv_synapses(self, events, kernel, groups)


@dataclass(frozen=True)
class Dense(Node):
    """Fully connected layer; the last one of a network is its classifier."""

    width: int
    bias: bool = True

    opens_group: ClassVar[bool] = True
    has_kernel: ClassVar[bool] = True
    input_axis: ClassVar[dict[str, int]] = {"kernel": -2}
    output_axis: ClassVar[dict[str, int]] = {"kernel": -1, "bias": -1}

    def shape(self, *inputs: Shape) -> Shape:
        if len(inputs[0]) != 1:
            raise InputError(
                f"node {self.name!r} reads features of shape {inputs[0]}: a Dense needs one axis, "
                "so put Flatten before it."
            )
        return (self.width,)

    def param_shapes(self, inputs: Sequence[Shape], output: Shape) -> dict[str, Shape]:
        kernel = (inputs[0][-1], output[-1])
        return {"kernel": kernel} | ({"bias": output} if self.bias else {})

    def macs(self, inputs: Sequence[Shape], output: Shape) -> int:
        return inputs[0][-1] * output[-1]

    def synapses(self, events, kernel):
        return (events if kernel is None else events @ kernel.astype(jnp.float32)).sum()


@dataclass(frozen=True)
class Norm(Node):
    """Batch normalization over batch, space and time.

    It counts no MACs, as it folds into the convolution before it. Its shift makes a removed
    channel non-zero, so it must come before the gate of a LIF layer.

    Attributes:
      scale: initial value of the learned scale; alpha V_th makes it threshold-dependent (tdBN,
        Zheng et al., AAAI 2021, arXiv 2011.05280).
    """

    scale: float = 1.0

    output_axis: ClassVar[dict[str, int]] = dict.fromkeys(("scale", "bias", "mean", "var"), -1)

    def param_shapes(self, inputs: Sequence[Shape], output: Shape) -> dict[str, Shape]:
        return {"scale": output[-1:], "bias": output[-1:]}


@dataclass(frozen=True)
class Spike(Node):
    """A layer of the architecture's neurons; its spikes are gated by the masks of its channels."""

    keeps_zeros: ClassVar[bool] = True
    spiking: ClassVar[bool] = True
    output_axis: ClassVar[dict[str, int]] = {"self_weight": -1, "filter": -1}


@dataclass(frozen=True)
class Dropout(Node):
    """Dropout in training mode, with one draw for all time steps (as SpikingJelly's layer).

    Attributes:
      rate: share of the values that are set to 0; the others are divided by 1 - rate.
    """

    rate: float = 0.5

    keeps_zeros: ClassVar[bool] = True
    limits: ClassVar[Mapping[str, Limits]] = {"rate": Limits(0, 0.999)}
    draws_in_training: ClassVar[bool] = True


@dataclass(frozen=True)
class Pool(Node):
    """Non-overlapping pooling; positions left over at the border are dropped."""

    window: int = 2
    kind: Literal["max", "avg", "sum"] = "avg"

    limits: ClassVar[Mapping[str, Limits]] = {"window": SIDE}
    keeps_zeros: ClassVar[bool] = True

    def shape(self, *inputs: Shape) -> Shape:
        height, width, channels = _image_shape(self, inputs[0])
        return (height // self.window, width // self.window, channels)


@dataclass(frozen=True)
class GlobalPool(Node):
    """Average over all positions: (H, W, C) to (1, 1, C), to be followed by `Flatten`, or by a
    1 x 1 `Conv`."""

    keeps_zeros: ClassVar[bool] = True

    def shape(self, *inputs: Shape) -> Shape:
        return (1, 1, _image_shape(self, inputs[0])[-1])


@dataclass(frozen=True)
class Flatten(Node):
    """(H, W, C) to one axis of H W C features, channel fastest."""

    keeps_zeros: ClassVar[bool] = True

    def shape(self, *inputs: Shape) -> Shape:
        return (math.prod(inputs[0]),)

    def channels(self, inputs: Sequence[Channels], output: Shape) -> Channels:
        return inputs[0] * (output[-1] // sum(width for _, width in inputs[0]))


@dataclass(frozen=True)
class Add(Node):
    """Sum of two branches; their channels form one mask group, under the earlier group's name."""

    other: str

    keeps_zeros: ClassVar[bool] = True
    merges_groups: ClassVar[bool] = True

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.input, self.other)

    def shape(self, *inputs: Shape) -> Shape:
        if inputs[0] != inputs[1]:
            raise InputError(
                f"node {self.name!r} adds {inputs[0]} and {inputs[1]}: "
                "its two branches must have the same shape."
            )
        return inputs[0]


@dataclass(frozen=True)
class Concat(Node):
    """Branches one after another along the channel axis; each part keeps its mask groups.

    Attributes:
      others: names of the second and further branches.
    """

    others: tuple[str, ...]

    keeps_zeros: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.others:
            raise InputError(
                f"node {self.name!r} has others={self.others!r}: give a tuple of one or more names."
            )

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.input, *self.others)

    def shape(self, *inputs: Shape) -> Shape:
        if len({each[:-1] for each in inputs}) > 1:
            raise InputError(
                f"node {self.name!r} concatenates the channels of {', '.join(map(str, inputs))}: "
                "its branches must have the same height and width."
            )
        return (*inputs[0][:-1], sum(each[-1] for each in inputs))

    def channels(self, inputs: Sequence[Channels], output: Shape) -> Channels:
        return tuple(segment for each in inputs for segment in each)


def _image_shape(node: Node, shape: Shape) -> Shape:
    if len(shape) != 3:
        raise InputError(
            f"node {node.name!r} reads features of shape {shape}: it needs (H, W, C), so put it "
            "before Flatten."
        )
    return shape


def _conv_sides(node: Conv | DepthwiseConv, shape: Shape) -> list[int]:
    kernel, sides = node.kernel, _image_shape(node, shape)[:2]
    return [(side + 2 * (kernel // 2) - kernel) // node.stride + 1 for side in sides]


def _conv_synapses(node: Conv | DepthwiseConv, events, kernel, groups: int = 1):
    """`Node.synapses` of a convolution: its output for the events and a kernel of 0 and 1."""
    size, stride, events = node.kernel, node.stride, events.reshape(-1, *events.shape[2:])
    if kernel is None:
        events, kernel = events.sum(-1, keepdims=True), jnp.ones((size, size, 1, 1))
    pad = (size // 2, size // 2)
    return jax.lax.conv_general_dilated(
        events,
        kernel.astype(jnp.float32),
        (stride, stride),
        (pad, pad),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    ).sum()
