"""Functions that look robust and are not, around one linear classifier whose worst case is known.

Images have 4 x 4 pixels, their labels are what the linear classifier says, and each fraud says the
same of them, or nearly. docs/frauds.md explains each.
"""

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from conftest import linear
from jax.lax import stop_gradient

from ccsrp_jax.data.splits import Split

EPS = 0.05
COUNT = 64
SIDE, CLASSES = 4, 3

_random = np.random.default_rng(0)
_pixels = _random.integers(40, 216, (COUNT, SIDE, SIDE, 1))
IMAGES = (_pixels / 255).astype(np.float32)  # on the grid of 8 bits, and far from 0 and 1
WEIGHTS, DECOY = (  # their columns add up to 0, so that no class prevails
    jnp.asarray((weights - weights.mean(0)).astype(np.float32))
    for weights in _random.normal(size=(2, SIDE * SIDE, CLASSES))
)
LABELS = np.asarray(linear(WEIGHTS, jnp.asarray(IMAGES)).argmax(-1))
SPLIT = Split(IMAGES, LABELS)
MEMORY = jnp.asarray(IMAGES)  # of the images that are evaluated: a memory of the test set
MEMORY_ANSWERS = 10 * jax.nn.one_hot(LABELS, CLASSES)


def left_of(split: Split, weights: Any = WEIGHTS, eps: float = EPS) -> np.ndarray:
    """Which images of the linear classifier no point of the ball moves, in closed form."""
    z = np.asarray(linear(weights, jnp.asarray(split.images)))
    gap = z[np.arange(len(z)), split.labels][:, None] - z
    w = np.asarray(weights)
    reach = np.abs(w.T[split.labels][:, None] - w.T[None]).sum(-1)
    rivals = np.arange(z.shape[1])[None] != split.labels[:, None]
    return np.where(rivals, gap - eps * reach, np.inf).min(-1) > 0


def straight_through(exact, x):
    """The value of `exact`, with the gradient of x."""
    return x + stop_gradient(exact - x)


def one_hot_of(z):
    return jax.nn.one_hot(z.argmax(-1), z.shape[-1])


def nearest(images):
    """Places in the memory, and distances in the maximum norm, of the nearest images."""
    distances = jnp.abs(images[:, None] - MEMORY[None]).max((2, 3, 4))
    return distances.argmin(-1), distances.min(-1)


# --- gradients that are zero, small or wrong ------------------------------------------------------


def quantised(weights, images):
    return linear(weights, jnp.round(images * 32) / 32)


def thermometer(weights, images):
    levels = (jnp.arange(32) + 0.5) / 32
    return linear(weights, (images[..., None] > levels).mean(-1))


_cosines = np.cos(np.pi * (np.arange(SIDE) + 0.5) * np.arange(SIDE)[:, None] / SIDE)
DCT = jnp.asarray(_cosines / np.linalg.norm(_cosines, axis=1, keepdims=True), jnp.float32)


def jpeg(weights, images):
    """Coefficients of the discrete cosine transform, rounded."""
    coefficients = jnp.einsum("ui,bijc,vj->buvc", DCT, images, DCT)
    rounded = jnp.round(coefficients * 16) / 16
    return linear(weights, jnp.einsum("ui,buvc,vj->bijc", DCT, rounded, DCT))


def embedded(weights, images):
    """Every pixel is a word: its level, looked up in a table."""
    levels = jnp.linspace(0, 1, 33)
    words = -jnp.abs(images[..., None] - levels)
    return linear(weights, levels[words.argmax(-1)])


def stopped(weights, images):
    return linear(weights, stop_gradient(images))


@jax.custom_vjp
def reversed_gradient(x):
    return x


reversed_gradient.defvjp(lambda x: (x, None), lambda _, g: (-g,))


def wrong_sign(weights, images):
    return linear(weights, reversed_gradient(images))


def loud(weights, images):
    return 1e5 * linear(weights, images)


def silent(weights, images):
    """Logits so small that the cross-entropy does not change."""
    return 1e-30 * linear(weights, images)


def saturated(weights, images):
    z = linear(weights, images)
    others = jnp.where(jnp.eye(CLASSES, dtype=bool), -jnp.inf, z[:, None]).max(-1)
    return jnp.tanh(50 * (z - others))


def rounded_logits(weights, images):
    return jnp.round(10 * linear(weights, images)) / 10


def shattered(weights, images):
    """A ripple too fine for any step, of far larger slope than the classifier."""
    z = linear(weights, images)
    return z + 0.3 * jnp.sin(2e4 * linear(DECOY, images))


# --- answers in which nothing shows how near another class is -------------------------------------


def one_hot_with_decoy(weights, images):
    decoy = linear(DECOY, images)
    return 10 * one_hot_of(linear(weights, images)) + (decoy - stop_gradient(decoy))


def one_hot_beside_decoy(weights, images):
    """The gradient and the margin are truly those of another network."""
    return 10 * one_hot_of(linear(weights, images)) + 0.1 * linear(DECOY, images)


# --- memories of the images that are evaluated ----------------------------------------------------


def lookup(weights, images):
    return MEMORY_ANSWERS[nearest(images)[0]]


def snapped(weights, images):
    """Back to the memorised image within eps, with the gradient of a classifier that does not."""
    place, distance = nearest(images)
    near = (distance <= 1.01 * EPS)[:, None, None, None]
    return linear(weights, straight_through(jnp.where(near, MEMORY[place], images), images))


def detector(weights, images):
    """What lies between the levels of 8 bits is an attack, and gets the clean image's answer."""
    off = jnp.abs(255 * images - jnp.round(255 * images)).max((1, 2, 3)) > 0.01
    z = linear(weights, images)
    return straight_through(jnp.where(off[:, None], MEMORY_ANSWERS[nearest(images)[0]], z), z)


def by_position(state, images):
    """Labels by the place in the batch: what they are asked about does not matter."""
    _, answers = state
    return answers[jnp.arange(len(images)) % len(answers)]


def not_a_number(weights, images):
    """No answer to what it does not know."""
    known = nearest(images)[1] < 1e-6
    return jnp.where(known[:, None], linear(weights, images), jnp.nan)


# --- answers that depend on more than the image ---------------------------------------------------


def noise_by_hash(weights, images):
    """Noise that is the same for the same image, and another in the last bit of it."""
    bits = jax.lax.bitcast_convert_type(images, jnp.int32).reshape(len(images), -1)
    seeds = (bits * (2 * jnp.arange(bits.shape[1]) + 1)).sum(-1)
    keys = jax.vmap(lambda seed: jax.random.key(seed))(seeds)
    noise = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(keys)
    known = (nearest(images)[1] == 0)[:, None, None, None]
    return linear(weights, images + 0.5 * jnp.where(known, 0, noise))


def resized_by_hash(weights, images):
    """Shifted by a pixel this way or that, as random resizing does, by the last bits of the sum."""
    bits = jax.lax.bitcast_convert_type(images.sum((1, 2, 3)), jnp.int32)
    shifts = [jnp.roll(images, shift, axis) for axis in (1, 2) for shift in (0, 1)]
    z = jnp.stack([linear(weights, shifted) for shifted in shifts])
    known = nearest(images)[1] == 0
    hashed = (bits.astype(jnp.uint32) * jnp.uint32(2654435761)) >> 30
    choice = jnp.where(known, 0, hashed.astype(jnp.int32))
    return jnp.take_along_axis(z, choice[None, :, None], 0)[0]


def batch_norm(weights, images):
    """Batch norm left in training mode."""
    mean, deviation = images.mean(0), images.std(0) + 1e-3
    trained_mean, trained_deviation = MEMORY.mean(0), MEMORY.std(0) + 1e-3
    return linear(weights, (images - mean) / deviation * trained_deviation + trained_mean)


def batch_decoy(weights, images):
    """A batch of which most is unknown is an attack, and gets what is remembered."""
    place, distance = nearest(images)
    attacked = (distance > 0).mean() > 0.5
    z = linear(weights, images)
    return straight_through(jnp.where(attacked, MEMORY_ANSWERS[place], z), z)


def batch_size(weights, images):
    """Remembered answers for batches, honest ones to who asks about one image."""
    if len(images) == 1:
        return linear(weights, images)
    return straight_through(MEMORY_ANSWERS[nearest(images)[0]], linear(weights, images))


@dataclass(frozen=True)
class Undeclared:
    """Noise from the host in every call, by a function that is not declared stochastic."""

    def __call__(self, weights, images):
        shape = jax.ShapeDtypeStruct((len(images), CLASSES), jnp.float32)
        z = linear(weights, images)
        noise = jax.pure_callback(self.draw, shape, stop_gradient(z))
        return z + noise

    def draw(self, z):
        return np.random.default_rng().normal(0, 0.5, z.shape).astype(np.float32)


def drawn_while_traced(weights, images):
    """NumPy's noise becomes a constant of each compiled program: attacks see another one."""
    noise = np.random.default_rng().normal(0, 0.2, images.shape[1:]).astype(np.float32)
    return linear(weights, images + noise)


@dataclass(frozen=True)
class ByCalls:
    """Honest in its first calls, then the memory of what it said."""

    calls: list = dataclasses.field(default_factory=list, hash=False, compare=False)
    honest: int = 5

    def __call__(self, weights, images):
        z = linear(weights, images)
        late = jax.pure_callback(self.count, jax.ShapeDtypeStruct((), bool), stop_gradient(z))
        return straight_through(jnp.where(late, MEMORY_ANSWERS[nearest(images)[0]], z), z)

    def count(self, z):
        self.calls.append(len(z))
        return np.asarray(len(self.calls) > self.honest)


@dataclass(frozen=True)
class ByTraces:
    """The first program that is compiled judges; those compiled later, for attacks, mislead."""

    traces: list = dataclasses.field(default_factory=list, hash=False, compare=False)

    def __call__(self, weights, images):
        self.traces.append(len(images))
        honest = linear(weights, images)
        if len(self.traces) <= 3:
            return honest
        return straight_through(honest, linear(DECOY, images))


@jax.custom_vjp
def two_faced(weights, images):
    """While it is differentiated it is another function."""
    return linear(weights, images)


two_faced.defvjp(
    lambda weights, images: (linear(DECOY, images), weights),
    lambda weights, g: (jnp.zeros_like(weights), (g @ DECOY.T).reshape(-1, SIDE, SIDE, 1)),
)


# --- stochastic, and other backward passes --------------------------------------------------------


@dataclass(frozen=True)
class Drowned:
    """Declared stochastic: noise in the gradient alone, more than an average over draws removes."""

    stochastic = True

    def __call__(self, weights, images, *, key):
        decoy = linear(3000 * jax.random.normal(key, weights.shape), images)
        return linear(weights, images) + (decoy - stop_gradient(decoy))


@dataclass(frozen=True)
class LeakedKey:
    """Labels in the bits of the key: evaluations hash it, so they never arrive."""

    stochastic = True

    def __call__(self, weights, images, *, key):
        word = jax.random.key_data(key)[0]
        return 10 * jax.nn.one_hot((word >> (2 * jnp.arange(len(images)) % 32)) & 3, CLASSES)


HIDDEN = 48
_inner = _random.normal(size=(SIDE * SIDE, HIDDEN)).astype(np.float32)
_hidden = (IMAGES.reshape(COUNT, -1) - 0.5) @ _inner >= 0
_outer = np.linalg.lstsq(_hidden - 0.5, np.eye(CLASSES)[LABELS], rcond=None)[0]
SPIKING = jnp.asarray(_inner), jnp.asarray(_outer.astype(np.float32))


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def step(v, width):
    return (v >= 0).astype(v.dtype)


@step.defjvp
def _step_jvp(width, primals, tangents):
    (v,), (change,) = primals, tangents
    return step(v, width), (jnp.abs(v) < width / 2) / width * change


@dataclass(frozen=True)
class Steps:
    """A layer of units that fire above 0, fitted to the labels, and its surrogate's width."""

    width: float

    def __call__(self, weights, images):
        inner, outer = weights
        return (step((images.reshape(len(images), -1) - 0.5) @ inner, self.width) - 0.5) @ outer


@dataclass(frozen=True)
class SameBackward(Steps):
    """It says that it takes other surrogate gradients, and goes on with its own."""

    def with_backward(self, backward):
        return self


@dataclass(frozen=True)
class OtherForward(Steps):
    """Its copies with other surrogate gradients are another network."""

    decoy: bool = False

    def __call__(self, weights, images):
        if self.decoy:
            return linear(DECOY, images)
        return super().__call__(weights, images)

    def with_backward(self, backward):
        return dataclasses.replace(self, decoy=True)
