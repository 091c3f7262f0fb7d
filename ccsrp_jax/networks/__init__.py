"""Spiking networks: neurons, architectures, masks, compaction, costs."""

from ccsrp_jax.networks import cost, gradients, interval_bounds, masks
from ccsrp_jax.networks.architecture import Architecture, groups
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.compaction import compact
from ccsrp_jax.networks.cuba_lif import CubaLIF
from ccsrp_jax.networks.general_conv import GeneralConv
from ccsrp_jax.networks.lowering import register_node
from ccsrp_jax.networks.masks import MaskTree
from ccsrp_jax.networks.neurons import LIF, Neuron, Surrogate, lif, register_neuron, spike
from ccsrp_jax.networks.nodes import (
    Add,
    Concat,
    Conv,
    Dense,
    DepthwiseConv,
    Dropout,
    Flatten,
    GlobalPool,
    Node,
    Norm,
    Pool,
    Spike,
)
from ccsrp_jax.networks.self_connected_lif import SelfConnectedLIF
from ccsrp_jax.networks.serialization import load, save
from ccsrp_jax.networks.spike_rate import SpikeRate
from ccsrp_jax.networks.spiking_network import SpikingNetwork
from ccsrp_jax.networks.stochastic_lif import StochasticLIF
from ccsrp_jax.networks.zoo import MODELS, build, init, plain, residual

__all__ = [
    "LIF",
    "MODELS",
    "Add",
    "Architecture",
    "Classifier",
    "Concat",
    "Conv",
    "CubaLIF",
    "Dense",
    "DepthwiseConv",
    "Dropout",
    "Flatten",
    "GeneralConv",
    "GlobalPool",
    "MaskTree",
    "Neuron",
    "Node",
    "Norm",
    "Pool",
    "SelfConnectedLIF",
    "Spike",
    "SpikeRate",
    "SpikingNetwork",
    "StochasticLIF",
    "Surrogate",
    "build",
    "compact",
    "cost",
    "gradients",
    "groups",
    "init",
    "interval_bounds",
    "lif",
    "load",
    "masks",
    "plain",
    "register_neuron",
    "register_node",
    "residual",
    "save",
    "spike",
]
