"""Gradients of attack losses with respect to images."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ccsrp_jax.attacks.losses import LOSSES
from ccsrp_jax.networks.classifier import ClassifierFn, is_stochastic, key_kwargs


class LossAndGradient(NamedTuple):
    """A classifier's loss and logits at some images, and the gradient of the loss.

    Attributes:
      loss: of every image.
      gradient: with respect to the images; 0 where it is not finite.
      logits: of every image.
      surrogate_state: for the next iteration of the attack; None unless the classifier is
        stateful.
    """

    loss: Float[Array, "B"]
    gradient: Float[Array, "B H W C"]
    logits: Float[Array, "B K"]
    surrogate_state: Any


def loss_and_gradient(
    classifier: ClassifierFn,
    network_state: Any,
    images: Float[Array, "B H W C"],
    labels: Int[Array, "B"],
    *,
    loss: str = "ce",
    targets: Int[Array, "B"] | None = None,
    key: Array | None = None,
    samples: int = 1,
    surrogate_state: Any = None,
) -> LossAndGradient:
    """A loss and its gradient with respect to the images.

    Args:
      classifier, network_state: see `networks.classifier`.
      images, labels: where to differentiate.
      loss: one of `LOSSES`.
      targets: target classes, for `dlr_targeted`.
      key, samples: a stochastic classifier's loss, gradient and logits are averaged over this
        many draws (expectation over transformation, Athalye et al., ICML 2018).
      surrogate_state: from `initial_state`, or that of the previous iteration's result.
    """
    loss_index = jnp.asarray(list(LOSSES).index(loss))
    targets = labels if targets is None else targets

    def draw(key):
        arguments = (network_state, images, labels, targets, loss_index, key, surrogate_state)
        return _loss_and_gradient(classifier, *arguments)

    draws = samples if is_stochastic(classifier) else 1
    if draws == 1 or key is None:
        return draw(key)
    results = [draw(key_draw) for key_draw in jax.random.split(key, draws)]
    losses, gradients, logits, _ = zip(*results, strict=True)
    losses, gradients, logits = (sum(parts) / draws for parts in (losses, gradients, logits))
    return LossAndGradient(losses, gradients, logits, results[-1].surrogate_state)


@partial(jax.jit, static_argnums=0)
def _loss_and_gradient(
    classifier, network_state, images, labels, targets, loss_index, key, surrogate_state
):
    def total(x):
        key_argument = key_kwargs(classifier, key)
        if surrogate_state is None:
            z, next_state = classifier(network_state, x, **key_argument), None
        else:
            z, next_state = classifier.apply_stateful(
                network_state, x, surrogate_state, **key_argument
            )
        # all losses are computed: one program serves each of them, at almost no cost
        losses = jnp.stack([loss(z, labels, targets) for loss in LOSSES.values()])[loss_index]
        return losses.sum(), (losses, z, next_state)

    gradient, (losses, z, next_state) = jax.grad(total, has_aux=True)(images)
    return LossAndGradient(losses, jnp.where(jnp.isfinite(gradient), gradient, 0.0), z, next_state)
