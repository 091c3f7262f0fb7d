"""The file from which an interrupted suite is continued."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from ccsrp_jax.attacks.threat_model import ThreatModel
from ccsrp_jax.robustness.accuracy import Evaluator
from ccsrp_jax.robustness.best_found import BestFound
from ccsrp_jax.robustness.gradient_sources import GradientSource
from ccsrp_jax.robustness.identity import Identified, answers
from ccsrp_jax.robustness.outcome import AttackResult, Outcome
from ccsrp_jax.robustness.suites import AttackSpec
from ccsrp_jax.utils.digests import sha256_json
from ccsrp_jax.utils.errors import InputError
from ccsrp_jax.utils.io import write_atomic
from ccsrp_jax.utils.keys import raw


def fingerprint(
    evaluator: Evaluator,
    specs: Sequence[AttackSpec],
    sources: Mapping[str, GradientSource],
    threat: ThreatModel,
    key: Array,
) -> str:
    """Digest of everything that determines a suite's outcome; equal in every process.

    Functions that are no `Classifier` count by their answers too: their names and the state do
    not tell what they have captured.
    """
    e = evaluator
    settings = (e.classifier, sources, specs, threat.eps, threat.norm, e.batch_size, e.votes)
    arrays = [*e.split, jax.random.key_data(key), e.network_state, sources]
    digest = hashlib.sha256(settings_text(settings).encode())
    for leaf in map(raw, jax.tree.leaves(arrays)):
        if hasattr(leaf, "shape"):
            digest.update(f"{leaf.shape}{leaf.dtype}".encode())
            digest.update(np.ascontiguousarray(leaf).tobytes())
    for network in ((e.classifier, e.network_state), *sources.values()):
        digest.update((answers(*network, e.split.images) or "").encode())
    return digest.hexdigest()


def settings_text(value: Any) -> str:
    """Settings as text, without arrays and without addresses in memory."""
    match value:
        case GradientSource(classifier=classifier):
            return settings_text(classifier)
        case Identified(function=function):
            return settings_text(function)
        case dict():
            return str({name: settings_text(each) for name, each in sorted(value.items())})
        case tuple() | list():
            return str([settings_text(each) for each in value])
        case AttackSpec():
            fields = (value.name, value.attack, value.source, value.kind, value.run_on_all)
            return settings_text(fields)
    text = repr(value)
    if " at 0x" in text:
        named = value if hasattr(value, "__qualname__") else type(value)
        return f"{named.__module__}.{named.__qualname__}"
    return text


def save_progress(path: Path, about: str, outcome: Outcome) -> None:
    """Writes the outcome so far; `about` is the suite's fingerprint."""
    record = {
        "about": about,
        "overstep": outcome.max_violation,
        "clean": outcome.clean.tolist(),
        "broken_by": outcome.broken_by.tolist(),
        "rows": outcome.results,
    }
    if outcome.not_finite is not None and outcome.not_finite.any():
        record["not_finite"] = outcome.not_finite.tolist()
    if outcome.best is not None:
        record["best"] = outcome.best.record()
    record["sha256"] = sha256_json(record)
    write_atomic(path, (json.dumps(record) + "\n").encode())


def load_progress(path: Path | None, about: str, threat: ThreatModel) -> Outcome | None:
    """The outcome that an interrupted suite recorded; None without a file.

    Raises:
      InputError: the file is damaged or belongs to another network, suite or set of images.
    """
    if path is None or not path.exists():
        return None
    try:
        record = json.loads(path.read_text())
        known = record["about"]
        # old files have none
        if record.pop("sha256", None) not in (None, sha256_json(record)):
            raise ValueError("its content does not have the SHA-256 that it was saved with")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is damaged: delete it to start the suite again.") from error
    if known != about:
        raise InputError(
            f"{path} is of another network, suite or set of images: choose another directory, "
            "or delete it to start again."
        )
    return Outcome(
        threat,
        np.array(record["clean"]),
        np.array(record["broken_by"]),
        tuple(AttackResult(*row) for row in record["rows"]),
        record["overstep"],
        np.array(record.get("not_finite", np.zeros(len(record["clean"]), bool))),
        BestFound.from_record(record["best"]) if "best" in record else None,
    )
