"""How many members one call scores, and whether shared values are stored.

Both follow from the kind of device and from the memory that XLA predicts. A size that does not fit
is refused with the largest one that does.
"""

from functools import partial

import jax
import numpy as np

from ccsrp_jax.coevolution.scoring import member_gradients, score_members, suffix_moments
from ccsrp_jax.coevolution.task import Batch, Task
from ccsrp_jax.data.batching import balanced_batch_size
from ccsrp_jax.networks import cost
from ccsrp_jax.networks.cost import suffix_macs
from ccsrp_jax.utils import devices
from ccsrp_jax.utils.errors import InputError

# MACs of one call on one device, enough to make the constant cost of a call negligible. On a CPU,
# larger calls gain nothing because they exceed the caches.
CALL_MACS = {"cpu": 2e7}
ACCELERATOR_CALL_MACS = 1e12


def call_macs() -> float:
    """MACs that a call should have on one device of the default backend."""
    return CALL_MACS.get(jax.default_backend(), ACCELERATOR_CALL_MACS)


def members_per_call(task: Task, population: int, requested: int | None, limit: int) -> int:
    """Members per call on each device: `requested`, or as many as are useful and fit.

    Args:
      task: whose candidates are scored.
      population: members that are usually scored together.
      requested: a number set by the user.
      limit: bytes per device.

    Raises:
      InputError: `requested`, or a single member, does not fit into `limit`.
    """
    batch = task.clean[0]

    def need(members: int) -> int:
        return call_bytes(task, batch, members) + prefix_bytes(task, batch, limit)[0]

    wanted = requested or _useful_members(task, population)
    fitting = devices.largest_fitting(need, wanted, limit)
    size = f"for group {task.group!r} on {len(batch.labels)} images needs"
    free = f"{devices.format_gib(limit)} are free"
    if not fitting:
        images = _largest_batch(task, limit)
        advice = f"use a batch_size of {images} or less" if images else "use a smaller network"
        raise InputError(
            f"one candidate {size} {devices.format_gib(need(1))} and {free}: {advice}."
        )
    if requested and fitting < requested:
        raise InputError(
            f"member_chunk {requested} {size} {devices.format_gib(need(requested))} and {free}: "
            f"use {fitting} or less."
        )
    return fitting


def _useful_members(task: Task, population: int) -> int:
    """Members that make up `call_macs`, at most the share of a population on one device."""
    architecture = task.classifier.architecture
    if task.attack is None:
        macs = suffix_macs(architecture, task.group)
    else:  # every member runs the whole network
        macs = architecture.time_steps * sum(cost.macs(architecture).values())
    members = int(call_macs() / max(len(task.clean[0].labels) * macs, 1))
    return max(1, min(-(-population // devices.device_count(task.mesh)), members))


def _largest_batch(task: Task, limit: int) -> int:
    """The largest batch size with which one member fits; 0 if there is none."""
    batch = task.clean[0]

    def need(images: int) -> int:
        size = balanced_batch_size(task.images, images)  # the size `padded_batches` would use
        smaller = Batch(batch.images[:size], batch.labels[:size], size, batch.key)
        return call_bytes(task, smaller, 1) + prefix_bytes(task, smaller, limit)[0]

    return devices.largest_fitting(need, len(batch.labels), limit)


def prefix_bytes(task: Task, batch: Batch, limit: int) -> tuple[int, bool]:
    """Memory of shared values in batches of this size, and whether those of all batches are stored.

    They are stored if they take at most half of the limit; if not, those of one batch are in memory
    at a time.
    """
    one = devices.nbytes(jax.eval_shape(lambda: task.compute_prefix(batch)))
    sets = 2 if task.attack is None else 1
    total = one * sets * -(-task.images // len(batch.labels))
    stored = total <= limit // 2
    return (total if stored else one), stored


def call_bytes(task: Task, batch: Batch, chunk: int) -> int:
    """Memory per device of a call with `chunk` members, beside shared values and arguments.

    Predicted by compiling the program that takes most.
    """
    n = task.masks[task.group].shape[0]
    members = np.ones((chunk * devices.device_count(task.mesh), n), np.float32)
    members = devices.put(task.mesh, members, sharded=True)
    network = task.classifier.architecture, task.group, task.variables, task.masks
    prefix, moments, statistics = task.prefix(batch), 0, None
    if task.refresh:
        arguments = *network, prefix, members, devices.put(task.mesh, batch.key)
        moments = devices.program_bytes(suffix_moments, *arguments, mesh=task.mesh)
        found = jax.eval_shape(
            partial(suffix_moments, *network[:2], mesh=task.mesh), *arguments[2:]
        )
        zeros = jax.tree.map(lambda each: np.zeros(each.shape, each.dtype), found)
        statistics = devices.put(task.mesh, zeros, sharded=True)
    need = devices.program_bytes(
        *(score_members, *network, prefix, batch.labels, members),
        *(task.suffix_key(batch), statistics),
        mesh=task.mesh,
    )
    need = max(need, moments)
    if task.attack is None:
        return need
    gradients = devices.program_bytes(
        member_gradients,
        task.classifier,
        task.variables,
        task.mask_trees(members),
        task.repeat_images(batch.images, len(members)),
        batch.labels,
        devices.put(task.mesh, batch.key),
    )
    return max(need, gradients + chunk * devices.nbytes(batch.images))
