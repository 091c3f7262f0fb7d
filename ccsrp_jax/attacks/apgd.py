"""APGD, the gradient attack of AutoAttack: momentum and a step size that adapts per image."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ccsrp_jax.attacks.adaptive import TargetedAttack, WorstIterate
from ccsrp_jax.attacks.gradients import LossAndGradient
from ccsrp_jax.attacks.losses import LOSSES
from ccsrp_jax.attacks.threat_model import Norm, ThreatModel, per_image


class APGDState(NamedTuple):
    """State of APGD after an evaluation of the classifier and a step."""

    x: Float[Array, "B H W C"]
    previous: Float[Array, "B H W C"]  # the iterate that x is a step from
    loss: Float[Array, "B"]  # of the last evaluation
    best: Float[Array, "B H W C"]  # iterate of the highest loss
    best_gradient: Float[Array, "B H W C"]
    best_loss: Float[Array, "B"]
    step_size: Float[Array, "B"]
    increases: Int[Array, "B"]  # steps that increased the loss, since the last checkpoint
    checkpoint_loss: Float[Array, "B"]  # best loss at the last checkpoint
    halved: Bool[Array, "B"]  # whether the step size was halved at the last checkpoint
    worst: WorstIterate


class Checkpoint(NamedTuple):
    """What is due after an iteration.

    Attributes:
      due: whether this iteration is a checkpoint.
      few: the step size is halved there if no more than this many steps increased the loss.
    """

    due: bool
    few: int


@dataclass(frozen=True)
class APGD(TargetedAttack):
    """Auto-PGD: momentum, and a step size that is halved where progress stalls.

    At a checkpoint where an image's step size is halved, the attack returns to its best
    iterate. Rules and constants are those of AutoAttack, except that the first loss is compared
    with that of the start, as in the paper; AutoAttack's code compares it with 0.

    Attributes:
      eps: radius in pixel units, where images span [0, 1].
      steps: gradient steps per restart.
      restarts: random starts; the worst result of each image counts, see
        `attacks.base.worst_of`.
      loss: one of `LOSSES`.
      targets: for a loss in `TARGETED`, the number of wrong classes to target, one after another,
        in order of their logits on the clean image; at most as many as there are.
      norm: `linf` (signed steps) or `l2` (normalized steps).
      samples: draws over which a stochastic network's gradient is averaged.
      rho: the step size is halved where at most this share of steps increased the loss.
      rank: for such a loss, rank of the first target among the wrong classes.

    References:
      Croce and Hein, Reliable Evaluation of Adversarial Robustness with an Ensemble of
      Diverse Parameter-free Attacks, ICML 2020.
    """

    eps: float = 8 / 255
    steps: int = 100
    restarts: int = 1
    loss: Literal["ce", "margin", "dlr", "dlr_targeted", "margin_targeted"] = "ce"
    targets: int = 9
    norm: Norm = "linf"
    samples: int = 1
    rho: float = 0.75
    rank: int = 1

    def __post_init__(self) -> None:
        self.check_settings(LOSSES)

    def start_state(self, start, labels):
        """State before the first evaluation."""
        return _start(start, labels, self.eps)

    def next_state(self, iteration, windows, state, result, images, labels):
        """State after an evaluation and a step; the first step has no momentum."""
        few = math.floor(self.rho * windows.get(iteration, 0))
        checkpoint = Checkpoint(iteration in windows, few)
        weight = 1.0 if iteration == 0 else 0.75
        return _step(state, result, images, labels, self.threat, checkpoint, weight)


@jax.jit
def _start(start, labels, eps):
    worst = WorstIterate.none_yet(start, labels)
    lowest, no, zero = worst.loss, worst.misclassified, jnp.zeros(labels.shape, jnp.int32)
    return APGDState(
        x=start,
        previous=start,
        loss=-lowest,
        best=start,
        best_gradient=jnp.zeros_like(start),
        best_loss=lowest,
        step_size=jnp.full(labels.shape, 2 * eps, start.dtype),
        increases=zero,
        checkpoint_loss=lowest,
        halved=~no,
        worst=worst,
    )


@jax.jit
def _step(
    state: APGDState,
    result: LossAndGradient,
    images: Float[Array, "B H W C"],
    labels: Int[Array, "B"],
    threat: ThreatModel,
    checkpoint: Checkpoint,
    weight: Float[Array, ""] | float,
) -> APGDState:
    """From an evaluation of `state.x` to the next iterate; `weight` is that of the new step
    beside the momentum."""
    state = _record(state, result, labels)
    state, x, gradient = _adapt_step_size(state, result.gradient, checkpoint)
    step = per_image(state.step_size) * threat.ascent_direction(gradient)
    ahead = threat.project(x + step, images)
    ahead = x + weight * (ahead - x) + (1 - weight) * (x - state.previous)
    return state._replace(x=threat.project(ahead, images), previous=x)


def _record(state, result, labels):
    """The state with the loss of its iterate and, where it is the highest, a new best."""
    better = result.loss > state.best_loss
    return state._replace(
        loss=result.loss,
        best=jnp.where(per_image(better), state.x, state.best),
        best_gradient=jnp.where(per_image(better), result.gradient, state.best_gradient),
        best_loss=jnp.where(better, result.loss, state.best_loss),
        increases=state.increases + (result.loss > state.loss),
        worst=state.worst.update(state.x, result, labels),
    )


def _adapt_step_size(state, gradient, checkpoint):
    """At a checkpoint, halves stalled step sizes and returns to the best iterate there.

    Returns:
      The state, and the iterate and gradient to step from.
    """
    stalled = ~state.halved & (state.checkpoint_loss >= state.best_loss)
    halve = checkpoint.due & ((state.increases <= checkpoint.few) | stalled)
    adapted = state._replace(
        step_size=jnp.where(halve, state.step_size / 2, state.step_size),
        increases=jnp.where(checkpoint.due, 0, state.increases),
        checkpoint_loss=jnp.where(checkpoint.due, state.best_loss, state.checkpoint_loss),
        halved=jnp.where(checkpoint.due, halve, state.halved),
    )
    x = jnp.where(per_image(halve), state.best, state.x)
    return adapted, x, jnp.where(per_image(halve), state.best_gradient, gradient)
