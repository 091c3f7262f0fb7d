"""What a layer of neurons has of its own: learned values, and the numbers of its filters."""

import math
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ccsrp_jax.networks.neurons import Neuron, Noise


class LayerValues(NamedTuple):
    """Values of a layer of neurons; None for what its family does not have.

    Attributes:
      leak: replaces 1 / tau.
      self_weight: of the connection of a neuron with itself, by channel.
      filters: by channel, its number in the network that was not yet compact.
    """

    leak: Float[Array, ""] | None = None
    self_weight: Float[Array, "C"] | None = None
    filters: Float[Array, "C"] | None = None


class NeuronLayer(nn.Module):
    """The variables of a layer of neurons, under the name of its node.

    Parameters are `leak`, (1,), whose sigmoid is 1 / tau, and `self_weight`, (C,). Stochastic
    neurons have `filter`, (C,), among the batch statistics: 0, 1, ..., of which a compact network
    keeps those of its filters, so that with one key it draws what the masked network draws.
    """

    neuron: Neuron

    @nn.compact
    def __call__(self, channels: int) -> LayerValues:
        neuron, leak, weight, filters = self.neuron, None, None, None
        if neuron.learned:
            start = nn.initializers.constant(-math.log(neuron.membrane_tau - 1))
            leak = nn.sigmoid(self.param("leak", start, (1,)))[0]
        if neuron.initial_self_weight is not None:
            start = nn.initializers.constant(neuron.initial_self_weight)
            weight = self.param("self_weight", start, (channels,))
        if neuron.stochastic:
            every = partial(jnp.arange, channels, dtype=jnp.float32)
            filters = self.variable("batch_stats", "filter", every).value
        return LayerValues(leak, weight, filters)


def draw_noise(
    neuron: Neuron,
    key: Array,
    filters: Float[Array, "C"],
    shape: tuple[int, ...],
    axis: str | None = None,
) -> Noise:
    """`Neuron.noise` of a layer, with a key for every channel: `key` with its number folded in.

    Args:
      neuron: the family.
      key: of the layer.
      filters: see `LayerValues`.
      shape: (T, B, *features), channels last.
      axis: mesh axis over which the batch is sharded, if any: this device then gets its share of
        the noise of the whole batch, which is that of one device.
    """
    steps, batch, *sides = shape[:-1]
    whole = batch if axis is None else batch * jax.lax.axis_size(axis)
    # an average over training may have moved the numbers by a rounding error
    numbers = jnp.round(filters).astype(jnp.uint32)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
    noise = jax.vmap(lambda key: neuron.noise(key, (steps, whole, *sides)), out_axes=-1)(keys)
    if axis is None:
        return noise
    start = jax.lax.axis_index(axis) * batch
    return jax.tree.map(lambda part: jax.lax.dynamic_slice_in_dim(part, start, batch, 1), noise)
