r"""Compares every pruning method on one trained network, at equal budgets.

    python experiments/ccsrp.py --rounds 0 --run-dir runs/dense
    python experiments/compare_methods.py runs/dense

The first command trains the network; the second prunes it with every method, for every target and
seed. All methods have the same images and gradient steps to train weights; what they compute in
addition, to decide what is pruned, is reported as search. Every cell of the table is a file, so the
same command resumes where it was interrupted, and commands with different --seeds or --methods may
share a directory and run at the same time. `methods.json`, `curves.png` and `index.html` are
made from all cells that exist; --only-report makes them without computing any. `networks/` has
the pruned networks, for `experiments/robustness.py`.

Run so far, on two cores with one command on each, so that seconds are rough:

  digits   RUN --targets 0.5 0.25: every method, 3 seeds, in about two hours
  mnist    RUN --targets 0.5 0.25 --epochs 4 --train-images 1500 --test-images 300: methods that
           remove filters, 3 seeds, and 4 of them 5; the others at 0.5; in 3 1/2 hours. RUN is
           `--dataset mnist --model medium --width 0.5 --train-images 4000 --search-images 300
           --test-images 500 --rounds 0 --attack.eps 0.1 --training.epochs 10
           --training.clean-epochs 2 --training.batch-size 64`
  cifar10  RUN --targets 0.5 0.25 --epochs 3 --train-images 2000 --search-images 300
           --test-images 500: every method, 1 seed, in two hours; RUN is configs/cifar10.toml
  digits-1, digits-2, cifar10-1: the same with --seed 1 or 2 of the main job, which gives other
           splits and networks; methods that remove filters and one ablation, 1 seed

The tables are in results/methods, and the findings in experiments/README.md. The last three
include their dense networks, so that other methods and seeds can be added, cell by cell:

    python experiments/compare_methods.py experiments/results/methods/digits-1/dense \
        --out experiments/results/methods/digits-1 --targets 0.5 0.25 --seeds 0 --methods NAME
"""

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import jax
import tyro

from ablations import ABLATIONS
from ccsrp_jax import cli
from ccsrp_jax.attacks.threat_model import ThreatModel
from ccsrp_jax.data import provenance, splits
from ccsrp_jax.networks import compaction, cost, masks, serialization
from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.pipeline import final_evaluation, stages
from ccsrp_jax.pipeline.config import Config
from ccsrp_jax.pipeline.flags import read_flags
from ccsrp_jax.pipeline.parse_config import parse
from ccsrp_jax.pipeline.run import model_name
from ccsrp_jax.pruning import METHODS, WEIGHT_METHODS
from ccsrp_jax.pruning.budget import Target
from ccsrp_jax.pruning.descriptions import describe
from ccsrp_jax.pruning.problem import Callbacks, timed
from ccsrp_jax.reporting import comparison_report, figure_style
from ccsrp_jax.robustness.accuracy import Evaluator
from ccsrp_jax.robustness.gradient_sources import gradient_sources
from ccsrp_jax.robustness.run_suite import attack_all
from ccsrp_jax.robustness.suites import PRESETS, build_suite
from ccsrp_jax.training.batches import steps_per_epoch
from ccsrp_jax.utils import compilation, devices, digests, io
from ccsrp_jax.utils.console import Terminal
from ccsrp_jax.utils.errors import InputError, check_number, unknown
from ccsrp_jax.utils.io import write_atomic
from ccsrp_jax.utils.locks import locked

KNOWN = METHODS | ABLATIONS
SPLITS = ("train", "search", "test")


@dataclass(frozen=True)
class Settings:
    """Compare pruning methods on the dense network of a finished run of the main job.

    Attributes:
      run: directory of the run, from which data, network, fine-tuning recipe and attacks are
        taken. With --only-report it may be a directory with a methods.json.
      out: directory of the results; by default RUN/methods.
      methods: names of methods; by default all of the library's. There are also ablations, such
        as "ccsrp: even widths".
      targets: highest costs of pruned networks, as fractions of the dense network's.
      measure: measure of these costs: `macs`, `params` or `synops`. With `macs`, the targets of
        methods that remove single weights are in parameters, as these save no MACs.
      seeds: random seeds of the methods and their fine-tuning.
      epochs: total epochs of fine-tuning, the same for every method.
      learning_rate: peak learning rate of fine-tuning; by default the run's.
      suite: attacks on the test images: `quick`, `standard`, `thorough`, or `pgd` for trials.
      train_images: number of training images, the first ones; by default all.
      search_images: number of search images, the first ones; by default all.
      test_images: number of test images, the first ones; by default all.
      data_dir: folder with prepared TFDS sets.
      only_report: only make methods.json, curves.png and index.html of the existing cells.
    """

    run: Annotated[str, tyro.conf.Positional]
    out: str | None = None
    methods: tuple[str, ...] = tuple(METHODS)
    targets: tuple[float, ...] = (0.75, 0.5, 0.25)
    measure: str = "macs"
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int = 12
    learning_rate: float | None = None
    suite: str = "quick"
    train_images: int | None = None
    search_images: int | None = None
    test_images: int | None = None
    data_dir: str | None = None
    only_report: bool = False

    def __post_init__(self) -> None:
        for name in self.methods:
            if name not in KNOWN:
                raise unknown("method", name, KNOWN)
        for fraction in self.targets:
            Target(self.measure, fraction)
        for seed in self.seeds:
            check_number("seed", seed, 0, 2**31 - 1)
        check_number("epochs", self.epochs, 1)
        if self.suite not in PRESETS:
            raise unknown("suite", self.suite, PRESETS)

    @property
    def folder(self) -> Path:
        if self.only_report and not self.out and (Path(self.run) / "methods.json").exists():
            return Path(self.run)
        return Path(self.out) if self.out else Path(self.run) / "methods"

    @property
    def fixed(self) -> dict:
        """The settings that all cells of a directory share."""
        return {
            "measure": self.measure,
            "epochs": self.epochs,
            "learning_rate": self.learning_rate,
            "suite": self.suite,
            **{f"{name}_images": getattr(self, f"{name}_images") for name in SPLITS},
        }


@dataclass(frozen=True)
class Stage:
    """The network, data and settings that all cells share."""

    settings: Settings
    job: Config
    data: splits.Dataset
    architecture: Architecture
    variables: dict = field(repr=False)
    provenance: dict | None = field(repr=False)


def main(args: list[str] | None = None) -> int:
    compilation.enable_persistent_cache()
    return cli.guard(lambda: _run(read_flags(Settings, args or sys.argv[1:])), "--out", "it")


def _run(settings: Settings) -> None:
    terminal = Terminal()
    if not settings.only_report:
        stage = _prepare(settings)
        with locked(settings.folder, terminal.line, flag="--out", again="it"):
            _fill(stage, terminal)
    report(settings.folder)


def _fill(stage: Stage, terminal: Terminal) -> None:
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
        path = settings.folder / "cells" / f"{_file(*cell)}.json"
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


def _file(method: str, fraction: float, seed: int) -> str:
    return f"{method.replace(': ', '+').replace(' ', '_')}-{fraction:g}-{seed}"


def _prepare(settings: Settings) -> Stage:
    """Reads the run, and measures its dense network if that has not been done."""
    run, folder = Path(settings.run), settings.folder
    if not (run / "config.json").exists():
        raise InputError(
            f"{run} holds no run of the main job: train a network with "
            f"`python experiments/ccsrp.py --rounds 0 --run-dir {run}` first."
        )
    job = parse(["--config", str(run / "config.json")])
    dense = run / "networks" / "round00.safetensors"
    architecture, variables, origin = serialization.load_with_provenance(dense)
    loaded = stages.data_of(replace(job, data_dir=settings.data_dir))
    if origin is not None:
        provenance.check(str(dense), origin, loaded.record, also_search=True)
    for name in SPLITS:
        if most := getattr(settings, f"{name}_images"):
            split = splits.Split(*(part[:most] for part in getattr(loaded, name)))
            loaded = loaded._replace(**{name: split})
    stage = Stage(settings, job, loaded, architecture, variables, origin)
    _unpack(folder)
    about = folder / "about.json"
    inputs = {
        "network": digests.sha256_file(dense),
        "splits": [digests.sha256_arrays(getattr(loaded, name)) for name in SPLITS],
    }
    if about.exists():
        _check_about(folder, io.read_json(about), settings, inputs)
        return stage
    folder.mkdir(parents=True, exist_ok=True)
    measured = _measure(stage, variables, masks.ones(architecture))
    record = {
        "settings": settings.fixed,
        "dataset": loaded.name,
        "model": model_name(job, architecture),
        "eps": job.attack.eps,
        "images": {name: len(getattr(loaded, name).labels) for name in SPLITS},
        "batch_size": job.training.batch_size,
        "footnote": loaded.record["footnote"],
        "caveat": final_evaluation.SUITE_CAVEAT[settings.suite],
        "dense": measured,
        "inputs": inputs,
        **devices.machine(),
    }
    io.write_json(about, record)
    return stage


def _check_about(folder: Path, about: dict, settings: Settings, inputs: dict) -> None:
    """Refuses to add cells to those of other settings, of another network or of other data."""
    if about.get("settings") != settings.fixed:
        raise InputError(
            f"{folder} was started with other settings ({about.get('settings')}): use them, or "
            "choose another --out."
        )
    # earlier versions recorded none
    if about.get("inputs", inputs) != inputs:
        raise InputError(
            f"{folder} was started with another dense network or other data than those of "
            f"{settings.run} now: put them back, or choose another --out."
        )


def _unpack(folder: Path) -> None:
    """Writes a table's cells as files if there are none, so that its comparison can continue."""
    table, cells, part = folder / "methods.json", folder / "cells", folder / "cells.part"
    if cells.exists() or not table.exists():
        return
    record = io.read_json(table)
    part.mkdir(exist_ok=True)
    for row in record.pop("cells"):
        name = _file(row["method"], row["target"], row["seed"])
        io.write_json(part / f"{name}.json", digests.with_digest(row))
    io.write_json(folder / "about.json", {k: v for k, v in record.items() if k != "finding"})
    part.rename(cells)


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
    network = settings.folder / "networks" / f"{_file(name, fraction, seed)}.safetensors"
    network.parent.mkdir(exist_ok=True)
    compact = compaction.compact(stage.architecture, found.variables, found.masks)
    origin = provenance.trained_further(stage.provenance, asdict(recipe))
    serialization.save(network, *compact, origin)
    return {
        "method": name,
        "target": fraction,
        "seed": seed,
        "weights": name in WEIGHT_METHODS,
        **_measure(stage, found.variables, found.masks),
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


def _measure(stage: Stage, variables: dict, chosen: masks.MaskTree) -> dict:
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


def _read_cell(path: Path) -> dict:
    try:
        return digests.without_digest(io.read_json(path))
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}): delete it to measure it again.") from error


def report(folder: Path) -> None:
    """Writes methods.json from the cells in a directory, and index.html and curves.png from it."""
    about, table = folder / "about.json", folder / "methods.json"
    cells = [_read_cell(path) for path in sorted((folder / "cells").glob("[!.]*.json"))]
    if about.exists() and cells:
        record = io.read_json(about) | {"cells": cells}
    elif table.exists():  # a table without its cells
        record = io.read_json(table)
    else:
        raise InputError(f"{folder} holds no comparison: run one first, without --only-report.")
    summary = comparison_report.summarize(record)
    said = {"finding": comparison_report.finding(summary)}
    curves = figure_style.to_png(comparison_report.curves(record, summary))
    descriptions = {row["method"]: describe(row["method"]) for row in summary["rows"]}
    page = comparison_report.page(record, summary, descriptions)
    write_atomic(folder / "curves.png", curves)
    write_atomic(folder / "index.html", page.encode())
    io.write_json(table, said | {k: v for k, v in record.items() if k != "finding"})
    print(said["finding"])


if __name__ == "__main__":
    sys.exit(main())
