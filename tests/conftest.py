"""Shared small networks and data; JAX's caches are dropped between modules to bound memory."""

import os

os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", "")  # what earlier runs kept is not tested

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccsrp_jax import data, models
from ccsrp_jax.architecture import Architecture

PLAN = (6, "A", 5, 4)


@pytest.fixture(autouse=True, scope="module")
def _bounded_caches():
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def digits() -> data.Dataset:
    return data.load("digits")


@pytest.fixture(scope="session")
def images(digits) -> jax.Array:
    return jnp.asarray(digits.train.images[:16])


@pytest.fixture(scope="session")
def network():
    """A small architecture and variables whose layers all spike."""
    architecture = models.plain(PLAN, (8, 8, 1), 10, time_steps=3, mean=(0.3,), std=(0.4,))
    return architecture, busy(architecture, seed=0)


def linear(weights, images):
    """A linear classifier: its worst case in the ball is known."""
    return images.reshape(images.shape[0], -1) @ weights


def curved(weights, images):
    """A small network whose loss has more than one maximum in the ball."""
    inner, outer = weights
    return jnp.tanh(images.reshape(images.shape[0], -1) @ inner) @ outer


def curved_weights(random: np.random.Generator, pixels: int, classes: int = 5, scale: float = 1):
    """Those of `curved`, in float32; the larger the scale, the more maxima."""
    inner = random.normal(0, scale, (pixels, 12)).astype(np.float32)
    outer = random.normal(size=(12, classes)).astype(np.float32)
    return jnp.asarray(inner), jnp.asarray(outer)


def busy(architecture: Architecture, seed: int) -> dict:
    """Random weights, with batch norms, biases and shifts far from where training starts."""
    random = np.random.default_rng(seed)
    ranges = {"var": (0.02, 0.2), "scale": (0.8, 1.6), "mean": (-0.4, 0.4), "bias": (-0.2, 1.0)}

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            value = random.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
        else:
            value = random.uniform(*ranges[name], leaf.shape)
        return jnp.asarray(value, leaf.dtype)

    shapes = jax.eval_shape(lambda key: models.init(key, architecture), jax.random.key(0))
    return jax.tree_util.tree_map_with_path(draw, shapes)
