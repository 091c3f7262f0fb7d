"""Short attacks over radii, steps and gradient sources: the measurements that the audit needs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from ccsrp_jax.attacks.base import Attack, unchecked
from ccsrp_jax.attacks.gradients import loss_and_gradient
from ccsrp_jax.attacks.noise import Noise
from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.attacks.threat_model import ThreatModel
from ccsrp_jax.data.batching import padded_batches
from ccsrp_jax.data.splits import Split
from ccsrp_jax.networks.classifier import initial_state
from ccsrp_jax.robustness.accuracy import Evaluator
from ccsrp_jax.robustness.gradient_sources import OWN, GradientSource
from ccsrp_jax.robustness.identity import logits
from ccsrp_jax.robustness.probes import Probes, run_probes

STEPS = (1, 5, 20)
EPS_FACTORS = (0.5, 1.0, 2.0, 4.0)  # besides them, the largest radius there is
WIDTHS = ("atan:0.5", "atan:1", "atan:2")
SECOND_SOURCE = "atan:0.5"  # of the sweep over radii, besides the network's own gradient


@dataclass(frozen=True)
class Sweeps:
    """Measurements on a network.

    Accuracies are shares of the images that are correct without and after an attack.

    Attributes:
      images: number of images.
      places: (N,) their places in the split.
      clean: (N,) whether an image is classified correctly without an attack.
      at_zero: (N,) the same after an attack of radius 0.
      noise: accuracy under random noise of radius eps.
      by_eps: (radius, accuracy) pairs, sample-wise worst case of PGD-10 from two sources.
      by_steps: (steps, accuracy) pairs of PGD through the network's own gradient.
      by_width: (gradient source, accuracy) pairs of PGD-10.
      vanished: share of correctly classified images whose gradient is useless.
      pass_difference: largest difference between the logits of two passes, relative to the
        largest logit.
      samples: draws over which a stochastic network's gradient was averaged.
      stochastic: whether two passes of the network may differ.
      probes: the network asked in other ways.
    """

    images: int
    places: Int[np.ndarray, "N"]
    clean: Bool[np.ndarray, "N"]
    at_zero: Bool[np.ndarray, "N"]
    noise: float
    by_eps: tuple[tuple[float, float], ...]
    by_steps: tuple[tuple[int, float], ...]
    by_width: tuple[tuple[str, float], ...]
    vanished: float
    pass_difference: float
    samples: int
    stochastic: bool
    probes: Probes

    @property
    def accuracy(self) -> float:
        """Accuracy without an attack."""
        return float(self.clean.mean())

    @property
    def slack(self) -> int:
        """Number of images whose answers may change by chance: four, and at least 0.02 of all."""
        return max(4, self.images // 50)

    def count(self, accuracy: float) -> int:
        """The number of images that an accuracy is of."""
        return round(accuracy * self.images)


@dataclass(frozen=True)
class ShortAttacks:
    """Runs PGD without a random start on a network.

    Attributes:
      evaluator: the network and the images.
      threat: the ball.
      samples: draws over which a stochastic network's gradient is averaged.
      key: for the draws of attacks and network.
    """

    evaluator: Evaluator
    threat: ThreatModel
    samples: int
    key: Array

    def correct(
        self, attack: Attack, source: GradientSource | None = None, key: Array | None = None
    ) -> Bool[np.ndarray, "N"]:
        """Which images are correct after an attack, by default on the network itself."""

        def from_source(classifier, network_state, images, labels, key_batch):
            attacked = source or GradientSource(classifier, network_state)
            return unchecked(attack)(*attacked, images, labels, key_batch)

        return self.evaluator.correct(self.key if key is None else key, from_source)

    def pgd(self, steps: int, eps: float | None = None) -> PGD:
        """PGD of so many steps, by default in the threat model's ball."""
        eps = self.threat.eps if eps is None else eps
        return PGD(eps, steps, random_start=False, norm=self.threat.norm, samples=self.samples)


def spaced_places(total: int, count: int) -> Int[np.ndarray, "N"]:
    """At most `count` places, evenly spaced over so many."""
    count = min(count, total)
    return np.arange(count) * total // count


def run_sweeps(
    evaluator: Evaluator,
    threat: ThreatModel,
    sources: Mapping[str, GradientSource],
    key: Array,
    *,
    images: int,
    samples: int,
) -> Sweeps:
    """Measures a network on a subset of its images.

    Args:
      evaluator: the network and its images.
      threat: the ball.
      sources: gradient sources; surrogate widths are swept if they are among them.
      key: for all random draws.
      images: number of images.
      samples: draws over which a stochastic network's gradient is averaged.
    """
    split = evaluator.split
    places = spaced_places(len(split.labels), images)
    evaluator = replace(evaluator, split=Split(split.images[places], split.labels[places]))
    key_clean, key_attack, key_gradient, key_passes = jax.random.split(key, 4)
    attacks = ShortAttacks(evaluator, threat, samples, key_attack)
    clean = evaluator.correct(key_clean)
    return Sweeps(
        images=len(clean),
        places=places,
        clean=clean,
        at_zero=attacks.correct(attacks.pgd(2, eps=0.0), key=key_clean),
        noise=_share(clean, attacks.correct(Noise(threat.eps, threat.norm))),
        by_eps=_sweep_eps(attacks, clean, sources),
        by_steps=tuple(
            (steps, _share(clean, attacks.correct(attacks.pgd(steps)))) for steps in STEPS
        ),
        by_width=_sweep_widths(attacks, clean, sources),
        vanished=_vanished_share(attacks, clean, key_gradient),
        pass_difference=_pass_difference(evaluator, key_passes),
        samples=samples,
        stochastic=evaluator.stochastic,
        probes=run_probes(evaluator, threat, sources, WIDTHS, jax.random.fold_in(key_passes, 1)),
    )


def _share(*correct: Bool[np.ndarray, "N"]) -> float:
    """Share of the images that are correct in every case."""
    return float(np.logical_and.reduce(correct).mean())


def _sweep_eps(attacks, clean, sources):
    """Accuracy under PGD-10 at growing radii, up to the diameter of the box."""
    threat, split = attacks.threat, attacks.evaluator.split
    largest = threat.box_diameter(split.images[0].size)
    radii = sorted({min(factor * threat.eps, largest) for factor in EPS_FACTORS} | {largest})
    curve = [(0.0, _share(clean))]
    for eps in radii:
        pgd = attacks.pgd(10, eps)
        worst = attacks.correct(pgd), attacks.correct(pgd, sources.get(SECOND_SOURCE))
        curve.append((eps, _share(clean, *worst)))
    return tuple(curve)


def _sweep_widths(attacks, clean, sources):
    """Accuracy under PGD-10 through the network's own gradient and surrogates of other widths."""
    pgd = attacks.pgd(10)
    curve = [(OWN, _share(clean, attacks.correct(pgd)))]
    for name in WIDTHS:
        if name in sources:
            curve.append((name, _share(clean, attacks.correct(pgd, sources[name]))))
    return tuple(curve)


def _vanished_share(attacks, clean, key) -> float:
    """Share of correctly classified images whose gradient is useless.

    The cross-entropy's gradient is exactly zero, or the margin's predicts, to first order, that
    no perturbation in the ball reduces the margin by a hundredth.
    """
    evaluator, threat = attacks.evaluator, attacks.threat
    useless = []
    for images, labels, real in padded_batches(evaluator.split, evaluator.batch_size):
        cross_entropy, margin = (
            loss_and_gradient(
                evaluator.classifier,
                evaluator.network_state,
                images,
                labels,
                loss=loss,
                key=key,
                samples=attacks.samples,
                surrogate_state=initial_state(evaluator.classifier, len(images)),
            )
            for loss in ("ce", "margin")
        )
        zero = (cross_entropy.gradient == 0).all((1, 2, 3))
        eps = max(threat.eps, 1 / 255)  # a radius of 0 is no fault of the gradient
        small = eps * threat.dual_length(margin.gradient) < 0.01 * jnp.abs(margin.loss)
        useless.append(np.asarray(zero | small)[:real])
    return float(np.concatenate(useless)[clean].mean()) if clean.any() else 0.0


def _pass_difference(evaluator, key) -> float:
    """Largest difference between the logits of two passes, relative to the largest logit."""
    images, _, _ = next(padded_batches(evaluator.split, evaluator.batch_size))
    first, second = (
        logits(evaluator.classifier, evaluator.network_state, images, key_pass)
        for key_pass in jax.random.split(key)
    )
    finite = jnp.isfinite(first) & jnp.isfinite(second)  # others are a symptom of their own
    difference, size = (
        jnp.where(finite, jnp.abs(each), 0).max() for each in (first - second, first)
    )
    return float(difference / jnp.maximum(size, 1e-12))
