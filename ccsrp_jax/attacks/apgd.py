"""Attacks that set their own step size: AutoAttack's APGD, and SA-PGD for spiking networks.

Both look at the classifier, note the worst iterate so far, step, and halve their step size at
the same checkpoints: APGD image by image, where it stopped to pay and with a return to the
best point; SA-PGD always.
"""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ccsrp_jax.attacks import base
from ccsrp_jax.attacks.base import Norm, Restarted, project, steepest, wide
from ccsrp_jax.data.splits import to_unit_range
from ccsrp_jax.networks import classifier
from ccsrp_jax.networks.classifier import Logits, is_stochastic, keyed
from ccsrp_jax.utils.errors import check_number, unknown


class Kept(NamedTuple):
    """The worst iterate so far: misclassified, then of the highest loss."""

    images: Float[Array, "B H W C"]
    loss: Float[Array, "B"]
    wrong: Bool[Array, "B"]


class Ascent(NamedTuple):
    """Where APGD stands after a look at the classifier and a step."""

    x: Float[Array, "B H W C"]
    before: Float[Array, "B H W C"]  # what x was a step from
    loss: Float[Array, "B"]  # of the last look
    best: Float[Array, "B H W C"]
    best_gradient: Float[Array, "B H W C"]
    best_loss: Float[Array, "B"]
    step_size: Float[Array, "B"]
    rises: Int[Array, "B"]  # looks with a higher loss than the one before, since the checkpoint
    checked_loss: Float[Array, "B"]  # the best at the last checkpoint
    halved: Bool[Array, "B"]  # at the last checkpoint
    kept: Kept


class Drift(NamedTuple):
    """Where SA-PGD stands: decaying sums of the gradient and of its square, each over its mean."""

    x: Float[Array, "B H W C"]
    momentum: Float[Array, "B H W C"]
    square: Float[Array, "B H W C"]
    kept: Kept


class _Attack(Restarted):
    """What the two have in common: all but the step.

    Of the misclassified iterates, or else of all, the worst is the result.
    """

    @property
    def gradients(self) -> int:
        """Gradients an image, at most."""
        return (self.steps + 1) * len(self.parts) * self.samples

    def _run(self, logits, params, images, labels, key, targets=None):
        images = to_unit_range(images)
        key_start, key_draws = jax.random.split(key)
        start = touching(key_start, images, self.eps, self.norm)
        for state in self.path(logits, params, images, labels, key_draws, start, targets):
            worst = state.kept.images
        return worst

    def path(
        self,
        logits: Logits,
        params: Any,
        images: Float[Array, "B H W C"],
        labels: Int[Array, "B"],
        key: Array,
        start: Float[Array, "B H W C"],
        targets: Int[Array, "B"] | None = None,
    ) -> Iterator[Ascent | Drift]:
        """One restart from a given start: its state after each of steps + 1 looks."""
        state = self._begin(start, labels)
        windows, memory = checkpoints(self.steps), classifier.start_memory(logits, len(images))
        for look in range(self.steps + 1):
            found = base.slope(
                logits,
                params,
                state.x,
                labels,
                loss=self.loss,
                targets=targets,
                key=jax.random.fold_in(key, look) if is_stochastic(logits) else None,
                samples=self.samples,
                memory=memory,
            )
            memory = found.memory
            state = self._step(look, windows, state, found, images, labels)
            yield state


@dataclass(frozen=True)
class APGD(_Attack):
    """Auto-PGD: momentum, and step sizes that halve where they stop to pay.

    Rules and constants are AutoAttack's, but that the first loss is compared with that of
    the start, as in the paper; AutoAttack's code compares it with 0.

    Attributes:
      eps: radius in pixel units, where images span [0, 1].
      steps: gradient steps a restart.
      restarts: random starts; the worst of them counts, see `attacks.strongest`.
      loss: one of `attacks.LOSSES`.
      targets: for `dlr_targeted`, how many wrong classes to move to, one after another, the
        clean image's likeliest first; at most as many as there are.
      norm: `linf` (signed steps) or `l2` (normalised ones).
      samples: draws that a stochastic network's gradient is averaged over.
      rho: the step size is halved where no more than this share of steps raised the loss.
      rank: for `dlr_targeted`, of the first target among the wrong classes.

    References:
      Croce and Hein, Reliable Evaluation of Adversarial Robustness with an Ensemble of
      Diverse Parameter-free Attacks, ICML 2020.
    """

    eps: float = 8 / 255
    steps: int = 100
    restarts: int = 1
    loss: Literal["ce", "margin", "dlr", "dlr_targeted"] = "ce"
    targets: int = 9
    norm: Norm = "linf"
    samples: int = 1
    rho: float = 0.75
    rank: int = 1

    def __post_init__(self) -> None:
        _check(self, base.LOSSES)
        check_number("attack targets", self.targets, 1)
        check_number("attack rho", self.rho, 0, 1)
        check_number("attack rank", self.rank, 1)

    @property
    def parts(self) -> tuple["APGD", ...]:
        """One attack for every target and restart."""
        once = dataclasses.replace(self, restarts=1)
        if self.loss == "dlr_targeted":
            ranks = range(self.rank, self.rank + self.targets)
            every = [dataclasses.replace(once, targets=1, rank=rank) for rank in ranks]
        else:
            every = [once]
        return tuple(part for part in every for _ in range(self.restarts))

    def _run(self, logits, params, images, labels, key, targets=None):
        if self.loss == "dlr_targeted":
            draws = self.samples if is_stochastic(logits) else 1
            key, *keys = jax.random.split(key, 1 + draws)
            z = sum(_clean(logits, params, images, each) for each in keys)
            wrong = _ranked(z, labels)
            if self.rank > wrong.shape[-1]:
                return to_unit_range(images)  # there is no such class
            targets = jnp.take(wrong, self.rank - 1, 1)
        return super()._run(logits, params, images, labels, key, targets)

    def _begin(self, start, labels):
        return _ascent(start, labels, self.eps)

    def _step(self, look, windows, state, found, images, labels):
        few = math.floor(self.rho * windows.get(look, 0))
        weight = 1.0 if look == 0 else 0.75
        varying = (self.eps, look in windows, few, weight)
        return _climb(state, found, images, labels, *varying, norm=self.norm)


@dataclass(frozen=True)
class SAPGD(_Attack):
    """Stable adaptive PGD in the ball of the maximum norm, for gradients that mislead.

    Every pixel moves by its momentum over the root of its squared gradients, and by the step
    size at most.

    Attributes:
      eps: radius in pixel units, where images span [0, 1].
      steps: gradient steps a restart.
      restarts: random starts; the worst of them counts, see `attacks.strongest`.
      loss: `ce` or `dlr`.
      samples: draws that a stochastic network's gradient is averaged over.

    References:
      Wang et al., Towards Reliable Evaluation of Adversarial Robustness for Spiking Neural
      Networks, arXiv 2512.22522.
    """

    eps: float = 8 / 255
    steps: int = 100
    restarts: int = 1
    loss: Literal["ce", "dlr"] = "ce"
    samples: int = 1
    norm: ClassVar[Norm] = "linf"

    def __post_init__(self) -> None:
        _check(self, ("ce", "dlr"))

    def _begin(self, start, labels):
        return _standstill(start, labels)

    def _step(self, look, windows, state, found, images, labels):
        step_size = self.eps / 2 ** sum(at <= look for at in windows)
        return _drift(state, found, images, labels, self.eps, step_size)


def _check(attack, losses):
    base.check_ball(attack.eps, attack.norm)
    for name in ("steps", "restarts", "samples"):
        check_number(f"attack {name}", getattr(attack, name), 1)
    if attack.loss not in losses:
        raise unknown("attack loss", attack.loss, losses)


def checkpoints(steps: int) -> dict[int, int]:
    """Steps after which step sizes may be halved, each with the number since the one before.

    That number falls from 0.22 of all steps by 0.03 at a time, to 0.06 and no further.
    """
    window, less, least = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    at, found = window, {}
    while at <= steps:
        found[at] = window
        window = max(window - less, least)
        at += window
    return found


@partial(jax.jit, static_argnames="norm")
def touching(
    key: Array, images: Float[Array, "B H W C"], eps: Float[Array, ""] | float, norm: Norm
) -> Float[Array, "B H W C"]:
    """Random points on the surface of the ball, where AutoAttack starts, put into the box."""
    if norm == "linf":
        noise = jax.random.uniform(key, images.shape, images.dtype, -1.0, 1.0)
        noise = noise / jnp.abs(noise).max((1, 2, 3), keepdims=True)
    else:
        noise = steepest(jax.random.normal(key, images.shape, images.dtype), norm)
    return project(images + eps * noise, images, eps, norm)


@partial(jax.jit, static_argnums=0)
def _clean(logits, params, images, key):
    return logits(params, to_unit_range(images), **keyed(logits, key))


@jax.jit
def _ranked(z, labels):
    """Wrong classes (B, K - 1), the likeliest first."""
    own = jax.nn.one_hot(labels, z.shape[-1], dtype=bool)
    return jnp.argsort(jnp.where(own, -jnp.inf, z), descending=True)[:, :-1]


def _unseen(start, labels):
    return Kept(start, jnp.full(labels.shape, -jnp.inf), jnp.zeros(labels.shape, bool))


def _keep(kept, x, found, labels):
    wrong = found.logits.argmax(-1) != labels
    worse = (wrong & ~kept.wrong) | ((wrong == kept.wrong) & (found.loss > kept.loss))
    images = jnp.where(wide(worse), x, kept.images)
    return Kept(images, jnp.where(worse, found.loss, kept.loss), kept.wrong | wrong)


@jax.jit
def _ascent(start, labels, eps):
    kept, none = _unseen(start, labels), jnp.zeros(labels.shape, jnp.int32)
    best = (start, jnp.zeros_like(start), kept.loss)
    step_size = jnp.full(labels.shape, 2 * eps, start.dtype)
    return Ascent(start, start, -kept.loss, *best, step_size, none, kept.loss, ~kept.wrong, kept)


@partial(jax.jit, static_argnames="norm")
def _climb(s, found, images, labels, eps, check, few, weight, *, norm):
    """APGD from a look to the next point.

    `check` says whether this is a checkpoint, where `few` rises or less halve the step size;
    `weight` is that of the new step beside the one before.
    """
    better = found.loss > s.best_loss
    best = jnp.where(wide(better), s.x, s.best)
    best_gradient = jnp.where(wide(better), found.gradient, s.best_gradient)
    best_loss = jnp.where(better, found.loss, s.best_loss)
    rises = s.rises + (found.loss > s.loss)

    stuck = ~s.halved & (s.checked_loss >= best_loss)
    halve = check & ((rises <= few) | stuck)
    step_size = jnp.where(halve, s.step_size / 2, s.step_size)
    x = jnp.where(wide(halve), best, s.x)
    gradient = jnp.where(wide(halve), best_gradient, found.gradient)

    ahead = project(x + wide(step_size) * steepest(gradient, norm), images, eps, norm)
    ahead = x + weight * (ahead - x) + (1 - weight) * (x - s.before)
    return Ascent(
        project(ahead, images, eps, norm),
        x,
        found.loss,
        best,
        best_gradient,
        best_loss,
        step_size,
        jnp.where(check, 0, rises),
        jnp.where(check, best_loss, s.checked_loss),
        jnp.where(check, halve, s.halved),
        _keep(s.kept, s.x, found, labels),
    )


@jax.jit
def _standstill(start, labels):
    return Drift(start, jnp.zeros_like(start), jnp.zeros_like(start), _unseen(start, labels))


@jax.jit
def _drift(s, found, images, labels, eps, step_size):
    """SA-PGD from a look to the next point."""
    relative = _over_mean(found.gradient)
    momentum = 0.5 * s.momentum + relative
    square = 0.8 * s.square + _over_mean(relative**2)
    step = step_size * momentum / (jnp.sqrt(square) + 1e-12)
    x = project(s.x + jnp.clip(step, -step_size, step_size), images, eps, "linf")
    return Drift(x, momentum, square, _keep(s.kept, s.x, found, labels))


def _over_mean(a):
    """Each image's array over its mean magnitude; 0 where that is 0."""
    mean = jnp.abs(a).mean((1, 2, 3), keepdims=True)
    return a / jnp.where(mean > 0, mean, 1.0)
