"""Runs a suite of attacks on a network.

White-box attacks are run first, then transfers and black-box attacks, so that what the latter add
is visible. An image that one attack broke is not attacked again; only reference attacks are run
on all images, so that their accuracy can be reported by itself.
"""

import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from ccsrp_jax.attacks.base import Attack
from ccsrp_jax.attacks.threat_model import ThreatModel
from ccsrp_jax.data.batching import balanced_batch_size
from ccsrp_jax.data.splits import Split, to_unit_range
from ccsrp_jax.networks.classifier import key_kwargs
from ccsrp_jax.robustness.accuracy import Evaluator
from ccsrp_jax.robustness.gradient_sources import OWN, GradientSource
from ccsrp_jax.robustness.outcome import Attempt, Outcome
from ccsrp_jax.robustness.suite_record import fingerprint, load_progress, save_progress
from ccsrp_jax.robustness.suites import AttackSpec
from ccsrp_jax.utils.console import Terminal
from ccsrp_jax.utils.errors import InputError


def attack_all(
    evaluator: Evaluator,
    specs: Sequence[AttackSpec],
    sources: Mapping[str, GradientSource],
    key: Array,
    *,
    threat: ThreatModel,
    record: Path | None = None,
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
    used = {spec.source: sources[spec.source] for spec in specs}
    about = fingerprint(evaluator, specs, used, threat, key)
    key_clean, key_attacks = jax.random.split(key)
    outcome = load_progress(record, about, threat)
    if outcome is None:
        clean = evaluator.correct(key_clean)
        outcome = Outcome(threat, clean, np.full(len(clean), -1))
    for number in range(len(outcome.results), len(specs)):
        spec, key_attack = specs[number], jax.random.fold_in(key_attacks, number)
        attempt = run_attack(evaluator, spec, sources, outcome, key_attack, terminal)
        outcome = outcome.after(spec, attempt)
        if record is not None:
            save_progress(record, about, outcome)
    return outcome


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
            for batch, (chunk, real) in enumerate(_chunks(places, size)):
                key_batch = jax.random.fold_in(key_part, batch)
                hits, violation = _attack_batch(
                    evaluator, part, sources[spec.source], chunk, key_batch, outcome.threat
                )
                robust[chunk[:real]] = hits[:real]
                max_violation = max(max_violation, violation)
                advance(real)
    seconds = time.perf_counter() - started
    return Attempt(attacked, robust, gradients, queries, max_violation, seconds)


def _attack_batch(
    evaluator: Evaluator,
    attack: Attack,
    source: GradientSource,
    places: Int[np.ndarray, "B"],
    key: Array,
    threat: ThreatModel,
) -> tuple[Bool[np.ndarray, "B"], float]:
    """Which images are correct after an attack, and the largest violation of the ball.

    For a stochastic network an image counts as broken only if a second vote of four times as
    many passes also misclassifies it.
    """
    key_attack, key_votes = jax.random.split(key)
    images = to_unit_range(jnp.asarray(evaluator.split.images[places]))
    labels, votes = evaluator.split.labels[places], evaluator.votes
    adversarial = attack(*source, images, jnp.asarray(labels), key_attack)
    hits = evaluator.predict(adversarial, key_votes, votes) == labels
    if evaluator.stochastic and not hits.all():
        key_again = jax.random.fold_in(key_votes, votes)
        hits |= evaluator.predict(adversarial, key_again, 4 * votes) == labels
    return hits, float(threat.max_violation(adversarial, images))


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
    """Raises InputError for images, labels or a classifier that cannot be evaluated."""
    if not isinstance(evaluator.classifier, Hashable):
        raise InputError(
            f"the classifier {type(evaluator.classifier).__name__} is not hashable: make it a "
            "function or a frozen dataclass."
        )
    _check_shapes(evaluator.split)
    _check_range(evaluator.split)
    _check_labels(evaluator)


def _check_shapes(split: Split) -> None:
    if split.images.ndim != 4 or split.labels.shape != split.images.shape[:1]:
        raise InputError(
            f"images of shape {split.images.shape} and labels of shape {split.labels.shape} do not "
            "go together: give (N, H, W, C) and (N,)."
        )
    if len(split.labels) == 0:
        raise InputError("there are no images to attack: give at least one.")


def _check_range(split: Split) -> None:
    if split.images.dtype != np.uint8:
        low, high = float(split.images.min()), float(split.images.max())
        if not (low >= 0 and high <= 1):
            raise InputError(
                f"images span {low:g} to {high:g}: give pixels in [0, 1] or as uint8, and "
                "normalize them inside the network."
            )


def _check_labels(evaluator: Evaluator) -> None:
    classifier, labels = evaluator.classifier, evaluator.split.labels
    shape = jax.ShapeDtypeStruct((1, *evaluator.split.images.shape[1:]), jnp.float32)
    key_argument = key_kwargs(classifier, jax.random.key(0))
    logits = jax.eval_shape(
        lambda state, images: classifier(state, images, **key_argument),
        evaluator.network_state,
        shape,
    )
    classes = logits.shape[-1]
    if classes < 2:
        raise InputError("the network has 1 class, which no attack can change: give 2 or more.")
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise InputError(
            f"labels span {labels.min()} to {labels.max()}, but the network has {classes} "
            f"classes: give labels from 0 to {classes - 1}."
        )
