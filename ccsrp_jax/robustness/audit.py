"""Whether a robust accuracy is reliable: checks for masked gradients, each with its figure.

A network whose gradients say little about its loss looks robust to attacks that follow them. The
symptoms are known (Athalye et al., ICML 2018; Carlini et al., arXiv 1902.06705; the flags of
AutoAttack). Every check here tests one of them, most on the network's own gradient. The limits
are ours: they separate honestly trained networks from constructed failures on the digits, and
have not been tried on large networks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Array

from ccsrp_jax.robustness.accuracy import Evaluator
from ccsrp_jax.robustness.gradient_sources import GradientSource
from ccsrp_jax.robustness.outcome import Outcome
from ccsrp_jax.robustness.sweeps import Sweeps, run_sweeps
from ccsrp_jax.utils.fields import Limits, integer

ROUNDING = 1e-6  # distance to the ball that float32 explains

MIN_DRAWS = 10  # over which a stochastic network's gradient should be averaged

MIN_IMAGES = 50  # with fewer, a single image exceeds the limits

WIDTH = "the surrogate's width matters little"

# Checks without which nothing is established, and what is said where they were left out.
REQUIRED = {
    WIDTH: "no surrogate gradient of another width was tried, and finite differences do not "
    "confirm this one",
}


class Check(NamedTuple):
    """One symptom.

    Attributes:
      name: what should hold.
      passed: whether it does; None where there was nothing to check.
      figure, limit: the figure that was measured, and its limit.
      reason: what a figure beyond the limit means.
    """

    name: str
    passed: bool | None
    figure: float
    limit: float
    reason: str


Conclusion = Literal["reliable", "not established", "unreliable"]


@dataclass(frozen=True)
class Verdict:
    """The checks of one network at one radius.

    Attributes:
      checks: all of them.
      images: number of images that the sweeps used.
      eps_curve: (eps, accuracy) pairs, sample-wise worst case of two short attacks.
      steps_curve: (steps, accuracy) pairs of PGD through the network's own gradient.
      width_curve: (gradient source, accuracy) pairs of PGD-10.
    """

    checks: tuple[Check, ...]
    images: int
    eps_curve: tuple[tuple[float, float], ...]
    steps_curve: tuple[tuple[int, float], ...]
    width_curve: tuple[tuple[str, float], ...]

    @property
    def conclusion(self) -> Conclusion:
        """`unreliable` if a check failed, `not established` if a required one was left out."""
        if any(check.passed is False for check in self.checks):
            return "unreliable"
        return "not established" if self.reasons else "reliable"

    @property
    def reliable(self) -> bool:
        """Whether no check failed, and none was left out that must not be."""
        return self.conclusion == "reliable"

    @property
    def reasons(self) -> list[str]:
        """What failed checks mean, and those that were left out and must not be."""
        failed = [check.reason for check in self.checks if check.passed is False]
        return failed + [REQUIRED[name] for name in self.unchecked if name in REQUIRED]

    @property
    def unchecked(self) -> list[str]:
        """Names of the checks for which there was nothing to check."""
        return [check.name for check in self.checks if check.passed is None]


def audit(
    evaluator: Evaluator,
    outcome: Outcome,
    sources: Mapping[str, GradientSource],
    key: Array,
    *,
    images: int = 128,
    samples: int = 1,
) -> Verdict:
    """Checks a network and its outcome under a suite of attacks.

    Args:
      evaluator: the network and the images that the suite was run on.
      outcome: of the suite.
      sources: its gradient sources; surrogate widths are swept if they are among them.
      key: for all random draws.
      images: number of images for the sweeps, evenly spaced over the split.
      samples: draws over which the suite averaged a stochastic network's gradient.
    """
    images = integer("audit_images", images, Limits(1))
    options = {"images": images, "samples": samples}
    sweeps = run_sweeps(evaluator, outcome.threat, sources, key, **options)
    return Verdict(
        tuple(check(sweeps, outcome) for check in CHECKS),
        sweeps.images,
        sweeps.by_eps,
        sweeps.by_steps,
        sweeps.by_width,
    )


def zero_radius(sweeps: Sweeps, outcome: Outcome) -> Check:
    """An attack of radius 0 must not change a prediction, except by a stochastic network's draw."""
    return _few(
        "eps 0 is clean accuracy",
        int((sweeps.at_zero != sweeps.clean).sum()),
        sweeps.slack if sweeps.stochastic else 0,
        sweeps.images,
        "an attack of radius 0 changes answers",
    )


def largest_radius(sweeps: Sweeps, outcome: Outcome) -> Check:
    """In the largest ball every image can become any other, so attacks must succeed."""
    eps, accuracy = sweeps.by_eps[-1]
    return _at_most(
        "accuracy falls to 0 with eps",
        accuracy,
        0.05,
        f"even at eps {eps:g}, where images can become anything, attacks fail",
    )


def monotone_in_eps(sweeps: Sweeps, outcome: Outcome) -> Check:
    """A larger ball contains the smaller one."""
    return _rise("never rises with eps", sweeps, sweeps.by_eps, "larger balls seem safer")


def monotone_in_steps(sweeps: Sweeps, outcome: Outcome) -> Check:
    """More gradient steps should not be weaker."""
    reason = "more steps break fewer images"
    return _rise("never rises with steps", sweeps, sweeps.by_steps, reason)


def black_box(sweeps: Sweeps, outcome: Outcome) -> Check:
    """Attacks without the network's gradients should break nothing that those with them do not."""
    total, others = len(outcome.clean), ("transfer", "black box")
    return _at_most(
        "black-box attacks add nothing",
        outcome.broken(*others) / total,
        max(0.02, 2 / total),
        "attacks without this network's gradients break images that those with them leave",
        applies=outcome.ran("white box") and outcome.ran(*others),
    )


def noise(sweeps: Sweeps, outcome: Outcome) -> Check:
    """Random noise should break less than PGD."""
    _, accuracy = sweeps.by_steps[-1]
    return _few(
        "noise is weaker",
        sweeps.count(accuracy) - sweeps.count(sweeps.noise),
        sweeps.slack,
        sweeps.images,
        "random noise breaks more than the gradient's direction does",
    )


def vanishing_gradients(sweeps: Sweeps, outcome: Outcome) -> Check:
    """Gradients should be large enough to change the decision."""
    return _at_most(
        "gradients do not vanish",
        sweeps.vanished,
        0.05,
        "for too many images the gradient is zero or too small to move the decision",
    )


def surrogate_width(sweeps: Sweeps, outcome: Outcome) -> Check:
    """Of what the best width breaks, the network's own gradient should break a third or more.

    Where no surrogates of other widths are there to be compared, finite differences may show that
    the gradient is no surrogate.
    """
    left = [sweeps.count(accuracy) for _, accuracy in sweeps.by_width]
    best, missed = int(sweeps.clean.sum()) - min(left), left[0] - min(left)
    probes = sweeps.probes
    return _at_most(
        WIDTH,
        missed / best if best > sweeps.slack else 0.0,
        2 / 3,
        "through a surrogate of another width the same attack breaks three times as many",
        applies=bool(probes.widths_differ) or probes.unconfirmed <= 0.1,
    )


def randomness(sweeps: Sweeps, outcome: Outcome) -> Check:
    """Two passes must agree, or else gradients must be averaged over enough draws."""
    difference = sweeps.pass_difference
    if not sweeps.stochastic:
        reason = "two passes over an image differ"
        return _at_most("same answer twice", difference, 1e-4, reason)
    return _at_least(
        f"gradient averaged over {MIN_DRAWS} draws or more",
        sweeps.samples,
        MIN_DRAWS,
        f"the network draws at random (two passes differ by {difference:.0%}), and its "
        "gradient was not averaged over enough draws",
    )


def inside_ball(sweeps: Sweeps, outcome: Outcome) -> Check:
    """Adversarial images must lie in the ball and in the box, up to rounding."""
    return _at_most(
        "inside ball and box",
        outcome.max_violation,
        ROUNDING,
        "adversarial images left the ball",
    )


def finite_logits(sweeps: Sweeps, outcome: Outcome) -> Check:
    """Logits must be finite: such as are not count as wrong, and no attack can follow them."""
    total, found = len(outcome.clean), 0
    if outcome.not_finite is not None:
        found = int(outcome.not_finite.sum())
    return _at_most(
        "all logits are finite",
        found / total,
        0.0,
        f"{found} of {total} images have a logit that is not finite, which counts as wrong",
    )


def same_answers(sweeps: Sweeps, outcome: Outcome) -> Check:
    """An image and a key must have one answer: again, traced anew, and after the attacks."""
    changed = 0.0
    if outcome.results and not sweeps.stochastic:
        changed = float((outcome.clean[sweeps.places] != sweeps.clean).mean())
    trace_changes = float(sweeps.probes.trace_changes)
    return _at_most(
        "answers stay the same",
        max(sweeps.probes.repeated, changed, trace_changes),
        _two_images(sweeps),
        "the same image has another answer when it is asked again, traced again or asked after "
        "the attacks",
    )


def batch_independence(sweeps: Sweeps, outcome: Outcome) -> Check:
    """What else is in the batch must not matter: batch norm in training mode makes it matter."""
    return _at_most(
        "answers do not depend on the batch",
        sweeps.probes.batch_dependent,
        _two_images(sweeps),
        "answers depend on the other images of the batch, on their order or on its size",
    )


def tiny_changes(sweeps: Sweeps, outcome: Outcome) -> Check:
    """Changes far below a level of 8 bits must not matter, as they do to a hash of the image."""
    return _at_most(
        "tiny changes do not matter",
        sweeps.probes.tiny,
        max(0.2, _two_images(sweeps)),
        "changes of a tenth of an 8-bit level, or of the last bit, change answers much",
    )


def same_function_differentiated(sweeps: Sweeps, outcome: Outcome) -> Check:
    """What an attack differentiates must be what is judged."""
    return _at_most(
        "the same answers while differentiated",
        sweeps.probes.differentiated,
        _two_images(sweeps),
        "attacks that differentiate the network see other answers than it gives",
    )


def flat_logits(sweeps: Sweeps, outcome: Outcome) -> Check:
    """Logits should change inside the ball, or no search has anything to follow."""
    return _at_most(
        "logits change inside the ball",
        sweeps.probes.flat,
        0.5,
        "for most images the logits are the same all over the ball, as those of a table or of "
        "one-hot answers are: searches have nothing to follow",
    )


def shrinking_margins(sweeps: Sweeps, outcome: Outcome) -> Check:
    """The margin should shrink before the class changes, or searches on it are blind."""
    return _at_most(
        "margins shrink before the class changes",
        sweeps.probes.boundary_margin,
        0.8,
        "the logits do not show how near another class is: searches that follow them are blind",
    )


def enough_images(sweeps: Sweeps, outcome: Outcome) -> Check:
    """The limits assume that one image weighs little."""
    return _at_least(
        f"{MIN_IMAGES} images or more",
        len(outcome.clean),
        MIN_IMAGES,
        "so few images show too little",
    )


CHECKS: tuple[Callable[[Sweeps, Outcome], Check], ...] = (
    zero_radius,
    largest_radius,
    monotone_in_eps,
    monotone_in_steps,
    black_box,
    noise,
    vanishing_gradients,
    surrogate_width,
    randomness,
    inside_ball,
    finite_logits,
    enough_images,
    same_answers,
    batch_independence,
    tiny_changes,
    same_function_differentiated,
    flat_logits,
    shrinking_margins,
)


def largest_rise(values: Sequence[float] | Sequence[int]) -> float:
    """Largest rise of a curve above any earlier value."""
    return float((np.array(values) - np.minimum.accumulate(values)).max())


def _rise(name, sweeps, curve, reason) -> Check:
    """How far a curve of accuracies rises, in whole images: shares of them are rounded."""
    rise = int(largest_rise([sweeps.count(accuracy) for _, accuracy in curve]))
    return _few(name, rise, sweeps.slack, sweeps.images, reason)


def _few(name: str, found: int, most: int, images: int, reason: str) -> Check:
    """At most so many of the images; the quotients compare as the numbers do."""
    return _at_most(name, found / images, most / images, reason)


def _two_images(sweeps: Sweeps) -> float:
    """A share that chance explains: two of the probed images, and at least 0.05."""
    return max(0.05, 2 / max(sweeps.probes.images, 1))


def _at_most(name: str, figure: float, limit: float, reason: str, *, applies: bool = True) -> Check:
    passed = bool(figure <= limit) if applies else None
    return Check(name, passed, float(figure), limit, reason)


def _at_least(name: str, figure: int, limit: int, reason: str) -> Check:
    return Check(name, figure >= limit, float(figure), float(limit), reason)
