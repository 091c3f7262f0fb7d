"""How intervals pass through every node kind.

A rule is a function `(node, run, *inputs) -> output` of intervals, (S, B, *features) as in
`lowering`, for the node in evaluation mode. The output must contain all that the node computes in
float32 for inputs in the intervals; see `intervals`. Kinds from outside give theirs to
`register_node`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ccsrp_jax.networks import intervals
from ccsrp_jax.networks.convolution import aligned_conv, masked_dot
from ccsrp_jax.networks.intervals import Interval
from ccsrp_jax.networks.node_base import Node
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
)
from ccsrp_jax.utils.errors import InputError

NORM_EPSILON = 1e-5  # added to the variance


class IntervalRun(NamedTuple):
    """What a rule may know about the propagation that it is part of."""

    variables: Mapping[str, Array]  # parameters and batch statistics of the node, by name
    kernel_mask: Array | np.ndarray | None  # 0/1, to be multiplied into the node's kernel
    unit: float  # roundoff, see `intervals`
    split_kernel_gradient: bool  # see `convolution.aligned_conv`


IntervalRule = Callable[..., Interval]
INTERVAL_RULES: dict[type[Node], IntervalRule] = {}  # see `lowering.register_node`


def interval_rule(node: Node) -> IntervalRule:
    """The rule of a node that is no layer of neurons.

    Raises:
      InputError: its kind has none.
    """
    if (rule := INTERVAL_RULES.get(type(node))) is None:
        raise InputError(
            f"node {node.name!r} is a {type(node).__name__}, which has no rule for intervals: give "
            "register_node an `interval_rule` to bound networks with it."
        )
    return rule


def fold(layer: Callable[[Array, Array], Array], x: Array, kernel: Array) -> Array:
    folded = layer(x.reshape(-1, *x.shape[2:]), kernel)
    return folded.reshape(*x.shape[:2], *folded.shape[1:])


def conv(node: Conv | DepthwiseConv, run: IntervalRun, x: Interval) -> Interval:
    kernel, pad = run.variables["kernel"], node.kernel // 2
    layer = partial(
        aligned_conv,
        window_strides=(node.stride, node.stride),
        padding=[(pad, pad)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=1 if isinstance(node, Conv) else kernel.shape[-1],
        mask=run.kernel_mask,
        split_gradient=run.split_kernel_gradient,
    )
    terms = int(np.prod(kernel.shape[:-1]))
    bias = run.variables.get("bias")
    return intervals.linear(partial(fold, layer), x, kernel, bias, terms, run.unit)


def dense(node: Dense, run: IntervalRun, x: Interval) -> Interval:
    kernel, bias = run.variables["kernel"], run.variables.get("bias")
    product = partial(masked_dot, dimension_numbers=(((1,), (0,)), ((), ())), mask=run.kernel_mask)
    return intervals.linear(partial(fold, product), x, kernel, bias, kernel.shape[0], run.unit)


def norm(node: Norm, run: IntervalRun, x: Interval) -> Interval:
    """With the running statistics, as in evaluation."""
    v = run.variables
    scale = jax.lax.rsqrt(v["var"] + NORM_EPSILON) * v["scale"]
    return intervals.affine(x, v["mean"], scale, v["bias"], run.unit)


def dropout(node: Dropout, run: IntervalRun, x: Interval) -> Interval:
    return x


def pool(node: Pool, run: IntervalRun, x: Interval) -> Interval:
    w, (s, b, h, v, c) = node.window, x.lower.shape

    def windows(end):
        end = end[:, :, : h // w * w, : v // w * w]
        return end.reshape(s, b, h // w, w, v // w, w, c)

    if node.kind == "max":
        return x.map(lambda end: windows(end).max((3, 5)))
    mean = intervals.mean(x.map(windows), (3, 5), w * w, run.unit)
    if node.kind == "avg":
        return mean
    # the mean's slack becomes that of the sum; 8 units more cover the product
    total = mean.map(lambda end: w * w * end)
    return total.widened(8 * run.unit * total.magnitude)


def global_pool(node: GlobalPool, run: IntervalRun, x: Interval) -> Interval:
    positions = x.lower.shape[2] * x.lower.shape[3]
    return intervals.mean(x, (2, 3), positions, run.unit, keepdims=True)


def flatten(node: Flatten, run: IntervalRun, x: Interval) -> Interval:
    return x.map(lambda end: end.reshape(*end.shape[:2], -1))


def add(node: Add, run: IntervalRun, x: Interval, other: Interval) -> Interval:
    total = Interval(x.lower + other.lower, x.upper + other.upper)
    return total.widened(2 * run.unit * (x.magnitude + other.magnitude))


def concat(node: Concat, run: IntervalRun, *parts: Interval) -> Interval:
    steps = max(len(part.lower) for part in parts)

    def joined(ends):
        full = [jnp.broadcast_to(end, (steps, *end.shape[1:])) for end in ends]
        return jnp.concatenate(full, axis=-1)

    return Interval(*(joined(ends) for ends in zip(*parts, strict=True)))
