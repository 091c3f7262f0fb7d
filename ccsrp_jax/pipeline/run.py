"""The main job: from a data set to a compact, robust spiking network and a report."""

import dataclasses
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import jax

from ccsrp_jax.coevolution import strategies
from ccsrp_jax.data import provenance
from ccsrp_jax.data.paths import user_path
from ccsrp_jax.data.splits import Dataset
from ccsrp_jax.networks import cost, masks, serialization, zoo
from ccsrp_jax.networks.architecture import Architecture, kernel_shapes
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.pipeline import final_evaluation, run_dir
from ccsrp_jax.pipeline.archive import Archive, network_file, verify_networks
from ccsrp_jax.pipeline.checkpoint_settings import checkpoints_in
from ccsrp_jax.pipeline.checkpoints import Checkpoints, check_settings
from ccsrp_jax.pipeline.config import Config, settings
from ccsrp_jax.pipeline.parse_config import run_folder
from ccsrp_jax.pipeline.pruning_stage import check_target, prune
from ccsrp_jax.pipeline.sizes import check_sizes
from ccsrp_jax.pipeline.stages import (
    Run,
    State,
    check_memory,
    data_of,
    provenance_of_run,
    train_dense,
    truncate_logs,
)
from ccsrp_jax.pipeline.tensorboard import TensorBoardWriter, summary_writer
from ccsrp_jax.reporting import run_report
from ccsrp_jax.utils import compilation, devices, digests, io
from ccsrp_jax.utils.console import Terminal
from ccsrp_jax.utils.errors import InputError


def run(
    config: Config,
    terminal: Terminal | None = None,
    on_metrics: Callable[[dict], object] = lambda row: None,
) -> dict:
    """Runs or resumes the job and returns its summary.

    Args:
      config: its settings.
      terminal: for its output, by default standard output.
      on_metrics: called with every row that is appended to metrics.jsonl, for other trackers.

    Raises:
      InputError: settings, data or the run's directory cannot be used.
    """
    started = time.perf_counter()
    terminal = terminal or Terminal()
    folder = _folder(config)
    by_default = config.run_dir is None and not config.resume
    if not by_default:
        run_dir.check(folder, settings(config), resume=config.resume)
    strategies.make_strategy(
        config.search.strategy, config.search.population, 8
    )  # refuses it early
    warn = lambda text: terminal.line(f"warning: {text}")  # noqa: E731
    data = data_of(config, warn=warn)
    mesh = devices.mesh(config.devices)
    if data.encoding != "direct" and config.encoding != "direct":
        raise InputError(
            f"{data.name} comes as {data.encoding}, one a step, and takes no {config.encoding} "
            "encoding: leave out --encoding."
        )
    trained, origin = None, provenance_of_run(config, data)
    if config.dense:
        architecture, trained, origin = load_dense(config, data, terminal)
    else:
        architecture = _build(config, data)
    check_target(config, architecture, warn)
    check_sizes(config, data, architecture, mesh)
    if config.tensorboard:
        summary_writer()  # refuses it early
    classifier, key = Classifier(architecture, config.surrogate), jax.random.key(config.seed)
    with compilation.count_compilations() as compiled:
        job = Run(
            *(config, data, classifier, trained, key, folder, terminal, mesh, None),
            *(compiled, origin, on_metrics),
        )
        state = _dense_state(job)
        if not config.resume:
            check_memory(job, state)  # before anything is created
        with run_dir.opened(
            folder,
            settings(config),
            data.record,
            resume=config.resume,
            rename=by_default,
            inputs=_inputs(config, data),
            say=terminal.line,
        ) as folder:
            tensorboard = _tensorboard(config, folder) if config.tensorboard else None
            job = job._replace(folder=folder, tensorboard=tensorboard)
            if by_default and (why := run_dir.link_latest(folder)):
                link = folder.parent / "latest"
                terminal.line(f"{link} {why}: to resume this run, give --run-dir {folder}")
            return _execute(job, state, started)


def _tensorboard(config: Config, folder: Path) -> TensorBoardWriter:
    epochs, generations = config.training.finetune_epochs, config.search.generations
    return TensorBoardWriter(folder, {"finetune": epochs, "search": generations})


def _inputs(config: Config, data: Dataset) -> dict[str, str]:
    """Digests of what a run reads from outside its directory."""
    arrays = (part for split in (data.train, data.search, data.test) for part in split)
    inputs = {"data": digests.sha256_arrays(arrays)}
    if config.dense:
        inputs["dense"] = digests.sha256_file(user_path(config.dense))
    return inputs


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


def load_dense(
    config: Config, data: Dataset, terminal: Terminal
) -> tuple[Architecture, dict, dict | None]:
    """Loads a trained network and its provenance, and checks that it fits the data.

    Raises:
      InputError: it does not, was trained on other splits, or is no network.
    """
    path = user_path(str(config.dense))
    architecture, variables, origin = serialization.load_with_provenance(path)
    is_for = architecture.input_shape, architecture.classes, architecture.encoding == "frames"
    has = data.train.images.shape[1:], data.classes, data.encoding == "frames"
    if is_for != has:
        raise InputError(
            f"{path} is for images of {is_for[0]} and {is_for[1]} classes "
            f"({architecture.encoding}), and {data.name} has {has[0]} and {has[1]} "
            f"({data.encoding}): give a network for this data."
        )
    if origin is not None:
        provenance.check(str(path), origin, data.record, also_search=True)
    elif provenance.is_drawn(data.record):
        terminal.line(provenance.not_known(str(path), data.record))
    if origin is None:
        return architecture, variables, None
    trainings = origin.get("trainings")  # files of earlier versions do not have them
    return architecture, variables, {**provenance_of_run(config, data), "trainings": trainings}


def model_name(config: Config, architecture: Architecture) -> str:
    """The model of the settings, or a description of the network that a run began with."""
    if not config.dense:
        return config.model
    ranks = [len(shape) for shape in kernel_shapes(architecture).values()]
    dense = sum(rank == 2 for rank in ranks)
    layers = f"{len(ranks) - dense} convolutional and {dense} dense layers"
    return f"{Path(config.dense).name} ({layers})"


def _trainings(job: Run) -> dict:
    """Recipes of the trainings of the dense network, if they are known, and of fine-tuning."""
    origin = job.provenance or {}
    tuned = dataclasses.asdict(job.config.finetune_recipe)
    return {"dense": origin.get("trainings"), "finetune": tuned}


def _dense_state(job: Run) -> State:
    """The network to prune, or its initial variables if it is to be trained."""
    architecture = job.classifier.architecture
    variables = job.trained or zoo.init(jax.random.fold_in(job.key, 0), architecture)
    return State(variables, masks.ones(architecture))


def _execute(job: Run, state: State, started: float) -> dict:
    """Trains or resumes, prunes, and evaluates the dense and the chosen network.

    Args:
      job: what stays the same through the run.
      state: of `_dense_state`.
      started: when the process began.
    """
    config, folder = job.config, job.folder
    _print_setup(job)
    used = _devices(job)
    state, archive, done = _trained_or_resumed(job, state, started)
    prune(job, state, archive, done)
    chosen = archive.choose()
    networks = {"dense": network_file(job, 0), "pruned": network_file(job, chosen)}
    key = jax.random.fold_in(job.key, 4000)
    measured = final_evaluation.measure(config, job.data, networks, key, folder, job.terminal)
    summary = {
        "dataset": job.data.name,
        "model": model_name(config, job.classifier.architecture),
        "method": config.method,
        "time_steps": config.time_steps,
        "seed": config.seed,
        "seconds": time.perf_counter() - archive.started,
        "compile_seconds": job.compiled.seconds,
        "chosen_round": chosen,
        "run_dir": str(folder),
        "devices": used,
        "training": _trainings(job),
        **measured,
    }
    io.write_json(folder / "summary.json", summary)
    page = run_report.write(folder)
    final_evaluation.show(job.terminal, summary, page)
    return summary


def _devices(job: Run) -> list[str]:
    """All devices that the run has used; says so if they have changed."""
    now = devices.describe(job.mesh)
    before = run_dir.record_devices(job.folder, now)
    if before and before[-1] != now:
        job.terminal.line(
            f"resumed on {now}, after {before[-1]}: weights can differ from those of a run on the "
            "same devices, by more than rounding"
        )
    return before if before[-1:] == [now] else [*before, now]


def _print_setup(job: Run) -> None:
    data, architecture = job.data, job.classifier.architecture
    splits = {"training": data.train, "search": data.search, "test": data.test}
    name = model_name(job.config, architecture)
    sizes = ", ".join(f"{len(split.labels)} {name}" for name, split in splits.items())
    job.terminal.line(
        f"{data.name}: {sizes} images; {name} network, T = {architecture.time_steps}, "
        f"{sum(cost.macs(architecture).values()):,} MACs; {job.folder}"
    )


def _trained_or_resumed(job: Run, fresh: State, started: float) -> tuple[State, Archive, int]:
    """The state after the last checkpoint, or of the dense network, which is trained if need be.

    Also returns the archive so far, and the number of the round.
    """
    folder, config = job.folder, job.config
    checkpoints = Checkpoints(folder)
    restored = checkpoints.latest(fresh)
    if restored:
        done, state, record = restored
        about = checkpoints_in(folder / "checkpoints")[done]
        check_settings(about, record.get("settings"), settings(config))
        verify_networks(job, (row["round"] for row in record["archive"]))
        run_dir.delete_training_state(folder)
        metrics = folder / run_dir.METRICS
        if "metrics" in record and not io.has_mark(metrics, record["metrics"]):
            job.terminal.line(f"{metrics} is not as the run left it: the report shows what it says")
        truncate_logs(job, record["archive"], done)
        job.terminal.line(f"resumed after round {done}" if done else "resumed after training")
        archive = Archive(job, checkpoints, record["archive"], started - record["seconds"])
        return State(*state), archive, done
    if config.resume:
        check_memory(job, fresh)
    if job.trained:
        truncate_logs(job, [], done=-1)
        state = fresh
    else:
        state, started = train_dense(job, fresh, started)
    archive = Archive(job, checkpoints, [], started)
    archive.add(0, state)
    run_dir.delete_training_state(folder)
    return state, archive, 0


def _folder(config: Config) -> Path:
    if config.run_dir or config.resume:
        return run_folder(config.run_dir)
    name = Path(config.dataset).stem
    return Path("runs") / f"{name}-{config.model}-{datetime.now():%Y%m%d-%H%M%S}"
