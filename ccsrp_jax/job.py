"""The main job: from a data set to a compact, robust spiking network and a report."""

import time
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from ccsrp_jax import (
    closing,
    compaction,
    compiles,
    cost,
    devices,
    evolution,
    fitness,
    masks,
    models,
    report,
    rundir,
    training,
)
from ccsrp_jax.attacks import PGD
from ccsrp_jax.coevolution import search_round
from ccsrp_jax.config import LATEST, Config, settings
from ccsrp_jax.data import Dataset, Split, load
from ccsrp_jax.evaluation import correct, even
from ccsrp_jax.masks import MaskTree
from ccsrp_jax.models import Classifier
from ccsrp_jax.terminal import Terminal


class State(NamedTuple):
    """All that a round needs of the rounds before it; one pytree, checkpointed."""

    variables: dict
    masks: MaskTree


class Run(NamedTuple):
    """What stays the same through a run."""

    config: Config
    data: Dataset
    classifier: Classifier
    key: Array  # every stage folds its own number in, so a resumed run draws the same
    folder: Path
    terminal: Terminal
    mesh: Mesh | None
    compiled: compiles.Compiles  # so far, in this process


def run(config: Config, terminal: Terminal | None = None) -> dict:
    """Runs or resumes the job and returns its summary.

    Raises:
      InputError: settings, data or the run's directory cannot be used.
    """
    started = time.perf_counter()
    terminal = terminal or Terminal()
    folder = _folder(config)
    rundir.check(folder, settings(config), resume=config.resume)
    evolution.strategy(config.search.strategy, config.search.population, 8)  # refuses it early
    data = load(
        config.dataset,
        data_dir=config.data_dir,
        seed=config.seed,
        search_fraction=config.search_fraction,
        train_images=config.train_images,
        search_images=config.search_images,
        test_images=config.test_images,
    )
    mesh = devices.mesh(config.devices)
    architecture = models.build(
        config.model,
        data.train.images.shape[1:],
        data.classes,
        time_steps=config.time_steps,
        neuron=config.neuron,
        mean=data.mean,
        std=data.std,
    )
    rundir.prepare(folder, settings(config), data.record)
    if config.run_dir is None:
        rundir.point_latest(folder)
    classifier = Classifier(architecture, config.surrogate)
    with compiles.counting() as compiled:
        key = jax.random.key(config.seed)
        job = Run(config, data, classifier, key, folder, terminal, mesh, compiled)
        return _carry_out(job, started)


def _carry_out(job: Run, started: float) -> dict:
    """Trains or resumes, prunes round by round, and measures what was chosen."""
    config, data, folder, terminal = job.config, job.data, job.folder, job.terminal
    architecture = job.classifier.architecture
    sizes = ", ".join(f"{len(split.labels)} {name}" for name, split in _splits(data))
    terminal.line(
        f"{data.name}: {sizes} images; {config.model} network, T = {architecture.time_steps}, "
        f"{sum(cost.macs(architecture).values()):,} MACs; {folder}"
    )

    fresh = State(
        models.init(jax.random.fold_in(job.key, 0), architecture), masks.ones(architecture)
    )
    checkpoints = rundir.Checkpoints(folder)
    restored = checkpoints.latest(fresh)
    if restored is None:
        _check_memory(job, fresh)
        _forget_unfinished(job, [], done=-1)
        state = train_dense(job, fresh)
        archive = [archive_row(job, state, 0, {})]
        save(job, checkpoints, 0, state, archive, started)
        done = 0
    else:
        done, state, record = restored
        state, archive = State(*state), record["archive"]
        started -= record["seconds"]
        _forget_unfinished(job, archive, done)
        terminal.line(f"resumed after round {done}" if done else "resumed after training")

    dense_macs = archive[0]["macs"]
    for number in range(done + 1, config.rounds + 1):
        small_enough = archive[-1]["macs"] <= config.target_macs * dense_macs
        if small_enough or not config.search.prunable(state.masks):
            break
        state, estimate = prune_round(job, state, number)
        archive.append(archive_row(job, state, number, estimate))
        save(job, checkpoints, number, state, archive, started)

    chosen = choose(archive, config.tolerance)
    rundir.write_rows(
        folder / "archive.jsonl", [row | {"chosen": row["round"] == chosen} for row in archive]
    )
    compaction.save(folder / "pruned.safetensors", *compaction.load(_network(job, chosen)))
    networks = {"dense": _network(job, 0), "pruned": _network(job, chosen)}
    key = jax.random.fold_in(job.key, 4000)
    measured = closing.measure(config, data, networks, key, folder, terminal)
    summary = {
        "dataset": data.name,
        "model": config.model,
        "time_steps": config.time_steps,
        "seed": config.seed,
        "seconds": time.perf_counter() - started,
        "compile_seconds": job.compiled.seconds,
        "chosen_round": chosen,
        "run_dir": str(folder),
        **measured,
    }
    rundir.write_json(folder / "summary.json", summary)
    page = report.write(folder)
    closing.show(terminal, summary, page)
    return summary


def train_dense(job: Run, state: State) -> State:
    """Trains the dense network."""
    variables = _train(job, state, job.config.recipe, 1, "training", {"stage": "train"})
    return state._replace(variables=variables)


def _check_memory(job: Run, state: State) -> None:
    """Refuses a batch or chunk that the search could not hold, before hours of training.

    It compiles the scoring of the first group, which computes most; the search uses that.
    """
    config, search = job.config, job.data.search
    groups = config.search.prunable(state.masks)
    if not (config.rounds and groups):
        return
    size = even(len(search.labels), config.batch_size)
    head = Split(search.images[:size], search.labels[:size])
    fitness.make_task(
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
    )


def prune_round(job: Run, state: State, number: int) -> tuple[State, dict]:
    """One round of search, splice and fine-tuning; also how far the search's estimate was off.

    That is, before fine-tuning, the spliced network's accuracy on the shared adversarial set
    against that under the same attack, white-box, on the same search images.
    """
    config, started, compiling = job.config, time.perf_counter(), job.compiled.seconds
    generations = len(config.search.prunable(state.masks)) * config.search.generations
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
    state = state._replace(masks=found.masks)
    dead = {name: result.not_finite for name, result in found.found.items() if result.not_finite}
    if dead:
        told = ", ".join(f"{count} of {name}" for name, count in dead.items())
        job.terminal.line(f"round {number}: masks whose logits are not finite: {told}")
    shared = [
        correct(job.classifier, tuple(state), split, batch_size=config.batch_size)
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
        **closing.costs(architecture, *state, search),
        **dict.fromkeys(("shared_accuracy", "white_box_accuracy", "shared_gap")),
        **estimate,
    }
    network = compaction.compact(architecture, state.variables, state.masks)
    path = _network(job, number)
    path.parent.mkdir(exist_ok=True)
    compaction.save(path, *network)
    kept = " ".join(f"{n}/{row['filters'][group]}" for group, n in row["kept"].items())
    job.terminal.line(
        f"{name:<9} search accuracy {row['accuracy']:.3f}  "
        f"PGD-{job.config.attack.test_steps} {row['robust_accuracy']:.3f}  "
        f"MACs {row['macs']:,}  filters {kept}"
    )
    return row


def choose(archive: list[dict], tolerance: float) -> int:
    """The round with the fewest MACs that stays within the tolerance of the dense network.

    Both accuracies are those on the search images; the dense network always qualifies.
    """
    dense = archive[0]
    good = [
        row
        for row in archive
        if row["accuracy"] >= dense["accuracy"] - tolerance
        and row["robust_accuracy"] >= dense["robust_accuracy"] - tolerance
    ]
    return min(good, key=lambda row: row["macs"])["round"]


def save(
    job: Run,
    checkpoints: rundir.Checkpoints,
    number: int,
    state: State,
    archive: list,
    started: float,
) -> None:
    """Makes a stage's result durable; the archive file is written from the checkpoint's."""
    record = {"archive": archive, "seconds": time.perf_counter() - started}
    checkpoints.save(number, state, record)
    rundir.write_rows(job.folder / "archive.jsonl", archive)


def _accuracies(job: Run, state: State, attack: PGD, key: Array, **options) -> tuple[float, float]:
    """On the search images: clean accuracy, and the share that is right after an attack too."""
    judged, size = (job.classifier, tuple(state), job.data.search), job.config.batch_size
    clean = correct(*judged, batch_size=size)
    attacked = correct(*judged, attack=attack, key=key, batch_size=size, **options)
    return float(clean.mean()), float((clean & attacked).mean())


def _train(job: Run, state: State, recipe: training.Recipe, fold: int, title: str, tags: dict):
    augmentation = job.config.training.augmentation
    if augmentation == "auto":
        augmentation = job.data.augmentation
    began = time.perf_counter()
    steps = training.steps_an_epoch(recipe, len(job.data.train.labels))
    with job.terminal.stage(title, recipe.epochs * steps) as advance:

        def tell(epoch: training.Epoch) -> None:
            advance(0, note=f"loss {epoch.loss:.3f}  accuracy {epoch.accuracy:.3f}")
            _log(job, tags | epoch._asdict() | {"seconds": time.perf_counter() - began})

        return training.train(
            jax.random.fold_in(job.key, fold),
            job.classifier,
            state.variables,
            state.masks,
            job.data.train,
            recipe,
            augmentation=augmentation,
            report=tell,
            progress=advance,
        )


def _folder(config: Config) -> Path:
    if config.run_dir:
        return Path(config.run_dir)
    if config.resume:
        return Path(LATEST).resolve()
    name = Path(config.dataset).stem
    return Path("runs") / f"{name}-{config.model}-{datetime.now():%Y%m%d-%H%M%S}"


def _splits(data: Dataset) -> list[tuple[str, Split]]:
    return [("training", data.train), ("search", data.search), ("test", data.test)]


def _network(job: Run, number: int) -> Path:
    return job.folder / "networks" / f"round{number:02d}.safetensors"


def _log(job: Run, row: dict) -> None:
    rundir.append_row(job.folder / "metrics.jsonl", row)


def _forget_unfinished(job: Run, archive: list[dict], done: int) -> None:
    """Brings the logs back to the last checkpoint."""
    rows = rundir.read_rows(job.folder / "metrics.jsonl")
    rundir.write_rows(
        job.folder / "metrics.jsonl", [row for row in rows if row.get("round", 0) <= done]
    )
    rundir.write_rows(job.folder / "archive.jsonl", archive)
