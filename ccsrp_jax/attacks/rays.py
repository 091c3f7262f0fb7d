"""RayS: an attack by decisions alone, which flat or misleading logits cannot hide from."""

import dataclasses
import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ccsrp_jax.attacks.base import AttackKind, RestartedAttack
from ccsrp_jax.attacks.queries import query
from ccsrp_jax.attacks.square import CHECK_EVERY
from ccsrp_jax.attacks.threat_model import Norm, check_attack, per_image
from ccsrp_jax.data.splits import to_unit_range
from ccsrp_jax.networks.classifier import predicted_classes

TOLERANCE = 1e-3  # of the bisection, the source's
NONE = 2.0  # a radius beyond the box, where no image is known to be misclassified


class RaySState(NamedTuple):
    """Of each image the direction of the smallest radius so far, and the one that is tried.

    A query either tries whether the image is misclassified at the smallest radius along the
    direction with a block of signs flipped, or bisects the radius along a direction where it was.
    """

    direction: Float[Array, "B H W C"]  # signs
    radius: Float[Array, "B"]  # NONE until an image is misclassified at radius 1
    trial: Float[Array, "B H W C"]
    bisecting: Bool[Array, "B"]
    low: Float[Array, "B"]  # of the bisection; 0 before its first query, which is at eps
    high: Float[Array, "B"]
    level: Int[Array, "B"]  # signs are divided into 2^level blocks; -1 before the first query
    block: Int[Array, "B"]  # the next one to flip
    passes: Int[Array, "B"]  # completed passes over all levels
    broken: Bool[Array, "B"]  # misclassified at a radius of at most eps


@dataclass(frozen=True)
class RayS(RestartedAttack):
    """Search for the direction of signs with the smallest radius of misclassification.

    The decision's radius along a direction d in {-1, 1}^n, g(d) = min {r: image + r d clipped to
    the box is misclassified}, needs labels only. Blocks of signs are flipped one after another, all
    of them at first, then halves, quarters and so on; a flip is kept where the image is still
    misclassified at the smallest radius so far, which is then reduced by bisection. An image is
    broken once its radius is eps or less. All images make one query at a time, each in its own
    phase. After single pixels the source goes on with the same ones; here a new pass from halves
    on flips random subsets instead of contiguous blocks.

    It does not run under an outer `jit`.

    Attributes:
      eps: radius in pixel units, where images span [0, 1].
      budget: queries of the network per image and restart.
      restarts: independent searches, the first from the direction of ones, as in the source, the
        others from random directions; the worst result of each image counts.
      samples: draws over which a stochastic network's logits are averaged in every query.
      random_start: begin at a random direction.

    References:
      Chen and Gu, RayS: A Ray Searching Method for Hard-label Adversarial Attack, KDD 2020.
    """

    kind: ClassVar[AttackKind] = "black box"
    norms: ClassVar[tuple[Norm, ...]] = ("linf",)
    norm: ClassVar[Norm] = "linf"
    gradients: ClassVar[int] = 0

    eps: float = 8 / 255
    budget: int = 1000
    restarts: int = 1
    samples: int = 1
    random_start: bool = False

    def __post_init__(self) -> None:
        check_attack(self)

    @property
    def queries(self) -> int:
        """Queries per image, at most."""
        return self.budget * self.restarts * self.samples

    @property
    def parts(self) -> tuple["RayS", ...]:
        """One attack for every restart."""
        return tuple(
            dataclasses.replace(self, restarts=1, random_start=self.random_start or number > 0)
            for number in range(self.restarts)
        )

    def run_once(self, classifier, network_state, images, labels, key):
        """One restart; arguments as for a call."""
        images = to_unit_range(images)
        key_start, key_moves, key_network = jax.random.split(key, 3)
        direction = jnp.ones_like(images)
        if self.random_start:
            direction = jax.random.rademacher(key_start, images.shape, images.dtype)
        state = _start(direction)
        for number in range(self.budget):
            if number % CHECK_EVERY == 1 and state.broken.all():
                break
            state = _step(
                classifier,
                self.samples,
                network_state,
                images,
                labels,
                (key_moves, key_network),
                number,
                state,
                self.eps,
            )
        return self.threat.project(images + self.eps * state.direction, images)


@jax.jit
def _start(direction):
    zeros, integers = (jnp.zeros(len(direction), kind) for kind in (jnp.float32, jnp.int32))
    no = jnp.zeros(len(direction), bool)
    return RaySState(
        direction=direction,
        radius=zeros + NONE,
        trial=direction,
        bisecting=no,
        low=zeros,
        high=zeros,
        level=integers - 1,
        block=integers,
        passes=integers,
        broken=no,
    )


@partial(jax.jit, static_argnums=(0, 1))
def _step(classifier, samples, network_state, images, labels, keys, number, state, eps):
    """One query of every image, and the state after it."""
    key_moves, key_network = keys
    flipped = _flipped(jax.random.fold_in(key_moves, number), state)
    first = state.bisecting & (state.low == 0)
    middle = jnp.where(first, jnp.minimum(eps, state.high), (state.low + state.high) / 2)
    largest = jnp.minimum(state.radius, 1.0)
    radius = jnp.where(state.bisecting, middle, largest)
    trial = jnp.where(per_image(state.bisecting), state.trial, flipped)
    x = jnp.clip(images + per_image(radius) * trial, 0, 1)
    z = query(classifier, samples, network_state, x, key_network, number)
    wrong = predicted_classes(z) != labels
    after = _after_query(state, trial, radius, wrong, eps, images[0].size)
    return jax.tree.map(lambda old, new: _where(state.broken, old, new), state, after)


def _after_query(state, trial, radius, wrong, eps, pixels):
    """The state after a query of `trial` at `radius`, as if no image had been broken."""
    bisecting = state.bisecting
    high = jnp.where(wrong, radius, jnp.where(bisecting, state.high, state.radius))
    low = jnp.where(bisecting, jnp.where(wrong, state.low, radius), 0.0)
    broken = wrong & (radius <= eps)
    ended = bisecting & (high - low < TOLERANCE) & (low > 0)
    kept = ended | broken
    missed = ~bisecting & ~wrong
    level, block, passes = _next_block(state, pixels)
    advance = missed | ended
    return RaySState(
        direction=jnp.where(per_image(kept), trial, state.direction),
        radius=jnp.where(kept, high, state.radius),
        trial=trial,
        bisecting=jnp.where(bisecting, ~ended, wrong),
        low=low,
        high=high,
        level=jnp.where(advance, level, state.level),
        block=jnp.where(advance, block, state.block),
        passes=jnp.where(advance, passes, state.passes),
        broken=broken,
    )


def _flipped(key, state):
    """The direction with the next block of signs flipped; all as they are before the first."""
    _, h, w, c = state.direction.shape
    pixels = h * w * c
    # by channels, then rows, as in the source, whose images are (C, H, W)
    place = jnp.arange(pixels).reshape(c, h, w).transpose(1, 2, 0)
    size = per_image(_block_size(state.level, pixels))
    block = place // size == per_image(state.block)
    subset = jax.random.uniform(key, state.direction.shape) < size / pixels
    flip = jnp.where(per_image(state.passes > 0), subset, block) & per_image(state.level >= 0)
    return jnp.where(flip, -state.direction, state.direction)


def _block_size(level, pixels):
    return jnp.maximum(-(-pixels // 2 ** jnp.maximum(level, 0)), 1)


def _next_block(state, pixels):
    """Level, block and passes after the current block."""
    block = state.block + 1
    last = (state.level < 0) | (block * _block_size(state.level, pixels) >= pixels)
    level = jnp.where(last, state.level + 1, state.level)
    wrapped = level > math.ceil(math.log2(max(pixels, 2)))
    return (
        jnp.where(wrapped, 1, level),
        jnp.where(last, 0, block),
        state.passes + wrapped,
    )


def _where(chosen, a, b):
    """a for the chosen images, b for the others."""
    return jnp.where(chosen.reshape(-1, *[1] * (a.ndim - 1)), a, b)
