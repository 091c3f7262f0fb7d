"""Robustness of one network: suite, audit and natural robustness, as one record."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from os import PathLike
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ccsrp_jax.attacks.threat_model import Norm, ThreatModel
from ccsrp_jax.data.splits import Split, to_unit_range
from ccsrp_jax.networks.classifier import ClassifierFn
from ccsrp_jax.networks.inputs import checked_inputs
from ccsrp_jax.robustness.accuracy import VOTES, Evaluator
from ccsrp_jax.robustness.audit import Verdict, audit
from ccsrp_jax.robustness.corruption_error import mean_corruption_error
from ccsrp_jax.robustness.corruptions import apply, check_corruption, names
from ccsrp_jax.robustness.gradient_sources import BACKWARDS, OWN, GradientSource, gradient_sources
from ccsrp_jax.robustness.identity import identified
from ccsrp_jax.robustness.outcome import Outcome
from ccsrp_jax.robustness.run_suite import attack_all
from ccsrp_jax.robustness.suites import EOT_SAMPLES, AttackSpec, build_suite
from ccsrp_jax.utils.console import Terminal, counted
from ccsrp_jax.utils.errors import InputError, shown
from ccsrp_jax.utils.fields import SIZE, Limits, integer
from ccsrp_jax.utils.keys import checked_key
from ccsrp_jax.utils.stats import wilson_interval


@dataclass(frozen=True)
class Assessment:
    """Robustness of a network.

    Attributes:
      outcome: accuracies under a suite of attacks.
      verdict: whether they are reliable.
      natural: accuracy under corruptions, by name and severity.
      natural_baseline: that of the baseline, if one was given.
      chance: accuracy of always answering the most frequent class of these images; 0 if they are
        of one class, where it says nothing.
    """

    outcome: Outcome
    verdict: Verdict
    natural: dict[str, float]
    natural_baseline: dict[str, float] | None = None
    chance: float = 0.0

    @property
    def at_chance(self) -> bool:
        """Whether the network is not significantly better than one answer to all images."""
        low, _ = wilson_interval(self.outcome.accuracy, len(self.outcome.clean))
        return low <= self.chance

    @property
    def conclusion(self) -> str:
        """`at chance`, or that of the verdict."""
        return "at chance" if self.at_chance else self.verdict.conclusion

    @property
    def headline(self) -> str:
        """Robust accuracy with its confidence interval, and why it is unreliable, if it is."""
        outcome, images = self.outcome, len(self.outcome.clean)
        low, high = wilson_interval(outcome.robust_accuracy, images)
        attacks = sum(result.kind != "noise" for result in outcome.results)
        ball = f"{outcome.threat.norm} eps {outcome.threat.eps:.4g}"
        figure = (
            f"robust accuracy {outcome.robust_accuracy:.3f} [{low:.3f}, {high:.3f}], worst "
            f"case of {counted(attacks, 'attacks')}, {ball}, {images} images"
        )
        if self.verdict.unchecked:
            figure += f"; not checked: {', '.join(self.verdict.unchecked)}"
        reasons = self.verdict.reasons
        if self.at_chance:
            accuracy = f"accuracy {outcome.accuracy:.3f} where one answer to all images has"
            reasons = [f"{accuracy} {self.chance:.3f}", *reasons]
        elif self.verdict.reliable:
            return figure
        return f"{self.conclusion}: {'; '.join(reasons)} ({figure})"

    def record(self) -> dict:
        """All of it as JSON-able data."""
        outcome, verdict, images = self.outcome, self.verdict, len(self.outcome.clean)
        accuracies = {
            "accuracy": outcome.accuracy,
            "robust_accuracy": outcome.robust_accuracy,
        }
        return {
            "headline": self.headline,
            "reliable": verdict.reliable,
            "conclusion": self.conclusion,
            "reasons": verdict.reasons,
            "eps": outcome.threat.eps,
            "norm": outcome.threat.norm,
            "images": images,
            **accuracies,
            "intervals": {
                name: wilson_interval(value, images) for name, value in accuracies.items()
            },
            "attacks": [
                result.record() | {"interval": wilson_interval(result.accuracy, images)}
                for result in outcome.results
            ],
            "gradients": sum(result.gradients for result in outcome.results),
            "queries": sum(result.queries for result in outcome.results),
            "seconds": sum(result.seconds for result in outcome.results),
            "audit": {
                "images": verdict.images,
                "checks": [
                    check._asdict() | {"figure": check.figure if isfinite(check.figure) else None}
                    for check in verdict.checks
                ],
                "eps_curve": verdict.eps_curve,
                "steps_curve": verdict.steps_curve,
                "width_curve": verdict.width_curve,
            },
            "natural": self.natural,
            **self._corruption_error(),
        }

    def _corruption_error(self) -> dict:
        """Errors under corruptions relative to the baseline's; a sentence where there is none."""
        if self.natural_baseline is None:
            return {}
        try:
            found = mean_corruption_error(self.natural, self.natural_baseline)._asdict()
        except InputError as error:
            found = {"mean": None, "by_corruption": {}, "reason": str(error)}
        return {"natural_baseline": self.natural_baseline, "corruption_error": found}


def evaluate(
    classifier: ClassifierFn,
    network_state: Any,
    split: Split,
    *,
    eps: float,
    key: Array,
    suite: str | Sequence[AttackSpec] = "standard",
    norm: Norm = "linf",
    others: Mapping[str, GradientSource] | None = None,
    samples: int | None = None,
    votes: int = VOTES,
    batch_size: int = 128,
    audit_images: int = 128,
    natural: Sequence[tuple[str, int]] | None = None,
    baseline: GradientSource | None = None,
    record: str | PathLike[str] | None = None,
    terminal: Terminal | None = None,
) -> Assessment:
    """Attacks a classifier with a suite, audits the result, and measures natural robustness.

    It needs only a hashable, differentiable `classifier(network_state, images)` on images in
    [0, 1], where the state is any PyTree of arrays and random keys: variables of Flax's linen, the
    state of an NNX module in evaluation mode, the arrays of an Equinox module. The other gradients
    of the suites come from a method `with_backward(surrogate)`, which returns a copy that
    differentiates through that surrogate, see `networks.gradients`; without it, gradient attacks
    use the network's own gradient only. `networks.classifier` says what else it may have. A
    function that has changed since it was evaluated before, or that equals another without
    computing the same, is compiled anew.

    Args:
      classifier: returns logits (B, K).
      network_state: its first argument, such as (variables, masks).
      split: images and labels.
      eps: radius in pixel units, where images span [0, 1].
      key: for all random draws.
      suite: `pgd` (for which the audit uses only the network's own gradient), `quick`,
        `standard`, `thorough`, or a list of attacks.
      norm: `linf` or `l2`.
      others: other networks by name, for transfer attacks.
      samples: draws over which a stochastic network's gradient is averaged; by default 10 for
        `pgd` and `quick`, and 20 otherwise.
      votes: passes per image for a stochastic network's prediction.
      batch_size: images per call.
      audit_images: number of images that the audit's sweeps use.
      natural: (corruption, severity) pairs; by default those of the preset.
      baseline: a network whose errors under the same corruptions the network's are compared with,
        such as the dense one; see `mean_corruption_error`.
      record: file from which the suite is continued, see `robustness.attack_all`.
      terminal: for progress bars.

    Raises:
      InputError: one of them cannot be used.
    """
    threat = ThreatModel(norm, eps)
    if not (terminal is None or hasattr(terminal, "line")):
        raise InputError(f"terminal is {shown(terminal)}: give a utils.console.Terminal, or None.")
    audit_images = integer("audit_images", audit_images, Limits(1))
    key = checked_key(key)
    evaluator = Evaluator(classifier, network_state, split, batch_size, votes)
    classifier = identified(classifier, network_state, evaluator.split.images)
    evaluator = replace(evaluator, classifier=classifier)
    others = _checked_others(others or {}, evaluator.split)
    reference = _checked_baseline(baseline, evaluator)
    preset = suite if isinstance(suite, str) else "custom"
    corruptions = default_corruptions(preset, evaluator.split) if natural is None else natural
    if not isinstance(corruptions, Sequence):
        raise InputError(f"natural is {shown(natural)}: give pairs of a name and a severity.")
    for pair in corruptions:
        if not (isinstance(pair, tuple | list) and len(pair) == 2):
            raise InputError(f"natural holds {shown(pair)}: give pairs of a name and a severity.")
        check_corruption(*pair, evaluator.split.images.shape[1:])
    draws = EOT_SAMPLES.get(preset, EOT_SAMPLES["standard"])
    if samples is not None:
        draws = integer("samples", samples, SIZE)
    sources = gradient_sources(classifier, network_state) | others
    if preset == "pgd":
        sources = {OWN: sources[OWN]}
    specs = build_suite(suite, threat, sources, samples=draws if evaluator.stochastic else 1)
    key_suite, key_audit, key_natural = jax.random.split(key, 3)
    outcome = attack_all(
        evaluator, specs, sources, key_suite, threat=threat, record=record, terminal=terminal
    )
    options = {"images": audit_images, "samples": gradient_samples(specs)}
    verdict = audit(evaluator, outcome, sources, key_audit, **options)
    accuracies = natural_accuracies(evaluator, corruptions, key_natural)
    relative_to = reference and natural_accuracies(reference, corruptions, key_natural)
    chance = most_frequent_share(evaluator.split.labels)
    return Assessment(outcome, verdict, accuracies, relative_to, chance)


def most_frequent_share(labels: np.ndarray | Array) -> float:
    """Share of the most frequent class; 0 if there is one class only."""
    counts = np.bincount(np.asarray(labels))
    return float(counts.max() / counts.sum()) if (counts > 0).sum() > 1 else 0.0


def _checked_others(
    others: Mapping[str, GradientSource], split: Split
) -> dict[str, GradientSource]:
    """Other networks for transfer attacks, identified as the evaluated one is.

    Raises:
      InputError: one has the name of a gradient source of this network, or cannot be used.
    """
    if not isinstance(others, Mapping):
        raise InputError(
            f"others are {shown(others)}: give a dictionary from name to GradientSource."
        )
    if taken := {OWN, *BACKWARDS} & set(others):
        raise InputError(
            f"another network is called {min(taken)!r}, which is a gradient source of this one: "
            "give it another name."
        )
    checked = {}
    for name, other in others.items():
        if not (isinstance(other, tuple) and len(other) == 2):
            raise InputError(
                f"the other network {name!r} is a {type(other).__name__}: give "
                "GradientSource(classifier, network_state)."
            )
        try:
            checked_inputs(*other, split)
            function = identified(*other, split.images)
        except InputError as error:
            raise InputError(f"the other network {name!r} cannot be used: {error}") from error
        checked[name] = GradientSource(function, other[1])
    return checked


def _checked_baseline(baseline: Any, evaluator: Evaluator) -> Evaluator | None:
    """The evaluator of the network that errors are compared with."""
    if baseline is None:
        return None
    if not (isinstance(baseline, tuple) and len(baseline) == 2):
        raise InputError(
            f"the baseline is {shown(baseline)}: give GradientSource(classifier, network_state)."
        )
    try:
        checked_inputs(*baseline, evaluator.split)
    except InputError as error:
        raise InputError(f"the baseline cannot be used: {error}") from error
    classifier, network_state = baseline
    return replace(evaluator, classifier=classifier, network_state=network_state)


def gradient_samples(specs: Sequence[AttackSpec]) -> int:
    """Most draws over which a white-box attack of the suite averages its gradient."""
    white_box = [spec.attack for spec in specs if spec.kind == "white box"]
    return max([getattr(attack, "samples", 1) for attack in white_box], default=1)


def default_corruptions(preset: str, split: Split) -> list[tuple[str, int]]:
    """Corruptions of severity 3: all for `standard` and `thorough`, else two kinds of noise."""
    _, height, width, channels = split.images.shape
    everything = names(channels, max(height, width))
    chosen = (
        everything if preset in ("standard", "thorough") else ("gaussian_noise", "impulse_noise")
    )
    return [(name, 3) for name in chosen]


def natural_accuracies(
    evaluator: Evaluator, corruptions: Sequence[tuple[str, int]], key: Array
) -> dict[str, float]:
    """Accuracy under every corruption, by its name and severity."""
    images, accuracies = to_unit_range(jnp.asarray(evaluator.split.images)), {}
    for number, (name, severity) in enumerate(corruptions):
        key_corrupt, key_votes = jax.random.split(jax.random.fold_in(key, number))
        corrupted = np.asarray(apply(images, name, severity, key_corrupt))
        split = Split(corrupted, evaluator.split.labels)
        hits = replace(evaluator, split=split).correct(key_votes)
        accuracies[f"{name} {severity}"] = float(hits.mean())
    return accuracies
