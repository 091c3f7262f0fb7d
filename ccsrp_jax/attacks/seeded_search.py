"""Random search that goes on from the best perturbations of the attacks before it.

The margin of a spiking network is a plateau almost everywhere, and the gradient that an attack
follows is that of a surrogate: gradient attacks stop beside images that are misclassified. From
there a search that needs no gradient finds them.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ccsrp_jax.attacks.base import AttackKind, RestartedAttack
from ccsrp_jax.attacks.queries import BestQuery, query
from ccsrp_jax.attacks.square import CHECK_EVERY, striped
from ccsrp_jax.attacks.threat_model import Norm, ThreatModel, check_attack
from ccsrp_jax.data.splits import to_unit_range
from ccsrp_jax.networks.classifier import is_stochastic
from ccsrp_jax.networks.inputs import checked_inputs
from ccsrp_jax.utils.errors import InputError
from ccsrp_jax.utils.keys import checked_key


@dataclass(frozen=True)
class SeededSearch(RestartedAttack):
    """Random search over the faces of the ball of the maximum norm, from given images.

    A query moves a random block of each image's pixels to faces of the ball cut with the box:
    every channel to a face drawn at random, or every pixel to the face that is further away. The
    block has sides drawn log-uniformly from 1 to the image's, and one channel or all of them. It
    is accepted if the margin does not fall: **an equal margin is accepted**, since a search that
    demands a gain stands still on a plateau. An image stops at the first query that misclassifies
    it, except of a stochastic network.

    Without given images the search starts from stripes, as Square does. It does not run under an
    outer `jit`.

    Attributes:
      eps: radius in pixel units, where images span [0, 1].
      budget: queries of the network per image and restart, one of them for the start.
      restarts: searches one after another; each goes on from where the one before ended, so in a
        suite a restart leaves out the images that are broken.
      samples: draws over which a stochastic network's logits are averaged in every query.

    References:
      The acceptance, the blocks and the start are ours; random search by squares is from
      Andriushchenko et al., Square Attack, ECCV 2020, and search over the corners of the ball by
      blocks from Moon et al., Parsimonious Black-Box Adversarial Attacks via Efficient
      Combinatorial Optimization, ICML 2019.
    """

    kind: ClassVar[AttackKind] = "seeded"
    norms: ClassVar[tuple[Norm, ...]] = ("linf",)
    norm: ClassVar[Norm] = "linf"
    gradients: ClassVar[int] = 0
    takes_start: ClassVar[bool] = True

    eps: float = 8 / 255
    budget: int = 1000
    restarts: int = 1
    samples: int = 1

    def __post_init__(self) -> None:
        check_attack(self)

    @property
    def queries(self) -> int:
        """Queries per image, at most."""
        return self.budget * self.restarts * self.samples

    def __call__(self, classifier, network_state, images, labels, key, start=None):
        """Adversarial images, as of any attack.

        Args:
          classifier, network_state, images, labels, key: see `attacks.base`.
          start: (B, H, W, C) images to begin at; they are projected onto the ball.

        Raises:
          InputError: an argument cannot be used; values are checked outside `jit` only.
        """
        split = checked_inputs(classifier, network_state, (images, labels))
        images, labels = (jnp.asarray(part) for part in split)
        if start is not None and start.shape != images.shape:
            raise InputError(
                f"the search starts from images of shape {start.shape}, and the images are "
                f"{images.shape}: give one start for every image."
            )
        return self.run(classifier, network_state, images, labels, checked_key(key), start)

    def run(self, classifier, network_state, images, labels, key, start=None):
        """As a call, without the check of its arguments."""
        x: Any = start
        for key_part in jax.random.split(key, self.restarts):
            x = self.run_once(classifier, network_state, images, labels, key_part, x)
        return x

    def run_once(self, classifier, network_state, images, labels, key, start=None):
        """One restart; arguments as for a call."""
        images = to_unit_range(images)
        key_moves, key_network = jax.random.split(key)
        if start is None:
            start = striped(key_moves, images, self.threat)
        best = BestQuery.none_yet(self.threat.project(start, images))
        for number in range(self.budget):
            if number % CHECK_EVERY == 1 and best.broken.all():
                break
            best = _step(
                classifier,
                self.samples,
                network_state,
                images,
                labels,
                (key_moves, key_network),
                number,
                best,
                self.threat,
            )
        return best.images


@partial(jax.jit, static_argnums=(0, 1))
def _step(
    classifier, samples, network_state, images, labels, keys, number, best, threat: ThreatModel
):
    """One query: of the start if `number` is 0, else of a proposal."""
    key_moves, key_network = keys
    proposal = propose_block(jax.random.fold_in(key_moves, number), images, best.images, threat)
    proposal = jnp.where(number == 0, best.images, proposal)
    z = query(classifier, samples, network_state, proposal, key_network, number)
    stochastic = is_stochastic(classifier)
    return best.update(proposal, z, labels, stochastic=stochastic, equal=True)


def propose_block(key, images, x, threat: ThreatModel):
    """x, with a random block of each image's pixels moved to faces of the ball cut with the box."""
    b, h, w, c = images.shape
    keys = jax.random.split(key, 8)

    def integers(key, high):  # 0 to high - 1, which may differ between images
        share = jax.random.uniform(key, (b, 1, 1, 1))
        return jnp.minimum(jnp.floor(share * high), high - 1)

    def inside(key_size, key_place, size, axis):
        share = jax.random.uniform(key_size, (b, 1, 1, 1))
        side = jnp.clip(jnp.round(jnp.float32(size) ** share), 1, size)
        first = integers(key_place, size - side + 1)
        at = jnp.arange(size).reshape([-1 if i == axis else 1 for i in range(4)])
        return (at >= first) & (at < first + side)

    block = inside(keys[0], keys[1], h, 1) & inside(keys[2], keys[3], w, 2)
    channel = integers(keys[4], 2 * c)  # from c on: all of them
    block &= (channel >= c) | (jnp.arange(c) == channel)
    lower, upper = jnp.maximum(images - threat.eps, 0), jnp.minimum(images + threat.eps, 1)
    drawn = jax.random.bernoulli(keys[5], 0.5, (b, 1, 1, c))
    further = x < (lower + upper) / 2
    up = jnp.where(jax.random.bernoulli(keys[6], 0.5, (b, 1, 1, 1)), drawn, further)
    return threat.project(jnp.where(block, jnp.where(up, upper, lower), x), images)
