"""Catastrophic overfitting: a network that withstands the one-step attack of its training only.

References:
  Wong, Rice and Kolter, Fast is Better than Free, ICLR 2020, who stop where the accuracy under
  PGD-5 on a training batch falls by 20 points; Andriushchenko and Flammarion, NeurIPS 2020.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ccsrp_jax.attacks.base import CLASSIFICATION_PASS, unchecked
from ccsrp_jax.attacks.gradients import loss_and_gradient
from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.networks.classifier import ClassifierFn, is_stochastic
from ccsrp_jax.training.recipe import Recipe

IMAGES = 200  # training images on which both are measured, or one batch if that is more
STEPS = 5  # of PGD
FALL = 0.2  # of accuracy under PGD
APART = 3  # PGD finds this many times as few images robust as the one-step attack
LEAST = 0.3  # accuracy under the one-step attack from which that ratio says anything


class AttackedAccuracies(NamedTuple):
    """Accuracy on training images under the attack of training and under PGD of the same radius."""

    one_step: float
    pgd: float


def collapsed(history: Sequence[AttackedAccuracies]) -> bool:
    """Whether the last epoch shows catastrophic overfitting.

    That is so if the accuracy under PGD fell by more than `FALL` since an earlier epoch, while that
    under the one-step attack rose; or if it is less than 1 / `APART` of the latter, which is at
    least `LEAST`: then a resumed training sees it too. The second rule is ours.

    Args:
      history: of every adversarial epoch so far.
    """
    if not history:
        return False
    last = history[-1]
    if last.one_step >= LEAST and last.pgd * APART < last.one_step:
        return True
    return any(
        each.pgd - last.pgd > FALL and last.one_step > each.one_step for each in history[:-1]
    )


def is_checked(recipe: Recipe, epoch: int) -> bool:
    """Whether an epoch trains on a one-step attack in the maximum norm."""
    attack: Any = recipe.adversarial
    one_step = getattr(attack, "steps", 0) == 1 and getattr(attack, "norm", "") == "linf"
    return one_step and dataclasses.is_dataclass(attack) and recipe.attacks(epoch)


def attacked_accuracies(
    classifier: ClassifierFn,
    network_state: Any,
    batches: Sequence[tuple[Float[Array, "B H W C"], Int[Array, "B"]]],
    attack: Any,
    key: Array,
) -> AttackedAccuracies:
    """Accuracies under a one-step attack, and under PGD of `STEPS` steps of half its radius.

    Batches of the size of training need no other program than its attack.

    Args:
      classifier, network_state: as for attacks.
      batches: images in [0, 1] and labels.
      attack: of training.
      key: for random starts and the draws of a stochastic network.
    """
    found = []
    for each in (attack, PGD(attack.eps, STEPS)):
        hits = [
            _hits(classifier, network_state, images, labels, each, jax.random.fold_in(key, number))
            for number, (images, labels) in enumerate(batches)
        ]
        found.append(float(jnp.concatenate(hits).mean()))
    return AttackedAccuracies(*found)


def _hits(classifier, network_state, images, labels, attack, key):
    attacked = unchecked(attack)(classifier, network_state, images, labels, key)
    key_pass = jax.random.fold_in(key, CLASSIFICATION_PASS)
    draws = key_pass if is_stochastic(classifier) else None
    logits = loss_and_gradient(classifier, network_state, attacked, labels, key=draws).logits
    return logits.argmax(-1) == labels
