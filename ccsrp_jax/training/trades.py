"""The inner attack of TRADES, which maximizes the divergence from the clean output."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ccsrp_jax.attacks.pgd import PGD, projected_ascent
from ccsrp_jax.networks.classifier import ClassifierFn, key_kwargs
from ccsrp_jax.training.losses import divergence


def trades_attack(
    classifier: ClassifierFn,
    network_state: Any,
    images: Float[Array, "B H W C"],
    attack: PGD,
    key: Array,
    temperature: float | int = 1.0,
) -> Float[Array, "B H W C"]:
    """Ascends KL(clean || attacked) in a ball, from a uniformly random point of it.

    At the clean images the KL has no gradient, so TRADES starts from noise of 0.001 around
    them. For spiking networks that is too little: it changes no spike of many images, and their
    gradient stays 0 except for rounding. Hence our start is anywhere in the ball.

    Args:
      classifier, network_state: as for attacks, see `networks.classifier`.
      images: clean, in [0, 1].
      attack: gives radius, norm, number of steps and their size; its other settings are not used.
      key: for the start and the draws of a stochastic network.
      temperature: as in `losses.divergence`.

    References:
      Zhang et al., Theoretically Principled Trade-off between Robustness and Accuracy
      (TRADES), ICML 2019.
    """
    key_start, key_clean, key_steps = jax.random.split(key, 3)
    start = attack.threat.random_point(key_start, images)
    clean = _logits(classifier, network_state, images, key_clean)

    def gradient_fn(x, step, state):
        key_step = jax.random.fold_in(key_steps, step)
        gradient = _gradient(classifier, network_state, x, clean, temperature, key_step)
        return gradient, state

    return projected_ascent(
        gradient_fn, start, images, attack.threat, steps=attack.steps, step_size=attack.step_size
    )


@partial(jax.jit, static_argnums=0)
def _logits(classifier, network_state, images, key):
    return classifier(network_state, images, **key_kwargs(classifier, key))


@partial(jax.jit, static_argnums=0)
def _gradient(classifier, network_state, x, clean, temperature, key):
    """Gradient of KL(clean || x) with respect to x; 0 where it is not finite."""

    def total(x):
        z = classifier(network_state, x, **key_kwargs(classifier, key))
        return divergence(clean[None], z[None], temperature).sum()

    gradient = jax.grad(total)(x)
    return jnp.where(jnp.isfinite(gradient), gradient, 0.0)
