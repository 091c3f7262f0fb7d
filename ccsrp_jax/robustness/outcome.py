"""Result of running a suite of attacks on a network, image by image."""

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from ccsrp_jax.attacks.threat_model import ThreatModel
from ccsrp_jax.robustness.best_found import BestFound
from ccsrp_jax.robustness.suites import AttackSpec


class Attempt(NamedTuple):
    """One attack of a suite on a set of images.

    Attributes:
      attacked: (N,) the images it was run on.
      robust: (N,) those of them that are classified correctly after it.
      gradients, queries: upper bounds on its gradients and other forward passes, all images
        together.
      max_violation: largest distance of an adversarial image to the ball and the box.
      seconds: duration, including compilation.
      not_finite: (N,) those of them with a logit that is not finite, which count as wrong.
      best: the best perturbations after it; None if they were not kept.
    """

    attacked: Bool[np.ndarray, "N"]
    robust: Bool[np.ndarray, "N"]
    gradients: int
    queries: int
    max_violation: float
    seconds: float
    not_finite: Bool[np.ndarray, "N"] | None = None
    best: BestFound | None = None


class AttackResult(NamedTuple):
    """Summary of one attack of a suite.

    Attributes:
      name, kind, source: of its `AttackSpec`.
      attacked: number of images that it was run on.
      broken: number of images that it broke and no attack before it did.
      accuracy: share of all images that no attack has broken so far.
      alone: accuracy under this attack alone, if it was run on all correct images.
      gradients, queries, seconds: its cost, see `Attempt`.
    """

    name: str
    kind: str
    source: str
    attacked: int
    broken: int
    accuracy: float
    alone: float | None
    gradients: int
    queries: int
    seconds: float

    def record(self) -> dict[str, Any]:
        """As JSON-able data; the gradient source is called `through` in records."""
        names = ("through" if name == "source" else name for name in self._fields)
        return dict(zip(names, self, strict=True))


@dataclass(frozen=True)
class Outcome:
    """Accuracies of a network under a suite of attacks, image by image.

    Attributes:
      threat: the ball.
      clean: (N,) whether an image is classified correctly without an attack.
      broken_by: (N,) index of the first attack that broke the image, -1 if none did.
      results: of the attacks, in their order.
      max_violation: largest distance of an adversarial image to the ball and the box.
      not_finite: (N,) images with a logit that is not finite, without or after an attack; None if
        that was not recorded.
      best: each image's best perturbation so far; None if no later attack starts from it.
    """

    threat: ThreatModel
    clean: Bool[np.ndarray, "N"]
    broken_by: Int[np.ndarray, "N"]
    results: tuple[AttackResult, ...] = ()
    max_violation: float = 0.0
    not_finite: Bool[np.ndarray, "N"] | None = None
    best: BestFound | None = None

    @property
    def robust(self) -> Bool[np.ndarray, "N"]:
        """Which images are classified correctly without and after every attack."""
        return self.clean & (self.broken_by < 0)

    @property
    def accuracy(self) -> float:
        """Accuracy without an attack."""
        return float(self.clean.mean())

    @property
    def robust_accuracy(self) -> float:
        """Accuracy in the sample-wise worst case over all attacks."""
        return float(self.robust.mean())

    @property
    def reference(self) -> float | None:
        """Accuracy under the first white-box attack that was run on all images, alone."""
        alone = (result.alone for result in self.results if result.kind == "white box")
        return next((accuracy for accuracy in alone if accuracy is not None), None)

    def ran(self, *kinds: str) -> bool:
        """Whether an attack of one of these kinds was run on any image."""
        return any(result.kind in kinds and result.attacked > 0 for result in self.results)

    def alone(self, name: str) -> float | None:
        """Accuracy under one attack alone, if it was run on all correct images."""
        return next((result.alone for result in self.results if result.name == name), None)

    def broken(self, *kinds: str) -> int:
        """Number of images that attacks of these kinds broke and none before them did."""
        return sum(result.broken for result in self.results if result.kind in kinds)

    def after(self, spec: AttackSpec, attempt: Attempt) -> "Outcome":
        """The outcome with one more attack."""
        newly_broken = self.robust & ~attempt.robust
        broken_by = np.where(newly_broken, len(self.results), self.broken_by)
        result = AttackResult(
            spec.name,
            spec.kind,
            spec.source,
            attacked=int(attempt.attacked.sum()),
            broken=int(newly_broken.sum()),
            accuracy=float((self.clean & (broken_by < 0)).mean()),
            alone=float(attempt.robust.mean()) if spec.run_on_all else None,
            gradients=attempt.gradients,
            queries=attempt.queries,
            seconds=attempt.seconds,
        )
        masks = [mask for mask in (self.not_finite, attempt.not_finite) if mask is not None]
        return dataclasses.replace(
            self,
            not_finite=np.logical_or.reduce(masks) if masks else None,
            broken_by=broken_by,
            results=(*self.results, result),
            max_violation=max(self.max_violation, attempt.max_violation),
            best=attempt.best,
        )
