"""Objectives of candidate masks for one group, all other groups held as they are.

    task = make_task(classifier, variables, masks, "conv3", clean, adversarial)
    scores = score(task, members)  # (M, n) candidate masks for conv3

What candidates share is computed once (`tasks`, `sharing`); they are dealt out to all devices
(`devices`); beaten ones may drop out early (`racing`).
"""

from itertools import pairwise, product
from typing import Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from ccsrp_jax.coevolution.racing import Racing
from ccsrp_jax.coevolution.scoring import attack_members, score_attacked, score_members, score_pairs
from ccsrp_jax.coevolution.subproblem import Batch, Task
from ccsrp_jax.utils import devices


class Scores(NamedTuple):
    """What a population of masks is worth; errors are one minus accuracy.

    Means over the search images, or over the first `images` of them for a member that a race
    dropped.
    """

    error: np.ndarray  # (M,) on the clean search images
    robust_error: np.ndarray  # (M,) on the adversarial ones: a transfer estimate if shared
    loss: np.ndarray  # (M,) mean cross-entropy, likewise; infinite if a logit is not finite
    robust_loss: np.ndarray
    macs: np.ndarray  # (M,) share of the dense network's
    images: np.ndarray  # (M,)
    change: np.ndarray  # (M,) mean |loss - the current mask's|, image by image; see `refer`
    robust_change: np.ndarray  # (M,)

    @property
    def finite(self) -> np.ndarray:
        """(M,) whether all logits were."""
        return np.isfinite(self.loss) & np.isfinite(self.robust_loss)

    def objectives(self, kind: Literal["accuracy", "loss", "change"]) -> np.ndarray:
        """(M, 3): clean, robust and MACs, each to be minimised; where a logit was not finite,
        all are infinite, so that everything else is better."""
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
      racing: lets beaten members drop out early; the images must come in random order. By
        default all see all images. Those that do not drop out score the same either way.
    """
    count, macs = len(members), task.macs[members.astype(bool).sum(-1)]
    values = np.zeros((2, 2, count, task.images), np.float32)  # set, kind
    running, seen = np.arange(count), np.zeros(count, int)
    ends = np.cumsum([0] + [batch.real for batch in task.clean])
    looks = racing.looks(len(task.clean), len(task.clean[0].labels)) if racing else []
    for first, last in pairwise([0, *looks, len(task.clean)]):
        if not running.size:  # none was finite
            break
        part = _score_batches(task, range(first, last), members[running])
        values[:, :, running, ends[first] : ends[last]] = part
        seen[running] = ends[last]
        if last in looks:
            beaten = racing.beaten(
                values[:, :, running, : ends[last]], macs[running], task.images, len(looks)
            )
            running = running[~beaten]
    means = np.stack([values[:, :, i, :n].mean(-1, dtype=np.float64) for i, n in enumerate(seen)])
    (error, loss), (robust_error, robust_loss) = means.transpose(1, 2, 0)
    reference = np.full((2, task.images), np.nan) if task.reference is None else task.reference
    apart = np.abs(values[:, 1].astype(np.float64) - reference[:, None])
    change = np.stack([apart[:, i, :n].mean(-1) for i, n in enumerate(seen)], axis=1)
    return Scores(error, robust_error, loss, robust_loss, macs, seen, *change)


def refer(task: Task) -> Task:
    """The same task, whose scores also say how far candidates are from the current mask."""
    current = np.asarray(task.masks[task.group], np.float32)[None]
    losses = _score_batches(task, range(len(task.clean)), current)[:, 1, 0]
    return task._replace(reference=losses)


def _score_batches(task: Task, numbers: range, members: np.ndarray) -> np.ndarray:
    """(2, 2, m, images), by set and kind, of members on the images of some batches.

    Members that are too few for all devices are dealt out batch by batch, where a device takes
    one at a time. All calls are dispatched before the first result is waited for.
    """
    shape = (2, 2, len(members), len(numbers), len(task.clean[0].labels))
    found = np.empty(shape, np.float32)
    most = len(members) - _odd(task, len(members))
    parts = [_score_batch(task, number, members[:most]) for number in numbers if most]
    places = list(product((0, 1), range(most, len(members)), range(len(numbers))))
    pairs = _score_pairs(task, [(s, members[j], numbers[i]) for s, j, i in places])
    for i, sets in enumerate(jax.device_get(parts)):
        for s, calls in enumerate(sets):
            found[s, :, :most, i] = np.concatenate(calls, axis=1)[:, :most]
    for (s, j, i), values in zip(places, pairs, strict=True):
        found[s, :, j, i] = values
    real = [found[..., i, : task.clean[number].real] for i, number in enumerate(numbers)]
    return np.concatenate(real, axis=-1)


def _odd(task: Task, members: int) -> int:
    """How many of so many members are left to be dealt out batch by batch."""
    held = task.attack is None and task.clean[0].prefix is not None
    if task.mesh is None or task.mesh.is_multi_process or task.member_chunk > 1 or not held:
        return 0
    return members % task.mesh.size


def _score_pairs(task: Task, pairs: list[tuple[int, np.ndarray, int]]) -> list[np.ndarray]:
    """The (2, B) values of pairs of a member and a batch, given its set and number, a pair on
    each device; the last call is filled up."""
    found, count = [], devices.device_count(task.mesh)
    for first in range(0, len(pairs), count):
        some = [pairs[min(first + i, len(pairs) - 1)] for i in range(count)]
        loaded = [(task.clean, task.adversarial)[s][number] for s, _, number in some]
        members = np.stack([member for _, member, _ in some]).astype(np.float32)
        part = score_pairs(
            *(task.classifier.architecture, task.group, task.variables, task.masks),
            *devices.stack_shards(task.mesh, [(batch.prefix, batch.labels) for batch in loaded]),
            devices.put(task.mesh, members, sharded=True),
            mesh=task.mesh,
        )
        found.append(part)
    return [part[:, i] for part in jax.device_get(found) for i in range(count)][: len(pairs)]


def _score_batch(task: Task, number: int, members: np.ndarray) -> list[list[Array]]:
    """By set, the (2, m, B) values of every chunk of members on a batch; the last chunk is
    filled up."""
    size = task.member_chunk * devices.device_count(task.mesh)
    fill = np.arange(-(-len(members) // size) * size) % len(members)
    chunks = [
        devices.put(task.mesh, members[at].astype(np.float32), sharded=True)
        for at in fill.reshape(-1, size)
    ]

    def settled(part: Array) -> Array:
        # some dozens of unfinished calls that gather from other processes lock up on CPUs
        gathers = task.mesh is not None and task.mesh.is_multi_process
        return jax.block_until_ready(part) if gathers else part

    def shared(batch: Batch) -> list[Array]:
        prefix, network = task.prefix(batch), (task.variables, task.masks)
        graph = task.classifier.architecture, task.group
        return [
            settled(score_members(*graph, *network, prefix, batch.labels, chunk, mesh=task.mesh))
            for chunk in chunks
        ]

    def attacked(batch: Batch) -> list[Array]:
        network, scored = (task.classifier, task.variables), []
        starts = task.copies(batch.images, size)
        known = batch.labels, devices.put(task.mesh, batch.key)
        for chunk in chunks:
            whole = task.whole(chunk)
            images = attack_members(*network, whole, task.attack, starts, *known)
            part = score_attacked(*network, whole, images, *known, mesh=task.mesh)
            scored.append(settled(part))
        return scored

    clean = task.clean[number]
    robust = shared(task.adversarial[number]) if task.attack is None else attacked(clean)
    return [shared(clean), robust]
