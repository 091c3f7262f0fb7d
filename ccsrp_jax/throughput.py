"""How fast training goes, against how fast the device can multiply."""

import time
from functools import cache

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ccsrp_jax import cost, devices
from ccsrp_jax.architecture import Architecture, Conv, Dense, varies_in_time
from ccsrp_jax.recipe import Recipe

SIDE = {"cpu": 1536}  # of the matrices whose product is timed
SIDE_ELSEWHERE = 8192


def layer_macs(architecture: Architecture) -> dict[str, int]:
    """MACs that a forward pass does on an image, by layer: over all steps, or once where the
    input is constant in time."""
    varies, macs = varies_in_time(architecture), cost.macs(architecture)
    return {
        node.name: macs[node.name] * (architecture.time_steps if varies[node.input] else 1)
        for node in architecture.nodes
        if isinstance(node, Conv | Dense)
    }


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
    count = 1 if jax.default_backend() == "cpu" else devices.count(mesh)
    return count * side**3 / sorted(times)[2]
