"""Our networks with Spyx's neurons, around layers of Flax NNX."""

import jax.numpy as jnp
import spyx
from flax import nnx

from ccsrp_jax.networks.architecture import Architecture, shapes
from ccsrp_jax.networks.neurons import LIF
from ccsrp_jax.networks.nodes import Conv, Dense, Flatten, Node, Norm, Pool, Spike


class Network(nnx.Module):
    """A plain network, with time folded into the batch; `spyx.nn.run` scans each neuron layer.

    A scan of the whole network, as in the examples of Spyx, puts convolutions in a loop, where
    XLA's gradients of them are slow on a CPU.
    """

    def __init__(self, architecture: Architecture, rngs: nnx.Rngs):
        self.architecture = architecture
        for node in architecture.nodes:
            if (layer := make_layer(node, architecture, rngs)) is not None:
                setattr(self, node.name, layer)

    def __call__(self, images):
        mean, std = jnp.array(self.architecture.mean), jnp.array(self.architecture.std)
        x, folded, steps = (images - mean) / std, 1, self.architecture.time_steps
        for node in self.architecture.nodes:
            match node:
                case Spike(name):
                    x = x.reshape(folded, -1, *x.shape[1:])
                    x = jnp.broadcast_to(x, (steps, *x.shape[1:]))
                    x, _ = spyx.nn.run(getattr(self, name), x)
                    x, folded = x.reshape(-1, *x.shape[2:]), steps
                case Pool(window=w):
                    n, h, v, c = x.shape
                    x = x.reshape(n, h // w, w, v // w, w, c).mean((2, 4))
                case Flatten():
                    x = x.reshape(len(x), -1)
                case _:
                    x = getattr(self, node.name)(x)
        return x.reshape(folded, -1, x.shape[-1]).mean(0)


def make_layer(node: Node, architecture: Architecture, rngs: nnx.Rngs) -> nnx.Module | None:
    """The layer of a node with weights or neurons; None for the others."""
    width, neuron = shapes(architecture), architecture.neuron
    if not isinstance(neuron, LIF):
        raise NotImplementedError(f"Spyx is compared with LIF neurons only, not {neuron!r}.")
    match node:
        case Conv(_, source, filters, kernel, stride, bias):
            return nnx.Conv(
                width[source][-1],
                filters,
                (kernel, kernel),
                strides=stride,
                padding=kernel // 2,
                use_bias=bias,
                rngs=rngs,
            )
        case Dense(_, source, filters, bias):
            return nnx.Linear(width[source][0], filters, use_bias=bias, rngs=rngs)
        case Norm(_, source):
            return nnx.BatchNorm(width[source][-1], momentum=0.9, rngs=rngs)
        case Spike(_, source):
            return spyx.nn.LIF(
                width[source],
                beta=1 - 1 / neuron.tau,
                threshold=neuron.threshold,
                activation=spyx.axn.arctan(),
                rngs=rngs,
            )
    return None


def with_weights(architecture: Architecture, variables: dict) -> Network:
    """The network with copies of our parameters."""
    network = Network(architecture, nnx.Rngs(0))
    for name, values in variables["params"].items():
        for leaf, value in values.items():
            getattr(getattr(network, name), leaf)[...] = jnp.copy(value)
    return network
