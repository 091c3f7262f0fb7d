"""Scores of candidate masks for one group, with all other groups fixed.

    task = make_task(classifier, variables, masks, "conv3", clean, adversarial)
    scores = score(task, members)  # (M, n) candidate masks for conv3

Values that all candidates share are computed once (`scoring`), members are sharded over devices,
and candidates that are significantly worse may be eliminated early (`racing`).
"""

from itertools import pairwise, product
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.coevolution.racing import Racing
from ccsrp_jax.coevolution.scoring import (
    CertifiedBall,
    attack_members,
    score_attacked,
    score_certified,
    score_members,
    score_pairs,
    suffix_moments,
)
from ccsrp_jax.coevolution.task import Batch, Task
from ccsrp_jax.networks.batch_statistics import Statistics, pooled
from ccsrp_jax.utils import devices
from ccsrp_jax.utils.errors import InputError


class Members(NamedTuple):
    """M candidate masks for a group, and what batch norm behind its gate takes for them."""

    masks: Any  # (M, n)
    statistics: Statistics | None  # (M, C) each, if they are refreshed

    def rows(self, rows: Any) -> "Members":
        """Some of the candidates."""
        return jax.tree.map(lambda values: values[rows], self)

    def chunks(self, task: Task) -> list["Members"]:
        """The candidates of every call, on the devices; the last call is padded."""
        count = len(self.masks)
        size = task.member_chunk * devices.device_count(task.mesh)
        padded = np.arange(-(-count // size) * size) % count
        return [
            devices.put(
                task.mesh,
                jax.tree.map(lambda values: values.astype(np.float32), self.rows(rows)),
                sharded=True,
            )
            for rows in padded.reshape(-1, size)
        ]


class Scores(NamedTuple):
    """Scores of M candidate masks; an error is 1 - accuracy.

    Means over all search images, or over the first `images` of them for a candidate that a race
    has eliminated. Robust scores are those on adversarial images: a transfer estimate if these are
    shared by all candidates.
    """

    error: np.ndarray  # (M,) on the clean search images
    robust_error: np.ndarray  # (M,)
    loss: np.ndarray  # (M,) mean cross-entropy, clean; infinite if a logit is not finite
    robust_loss: np.ndarray  # (M,)
    macs: np.ndarray  # (M,) share of the dense network's MACs
    images: np.ndarray  # (M,) number of images that the means are taken over
    change: np.ndarray  # (M,) mean of |loss - loss of the current mask|; see `with_reference`
    robust_change: np.ndarray  # (M,)

    @property
    def finite(self) -> np.ndarray:
        """(M,) whether all logits were finite."""
        return np.isfinite(self.loss) & np.isfinite(self.robust_loss)

    def objectives(self, kind: Literal["accuracy", "loss", "change"]) -> np.ndarray:
        """(M, 3) clean, robust and MACs, minimized; all three are infinite for a candidate with a
        non-finite logit."""
        clean, robust = {
            "accuracy": (self.error, self.robust_error),
            "loss": (self.loss, self.robust_loss),
            "change": (self.change, self.robust_change),
        }[kind]
        points = np.stack([clean, robust, self.macs], axis=-1)
        return np.where(self.finite[:, None], points, np.inf)


def score(task: Task, members: Float[np.ndarray, "M n"], *, racing: Racing | None = None) -> Scores:
    """Scores a population of candidates for the task's group.

    Args:
      task: the sub-problem.
      members: candidate masks.
      racing: eliminates candidates that are significantly worse before they have seen all images,
        which must be in random order. By default all candidates see all images. Candidates that
        are not eliminated score the same either way.

    Raises:
      InputError: candidates that are no 0/1 masks of the group.
    """
    members = _checked_members(task, members)
    macs = task.macs[members.astype(bool).sum(-1)]
    values, seen = _evaluate(task, _refreshed(task, members), macs, racing)
    means = np.stack([values[:, :, i, :n].mean(-1, dtype=np.float64) for i, n in enumerate(seen)])
    (error, loss), (robust_error, robust_loss) = means.transpose(1, 2, 0)
    reference = np.full((2, task.images), np.nan) if task.reference is None else task.reference
    distance = np.abs(values[:, 1].astype(np.float64) - reference[:, None])
    change = np.stack([distance[:, i, :n].mean(-1) for i, n in enumerate(seen)], axis=1)
    return Scores(error, robust_error, loss, robust_loss, macs, seen, *change)


def _checked_members(task: Task, members: Any) -> np.ndarray:
    """Candidate masks as an array of 0 and 1, (M, n)."""
    members, filters = np.asarray(members), len(task.macs) - 1
    fits = members.ndim == 2 and members.shape[-1] == filters and len(members) > 0
    if not (fits and np.isin(members, (0, 1)).all()):
        raise InputError(
            f"candidates for {task.group!r} are {members.dtype} of shape {members.shape}: give 0/1 "
            f"masks of shape (candidates, {filters})."
        )
    return members


def with_reference(task: Task) -> Task:
    """The same task, with which scores have `change`: losses relative to the current mask's."""
    current = np.asarray(task.masks[task.group], np.float32)[None]
    values = _score_batches(task, range(len(task.clean)), _refreshed(task, current))
    return task._replace(reference=values[:, 1, 0])


def _refreshed(task: Task, members: Float[np.ndarray, "M n"]) -> Members:
    """The members, with their statistics on the clean images if the task wants them refreshed.

    Padding would count twice, so batches with padding are left out if there is one without.
    """
    if not task.refresh:
        return Members(members, None)
    batches = [batch for batch in task.clean if batch.real == len(batch.labels)] or task.clean
    found, whole = [], Members(members, None)
    for chunk in whole.chunks(task):
        moments = [
            suffix_moments(
                *(task.classifier.architecture, task.group, task.variables, task.masks),
                *(task.prefix(batch), chunk.masks, devices.put(task.mesh, batch.key)),
                mesh=task.mesh,
            )
            for batch in batches
        ]
        found.append(jax.device_get(pooled(moments)))
    statistics = jax.tree.map(lambda *parts: np.concatenate(parts)[: len(members)], *found)
    return Members(members, statistics)


def _evaluate(
    task: Task,
    members: Members,
    macs: Float[np.ndarray, "M"],
    racing: Racing | None,
) -> tuple[Float[np.ndarray, "2 2 M images"], Int[np.ndarray, "M"]]:
    """Values by set (clean, adversarial) and kind (error, loss), and how many images each member
    has seen; values of the others are 0."""
    count = len(members.masks)
    values = np.zeros((2, 2, count, task.images), np.float32)
    running, seen = np.arange(count), np.zeros(count, int)
    ends = np.cumsum([0] + [batch.real for batch in task.clean])
    batches, batch_size = len(task.clean), len(task.clean[0].labels)
    points = racing.elimination_points(batches, batch_size) if racing else []
    for first, last in pairwise([0, *points, batches]):
        if not running.size:  # all had a non-finite value
            break
        part = _score_batches(task, range(first, last), members.rows(running))
        values[:, :, running, ends[first] : ends[last]] = part
        seen[running] = ends[last]
        if racing and last in points:
            known = values[:, :, running, : ends[last]]
            out = racing.eliminated(known, macs[running], task.images, len(points))
            running = running[~out]
    return values, seen


def _score_batches(
    task: Task, numbers: range, members: Members
) -> Float[np.ndarray, "2 2 m images"]:
    """Values of members on some batches, by set and kind.

    A remainder of members, too few for all devices, is scored as pairs of member and batch, one
    pair per device. All calls are dispatched before the first result is awaited.
    """
    count = len(members.masks)
    shape = (2, 2, count, len(numbers), len(task.clean[0].labels))
    values = np.empty(shape, np.float32)
    even = count - _remainder(task, count)
    chunks = members.rows(slice(even)).chunks(task) if even else []
    parts = [_score_batch(task, number, chunks) for number in numbers if even]
    indices = list(product((0, 1), range(even, count), range(len(numbers))))
    pairs = _score_pairs(task, [(s, members.masks[j], numbers[i]) for s, j, i in indices])
    for i, sets in enumerate(jax.device_get(parts)):
        for s, calls in enumerate(sets):
            values[s, :, :even, i] = np.concatenate(calls, axis=1)[:, :even]
    for (s, j, i), pair in zip(indices, pairs, strict=True):
        values[s, :, j, i] = pair
    real = [values[..., i, : task.clean[number].real] for i, number in enumerate(numbers)]
    return np.concatenate(real, axis=-1)


def _remainder(task: Task, members: int) -> int:
    """Number of the `members` that are scored as pairs of member and batch."""
    stored = task.attack is None and task.clean[0].prefix is not None
    random = task.classifier.architecture.neuron.stochastic  # every batch has its own key
    if task.mesh is None or task.mesh.is_multi_process or random:
        return 0
    if task.member_chunk > 1 or not stored or task.refresh:
        return 0
    return members % task.mesh.size


def _score_pairs(
    task: Task, pairs: list[tuple[int, Float[np.ndarray, "n"], int]]
) -> list[np.ndarray]:
    """(2, B) values of each pair of a member and a batch, as (set, member, batch number).

    Every call takes one pair per device; the last one is padded.
    """
    mesh, parts = task.mesh, []
    if mesh is None:  # one device has no remainder, see `_remainder`
        return []
    for first in range(0, len(pairs), mesh.size):
        padded = [pairs[min(first + i, len(pairs) - 1)] for i in range(mesh.size)]
        batches = [(task.clean, task.adversarial)[s][number] for s, _, number in padded]
        members = np.stack([member for _, member, _ in padded]).astype(np.float32)
        part = score_pairs(
            *(task.classifier.architecture, task.group, task.variables, task.masks),
            *devices.stack_shards(mesh, [(batch.prefix, batch.labels) for batch in batches]),
            devices.put(mesh, members, sharded=True),
            mesh=mesh,
        )
        parts.append(part)
    return [part[:, i] for part in jax.device_get(parts) for i in range(mesh.size)][: len(pairs)]


def _score_batch(task: Task, number: int, chunks: list[Members]) -> tuple[list[Array], list[Array]]:
    """Clean and robust (2, chunk, B) values of all chunks of members on a batch."""
    clean, attack = task.clean[number], task.attack
    if attack is None:
        robust = _score_shared(task, task.adversarial[number], chunks)
    elif isinstance(attack, CertifiedBall):
        robust = _score_certified(task, attack, clean, chunks)
    else:
        robust = _score_attacked(task, attack, clean, chunks)
    return _score_shared(task, clean, chunks), robust


def _score_shared(task: Task, batch: Batch, chunks: list[Members]) -> list[Array]:
    """Values on images that all members share."""
    architecture, prefix = task.classifier.architecture, task.prefix(batch)
    network, key = (task.variables, task.masks), task.suffix_key(batch)
    return [
        _limit_pending(
            task,
            score_members(
                *(architecture, task.group, *network, prefix, batch.labels),
                *(chunk.masks, key, chunk.statistics),
                mesh=task.mesh,
            ),
        )
        for chunk in chunks
    ]


def _score_certified(
    task: Task, ball: CertifiedBall, batch: Batch, chunks: list[Members]
) -> list[Array]:
    """Values of members that are each bounded in the balls of the images."""
    network, values = (task.classifier.architecture, task.variables), []
    images = devices.put(task.mesh, batch.images)
    for chunk in chunks:
        trees = task.mask_trees(chunk.masks)
        part = score_certified(*network, trees, images, batch.labels, ball.eps, mesh=task.mesh)
        values.append(_limit_pending(task, part))
    return values


def _score_attacked(task: Task, attack: PGD, batch: Batch, chunks: list[Members]) -> list[Array]:
    """Values of members that are each attacked on the images."""
    network, values = (task.classifier, task.variables), []
    labels, key = batch.labels, devices.put(task.mesh, batch.key)
    starts = task.repeat_images(batch.images, len(chunks[0].masks))
    for chunk in chunks:
        trees = task.mask_trees(chunk.masks)
        images = attack_members(*network, trees, attack, starts, labels, key)
        part = score_attacked(*network, trees, images, labels, key, mesh=task.mesh)
        values.append(_limit_pending(task, part))
    return values


def _limit_pending(task: Task, part: Array) -> Array:
    """Waits for a call that gathers from other processes: on CPUs, dozens of such pending calls
    deadlock."""
    gathers = task.mesh is not None and task.mesh.is_multi_process
    return jax.block_until_ready(part) if gathers else part
