"""The Square attack: random search that needs no gradient, so none can be masked from it.

Stripes of +-eps over the whole image, then squares of +-eps in random places, kept where the
margin gains. What a spiking network loses to it and not to gradients, its surrogates hid.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ccsrp_jax.attacks.base import Restarted, check_ball, margin, project, wide
from ccsrp_jax.data.splits import to_unit_range
from ccsrp_jax.networks.classifier import is_stochastic
from ccsrp_jax.utils.errors import check_number

# Of 10,000 squares, those after which the share of pixels halves; as in AutoAttack, whose
# list has the 500 that the paper's lacks.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


LOOK_EVERY = 50  # squares between looks at whether every image is broken


class Found(NamedTuple):
    """The best of every image's queries so far."""

    images: Float[Array, "B H W C"]
    margin: Float[Array, "B"]
    broken: Bool[Array, "B"]  # misclassified in that query


@dataclass(frozen=True)
class Square(Restarted):
    """Random search in the ball of the maximum norm.

    An image stops at the first query that misclassifies it, the unchanged image's included,
    or ends at that of the best margin; a stochastic network's go on to the end of the budget.
    The search looks at the answers on its way, so it does not run under an outer `jit`.

    Squares are drawn for every image on its own and reach every border, as in the paper;
    AutoAttack draws them for the whole batch, and never in the last row and column.

    Attributes:
      eps: radius in pixel units, where images span [0, 1].
      budget: queries of the network an image and restart, one for the stripes and one for
        every square; the look at the unchanged image is not counted.
      p_init: share of the pixels in the first squares.
      restarts: independent searches; the worst of them counts, see `attacks.strongest`.
      samples: draws over which a stochastic network's logits are averaged in every query.

    References:
      Andriushchenko et al., Square Attack: a query-efficient black-box adversarial attack via
      random search, ECCV 2020; Croce and Hein, ICML 2020, for its place in AutoAttack.
    """

    eps: float = 8 / 255
    budget: int = 5000
    p_init: float = 0.8
    restarts: int = 1
    samples: int = 1

    def __post_init__(self) -> None:
        check_ball(self.eps, "linf")
        check_number("attack samples", self.samples, 1)
        check_number("attack budget", self.budget, 1)
        check_number("attack p_init", self.p_init, 0, 1, above=True)
        check_number("attack restarts", self.restarts, 1)

    @property
    def gradients(self) -> int:
        """Gradients an image."""
        return 0

    @property
    def queries(self) -> int:
        """Queries an image, at most."""
        return self.budget * self.restarts * self.samples

    def share(self, number: int) -> float:
        """Of the pixels in the square of that number, from 0: halved again and again."""
        at = int(number / self.budget * 10_000)
        return self.p_init / 2 ** sum(at > halving for halving in HALVINGS)

    def side(self, number: int, height: int, width: int) -> int:
        """Of the square of that number, in pixels: at least 1, and no longer than the image."""
        side = round(math.sqrt(self.share(number) * height * width))
        return min(max(side, 1), height, width)

    def _run(self, logits, params, images, labels, key):
        images = to_unit_range(images)
        key_moves, key_network = jax.random.split(key)
        ask = partial(_ask, logits, self.samples, params, labels, key_network)
        lowest = jnp.full(labels.shape, -jnp.inf, jnp.float32)
        found = ask(0, images, Found(images, lowest, jnp.zeros(labels.shape, bool)))
        striped = _striped(key_moves, images, self.eps)
        found = ask(1, striped, found._replace(margin=lowest))  # even where they lose margin
        for number in range(self.budget - 1):
            if number % LOOK_EVERY == 0 and found.broken.all():
                break
            side = self.side(number, *images.shape[1:3])
            moved = _moved(key_moves, number, side, images, found.images, self.eps)
            found = ask(number + 2, moved, found)
        return found.images


@jax.jit
def _striped(key, images, eps):
    """The images, every column of every channel moved by +-eps."""
    b, _, w, c = images.shape
    signs = jax.random.rademacher(key, (b, 1, w, c), images.dtype)
    return project(images + eps * signs, images, eps, "linf")


@jax.jit
def _moved(key, number, side, images, x, eps):
    """x, but in a random square of every image, where every channel is moved by +-eps."""
    b, h, w, c = images.shape
    key_row, key_column, key_sign = jax.random.split(jax.random.fold_in(key, number), 3)
    top = jax.random.randint(key_row, (b, 1, 1, 1), 0, h - side + 1)
    left = jax.random.randint(key_column, (b, 1, 1, 1), 0, w - side + 1)
    row, column = jnp.arange(h)[:, None, None], jnp.arange(w)[:, None]
    inside = (row >= top) & (row < top + side) & (column >= left) & (column < left + side)
    signs = jax.random.rademacher(key_sign, (b, 1, 1, c), images.dtype)
    return project(jnp.where(inside, images + eps * signs, x), images, eps, "linf")


@partial(jax.jit, static_argnums=(0, 1))
def _ask(logits, samples, params, labels, key, number, images, found):
    """One query: its images, where they break or gain margin and nothing was broken before."""
    if is_stochastic(logits):
        keys = jax.random.split(jax.random.fold_in(key, number), samples)
        z = jax.vmap(lambda each: logits(params, images, key=each))(keys).mean(0)
    else:
        z = logits(params, images)
    gap, broken = margin(z, labels), z.argmax(-1) != labels
    if is_stochastic(logits):
        broken = jnp.zeros_like(broken)  # no lucky draw stops the search
    better = ((gap > found.margin) | broken) & ~found.broken
    return Found(
        jnp.where(wide(better), images, found.images),
        jnp.where(better, gap, found.margin),
        found.broken | broken,
    )
