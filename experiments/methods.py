"""Every pruning method on one trained network, at equal budgets.

    python experiments/ccsrp.py --rounds 0 --run-dir runs/dense
    python experiments/methods.py runs/dense

The first command trains the network; the second prunes it with every method, for every target and
seed. All methods have the same images and gradient steps to train weights with; what they compute
beside that, to choose, is reported as search. Every cell of the table is a file of its own: the
same command goes on where it was interrupted, and commands with different --seeds or --methods may
share a directory, and the machine. `methods.json` and `index.html` are made of all cells that
are there, with `--only-report` of them alone.
"""

import dataclasses
import json
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import tyro

from ccsrp_jax import (
    cli,
    closing,
    compaction,
    compiles,
    config,
    data,
    masks,
    rundir,
    stages,
    training,
)
from ccsrp_jax.architecture import Architecture, kernel_shapes
from ccsrp_jax.budget import MEASURES, Target
from ccsrp_jax.errors import InputError, check_number, unknown
from ccsrp_jax.methods import METHODS, WEIGHT_METHODS
from ccsrp_jax.network import Classifier
from ccsrp_jax.robustness import Outcome, attack_all
from ccsrp_jax.suite import PRESETS, entries_of, views
from ccsrp_jax.terminal import Terminal


@dataclass(frozen=True)
class Settings:
    """Compare pruning methods on the dense network of a finished run of the main job.

    Attributes:
      run: its directory; data, network, recipe of fine-tuning and attacks are its own.
      out: directory of the results; by default RUN/methods.
      methods: names, by default all.
      targets: fractions that pruned networks may cost.
      measure: of the targets: `macs`, `params` or `synops`. Methods that remove single weights
        are held to parameters where it is MACs, of which they save none.
      seeds: of the methods and their fine-tuning.
      epochs: of fine-tuning, in all, for every method.
      learning_rate: its peak; by default the run's for fine-tuning.
      suite: of attacks on the test images: `quick`, `standard`, or `pgd` alone for trials.
      test_images: so many of the run's test images, the first; by default all.
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
    test_images: int | None = None
    data_dir: str | None = None
    only_report: bool = False

    def __post_init__(self) -> None:
        for name in self.methods:
            if name not in METHODS:
                raise unknown("method", name, METHODS)
        for fraction in self.targets:
            Target(self.measure, fraction)
        if self.measure not in MEASURES:
            raise unknown("measure", self.measure, MEASURES)
        for seed in self.seeds:
            check_number("seed", seed, 0, 2**31 - 1)
        check_number("epochs", self.epochs, 1)
        if self.suite not in PRESETS:
            raise unknown("suite", self.suite, PRESETS)

    @property
    def folder(self) -> Path:
        return Path(self.out) if self.out else Path(self.run) / "methods"

    @property
    def fixed(self) -> dict:
        """What all cells of a directory have in common."""
        return {
            "measure": self.measure,
            "epochs": self.epochs,
            "learning_rate": self.learning_rate,
            "suite": self.suite,
            "test_images": self.test_images,
        }


@dataclass(frozen=True)
class Stage:
    """What every cell starts from."""

    settings: Settings
    job: config.Config
    data: data.Dataset
    architecture: Architecture
    variables: dict = field(repr=False)


def main(args: list[str] | None = None) -> int:
    compiles.keep()
    return cli.guard(lambda: _run(config.read_flags(Settings, args or sys.argv[1:])), "--out", "it")


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
            path = settings.folder / "cells" / "{}-{:g}-{}.json".format(*cell)
            if path.exists():
                continue
            row = _cell(stage, *cell, terminal)
            rundir.write_json(path, row)
            terminal.line(
                f"{number + 1}/{len(cells)} {cell[0]} at {cell[1]:g}, seed {cell[2]}: accuracy "
                f"{row['accuracy']:.3f}, robust {row['robust_accuracy']:.3f}, MACs "
                f"{row['macs']:,}, parameters {row['params']:,}, search "
                f"{row['search']['seconds']:.0f} s, training {row['training']['seconds']:.0f} s"
            )
    report(settings.folder)


def _prepare(settings: Settings) -> Stage:
    """Reads the run, and measures its dense network if that was not done before."""
    run, folder = Path(settings.run), settings.folder
    if not (run / "config.json").exists():
        raise InputError(
            f"{run} holds no run of the main job: train a network with "
            f"`python experiments/ccsrp.py --rounds 0 --run-dir {run}` first."
        )
    job = config.parse(["--config", str(run / "config.json")])
    architecture, variables = compaction.load(run / "networks" / "round00.safetensors")
    loaded = data.load(
        job.dataset,
        data_dir=settings.data_dir,
        seed=job.seed,
        search_fraction=job.search_fraction,
        train_images=job.train_images,
        search_images=job.search_images,
        test_images=job.test_images,
        time_steps=job.time_steps,
    )
    if settings.test_images:
        test = data.Split(*(part[: settings.test_images] for part in loaded.test))
        loaded = loaded._replace(test=test)
    stage = Stage(settings, job, loaded, architecture, variables)
    about = folder / "about.json"
    if about.exists():
        if rundir.read_json(about)["settings"] != settings.fixed:
            raise InputError(
                f"{folder} was begun with other settings ({rundir.read_json(about)['settings']}): "
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
        "images": {name: len(getattr(loaded, name).labels) for name in ("train", "search", "test")},
        "batch_size": job.training.batch_size,
        "footnote": loaded.record["footnote"],
        "caveat": closing.SUITE_CAVEAT[settings.suite],
        "dense": dense,
        **closing.machine(),
    }
    rundir.write_json(about, record)
    return stage


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
    recipe = dataclasses.replace(problem.recipe, epochs=settings.epochs, learning_rate=rate)
    each = training.steps_an_epoch(recipe, len(stage.data.train.labels))
    inside = []  # seconds of each training

    @contextmanager
    def clock():
        began = time.perf_counter()
        yield
        inside.append(time.perf_counter() - began)

    with (
        compiles.counting() as compiled,
        terminal.stage(f"{name} {fraction:g} {seed}", settings.epochs * each) as advance,
    ):

        def step() -> None:
            steps.append(1)
            advance()

        problem = dataclasses.replace(
            problem,
            recipe=recipe,
            report=lambda epoch: epochs.append(epoch.loss),
            clock=clock,
            progress=step,
        )
        started = time.perf_counter()
        found = METHODS[name](jax.random.fold_in(jax.random.key(seed), 17), problem)
        jax.block_until_ready(found)
        seconds = time.perf_counter() - started
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
    cost = closing.costs(architecture, variables, chosen, stage.data.search, jax.random.key(0))
    params = dict(variables["params"])
    for layer in kernel_shapes(architecture):
        if (weights := chosen.get(masks.kernel(layer))) is not None:
            params[layer] = {**params[layer], "kernel": params[layer]["kernel"] * weights}
    network = {**variables, "params": params}
    filters = {
        name: jnp.asarray(chosen.get(name, one)) for name, one in masks.ones(architecture).items()
    }
    classifier = Classifier(architecture, stage.job.surrogate)
    available = views(classifier, (network, filters))
    entries = entries_of(settings.suite, stage.job.attack.eps, available)
    used = {entry.through for entry in entries}
    outcome: Outcome = attack_all(
        classifier,
        (network, filters),
        stage.data.test,
        entries,
        {name: view for name, view in available.items() if name in used},
        jax.random.key(4000),
        eps=stage.job.attack.eps,
        batch_size=128,
    )
    return {
        "accuracy": outcome.accuracy,
        "robust_accuracy": outcome.robust_accuracy,
        "pgd_accuracy": outcome.reference,
        **cost,
    }


def report(folder: Path) -> dict:
    """Writes methods.json of the cells in a directory."""
    if not (folder / "about.json").exists():
        raise InputError(f"{folder} holds no comparison: run one first.")
    cells = [json.loads(path.read_text()) for path in sorted((folder / "cells").glob("*.json"))]
    about = rundir.read_json(folder / "about.json")
    record = about | {"cells": cells}
    rundir.write_json(folder / "methods.json", record)
    return record


if __name__ == "__main__":
    sys.exit(main())
