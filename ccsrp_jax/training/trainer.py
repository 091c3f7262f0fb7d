"""Surrogate-gradient training, clean or adversarial: epochs in Python, steps jitted."""

import itertools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from ccsrp_jax.attacks.base import unchecked
from ccsrp_jax.data.augmentation import Augmentation, alternating_flips, augment, is_alternating
from ccsrp_jax.data.splits import Split, to_unit_range
from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.batch_statistics import averaged, with_zero_statistics
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.inputs import checked_network
from ccsrp_jax.networks.interval_bounds import check_bounded
from ccsrp_jax.networks.masks import MaskTree
from ccsrp_jax.networks.neurons import Surrogate
from ccsrp_jax.training import conversion, overfitting
from ccsrp_jax.training.batches import Batch, full_batch, shuffled_batches, steps_per_epoch
from ccsrp_jax.training.frozen import frozen_leaves
from ccsrp_jax.training.parallel import ParallelClassifier
from ccsrp_jax.training.phases import check_phases, classifier_at, converted
from ccsrp_jax.training.recipe import (
    Recipe,
    certified_share,
    compiled_part,
    corrected_decay,
    learning_rate,
    needs_precise_bn,
    synchronizes,
)
from ccsrp_jax.training.regularizers import zero_pruned_kernels
from ccsrp_jax.training.step import StepInputs, TrainState, start_state, train_step
from ccsrp_jax.training.trades import trades_attack
from ccsrp_jax.training.whitening import with_whitening
from ccsrp_jax.utils import devices
from ccsrp_jax.utils.aliases import keyword_aliases
from ccsrp_jax.utils.errors import InputError
from ccsrp_jax.utils.keys import checked_key

STATISTICS_BATCHES = 16  # that exact statistics are of, if an epoch has as many
# folded into the key, for attacks that check for overfitting, and the ReLU network's activity
OVERFITTING, CONVERSION = 2**30 + 1, 2**30 + 2


class Epoch(NamedTuple):
    """The record of an epoch: means over its steps, and the last learning rate.

    Times leave out the epoch's first step, which may compile, unless it is the only one.
    """

    epoch: int  # from 0
    loss: float
    accuracy: float  # on the images as trained on: augmented, and attacked unless by TRADES
    learning_rate: float
    step_ms: float
    images_per_second: float
    # on some training images after an epoch of a one-step attack; see `overfitting`
    one_step_accuracy: float | None = None
    pgd_accuracy: float | None = None
    collapsed: bool | None = None  # whether they show catastrophic overfitting

    def as_row(self) -> dict[str, Any]:
        """The record by name, without what was not measured."""
        return {name: value for name, value in self._asdict().items() if value is not None}


@keyword_aliases(report="on_epoch", progress="on_step", keep="on_checkpoint")
def train(
    key: Array,
    classifier: Classifier,
    variables: dict,
    masks: Mapping[str, Any] | None,
    split: Split,
    recipe: Recipe,
    *,
    augmentation: Augmentation = "none",
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    on_step: Callable[[], None] = lambda: None,
    start: TrainState | None = None,
    first_epoch: int = 0,
    on_checkpoint: Callable[[int, TrainState], None] = lambda done, state: None,
    adapt: Callable[[int, TrainState, MaskTree], tuple[TrainState, MaskTree]] | None = None,
    mesh: Mesh | None = None,
) -> dict:
    """Trains the masked network and returns its variables, or their moving average.

    Args:
      key: for shuffling, augmentation, the attack's random starts and a stochastic encoding.
      classifier: architecture, and the surrogate of training and of its attack.
      variables: initial values; they are copied, so the caller's stay valid.
      masks: filters to keep, by default all; a masked network trains like its compacted
        counterpart.
      split: training images and labels.
      recipe: epochs, loss, optimizer, attack.
      augmentation: see `augment`.
      on_epoch: called after each epoch (earlier name: `report`).
      on_step: called after each step (earlier name: `progress`).
      start, first_epoch: state to resume from in place of `variables`, and the number of epochs
        behind it; the result is then bit for bit that of uninterrupted training.
      on_checkpoint: called after each epoch, after `on_epoch`, with the number of epochs done and
        the state, whose memory the next step reuses: save it or copy it (earlier name: `keep`).
      adapt: called after each epoch with the number of epochs done, the state and the masks;
        returns those of the next epoch. For pruning during training; masks of the same names and
        shapes cause no recompilation.
      mesh: devices over which every batch is sharded. Batch norm uses the statistics of the whole
        batch and random draws equal those of one device, so results differ by rounding only.

    Raises:
      InputError: the images, labels, masks or key cannot be used, the loss stops being finite,
        the recipe does not go with the surrogate, or the batch size is no multiple of the number
        of devices.
    """
    key = checked_key(key)
    kept, split = checked_network(classifier, variables, masks, split)
    _check(classifier, recipe, full_batch(recipe, len(split.labels)), mesh)
    if start is None:
        variables = _prepared(classifier.architecture, recipe, variables, kept, split)
    state = start_state(recipe, variables) if start is None else jax.tree.map(jnp.array, start)
    state, kept, key = (devices.put(mesh, each) for each in (state, dict(kept), key))
    images, labels = devices.put(mesh, tuple(split))
    training = _Training(
        _training_classifier(classifier, recipe, mesh),
        recipe,
        images,
        labels,
        augmentation,
        key,
    )
    history: list[overfitting.AttackedAccuracies] = []
    for epoch in range(first_epoch, recipe.epochs):
        if recipe.relu_epochs and epoch == recipe.relu_epochs:
            state = _converted(training, state, kept)
        state, record = _train_epoch(training, epoch, state, kept, on_step)
        if not (math.isfinite(record.loss) and bool(_finite(state.variables))):
            raise InputError(
                f"training diverged in epoch {epoch + 1} (mean loss {record.loss:g}): "
                f"use a learning rate below {recipe.learning_rate}."
            )
        if overfitting.is_checked(recipe, epoch):
            history.append(_attacked_accuracies(training, epoch, (state.variables, kept)))
            found = history[-1]
            record = record._replace(
                one_step_accuracy=found.one_step,
                pgd_accuracy=found.pgd,
                collapsed=overfitting.collapsed(history),
            )
        if adapt:
            state, kept = adapt(epoch + 1, state, kept)
        on_epoch(record)  # logged before the state that a resumed run goes on from
        on_checkpoint(epoch + 1, state)
    trained = state.variables if state.ema is None else state.ema
    steps = recipe.epochs * steps_per_epoch(recipe, len(split.labels))
    if needs_precise_bn(recipe, classifier.architecture, steps):
        trained = _with_exact_statistics(training, trained, kept)
    # off the mesh, for code that runs on one device
    return trained if mesh is None else jax.tree.map(jnp.asarray, jax.device_get(trained))


@dataclass(frozen=True)
class _Training:
    """What is the same in every epoch."""

    classifier: ParallelClassifier
    recipe: Recipe
    images: Array  # all of the split, on the devices
    labels: Array
    augmentation: Augmentation
    key: Array

    def classifier_at(self, epoch: int) -> ParallelClassifier:
        """The classifier of an epoch."""
        return classifier_at(self.classifier, self.recipe, epoch)


def _training_classifier(
    classifier: Classifier, recipe: Recipe, mesh: Mesh | None
) -> ParallelClassifier:
    dtype = jnp.bfloat16 if recipe.precision == "bfloat16" else jnp.float32
    return ParallelClassifier(
        classifier.architecture, classifier.surrogate, dtype, recipe.remat, mesh
    )


def _train_epoch(
    training: _Training,
    epoch: int,
    state: TrainState,
    masks: MaskTree,
    on_step: Callable[[], None],
) -> tuple[TrainState, Epoch]:
    classifier, recipe, count = training.classifier_at(epoch), training.recipe, len(training.labels)
    program, mesh = compiled_part(recipe, epoch), classifier.mesh
    steps = steps_per_epoch(recipe, count)
    # on CPUs, some dozens of unfinished calls that communicate with each other deadlock
    blocks = mesh is not None and mesh.devices.flat[0].platform == "cpu"
    records, rate, began = [], 0.0, time.perf_counter()
    for number, batch in enumerate(shuffled_batches(training.key, recipe, count, epoch)):
        inputs = _step_inputs(training, epoch, batch, (state.variables, masks))
        state, *record = train_step(classifier, program, state, masks, inputs)
        records.append(record)
        rate = inputs.learning_rate
        if number == 0 or blocks:
            jax.block_until_ready(state)
        if number == 0 and steps > 1:
            began = time.perf_counter()
        on_step()
    loss, accuracy = (float(jnp.mean(jnp.stack(each))) for each in zip(*records, strict=True))
    step_ms = 1e3 * (time.perf_counter() - began) / max(steps - 1, 1)
    images_per_second = 1e3 * full_batch(recipe, count) / step_ms
    return state, Epoch(epoch, loss, accuracy, rate, step_ms, images_per_second)


def _with_exact_statistics(training: _Training, variables: dict, masks: MaskTree) -> dict:
    """The network with statistics of batches like those of the last epoch.

    They are those of training steps that do not move the weights: no other program is compiled.
    """
    classifier, recipe, last = training.classifier, training.recipe, training.recipe.epochs - 1
    batches = shuffled_batches(training.key, recipe, len(training.labels), recipe.epochs)

    after = []
    for batch in itertools.islice(batches, STATISTICS_BATCHES):
        inputs = _step_inputs(training, last, batch, (variables, masks))
        state = start_state(recipe, with_zero_statistics(variables))
        still = inputs._replace(learning_rate=0.0)
        state, *_ = train_step(classifier, compiled_part(recipe, last), state, masks, still)
        statistics = jax.block_until_ready(state.variables["batch_stats"])
        after.append({"batch_stats": statistics})
    return averaged(variables, after)


def _attacked_accuracies(
    training: _Training, epoch: int, network_state: tuple[dict, MaskTree]
) -> overfitting.AttackedAccuracies:
    """Of the first training images, as many whole batches as hold `overfitting.IMAGES`."""
    classifier, recipe, count = training.classifier_at(epoch), training.recipe, len(training.labels)
    size = full_batch(recipe, count)
    number = max(min(overfitting.IMAGES, count) // size, 1)
    batches = [_first_images(training, first * size, size) for first in range(number)]
    key = jax.random.fold_in(jax.random.fold_in(training.key, OVERFITTING), epoch)
    attack = recipe.attack_at(epoch + 1)
    return overfitting.attacked_accuracies(classifier, network_state, batches, attack, key)


def _first_images(training: _Training, begin: int, count: int) -> tuple[Array, Array]:
    """Training images without augmentation, sharded as a batch is, and their labels."""
    indices = jnp.arange(begin, begin + count)
    everything = training.images, training.labels, indices, None
    return _augmented(training.key, *everything, kind="none", mesh=training.classifier.mesh)


def _converted(training: _Training, state: TrainState, masks: MaskTree) -> TrainState:
    """The state of the spiking network, after the epochs with ReLU."""
    count = min(conversion.IMAGES, len(training.labels))
    images = to_unit_range(training.images[:count])
    key = jax.random.fold_in(training.key, CONVERSION)
    architecture = training.classifier.architecture
    return converted(architecture, training.recipe, state, masks, images, key)


def _step_inputs(
    training: _Training, epoch: int, batch: Batch, network_state: tuple[dict, MaskTree]
) -> StepInputs:
    """Augments and attacks the images of a batch."""
    classifier, recipe = training.classifier_at(epoch), training.recipe
    key_augment, key_attack = jax.random.split(batch.key)
    x, y = _augmented(
        key_augment,
        training.images,
        training.labels,
        batch.indices,
        (training.key, epoch) if is_alternating(training.augmentation) else None,
        kind=training.augmentation,
        mesh=classifier.mesh,
    )
    steps = steps_per_epoch(recipe, len(training.labels))
    clean_share = recipe.clean_share(epoch)
    versions, shares = ([x], [clean_share]) if clean_share > 0 else ([], [])
    if recipe.attacks(epoch):
        attack = recipe.attack_at((batch.step + 0.5) / steps)
        versions.append(_attacked(classifier, network_state, x, y, recipe, attack, key_attack))
        shares.append(1 - clean_share)
    dropout = classifier.architecture.draws_in_training
    draws = classifier.stochastic or dropout or recipe.orthogonal
    certified = certified_share(recipe, (batch.step + 0.5) / steps)
    return StepInputs(
        versions=versions,
        labels=y,
        weights=np.array([share / len(batch.indices) for share in shares], np.float32),
        learning_rate=learning_rate(recipe, (batch.step + 0.5) / (recipe.epochs * steps)),
        ema_decay=corrected_decay(recipe.ema, batch.step + 1),
        key=jax.random.fold_in(key_attack, 1) if draws else None,
        clean=x if recipe.certifies(epoch) else None,
        certified_weight=recipe.certified * certified,
        certified_eps=recipe.certified_radius * certified if certified else 0.0,
        synchronizes=synchronizes(recipe, batch.step, recipe.epochs * steps),
    )


def _check(classifier: Classifier, recipe: Recipe, batch: int, mesh: Mesh | None) -> None:
    if recipe.membrane and not isinstance(classifier.surrogate, Surrogate):
        raise InputError(
            f"membrane {recipe.membrane} needs a surrogate with a width, and "
            f"{classifier.surrogate} has none: train with a Surrogate, or give 0."
        )
    if recipe.certified:
        check_bounded(classifier.architecture)
        if not isinstance(classifier.surrogate, Surrogate):
            raise InputError(
                f"certified {recipe.certified} needs a surrogate for both ends of a spike, and "
                f"{classifier.surrogate} is none: train with a Surrogate, or give 0."
            )
        _ = recipe.certified_radius  # refuses an attack of another norm
    check_phases(classifier.architecture, recipe)
    frozen_leaves(classifier.architecture, recipe)  # refuses networks without such layers
    devices.check_divisible(batch, mesh)


def _prepared(
    architecture: Architecture, recipe: Recipe, variables: dict, masks: MaskTree, split: Split
) -> dict:
    """Variables as training begins with them."""
    if recipe.first_layer == "whitened":
        variables = with_whitening(architecture, variables, split.images)
    if recipe.orthogonal:
        variables = zero_pruned_kernels(architecture, variables, masks)
    return variables


def _attacked(classifier, network_state, images, labels, recipe, attack, key):
    if recipe.trades:
        temperature = recipe.trades_temperature
        return trades_attack(classifier, network_state, images, attack, key, temperature)
    return unchecked(attack)(classifier, network_state, images, labels, key)


@jax.jit
def _finite(tree):
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


@partial(jax.jit, static_argnames=("kind", "mesh"))
def _augmented(key, images, labels, indices, alternation, *, kind, mesh):
    if mesh is not None:
        sharded = NamedSharding(mesh, P(devices.DEVICES))
        indices = jax.lax.with_sharding_constraint(indices, sharded)
    flips = None
    if alternation is not None:
        key_training, epoch = alternation
        flips = alternating_flips(key_training, indices, epoch, len(images))
    x = augment(key, to_unit_range(images[indices]), kind=kind, flips=flips)
    return x, labels[indices]
