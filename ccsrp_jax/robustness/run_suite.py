"""Runs a suite of attacks on a network.

White-box attacks are run first, then transfers and black-box attacks, so that what the latter add
is visible, and last the attacks that go on from the best perturbation which those before them found
for each image. An image that one attack broke is not attacked again; only reference attacks are run
on all images, so that their accuracy can be reported by itself.
"""

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from os import PathLike
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from ccsrp_jax.attacks.base import Attack, unchecked
from ccsrp_jax.attacks.threat_model import ThreatModel
from ccsrp_jax.data.batching import balanced_batch_size
from ccsrp_jax.data.splits import to_unit_range
from ccsrp_jax.networks.classifier import NO_CLASS
from ccsrp_jax.networks.inputs import number_of_classes
from ccsrp_jax.robustness.accuracy import Evaluator
from ccsrp_jax.robustness.best_found import BestFound, margins_of
from ccsrp_jax.robustness.gradient_sources import OWN, GradientSource
from ccsrp_jax.robustness.outcome import Attempt, Outcome
from ccsrp_jax.robustness.suite_record import fingerprint, load_progress, save_progress
from ccsrp_jax.robustness.suites import EOT_SAMPLES, PRESETS, AttackSpec, price
from ccsrp_jax.utils.console import Terminal, counted
from ccsrp_jax.utils.errors import InputError
from ccsrp_jax.utils.io import as_path
from ccsrp_jax.utils.keys import checked_key


def attack_all(
    evaluator: Evaluator,
    specs: Sequence[AttackSpec],
    sources: Mapping[str, GradientSource],
    key: Array,
    *,
    threat: ThreatModel,
    record: str | PathLike[str] | None = None,
    terminal: Terminal | None = None,
) -> Outcome:
    """Runs a suite on the images of a split.

    Args:
      evaluator: the network and its images.
      specs: the attacks, as `build_suite` returns them.
      sources: the gradient sources that they name.
      key: for all random draws.
      threat: the ball that adversarial images are checked against.
      record: a JSON file, written after every attack; if it exists and belongs to the same
        network, images and suite, the suite is continued.
      terminal: for progress bars.

    Raises:
      InputError: the images, the labels or the record cannot be used.
    """
    check_images(evaluator)
    key, record = checked_key(key), None if record is None else as_path(record)
    used = {spec.source: sources[spec.source] for spec in specs}
    about = "" if record is None else fingerprint(evaluator, specs, used, threat, key)
    key_clean, key_attacks = jax.random.split(key)
    outcome = load_progress(record, about, threat)
    if outcome is None:
        classes = evaluator.classes(key_clean)
        clean = classes == np.asarray(evaluator.split.labels)
        not_finite = classes == NO_CLASS
        outcome = Outcome(threat, clean, np.full(len(clean), -1), not_finite=not_finite)
    if terminal and len(outcome.results) < len(specs):
        terminal.line(_price_line(evaluator, specs, sources, outcome))
    if outcome.best is None and any(takes_start(spec.attack) for spec in specs):
        outcome = dataclasses.replace(outcome, best=BestFound.none_yet(evaluator.split.images))
    for number in range(len(outcome.results), len(specs)):
        spec, key_attack = specs[number], jax.random.fold_in(key_attacks, number)
        attempt = run_attack(evaluator, spec, sources, outcome, key_attack, terminal)
        outcome = outcome.after(spec, attempt)
        if record is not None:
            save_progress(record, about, outcome)
    return outcome


def _price_line(evaluator, specs, sources, outcome):
    """What the suite may cost, said before it is run."""
    samples = EOT_SAMPLES["quick"] if evaluator.stochastic else 1
    cost, quick = price(specs), price(PRESETS["quick"](outcome.threat, sources, samples))
    compared = "" if cost == quick else f", {cost.passes / quick.passes:.2g} times the quick suite"
    attacks = sum(spec.kind != "noise" for spec in specs)
    return (
        f"{counted(attacks, 'attacks')}: at most {cost.gradients:,} gradients and "
        f"{cost.queries:,} queries for each of {int(outcome.clean.sum())} images{compared}; less "
        "for images that break early"
    )


def run_attack(
    evaluator: Evaluator,
    spec: AttackSpec,
    sources: Mapping[str, GradientSource],
    outcome: Outcome,
    key: Array,
    terminal: Terminal | None,
) -> Attempt:
    """Runs one attack, part by part, on the images that are left after those before it."""
    started = time.perf_counter()
    parts = getattr(spec.attack, "parts", (spec.attack,))
    attacked = outcome.clean if spec.run_on_all else outcome.robust
    robust, gradients, queries, max_violation = attacked.copy(), 0, 0, 0.0
    not_finite, best = np.zeros_like(robust), outcome.best
    title = spec.name if spec.source == OWN else f"{spec.name} {spec.source}"
    with _progress(terminal, title, int(attacked.sum()) * len(parts)) as advance:
        for number, part in enumerate(parts):
            places = np.flatnonzero(robust)
            if not len(places):
                break
            gradients += len(places) * getattr(part, "gradients", 0)
            queries += len(places) * getattr(part, "queries", 0)
            key_part = jax.random.fold_in(key, number)
            size = balanced_batch_size(len(robust), evaluator.batch_size)
            found = []
            for batch, (chunk, real) in enumerate(_chunks(places, size)):
                key_batch = jax.random.fold_in(key_part, batch)
                judged = _attack_batch(
                    evaluator, part, sources[spec.source], chunk, key_batch, outcome.threat, best
                )
                robust[chunk[:real]] = judged.hits[:real]
                not_finite[chunk[:real]] |= judged.not_finite[:real]
                max_violation = max(max_violation, judged.violation)
                found.append((chunk[:real], judged.images[:real], judged.margins[:real]))
                advance(real)
            if best is not None:
                best = best.updated(*map(np.concatenate, zip(*found, strict=True)))
    seconds = time.perf_counter() - started
    return Attempt(attacked, robust, gradients, queries, max_violation, seconds, not_finite, best)


class _Judged(NamedTuple):
    """Adversarial images of a batch: which are correct, which have a logit that is not finite, the
    largest violation of the ball, and the margins, where they are asked for."""

    images: np.ndarray  # (B, H, W, C)
    hits: np.ndarray  # (B,)
    not_finite: np.ndarray  # (B,)
    violation: float
    margins: np.ndarray  # (B,)


def _attack_batch(
    evaluator: Evaluator,
    attack: Attack,
    source: GradientSource,
    places: Int[np.ndarray, "B"],
    key: Array,
    threat: ThreatModel,
    best: BestFound | None,
) -> _Judged:
    """Attacks a batch of images, from the best found so far if it takes a start, and judges it.

    For a stochastic network an image counts as broken only if a second vote of four times as
    many passes also misclassifies it.
    """
    key_attack, key_votes = jax.random.split(key)
    images = to_unit_range(jnp.asarray(evaluator.split.images[places]))
    labels, votes = np.asarray(evaluator.split.labels[places]), evaluator.votes
    options = {}
    if takes_start(attack) and best is not None and np.isfinite(best.margins[places]).all():
        options["start"] = jnp.asarray(best.images[places])
    adversarial = unchecked(attack)(*source, images, jnp.asarray(labels), key_attack, **options)
    classes = evaluator.predict(adversarial, key_votes, votes)
    hits, not_finite = classes == labels, classes == NO_CLASS
    if evaluator.stochastic and not hits.all():
        key_again = jax.random.fold_in(key_votes, votes)
        hits |= evaluator.predict(adversarial, key_again, 4 * votes) == labels
    margins = np.zeros(len(labels), np.float32)
    if best is not None:
        network = evaluator.network_state, adversarial, jnp.asarray(labels), key_votes
        margins = np.asarray(margins_of(evaluator.classifier, votes, *network))
    violation = float(threat.max_violation(adversarial, images))
    return _Judged(np.asarray(adversarial), hits, not_finite & ~hits, violation, margins)


def takes_start(attack: Attack) -> bool:
    """Whether a call of the attack takes images to begin at, see `attacks.base`."""
    return getattr(attack, "takes_start", False)


def _chunks(places: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Places in batches of two sizes, so that each attack compiles at most twice.

    Batches are full, or of a quarter of the size where the rest fits into it; they are padded
    with repeated places. Each comes with the number of its real places.
    """
    for start in range(0, len(places), size):
        rest = places[start : start + size]
        quarter = -(-size // 4)
        padded = np.arange(quarter if len(rest) <= quarter else size) % len(rest)
        yield rest[padded], len(rest)


def _progress(terminal, title, total):
    """A context that gives a function to advance the progress bar by a number of images."""
    return terminal.stage(title, total) if terminal else nullcontext(lambda images: None)


def check_images(evaluator: Evaluator) -> None:
    """Raises InputError for a network that no attack can change; `Evaluator` checks the rest."""
    network = evaluator.classifier, evaluator.network_state
    if number_of_classes(*network, evaluator.split.images) < 2:
        raise InputError("the network has 1 class, which no attack can change: give 2 or more.")
