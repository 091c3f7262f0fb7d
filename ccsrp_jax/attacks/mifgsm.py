"""MI-FGSM: iterated signed steps along an accumulated gradient."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ccsrp_jax.attacks.adaptive import TargetedAttack, WorstIterate
from ccsrp_jax.attacks.losses import LOSSES
from ccsrp_jax.attacks.threat_model import Norm


class MomentumState(NamedTuple):
    """State of MI-FGSM: the accumulated gradient."""

    x: Float[Array, "B H W C"]
    momentum: Float[Array, "B H W C"]
    worst: WorstIterate


@dataclass(frozen=True)
class MIFGSM(TargetedAttack):
    """Momentum iterative FGSM in the ball of the maximum norm, from random starts.

    g <- decay g + gradient / |gradient|_1, then x <- x + step sign(g), projected. The accumulated
    gradient averages over the surrogates of the last steps where they are drawn anew in every one
    (`networks.gradients.RandomWidth`). The source's step is constant; ours falls along a half
    cosine from `relative_step` eps to 0.

    Attributes:
      eps: radius in pixel units, where images span [0, 1].
      steps: gradient steps per restart.
      restarts: random starts; the worst result of each image counts, see
        `attacks.base.worst_of`.
      loss: one of `LOSSES`.
      targets: for a loss in `TARGETED`, the number of wrong classes to target, one after another,
        in order of their logits on the clean image; at most as many as there are.
      samples: draws over which a stochastic network's gradient is averaged.
      decay: weight of the earlier gradients.
      relative_step: first step size as a multiple of eps.
      rank: for a loss in `TARGETED`, rank of the first target among the wrong classes.

    References:
      Dong et al., Boosting Adversarial Attacks with Momentum, CVPR 2018.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("linf",)
    norm: ClassVar[Norm] = "linf"

    eps: float = 8 / 255
    steps: int = 40
    restarts: int = 1
    loss: Literal["ce", "margin", "dlr", "dlr_targeted", "margin_targeted"] = "margin"
    targets: int = 9
    samples: int = 1
    decay: float = 0.75
    relative_step: float = 0.5
    rank: int = 1

    def __post_init__(self) -> None:
        self.check_settings(LOSSES)

    def start_state(self, start, labels):
        """State before the first evaluation."""
        return MomentumState(start, jnp.zeros_like(start), WorstIterate.none_yet(start, labels))

    def next_state(self, iteration, windows, state, result, images, labels):
        """State after an evaluation and a step."""
        share = (1 + math.cos(math.pi * iteration / self.steps)) / 2
        step_size = self.relative_step * self.eps * share
        return _step(state, result, images, labels, self.threat, step_size, self.decay)


@jax.jit
def _step(state, result, images, labels, threat, step_size, decay):
    gradient = result.gradient
    largest = jnp.abs(gradient).max((1, 2, 3), keepdims=True)
    gradient = gradient / jnp.where(largest > 0, largest, 1.0)  # its sum may underflow
    total = jnp.abs(gradient).sum((1, 2, 3), keepdims=True)
    momentum = decay * state.momentum + gradient / jnp.where(total > 0, total, 1.0)
    x = threat.project(state.x + step_size * jnp.sign(momentum), images)
    return MomentumState(x, momentum, state.worst.update(state.x, result, labels))
