"""The inner attack of TRADES, which needs no labels: as far as it can from the clean output."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ccsrp_jax.attacks.base import project, random_in_ball, steepest
from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.networks.classifier import Logits, keyed
from ccsrp_jax.training.losses import divergence


def raise_divergence(
    logits: Logits,
    params: Any,
    images: Float[Array, "B H W C"],
    attack: PGD,
    key: Array,
    temperature: float | int = 1.0,
) -> Float[Array, "B H W C"]:
    """Ascends KL(clean || attacked) in a ball, from a uniformly random point of it.

    At the images the KL has no gradient, so TRADES starts with noise of 0.001 around them. That
    changes no spike of many images, whose gradient then stays 0 but for rounding: hence ours.

    Args:
      logits, params: the classifier, as for `attacks`.
      images: clean, in [0, 1].
      attack: radius, norm, steps and their size; of its other settings none is used.
      key: of the start and of a stochastic network's draws.
      temperature: as in `losses.divergence`.

    References:
      Zhang et al., Theoretically Principled Trade-off between Robustness and Accuracy
      (TRADES), ICML 2019.
    """
    key_start, key_clean, key_steps = jax.random.split(key, 3)
    x = random_in_ball(key_start, images, attack.eps, attack.norm)
    clean = _outputs(logits, params, images, key_clean)
    numbers = attack.eps, attack.step_size, temperature
    for step in range(attack.steps):
        key_step = jax.random.fold_in(key_steps, step)
        x = _climb(logits, attack.norm, params, x, images, clean, numbers, key_step)
    return x


@partial(jax.jit, static_argnums=0)
def _outputs(logits, params, images, key):
    return logits(params, images, **keyed(logits, key))


@partial(jax.jit, static_argnums=(0, 1))
def _climb(logits, norm, params, x, images, clean, numbers, key):
    eps, step_size, temperature = numbers

    def total(x):
        z = logits(params, x, **keyed(logits, key))
        return divergence(clean[None], z[None], temperature).sum()

    gradient = jax.grad(total)(x)
    gradient = jnp.where(jnp.isfinite(gradient), gradient, 0.0)
    return project(x + step_size * steepest(gradient, norm), images, eps, norm)
