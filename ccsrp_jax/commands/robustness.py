"""`ccsrp robustness`: a saved network under a suite of attacks, their audit, and corruptions.

    ccsrp robustness runs/latest/pruned.safetensors
    ccsrp robustness NETWORK --suite standard --eps 0.0625 --images 256
    ccsrp robustness NETWORK --others dense=runs/latest/networks/round00.safetensors
    ccsrp robustness NETWORK --attacks apgd-ce:assg apgd-t:own square
    ccsrp robustness NETWORK --certify 0.1 --norm l2 --eps 0.5
    ccsrp robustness NETWORK --baseline runs/latest/networks/round00.safetensors

It writes robustness.json and robustness.png beside the network, or into --out; where these are of
another network or other settings, it writes NAME.robustness.json and .png. Repeating the command
resumes an interrupted run after its last finished attack.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import jax
import numpy as np
import tyro

from ccsrp_jax.attacks.threat_model import ThreatModel
from ccsrp_jax.commands.robustness_output import report_path, show
from ccsrp_jax.data import provenance
from ccsrp_jax.data.datasets import load
from ccsrp_jax.data.splits import Dataset, Split, to_unit_range
from ccsrp_jax.networks import serialization
from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.neurons import Surrogate
from ccsrp_jax.pipeline.flags import read_flags
from ccsrp_jax.reporting import figure_style
from ccsrp_jax.reporting.robustness_figure import robustness_figure
from ccsrp_jax.robustness.corruptions import names
from ccsrp_jax.robustness.evaluation import evaluate
from ccsrp_jax.robustness.gradient_sources import GradientSource
from ccsrp_jax.robustness.interval_certificates import certified
from ccsrp_jax.robustness.outcome import Outcome
from ccsrp_jax.robustness.smoothing import Smoothing, certified_accuracy, certify
from ccsrp_jax.robustness.suites import EOT_SAMPLES, AttackSpec, parse_attack
from ccsrp_jax.utils.console import Terminal
from ccsrp_jax.utils.errors import InputError, check_number
from ccsrp_jax.utils.fields import converted
from ccsrp_jax.utils.guard import guard
from ccsrp_jax.utils.io import write_atomic


@dataclass(frozen=True)
class Settings:
    """Attack a saved network.

    Attributes:
      network: a .safetensors file that this library wrote.
      dataset: `digits`, a TFDS set or an .npz file, as for the main job; by default the one that
        the network's file names, or `digits`.
      data_dir: folder with prepared TFDS sets.
      suite: `quick`, `standard`, `thorough`, or `pgd` alone.
      attacks: attacks to run instead of a suite, each ATTACK or ATTACK:SOURCE.
      others: other networks for transfer attacks, each NAME=FILE.
      baseline: file of a network, such as the dense one, to whose errors the mean corruption error
        (mCE) is relative; all corruptions are then measured at all five severities.
      eps: attack radius in pixel units, where images span 0 to 1.
      norm: norm of the attack, `linf` or `l2`.
      images: use at most this many test images, stratified by class; by default all.
      seed: random seed of attacks and certificates.
      split_seed: seed with which the data was divided for training; by default the one in the
        network's file, or `seed` where it has none.
      samples: draws over which the gradient of a stochastic network is averaged.
      batch_size: images per call.
      certify: standard deviation of the noise of randomized smoothing; by default no certificates.
      certify_samples: draws per image for its certificate.
      out: directory for robustness.json and robustness.png; by default the network's.
      surrogate: surrogate gradient that the network was trained with.
    """

    network: Annotated[Path, tyro.conf.Positional]
    dataset: str | None = None
    data_dir: str | None = None
    suite: Literal["pgd", "quick", "standard", "thorough"] = "quick"
    attacks: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    baseline: Path | None = None
    eps: float = 1 / 16
    norm: Literal["linf", "l2"] = "linf"
    images: int | None = None
    seed: int = 0
    split_seed: int | None = None
    samples: int | None = None
    batch_size: int = 128
    certify: float | None = None
    certify_samples: int = 1000
    out: Path | None = None
    surrogate: Surrogate = field(default_factory=Surrogate)


def run(settings: Settings, terminal: Terminal) -> dict:
    """Runs the attacks and the audit, writes the record and prints a summary.

    Raises:
      InputError: a file, the data or a setting cannot be used.
    """
    check_number("batch_size", settings.batch_size, 1)
    smoothing = None  # made before anything else, so that it is refused early
    if settings.certify is not None:
        smoothing = Smoothing(settings.certify, samples=settings.certify_samples)
    architecture, variables, origin = serialization.load_with_provenance(settings.network)
    classifier = Classifier(architecture, settings.surrogate)
    data = test_data(settings, architecture, origin)
    if origin is None and provenance.is_drawn(data.record):
        terminal.line(provenance.not_known(str(settings.network), data.record))
    others = dict(other_network(settings, text) for text in settings.others)
    natural, baseline = None, None
    if settings.baseline is not None:
        baseline = gradient_source(settings, settings.baseline)
        natural = every_corruption(architecture)
    folder = settings.out or settings.network.parent
    folder.mkdir(parents=True, exist_ok=True)
    # named by the settings, so that no other suite on this network is in its way
    digest = hashlib.sha256(repr(settings).encode()).hexdigest()[:8]
    unfinished = folder / f"{settings.network.stem}.{digest}.suite.json"
    key, key_certify = jax.random.split(jax.random.key(settings.seed))
    found = evaluate(
        classifier,
        (variables, None),
        data.test,
        eps=settings.eps,
        key=key,
        suite=wanted_suite(settings, classifier),
        norm=settings.norm,
        others=others,
        samples=settings.samples,
        batch_size=settings.batch_size,
        natural=natural,
        baseline=baseline,
        record=unfinished,
        terminal=terminal,
    )
    record = found.record() | {
        "network": settings.network.name,
        "dataset": data.name,
        "footnote": data.record["footnote"],
        "split_seed": data.record["seed"],
        "provenance": origin,
        "settings": json.loads(json.dumps(dataclasses.asdict(settings), default=str)),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in ("ccsrp-jax", "jax", "jaxlib")},
        "device": jax.devices()[0].device_kind,
        "certified_linf": linf_certificates(classifier, variables, data.test, found.outcome),
    }
    if smoothing is not None:
        record["certified"] = certificates(classifier, variables, data.test, smoothing, key_certify)
    picture = figure_style.to_png(robustness_figure({settings.network.stem: record}))
    report = report_path(folder, record, digest)
    write_atomic(report, (json.dumps(record, indent=1) + "\n").encode())
    write_atomic(report.with_suffix(".png"), picture)
    unfinished.unlink(missing_ok=True)
    show(terminal, found, record)
    terminal.line(f"written to {report}")
    return record


def wanted_suite(settings: Settings, classifier: Classifier) -> str | list[AttackSpec]:
    """The name of a suite, or the attacks that take its place.

    Raises:
      InputError: there is no such attack.
    """
    if not settings.attacks:
        return settings.suite
    draws = (settings.samples or EOT_SAMPLES["standard"]) if classifier.stochastic else 1
    threat = ThreatModel(settings.norm, settings.eps)
    return [parse_attack(text, threat, draws) for text in settings.attacks]


def gradient_source(settings: Settings, path: Path) -> GradientSource:
    """A saved network as a source of gradients."""
    source, weights = serialization.load(path)
    return GradientSource(Classifier(source, settings.surrogate), (weights, None))


def other_network(settings: Settings, text: str) -> tuple[str, GradientSource]:
    """The name and the network of NAME=FILE.

    Raises:
      InputError: it has no name, or the file cannot be loaded.
    """
    name, separator, path = text.partition("=")
    if not separator:
        raise InputError(f"other network {text!r} has no name: give NAME=FILE.")
    return name, gradient_source(settings, Path(path))


def every_corruption(architecture: Architecture) -> list[tuple[str, int]]:
    """All corruptions that change images of this shape, at all severities."""
    height, width, channels = architecture.input_shape
    return [(name, at) for name in names(channels, max(height, width)) for at in range(1, 6)]


def test_data(settings: Settings, architecture: Architecture, origin: dict | None) -> Dataset:
    """The data that a network was trained on, divided as then.

    Raises:
      InputError: the data is other data, or divided otherwise, than the network's file says.
    """
    known = origin or {}
    name = settings.dataset or known.get("dataset", "digits")
    seed = settings.split_seed
    if seed is None:
        seed = known.get("seed", settings.seed)
    fraction, at = known.get("search_fraction", 0.2), f"in {settings.network}"
    name = converted(f"dataset {at}", name, str)
    data = load(
        name,
        data_dir=settings.data_dir,
        seed=converted(f"seed {at}", seed, int),
        search_fraction=converted(f"search_fraction {at}", fraction, float),
        test_images=settings.images,
        time_steps=architecture.time_steps,
    )
    shape = data.test.images.shape[1:]
    if shape != architecture.input_shape:
        raise InputError(
            f"{settings.network} takes images of {architecture.input_shape}, but those of "
            f"{name} are {shape}: give the data that it was trained on."
        )
    if data.classes != architecture.classes:
        raise InputError(
            f"{settings.network} tells {architecture.classes} classes apart, and {name} has "
            f"{data.classes}: give the data that it was trained on."
        )
    if origin is not None:
        provenance.check(str(settings.network), origin, data.record)
    return data


def linf_certificates(classifier, variables, split: Split, outcome: Outcome) -> dict | None:
    """Certified accuracy by interval bounds, or why there is none; None for other norms.

    It bounds the robust accuracy from below, as the worst case of the attacks does from above.
    """
    if outcome.threat.norm != "linf":
        return None
    try:
        safe = certified(classifier, (variables, None), split, outcome.threat.eps)
    except InputError as error:
        return {"accuracy": None, "reason": str(error)}
    return {"accuracy": float(safe.mean()), "broken": int((safe & ~outcome.robust).sum())}


def certificates(classifier, variables, split: Split, smoothing: Smoothing, key) -> dict:
    """Certified accuracy of the smoothed network against the L2 radius."""
    images = np.asarray(to_unit_range(split.images))
    found = certify(classifier, (variables, None), images, key, smoothing)
    radii = np.linspace(0, 4 * smoothing.sigma, 17)
    accuracy = certified_accuracy(found, split.labels, radii)
    return dataclasses.asdict(smoothing) | {
        "radii": radii.tolist(),
        "accuracy": np.asarray(accuracy).tolist(),
        "abstained": float((np.asarray(found.classes) < 0).mean()),
    }


def main(flags: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Runs the command with these flags; returns the exit status."""
    given = sys.argv[1:] if flags is None else flags
    return guard(
        lambda: run(read_flags(Settings, given, prog=prog), Terminal()), "--out", "the same command"
    )
