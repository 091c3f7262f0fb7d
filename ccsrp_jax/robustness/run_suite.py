"""Running a suite of attacks on a network, and what is left standing after all of them.

White-box attacks go first, then transfers and black-box attacks, so that what these add
shows. An image that one attack broke is not attacked again; only references are run on
every image, so that their figure can be quoted by itself.
"""

import hashlib
import json
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from ccsrp_jax.attacks.threat_model import Norm
from ccsrp_jax.data.batching import balanced_batch_size
from ccsrp_jax.data.splits import Split, to_unit_range
from ccsrp_jax.networks.classifier import ClassifierFn, is_stochastic, key_kwargs
from ccsrp_jax.robustness.accuracy import VOTES, correct, predict
from ccsrp_jax.robustness.suites import Entry, View
from ccsrp_jax.utils.console import Terminal
from ccsrp_jax.utils.errors import InputError, check_number
from ccsrp_jax.utils.io import write_atomic


class Row(NamedTuple):
    """What one attack did."""

    name: str
    kind: str
    through: str
    attacked: int  # images
    broken: int  # of them, that were still standing
    accuracy: float  # share of all images still standing after it
    alone: float | None  # accuracy under this attack by itself, of those run everywhere
    gradients: int  # evaluations over all images, at most
    queries: int  # forward passes without a gradient, at most
    seconds: float  # compile time included


@dataclass(frozen=True)
class Outcome:
    """Accuracies of a network under a suite, image by image.

    Attributes:
      eps, norm: the ball, in pixel units.
      clean: (N,) correctly classified without an attack.
      standing: (N,) and after every one.
      broken_by: (N,) row of the first attack that broke the image, -1 if none did.
      rows: the attacks in their order.
      overstep: largest distance by which an adversarial image left the ball or the box.
    """

    eps: float
    norm: Norm
    clean: Bool[np.ndarray, "N"]
    standing: Bool[np.ndarray, "N"]
    broken_by: Int[np.ndarray, "N"]
    rows: tuple[Row, ...]
    overstep: float

    @property
    def accuracy(self) -> float:
        return float(self.clean.mean())

    @property
    def robust_accuracy(self) -> float:
        """The sample-wise worst case over all attacks."""
        return float(self.standing.mean())

    def ran(self, *kinds: str) -> bool:
        """Whether an attack of one of these kinds was made on any image."""
        return any(row.kind in kinds and row.attacked > 0 for row in self.rows)

    @property
    def reference(self) -> float | None:
        """Accuracy under the first white-box attack that was run on every image, by itself."""
        alone = (row.alone for row in self.rows if row.kind == "white box")
        return next((accuracy for accuracy in alone if accuracy is not None), None)

    def alone(self, name: str) -> float | None:
        """Accuracy under one attack by itself, if it was run on every image."""
        return next((row.alone for row in self.rows if row.name == name), None)

    def broken(self, *kinds: str) -> int:
        """Images that attacks of these kinds broke and none before them did."""
        return sum(row.broken for row in self.rows if row.kind in kinds)


def attack_all(
    logits: ClassifierFn,
    params: Any,
    split: Split,
    entries: Sequence[Entry],
    available: Mapping[str, View],
    key: Array,
    *,
    eps: float,
    norm: Norm = "linf",
    batch_size: int = 128,
    votes: int = VOTES,
    record: Path | None = None,
    terminal: Terminal | None = None,
) -> Outcome:
    """Runs a suite on the images of a split.

    Args:
      logits, params: the network that is judged.
      split: images and labels.
      entries: as `entries_of` returns them.
      available: the views that they go through.
      key: of all random draws.
      eps, norm: the ball that adversarial images are held to.
      batch_size: images a call.
      votes: passes over an image for a stochastic network's answer.
      record: a JSON file, written after every attack; one that is there already, of the
        same network, images and suite, is continued.
      terminal: for progress bars.

    Raises:
      InputError: the images, the labels or the record cannot be used.
    """
    _check(logits, params, split)
    check_number("batch_size", batch_size, 1)
    check_number("votes", votes, 1)
    used = {entry.through: available[entry.through] for entry in entries}
    about = _fingerprint((logits, used, entries, eps, norm, batch_size, votes), split, params, key)
    total = len(split.labels)
    key_clean, key_attacks = jax.random.split(key)
    rows, done = [], _resume(record, about)
    if done is None:
        clean = correct(logits, params, split, key=key_clean, batch_size=batch_size, votes=votes)
        broken_by, overstep = np.full(len(clean), -1), 0.0
    else:
        clean, broken_by = np.array(done["clean"]), np.array(done["broken_by"])
        rows, overstep = [Row(*row) for row in done["rows"]], done["overstep"]
    for number, entry in enumerate(entries):
        if number < len(rows):
            continue
        started = time.perf_counter()
        view = available[entry.through]
        parts = getattr(entry.attack, "parts", (entry.attack,))
        standing = clean & (broken_by < 0)
        left = clean.copy() if entry.everywhere else standing.copy()
        attacked, gradients, queries = int(left.sum()), 0, 0
        key_entry = jax.random.fold_in(key_attacks, number)
        title = entry.name if entry.through == "own" else f"{entry.name} {entry.through}"
        with _stage(terminal, title, attacked * len(parts)) as advance:
            for part, attack in enumerate(parts):
                places = np.flatnonzero(left)
                gradients += len(places) * getattr(attack, "gradients", 0)
                queries += len(places) * getattr(attack, "queries", 0)
                if not len(places):
                    break
                key_part = jax.random.fold_in(key_entry, part)
                for batch, (chunk, real) in enumerate(
                    _chunks(places, balanced_batch_size(total, batch_size))
                ):
                    images, labels = (
                        to_unit_range(jnp.asarray(split.images[chunk])),
                        split.labels[chunk],
                    )
                    key_attack, key_votes = jax.random.split(jax.random.fold_in(key_part, batch))
                    found = attack(
                        view.logits, view.params, images, jnp.asarray(labels), key_attack
                    )
                    hits = np.asarray(predict(logits, params, found, key=key_votes, votes=votes))
                    hits = hits == labels
                    if is_stochastic(logits) and not hits.all():  # an unlucky vote breaks nothing
                        key_again = jax.random.fold_in(key_votes, votes)
                        again = predict(logits, params, found, key=key_again, votes=4 * votes)
                        hits |= np.asarray(again) == labels
                    left[chunk[:real]] = hits[:real]
                    overstep = max(overstep, _overstep(found, images, eps, norm))
                    advance(real)
        newly = standing & ~left
        broken_by[newly] = number
        rows.append(
            Row(
                entry.name,
                entry.kind,
                entry.through,
                attacked,
                int(newly.sum()),
                float((clean & (broken_by < 0)).mean()),
                float(left.mean()) if entry.everywhere else None,
                gradients,
                queries,
                time.perf_counter() - started,
            )
        )
        if record is not None:
            state = {"clean": clean.tolist(), "broken_by": broken_by.tolist(), "rows": rows}
            text = json.dumps({"about": about, "overstep": overstep, **state})
            write_atomic(record, (text + "\n").encode())
    standing = clean & (broken_by < 0)
    return Outcome(eps, norm, clean, standing, broken_by, tuple(rows), overstep)


def _chunks(places: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Places in batches of two sizes, so that each attack compiles twice at most.

    Full ones, and one of a quarter where the rest fits into it; what is missing is filled up
    with places that are there already, which do not count: the number of real ones is beside.
    """
    for start in range(0, len(places), size):
        rest = places[start : start + size]
        quarter = -(-size // 4)
        fill = np.arange(quarter if len(rest) <= quarter else size) % len(rest)
        yield rest[fill], len(rest)


def _stage(terminal, title, total):
    return terminal.stage(title, total) if terminal else nullcontext(lambda units: None)


def _overstep(found, images, eps, norm) -> float:
    """How far the furthest image is outside of ball or box; inf if one is not finite."""
    moved = found - images
    length = jnp.abs(moved).max() if norm == "linf" else jnp.sqrt((moved**2).sum((1, 2, 3)).max())
    out = jnp.maximum(length - eps, jnp.maximum(-found.min(), found.max() - 1))
    return float(jnp.where(jnp.isfinite(out), jnp.maximum(out, 0), jnp.inf))


def _check(logits: ClassifierFn, params: Any, split: Split) -> None:
    if not isinstance(logits, Hashable):
        raise InputError(
            f"the classifier {type(logits).__name__} is not hashable: make it a function or a "
            "frozen dataclass."
        )
    if split.images.ndim != 4 or split.labels.shape != split.images.shape[:1]:
        raise InputError(
            f"images of shape {split.images.shape} and labels of shape {split.labels.shape} do not "
            "go together: give (N, H, W, C) and (N,)."
        )
    if len(split.labels) == 0:
        raise InputError("there are no images to attack: give at least one.")
    if split.images.dtype != np.uint8:
        low, high = float(split.images.min()), float(split.images.max())
        if not (low >= 0 and high <= 1):
            raise InputError(
                f"images span {low:g} to {high:g}: give pixels in [0, 1] or as uint8, and "
                "normalise inside of the network."
            )
    shape = jax.ShapeDtypeStruct((1, *split.images.shape[1:]), jnp.float32)
    extra = key_kwargs(logits, jax.random.key(0))
    classes = jax.eval_shape(lambda p, x: logits(p, x, **extra), params, shape).shape[-1]
    if classes < 2:
        raise InputError("the network has 1 class, which no attack can change: give 2 or more.")
    if int(split.labels.min()) < 0 or int(split.labels.max()) >= classes:
        raise InputError(
            f"labels span {split.labels.min()} to {split.labels.max()}, but the network has "
            f"{classes} classes: give labels from 0 to {classes - 1}."
        )


def _fingerprint(settings, split, params, key) -> str:
    """Of everything that a suite's outcome follows from, the same in every process."""
    arrays = [*split, jax.random.key_data(key), params, settings[1]]
    leaves = jax.tree.leaves(arrays)
    digest = hashlib.sha256(_named(settings).encode())
    for leaf in leaves:
        if hasattr(leaf, "shape"):
            digest.update(f"{leaf.shape}{leaf.dtype}".encode())
            digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def _named(thing: Any) -> str:
    """Settings as text, without arrays and without addresses in memory."""
    match thing:
        case View(logits=logits):
            return _named(logits)
        case dict():
            return str({name: _named(value) for name, value in sorted(thing.items())})
        case tuple() | list():
            return str([_named(value) for value in thing])
        case Entry():
            return _named((thing.name, thing.attack, thing.through, thing.kind, thing.everywhere))
    text = repr(thing)
    if " at 0x" in text:
        kind = thing if hasattr(thing, "__qualname__") else type(thing)
        return f"{kind.__module__}.{kind.__qualname__}"
    return text


def _resume(record: Path | None, about: str) -> dict | None:
    """What an interrupted suite had recorded.

    Raises:
      InputError: the file is damaged or is about another network, suite or images.
    """
    if record is None or not record.exists():
        return None
    try:
        done = json.loads(record.read_text())
        known = done["about"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{record} is damaged: delete it to start the suite again.") from error
    if known != about:
        raise InputError(
            f"{record} is of another network, suite or set of images: choose another directory, "
            "or delete it to start again."
        )
    return done
