"""Surrogate-gradient training, clean or adversarial; epochs in Python, steps jitted."""

import dataclasses
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.data.augmentation import Augmentation, augment
from ccsrp_jax.data.splits import Split, to_unit_range
from ccsrp_jax.networks import masks as masking
from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.masks import MaskTree
from ccsrp_jax.networks.neurons import Surrogate
from ccsrp_jax.networks.nodes import Conv, Dense
from ccsrp_jax.training import losses
from ccsrp_jax.training.batches import full_batch, shuffled_batches, steps_per_epoch
from ccsrp_jax.training.parallel import Trainee
from ccsrp_jax.training.recipe import Recipe, keep_share, learning_rate, optimizer
from ccsrp_jax.training.regularizers import membrane_mass, orthogonalise, sparse_gradient
from ccsrp_jax.training.trades import raise_divergence
from ccsrp_jax.utils import devices
from ccsrp_jax.utils.errors import InputError

# What the compiled step does not depend on, so that fine-tuning finds training's.
NOT_COMPILED = {
    "epochs": 1,
    "batch_size": 1,
    "learning_rate": 1.0,
    "warmup": 0.0,
    "adversarial": PGD(),
    "clean_epochs": 0,
    "clean_weight": 0.0,
}


class TrainState(NamedTuple):
    """All that an epoch needs of those before it."""

    variables: dict  # {"params", "batch_stats"}
    moments: Any  # of the optimizer
    ema: dict | None = None  # moving average of the variables, if the recipe has one


class Epoch(NamedTuple):
    """One epoch's record: means over its steps, and the last learning rate.

    Times leave out the epoch's first step, which may compile, unless it has no other.
    """

    epoch: int
    loss: float
    accuracy: float  # on the images as trained on: augmented, and attacked unless by TRADES
    learning_rate: float
    step_ms: float
    images_per_second: float


def start_state(recipe: Recipe, variables: dict) -> TrainState:
    """The state before the first epoch, in memory of its own."""
    variables = jax.tree.map(jnp.array, variables)
    ema = jax.tree.map(jnp.array, variables) if recipe.ema else None
    return TrainState(variables, optimizer(recipe).init(variables["params"]), ema)


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _step(trainee, recipe, state, masks, parts, labels, shares, rate, old, key):
    """One step on the weighted mean loss; masks hold, batch norm uses the batch.

    `parts` are versions of the same images, clean, attacked or both in this order, and
    `shares` their weights over the batch size. `old` is the share of the moving average so far.
    """
    batch = len(labels)
    images, labels = jnp.concatenate(parts), jnp.tile(labels, len(parts))
    weights = jnp.repeat(shares, batch)
    threshold = trainee.architecture.neuron.threshold

    def loss_fn(params):
        variables = {**state.variables, "params": params}
        logits, potentials, updates = trainee.forward(
            variables, masks, images, key, train=True, activity=recipe.membrane > 0
        )
        if recipe.loss == "tet":
            each = losses.tet(logits, labels, threshold, recipe.tet_weight, recipe.label_smoothing)
        else:
            each = losses.cross_entropy(logits, labels, recipe.label_smoothing)
        loss = jnp.vdot(each, weights)
        if recipe.trades and len(parts) == 2:
            clean, attacked = jnp.split(logits, 2, axis=1)
            apart = losses.divergence(clean, attacked, recipe.trades_temperature)
            loss += recipe.trades * apart.mean()
        if recipe.sparse_gradient:
            found = sparse_gradient(trainee, variables, masks, images, labels, key=key)
            loss += recipe.sparse_gradient * found
        if recipe.membrane:
            width = trainee.surrogate.width
            loss += recipe.membrane * membrane_mass(potentials, threshold, width)
        hits = (logits.mean(0).argmax(-1) == labels).astype(jnp.float32)
        return loss, (updates, jnp.vdot(hits, weights))

    params = state.variables["params"]
    (loss, (updates, accuracy)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    direction, moments = optimizer(recipe).update(grads, state.moments, params)
    params = jax.tree.map(lambda p, d: p - rate * d, params, direction)
    if recipe.orthogonal:
        params = orthogonalise(params, recipe.orthogonal, jax.random.fold_in(key, 1))
    variables, ema = {"params": params, **updates}, state.ema
    if recipe.ema:
        ema = jax.tree.map(lambda a, w: old * a + (1 - old) * w, ema, variables)
    return TrainState(variables, moments, ema), loss, accuracy


def train(
    key: Array,
    classifier: Classifier,
    variables: dict,
    masks: MaskTree,
    split: Split,
    recipe: Recipe,
    *,
    augmentation: Augmentation = "none",
    report: Callable[[Epoch], None] = lambda epoch: None,
    progress: Callable[[], None] = lambda: None,
    start: TrainState | None = None,
    first_epoch: int = 0,
    keep: Callable[[int, TrainState], None] = lambda done, state: None,
    adapt: Callable[[int, TrainState, MaskTree], tuple[TrainState, MaskTree]] | None = None,
    mesh: Mesh | None = None,
) -> dict:
    """Trains the masked network and returns its variables, or their moving average.

    Args:
      key: for shuffling, augmentation, the attack's random starts and a stochastic encoding.
      classifier: architecture, and the surrogate of training and of its attack.
      variables: to start from; they are copied, so the caller's stay valid.
      masks: filters that stay removed; a masked network trains like its compact twin.
      split: training images and labels.
      recipe: epochs, loss, optimiser, attack.
      augmentation: see `augment`.
      report: called after each epoch.
      progress: called after each step.
      start, first_epoch: the state to go on from in place of `variables`, and how many epochs
        it has behind it; the result is then, bit for bit, that of training in one go.
      keep: called after each epoch, before `report`, with the number of epochs done and the
        state, whose memory the next step reuses: save it or copy it.
      adapt: called after each epoch with the number of epochs done, the state and the masks; gives
        those of the next epoch. For pruning during training; masks of the same names and shapes
        compile nothing anew.
      mesh: devices to deal every batch out over. Batch norm has the moments of the whole batch
        and draws are those of one device, so results differ by rounding alone.

    Raises:
      InputError: the loss stops being finite, the recipe does not go with the surrogate, or the
        batch size is no multiple of the devices.
    """
    count = len(split.labels)
    steps, batch = steps_per_epoch(recipe, count), full_batch(recipe, count)
    _check(classifier, recipe, batch, mesh)
    dtype = jnp.bfloat16 if recipe.precision == "bfloat16" else jnp.float32
    trainee = Trainee(classifier.architecture, classifier.surrogate, dtype, recipe.remat, mesh)
    program = dataclasses.replace(recipe, **NOT_COMPILED)
    if recipe.orthogonal and start is None:
        variables = silenced(classifier.architecture, variables, masks)
    state = start_state(recipe, variables) if start is None else jax.tree.map(jnp.array, start)
    state, masks, key = (devices.put(mesh, each) for each in (state, dict(masks), key))
    images, labels = devices.put(mesh, tuple(split))
    # on CPUs, some dozens of unfinished calls that talk to each other lock up
    waits = mesh is not None and mesh.devices.flat[0].platform == "cpu"
    for epoch in range(first_epoch, recipe.epochs):
        clean_share, attacks = recipe.clean_share(epoch), recipe.attacks(epoch)
        records, began = [], time.perf_counter()
        for step, key_step, indices in shuffled_batches(key, recipe, count, epoch):
            first = step == epoch * steps
            key_augment, key_attack = jax.random.split(key_step)
            x, y = _batch(key_augment, images, labels, indices, kind=augmentation, mesh=mesh)
            parts = [(x, clean_share)] if clean_share > 0 else []
            if attacks:
                attacked = _attacked(trainee, (state.variables, masks), x, y, recipe, key_attack)
                parts.append((attacked, 1 - clean_share))
            rate = learning_rate(recipe, (step + 0.5) / (recipe.epochs * steps))
            draws = classifier.stochastic or recipe.orthogonal
            state, *record = _step(
                trainee,
                program,
                state,
                masks,
                [part for part, _ in parts],
                y,
                np.array([share / batch for _, share in parts], np.float32),
                rate,
                keep_share(recipe.ema, step + 1),
                jax.random.fold_in(key_attack, 1) if draws else None,
            )
            records.append(record)
            if first or waits:
                jax.block_until_ready(state)
            if first and steps > 1:
                began = time.perf_counter()
            progress()
        means = [float(jnp.mean(jnp.stack(each))) for each in zip(*records, strict=True)]
        loss, accuracy = means
        step_ms = 1e3 * (time.perf_counter() - began) / max(steps - 1, 1)
        if not (math.isfinite(loss) and bool(_finite(state.variables))):
            raise InputError(
                f"training diverged in epoch {epoch + 1} (mean loss {loss:g}): "
                f"use a learning rate below {recipe.learning_rate}."
            )
        if adapt:
            state, masks = adapt(epoch + 1, state, masks)
        keep(epoch + 1, state)
        report(Epoch(epoch, loss, accuracy, rate, step_ms, 1e3 * batch / step_ms))
    trained = state.ema if recipe.ema else state.variables
    # from a mesh back to where other code expects them
    return trained if mesh is None else jax.tree.map(jnp.asarray, jax.device_get(trained))


def _check(classifier: Classifier, recipe: Recipe, batch: int, mesh: Mesh | None) -> None:
    if recipe.membrane and not isinstance(classifier.surrogate, Surrogate):
        raise InputError(
            f"membrane {recipe.membrane} needs the width of a surrogate, which "
            f"{classifier.surrogate} has not: train through a Surrogate, or give 0."
        )
    if batch % devices.device_count(mesh):
        raise InputError(
            f"a batch of {batch} images cannot be sharded evenly over {devices.device_count(mesh)} "
            "devices: give a batch size that is a multiple of them."
        )


def _attacked(trainee, params, images, labels, recipe, key):
    attack = recipe.adversarial
    if recipe.trades:
        return raise_divergence(trainee, params, images, attack, key, recipe.trades_temperature)
    return attack(trainee, params, images, labels, key)


def silenced(architecture: Architecture, variables: dict, masks: MaskTree) -> dict:
    """The same masked network with zeros for all weights that the masks take out of effect.

    `orthogonalise` mixes filters, and those that are gone are not to take part; as no gradient
    reaches these weights, they stay 0.
    """
    alive = masking.alive(architecture, masks)
    params = dict(masking.fold(variables, masks)["params"])
    for node in architecture.nodes:
        if isinstance(node, Conv | Dense):
            kernel = params[node.name]["kernel"]
            kernel = kernel * alive[node.input][:, None] * alive[node.name]
            params[node.name] = {**params[node.name], "kernel": kernel}
    return {**variables, "params": params}


@jax.jit
def _finite(tree):
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


@partial(jax.jit, static_argnames=("kind", "mesh"))
def _batch(key, images, labels, indices, *, kind, mesh):
    if mesh is not None:
        sharded = NamedSharding(mesh, P(devices.DEVICES))
        indices = jax.lax.with_sharding_constraint(indices, sharded)
    return augment(key, to_unit_range(images[indices]), kind=kind), labels[indices]
