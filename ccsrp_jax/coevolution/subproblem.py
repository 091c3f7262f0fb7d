"""Preparation of one group's sub-problem: images, values that candidates share, sizes of calls."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.coevolution.call_size import members_per_call, prefix_bytes
from ccsrp_jax.coevolution.scoring import CertifiedBall
from ccsrp_jax.coevolution.task import Batch, Task
from ccsrp_jax.data.batching import padded_batches
from ccsrp_jax.data.splits import Split
from ccsrp_jax.networks import cost
from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.inputs import checked_inputs, checked_network
from ccsrp_jax.networks.masks import MaskTree
from ccsrp_jax.utils import devices
from ccsrp_jax.utils.errors import InputError
from ccsrp_jax.utils.execution import Execution
from ccsrp_jax.utils.fields import SIZE, integer
from ccsrp_jax.utils.keys import checked_key


def make_task(
    classifier: Classifier,
    variables: dict,
    masks: Mapping[str, Any],
    group: str,
    clean: Split,
    adversarial: Split | None,
    *,
    batch_size: int = 256,
    population: int = 8,
    member_chunk: int | None = None,
    memory_limit: int | None = None,
    mesh: Mesh | None = None,
    attack: PGD | CertifiedBall | None = None,
    refresh: bool = False,
    key: Array | None = None,
) -> Task:
    """Prepares the scoring of a group's candidates in the current network.

    Values that all candidates share are computed and stored if they take at most half of the
    memory; if not, they are recomputed in every call of `score`.

    Args:
      classifier: the network, with the surrogate that a white-box attack differentiates.
      variables, masks: the current network.
      group: whose candidates are to be scored.
      clean: search images.
      adversarial: the adversarial set shared by all candidates, of the same images in the
        same order; None with `attack`.
      batch_size: images per call, at most.
      population: members that are usually scored together.
      member_chunk: members per call on each device; by default few on a CPU, and on an
        accelerator as many as there are or fit.
      memory_limit: bytes per device that scoring may take; by default what is free.
      mesh: of `devices.mesh`, over which members are sharded.
      attack: attacks every candidate itself, white-box, from equal random starts. That takes
        `attack.gradients` forward and backward passes of the whole network per image and
        candidate; the shared set takes one forward pass of what follows the group's gate. Or a
        `scoring.CertifiedBall`: robust scores are then those of the worst logits in the ball.
      refresh: every candidate is scored with the statistics of batch norm that it has itself on
        the clean images, behind the group's gate, in place of the current network's; they take one
        more pass of clean images through what follows the gate. Not with `attack`.
      key: for the attack, or for a network that draws at random, once for all candidates.

    Raises:
      InputError: images, labels or a key that cannot be used; both or neither of `adversarial`
        and `attack`; sets of different sizes; no key where one is needed; a batch or chunk that
        does not fit into memory, with the largest that does; `refresh` with `attack`.
    """
    execution = Execution(batch_size, member_chunk, memory_limit, mesh)
    masks, clean = checked_network(classifier, variables, masks, clean)
    if adversarial is not None:
        adversarial = checked_inputs(classifier, (variables, masks), adversarial)
    key = None if key is None else checked_key(key)
    network = classifier, variables, masks
    options = {"population": population, "attack": attack, "refresh": refresh, "key": key}
    return prepare_task(*network, group, clean, adversarial, execution, **options)


def prepare_task(
    classifier: Classifier,
    variables: dict,
    masks: MaskTree,
    group: str,
    clean: Split,
    adversarial: Split | None,
    execution: Execution,
    *,
    population: int,
    attack: PGD | CertifiedBall | None = None,
    refresh: bool = False,
    key: Array | None = None,
) -> Task:
    """As `make_task`, which documents the arguments, with sizes and devices as `Execution`."""
    population = integer("population", population, SIZE)
    _check_images(clean, adversarial, attack)
    if refresh and attack is not None:
        raise InputError(
            "refresh is of candidates that share their images: leave it out, or give a shared "
            "adversarial set in place of the attack."
        )
    draws = classifier.stochastic or (refresh and classifier.architecture.draws_in_training)
    if key is None and (draws or attack is not None):
        raise InputError("attacks and stochastic networks draw at random: give a key.")
    limit = execution.available_bytes()
    network = variables, dict(masks)
    placed_variables, placed_masks = devices.put(execution.mesh, network)
    task = Task(
        classifier,
        placed_variables,
        placed_masks,
        group,
        clean=_load(clean, 0, execution, key),
        adversarial=_load(adversarial, 1, execution, key) if adversarial else [],
        macs=macs_by_width(classifier.architecture, masks, group),
        attack=attack,
        mesh=execution.mesh,
        single_device=network,
        refresh=refresh,
    )
    if prefix_bytes(task, task.clean[0], limit)[1]:
        task = task._replace(
            clean=_with_prefixes(task, task.clean),
            adversarial=_with_prefixes(task, task.adversarial),
        )
    chunk = members_per_call(task, population, execution.member_chunk, limit)
    return task._replace(member_chunk=chunk)


def _check_images(
    clean: Split, adversarial: Split | None, attack: PGD | CertifiedBall | None
) -> None:
    if (attack is None) == (adversarial is None):
        raise InputError("scoring needs a shared adversarial set or an attack: give one of them.")
    if adversarial is not None and len(adversarial.labels) != len(clean.labels):
        raise InputError(
            f"the adversarial set has {len(adversarial.labels)} images for {len(clean.labels)} "
            "clean ones: give the same images, attacked."
        )


def _load(split: Split, number: int, execution: Execution, key: Array | None) -> list[Batch]:
    """Batches of a set, 0 for the clean one and 1 for the adversarial one."""
    loaded = []
    for i, (images, labels, real) in enumerate(padded_batches(split, execution.batch_size)):
        key_batch = None if key is None else jax.random.fold_in(key, 2 * i + number)
        loaded.append(Batch(images, devices.put(execution.mesh, labels), real, key_batch))
    return loaded


def _with_prefixes(task: Task, batches: list[Batch]) -> list[Batch]:
    return [batch._replace(prefix=task.prefix(batch)) for batch in batches]


def macs_by_width(architecture: Architecture, masks: MaskTree, group: str) -> np.ndarray:
    """(n + 1,) share of the dense network's MACs if the group keeps 0 to n filters.

    A layer reads the group, writes it, or both, so the count is a polynomial of degree 2 at most in
    the number of filters, and is interpolated from three counts.
    """
    n = masks[group].shape[0]
    widths = np.unique([1, (1 + n) // 2, n])
    counts = [
        sum(cost.macs(architecture, {**masks, group: np.arange(n) < width}).values())
        for width in widths
    ]
    polynomial = np.polynomial.Polynomial.fit(widths, counts, len(widths) - 1)
    return np.rint(polynomial(np.arange(n + 1))) / sum(cost.macs(architecture).values())
