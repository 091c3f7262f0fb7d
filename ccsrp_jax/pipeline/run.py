"""The main job: from a data set to a compact, robust spiking network and a report."""

import time
from datetime import datetime
from pathlib import Path

import jax

from ccsrp_jax.coevolution import strategies
from ccsrp_jax.data.splits import Dataset, Split
from ccsrp_jax.networks import cost, masks, serialization, zoo
from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.pipeline import final_evaluation, run_dir
from ccsrp_jax.pipeline.config import LATEST, OWN, Config, settings
from ccsrp_jax.pipeline.stages import (
    Run,
    State,
    archive_row,
    check_memory,
    data_of,
    forget_unfinished,
    network_file,
    prune_by_method,
    prune_round,
    train_dense,
)
from ccsrp_jax.pipeline.tensorboard import Board
from ccsrp_jax.reporting import run_report
from ccsrp_jax.utils import compilation, devices, io
from ccsrp_jax.utils.console import Terminal
from ccsrp_jax.utils.errors import InputError


def run(config: Config, terminal: Terminal | None = None) -> dict:
    """Runs or resumes the job and returns its summary.

    Raises:
      InputError: settings, data or the run's directory cannot be used.
    """
    started = time.perf_counter()
    terminal = terminal or Terminal()
    folder = _folder(config)
    run_dir.check(folder, settings(config), resume=config.resume)
    strategies.strategy(config.search.strategy, config.search.population, 8)  # refuses it early
    data = data_of(config)
    mesh = devices.mesh(config.devices)
    if data.encoding != "direct" and config.encoding != "direct":
        raise InputError(
            f"{data.name} comes as {data.encoding}, one a step, and takes no {config.encoding} "
            "encoding: leave out --encoding."
        )
    trained = None
    if config.dense:
        architecture, trained = _begin_with(Path(config.dense), data)
    else:
        architecture = _build(config, data)
    board = Board(folder) if config.tensorboard else None
    run_dir.prepare(folder, settings(config), data.record)
    if config.run_dir is None:
        run_dir.point_latest(folder)
    classifier = Classifier(architecture, config.surrogate)
    with compilation.count_compilations() as compiled:
        key = jax.random.key(config.seed)
        job = Run(config, data, classifier, trained, key, folder, terminal, mesh, board, compiled)
        return _carry_out(job, started)


def _build(config: Config, data: Dataset) -> Architecture:
    norm = {"norm": config.norm} if config.norm else {}
    return zoo.build(
        config.model,
        data.train.images.shape[1:],
        data.classes,
        width=config.width,
        time_steps=config.time_steps,
        neuron=config.neuron,
        mean=data.mean,
        std=data.std,
        encoding=config.encoding if data.encoding == "direct" else data.encoding,
        noise=config.noise,
        **norm,
    )


def _begin_with(path: Path, data: Dataset) -> tuple[Architecture, dict]:
    """A trained network that fits the data."""
    architecture, variables = serialization.load(path)
    is_for = architecture.input_shape, architecture.classes, architecture.encoding == "frames"
    has = data.train.images.shape[1:], data.classes, data.encoding == "frames"
    if is_for != has:
        raise InputError(
            f"{path} is for images of {is_for[0]} and {is_for[1]} classes "
            f"({architecture.encoding}), and {data.name} has {has[0]} and {has[1]} "
            f"({data.encoding}): give a network for this data."
        )
    return architecture, variables


def _carry_out(job: Run, started: float) -> dict:
    """Trains or resumes, prunes round by round, and measures what was chosen."""
    config, data, folder, terminal = job.config, job.data, job.folder, job.terminal
    architecture = job.classifier.architecture
    sizes = ", ".join(f"{len(split.labels)} {name}" for name, split in _splits(data))
    terminal.line(
        f"{data.name}: {sizes} images; {config.model} network, T = {architecture.time_steps}, "
        f"{sum(cost.macs(architecture).values()):,} MACs; {folder}"
    )

    variables = job.trained or zoo.init(jax.random.fold_in(job.key, 0), architecture)
    fresh = State(variables, masks.ones(architecture))
    checkpoints = run_dir.Checkpoints(folder)
    restored = checkpoints.latest(fresh)
    if restored is None:
        check_memory(job, fresh)
        if job.trained:
            forget_unfinished(job, [], done=-1)
            state = fresh
        else:
            state, started = train_dense(job, fresh, started)
        archive = [archive_row(job, state, 0, {})]
        save(job, checkpoints, 0, state, archive, started)
        run_dir.forget_epoch(folder)
        done = 0
    else:
        done, state, record = restored
        state, archive = State(*state), record["archive"]
        started -= record["seconds"]
        forget_unfinished(job, archive, done)
        terminal.line(f"resumed after round {done}" if done else "resumed after training")

    if config.method != OWN and done == 0:
        state = prune_by_method(job, state)
        archive.append(archive_row(job, state, 1, {}))
        save(job, checkpoints, 1, state, archive, started)
    dense_macs = archive[0]["macs"]
    for number in range(done + 1, config.rounds + 1 if config.method == OWN else 0):
        small_enough = archive[-1]["macs"] <= config.target_macs * dense_macs
        if small_enough or not config.search.prunable(architecture, state.masks):
            break
        state, estimate = prune_round(job, state, number)
        archive.append(archive_row(job, state, number, estimate))
        save(job, checkpoints, number, state, archive, started)

    chosen = choose(archive, config.tolerance) if config.method == OWN else 1
    io.write_rows(
        folder / "archive.jsonl", [row | {"chosen": row["round"] == chosen} for row in archive]
    )
    serialization.save(
        folder / "pruned.safetensors", *serialization.load(network_file(job, chosen))
    )
    networks = {"dense": network_file(job, 0), "pruned": network_file(job, chosen)}
    key = jax.random.fold_in(job.key, 4000)
    measured = final_evaluation.measure(config, data, networks, key, folder, terminal)
    summary = {
        "dataset": data.name,
        "model": config.model,
        "method": config.method,
        "time_steps": config.time_steps,
        "seed": config.seed,
        "seconds": time.perf_counter() - started,
        "compile_seconds": job.compiled.seconds,
        "chosen_round": chosen,
        "run_dir": str(folder),
        **measured,
    }
    io.write_json(folder / "summary.json", summary)
    page = run_report.write(folder)
    final_evaluation.show(terminal, summary, page)
    return summary


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
    checkpoints: run_dir.Checkpoints,
    number: int,
    state: State,
    archive: list,
    started: float,
) -> None:
    """Makes a stage's result durable; the archive file is written from the checkpoint's."""
    record = {"archive": archive, "seconds": time.perf_counter() - started}
    checkpoints.save(number, state, record)
    io.write_rows(job.folder / "archive.jsonl", archive)


def _folder(config: Config) -> Path:
    if config.run_dir:
        return Path(config.run_dir)
    if config.resume:
        return Path(LATEST).resolve()
    name = Path(config.dataset).stem
    return Path("runs") / f"{name}-{config.model}-{datetime.now():%Y%m%d-%H%M%S}"


def _splits(data: Dataset) -> list[tuple[str, Split]]:
    return [("training", data.train), ("search", data.search), ("test", data.test)]
