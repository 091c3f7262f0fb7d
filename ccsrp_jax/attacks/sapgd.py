"""SA-PGD: stable adaptive PGD for gradients that are unreliable, such as surrogate gradients."""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ccsrp_jax.attacks.adaptive import AdaptiveAttack, WorstIterate
from ccsrp_jax.attacks.threat_model import Norm


class SAPGDState(NamedTuple):
    """State of SA-PGD: exponentially decaying sums of the normalized gradient and its square."""

    x: Float[Array, "B H W C"]
    momentum: Float[Array, "B H W C"]
    square: Float[Array, "B H W C"]
    worst: WorstIterate


@dataclass(frozen=True)
class SAPGD(AdaptiveAttack):
    """Stable adaptive PGD in the ball of the maximum norm.

    Every pixel moves by its momentum over the root of its accumulated squared gradient, and by
    at most the step size, which is halved at every checkpoint.

    Attributes:
      eps: radius in pixel units, where images span [0, 1].
      steps: gradient steps per restart.
      restarts: random starts; the worst result of each image counts, see
        `attacks.base.worst_of`.
      loss: `ce` or `dlr`.
      samples: draws over which a stochastic network's gradient is averaged.

    References:
      Wang et al., Towards Reliable Evaluation of Adversarial Robustness for Spiking Neural
      Networks, arXiv 2512.22522.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("linf",)
    norm: ClassVar[Norm] = "linf"

    eps: float = 8 / 255
    steps: int = 100
    restarts: int = 1
    loss: Literal["ce", "dlr"] = "ce"
    samples: int = 1

    def __post_init__(self) -> None:
        self.check_settings(("ce", "dlr"))

    def start_state(self, start, labels):
        """State before the first evaluation."""
        return _start(start, labels)

    def next_state(self, iteration, windows, state, result, images, labels):
        """State after an evaluation and a step."""
        step_size = self.eps / 2 ** sum(checkpoint <= iteration for checkpoint in windows)
        return _step(state, result, images, labels, self.threat, step_size)


@jax.jit
def _start(start, labels):
    zeros = jnp.zeros_like(start)
    return SAPGDState(start, zeros, zeros, WorstIterate.none_yet(start, labels))


@jax.jit
def _step(state, result, images, labels, threat, step_size):
    gradient = _over_mean(result.gradient)
    momentum = 0.5 * state.momentum + gradient
    square = 0.8 * state.square + _over_mean(gradient**2)
    step = step_size * momentum / (jnp.sqrt(square) + 1e-12)
    x = threat.project(state.x + jnp.clip(step, -step_size, step_size), images)
    return SAPGDState(x, momentum, square, state.worst.update(state.x, result, labels))


def _over_mean(a):
    """Each image's array divided by its mean magnitude; 0 where that is 0."""
    mean = jnp.abs(a).mean((1, 2, 3), keepdims=True)
    return a / jnp.where(mean > 0, mean, 1.0)
