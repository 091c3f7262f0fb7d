"""Projected gradient descent (PGD) on the negative loss, and FGSM, its single step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
from jaxtyping import Array, Float

from ccsrp_jax.attacks.base import RestartedAttack
from ccsrp_jax.attacks.gradients import loss_and_gradient
from ccsrp_jax.attacks.threat_model import Norm, ThreatModel, check_attack
from ccsrp_jax.data.splits import to_unit_range
from ccsrp_jax.networks.classifier import initial_state, is_stochastic

# (images, step, state) -> (gradient of what is increased, state of the next step)
GradientFn = Callable[[Array, int, Any], tuple[Array, Any]]


def projected_ascent(
    gradient_fn: GradientFn,
    start: Float[Array, "B H W C"],
    images: Float[Array, "B H W C"],
    threat: ThreatModel,
    *,
    steps: int,
    step_size: float,
    state: Any = None,
) -> Float[Array, "B H W C"]:
    """Steepest ascent in the threat model's norm, projected onto its ball after every step.

    Args:
      gradient_fn: called as `gradient_fn(x, step, state)`; returns the gradient at x and the
        state of the next step.
      start: first iterate.
      images: centers of the balls.
      threat: norm and radius.
      steps: number of steps.
      step_size: length of a step, in pixel units.
      state: whatever `gradient_fn` carries from step to step.

    Returns:
      The last iterate.
    """
    x = start
    for step in range(steps):
        gradient, state = gradient_fn(x, step, state)
        x = _projected_step(x, gradient, images, threat, step_size)
    return x


@jax.jit
def _projected_step(x, gradient, images, threat, step_size):
    return threat.project(x + step_size * threat.ascent_direction(gradient), images)


@dataclass(frozen=True)
class PGD(RestartedAttack):
    """Projected gradient descent in a ball; the last iterate is the result.

    With one step and the default `relative_step` it ends in a corner of the L-infinity ball for
    almost every start; `one_step` has the attacks of fast adversarial training.

    Attributes:
      eps: radius in pixel units, where images span [0, 1].
      steps: gradient steps per restart.
      restarts: independent random starts; the worst result of each image counts, see
        `attacks.base.worst_of`.
      relative_step: step size as a multiple of eps / steps.
      random_start: start uniformly in the ball instead of at the image.
      loss: one of `LOSSES`; `margin` gives the attack on Carlini and Wagner's loss.
      norm: `linf` (signed steps) or `l2` (normalized steps).
      samples: draws over which a stochastic network's gradient is averaged.

    References:
      Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, ICLR 2018.
    """

    eps: float = 8 / 255
    steps: int = 20
    restarts: int = 1
    relative_step: float = 2.5
    random_start: bool = True
    loss: Literal["ce", "margin", "dlr"] = "ce"
    norm: Norm = "linf"
    samples: int = 1

    def __post_init__(self) -> None:
        check_attack(self)

    @property
    def step_size(self) -> float:
        """Length of a step in pixel units: relative_step * eps / steps."""
        return self.relative_step * self.eps / self.steps

    @property
    def gradients(self) -> int:
        """Gradients per image."""
        return self.steps * self.restarts * self.samples

    def run_once(self, classifier, network_state, images, labels, key):
        """One restart; arguments as for a call."""
        images = to_unit_range(images)

        def gradient_fn(x, step, surrogate_state):
            result = loss_and_gradient(
                classifier,
                network_state,
                x,
                labels,
                loss=self.loss,
                key=jax.random.fold_in(key, step) if is_stochastic(classifier) else None,
                samples=self.samples,
                surrogate_state=surrogate_state,
            )
            return result.gradient, result.surrogate_state

        return projected_ascent(
            gradient_fn,
            self.threat.random_point(key, images) if self.random_start else images,
            images,
            self.threat,
            steps=self.steps,
            step_size=self.step_size,
            state=initial_state(classifier, len(images), key),
        )


def fgsm(eps: float, *, random_start: bool = False, norm: Norm = "linf", samples: int = 1) -> PGD:
    """The fast gradient sign method: one step to the surface of the ball.

    Args:
      eps, norm, samples: as for `PGD`.
      random_start: start uniformly in the ball instead of at the image.

    References:
      Goodfellow et al., Explaining and Harnessing Adversarial Examples, ICLR 2015.
    """
    return PGD(eps, 1, relative_step=1.0, random_start=random_start, norm=norm, samples=samples)
