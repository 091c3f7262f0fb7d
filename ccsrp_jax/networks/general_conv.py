"""A convolution with any kernel, stride, padding, dilation and groups, as other libraries have."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from ccsrp_jax.networks import intervals
from ccsrp_jax.networks.convolution import aligned_conv
from ccsrp_jax.networks.interval_rules import IntervalRun, fold
from ccsrp_jax.networks.intervals import Interval
from ccsrp_jax.networks.lowering import Run, fold_time, register_node
from ccsrp_jax.networks.node_base import Node, Shape
from ccsrp_jax.networks.nodes import SIDE
from ccsrp_jax.utils.errors import InputError
from ccsrp_jax.utils.fields import SIZE, Limits

Pair = tuple[int, int]


@dataclass(frozen=True)
class GeneralConv(Node):
    """Convolution as torch's Conv2d, for imported networks; `Conv` is the common case of it.

    With more than one group, neither the channels that it reads nor its filters are pruned.

    Attributes:
      width: number of filters.
      kernel, stride, padding, dilation: (vertical, horizontal); zeros are padded on both sides.
      groups: number of parts into which the input channels are divided; a filter reads one.
      bias: whether it has one.
    """

    width: int
    kernel: Pair = (3, 3)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    bias: bool = False

    limits: ClassVar[Mapping[str, Limits]] = {
        **dict.fromkeys(("kernel", "stride", "dilation"), SIDE),
        "padding": Limits(0, SIDE.high),
        "groups": SIZE,
    }
    opens_group: ClassVar[bool] = True
    has_kernel: ClassVar[bool] = True
    input_axis: ClassVar[dict[str, int]] = {"kernel": -2}
    output_axis: ClassVar[dict[str, int]] = {"kernel": -1, "bias": -1}

    @property
    def fixes_channels(self) -> bool:  # type: ignore[override]
        return self.groups > 1

    def shape(self, *inputs: Shape) -> Shape:
        if len(inputs[0]) != 3:
            raise InputError(
                f"node {self.name!r} reads features of shape {inputs[0]}: it needs (H, W, C), so "
                "put it before Flatten."
            )
        if inputs[0][-1] % self.groups or self.width % self.groups:
            raise InputError(
                f"node {self.name!r} has {self.groups} groups for {inputs[0][-1]} channels and "
                f"{self.width} filters: give a common divisor of both."
            )
        geometry = zip(
            *(inputs[0][:2], self.kernel, self.stride, self.padding, self.dilation), strict=True
        )
        sides = [(side + 2 * p - d * (k - 1) - 1) // s + 1 for side, k, s, p, d in geometry]
        return (*sides, self.width)

    def param_shapes(self, inputs: Sequence[Shape], output: Shape) -> dict[str, Shape]:
        kernel = (*self.kernel, inputs[0][-1] // self.groups, output[-1])
        return {"kernel": kernel} | ({"bias": output[-1:]} if self.bias else {})

    def macs(self, inputs: Sequence[Shape], output: Shape) -> int:
        return math.prod(self.kernel) * inputs[0][-1] // self.groups * math.prod(output)

    def fan_out(self, width: int) -> int:
        return width // self.groups

    def synapses(self, events, kernel):
        groups, events = self.groups, events.reshape(-1, *events.shape[2:])
        if kernel is None:
            events, kernel = events.sum(-1, keepdims=True), jnp.ones((*self.kernel, 1, 1))
            groups = 1
        return self._convolve(events, kernel.astype(jnp.float32), groups).sum()

    def _convolve(self, x, kernel, groups):
        return jax.lax.conv_general_dilated(x, kernel, **{**geometry(self), **_groups(groups)})

    def take(
        self, leaves: Mapping[str, Any], kept_in: Sequence[Any], kept_out: Any
    ) -> dict[str, Any]:
        if self.groups > 1:  # nothing was removed
            return dict(leaves)
        return super().take(leaves, kept_in, kept_out)


def geometry(node: GeneralConv) -> dict[str, Any]:
    """Arguments of `lax.conv_general_dilated`."""
    return {
        "window_strides": node.stride,
        "padding": [(pad, pad) for pad in node.padding],
        "rhs_dilation": node.dilation,
        "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
        **_groups(node.groups),
    }


def _groups(groups: int) -> dict[str, int]:
    return {"feature_group_count": groups}


def lowering(node: GeneralConv, run: Run, x):
    """The Flax layer."""
    layer = nn.Conv(
        node.width,
        node.kernel,
        node.stride,
        [(pad, pad) for pad in node.padding],
        kernel_dilation=node.dilation,
        feature_group_count=node.groups,
        use_bias=node.bias,
        dtype=run.dtype,
        conv_general_dilated=partial(
            aligned_conv, mask=run.kernel_mask, split_gradient=run.split_kernel_gradient
        ),
        name=node.name,
    )
    return fold_time(layer, x)


def interval_rule(node: GeneralConv, run: IntervalRun, x: Interval) -> Interval:
    """See `interval_rules`."""
    kernel = run.variables["kernel"]
    layer = partial(
        aligned_conv,
        mask=run.kernel_mask,
        split_gradient=run.split_kernel_gradient,
        **geometry(node),
    )
    terms = math.prod(kernel.shape[:-1])
    bias = run.variables.get("bias")
    return intervals.linear(partial(fold, layer), x, kernel, bias, terms, run.unit)


register_node(GeneralConv, lowering, interval_rule)
