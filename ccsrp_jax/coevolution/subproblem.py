"""One group's sub-problem, ready to score candidates: what they share, and how many a call takes.

The number of members in a call follows from the device and from the memory that XLA predicts;
what cannot fit is refused with the largest that does.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.coevolution.scoring import member_slopes, score_members, shared_prefix
from ccsrp_jax.data.batching import balanced_batch_size, padded_batches
from ccsrp_jax.data.splits import Split
from ccsrp_jax.networks import cost
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.cost import suffix_macs
from ccsrp_jax.networks.masks import MaskTree
from ccsrp_jax.networks.spiking_network import Values
from ccsrp_jax.utils import devices
from ccsrp_jax.utils.errors import InputError, check_number

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
        return devices.put(self.mesh, self.local_prefix(batch))

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
        return devices.put(self.mesh, trees | {self.group: members}, sharded=True)

    def copies(self, images: Array, count: int) -> Array:
        """Images for each of so many members."""
        alike = jnp.broadcast_to(images, (count, *images.shape))
        return devices.put(self.mesh, alike, sharded=True)


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
        batches = padded_batches(split, batch_size) if split else ()
        for i, (images, labels, real) in enumerate(batches):
            key_batch = None if key is None else jax.random.fold_in(key, 2 * i + number)
            loaded.append(Batch(images, devices.put(mesh, labels), real, key_batch))
        return loaded

    limit = devices.free_bytes(mesh) if memory_limit is None else memory_limit
    task = Task(
        classifier,
        *devices.put(mesh, (variables, dict(masks))),
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
        1, min(-(-population // devices.device_count(task.mesh)), int(call / max(member, 1)))
    )

    def need(chunk: int, batch: Batch = task.clean[0]) -> int:
        return call_bytes(task, batch, chunk) + _shared_bytes(task, batch, limit)[0]

    def alone(images: int) -> int:
        size = balanced_batch_size(task.images, images)  # as `padded_batches` would have it
        arrays = (part[:size] for part in task.clean[0][:2])
        return need(1, Batch(*arrays, size, task.clean[0].key))

    fits = devices.largest_fitting(need, wanted, limit)
    if not fits:
        images = devices.largest_fitting(alone, batch, limit)
        advice = f"use a batch_size of {images} or less" if images else "use a smaller network"
        raise InputError(
            f"one candidate for group {group!r} on {batch} images needs "
            f"{devices.format_gib(need(1))} and {devices.format_gib(limit)} are free: {advice}."
        )
    if asked and fits < asked:
        raise InputError(
            f"member_chunk {asked} for group {group!r} on {batch} images needs "
            f"{devices.format_gib(need(asked))} and {devices.format_gib(limit)} are free: "
            f"use {fits} or less."
        )
    return fits


def _shared_bytes(task: Task, batch: Batch, limit: int) -> tuple[int, bool]:
    """Memory of what all candidates share in batches of this size, and whether it is held: of
    all batches if that takes half of the limit at most, else of one."""
    one = devices.nbytes(jax.eval_shape(lambda: task.local_prefix(batch)))
    sets = 2 if task.attack is None else 1
    whole = one * sets * -(-task.images // len(batch.labels))
    held = whole <= limit // 2
    return (whole if held else one), held


def call_bytes(task: Task, batch: Batch, chunk: int) -> int:
    """Memory a device that a call with `chunk` members takes beside what they share, predicted
    by compiling it."""
    n = task.masks[task.group].shape[0]
    members = np.ones((chunk * devices.device_count(task.mesh), n), np.float32)
    members = devices.put(task.mesh, members, sharded=True)
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
        network, key = (task.classifier, task.variables), devices.put(task.mesh, batch.key)
        step = devices.program_bytes(member_slopes, *network, whole, images, batch.labels, key)
        need = max(need, step + chunk * devices.nbytes(batch.images))
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
