"""Training losses per image, from the logits (T, B, K) of every time step."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


def cross_entropy(
    logits: Float[Array, "T B K"], labels: Int[Array, "B"], smoothing: float | int = 0.0
) -> Float[Array, "B"]:
    """Cross-entropy of the mean logits over time.

    Args:
      logits: of every time step.
      labels: true classes.
      smoothing: label smoothing, the fraction of the target spread evenly over all K classes
        (Szegedy et al., CVPR 2016).
    """
    mean = logits.mean(0)
    loss = optax.softmax_cross_entropy_with_integer_labels(mean, labels)
    if not smoothing:
        return loss
    return (1 - smoothing) * loss - smoothing * jax.nn.log_softmax(mean).mean(-1)


def tet(
    logits: Float[Array, "T B K"],
    labels: Int[Array, "B"],
    threshold: float | int,
    weight: float | int = 0.05,
    smoothing: float | int = 0.0,
) -> Float[Array, "B"]:
    """Temporal efficient training: cross-entropy of every time step, logits near the threshold.

    (1 - weight) mean_t CE(o_t, y) + weight mean_t,k (o_tk - threshold)^2.

    Args:
      logits, labels, smoothing: as in `cross_entropy`.
      threshold: of the neurons.
      weight: weight of the second term, from 0 to 1.

    References:
      Deng et al., Temporal Efficient Training of Spiking Neural Network via Gradient
      Re-weighting, ICLR 2022.
    """
    steps = jax.vmap(lambda z: cross_entropy(z[None], labels, smoothing))(logits)
    return (1 - weight) * steps.mean(0) + weight * ((logits - threshold) ** 2).mean((0, 2))


def divergence(
    clean: Float[Array, "T B K"],
    attacked: Float[Array, "T B K"],
    temperature: float | int | Float[Array, ""] = 1.0,
) -> Float[Array, "B"]:
    """KL(clean || attacked) of the class probabilities, from the mean logits over time.

    Args:
      clean, attacked: logits of the same images; gradients flow to both.
      temperature: divides the logits; the result is multiplied by its square, which keeps the
        scale of the gradients (Hinton et al., arXiv 1503.02531).

    References:
      Zhang et al., Theoretically Principled Trade-off between Robustness and Accuracy
      (TRADES), ICML 2019.
    """
    log_p = jax.nn.log_softmax(clean.mean(0) / temperature)
    log_q = jax.nn.log_softmax(attacked.mean(0) / temperature)
    return temperature**2 * (jnp.exp(log_p) * (log_p - log_q)).sum(-1)
