"""Whether a robust accuracy can be believed: checks for masked gradients, each with its figure.

A network whose gradients say little about its loss looks robust to whoever follows them.
The symptoms are known (Athalye et al., ICML 2018; Carlini et al., arXiv 1902.06705; the flags
of AutoAttack), and every check here is one of them, most on the gradient that the network
itself offers. The limits are ours: between honestly trained networks and planted frauds on the
digits, and not yet tried on large networks.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ccsrp_jax.attacks.gradients import loss_and_gradient
from ccsrp_jax.attacks.noise import Noise
from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.data.batching import padded_batches
from ccsrp_jax.data.splits import Split, to_unit_range
from ccsrp_jax.networks.classifier import ClassifierFn, initial_state, is_stochastic, key_kwargs
from ccsrp_jax.robustness.accuracy import VOTES, correct
from ccsrp_jax.robustness.run_suite import Outcome
from ccsrp_jax.robustness.suites import View
from ccsrp_jax.utils.errors import check_number

STEPS = (1, 5, 20)


EPS_TIMES = (0.5, 1.0, 2.0, 4.0)  # and the largest there is


WIDTHS = ("atan:0.5", "atan:1", "atan:2")


OVERSTEP = 1e-6  # float32 rounding at the border of the ball


LEAST_DRAWS = 10  # over which a stochastic network's gradient must be averaged


LEAST_IMAGES = 50  # below, one image is worth more than the limits


class Check(NamedTuple):
    """One symptom: its figure, the limit, and what a figure beyond it means."""

    name: str
    passed: bool | None  # None where there was nothing to check
    figure: float
    limit: float
    reason: str


@dataclass(frozen=True)
class Verdict:
    """The checks of one network at one radius.

    Attributes:
      checks: all of them.
      images: how many they were made on.
      eps_curve: (eps, accuracy) pairs, sample-wise worst of two short attacks.
      steps_curve: (steps, accuracy) pairs of PGD through the network's own gradient.
      width_curve: (backward pass, accuracy) pairs of PGD-10.
    """

    checks: tuple[Check, ...]
    images: int
    eps_curve: tuple[tuple[float, float], ...]
    steps_curve: tuple[tuple[int, float], ...]
    width_curve: tuple[tuple[str, float], ...]

    @property
    def reliable(self) -> bool:
        """Whether no check failed."""
        return not self.reasons

    @property
    def reasons(self) -> list[str]:
        """What the failed checks mean."""
        return [check.reason for check in self.checks if check.passed is False]

    @property
    def unchecked(self) -> list[str]:
        """Checks for which there was nothing to look at."""
        return [check.name for check in self.checks if check.passed is None]


def audit(
    logits: ClassifierFn,
    params: Any,
    split: Split,
    outcome: Outcome,
    available: Mapping[str, View],
    key: Array,
    *,
    images: int = 128,
    samples: int = 1,
    votes: int = VOTES,
    batch_size: int = 128,
) -> Verdict:
    """Checks a network and what a suite of attacks said of it.

    Args:
      logits, params, split: what the suite ran on.
      outcome: what it found.
      available: its views; widths are swept if they are among them.
      key: of all random draws.
      images: the sweeps use so many, spread over the split.
      samples: draws over which the suite averaged a stochastic network's gradient.
      votes, batch_size: as for the suite.
    """
    check_number("audit_images", images, 1)
    count = min(images, len(split.labels))
    places = np.arange(count) * len(split.labels) // count
    some = Split(split.images[places], split.labels[places])
    eps, norm, own = outcome.eps, outcome.norm, View(logits, params)
    slack = max(0.02, 4 / len(some.labels))  # four images are no trend
    key_clean, key_attack, key_slope, key_again = jax.random.split(key, 4)

    def hits(attack, view: View = own, key: Array = key_attack) -> np.ndarray:
        """Images classified correctly after an attack on a view."""

        def through(_logits, _params, x, y, key_batch):
            return attack(*view, x, y, key_batch)

        return correct(
            logits,
            params,
            some,
            attack=through,
            key=key,
            batch_size=batch_size,
            votes=votes,
        )

    def pgd(radius: float, steps: int) -> PGD:
        return PGD(radius, steps, random_start=False, norm=norm, samples=samples)

    clean = correct(logits, params, some, key=key_clean, batch_size=batch_size, votes=votes)
    at_zero = hits(pgd(0.0, 2), key=key_clean)
    noise = (clean & hits(Noise(eps, norm))).mean()
    by_steps = [(clean & hits(pgd(eps, steps))).mean() for steps in STEPS]
    best = available.get("atan:0.5", own)
    largest = 1.0 if norm == "linf" else math.sqrt(some.images[0].size)
    radii = sorted({min(times * eps, largest) for times in EPS_TIMES} | {largest})
    by_eps = [clean.mean()] + [
        (clean & hits(pgd(radius, 10)) & hits(pgd(radius, 10), best)).mean() for radius in radii
    ]
    widths = {"own": own} | {name: available[name] for name in WIDTHS if name in available}
    by_width = [(clean & hits(pgd(eps, 10), view)).mean() for view in widths.values()]
    vanished = _vanished(own, some, clean, pgd(eps, 10), key_slope, batch_size)
    changed = _changed(own, some, key_again, batch_size)
    stochastic, total = is_stochastic(logits), len(outcome.clean)
    checks = (
        _below(
            "eps 0 is clean accuracy",
            (at_zero != clean).mean(),
            slack if stochastic else 0.0,
            "an attack of radius 0 changes answers",
        ),
        _below(
            "accuracy falls to 0 with eps",
            by_eps[-1],
            0.05,
            f"even at eps {largest:g}, where images can become anything, attacks fail",
        ),
        _below("never rises with eps", _rise(by_eps), slack, "larger balls seem safer"),
        _below("never rises with steps", _rise(by_steps), slack, "more steps break fewer images"),
        _below(
            "black-box attacks add nothing",
            outcome.broken("transfer", "black box") / total,
            max(0.02, 2 / total),
            "attacks without this network's gradients break images that those with them leave",
            done=outcome.ran("white box") and outcome.ran("transfer", "black box"),
        ),
        _below(
            "noise is weaker",
            by_steps[-1] - noise,
            slack,
            "random noise breaks more than the gradient's direction does",
        ),
        _below(
            "gradients do not vanish",
            vanished,
            0.05,
            "for too many images the gradient is zero or too small to move the decision",
        ),
        _below(
            "the surrogate's width matters little",
            _missed(clean.mean(), by_width, slack),
            2 / 3,
            "through a surrogate of another width the same attack breaks three times as many",
            done=len(widths) > 1,
        ),
        Check(
            f"gradient averaged over {LEAST_DRAWS} draws or more",
            samples >= LEAST_DRAWS,
            float(samples),
            float(LEAST_DRAWS),
            f"the network draws at random (two passes differ by {changed:.0%}), and its "
            "gradient was not averaged over enough draws",
        )
        if stochastic
        else _below("same answer twice", changed, 1e-4, "two passes over an image differ"),
        _below(
            "inside ball and box", outcome.overstep, OVERSTEP, "adversarial images left the ball"
        ),
        Check(
            f"{LEAST_IMAGES} images or more",
            total >= LEAST_IMAGES,
            float(total),
            float(LEAST_IMAGES),
            "so few images show too little",
        ),
    )
    return Verdict(
        checks,
        len(some.labels),
        tuple(zip([0.0, *radii], map(float, by_eps), strict=True)),
        tuple(zip(STEPS, map(float, by_steps), strict=True)),
        tuple(zip(widths, map(float, by_width), strict=True)),
    )


def _below(name: str, figure: Any, limit: float, reason: str, *, done: bool = True) -> Check:
    return Check(name, bool(figure <= limit) if done else None, float(figure), limit, reason)


def _rise(accuracies: list) -> float:
    """Largest rise above any value before it."""
    return float((np.array(accuracies) - np.minimum.accumulate(accuracies)).max())


def _missed(clean: Any, by_width: list, slack: float) -> float:
    """Share of what the best width breaks that the network's own gradient leaves."""
    best = clean - min(by_width)
    return float((by_width[0] - min(by_width)) / best) if best > slack else 0.0


def _vanished(view, split, clean, attack, key, batch_size) -> float:
    """Share of correctly classified images whose gradient is of no use.

    That is where the cross-entropy's is exactly zero everywhere, or where following the
    margin's through the whole ball would, to first order, take off less than a hundredth
    of the margin.
    """
    useless = []
    for images, labels, real in padded_batches(split, batch_size):
        found = {
            loss: loss_and_gradient(
                view.logits,
                view.params,
                images,
                labels,
                loss=loss,
                key=key,
                samples=attack.samples,
                surrogate_state=initial_state(view.logits, len(images)),
            )
            for loss in ("ce", "margin")
        }
        zero = (found["ce"].gradient == 0).all((1, 2, 3))
        flat = jnp.abs(found["margin"].gradient).reshape(len(images), -1)
        reach = flat.sum(-1) if attack.norm == "linf" else jnp.sqrt((flat**2).sum(-1))
        eps = max(attack.eps, 1 / 255)  # a radius of 0 is no fault of the gradient
        small = eps * reach < 0.01 * jnp.abs(found["margin"].loss)
        useless.append(np.asarray(zero | small)[:real])
    return float(np.concatenate(useless)[clean].mean()) if clean.any() else 0.0


def _changed(view, split, key, batch_size) -> float:
    """Largest difference between the logits of two passes, beside the largest logit."""
    images, _, _ = next(padded_batches(split, batch_size))
    extra = [key_kwargs(view.logits, each) for each in jax.random.split(key)]
    run = jax.jit(view.logits)
    first, second = (run(view.params, to_unit_range(images), **each) for each in extra)
    return float(jnp.abs(first - second).max() / jnp.maximum(jnp.abs(first).max(), 1e-12))
