"""The Square attack: random search that needs no gradient, so that none can be masked from it.

It starts from stripes of +-eps over the whole image and then tries squares of +-eps in random
places, kept where the margin grows. Images that it breaks and gradient attacks do not are a
sign of masked gradients.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp

from ccsrp_jax.attacks.base import AttackKind, RestartedAttack
from ccsrp_jax.attacks.queries import BestQuery, query
from ccsrp_jax.attacks.threat_model import Norm, ThreatModel, check_attack
from ccsrp_jax.data.splits import to_unit_range
from ccsrp_jax.networks.classifier import is_stochastic

# Squares, of 10,000, after which the share of changed pixels is halved: AutoAttack's list,
# which has the 500 that the paper's lacks.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)

CHECK_EVERY = 50  # squares between checks whether every image is broken


@dataclass(frozen=True)
class Square(RestartedAttack):
    """Random search in the ball of the maximum norm.

    An image stops at the first query that misclassifies it, that of the clean image included,
    or else ends at the query of the largest margin; for a stochastic network the search always
    uses the whole budget. The search reads results as it goes, so it does not run under an
    outer `jit`.

    Squares are drawn independently for every image and reach every border, as in the paper;
    AutoAttack draws them for the whole batch, and never in the last row and column.

    Attributes:
      eps: radius in pixel units, where images span [0, 1].
      budget: queries of the network per image and restart, one for the stripes and one for
        every square; the query of the clean image is not counted.
      p_init: share of the pixels in the first squares.
      restarts: independent searches; the worst result of each image counts, see
        `attacks.base.worst_of`.
      samples: draws over which a stochastic network's logits are averaged in every query.

    References:
      Andriushchenko et al., Square Attack: a query-efficient black-box adversarial attack via
      random search, ECCV 2020; its place in AutoAttack: Croce and Hein, ICML 2020.
    """

    kind: ClassVar[AttackKind] = "black box"
    norms: ClassVar[tuple[Norm, ...]] = ("linf",)
    norm: ClassVar[Norm] = "linf"

    eps: float = 8 / 255
    budget: int = 5000
    p_init: float = 0.8
    restarts: int = 1
    samples: int = 1

    def __post_init__(self) -> None:
        check_attack(self)

    @property
    def gradients(self) -> int:
        """Gradients per image."""
        return 0

    @property
    def queries(self) -> int:
        """Queries per image, at most."""
        return self.budget * self.restarts * self.samples

    def share(self, number: int) -> float:
        """Share of the pixels in the square of that number, from 0 on."""
        at = int(number / self.budget * 10_000)
        return self.p_init / 2 ** sum(at > halving for halving in HALVINGS)

    def side(self, number: int, height: int, width: int) -> int:
        """Side of the square of that number in pixels: at least 1, at most the image's."""
        side = round(math.sqrt(self.share(number) * height * width))
        return min(max(side, 1), height, width)

    def run_once(self, classifier, network_state, images, labels, key):
        """One restart; arguments as for a call."""
        images = to_unit_range(images)
        key_moves, key_network = jax.random.split(key)
        evaluate = partial(_query, classifier, self.samples, network_state, labels, key_network)
        nothing = BestQuery.none_yet(images)
        best = evaluate(0, images, nothing)
        stripes = striped(key_moves, images, self.threat)
        # accepted even if their margin is less
        best = evaluate(1, stripes, best._replace(margin=nothing.margin))
        for number in range(self.budget - 1):
            if number % CHECK_EVERY == 0 and best.broken.all():
                break
            side = self.side(number, *images.shape[1:3])
            proposal = _with_square(key_moves, number, side, images, best.images, self.threat)
            best = evaluate(number + 2, proposal, best)
        return best.images


@jax.jit
def striped(key, images, threat: ThreatModel):
    """The images, every column of every channel changed by +-eps."""
    b, _, w, c = images.shape
    signs = jax.random.rademacher(key, (b, 1, w, c), images.dtype)
    return threat.project(images + threat.eps * signs, images)


@jax.jit
def _with_square(key, number, side, images, x, threat: ThreatModel):
    """x, with every channel of a random square of each image set to +-eps from the image."""
    b, h, w, c = images.shape
    key_row, key_column, key_sign = jax.random.split(jax.random.fold_in(key, number), 3)
    top = jax.random.randint(key_row, (b, 1, 1, 1), 0, h - side + 1)
    left = jax.random.randint(key_column, (b, 1, 1, 1), 0, w - side + 1)
    row, column = jnp.arange(h)[:, None, None], jnp.arange(w)[:, None]
    inside = (row >= top) & (row < top + side) & (column >= left) & (column < left + side)
    signs = jax.random.rademacher(key_sign, (b, 1, 1, c), images.dtype)
    return threat.project(jnp.where(inside, images + threat.eps * signs, x), images)


@partial(jax.jit, static_argnums=(0, 1))
def _query(classifier, samples, network_state, labels, key, number, images, best):
    """Evaluates images, and accepts those that break or gain margin and were not broken yet."""
    z = query(classifier, samples, network_state, images, key, number)
    return best.update(images, z, labels, stochastic=is_stochastic(classifier))
