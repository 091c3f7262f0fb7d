"""Jitted programs that score candidate masks of one group.

Candidates for a group differ only in what follows the group's gate, the node whose spikes its mask
multiplies. `shared_prefix` computes everything up to the gate, once per group and batch of images;
`score_members` computes the rest for a number of members. Under a white-box attack nothing is
shared, since each candidate then has its own images: see `attack_members` and `score_attacked`.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from ccsrp_jax.attacks.base import unchecked
from ccsrp_jax.attacks.gradients import loss_and_gradient
from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.networks.architecture import Architecture, gate_position
from ccsrp_jax.networks.batch_statistics import (
    Statistics,
    batch_moments,
    with_statistics,
    with_zero_statistics,
)
from ccsrp_jax.networks.classifier import Classifier, key_kwargs
from ccsrp_jax.networks.interval_bounds import worst_margins
from ccsrp_jax.networks.masks import MaskTree, gate
from ccsrp_jax.networks.spiking_network import SpikingNetwork, Values
from ccsrp_jax.utils.devices import DEVICES, replicate


@partial(jax.jit, static_argnums=(0, 1))
def shared_prefix(
    architecture: Architecture,
    group: str,
    variables: dict,
    masks: MaskTree,
    images: Float[Array, "B H W C"],
    key: Array | None = None,
) -> Values:
    """Values shared by all candidates for the group: those up to its gate, before masking.

    Spikes are stored as uint8, which is exact and takes a quarter of the memory. A stochastic
    network draws once, with `key`, for all candidates.
    """
    network, end = SpikingNetwork(architecture), gate_position(architecture, group) + 1
    others = {name: mask for name, mask in masks.items() if name != group}
    values = network.apply(variables, images, key, method="encode")
    values, _ = network.apply(variables, values, others, end=end, key=key, method="walk")
    spiking = {node.name for node in architecture.nodes if node.spiking}
    return {k: v.astype(jnp.uint8) if k in spiking else v for k, v in values.items()}


@partial(jax.jit, static_argnums=(0, 1), static_argnames="mesh")
def score_members(
    architecture: Architecture,
    group: str,
    variables: dict,
    masks: MaskTree,
    prefix: Values,
    labels: Int[Array, "B"],
    members: Float[Array, "M n"],
    key: Array | None = None,
    statistics: Statistics | None = None,
    *,
    mesh: Mesh | None = None,
) -> Float[Array, "2 M B"]:
    """Error (0 or 1) and cross-entropy of every member on every image.

    Non-finite logits count as an error of infinite cross-entropy. On a mesh, members are sharded
    over the devices. Stochastic neurons need the key of `shared_prefix`. `statistics` of batch
    norm, each of shape (M, C), replace those of the network; see `suffix_moments`.
    """
    score_all = partial(_score_suffix, architecture, group)
    if mesh is not None:
        score_all = _shard_members(score_all, mesh, P())
    network = variables, dict(masks)
    return replicate(score_all(*network, prefix, labels, members, key, statistics), mesh)


@partial(jax.jit, static_argnums=(0, 1), static_argnames="mesh")
def suffix_moments(
    architecture: Architecture,
    group: str,
    variables: dict,
    masks: MaskTree,
    prefix: Values,
    members: Float[Array, "M n"],
    key: Array | None = None,
    *,
    mesh: Mesh | None = None,
) -> Statistics:
    """Statistics of batch norm behind the group's gate, (M, C) each, of every member on a batch.

    They are those of training mode: every layer is normalized by the batch's own, as in
    `batch_statistics.refreshed`. Networks that draw in training need a key.
    """
    find_all = partial(_suffix_moments, architecture, group)
    if mesh is not None:
        specs = (P(), P(), P(), P(DEVICES), P())
        find_all = jax.shard_map(
            find_all, mesh=mesh, in_specs=specs, out_specs=P(DEVICES), check_vma=False
        )
    return replicate(find_all(variables, dict(masks), prefix, members, key), mesh)


def _suffix_moments(architecture, group, variables, masks, prefix, members, key):
    network, position = SpikingNetwork(architecture), gate_position(architecture, group)
    behind = {node.name for node in architecture.nodes[position + 1 :]}
    start = with_zero_statistics(variables)

    def find_one(member):
        after: Any
        _, after = network.apply(
            *(start, _gated(network, group, prefix, member), masks | {group: member}),
            begin=position + 1,
            train=True,
            key=key,
            method="walk",
            mutable=["batch_stats"],
        )
        return {path: x for path, x in batch_moments(after).items() if path[0] in behind}

    return jax.vmap(find_one)(members)


def _gated(network: SpikingNetwork, group: str, prefix: Values, member: Array) -> Values:
    """The values behind the group's gate with this member."""
    architecture = network.architecture
    spiking = architecture.nodes[gate_position(architecture, group)].name
    mask = gate(architecture, spiking, {group: member})
    assert mask is not None  # the gate is the group's own
    values = {k: v.astype(network.dtype) for k, v in prefix.items()}
    return values | {spiking: values[spiking] * mask.astype(network.dtype)}


@partial(jax.jit, static_argnums=(0, 1), static_argnames="mesh")
def score_pairs(
    architecture: Architecture,
    group: str,
    variables: dict,
    masks: MaskTree,
    prefix: Values,
    labels: Int[Array, "all_B"],
    members: Float[Array, "D n"],
    *,
    mesh: Mesh,
) -> Float[Array, "2 D B"]:
    """As `score_members`, for one member per device, each on its own batch.

    Args:
      prefix, labels: of D batches, one per device; see `devices.stack_shards`. Not for stochastic
        neurons, of which each batch has its own key.
    """
    score_all = partial(_score_suffix, architecture, group)
    score_all = _shard_members(score_all, mesh, P(DEVICES))
    return score_all(variables, dict(masks), prefix, labels, members, None, None)


def _score_suffix(architecture, group, variables, masks, prefix, labels, members, key, statistics):
    """(2, M, B) errors and cross-entropies from the group's gate on, on one device."""
    network, position = SpikingNetwork(architecture), gate_position(architecture, group)

    def score_one(member, statistics):
        own = variables if statistics is None else with_statistics(variables, statistics)
        out, _ = network.apply(
            *(own, _gated(network, group, prefix, member), masks | {group: member}),
            begin=position + 1,
            key=key,
            method="walk",
        )
        return error_and_loss(network.readout(out), labels)

    return jax.vmap(score_one, out_axes=1)(members, statistics)


def _shard_members(score_all, mesh, batch):
    """`score_all` over a mesh: variables and masks replicated, members and their statistics
    sharded, prefix and labels partitioned as `batch`."""
    specs = (P(), P(), batch, batch, P(DEVICES), P(), P(DEVICES))
    return jax.shard_map(
        score_all, mesh=mesh, in_specs=specs, out_specs=P(None, DEVICES), check_vma=False
    )


def attack_members(
    classifier: Classifier,
    variables: dict,
    members: MaskTree,
    attack: PGD,
    images: Float[Array, "M B H W C"],
    labels: Int[Array, "B"],
    key: Array,
) -> Float[Array, "M B H W C"]:
    """Adversarial images for every member, from equal random starts.

    `members` is a tree of the masks of all groups with a leading axis of members. The clean images
    have that axis too, so that one program serves all groups and steps.
    """

    def attack_one(masks, images):
        return unchecked(attack)(classifier, (variables, masks), images, labels, key)

    if len(images) == 1:  # compiles nothing new on a CPU
        return attack_one(jax.tree.map(lambda mask: mask[0], members), images[0])[None]
    return jax.vmap(attack_one)(members, images)


@partial(jax.jit, static_argnums=0)
def member_gradients(classifier, variables, members, images, labels, key):
    """One input gradient for every member; the memory of an attack is predicted from it."""

    def gradient_one(masks, images):
        key_one = key if classifier.stochastic else None
        network = variables, masks
        return loss_and_gradient(classifier, network, images, labels, key=key_one).gradient

    return jax.vmap(gradient_one)(members, images)


@partial(jax.jit, static_argnums=0, static_argnames="mesh")
def score_attacked(
    classifier: Classifier,
    variables: dict,
    members: MaskTree,
    images: Float[Array, "M B H W C"],
    labels: Int[Array, "B"],
    key: Array,
    *,
    mesh: Mesh | None = None,
) -> Float[Array, "2 M B"]:
    """As `score_members`, for masks of all groups and each member on its own images."""

    def score_one(masks, images):
        logits = classifier((variables, masks), images, **key_kwargs(classifier, key))
        return error_and_loss(logits, labels)

    return replicate(jax.vmap(score_one, out_axes=1)(members, images), mesh)


@dataclass(frozen=True)
class CertifiedBall:
    """In place of an attack: robust scores by interval bounds in an L-infinity ball.

    Attributes:
      eps: radius in pixel units.
    """

    eps: float


@partial(jax.jit, static_argnums=0, static_argnames="mesh")
def score_certified(
    architecture: Architecture,
    variables: dict,
    members: MaskTree,
    images: Float[Array, "B H W C"],
    labels: Int[Array, "B"],
    eps: Float[Array, ""] | float,
    *,
    mesh: Mesh | None = None,
) -> Float[Array, "2 M B"]:
    """As `score_attacked`, for the worst logits in the ball: an image that is not certified is an
    error."""

    def score_one(masks):
        margins = worst_margins(architecture, variables, images, labels, eps, masks)
        return error_and_loss(margins, labels)

    return replicate(jax.vmap(score_one, out_axes=1)(members), mesh)


def error_and_loss(logits: Float[Array, "B K"], labels: Int[Array, "B"]) -> Float[Array, "2 B"]:
    """Error (0 or 1) and cross-entropy; 1 and infinity where a logit is not finite."""
    finite = jnp.isfinite(logits).all(-1)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    error = (logits.argmax(-1) != labels) | ~finite
    return jnp.stack([error.astype(jnp.float32), jnp.where(finite, loss, jnp.inf)])
