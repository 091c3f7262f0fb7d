"""One-step attacks for fast adversarial training: RS-FGSM and N-FGSM.

Both differ from `PGD(eps, 1)`, whose step of 2.5 eps moves almost every pixel to a corner of the
ball wherever it starts: such training is prone to catastrophic overfitting, in which a network
withstands the attack of its training and no other.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ccsrp_jax.attacks.base import RestartedAttack
from ccsrp_jax.attacks.gradients import loss_and_gradient
from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.attacks.threat_model import Norm, check_attack
from ccsrp_jax.data.splits import to_unit_range
from ccsrp_jax.networks.classifier import initial_state, is_stochastic

RS_FGSM_STEP = 1.25  # multiple of eps: 10/255 for 8/255 in the source


def rs_fgsm(eps: float) -> PGD:
    """FGSM from a random start: uniform in the L-infinity ball, one step of 1.25 eps, projected.

    Args:
      eps: radius in pixel units, where images span [0, 1].

    References:
      Wong, Rice and Kolter, Fast is Better than Free, ICLR 2020.
    """
    return PGD(eps, 1, relative_step=RS_FGSM_STEP)


@dataclass(frozen=True)
class NFGSM(RestartedAttack):
    """Noise-FGSM: strong uniform noise, then one signed step, without projection onto the ball.

    x + u + relative_step eps sign(gradient at x + u), u uniform in +- relative_noise eps; x + u and
    the result are clipped to [0, 1] only. The result is up to (relative_noise + relative_step) eps
    away from the image, so this is an attack for training, and none that measures robustness.

    Attributes:
      eps: radius of the threat model that is trained for, in pixel units, where images span
        [0, 1].
      relative_noise: half width of the noise as a multiple of eps.
      relative_step: step size as a multiple of eps.
      samples: draws over which a stochastic network's gradient is averaged.

    References:
      de Jorge et al., Make Some Noise: Reliable and Efficient Single-Step Adversarial Training,
      NeurIPS 2022, arXiv 2202.01181 (noise of 2 eps, step of eps).
    """

    norms: ClassVar[tuple[Norm, ...]] = ("linf",)
    norm: ClassVar[Norm] = "linf"
    steps: ClassVar[int] = 1
    restarts: ClassVar[int] = 1

    eps: float = 8 / 255
    relative_noise: float = 2.0
    relative_step: float = 1.0
    samples: int = 1

    def __post_init__(self) -> None:
        check_attack(self)

    @property
    def parts(self) -> tuple[RestartedAttack, ...]:
        """Itself."""
        return (self,)

    @property
    def gradients(self) -> int:
        """Gradients per image."""
        return self.samples

    def run_once(self, classifier, network_state, images, labels, key):
        """The attack; arguments as for a call."""
        images = to_unit_range(images)
        key_noise, key_draws = jax.random.split(key)
        start = _noisy(key_noise, images, self.relative_noise * self.eps)
        result = loss_and_gradient(
            classifier,
            network_state,
            start,
            labels,
            key=key_draws if is_stochastic(classifier) else None,
            samples=self.samples,
            surrogate_state=initial_state(classifier, len(images), key),
        )
        return _signed_step(start, result.gradient, self.relative_step * self.eps)


@jax.jit
def _noisy(
    key: Array, images: Float[Array, "B H W C"], half_width: Float[Array, ""] | float
) -> Float[Array, "B H W C"]:
    noise = jax.random.uniform(key, images.shape, images.dtype, -1.0, 1.0)
    return jnp.clip(images + half_width * noise, 0.0, 1.0)


@jax.jit
def _signed_step(
    x: Float[Array, "B H W C"],
    gradient: Float[Array, "B H W C"],
    step_size: Float[Array, ""] | float,
) -> Float[Array, "B H W C"]:
    return jnp.clip(x + step_size * jnp.sign(gradient), 0.0, 1.0)
