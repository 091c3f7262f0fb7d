"""The threat model: which perturbations of an image an attack may use."""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from ccsrp_jax.utils.errors import InputError, unknown
from ccsrp_jax.utils.fields import POSITIVE, SIZE, Limits, check_fields, real

Norm = Literal["linf", "l2"]
NORMS: tuple[Norm, ...] = get_args(Norm)

MAX_EPS: dict[Norm, int] = {"linf": 1, "l2": 1000}


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True)
class ThreatModel:
    """A ball around every image, intersected with the box [0, 1] of valid pixels.

    A PyTree whose norm is static and whose radius is a leaf, so that jitted functions compile
    once for all radii.

    Attributes:
      norm: `linf` (largest change of a pixel) or `l2` (Euclidean length of all changes).
      eps: radius in pixel units, where images span [0, 1].

    Raises:
      InputError: an unknown norm, or a radius outside [0, 1] (linf) or [0, 1000] (l2).
    """

    norm: Norm
    eps: float | int

    def __post_init__(self) -> None:
        check_norm(self.norm)
        eps = real("attack eps", self.eps, Limits(infinite=True))
        object.__setattr__(self, "eps", eps)
        if not 0 <= self.eps <= MAX_EPS[self.norm]:
            raise InputError(
                f"attack eps {self.eps} is outside [0, {MAX_EPS[self.norm]}]: give the radius "
                "in pixel units, where images span 0 to 1 (8/255 is 0.0314)."
            )

    def tree_flatten(self) -> tuple[tuple[Any], Norm]:
        """The radius, a leaf, and the norm, which is static."""
        return (self.eps,), self.norm

    @classmethod
    def tree_unflatten(cls, norm: Norm, leaves: tuple[Any]) -> "ThreatModel":
        """Inverse of `tree_flatten`, without checks: under jit the radius is a tracer."""
        threat = object.__new__(cls)
        object.__setattr__(threat, "norm", norm)
        object.__setattr__(threat, "eps", leaves[0])
        return threat

    def project(
        self, x: Float[Array, "B H W C"], images: Float[Array, "B H W C"]
    ) -> Float[Array, "B H W C"]:
        """x projected onto the ball around the images, then clipped to [0, 1]."""
        if self.norm == "linf":
            x = jnp.clip(x, images - self.eps, images + self.eps)
        else:
            length = l2_length(x - images)
            x = images + (x - images) * jnp.minimum(1.0, self.eps / jnp.maximum(length, 1e-12))
        return jnp.clip(x, 0.0, 1.0)

    def ascent_direction(self, gradient: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """The perturbation of length 1 that increases a loss most; 0 where the gradient is 0."""
        if self.norm == "linf":
            return jnp.sign(gradient)
        largest = jnp.abs(gradient).max((1, 2, 3), keepdims=True)  # its square may underflow
        scaled = gradient / jnp.where(largest > 0, largest, 1.0)
        return scaled / jnp.maximum(l2_length(scaled), 1e-12)

    def random_point(self, key: Array, images: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """A uniformly random point of each image's ball, clipped to [0, 1]."""
        if self.norm == "linf":
            noise = jax.random.uniform(key, images.shape, images.dtype, -1.0, 1.0)
        else:
            key_direction, key_radius = jax.random.split(key)
            noise = jax.random.normal(key_direction, images.shape, images.dtype)
            u = jax.random.uniform(key_radius, (len(images), 1, 1, 1), images.dtype)
            noise = noise / l2_length(noise) * u ** (1 / images[0].size)
        return self.project(images + self.eps * noise, images)

    @jax.jit
    def random_surface_point(
        self, key: Array, images: Float[Array, "B H W C"]
    ) -> Float[Array, "B H W C"]:
        """A random point on the surface of each image's ball, clipped: where AutoAttack starts."""
        if self.norm == "linf":
            noise = jax.random.uniform(key, images.shape, images.dtype, -1.0, 1.0)
            noise = noise / jnp.abs(noise).max((1, 2, 3), keepdims=True)
        else:
            noise = self.ascent_direction(jax.random.normal(key, images.shape, images.dtype))
        return self.project(images + self.eps * noise, images)

    def length(self, perturbation: Float[Array, "B H W C"]) -> Float[Array, "B"]:
        """Length of every image's perturbation in this norm."""
        if self.norm == "linf":
            return jnp.abs(perturbation).max((1, 2, 3))
        return l2_length(perturbation)[:, 0, 0, 0]

    def dual_length(self, gradient: Float[Array, "B H W C"]) -> Float[Array, "B"]:
        """First-order increase of a loss along a perturbation of length 1: the dual norm."""
        flat = jnp.abs(gradient).reshape(len(gradient), -1)
        return flat.sum(-1) if self.norm == "linf" else jnp.sqrt((flat**2).sum(-1))

    def max_violation(
        self, x: Float[Array, "B H W C"], images: Float[Array, "B H W C"]
    ) -> Float[Array, ""]:
        """Largest distance of any x to the ball and the box, at least 0; inf if not finite."""
        outside_box = jnp.maximum(-x.min(), x.max() - 1)
        outside = jnp.maximum(self.length(x - images).max() - self.eps, outside_box)
        return jnp.where(jnp.isfinite(outside), jnp.maximum(outside, 0), jnp.inf)

    def box_diameter(self, pixels: int) -> float:
        """Largest distance between two valid images of so many pixel values."""
        return 1.0 if self.norm == "linf" else math.sqrt(pixels)


# Which numbers the settings of attacks take, by their names.
SETTINGS = {
    **dict.fromkeys(("steps", "restarts", "samples", "budget", "targets", "rank"), SIZE),
    "relative_step": POSITIVE,
    "relative_noise": Limits(0),
    "rho": Limits(0, 1),
    "decay": Limits(0, 1),
    "p_init": Limits(0, 1, above=True),
}


def check_attack(attack: Any) -> None:
    """Checks and converts the settings of an attack, a frozen dataclass, in its `__post_init__`.

    Raises:
      InputError: a norm or radius that no `ThreatModel` has, or another setting out of range.
    """
    ThreatModel(attack.norm, attack.eps)
    check_fields(attack, "attack", SETTINGS)


def check_norm(norm: str) -> None:
    """Raises InputError for an unknown norm."""
    if not isinstance(norm, str) or norm not in NORMS:
        raise unknown("norm", norm, NORMS)


def l2_length(x: Float[Array, "B H W C"]) -> Float[Array, "B 1 1 1"]:
    """Euclidean length of every image's array."""
    return jnp.sqrt((x**2).sum((1, 2, 3), keepdims=True))


def per_image(values: Shaped[Array, "B"]) -> Shaped[Array, "B 1 1 1"]:
    """One value for every image, in a shape that broadcasts against its pixels."""
    return values[:, None, None, None]
