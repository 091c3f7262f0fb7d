"""Stages of the main job: dense training, measurements and logs."""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.coevolution import subproblem
from ccsrp_jax.data import augmentation, provenance
from ccsrp_jax.data.batching import balanced_batch_size
from ccsrp_jax.data.datasets import load, log_warning
from ccsrp_jax.data.splits import Dataset, Split
from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.masks import MaskTree
from ccsrp_jax.pipeline.checkpoints import load_training_state, save_training_state
from ccsrp_jax.pipeline.config import Config, settings
from ccsrp_jax.pipeline.run_dir import ARCHIVE, METRICS, check_in_place
from ccsrp_jax.pipeline.tensorboard import TensorBoardWriter
from ccsrp_jax.pruning import Problem, Target
from ccsrp_jax.robustness.accuracy import correct
from ccsrp_jax.training import throughput, trainer
from ccsrp_jax.training.batches import steps_per_epoch
from ccsrp_jax.training.recipe import Recipe
from ccsrp_jax.utils import compilation, io
from ccsrp_jax.utils.console import Terminal, duration
from ccsrp_jax.utils.profiling import StepProfile


class State(NamedTuple):
    """The pruned network, as it is checkpointed after every round."""

    variables: dict
    masks: MaskTree


class Run(NamedTuple):
    """What stays the same through a run."""

    config: Config
    data: Dataset
    classifier: Classifier
    trained: dict | None  # variables of a network that need not be trained
    key: Array  # each stage folds in its own number, so that a resumed run draws the same
    folder: Path
    terminal: Terminal
    mesh: Mesh | None
    tensorboard: TensorBoardWriter | None
    compiled: compilation.CompilationLog  # so far, in this process
    provenance: dict | None  # what its networks are trained on; None where that is not known
    on_metrics: Callable[[dict], object]  # gets every row of metrics.jsonl

    def log(self, row: dict) -> None:
        """Appends a row to metrics.jsonl, and its numbers to TensorBoard's.

        Raises:
          InputError: the run's directory was deleted or moved.
        """
        check_in_place(self.folder)
        io.append_row(self.folder / METRICS, row)
        if self.tensorboard:
            self.tensorboard.add(row)
        self.on_metrics(dict(row))


def train_dense(job: Run, state: State, started: float) -> tuple[State, float]:
    """Trains the dense network, from the last checkpoint of its training if there is one.

    Also returns when the run would have started, had it not been interrupted.
    """
    recipe, every = job.config.recipe, job.config.training.checkpoint_epochs
    fresh = trainer.start_state(recipe, state.variables)
    saved = load_training_state(job.folder, fresh, settings(job.config))
    done, start, seconds = saved or (0, None, 0.0)
    started -= seconds
    truncate_logs(job, [], done=-1, epochs=done)
    if start:
        job.terminal.line(f"resumed training after epoch {done}")

    profile = StepProfile(job.folder / "profile", job.config.profile)
    unsaved: list[tuple[int, trainer.TrainState, float]] = []  # of the last epoch

    def save(done: int, state: trainer.TrainState, elapsed: float) -> None:
        io.sync(job.folder / METRICS)
        save_training_state(job.folder, done, state, elapsed, settings(job.config))

    def checkpoint(done: int, state: trainer.TrainState) -> None:
        elapsed = time.perf_counter() - started
        unsaved.clear()
        if every and (done % every == 0 or done == recipe.epochs):
            save(done, state, elapsed)
        elif every:  # copied, since the next step reuses its memory
            unsaved.append((done, jax.tree.map(np.array, jax.device_get(state)), elapsed))

    with (
        _saving_when_interrupted(lambda: [save(*each) for each in unsaved]),
        training_stage(job, recipe, "training", {"stage": "train"}) as (on_epoch, on_step),
        closing(profile),
    ):

        def after_step() -> None:
            profile.step()
            on_step()

        variables = trainer.train(
            jax.random.fold_in(job.key, 1),
            job.classifier,
            state.variables,
            state.masks,
            job.data.train,
            recipe,
            augmentation=augmentation_of(job.config, job.data),
            on_epoch=on_epoch,
            on_step=after_step,
            start=start,
            first_epoch=done,
            on_checkpoint=checkpoint,
            mesh=job.mesh,
        )
    return state._replace(variables=variables), started


@contextmanager
def _saving_when_interrupted(save: Callable[[], object]) -> Iterator[None]:
    """In this context an interruption, which comes at a step, first saves what is not yet saved."""
    try:
        yield
    except KeyboardInterrupt:
        save()
        raise


@contextmanager
def training_stage(
    job: Run, recipe: Recipe, title: str, tags: dict
) -> Iterator[tuple[Callable[[trainer.Epoch], None], Callable[[], None]]]:
    """A progress bar for a training, and callbacks after its epochs, to log them, and its steps.

    Without a terminal, a line is printed after every epoch.

    Args:
      tags: what all rows of the log have in common.
    """
    began, architecture = time.perf_counter(), job.classifier.architecture
    steps = steps_per_epoch(recipe, len(job.data.train.labels))
    peak = throughput.peak_macs(recipe.precision, job.mesh)
    done, warned = 0, False
    with job.terminal.stage(title, recipe.epochs * steps) as advance:

        def on_epoch(epoch: trainer.Epoch) -> None:
            nonlocal done, warned
            done += 1
            advance(0, note=epoch_note(epoch))
            each = (time.perf_counter() - began) / done
            job.terminal.progress(epoch_line(title, epoch, epoch.epoch + 1, recipe.epochs, each))
            macs = throughput.training_macs(architecture, recipe, epoch.epoch)
            share = {"share_of_peak": macs * epoch.images_per_second / peak}
            job.log(tags | epoch.as_row() | share | {"seconds": time.perf_counter() - began})
            if epoch.collapsed and not warned:
                warned = True
                job.terminal.line(overfitting_line(epoch))

        yield on_epoch, advance


def epoch_note(epoch: trainer.Epoch) -> str:
    """What a progress bar says of an epoch."""
    return f"loss {epoch.loss:.3f}  accuracy {epoch.accuracy:.3f}"


def overfitting_line(epoch: trainer.Epoch) -> str:
    """The warning of catastrophic overfitting."""
    return (
        f"warning: catastrophic overfitting in epoch {epoch.epoch + 1}, as accuracy is "
        f"{epoch.one_step_accuracy:.2f} under the one-step attack of training and "
        f"{epoch.pgd_accuracy:.2f} under PGD: use training.attack n-fgsm, or pgd with more steps."
    )


def epoch_line(title: str, epoch: trainer.Epoch, number: int, epochs: int, seconds: float) -> str:
    """What is printed of an epoch where there is no progress bar.

    Args:
      title: of the training.
      epoch: its record.
      number, epochs: which one of how many it is.
      seconds: that an epoch takes.
    """
    left = f", {duration((epochs - number) * seconds)} left" if number < epochs else ""
    return (
        f"{title}: epoch {number} of {epochs}, {epoch_note(epoch)}, "
        f"{epoch.images_per_second:.0f} images a second{left}"
    )


def check_memory(job: Run, state: State) -> None:
    """Refuses a batch or chunk too large for the search before the network is trained.

    Compiles the scoring of the first group, which takes most memory; the search reuses that.

    Raises:
      InputError: with the largest size that fits.
    """
    config, search, architecture = job.config, job.data.search, job.classifier.architecture
    groups = config.search.prunable(architecture, state.masks)
    if not (config.rounds and groups):
        return
    size = balanced_batch_size(len(search.labels), config.batch_size)
    head = Split(search.images[:size], search.labels[:size])
    subproblem.make_task(
        job.classifier,
        state.variables,
        state.masks,
        groups[0],
        head,
        head,
        batch_size=config.batch_size,
        population=config.search.population,
        member_chunk=config.member_chunk,
        mesh=job.mesh,
        key=job.key,
    )


def accuracies(job: Run, state: State, attack: PGD, key: Array, **options) -> tuple[float, float]:
    """Accuracy on the search images: clean, and on those that stay correct under an attack.

    Args:
      options: more keyword arguments of `robustness.correct` under the attack.
    """
    judged, size = (job.classifier, tuple(state), job.data.search), job.config.batch_size
    clean = correct(*judged, key=key, batch_size=size)
    attacked = correct(*judged, attack=attack, key=key, batch_size=size, **options)
    return float(clean.mean()), float((clean & attacked).mean())


def data_of(config: Config, warn: Callable[[str], None] = log_warning) -> Dataset:
    """Loads the data set of a run's settings; `warn` as in `load`."""
    return load(
        config.dataset,
        data_dir=config.data_dir,
        seed=config.seed,
        search_fraction=config.search_fraction,
        train_images=config.train_images,
        search_images=config.search_images,
        test_images=config.test_images,
        time_steps=config.time_steps,
        warn=warn,
    )


def provenance_of_run(config: Config, data: Dataset) -> dict:
    """What the dense network of a run is trained on, for its file; see `data.provenance`."""
    recipes = {"dense": config.recipe, "finetune": config.finetune_recipe}
    return provenance.describe(
        config.dataset,
        data.record,
        recipe={name: dataclasses.asdict(recipe) for name, recipe in recipes.items()},
        trainings=[dataclasses.asdict(config.recipe)],
        train_images=config.train_images,
        search_images=config.search_images,
        test_images=config.test_images,
    )


def problem_of(
    config: Config, data: Dataset, variables: dict, architecture: Architecture, target: Target
) -> Problem:
    """What a pruning method is given, from the settings of a run; its recipe has the epochs of
    all rounds."""
    return Problem(
        Classifier(architecture, config.surrogate),
        variables,
        data.train,
        data.search,
        target,
        dataclasses.replace(
            config.finetune_recipe, epochs=config.rounds * config.training.finetune_epochs
        ),
        config.search_attack,
        augmentation_of(config, data),
        config.batch_size,
    )


def augmentation_of(config: Config, data: Dataset) -> augmentation.Augmentation:
    """The augmentation of the settings, or with `auto` that of the data set."""
    chosen = config.training.augmentation
    return data.augmentation if chosen == "auto" else chosen


def truncate_logs(job: Run, archive: list[dict], done: int, epochs: int = 0) -> None:
    """Removes from the logs what came after the last checkpoint, of a round or of training.

    Args:
      archive: rows of the archive up to it.
      done: the last round to keep; -1 for none, not even the dense network's training.
      epochs: of that training to keep.
    """
    path = job.folder / METRICS
    rows, bad = io.read_rows(path)
    bad += [json.dumps(row).encode() for row in rows if not _is_metrics_row(row)]
    if bad:
        aside = io.keep_aside(path, bad)
        job.terminal.line(f"{path}: {len(bad)} damaged lines, which are now in {aside.name}")
    kept = [
        row
        for row in rows
        if _is_metrics_row(row)
        and (row.get("round", 0) <= done or (row["stage"] == "train" and row["epoch"] < epochs))
    ]
    io.write_rows(path, kept)
    io.write_rows(job.folder / ARCHIVE, archive)


def _is_metrics_row(row: dict) -> bool:
    numbers = [row.get("round", 0), row.get("epoch", None if row.get("stage") == "train" else 0)]
    return isinstance(row.get("stage"), str) and all(type(each) is int for each in numbers)
