"""What attacks share: losses, gradients, balls, and taking the worst of several."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Shaped

from ccsrp_jax.data.splits import to_unit_range
from ccsrp_jax.networks.classifier import Logits, is_stochastic, keyed
from ccsrp_jax.utils.errors import InputError, unknown

Attack = Callable[[Logits, Any, Array, Array, Array], Float[Array, "B H W C"]]


Norm = Literal["linf", "l2"]


JUDGE = 2**30  # folded into a key where an attack's images are judged: no step has that number


SHORT_PGD_CAVEAT = (
    "PGD through a surrogate gradient is an upper bound on robust accuracy: spiking networks "
    "mask gradients, and stronger attacks can break more images."
)


def margin(
    logits: Float[Array, "B K"], labels: Int[Array, "B"], targets: Int[Array, "B"] | None = None
) -> Float[Array, "B"]:
    """Best other logit less the true one: above 0 where misclassified (Carlini and Wagner)."""
    if logits.shape[-1] == 1:
        return 0 * logits[:, 0]
    own = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    return jnp.where(own, -jnp.inf, logits).max(-1) - _of(logits, labels)


def cross_entropy(logits, labels, targets):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def dlr(logits, labels, targets):
    """Difference of logits ratio; the plain margin below 3 classes."""
    if logits.shape[-1] < 3:
        return margin(logits, labels)
    z = jnp.sort(logits, -1)
    return margin(logits, labels) / (z[:, -1] - z[:, -3] + 1e-12)


def dlr_targeted(logits, labels, targets):
    """The ratio towards a target class; the plain difference below 4 classes."""
    gap = _of(logits, targets) - _of(logits, labels)
    if logits.shape[-1] < 4:
        return gap
    z = jnp.sort(logits, -1)
    return gap / (z[:, -1] - (z[:, -3] + z[:, -4]) / 2 + 1e-12)


# Each (logits, labels, targets) -> (B,), to be raised. Croce and Hein, ICML 2020, for DLR.
LOSSES = {"ce": cross_entropy, "margin": margin, "dlr": dlr, "dlr_targeted": dlr_targeted}


def _of(logits, classes):
    return jnp.take_along_axis(logits, classes[:, None], -1)[:, 0]


class Slope(NamedTuple):
    """A classifier's loss at some images, and its gradient."""

    loss: Float[Array, "B"]
    gradient: Float[Array, "B H W C"]
    logits: Float[Array, "B K"]
    memory: Any


def slope(
    logits: Logits,
    params: Any,
    images: Float[Array, "B H W C"],
    labels: Int[Array, "B"],
    *,
    loss: str = "ce",
    targets: Int[Array, "B"] | None = None,
    key: Array | None = None,
    samples: int = 1,
    memory: Any = None,
) -> Slope:
    """Gradient of a loss for the images, where it is finite and 0 elsewhere.

    Args:
      logits, params: the classifier.
      images, labels: where to differentiate.
      loss: one of `LOSSES`.
      targets: classes to move to, for `dlr_targeted`.
      key, samples: a stochastic classifier's gradient, loss and logits are averaged over so
        many draws (expectation over transformations, Athalye et al., ICML 2018).
      memory: `start_memory`, or what the iteration before returned.
    """
    which = jnp.asarray(list(LOSSES).index(loss))
    targets = labels if targets is None else targets
    draws = samples if is_stochastic(logits) else 1
    if draws == 1:
        return _slope(logits, params, images, labels, targets, which, key, memory)
    found = [
        _slope(logits, params, images, labels, targets, which, each, memory)
        for each in jax.random.split(key, draws)
    ]
    means = jax.tree.map(lambda *parts: sum(parts) / draws, *[each[:3] for each in found])
    return Slope(*means, found[-1].memory)


@partial(jax.jit, static_argnums=0)
def _slope(logits, params, images, labels, targets, which, key, memory):
    def total(x):
        if memory is None:
            z, after = logits(params, x, **keyed(logits, key)), None
        else:
            z, after = logits.recall(params, x, memory, **keyed(logits, key))
        # all of them: one program serves every loss, and they cost next to nothing
        losses = jnp.stack([loss(z, labels, targets) for loss in LOSSES.values()])[which]
        return losses.sum(), (losses, z, after)

    gradient, (losses, z, after) = jax.grad(total, has_aux=True)(images)
    return Slope(losses, jnp.where(jnp.isfinite(gradient), gradient, 0.0), z, after)


def project(x: Array, images: Array, eps: Float[Array, ""] | float | int, norm: Norm) -> Array:
    """Into the ball around the images, and into the box [0, 1]."""
    if norm == "linf":
        x = jnp.clip(x, images - eps, images + eps)
    else:
        length = _length(x - images)
        x = images + (x - images) * jnp.minimum(1.0, eps / jnp.maximum(length, 1e-12))
    return jnp.clip(x, 0.0, 1.0)


def steepest(gradient: Float[Array, "B H W C"], norm: Norm) -> Float[Array, "B H W C"]:
    """The direction of length 1 that gains most; 0 where there is no gradient."""
    if norm == "linf":
        return jnp.sign(gradient)
    largest = jnp.abs(gradient).max((1, 2, 3), keepdims=True)  # its square may underflow
    scaled = gradient / jnp.where(largest > 0, largest, 1.0)
    return scaled / jnp.maximum(_length(scaled), 1e-12)


def random_in_ball(key: Array, images: Array, eps: float | int, norm: Norm) -> Array:
    """Images moved to a uniformly random point of the ball, then into the box."""
    if norm == "linf":
        noise = jax.random.uniform(key, images.shape, images.dtype, -1.0, 1.0)
    else:
        key_direction, key_radius = jax.random.split(key)
        noise = jax.random.normal(key_direction, images.shape, images.dtype)
        u = jax.random.uniform(key_radius, (len(images), 1, 1, 1), images.dtype)
        noise = noise / _length(noise) * u ** (1 / images[0].size)
    return project(images + eps * noise, images, eps, norm)


def wide(a: Shaped[Array, "B"]) -> Shaped[Array, "B 1 1 1"]:
    """A value for each image, to go with its pixels."""
    return a[:, None, None, None]


def _length(x):
    return jnp.sqrt((x**2).sum((1, 2, 3), keepdims=True))


def check_ball(eps: float | int, norm: str) -> None:
    """Refuses a norm that is unknown, and a radius that no image could need."""
    if norm not in ("linf", "l2"):
        raise unknown("norm", norm, ("linf", "l2"))
    if not 0 <= eps <= (1 if norm == "linf" else 1e3):
        raise InputError(
            f"attack eps {eps} is outside [0, {1 if norm == 'linf' else 1000}]: give the radius "
            "in pixel units, where images span 0 to 1 (8/255 is 0.0314)."
        )


class Restarted:
    """An attack that may start over: a child has `restarts`, and `_run`, one attack from a key.

    `_run(logits, params, images, labels, key)` takes and returns what a call does.
    """

    queries: ClassVar[int] = 0  # forward passes an image without a gradient

    @property
    def parts(self) -> tuple["Restarted", ...]:
        """One attack for every restart."""
        return (dataclasses.replace(self, restarts=1),) * self.restarts

    def __call__(
        self,
        logits: Logits,
        params: Any,
        images: Shaped[Array, "B H W C"],
        labels: Int[Array, "B"],
        key: Array,
    ) -> Float[Array, "B H W C"]:
        """Adversarial images, the worst that its parts find.

        Args:
          logits, params: the classifier; static under jit, so it must be hashable.
          images: clean images in [0, 1], or as uint8.
          labels: true classes.
          key: of all random draws, a stochastic network's included.

        Returns:
          Images in [0, 1] within `eps` of the clean ones, in float32.
        """
        runs = [part._run for part in self.parts]
        if len(runs) > 1:
            return strongest(runs, logits, params, images, labels, key)
        return runs[0](logits, params, images, labels, jax.random.split(key, 1)[0])


def strongest(
    attacks: Sequence[Attack],
    logits: Logits,
    params: Any,
    images: Shaped[Array, "B H W C"],
    labels: Int[Array, "B"],
    key: Array,
) -> Float[Array, "B H W C"]:
    """The worst that several attacks find: misclassified, then of the highest cross-entropy."""
    worst = to_unit_range(images)
    worst_score = jnp.full(labels.shape, -jnp.inf)
    for key_attack, attack in zip(jax.random.split(key, len(attacks)), attacks, strict=True):
        adversarial = attack(logits, params, images, labels, key_attack)
        key_judge = jax.random.fold_in(key_attack, JUDGE)
        score = _badness(logits, params, adversarial, labels, key_judge)
        better = score > worst_score
        worst = jnp.where(wide(better), adversarial, worst)
        worst_score = jnp.where(better, score, worst_score)
    return worst


@partial(jax.jit, static_argnums=0)
def _badness(logits, params, images, labels, key):
    """Cross-entropy, raised above every correctly classified image's where it is wrong."""
    z = logits(params, images, **keyed(logits, key))
    wrong = z.argmax(-1) != labels
    return cross_entropy(z, labels, None) + jnp.where(wrong, 1e3, 0.0)
