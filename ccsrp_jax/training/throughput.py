"""Work of a training step, and the peak rate of the device to compare it with."""

import dataclasses
import time
from functools import cache

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.cost import layer_macs
from ccsrp_jax.training.phases import architecture_at
from ccsrp_jax.training.recipe import Recipe
from ccsrp_jax.utils import devices

MATRIX_SIZES = {"cpu": 1536}  # of the matrix product that is timed, by platform
ACCELERATOR_MATRIX_SIZE = 8192


def training_macs(architecture: Architecture, recipe: Recipe, epoch: int) -> int:
    """MACs per image of a training step in the given epoch.

    The forward pass costs the network's MACs, and so does each of the two gradients of the
    backward pass, for weights and for activations. An attack needs the forward pass and the
    gradient for activations in each of its steps. Regularizers are not counted.
    """
    architecture = architecture_at(architecture, recipe, epoch)
    if recipe.relu_epochs > epoch and architecture.encoding == "direct":
        architecture = dataclasses.replace(architecture, time_steps=1)
    attacks = recipe.attacks(epoch)
    versions = (recipe.clean_share(epoch) > 0) + attacks
    steps = recipe.adversarial.steps if recipe.adversarial and attacks else 0
    return sum(layer_macs(architecture).values()) * (3 * versions + 2 * steps)


@cache
def peak_macs(precision: str, mesh: Mesh | None = None) -> float:
    """Measured MACs per second of a large matrix product, times the number of devices.

    The cores of a CPU work on a product together, so that there the number of devices is no
    factor.
    """
    side = MATRIX_SIZES.get(jax.default_backend(), ACCELERATOR_MATRIX_SIZE)
    a = jnp.ones((side, side), precision)
    multiply = jax.jit(jnp.matmul)
    jax.block_until_ready(multiply(a, a))
    times = []
    for _ in range(5):
        began = time.perf_counter()
        jax.block_until_ready(multiply(a, a))
        times.append(time.perf_counter() - began)
    count = 1 if jax.default_backend() == "cpu" else devices.device_count(mesh)
    return count * side**3 / sorted(times)[2]
