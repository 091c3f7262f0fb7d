"""The cells of the table of `ccsrp compare`: one method, target and seed each."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial

import jax

from ccsrp_jax.attacks.threat_model import ThreatModel
from ccsrp_jax.commands.compare_settings import KNOWN, Settings
from ccsrp_jax.data import provenance, splits
from ccsrp_jax.networks import compaction, cost, masks, serialization
from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.pipeline import stages
from ccsrp_jax.pipeline.config import Config
from ccsrp_jax.pruning import WEIGHT_METHODS
from ccsrp_jax.pruning.budget import Target
from ccsrp_jax.pruning.problem import Callbacks, timed
from ccsrp_jax.robustness.accuracy import Evaluator
from ccsrp_jax.robustness.gradient_sources import gradient_sources
from ccsrp_jax.robustness.run_suite import attack_all
from ccsrp_jax.robustness.suites import build_suite
from ccsrp_jax.training.batches import steps_per_epoch
from ccsrp_jax.utils import compilation, digests, io
from ccsrp_jax.utils.console import Terminal
from ccsrp_jax.utils.errors import InputError


@dataclass(frozen=True)
class Stage:
    """The network, data and settings that all cells share."""

    settings: Settings
    job: Config
    data: splits.Dataset
    architecture: Architecture
    variables: dict = field(repr=False)
    provenance: dict | None = field(repr=False)


def fill(stage: Stage, terminal: Terminal) -> None:
    """Measures the cells of the table that are not there yet."""
    settings = stage.settings
    cells = [
        (name, fraction, seed)
        for seed in settings.seeds
        for fraction in settings.targets
        for name in settings.methods
    ]
    (settings.folder / "cells").mkdir(parents=True, exist_ok=True)
    for number, cell in enumerate(cells):
        path = settings.folder / "cells" / f"{cell_name(*cell)}.json"
        if path.exists():
            continue
        what = f"{number + 1}/{len(cells)} {cell[0]} at {cell[1]:g}, seed {cell[2]}"
        try:
            row = _cell(stage, *cell, terminal)
        except InputError as error:  # the other methods go on
            terminal.line(f"{what} is left out: {error}")
            continue
        io.write_json(path, digests.with_digest(row))
        terminal.line(
            f"{what}: accuracy {row['accuracy']:.3f}, robust {row['robust_accuracy']:.3f}, "
            f"MACs {row['macs']:,}, parameters {row['params']:,}, search "
            f"{row['search']['seconds']:.0f} s, training {row['training']['seconds']:.0f} s"
        )


def cell_name(method: str, fraction: float, seed: int) -> str:
    return f"{method.replace(': ', '+').replace(' ', '_')}-{fraction:g}-{seed}"


class Watched:
    """Callbacks that record training, and their records."""

    def __init__(self, advance: Callable[[], None]) -> None:
        self.steps = 0
        self.losses: list[float] = []  # of epochs
        self.candidates: list[dict] = []
        self.seconds: list[float] = []  # of every training
        self._advance = advance

    def callbacks(self) -> Callbacks:
        return Callbacks(
            on_epoch=lambda epoch: self.losses.append(epoch.loss),
            on_step=self._step,
            on_candidate=lambda loss, kept: self.candidates.append({"loss": loss, "kept": kept}),
            training_clock=partial(timed, self.seconds),
        )

    def _step(self) -> None:
        self.steps += 1
        self._advance()


def _cell(stage: Stage, name: str, fraction: float, seed: int, terminal: Terminal) -> dict:
    """Prunes with one method, target and seed, fine-tunes, and evaluates on the test set once."""
    settings, target = stage.settings, Target(stage.settings.measure, fraction)
    dense = stage.variables, stage.architecture
    problem = stages.problem_of(stage.job, stage.data, *dense, target)
    rate = settings.learning_rate or problem.recipe.learning_rate
    recipe = replace(problem.recipe, epochs=settings.epochs, learning_rate=rate)
    images = len(stage.data.train.labels)
    steps = settings.epochs * steps_per_epoch(recipe, images)
    with (
        compilation.count_compilations() as compiled,
        terminal.stage(f"{name} {fraction:g} {seed}", steps) as advance,
    ):
        watched = Watched(advance)
        problem = replace(problem, recipe=recipe, callbacks=watched.callbacks())
        started = time.perf_counter()
        found = KNOWN[name](jax.random.fold_in(jax.random.key(seed), 17), problem)
        jax.block_until_ready(found)
        seconds = time.perf_counter() - started
    network = settings.folder / "networks" / f"{cell_name(name, fraction, seed)}.safetensors"
    network.parent.mkdir(exist_ok=True)
    compact = compaction.compact(stage.architecture, found.variables, found.masks)
    origin = provenance.trained_further(stage.provenance, asdict(recipe))
    serialization.save(network, *compact, origin)
    return {
        "method": name,
        "target": fraction,
        "seed": seed,
        "weights": name in WEIGHT_METHODS,
        **measure(stage, found.variables, found.masks),
        "kept": masks.widths(stage.architecture, found.masks),
        "search": {
            **found.search._asdict(),
            "seconds": seconds - sum(watched.seconds),
            **({"tried": watched.candidates} if watched.candidates else {}),
        },
        "training": {
            "steps": watched.steps,
            "images": watched.steps * min(recipe.batch_size, images),
            "seconds": sum(watched.seconds),
            "last_loss": watched.losses[-1],
        },
        "compile_seconds": compiled.seconds,
    }


def measure(stage: Stage, variables: dict, chosen: masks.MaskTree) -> dict:
    """Accuracies on the test images, and costs.

    All networks are run masked, in the dense network's shape, so that they share compiled programs.
    """
    settings, architecture = stage.settings, stage.architecture
    spent = cost.costs(architecture, variables, chosen, stage.data.search, jax.random.key(0))
    network, filters = masks.fold(variables, chosen), masks.filters(architecture, chosen)
    classifier = Classifier(architecture, stage.job.surrogate)
    threat = ThreatModel("linf", stage.job.attack.eps)
    sources = gradient_sources(classifier, (network, filters))
    specs = build_suite(settings.suite, threat, sources)
    evaluator = Evaluator(classifier, (network, filters), stage.data.test)
    outcome = attack_all(evaluator, specs, sources, jax.random.key(4000), threat=threat)
    return {
        "accuracy": outcome.accuracy,
        "robust_accuracy": outcome.robust_accuracy,
        "pgd_accuracy": outcome.reference,
        **spent,
    }
