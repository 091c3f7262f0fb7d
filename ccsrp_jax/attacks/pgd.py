"""Adversarial attacks in pixel space: balls, losses, gradients, and PGD with its relatives.

A classifier is a hashable `logits(params, images)` on images in [0, 1], normalisation
inside; what is differentiated in place of its spikes is part of it (`network.Classifier`), so
an attack needs not use the surrogate of training. More that it may have:

  * `stochastic`, true if two passes may differ; it is then called with `key=`;
  * `with_backward(backward)`, itself differentiated through something else (`gradients`);
  * `remembers`, true if its gradient goes by the attack's iterations so far; it then has
    `recall(params, images, memory)`, logits and the next memory, and `fresh_memory(count)`.

An attack is a frozen dataclass that is called as
`attack(logits, params, images, labels, key) -> adversarial images`. Loops over steps run in
Python around one jitted step (a convolution's gradient inside a `fori_loop` is far slower
on CPU); under an outer `jit` they unroll.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
from jaxtyping import Array, Float

from ccsrp_jax.attacks.base import (
    Norm,
    Restarted,
    check_ball,
    project,
    random_in_ball,
    slope,
    steepest,
)
from ccsrp_jax.data.splits import to_unit_range
from ccsrp_jax.networks.classifier import is_stochastic, start_memory
from ccsrp_jax.utils.errors import check_number, unknown


@dataclass(frozen=True)
class PGD(Restarted):
    """Projected gradient ascent in a ball; the images of the last step are the result.

    Attributes:
      eps: radius in pixel units, where images span [0, 1].
      steps: gradient steps a restart.
      restarts: independent random starts; the worst of them counts, see `strongest`.
      relative_step: step size as a multiple of eps / steps.
      random_start: start uniformly in the ball instead of at the image.
      loss: one of `LOSSES`; `margin` makes it the attack of Carlini and Wagner's loss.
      norm: `linf` (signed steps) or `l2` (normalised ones).
      samples: draws that a stochastic network's gradient is averaged over.

    References:
      Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, ICLR 2018.
    """

    eps: float = 8 / 255
    steps: int = 20
    restarts: int = 1
    relative_step: float = 2.5
    random_start: bool = True
    loss: Literal["ce", "margin", "dlr"] = "ce"
    norm: Norm = "linf"
    samples: int = 1

    def __post_init__(self) -> None:
        check_ball(self.eps, self.norm)
        check_number("attack steps", self.steps, 1)
        check_number("attack restarts", self.restarts, 1)
        check_number("attack relative_step", self.relative_step, 0, above=True)
        check_number("attack samples", self.samples, 1)
        if self.loss not in ("ce", "margin", "dlr"):
            raise unknown("attack loss", self.loss, ("ce", "margin", "dlr"))

    @property
    def step_size(self) -> float:
        """Length of a step in pixel units: relative_step * eps / steps."""
        return self.relative_step * self.eps / self.steps

    @property
    def gradients(self) -> int:
        """Gradients an image."""
        return self.steps * self.restarts * self.samples

    def _run(self, logits, params, images, labels, key):
        images = to_unit_range(images)
        x, memory = images, start_memory(logits, len(images))
        if self.random_start:
            x = random_in_ball(key, images, self.eps, self.norm)
        for step in range(self.steps):
            found = slope(
                logits,
                params,
                x,
                labels,
                loss=self.loss,
                key=jax.random.fold_in(key, step) if is_stochastic(logits) else None,
                samples=self.samples,
                memory=memory,
            )
            memory = found.memory
            x = _move(x, found.gradient, images, self.eps, self.step_size, norm=self.norm)
        return x


@partial(jax.jit, static_argnames="norm")
def _move(x, gradient, images, eps, step_size, *, norm):
    return project(x + step_size * steepest(gradient, norm), images, eps, norm)


def fgsm(eps: float, *, random_start: bool = False, norm: Norm = "linf", samples: int = 1) -> PGD:
    """One step to the surface of the ball (Goodfellow et al., ICLR 2015)."""
    return PGD(eps, 1, relative_step=1.0, random_start=random_start, norm=norm, samples=samples)


@dataclass(frozen=True)
class Noise:
    """Random noise as large as the ball allows, without a look at the network: a control.

    Attributes:
      eps: radius; every pixel moves by it (`linf`), or all of them together (`l2`).
      norm: `linf` or `l2`.
    """

    eps: float = 8 / 255
    norm: Norm = "linf"

    def __post_init__(self) -> None:
        check_ball(self.eps, self.norm)

    @property
    def gradients(self) -> int:
        """Gradients an image."""
        return 0

    @property
    def queries(self) -> int:
        """Forward passes an image without a gradient."""
        return 0

    def __call__(self, logits, params, images, labels, key) -> Float[Array, "B H W C"]:
        images = to_unit_range(images)
        gaussian = jax.random.normal(key, images.shape)
        return project(
            images + self.eps * steepest(gaussian, self.norm), images, self.eps, self.norm
        )
