"""Objectives of candidate masks for one group, all other groups held as they are.

Only what comes after a group's gate differs between its candidates, so everything up to
the gate is computed once per group and batch of images (`shared_prefix`) and only the
rest per candidate (`score_members`).
"""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, ScalarLike

from ccsrp_jax import cost
from ccsrp_jax.architecture import Architecture, Spike, gate_position
from ccsrp_jax.data import Split
from ccsrp_jax.evaluation import batches
from ccsrp_jax.masks import MaskTree
from ccsrp_jax.models import SpikingNetwork, Values


@partial(jax.jit, static_argnums=(0, 1))
def shared_prefix(
    architecture: Architecture,
    group: str,
    variables: dict,
    masks: MaskTree,
    images: Float[Array, "B H W C"],
) -> Values:
    """What every candidate for the group shares: the values after its LIF layer, ungated.

    Spikes come as uint8, a quarter of the memory and exact.
    """
    network, end = SpikingNetwork(architecture), gate_position(architecture, group) + 1
    others = {name: mask for name, mask in masks.items() if name != group}
    values = network.apply(variables, images, method="encode")
    values, _ = network.apply(variables, values, others, end=end, method="walk")
    spiking = {node.name for node in architecture.nodes if isinstance(node, Spike)}
    return {k: v.astype(jnp.uint8) if k in spiking else v for k, v in values.items()}


@partial(jax.jit, static_argnums=(0, 1))
def score_members(
    architecture: Architecture,
    group: str,
    variables: dict,
    masks: MaskTree,
    prefix: Values,
    labels: Int[Array, "B"],
    real: ScalarLike,
    members: Float[Array, "M n"],
) -> Float[Array, "2 M"]:
    """Errors and cross-entropies of every member, summed over the first `real` images.

    Logits that are not finite are an error of infinite cross-entropy.
    """
    network, gate = SpikingNetwork(architecture), gate_position(architecture, group)
    spiking = architecture.nodes[gate].name
    values = {k: v.astype(network.dtype) for k, v in prefix.items()}

    def score(member):
        gated = values | {spiking: values[spiking] * member.astype(network.dtype)}
        out, _ = network.apply(
            variables, gated, masks | {group: member}, begin=gate + 1, method="walk"
        )
        logits = network.readout(out)
        finite = jnp.isfinite(logits).all(-1)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        wrong = (logits.argmax(-1) != labels) | ~finite
        per_image = jnp.stack([wrong.astype(jnp.float32), jnp.where(finite, loss, jnp.inf)])
        return jnp.where(jnp.arange(labels.shape[0]) < real, per_image, 0.0).sum(-1)

    return jax.vmap(score, out_axes=1)(members)


class Task(NamedTuple):
    """One group's sub-problem: what its candidates are scored on, prefixes computed."""

    group: str
    clean: list[tuple[Values, Array, int]]  # prefix, labels, how many are real, by batch
    adversarial: list[tuple[Values, Array, int]]
    macs: np.ndarray  # share of the dense network's MACs left, by number of filters kept


def make_task(
    architecture: Architecture,
    variables: dict,
    masks: MaskTree,
    group: str,
    clean: Split,
    adversarial: Split,
    batch_size: int,
) -> Task:
    """Computes the prefixes of a group's sub-problem in the current network."""

    def prefixes(split):
        return [
            (shared_prefix(architecture, group, variables, masks, images), labels, real)
            for images, labels, real in batches(split, batch_size)
        ]

    return Task(
        group, prefixes(clean), prefixes(adversarial), _macs_left(architecture, masks, group)
    )


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
    """What a population of masks is worth; errors are one minus accuracy."""

    error: np.ndarray  # (M,) on the clean search images
    robust_error: np.ndarray  # (M,) on the shared adversarial set: a transfer estimate
    loss: np.ndarray  # (M,) mean cross-entropy, likewise; infinite if a logit is not finite
    robust_loss: np.ndarray
    macs: np.ndarray  # (M,) share of the dense network's

    def objectives(self, kind: Literal["accuracy", "loss"]) -> np.ndarray:
        """(M, 3): clean, robust and MACs, each to be minimised."""
        clean, robust = (
            (self.error, self.robust_error) if kind == "accuracy" else (self.loss, self.robust_loss)
        )
        return np.stack([clean, robust, self.macs], axis=-1)


def score(
    architecture: Architecture,
    variables: dict,
    masks: MaskTree,
    task: Task,
    members: Float[np.ndarray, "M n"],
    *,
    member_chunk: int = 1,
) -> Scores:
    """Scores a population of candidates for the task's group.

    Args:
      architecture, variables, masks: the current network, as given to `make_task`.
      task: the sub-problem.
      members: candidate masks.
      member_chunk: members a call; on a CPU small chunks win, on a GPU wide ones do.
    """
    fill = np.arange(-(-len(members) // member_chunk) * member_chunk) % len(members)
    chunks = jnp.asarray(members[fill]).reshape(-1, member_chunk, members.shape[1])

    def mean(batch_list):
        sums = np.zeros((2, len(fill)))
        for prefix, labels, real in batch_list:
            parts = [
                score_members(
                    architecture, task.group, variables, masks, prefix, labels, real, chunk
                )
                for chunk in chunks
            ]
            sums += np.concatenate([np.asarray(part) for part in parts], axis=-1)
        return sums[:, : len(members)] / sum(real for *_, real in batch_list)

    (error, loss), (robust_error, robust_loss) = mean(task.clean), mean(task.adversarial)
    kept = members.astype(bool).sum(-1)
    return Scores(error, robust_error, loss, robust_loss, task.macs[kept])
