"""Objectives of candidate masks for one group, all other groups held as they are.

    task = make_task(classifier, variables, masks, "conv3", clean, adversarial)
    scores = score(task, members)  # (M, n) candidate masks for conv3

What candidates share is computed once (`sharing`); how many go into a call follows from the
device and its memory (`devices`); beaten ones may drop out early (`racing`).
"""

from itertools import pairwise, product
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from ccsrp_jax import cost, devices
from ccsrp_jax.attacks import PGD
from ccsrp_jax.data import Split
from ccsrp_jax.errors import InputError, check_number
from ccsrp_jax.evaluation import batches, even
from ccsrp_jax.masks import MaskTree
from ccsrp_jax.network import Classifier, Values
from ccsrp_jax.racing import Racing
from ccsrp_jax.sharing import (
    attack_members,
    member_slopes,
    score_attacked,
    score_members,
    score_pairs,
    shared_prefix,
    suffix_macs,
)

# MACs that a call on one device should hold, so that what a call costs by itself does not
# count. More gains nothing on a CPU, whose caches it leaves.
CALL_MACS = {"cpu": 2e7}
CALL_MACS_ELSEWHERE = 1e12


class Batch(NamedTuple):
    """Images, and what all candidates share of them."""

    images: Array
    labels: Array
    real: int  # the other images fill up the batch
    key: Array | None
    prefix: Values | None = None  # computed in every call where memory is short


class Task(NamedTuple):
    """One group's sub-problem: what its candidates are scored on."""

    classifier: Classifier
    variables: dict
    masks: MaskTree
    group: str
    clean: list[Batch]
    adversarial: list[Batch]  # none where each candidate is attacked itself
    macs: np.ndarray  # share of the dense network's MACs left, by number of filters kept
    attack: PGD | None
    mesh: Mesh | None
    local: tuple[dict, MaskTree]  # the network on one device, which computes what is shared
    member_chunk: int = 1  # members a call on each device
    reference: np.ndarray | None = None  # (2, images) losses of the current mask, see `refer`

    @property
    def images(self) -> int:
        """Clean images; the adversarial ones are as many."""
        return sum(batch.real for batch in self.clean)

    def prefix(self, batch: Batch) -> Values:
        """What all candidates share of a batch, on every device."""
        if batch.prefix is not None:
            return batch.prefix
        return devices.place(self.mesh, self.local_prefix(batch))

    def local_prefix(self, batch: Batch) -> Values:
        """The same, computed on one device."""
        network = self.classifier.architecture, self.group, *self.local
        return shared_prefix(*network, batch.images, batch.key)

    def whole(self, members: Array) -> MaskTree:
        """The mask trees of members of the group."""
        trees = {
            name: jnp.broadcast_to(mask, (len(members), *mask.shape))
            for name, mask in self.masks.items()
        }
        return devices.place(self.mesh, trees | {self.group: members}, dealt=True)

    def copies(self, images: Array, count: int) -> Array:
        """Images for each of so many members."""
        alike = jnp.broadcast_to(images, (count, *images.shape))
        return devices.place(self.mesh, alike, dealt=True)


def make_task(
    classifier: Classifier,
    variables: dict,
    masks: MaskTree,
    group: str,
    clean: Split,
    adversarial: Split | None,
    *,
    batch_size: int = 256,
    population: int = 8,
    member_chunk: int | None = None,
    memory_limit: int | None = None,
    mesh: Mesh | None = None,
    attack: PGD | None = None,
    key: Array | None = None,
) -> Task:
    """Prepares the scoring of a group's candidates in the current network.

    Computes what candidates share and keeps it, if it fits into half of the memory; if not, it
    is computed anew in every call of `score`.

    Args:
      classifier: the network, and what a white-box attack differentiates.
      variables, masks: the current network.
      group: whose candidates are to be scored.
      clean: search images.
      adversarial: the adversarial set that all candidates share, of the same images in the
        same order; None with `attack`.
      batch_size: images a call, at most.
      population: members that come at a time, as a rule.
      member_chunk: members a call on each device; by default few on a CPU, and on an
        accelerator as many as there are or fit.
      memory_limit: bytes a device that scoring may take; by default what is free.
      mesh: of `devices.mesh`, over which members are dealt out.
      attack: attacks every candidate by itself, white-box, with equal random starts. That takes
        `attack.gradients` forward and backward passes of the whole network an image and
        candidate, where the shared set takes one forward pass of what follows the group.
      key: for the attack, or a stochastic encoding, which draws once for all candidates.

    Raises:
      InputError: both or neither of `adversarial` and `attack`; sets of different sizes; a
        batch or chunk that does not fit into memory, with the largest that does.
    """
    if (attack is None) == (adversarial is None):
        raise InputError("scoring needs a shared adversarial set or an attack: give one of them.")
    if adversarial is not None and len(adversarial.labels) != len(clean.labels):
        raise InputError(
            f"the adversarial set has {len(adversarial.labels)} images for {len(clean.labels)} "
            "clean ones: give the same images, attacked."
        )
    if key is None and (attack is not None or classifier.stochastic):
        raise InputError("attacks and stochastic networks draw at random: give a key.")
    check_number("population", population, 1)
    for name, number in (("member_chunk", member_chunk), ("memory_limit", memory_limit)):
        if number is not None:
            check_number(name, number, 1)

    def load(split: Split | None, number: int) -> list[Batch]:
        loaded = []
        for i, (images, labels, real) in enumerate(batches(split, batch_size) if split else ()):
            key_batch = None if key is None else jax.random.fold_in(key, 2 * i + number)
            loaded.append(Batch(images, devices.place(mesh, labels), real, key_batch))
        return loaded

    limit = devices.free_bytes(mesh) if memory_limit is None else memory_limit
    task = Task(
        classifier,
        *devices.place(mesh, (variables, dict(masks))),
        group,
        load(clean, 0),
        load(adversarial, 1),
        _macs_left(classifier.architecture, masks, group),
        attack,
        mesh,
        (variables, dict(masks)),
    )

    def hold(loaded: list[Batch]) -> list[Batch]:
        return [batch._replace(prefix=task.prefix(batch)) for batch in loaded]

    if _shared_bytes(task, task.clean[0], limit)[1]:
        task = task._replace(clean=hold(task.clean), adversarial=hold(task.adversarial))
    return task._replace(member_chunk=_chunk(task, population, member_chunk, limit))


def _chunk(task: Task, population: int, asked: int | None, limit: int) -> int:
    """Members a call on each device."""
    call = CALL_MACS.get(jax.default_backend(), CALL_MACS_ELSEWHERE)
    batch, group = len(task.clean[0].labels), task.group
    architecture = task.classifier.architecture
    if task.attack is None:
        member = batch * suffix_macs(architecture, group)
    else:  # the whole network, for every member
        member = batch * architecture.time_steps * sum(cost.macs(architecture).values())
    wanted = asked or max(
        1, min(-(-population // devices.count(task.mesh)), int(call / max(member, 1)))
    )

    def need(chunk: int, batch: Batch = task.clean[0]) -> int:
        return call_bytes(task, batch, chunk) + _shared_bytes(task, batch, limit)[0]

    def alone(images: int) -> int:
        size = even(task.images, images)  # as `batches` would have it
        arrays = (part[:size] for part in task.clean[0][:2])
        return need(1, Batch(*arrays, size, task.clean[0].key))

    fits = devices.largest(need, wanted, limit)
    if not fits:
        images = devices.largest(alone, batch, limit)
        advice = f"use a batch_size of {images} or less" if images else "use a smaller network"
        raise InputError(
            f"one candidate for group {group!r} on {batch} images needs {devices.gib(need(1))} "
            f"and {devices.gib(limit)} are free: {advice}."
        )
    if asked and fits < asked:
        raise InputError(
            f"member_chunk {asked} for group {group!r} on {batch} images needs "
            f"{devices.gib(need(asked))} and {devices.gib(limit)} are free: use {fits} or less."
        )
    return fits


def _shared_bytes(task: Task, batch: Batch, limit: int) -> tuple[int, bool]:
    """Memory of what all candidates share in batches of this size, and whether it is held: of
    all batches if that takes half of the limit at most, else of one."""
    one = devices.size(jax.eval_shape(lambda: task.local_prefix(batch)))
    sets = 2 if task.attack is None else 1
    whole = one * sets * -(-task.images // len(batch.labels))
    held = whole <= limit // 2
    return (whole if held else one), held


def call_bytes(task: Task, batch: Batch, chunk: int) -> int:
    """Memory a device that a call with `chunk` members takes beside what they share, predicted
    by compiling it."""
    n = task.masks[task.group].shape[0]
    members = np.ones((chunk * devices.count(task.mesh), n), np.float32)
    members = devices.place(task.mesh, members, dealt=True)
    need = devices.program_bytes(
        score_members,
        task.classifier.architecture,
        task.group,
        task.variables,
        task.masks,
        task.prefix(batch),
        batch.labels,
        members,
        mesh=task.mesh,
    )
    if task.attack is not None:  # its gradient step takes most
        whole, images = task.whole(members), task.copies(batch.images, len(members))
        network, key = (task.classifier, task.variables), devices.place(task.mesh, batch.key)
        step = devices.program_bytes(member_slopes, *network, whole, images, batch.labels, key)
        need = max(need, step + chunk * devices.size(batch.images))
    return need


def _macs_left(architecture, masks, group):
    """Share of the dense network's MACs by number of filters kept: a quadratic at most, since
    a layer reads and writes the group once, so three counts tell all."""
    n = masks[group].shape[0]
    at = np.unique([1, (1 + n) // 2, n])
    counted = [
        sum(cost.macs(architecture, masks | {group: np.arange(n) < kept}).values()) for kept in at
    ]
    polynomial = np.polynomial.Polynomial.fit(at, counted, len(at) - 1)
    return np.rint(polynomial(np.arange(n + 1))) / sum(cost.macs(architecture).values())


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
    found, count = [], devices.count(task.mesh)
    for first in range(0, len(pairs), count):
        some = [pairs[min(first + i, len(pairs) - 1)] for i in range(count)]
        loaded = [(task.clean, task.adversarial)[s][number] for s, _, number in some]
        members = np.stack([member for _, member, _ in some]).astype(np.float32)
        part = score_pairs(
            *(task.classifier.architecture, task.group, task.variables, task.masks),
            *devices.joined(task.mesh, [(batch.prefix, batch.labels) for batch in loaded]),
            devices.place(task.mesh, members, dealt=True),
            mesh=task.mesh,
        )
        found.append(part)
    return [part[:, i] for part in jax.device_get(found) for i in range(count)][: len(pairs)]


def _score_batch(task: Task, number: int, members: np.ndarray) -> list[list[Array]]:
    """By set, the (2, m, B) values of every chunk of members on a batch; the last chunk is
    filled up."""
    size = task.member_chunk * devices.count(task.mesh)
    fill = np.arange(-(-len(members) // size) * size) % len(members)
    chunks = [
        devices.place(task.mesh, members[at].astype(np.float32), dealt=True)
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
        known = batch.labels, devices.place(task.mesh, batch.key)
        for chunk in chunks:
            whole = task.whole(chunk)
            images = attack_members(*network, whole, task.attack, starts, *known)
            part = score_attacked(*network, whole, images, *known, mesh=task.mesh)
            scored.append(settled(part))
        return scored

    clean = task.clean[number]
    robust = shared(task.adversarial[number]) if task.attack is None else attacked(clean)
    return [shared(clean), robust]
