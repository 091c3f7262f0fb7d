"""The programs that score candidate masks: what all candidates share, and what each adds.

Only what comes after a group's gate differs between candidates for the group. The first
program computes everything up to the gate, once per group and batch of images; the second
the rest, for some members at a time. Under a white-box attack nothing is shared, as each
candidate then has its own images.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from ccsrp_jax.attacks.gradients import loss_and_gradient
from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.networks.architecture import Architecture, gate_position
from ccsrp_jax.networks.classifier import Classifier, key_kwargs
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
    """What every candidate for the group shares: the values after its LIF layer, ungated.

    Spikes come as uint8, a quarter of the memory and exact. A stochastic encoding draws once,
    with the key, for all candidates.
    """
    network, end = SpikingNetwork(architecture), gate_position(architecture, group) + 1
    others = {name: mask for name, mask in masks.items() if name != group}
    values = network.apply(variables, images, key, method="encode")
    values, _ = network.apply(variables, values, others, end=end, method="walk")
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
    *,
    mesh: Mesh | None = None,
) -> Float[Array, "2 M B"]:
    """Error (0 or 1) and cross-entropy of every member on every image.

    Logits that are not finite are an error of infinite cross-entropy. On a mesh, each
    device scores its share of the members.
    """
    score_all = partial(_score_suffix, architecture, group)
    if mesh is not None:
        score_all = _sharded(score_all, mesh, P(), P())
    return replicate(score_all(variables, dict(masks), prefix, labels, members), mesh)


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
    """As `score_members`, of one member a device, each on a batch of its own.

    Args:
      prefix, labels: of as many batches as there are devices, see `devices.stack_shards`.
    """
    score_all = partial(_score_suffix, architecture, group)
    return _sharded(score_all, mesh, P(DEVICES), P(DEVICES))(
        variables, dict(masks), prefix, labels, members
    )


def _score_suffix(architecture, group, variables, masks, prefix, labels, members):
    """(2, M, B), what follows the group's gate for every member, on one device."""
    network, position = SpikingNetwork(architecture), gate_position(architecture, group)
    spiking = architecture.nodes[position].name
    values = {k: v.astype(network.dtype) for k, v in prefix.items()}

    def score_one(member):
        mask = gate(architecture, spiking, {group: member})
        gated = values | {spiking: values[spiking] * mask.astype(network.dtype)}
        out, _ = network.apply(
            variables, gated, masks | {group: member}, begin=position + 1, method="walk"
        )
        return judge(network.readout(out), labels)

    return jax.vmap(score_one, out_axes=1)(members)


def _sharded(score_all, mesh, prefix, labels):
    """Over a mesh: the network whole, members dealt out, prefix and labels as said."""
    specs = (P(), P(), prefix, labels, P(DEVICES))
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
    """Adversarial images for every member, from the same random starts.

    `members` are whole mask trees with an axis of members before the filters, and the images
    have that axis from the start, so that one program serves all groups and steps.
    """

    def attack_one(masks, images):
        return attack(classifier, (variables, masks), images, labels, key)

    if len(images) == 1:  # saves a program on a CPU
        return attack_one(jax.tree.map(lambda mask: mask[0], members), images[0])[None]
    return jax.vmap(attack_one)(members, images)


@partial(jax.jit, static_argnums=0)
def member_slopes(classifier, variables, members, images, labels, key):
    """A gradient for every member, from which the memory of an attack is predicted."""

    def slope_one(masks, images):
        key_slope = key if classifier.stochastic else None
        result = loss_and_gradient(classifier, (variables, masks), images, labels, key=key_slope)
        return result.gradient

    return jax.vmap(slope_one)(members, images)


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
    """As `score_members`, of whole mask trees on images of their own."""

    def score_one(masks, images):
        return judge(classifier((variables, masks), images, **key_kwargs(classifier, key)), labels)

    return replicate(jax.vmap(score_one, out_axes=1)(members, images), mesh)


def judge(logits: Float[Array, "B K"], labels: Int[Array, "B"]) -> Float[Array, "2 B"]:
    """Error and cross-entropy; of logits that are not finite, 1 and infinite."""
    finite = jnp.isfinite(logits).all(-1)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    wrong = (logits.argmax(-1) != labels) | ~finite
    return jnp.stack([wrong.astype(jnp.float32), jnp.where(finite, loss, jnp.inf)])
