"""Random noise, as a control for attacks."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ccsrp_jax.attacks.base import AttackKind
from ccsrp_jax.attacks.threat_model import NORMS, Norm, ThreatModel, check_attack
from ccsrp_jax.data.checks import checked_images
from ccsrp_jax.data.splits import to_unit_range
from ccsrp_jax.utils.keys import checked_key


@dataclass(frozen=True)
class Noise:
    """Random noise of the ball's radius that does not depend on the network.

    Attributes:
      eps: radius; every pixel changes by it (`linf`), or all of them together (`l2`).
      norm: `linf` or `l2`.
    """

    kind: ClassVar[AttackKind] = "noise"
    norms: ClassVar[tuple[Norm, ...]] = NORMS
    gradients: ClassVar[int] = 0
    queries: ClassVar[int] = 0

    eps: float = 8 / 255
    norm: Norm = "linf"

    def __post_init__(self) -> None:
        check_attack(self)

    @property
    def threat(self) -> ThreatModel:
        """The ball that the noisy images lie in."""
        return ThreatModel(self.norm, self.eps)

    def __call__(self, classifier, network_state, images, labels, key) -> Float[Array, "B H W C"]:
        """Images with noise added, in [0, 1]; only `images` and `key` are used.

        Raises:
          InputError: images or key cannot be used; values are checked outside `jit` only.
        """
        images = jnp.asarray(checked_images(images))
        return self.run(classifier, network_state, images, labels, checked_key(key))

    def run(self, classifier, network_state, images, labels, key) -> Float[Array, "B H W C"]:
        """As a call, without the check of its arguments."""
        images = to_unit_range(images)
        direction = self.threat.ascent_direction(jax.random.normal(key, images.shape, images.dtype))
        return self.threat.project(images + self.eps * direction, images)
