"""Flax code of every node kind, and the registration of kinds with it and their interval rules.

A lowering is a function `(node, run, *inputs) -> output`, called while a `SpikingNetwork` runs.
Inputs and output are (S, B, *features), where S is the number of time steps, or 1 for what is
constant in time. Flax modules are created in it under the node's name, `name=node.name`.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array

from ccsrp_jax.networks import interval_rules as rules
from ccsrp_jax.networks.convolution import aligned_conv, masked_dot
from ccsrp_jax.networks.node_base import NODE_KINDS, Node
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
from ccsrp_jax.utils.errors import InputError

NORM_MOMENTUM = 0.9  # share of the running statistics that a training step keeps


class Run(NamedTuple):
    """What a lowering may know about the run of the network that it is part of."""

    train: bool  # batch norm uses the batch, dropout drops
    dtype: DTypeLike  # compute type of layers with a kernel
    kernel_mask: Array | np.ndarray | None  # 0/1, to be multiplied into the node's kernel
    axis: str | None  # axis of a mesh over which the batch is sharded
    key: Array | None  # of this node, for draws in training mode
    split_kernel_gradient: bool  # see `convolution.aligned_conv`


Lowering = Callable[..., Array]
LOWERINGS: dict[type[Node], Lowering] = {}


def register_node(
    kind: type[Node],
    lowering: Lowering | None,
    interval_rule: rules.IntervalRule | None = None,
) -> None:
    """Makes a node kind known: to networks that are built, run, saved and loaded.

    Args:
      kind: a frozen dataclass derived from `Node`; its name is the "op" of saved networks.
      lowering: see the module; None for layers of neurons, which `SpikingNetwork` runs itself.
      interval_rule: how intervals pass through it, see `interval_rules`; networks with kinds that
        have none cannot be certified.

    Raises:
      InputError: the class is no frozen dataclass of that kind, or the name is taken.
    """
    name, params = kind.__name__, getattr(kind, "__dataclass_params__", None)
    if not issubclass(kind, Node) or params is None or not params.frozen:
        raise InputError(
            f"{name} cannot be a node kind: give a class derived from networks.nodes.Node and "
            "decorated with @dataclass(frozen=True)."
        )
    if name in NODE_KINDS:
        raise InputError(
            f"a node kind {name!r} is registered already, by {NODE_KINDS[name].__module__}: give "
            "the class another name."
        )
    if kind.opens_group and "width" not in {field.name for field in dataclasses.fields(kind)}:
        raise InputError(f"{name} opens a mask group: give it a field `width`, its filters.")
    NODE_KINDS[name] = kind
    if lowering is not None:
        LOWERINGS[kind] = lowering
    if interval_rule is not None:
        rules.INTERVAL_RULES[kind] = interval_rule


def lower(node: Node, run: Run, *inputs: Array) -> Array:
    """The output of a node that is no layer of neurons; called while a network runs."""
    return LOWERINGS[type(node)](node, run, *inputs)


def fold_time(layer: Callable[[Any], Array], x: Array) -> Array:
    """Applies a layer to (S, B, *features) with the steps folded into the batch."""
    folded = layer(x.reshape(-1, *x.shape[2:]))
    return folded.reshape(*x.shape[:2], *folded.shape[1:])


def _conv(node: Conv | DepthwiseConv, run: Run, x: Array) -> Array:
    width, groups, bias = x.shape[-1], x.shape[-1], False
    if isinstance(node, Conv):
        width, groups, bias = node.width, 1, node.bias
    layer = nn.Conv(
        width,
        (node.kernel, node.kernel),
        node.stride,
        [(node.kernel // 2, node.kernel // 2)] * 2,
        feature_group_count=groups,
        use_bias=bias,
        dtype=run.dtype,
        conv_general_dilated=partial(
            aligned_conv, mask=run.kernel_mask, split_gradient=run.split_kernel_gradient
        ),
        name=node.name,
    )
    return fold_time(layer, x)


def _dense(node: Dense, run: Run, x: Array) -> Array:
    layer = nn.Dense(
        node.width,
        use_bias=node.bias,
        dtype=run.dtype,
        dot_general=partial(masked_dot, mask=run.kernel_mask),
        name=node.name,
    )
    return fold_time(layer, x)


def _norm(node: Norm, run: Run, x: Array) -> Array:
    layer = nn.BatchNorm(
        use_running_average=not run.train,
        momentum=NORM_MOMENTUM,
        epsilon=rules.NORM_EPSILON,
        dtype=run.dtype,
        scale_init=nn.initializers.constant(node.scale),
        axis_name=run.axis,
        name=node.name,
    )
    return fold_time(layer, x)


def _dropout(node: Dropout, run: Run, x: Array) -> Array:
    if not run.train or node.rate == 0:
        return x
    if run.key is None:
        raise InputError(f"dropout {node.name!r} draws at random in training: give it a key.")
    batch = x.shape[1:]
    if run.axis is None:
        kept = jax.random.bernoulli(run.key, 1 - node.rate, batch)
    else:  # draw for the whole batch, as on one device, and take this device's share
        everyone = (batch[0] * jax.lax.axis_size(run.axis), *batch[1:])
        kept = jax.random.bernoulli(run.key, 1 - node.rate, everyone)
        start = jax.lax.axis_index(run.axis) * batch[0]
        kept = jax.lax.dynamic_slice_in_dim(kept, start, batch[0])
    return jnp.where(kept, x / (1 - node.rate), 0).astype(x.dtype)


def _pool(node: Pool, run: Run, x: Array) -> Array:
    s, b, h, v, c = x.shape
    w = node.window
    x = x[:, :, : h // w * w, : v // w * w].reshape(s, b, h // w, w, v // w, w, c)
    return {"max": x.max, "avg": x.mean, "sum": x.sum}[node.kind]((3, 5))


def _global_pool(node: GlobalPool, run: Run, x: Array) -> Array:
    return x.mean((2, 3), keepdims=True)


def _flatten(node: Flatten, run: Run, x: Array) -> Array:
    return x.reshape(*x.shape[:2], -1)


def _add(node: Add, run: Run, x: Array, other: Array) -> Array:
    return x + other


def _concat(node: Concat, run: Run, *parts: Array) -> Array:
    steps = max(len(part) for part in parts)
    return jnp.concatenate(
        [jnp.broadcast_to(part, (steps, *part.shape[1:])) for part in parts], axis=-1
    )


for _kind, _lowering, _rule in (
    (Conv, _conv, rules.conv),
    (DepthwiseConv, _conv, rules.conv),
    (Dense, _dense, rules.dense),
    (Norm, _norm, rules.norm),
    (Spike, None, None),
    (Dropout, _dropout, rules.dropout),
    (Pool, _pool, rules.pool),
    (GlobalPool, _global_pool, rules.global_pool),
    (Flatten, _flatten, rules.flatten),
    (Add, _add, rules.add),
    (Concat, _concat, rules.concat),
):
    register_node(_kind, _lowering, _rule)
