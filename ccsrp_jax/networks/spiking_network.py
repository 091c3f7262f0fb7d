"""The spiking network as a Flax module."""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ccsrp_jax.networks.architecture import Architecture, live_at
from ccsrp_jax.networks.gradients import (
    Backward,
    LayerState,
    Surrogate,
    SurrogateState,
    lif_with_backward,
)
from ccsrp_jax.networks.lowering import Run, lower
from ccsrp_jax.networks.masks import MaskTree, check_fit, gate, kernel
from ccsrp_jax.networks.neuron_layer import LayerValues, NeuronLayer, draw_noise
from ccsrp_jax.networks.nodes import IMAGE
from ccsrp_jax.utils.errors import InputError

# folded into the key, for random nodes in training and stochastic neurons; the trainer uses 1
DROPOUT, NEURONS = 2, 3

Values = dict[str, Array]  # node name -> (S, B, *features), S = T or 1 where constant in time


class Activity(NamedTuple):
    """Activity of the LIF layers, by name of their node, each (T, B, *features)."""

    spikes: Values  # after masking
    potentials: Values  # before the reset, without masking
    surrogate_state: SurrogateState  # for `gradients.AdaptiveSharpness` and `RandomWidth` only


class SpikingNetwork(nn.Module):
    """Runs an `Architecture` on images in [0, 1].

    For convolutions, dense layers and batch norm, time is folded into the batch axis; only neurons
    loop over T. Values that are constant in time (all before the first LIF layer) are computed
    once instead of T times.

    For the policies of `jax.checkpoint`, outputs of layers with kernels are named "layer", and
    those of neurons "spikes".

    Attributes:
      architecture: the graph, T, the neuron and the input normalization.
      dtype: compute type of convolutions and dense layers; parameters, batch statistics
        and membrane potentials are float32.
      axis: mesh axis over which the batch is sharded, if any; batch norm averages its moments
        over it.
      split_kernel_gradient: in training, compute gradients of kernels in parts, which is faster
        on CPUs; see `convolution.aligned_conv`.
    """

    architecture: Architecture
    dtype: DTypeLike = jnp.float32
    axis: str | None = None
    split_kernel_gradient: bool = False

    def __call__(
        self,
        images: Float[Array, "B H W C"],
        masks: MaskTree | None = None,
        *,
        surrogate: Backward = Surrogate(),
        train: bool = False,
        activity: bool = False,
        per_step: bool = False,
        key: Array | None = None,
        surrogate_state: SurrogateState | None = None,
    ) -> Float[Array, "*T B K"] | tuple[Float[Array, "*T B K"], Activity]:
        """Logits, averaged over time.

        Args:
          images: NHWC in [0, 1], before normalization.
          masks: as in `masks`; groups and kernels without a mask are not masked.
          surrogate: the backward pass; only `gradients.Relu` and `SoftSpike` change the output.
          train: batch norm uses batch statistics (and updates its running averages, with
            `mutable=["batch_stats"]`), and dropout is active.
          activity: also return the spikes and potentials of every LIF layer.
          per_step: return the logits of every step, (T, B, K), instead of their mean.
          key: for a stochastic encoding or stochastic neurons, and for dropout in training.
          surrogate_state: of a stateful backward pass, from the previous iteration.
        """
        values, active = self.walk(
            self.encode(images, key),
            masks,
            surrogate=surrogate,
            train=train,
            activity=activity,
            key=key,
            surrogate_state=surrogate_state,
        )
        logits = self.readout(values, per_step=per_step)
        return (logits, active) if activity else logits

    def encode(self, images: Float[Array, "B H W C"], key: Array | None = None) -> Values:
        """The normalized input of each time step, or one for all steps if it is constant.

        The Poisson encoding has a straight-through gradient.

        Raises:
          InputError: a stochastic encoding without a key.
        """
        a = self.architecture
        x_SxBxHxWxC = images[None]
        if a.stochastic_encoding:
            if key is None:
                raise InputError(f"the {a.encoding} encoding draws at random: give it a key.")
            shape = (a.time_steps, *images.shape)
            if a.encoding == "poisson":
                spikes = jax.random.bernoulli(key, jnp.clip(images, 0, 1), shape)
                x_SxBxHxWxC = spikes + (images - jax.lax.stop_gradient(images))
            else:
                x_SxBxHxWxC = images + a.noise * jax.random.normal(key, shape, images.dtype)
        if a.encoding == "frames":
            frames = images.reshape(*images.shape[:3], a.time_steps, -1)
            x_SxBxHxWxC = jnp.moveaxis(frames, 3, 0)
        mean, std = jnp.array(a.mean), jnp.array(a.std)
        return {IMAGE: ((x_SxBxHxWxC - mean) / std).astype(self.dtype)}

    def readout(self, values: Values, *, per_step: bool = False) -> Float[Array, "*T B K"]:
        """The logits: the classifier's output, averaged over time or for each step."""
        logits_SxBxK = values[self.architecture.nodes[-1].name].astype(jnp.float32)
        if not per_step:
            return logits_SxBxK.mean(0)
        return jnp.broadcast_to(
            logits_SxBxK, (self.architecture.time_steps, *logits_SxBxK.shape[1:])
        )

    @nn.compact
    def walk(
        self,
        values: Values,
        masks: MaskTree | None = None,
        *,
        begin: int = 0,
        end: int | None = None,
        keep: Sequence[str] = (),
        surrogate: Backward = Surrogate(),
        train: bool = False,
        activity: bool = False,
        key: Array | None = None,
        surrogate_state: SurrogateState | None = None,
    ) -> tuple[Values, Activity]:
        """Runs the nodes from position `begin` up to `end`.

        A walk to a group's gate followed by a walk from there equals a single walk; scoring shares
        the first among all candidates for that group.

        Args:
          values: by name, values of earlier nodes that these nodes read.
          masks, surrogate, train, activity, key, surrogate_state: as in `__call__`.
          begin, end: positions in `architecture.nodes`; `end` is by default behind the last.
          keep: names of further values to return.

        Returns:
          The values that nodes from `end` on read (the classifier's output, if `end` is behind
          the last) and those in `keep`; and the activity, empty unless `activity` is set.

        Raises:
          InputError: a mask of an unknown group or of a wrong shape, or no key for stochastic
            neurons.
        """
        nodes = self.architecture.nodes
        end = len(nodes) if end is None else end
        masks = masks or {}
        check_fit(self.architecture, masks)
        values, active = dict(values), Activity({}, {}, {})
        for position, node in enumerate(nodes[begin:end], begin):
            name, inputs = node.name, [values[name] for name in node.inputs]
            if node.spiking:
                statistics = (surrogate_state or {}).get(name)
                stochastic = self.architecture.neuron.stochastic
                draws = self._key(key, NEURONS, position) if stochastic else None
                x, potential, statistics = self._neurons(
                    name, inputs[0], masks, surrogate, statistics, draws
                )
                if activity:
                    active.spikes[name], active.potentials[name] = x, potential
                    if statistics is not None:
                        active.surrogate_state[name] = statistics
            else:
                run = Run(
                    train,
                    self.dtype,
                    masks.get(kernel(name)),
                    self.axis,
                    self._key(key, DROPOUT, position) if train and node.draws_in_training else None,
                    train and self.split_kernel_gradient,
                )
                x = lower(node, run, *inputs)
                if node.has_kernel:
                    x = checkpoint_name(x, "layer")
            values[name] = x
        wanted = {*live_at(self.architecture, end), *keep}
        if end == len(nodes):
            wanted.add(nodes[-1].name)
        return {name: value for name, value in values.items() if name in wanted}, active

    def _neurons(
        self,
        name: str,
        x: Float[Array, "S B *N"],
        masks: MaskTree,
        surrogate: Backward,
        statistics: LayerState | None,
        key: Array | None,
    ) -> tuple[Array, Array, LayerState | None]:
        """`lif_with_backward` of a `Spike` node, with its spikes gated by the masks."""
        neuron, time_steps = self.architecture.neuron, self.architecture.time_steps
        own, noise = LayerValues(), None
        if neuron.has_variables:
            own = NeuronLayer(neuron, name=name)(x.shape[-1])
        if own.filters is not None:
            if key is None:
                family = type(neuron).__name__
                raise InputError(f"{family} neurons draw at random: give the network a key.")
            shape = (time_steps, *x.shape[1:])
            noise = draw_noise(neuron, key, own.filters, shape, self.axis)
        spikes, potential, statistics = lif_with_backward(
            *(x, neuron, surrogate, time_steps, statistics, own.leak),
            self_weight=own.self_weight,
            noise=noise,
        )
        spikes = checkpoint_name(spikes, "spikes")
        if (mask := gate(self.architecture, name, masks)) is not None:
            spikes = spikes * mask.astype(spikes.dtype)
        return spikes, potential, statistics

    def _key(self, key: Array | None, purpose: int, position: int) -> Array | None:
        """The key of a node that draws at random; the encoding uses `key` itself."""
        if key is None:
            return None
        return jax.random.fold_in(jax.random.fold_in(key, purpose), position)
