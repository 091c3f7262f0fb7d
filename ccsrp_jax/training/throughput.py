"""How fast training goes, against how fast the device can multiply."""

import time
from functools import cache

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.cost import layer_macs
from ccsrp_jax.training.recipe import Recipe
from ccsrp_jax.utils import devices

SIDE = {"cpu": 1536}  # of the matrices whose product is timed


SIDE_ELSEWHERE = 8192


def training_macs(architecture: Architecture, recipe: Recipe, epoch: int) -> int:
    """MACs of an image's training step in an epoch.

    A forward pass, and as much for each of the two gradients of the backward pass; an attack
    does the first and one of the others in each of its steps. Regularisers are left out.
    """
    attacks = recipe.attacks(epoch)
    versions = (recipe.clean_share(epoch) > 0) + attacks
    steps = recipe.adversarial.steps if attacks else 0
    return sum(layer_macs(architecture).values()) * (3 * versions + 2 * steps)


@cache
def peak_macs(precision: str, mesh: Mesh | None = None) -> float:
    """MACs a second of a large matrix product, times the devices of a mesh; the cores of a CPU
    multiply together, devices or not."""
    side = SIDE.get(jax.default_backend(), SIDE_ELSEWHERE)
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
