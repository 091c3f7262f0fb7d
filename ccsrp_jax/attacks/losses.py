"""Losses that attacks maximize: each maps (logits, labels, targets) to one value per image."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

# Below every finite loss. It is not infinite, which `JAX_DEBUG_INFS` would stop at.
LOWEST = jnp.finfo(jnp.float32).min

Loss = Callable[[Float[Array, "B K"], Int[Array, "B"], Int[Array, "B"] | None], Float[Array, "B"]]


def infinite_where_not_finite(
    values: Float[Array, "*B"], logits: Float[Array, "*B K"]
) -> Float[Array, "*B"]:
    """An attack's objective, infinite where a logit is not finite: no image is worse."""
    return jnp.where(jnp.isfinite(logits).all(-1), values, jnp.inf)


def margin(
    logits: Float[Array, "B K"], labels: Int[Array, "B"], targets: Int[Array, "B"] | None = None
) -> Float[Array, "B"]:
    """Largest other logit minus that of the label: above 0 where misclassified.

    References:
      Carlini and Wagner, Towards Evaluating the Robustness of Neural Networks, S&P 2017.
    """
    if logits.shape[-1] == 1:
        return 0 * logits[:, 0]
    is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    return jnp.where(is_label, -jnp.inf, logits).max(-1) - _logit(logits, labels)


def cross_entropy(
    logits: Float[Array, "B K"], labels: Int[Array, "B"], targets: Int[Array, "B"] | None = None
) -> Float[Array, "B"]:
    """Softmax cross-entropy with the label."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def dlr(
    logits: Float[Array, "B K"], labels: Int[Array, "B"], targets: Int[Array, "B"] | None = None
) -> Float[Array, "B"]:
    """Difference of logits ratio (Croce and Hein, ICML 2020); the margin below 3 classes."""
    if logits.shape[-1] < 3:
        return margin(logits, labels)
    z = jnp.sort(logits, -1)
    return margin(logits, labels) / (z[:, -1] - z[:, -3] + 1e-12)


def margin_targeted(
    logits: Float[Array, "B K"], labels: Int[Array, "B"], targets: Int[Array, "B"] | None
) -> Float[Array, "B"]:
    """Logit of a target class minus that of the label (Carlini and Wagner, S&P 2017)."""
    return _logit(logits, targets) - _logit(logits, labels)


def dlr_targeted(
    logits: Float[Array, "B K"], labels: Int[Array, "B"], targets: Int[Array, "B"] | None
) -> Float[Array, "B"]:
    """Difference of logits ratio towards a target class; the difference below 4 classes."""
    gap = margin_targeted(logits, labels, targets)
    if logits.shape[-1] < 4:
        return gap
    z = jnp.sort(logits, -1)
    return gap / (z[:, -1] - (z[:, -3] + z[:, -4]) / 2 + 1e-12)


LOSSES: dict[str, Loss] = {
    "ce": cross_entropy,
    "margin": margin,
    "dlr": dlr,
    "dlr_targeted": dlr_targeted,
    "margin_targeted": margin_targeted,
}
TARGETED = ("dlr_targeted", "margin_targeted")  # those that need target classes


def _logit(logits, classes):
    """Every image's logit of the given class."""
    return jnp.take_along_axis(logits, classes[:, None], -1)[:, 0]
