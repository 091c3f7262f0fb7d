"""Gradient attacks in pixel space, jitted over batches of any differentiable classifier.

A classifier is a hashable `logits(params, images)` on images in [0, 1], normalisation
inside. Through which surrogate a spiking network is differentiated is part of it
(`models.Classifier`), so an attack needs not use the one of training.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from ccsrp_jax.errors import InputError, check_number

Logits = Callable[[Any, Float[Array, "B H W C"]], Float[Array, "B K"]]

SHORT_PGD_CAVEAT = (
    "PGD through a surrogate gradient is an upper bound on robust accuracy: spiking networks "
    "mask gradients, and stronger attacks can break more images."
)


@dataclass(frozen=True)
class PGD:
    """Projected gradient ascent on the cross-entropy in an L-infinity ball.

    Attributes:
      eps: radius in pixel units, where images span [0, 1].
      steps: gradient steps a restart.
      restarts: independent random starts; an image counts as broken if any breaks it.
      relative_step: step size as a multiple of eps / steps.
      random_start: start uniformly in the ball instead of at the image.

    References:
      Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, ICLR 2018.
    """

    eps: float = 8 / 255
    steps: int = 20
    restarts: int = 1
    relative_step: float = 2.5
    random_start: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.eps <= 1:
            raise InputError(
                f"attack eps {self.eps} is outside [0, 1]: give the radius in pixel units, "
                "where images span 0 to 1 (8/255 is 0.0314)."
            )
        check_number("attack steps", self.steps, 1)
        check_number("attack restarts", self.restarts, 1)
        check_number("attack relative_step", self.relative_step, 0, above=True)

    @property
    def step_size(self) -> float:
        """Length of a step in pixel units: relative_step * eps / steps."""
        return self.relative_step * self.eps / self.steps


def fgsm(eps: float, *, random_start: bool = False) -> PGD:
    """One signed gradient step to the surface of the ball (Goodfellow et al., ICLR 2015)."""
    return PGD(eps, steps=1, relative_step=1.0, random_start=random_start)


def perturb(
    logits: Logits,
    params: Any,
    images: Float[Array, "B H W C"],
    labels: Int[Array, "B"],
    key: Array,
    attack: PGD,
) -> Float[Array, "B H W C"]:
    """Adversarial images, each the worst of its restarts.

    Worst means misclassified, then highest cross-entropy, judged at the last iterate. The
    loop over steps runs in Python around one jitted step (a convolution's gradient inside
    a `fori_loop` is far slower on CPU); under an outer `jit` it unrolls.

    Args:
      logits: the classifier; static, so it must be hashable.
      params: its parameters.
      images: clean images in [0, 1].
      labels: true classes.
      key: for the random starts.
      attack: radius, steps and restarts.

    Returns:
      Images in [0, 1] within `attack.eps` of the clean ones.
    """
    worst, worst_score = images, jnp.full(labels.shape, -jnp.inf)
    for key_restart in jax.random.split(key, attack.restarts):
        adversarial = images
        if attack.random_start:
            noise = jax.random.uniform(key_restart, images.shape, images.dtype, -1.0, 1.0)
            adversarial = _project(images + attack.eps * noise, images, attack.eps)
        for _ in range(attack.steps):
            adversarial = _ascend(
                logits, params, adversarial, images, labels, attack.eps, attack.step_size
            )
        if attack.restarts == 1:
            return adversarial
        score = _badness(logits, params, adversarial, labels)
        better = score > worst_score
        worst = jnp.where(better[:, None, None, None], adversarial, worst)
        worst_score = jnp.where(better, score, worst_score)
    return worst


def _project(adversarial, images, eps):
    """Into the ball around the images, and into the box [0, 1]."""
    return jnp.clip(jnp.clip(adversarial, images - eps, images + eps), 0.0, 1.0)


@partial(jax.jit, static_argnums=0)
def _ascend(logits, params, adversarial, images, labels, eps, step_size):
    def loss(x):
        return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), labels).sum()

    return _project(adversarial + step_size * jnp.sign(jax.grad(loss)(adversarial)), images, eps)


@partial(jax.jit, static_argnums=0)
def _badness(logits, params, images, labels):
    """Cross-entropy, raised above every correctly classified image's where it is wrong."""
    z = logits(params, images)
    wrong = z.argmax(-1) != labels
    return optax.softmax_cross_entropy_with_integer_labels(z, labels) + jnp.where(wrong, 1e3, 0.0)
