"""Spiking networks: neurons, architectures, masks, compaction, costs."""

from ccsrp_jax.networks import cost, gradients, masks
from ccsrp_jax.networks.architecture import Architecture, groups
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.compaction import compact
from ccsrp_jax.networks.masks import MaskTree
from ccsrp_jax.networks.neurons import LIF, Surrogate, lif, spike
from ccsrp_jax.networks.nodes import Add, Conv, Dense, Flatten, Norm, Pool, Spike
from ccsrp_jax.networks.serialization import load, save
from ccsrp_jax.networks.spiking_network import SpikingNetwork
from ccsrp_jax.networks.zoo import MODELS, build, init, plain, residual

__all__ = [
    "LIF",
    "MODELS",
    "Add",
    "Architecture",
    "Classifier",
    "Conv",
    "Dense",
    "Flatten",
    "MaskTree",
    "Norm",
    "Pool",
    "Spike",
    "SpikingNetwork",
    "Surrogate",
    "build",
    "compact",
    "cost",
    "gradients",
    "groups",
    "init",
    "lif",
    "load",
    "masks",
    "plain",
    "residual",
    "save",
    "spike",
]
