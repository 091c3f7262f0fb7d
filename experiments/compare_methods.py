r"""Every pruning method on one trained network, at equal budgets.

    python experiments/ccsrp.py --rounds 0 --run-dir runs/dense
    python experiments/compare_methods.py runs/dense

The first command trains the network; the second prunes it with every method, for every target and
seed. All methods have the same images and gradient steps to train weights with; what they compute
beside that, to choose, is reported as search. Every cell of the table is a file of its own: the
same command goes on where it was interrupted, and commands with different --seeds or --methods may
share a directory, and the machine. `methods.json`, `curves.png` and `index.html` are made of all
cells that are there, with `--only-report` of them alone. `networks/` has the pruned networks, which
`experiments/robustness.py` takes.

Run so far, on two cores, a core each for two such commands, so seconds are rough:

  digits   RUN --targets 0.5 0.25: every method, 3 seeds, in some two hours
  mnist    RUN --targets 0.5 0.25 --epochs 4 --train-images 1500 --test-images 300: methods that
           remove filters, 3 seeds, and 4 of them 5; the others at 0.5; in 3 1/2 hours. RUN is
           `--dataset mnist --model medium --width 0.5 --train-images 4000 --search-images 300
           --test-images 500 --rounds 0 --attack.eps 0.1 --training.epochs 10
           --training.clean-epochs 2 --training.batch-size 64`
  cifar10  RUN --targets 0.5 0.25 --epochs 3 --train-images 2000 --search-images 300
           --test-images 500: every method, 1 seed, in two hours; RUN is configs/cifar10.toml
  digits-1, digits-2, cifar10-1: the same with --seed 1 or 2 of the main job, that is other splits
           and networks; methods that remove filters and one ablation, 1 seed

They are in results/methods; README.md has the tables and what was found. The last three have their
networks with them, so that other methods and seeds can join them, cell by cell:

    python experiments/compare_methods.py experiments/results/methods/digits-1/dense \
        --out experiments/results/methods/digits-1 --targets 0.5 0.25 --seeds 0 --methods NAME
"""

import sys
import time
from dataclasses import dataclass, field, replace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import jax
import tyro

from ccsrp_jax import cli
from ccsrp_jax.attacks.threat_model import ThreatModel
from ccsrp_jax.data import splits
from ccsrp_jax.networks import compaction, cost, masks, serialization
from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.pipeline import config, final_evaluation, stages
from ccsrp_jax.pipeline.flags import read_flags
from ccsrp_jax.pruning import METHODS, WEIGHT_METHODS, best_of, ccsrp, ccsrp_widths, criteria
from ccsrp_jax.pruning.budget import Target
from ccsrp_jax.pruning.problem import Callbacks, timed
from ccsrp_jax.reporting import comparison_report, figure_style
from ccsrp_jax.robustness.accuracy import Evaluator
from ccsrp_jax.robustness.gradient_sources import gradient_sources
from ccsrp_jax.robustness.run_suite import attack_all
from ccsrp_jax.robustness.suites import PRESETS, build_suite
from ccsrp_jax.training.batches import steps_per_epoch
from ccsrp_jax.utils import compilation, devices, io
from ccsrp_jax.utils.console import Terminal
from ccsrp_jax.utils.errors import InputError, check_number, unknown
from ccsrp_jax.utils.io import write_atomic

EARLIER = METHODS["ccsrp-priced"].keywords
PRICED = EARLIER["search"]
# What the default is made of, and what the one before it was, one thing changed at a time.
ABLATIONS = {
    "ccsrp: " + name: partial(ccsrp_widths, **changes)
    for name, changes in {
        "even widths": {"factors": ()},
        "widths alone": {"search": None},
        "three orders": {"orders": (criteria.gamma, criteria.taylor, criteria.at_random)},
        "random order": {"orders": (criteria.at_random,)},
        "L1 order": {"orders": (criteria.l1,)},
        "one epoch": {"epochs": 1},
        "two cycles": {"cycles": 2},
        "smaller steps": {"factors": (0.75, 1.25)},
    }.items()
} | {
    "ccsrp-priced: " + name: partial(ccsrp, **EARLIER | changes)
    for name, changes in {
        "one round": {"rounds": 1, "early": None},
        "equal rounds": {"early": None},
        "winners": {"search": replace(PRICED, splice="winners", levels=(), keep_floor=0.8)},
        "single removals": {"criterion": None},
        "no start": {"criterion": None, "search": replace(PRICED, single_removals=False)},
        "no search": {"search": replace(PRICED, generations=1, population=2)},
        "accuracy": {"search": replace(PRICED, objective="accuracy")},
        "change of the loss": {"search": replace(PRICED, objective="change")},
        "clean objective": {"search": replace(PRICED, robust_weight=0.0)},
        "robust objective x 3": {"search": replace(PRICED, robust_weight=3.0)},
        "per layer": {"search": replace(PRICED, shared_set="per_layer")},
        "white box": {"search": replace(PRICED, white_box_steps=5)},
        "population 32": {"search": replace(PRICED, population=32)},
        "CMA-ES": {"search": replace(PRICED, strategy="CMA_ES")},
        "clean fine-tuning": {"clean_training": True},
    }.items()
}
ABLATIONS["random: auditioned"] = best_of  # the default's comparisons without its evolution
KNOWN = METHODS | ABLATIONS
SPLITS = ("train", "search", "test")


@dataclass(frozen=True)
class Settings:
    """Compare pruning methods on the dense network of a finished run of the main job.

    Attributes:
      run: its directory; data, network, recipe of fine-tuning and attacks are its own. With
        --only-report it may be a directory with a methods.json.
      out: directory of the results; by default RUN/methods.
      methods: names, by default all of the library's; there are also ablations of the default,
        such as "ccsrp: even widths".
      targets: fractions that pruned networks may cost.
      measure: of the targets: `macs`, `params` or `synops`. Methods that remove single weights
        are held to parameters where it is MACs, of which they save none.
      seeds: of the methods and their fine-tuning.
      epochs: of fine-tuning, in all, for every method.
      learning_rate: its peak; by default the run's for fine-tuning.
      suite: of attacks on the test images: `quick`, `standard`, or `pgd` alone for trials.
      train_images, search_images, test_images: so many of the run's, the first; by default all.
      data_dir: where TFDS sets lie prepared.
      only_report: make methods.json and index.html of the cells that are there.
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
        """What all cells of a directory have in common."""
        return {
            "measure": self.measure,
            "epochs": self.epochs,
            "learning_rate": self.learning_rate,
            "suite": self.suite,
            **{f"{name}_images": getattr(self, f"{name}_images") for name in SPLITS},
        }


@dataclass(frozen=True)
class Stage:
    """What every cell starts from."""

    settings: Settings
    job: config.Config
    data: splits.Dataset
    architecture: Architecture
    variables: dict = field(repr=False)


def main(args: list[str] | None = None) -> int:
    compilation.enable_persistent_cache()
    return cli.guard(lambda: _run(read_flags(Settings, args or sys.argv[1:])), "--out", "it")


def _run(settings: Settings) -> None:
    terminal = Terminal()
    if not settings.only_report:
        stage = _prepare(settings)
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
            except InputError as error:  # a method that cannot do this is no reason to stop others
                terminal.line(f"{what} is left out: {error}")
                continue
            io.write_json(path, row)
            terminal.line(
                f"{what}: accuracy {row['accuracy']:.3f}, robust {row['robust_accuracy']:.3f}, "
                f"MACs {row['macs']:,}, parameters {row['params']:,}, search "
                f"{row['search']['seconds']:.0f} s, training {row['training']['seconds']:.0f} s"
            )
    report(settings.folder)


def _file(method: str, fraction: float, seed: int) -> str:
    return f"{method.replace(': ', '+').replace(' ', '_')}-{fraction:g}-{seed}"


def _prepare(settings: Settings) -> Stage:
    """Reads the run, and measures its dense network if that was not done before."""
    run, folder = Path(settings.run), settings.folder
    if not (run / "config.json").exists():
        raise InputError(
            f"{run} holds no run of the main job: train a network with "
            f"`python experiments/ccsrp.py --rounds 0 --run-dir {run}` first."
        )
    job = config.parse(["--config", str(run / "config.json")])
    architecture, variables = serialization.load(run / "networks" / "round00.safetensors")
    loaded = stages.data_of(replace(job, data_dir=settings.data_dir))
    for name in SPLITS:
        if most := getattr(settings, f"{name}_images"):
            split = splits.Split(*(part[:most] for part in getattr(loaded, name)))
            loaded = loaded._replace(**{name: split})
    stage = Stage(settings, job, loaded, architecture, variables)
    _unpack(folder)
    about = folder / "about.json"
    if about.exists():
        if io.read_json(about)["settings"] != settings.fixed:
            raise InputError(
                f"{folder} was begun with other settings ({io.read_json(about)['settings']}): "
                "use them, or choose another --out."
            )
        return stage
    folder.mkdir(parents=True, exist_ok=True)
    dense = _measure(stage, variables, masks.ones(architecture))
    record = {
        "settings": settings.fixed,
        "dataset": loaded.name,
        "model": job.model,
        "eps": job.attack.eps,
        "images": {name: len(getattr(loaded, name).labels) for name in SPLITS},
        "batch_size": job.training.batch_size,
        "footnote": loaded.record["footnote"],
        "caveat": final_evaluation.SUITE_CAVEAT[settings.suite],
        "dense": dense,
        **devices.machine(),
    }
    io.write_json(about, record)
    return stage


def _unpack(folder: Path) -> None:
    """Makes files of a table that came without its cells, so that its comparison goes on."""
    table, cells, part = folder / "methods.json", folder / "cells", folder / "cells.part"
    if cells.exists() or not table.exists():
        return
    record = io.read_json(table)
    part.mkdir(exist_ok=True)
    for row in record.pop("cells"):
        name = _file(row["method"], row["target"], row["seed"])
        io.write_json(part / f"{name}.json", row)
    io.write_json(folder / "about.json", {k: v for k, v in record.items() if k != "finding"})
    part.rename(cells)


def _cell(stage: Stage, name: str, fraction: float, seed: int, terminal: Terminal) -> dict:
    """One method, target and seed: prunes, fine-tunes, and meets the test images once."""
    settings, steps, epochs = stage.settings, [], []
    problem = stages.problem_of(
        stage.job,
        stage.data,
        stage.variables,
        stage.architecture,
        Target(settings.measure, fraction),
    )
    rate = settings.learning_rate or problem.recipe.learning_rate
    recipe = replace(problem.recipe, epochs=settings.epochs, learning_rate=rate)
    each = steps_per_epoch(recipe, len(stage.data.train.labels))
    inside, tried = [], []  # seconds of each training, candidates
    with (
        compilation.count_compilations() as compiled,
        terminal.stage(f"{name} {fraction:g} {seed}", settings.epochs * each) as advance,
    ):

        def step() -> None:
            steps.append(1)
            advance()

        problem = replace(
            problem,
            recipe=recipe,
            callbacks=Callbacks(
                on_epoch=lambda epoch: epochs.append(epoch.loss),
                on_step=step,
                on_candidate=lambda loss, kept: tried.append({"loss": loss, "kept": kept}),
                training_clock=partial(timed, inside),
            ),
        )
        started = time.perf_counter()
        found = KNOWN[name](jax.random.fold_in(jax.random.key(seed), 17), problem)
        jax.block_until_ready(found)
        seconds = time.perf_counter() - started
    network = settings.folder / "networks" / f"{_file(name, fraction, seed)}.safetensors"
    network.parent.mkdir(exist_ok=True)
    serialization.save(
        network, *compaction.compact(stage.architecture, found.variables, found.masks)
    )
    row = {
        "method": name,
        "target": fraction,
        "seed": seed,
        "weights": name in WEIGHT_METHODS,
        **_measure(stage, found.variables, found.masks),
        "kept": masks.widths(stage.architecture, found.masks),
        "search": {
            **found.search._asdict(),
            "seconds": seconds - sum(inside),
            **({"tried": tried} if tried else {}),
        },
        "training": {
            "steps": len(steps),
            "images": len(steps) * min(recipe.batch_size, len(stage.data.train.labels)),
            "seconds": sum(inside),
            "last_loss": epochs[-1],
        },
        "compile_seconds": compiled.seconds,
    }
    return row


def _measure(stage: Stage, variables: dict, chosen: masks.MaskTree) -> dict:
    """Accuracies on the test images, and costs. All networks run in the dense one's shape, so
    that one set of programs serves all."""
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


def report(folder: Path) -> None:
    """Writes methods.json of the cells in a directory, and index.html and curves.png of it."""
    about, table = folder / "about.json", folder / "methods.json"
    cells = [io.read_json(path) for path in sorted((folder / "cells").glob("*.json"))]
    if about.exists() and cells:
        record = io.read_json(about) | {"cells": cells}
    elif table.exists():  # a table that came without its cells
        record = io.read_json(table)
    else:
        raise InputError(f"{folder} holds no comparison: run one first, without --only-report.")
    summary = comparison_report.summarize(record)
    said = {"finding": comparison_report.finding(summary)}
    curves = figure_style.to_png(comparison_report.curves(record, summary))
    write_atomic(folder / "curves.png", curves)
    write_atomic(folder / "index.html", comparison_report.page(record, summary, curves).encode())
    io.write_json(table, said | {k: v for k, v in record.items() if k != "finding"})
    print(said["finding"])


if __name__ == "__main__":
    sys.exit(main())
