"""The stages of the main job: training, a round of pruning, a row of the archive."""

import dataclasses
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.coevolution import subproblem
from ccsrp_jax.coevolution.search import search_round
from ccsrp_jax.data import augmentation
from ccsrp_jax.data.batching import balanced_batch_size
from ccsrp_jax.data.datasets import load
from ccsrp_jax.data.splits import Dataset, Split
from ccsrp_jax.networks import compaction, cost, masks, serialization
from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.masks import MaskTree
from ccsrp_jax.pipeline import run_dir
from ccsrp_jax.pipeline.config import Config
from ccsrp_jax.pipeline.tensorboard import Board
from ccsrp_jax.pruning import METHODS
from ccsrp_jax.pruning.budget import Target
from ccsrp_jax.pruning.budget import cost_of as cost_of_masks
from ccsrp_jax.pruning.problem import Problem, timed
from ccsrp_jax.pruning.splicing import priced
from ccsrp_jax.robustness.accuracy import correct
from ccsrp_jax.training import throughput, trainer
from ccsrp_jax.training.batches import steps_per_epoch
from ccsrp_jax.utils import compilation, io
from ccsrp_jax.utils.console import Terminal


class State(NamedTuple):
    """All that a round needs of the rounds before it; one pytree, checkpointed."""

    variables: dict
    masks: MaskTree


class Run(NamedTuple):
    """What stays the same through a run."""

    config: Config
    data: Dataset
    classifier: Classifier
    trained: dict | None  # variables of a network that need not be trained
    key: Array  # every stage folds its own number in, so a resumed run draws the same
    folder: Path
    terminal: Terminal
    mesh: Mesh | None
    board: Board | None
    compiled: compilation.CompilationLog  # so far, in this process


def train_dense(job: Run, state: State, started: float) -> tuple[State, float]:
    """Trains the dense network, from the last checkpoint of its training if there is one.

    Also returns when the run would have started, had it not been interrupted.
    """
    recipe, every = job.config.recipe, job.config.training.checkpoint_epochs
    fresh = trainer.start_state(recipe, state.variables)
    done, start, seconds = run_dir.load_epoch(job.folder, fresh) or (0, None, 0.0)
    started -= seconds
    forget_unfinished(job, [], done=-1, epochs=done)
    if start:
        job.terminal.line(f"resumed training after epoch {done}")

    def keep(done: int, state: trainer.TrainState) -> None:
        if every and done % every == 0:
            run_dir.save_epoch(job.folder, done, state, time.perf_counter() - started)

    variables = _train(
        job,
        state,
        recipe,
        1,
        "training",
        {"stage": "train"},
        start=start,
        first_epoch=done,
        keep=keep,
    )
    return state._replace(variables=variables), started


def check_memory(job: Run, state: State) -> None:
    """Refuses a batch or chunk that the search could not hold, before hours of training.

    It compiles the scoring of the first group, which computes most; the search uses that.
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


def prune_round(job: Run, state: State, number: int) -> tuple[State, dict]:
    """One round of search, splice and fine-tuning; also how far the search's estimate was off.

    That is, before fine-tuning, the spliced network's accuracy on the shared adversarial set
    against that under the same attack, white-box, on the same search images.
    """
    config, started, compiling = job.config, time.perf_counter(), job.compiled.seconds
    architecture = job.classifier.architecture
    generations = len(config.search.prunable(architecture, state.masks)) * config.search.generations
    with job.terminal.stage(f"round {number}: search", generations) as advance:

        def tell(group: str, generation: int, best: float, evaluations: int) -> None:
            advance(note=f"{group} {best:.4f}")
            row = {"group": group, "generation": generation, "best_fitness": best}
            _log(job, {"stage": "search", "round": number} | row | {"evaluations": evaluations})

        found = search_round(
            jax.random.fold_in(job.key, 1000 + number),
            job.classifier,
            state.variables,
            state.masks,
            job.data.search,
            config.search_attack,
            config.search,
            batch_size=config.batch_size,
            member_chunk=config.member_chunk,
            mesh=job.mesh,
            report=tell,
        )
    chosen = found.masks
    if config.search.splice == "price":  # every round takes an equal share of what is left
        cost_of = cost_of_masks(architecture, "macs")
        limit = config.target_macs ** (number / config.rounds) * cost_of(masks.ones(architecture))
        key = jax.random.fold_in(job.key, 8000 + number)
        chosen = priced(key, found.found, state.masks, config.search, cost_of, limit)
    state = state._replace(masks=chosen)
    dead = {name: result.not_finite for name, result in found.found.items() if result.not_finite}
    if dead:
        told = ", ".join(f"{count} of {name}" for name, count in dead.items())
        job.terminal.line(f"round {number}: masks whose logits are not finite: {told}")
    key = jax.random.fold_in(job.key, 7000 + number)
    shared = [
        correct(job.classifier, tuple(state), split, key=key, batch_size=config.batch_size)
        for split in found.distinct_sets()
    ]
    key = jax.random.fold_in(job.key, 5000 + number)
    _, white_box = _accuracies(job, state, config.search_attack, key)
    estimate = {"white_box_accuracy": white_box}
    if shared:  # candidates were not attacked one by one
        estimate["shared_accuracy"] = float(np.mean(np.concatenate(shared)))
        estimate["shared_gap"] = estimate["shared_accuracy"] - white_box
    seconds = {
        "search_seconds": time.perf_counter() - started,
        "search_compile_seconds": job.compiled.seconds - compiling,
    }
    variables = _train(
        job,
        state,
        config.finetune_recipe,
        2000 + number,
        f"round {number}: fine-tuning",
        {"stage": "finetune", "round": number},
    )
    evaluations = sum(result.evaluations for result in found.found.values())
    seconds["seconds"] = time.perf_counter() - started
    counted = {
        "evaluations": evaluations,
        "scored_images": sum(found.images.values()),
        "not_finite": sum(dead.values()),
    }
    _log(job, {"stage": "round", "round": number} | counted | seconds)
    return state._replace(variables=variables), estimate


def prune_by_method(job: Run, state: State) -> State:
    """Prunes with one of `METHODS`, in one go, with all epochs that the rounds would have."""
    config, compiling = job.config, job.compiled.seconds
    architecture = job.classifier.architecture
    target = Target("macs", config.target_macs)
    problem = problem_of(config, job.data, state.variables, architecture, target)
    steps = steps_per_epoch(problem.recipe, len(job.data.train.labels))
    started, inside, epochs, heard = time.perf_counter(), [], [], []

    with job.terminal.stage(config.method, problem.recipe.epochs * steps) as advance:

        def tell(epoch: trainer.Epoch) -> None:
            advance(0, note=f"loss {epoch.loss:.3f}  accuracy {epoch.accuracy:.3f}")
            row = epoch._asdict() | {"epoch": len(epochs), "seconds": sum(inside)}
            epochs.append(row)
            _log(job, {"stage": "finetune", "round": 1} | row)

        def tried(loss: float, kept: dict[str, int]) -> None:
            advance(0, note=f"tried {' '.join(map(str, kept.values()))}: {loss:.3f}")
            heard.append(loss)
            row = {"generation": len(heard), "loss": loss, "kept": kept}
            _log(job, {"stage": "search", "round": 1} | row)

        clock = partial(timed, inside)
        problem = dataclasses.replace(
            problem, report=tell, progress=advance, tried=tried, clock=clock
        )
        found = METHODS[config.method](jax.random.fold_in(job.key, 1001), problem)
    seconds = time.perf_counter() - started
    row = {"stage": "round", "round": 1, "method": config.method, **found.search._asdict()}
    compiled = job.compiled.seconds - compiling
    times = {"search_seconds": seconds - sum(inside), "seconds": seconds}
    _log(job, row | times | {"compile_seconds": compiled})
    return State(masks.fold(found.variables, found.masks), masks.filters(architecture, found.masks))


def archive_row(job: Run, state: State, number: int, estimate: dict) -> dict:
    """A trade-off point, measured on the search images; its network is saved beside it."""
    architecture, search = job.classifier.architecture, job.data.search
    key = jax.random.fold_in(job.key, 3000 + number)
    name = f"round {number}" if number else "dense"
    with job.terminal.stage(f"{name}: attack", len(search.labels)) as advance:
        accuracy, robust = _accuracies(job, state, job.config.test_attack, key, progress=advance)
    row = {
        "round": number,
        "kept": masks.widths(architecture, state.masks),
        "filters": masks.widths(architecture, None),
        "accuracy": accuracy,
        "robust_accuracy": robust,
        **cost.costs(architecture, *state, search, jax.random.fold_in(job.key, 6000 + number)),
        **dict.fromkeys(("shared_accuracy", "white_box_accuracy", "shared_gap")),
        **estimate,
    }
    network = compaction.compact(architecture, state.variables, state.masks)
    path = network_file(job, number)
    path.parent.mkdir(exist_ok=True)
    serialization.save(path, *network)
    kept = " ".join(f"{n}/{row['filters'][group]}" for group, n in row["kept"].items())
    job.terminal.line(
        f"{name:<9} search accuracy {row['accuracy']:.3f}  "
        f"PGD-{job.config.attack.test_steps} {row['robust_accuracy']:.3f}  "
        f"MACs {row['macs']:,}  filters {kept}"
    )
    return row


def _accuracies(job: Run, state: State, attack: PGD, key: Array, **options) -> tuple[float, float]:
    """On the search images: clean accuracy, and the share that is right after an attack too."""
    judged, size = (job.classifier, tuple(state), job.data.search), job.config.batch_size
    clean = correct(*judged, key=key, batch_size=size)
    attacked = correct(*judged, attack=attack, key=key, batch_size=size, **options)
    return float(clean.mean()), float((clean & attacked).mean())


def _train(
    job: Run,
    state: State,
    recipe: trainer.Recipe,
    fold: int,
    title: str,
    tags: dict,
    **options,
) -> dict:
    """`training.train`, with its progress shown and its epochs logged."""
    began = time.perf_counter()
    steps = steps_per_epoch(recipe, len(job.data.train.labels))
    peak = throughput.peak_macs(recipe.precision, job.mesh)
    with job.terminal.stage(title, recipe.epochs * steps) as advance:

        def tell(epoch: trainer.Epoch) -> None:
            advance(0, note=f"loss {epoch.loss:.3f}  accuracy {epoch.accuracy:.3f}")
            architecture = job.classifier.architecture
            macs = throughput.training_macs(architecture, recipe, epoch.epoch)
            share = {"share_of_peak": macs * epoch.images_per_second / peak}
            _log(job, tags | epoch._asdict() | share | {"seconds": time.perf_counter() - began})

        return trainer.train(
            jax.random.fold_in(job.key, fold),
            job.classifier,
            state.variables,
            state.masks,
            job.data.train,
            recipe,
            augmentation=augmentation_of(job.config, job.data),
            report=tell,
            progress=advance,
            mesh=job.mesh,
            **options,
        )


def data_of(config: Config) -> Dataset:
    """The data that a run's settings ask for."""
    return load(
        config.dataset,
        data_dir=config.data_dir,
        seed=config.seed,
        search_fraction=config.search_fraction,
        train_images=config.train_images,
        search_images=config.search_images,
        test_images=config.test_images,
        time_steps=config.time_steps,
    )


def problem_of(
    config: Config, data: Dataset, variables: dict, architecture: Architecture, target: Target
) -> Problem:
    """What a method other than the rounds of search is given, from the settings of a run.

    All of the run's fine-tuning is one budget.
    """
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
    """That of the settings, or what the data set calls for."""
    chosen = config.training.augmentation
    return data.augmentation if chosen == "auto" else chosen


def network_file(job: Run, number: int) -> Path:
    return job.folder / "networks" / f"round{number:02d}.safetensors"


def _log(job: Run, row: dict) -> None:
    io.append_row(job.folder / "metrics.jsonl", row)
    if job.board:
        job.board.add(row)


def forget_unfinished(job: Run, archive: list[dict], done: int, epochs: int = 0) -> None:
    """Brings the logs back to the last checkpoint: to a round, or to an epoch of training."""
    rows = io.read_rows(job.folder / "metrics.jsonl")
    kept = [
        row
        for row in rows
        if row.get("round", 0) <= done or (row["stage"] == "train" and row["epoch"] < epochs)
    ]
    io.write_rows(job.folder / "metrics.jsonl", kept)
    io.write_rows(job.folder / "archive.jsonl", archive)
