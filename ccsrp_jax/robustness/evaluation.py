"""The robustness of one network: suite, audit, natural and certified robustness, as one record."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ccsrp_jax.attacks.threat_model import Norm, ThreatModel
from ccsrp_jax.data.splits import Split, to_unit_range
from ccsrp_jax.networks.classifier import ClassifierFn, is_stochastic
from ccsrp_jax.robustness.accuracy import VOTES, correct
from ccsrp_jax.robustness.audit import Verdict, audit
from ccsrp_jax.robustness.corruptions import check_corruption, corrupt, names
from ccsrp_jax.robustness.run_suite import Outcome, attack_all
from ccsrp_jax.robustness.suites import BACKWARDS, EOT, Entry, View, entries_of, views
from ccsrp_jax.utils.console import Terminal
from ccsrp_jax.utils.errors import InputError, check_number
from ccsrp_jax.utils.stats import wilson_interval


@dataclass(frozen=True)
class Assessment:
    """What is known of a network's robustness.

    Attributes:
      outcome: accuracies under a suite of attacks.
      verdict: whether they can be believed.
      natural: accuracy under corruptions, by name and severity.
    """

    outcome: Outcome
    verdict: Verdict
    natural: dict[str, float]

    @property
    def headline(self) -> str:
        """The worst case with its interval, or why there is none."""
        low, high = wilson_interval(self.outcome.robust_accuracy, len(self.outcome.clean))
        attacks = sum(row.kind != "noise" for row in self.outcome.rows)
        ball = f"{self.outcome.norm} eps {self.outcome.eps:.4g}"
        figure = (
            f"robust accuracy {self.outcome.robust_accuracy:.3f} [{low:.3f}, {high:.3f}], worst "
            f"case of {attacks} attacks, {ball}, {len(self.outcome.clean)} images"
        )
        if self.verdict.unchecked:
            figure += f"; not checked: {', '.join(self.verdict.unchecked)}"
        if self.verdict.reliable:
            return figure
        return f"unreliable: {'; '.join(self.verdict.reasons)} ({figure})"

    def record(self) -> dict:
        """All of it as JSON-able data."""
        outcome, verdict = self.outcome, self.verdict
        share = {
            "accuracy": outcome.accuracy,
            "robust_accuracy": outcome.robust_accuracy,
        }
        return {
            "headline": self.headline,
            "reliable": verdict.reliable,
            "reasons": verdict.reasons,
            "eps": outcome.eps,
            "norm": outcome.norm,
            "images": len(outcome.clean),
            **share,
            "intervals": {
                name: wilson_interval(value, len(outcome.clean)) for name, value in share.items()
            },
            "attacks": [
                row._asdict() | {"interval": wilson_interval(row.accuracy, len(outcome.clean))}
                for row in outcome.rows
            ],
            "gradients": sum(row.gradients for row in outcome.rows),
            "queries": sum(row.queries for row in outcome.rows),
            "seconds": sum(row.seconds for row in outcome.rows),
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
        }


def evaluate(
    logits: ClassifierFn,
    params: Any,
    split: Split,
    *,
    eps: float,
    key: Array,
    suite: str | Sequence[Entry] = "standard",
    norm: Norm = "linf",
    others: Mapping[str, View] | None = None,
    samples: int | None = None,
    votes: int = VOTES,
    batch_size: int = 128,
    audit_images: int = 128,
    natural: Sequence[tuple[str, int]] | None = None,
    record: Path | None = None,
    terminal: Terminal | None = None,
) -> Assessment:
    """Attacks a classifier with a suite, audits the figure, and adds natural robustness.

    It needs nothing but a hashable `logits(params, images)` on images in [0, 1] that can be
    differentiated; `attacks` says what else it may offer.

    Args:
      logits, params: the classifier and its parameters.
      split: images and labels.
      eps: radius in pixel units, where images span [0, 1].
      key: of all random draws.
      suite: `pgd` (which the audit follows through the network's own gradient only),
        `quick`, `standard`, or a list of one's own.
      norm: `linf` or `l2`.
      others: other networks by name, for transfer attacks.
      samples: draws that a stochastic network's gradient is averaged over; by default 10
        for `pgd` and `quick`, and 20 otherwise.
      votes: passes over an image for a stochastic network's answer.
      batch_size: images a call.
      audit_images: how many of the images the audit's sweeps use.
      natural: (corruption, severity) pairs; by default the preset's.
      record: file to continue from, see `robustness.attack_all`.
      terminal: for progress bars.

    Raises:
      InputError: any of them cannot be used.
    """
    ThreatModel(norm, eps)
    check_number("audit_images", audit_images, 1)
    if taken := {"own", *BACKWARDS} & set(others or {}):
        raise InputError(
            f"another network is called {min(taken)!r}, which is a view of this one: give it "
            "another name."
        )
    split = Split(split.images, split.labels.astype(np.int32))
    preset = suite if isinstance(suite, str) else None
    stochastic = is_stochastic(logits)
    samples = (samples or EOT.get(preset, EOT["standard"])) if stochastic else 1
    wanted = _natural(preset, split) if natural is None else natural
    for name, severity in wanted:
        check_corruption(name, severity, split.images.shape[-1])
    available = views(logits, params) | dict(others or {})
    if preset == "pgd":
        available = {"own": available["own"]}
    entries = entries_of(suite, eps, available, samples=samples, norm=norm)
    key_suite, key_audit, key_natural = jax.random.split(key, 3)
    outcome = attack_all(
        logits,
        params,
        split,
        entries,
        available,
        key_suite,
        eps=eps,
        norm=norm,
        batch_size=batch_size,
        votes=votes,
        record=record,
        terminal=terminal,
    )
    verdict = audit(
        logits,
        params,
        split,
        outcome,
        available,
        key_audit,
        images=audit_images,
        samples=max(
            [getattr(e.attack, "samples", 1) for e in entries if e.kind == "white box"], default=1
        ),
        votes=votes,
        batch_size=batch_size,
    )
    accuracies = {}
    for number, (name, severity) in enumerate(wanted):
        key_corrupt, key_votes = jax.random.split(jax.random.fold_in(key_natural, number))
        worse = corrupt(to_unit_range(jnp.asarray(split.images)), name, severity, key_corrupt)
        hits = correct(
            logits,
            params,
            Split(np.asarray(worse), split.labels),
            key=key_votes,
            batch_size=batch_size,
            votes=votes,
        )
        accuracies[f"{name} {severity}"] = float(hits.mean())
    return Assessment(outcome, verdict, accuracies)


def _natural(preset: str | None, split: Split) -> list[tuple[str, int]]:
    """Noise for a first opinion, every corruption for the headline, at the middle severity."""
    channels = split.images.shape[-1]
    if channels not in (1, 3):
        return []
    if preset != "standard":
        return [("gaussian_noise", 3), ("impulse_noise", 3)]
    return [(name, 3) for name in names(channels)]
