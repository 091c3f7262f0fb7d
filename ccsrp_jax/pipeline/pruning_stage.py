"""The pruning stage of the main job: one of `pruning.METHODS`, with its progress logged."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import jax
import numpy as np
from jaxtyping import Array

from ccsrp_jax.coevolution.search import RoundResult
from ccsrp_jax.networks import masks
from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.pipeline.archive import Archive
from ccsrp_jax.pipeline.config import Config
from ccsrp_jax.pipeline.stages import (
    Run,
    State,
    accuracies,
    epoch_line,
    epoch_note,
    problem_of,
    training_stage,
)
from ccsrp_jax.pruning import METHODS, Callbacks, Target
from ccsrp_jax.pruning.methods.ccsrp import RoundKeys, RoundState
from ccsrp_jax.pruning.problem import timed
from ccsrp_jax.pruning.registry import check_reachable
from ccsrp_jax.robustness.accuracy import correct
from ccsrp_jax.training.batches import steps_per_epoch
from ccsrp_jax.training.trainer import Epoch
from ccsrp_jax.utils.console import duration

NO_TARGET = 1e-9  # share of the MACs that no network gets down to


def check_target(config: Config, architecture: Architecture, warn: Callable[[str], None]) -> None:
    """Checks that the method of the settings can meet their target, before a network is trained.

    Args:
      warn: told if the rounds of `METHODS["rounds"]` cannot prune anything.

    Raises:
      InputError: it cannot.
    """
    if config.method != "rounds":
        check_reachable(config.method, architecture, Target("macs", config.target_macs))
    elif config.rounds and config.search.splice == "price":
        target = Target("macs", config.target_macs)
        check_reachable("rounds", architecture, target, config.search)
    elif config.rounds and not config.search.prunable(architecture, masks.ones(architecture)):
        warn(
            "the search can remove nothing from this network, which stays as it is: every group "
            f"that it prunes keeps {config.search.width_multiple} filters; give a larger width or "
            "another model"
        )


def prune(job: Run, state: State, archive: Archive, done: int) -> None:
    """Prunes with the method of the settings; the archive gets its networks.

    Args:
      state: the network after round `done`, 0 for the dense one.
    """
    if job.config.method == "rounds":
        prune_in_rounds(job, state, archive, done)
    elif done == 0:
        archive.add(1, prune_at_once(job, state))


def prune_in_rounds(job: Run, state: State, archive: Archive, done: int) -> None:
    """Rounds by `METHODS["rounds"]`, with the settings of the run; resumes after round `done`."""
    config = job.config
    target = Target("macs", config.target_macs or NO_TARGET)
    architecture = job.classifier.architecture
    observer = RoundObserver(job, state, archive, done)
    problem = problem_of(config, job.data, state.variables, architecture, target)
    METHODS["rounds"](
        job.key,
        dataclasses.replace(
            problem, member_chunk=config.member_chunk, mesh=job.mesh, callbacks=observer.callbacks
        ),
        search=config.search,
        rounds=config.rounds,
        epochs=config.training.finetune_epochs,
        keys=_round_keys,
        start=RoundState(done, *state),
        on_splice=observer.on_splice,
        on_round=observer.on_round,
    )


def _round_keys(key: Array, number: int) -> RoundKeys:
    """The numbers that the stages of a round fold into the key of the run."""
    return RoundKeys(*(jax.random.fold_in(key, base + number) for base in (1000, 8000, 2000)))


class RoundObserver:
    """Shows and logs the rounds of `ccsrp` as they go, and adds their networks to the archive."""

    def __init__(self, job: Run, state: State, archive: Archive, done: int):
        """Expects the round after `done`, which left `state`."""
        self._job, self._archive = job, archive
        self._masks, self._number = state.masks, done + 1

    @property
    def callbacks(self) -> Callbacks:
        return Callbacks(
            on_epoch=lambda epoch: self._on_epoch(epoch),
            on_step=lambda: self._on_step(),
            on_generation=self._on_generation,
            training_clock=self._training,
            search_clock=self._searching,
        )

    @contextmanager
    def _searching(self) -> Iterator[None]:
        """A progress bar over the generations of all groups."""
        job, search = self._job, self._job.config.search
        self._started, self._compiled = time.perf_counter(), job.compiled.seconds
        groups = search.prunable(job.classifier.architecture, self._masks)
        total = len(groups) * search.generations
        with job.terminal.stage(f"round {self._number}: search", total) as self._advance:
            yield

    def _on_generation(self, group: str, generation: int, best: float, evaluations: int) -> None:
        self._advance(note=f"{group} {best:.4f}")
        row = {"group": group, "generation": generation, "best_fitness": best}
        tags = {"stage": "search", "round": self._number}
        self._job.log(tags | row | {"evaluations": evaluations})

    def on_splice(self, spliced: RoundState, found: RoundResult) -> None:
        """Measures how far the search's estimate of robustness is off, before fine-tuning.

        That is the spliced network's accuracy on the shared adversarial set minus that under the
        same attack, white-box, on the same search images.
        """
        job, number = self._job, spliced.number
        state = State(spliced.variables, spliced.masks)
        self._not_finite = {
            n: each.not_finite for n, each in found.groups.items() if each.not_finite
        }
        if self._not_finite:
            counts = ", ".join(f"{count} of {name}" for name, count in self._not_finite.items())
            job.terminal.line(f"round {number}: masks whose logits are not finite: {counts}")
        key, size = jax.random.fold_in(job.key, 7000 + number), job.config.batch_size
        shared = [
            correct(job.classifier, tuple(state), split, key=key, batch_size=size)
            for split in found.distinct_sets()
        ]
        key = jax.random.fold_in(job.key, 5000 + number)
        _, white_box = accuracies(job, state, job.config.search_attack, key)
        self._estimate = {"white_box_accuracy": white_box}
        if shared:  # candidates were not attacked one by one
            accuracy = float(np.mean(np.concatenate(shared)))
            self._estimate |= {"shared_accuracy": accuracy, "shared_gap": accuracy - white_box}
        self._seconds = {
            "search_seconds": time.perf_counter() - self._started,
            "search_compile_seconds": job.compiled.seconds - self._compiled,
        }

    @contextmanager
    def _training(self) -> Iterator[None]:
        """A progress bar over the steps of fine-tuning."""
        title, tags = f"round {self._number}: fine-tuning", {"stage": "finetune"}
        recipe = self._job.config.finetune_recipe
        with training_stage(self._job, recipe, title, tags | {"round": self._number}) as callbacks:
            self._on_epoch, self._on_step = callbacks
            yield

    def on_round(self, done: RoundState, found: RoundResult) -> None:
        """Logs the round, and adds its network to the archive, which checkpoints it."""
        row = {
            "evaluations": sum(each.evaluations for each in found.groups.values()),
            "scored_images": sum(found.images.values()),
            "not_finite": sum(self._not_finite.values()),
            **self._seconds,
            "seconds": time.perf_counter() - self._started,
        }
        self._job.log({"stage": "round", "round": done.number} | row)
        self._archive.add(done.number, State(done.variables, done.masks), self._estimate)
        self._job.terminal.progress(
            f"round {done.number} of at most {self._job.config.rounds}: "
            f"{row['evaluations']} candidates in {duration(row['search_seconds'])}, "
            f"{duration(row['seconds'])} with fine-tuning"
        )
        self._masks, self._number = done.masks, done.number + 1


def prune_at_once(job: Run, state: State) -> State:
    """Prunes with another of `METHODS`, which has the epochs of all rounds."""
    config, compiling = job.config, job.compiled.seconds
    architecture = job.classifier.architecture
    target = Target("macs", config.target_macs)
    problem = problem_of(config, job.data, state.variables, architecture, target)
    steps = steps_per_epoch(problem.recipe, len(job.data.train.labels))
    started = time.perf_counter()
    training_seconds, epochs, candidates = [], 0, 0

    with job.terminal.stage(config.method, problem.recipe.epochs * steps) as advance:

        def on_epoch(epoch: Epoch) -> None:
            nonlocal epochs
            advance(0, note=epoch_note(epoch))
            row = epoch.as_row() | {"epoch": epochs, "seconds": sum(training_seconds)}
            epochs += 1
            each = (time.perf_counter() - started) / epochs
            line = epoch_line(config.method, epoch, epochs, problem.recipe.epochs, each)
            job.terminal.progress(line)
            job.log({"stage": "finetune", "round": 1} | row)

        def on_candidate(loss: float, kept: dict[str, int]) -> None:
            nonlocal candidates
            advance(0, note=f"candidate {' '.join(map(str, kept.values()))}: {loss:.3f}")
            candidates += 1
            row = {"generation": candidates, "loss": loss, "kept": kept}
            job.log({"stage": "search", "round": 1} | row)

        callbacks = Callbacks(
            on_epoch=on_epoch,
            on_step=advance,
            on_candidate=on_candidate,
            training_clock=partial(timed, training_seconds),
        )
        problem = dataclasses.replace(problem, callbacks=callbacks)
        pruned = METHODS[config.method](jax.random.fold_in(job.key, 1001), problem)
    seconds = time.perf_counter() - started
    job.log(
        {"stage": "round", "round": 1, "method": config.method, **pruned.search._asdict()}
        | {"search_seconds": seconds - sum(training_seconds), "seconds": seconds}
        | {"compile_seconds": job.compiled.seconds - compiling}
    )
    variables = masks.fold(pruned.variables, pruned.masks)
    return State(variables, masks.filters(architecture, pruned.masks))
