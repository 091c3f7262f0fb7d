"""Surrogate-gradient training, clean or adversarial; epochs in Python, steps jitted."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ccsrp_jax.attacks import PGD
from ccsrp_jax.data import Split, unit
from ccsrp_jax.errors import InputError, check_number
from ccsrp_jax.masks import MaskTree
from ccsrp_jax.models import Classifier, SpikingNetwork


@dataclass(frozen=True)
class Recipe:
    """How a network is trained or fine-tuned.

    Attributes:
      epochs: passes over the training images.
      batch_size: images a step; what is left over in an epoch is dropped.
      learning_rate: at its peak; a cosine takes it to 0 after a linear warm-up.
      warmup: share of the steps spent warming up.
      weight_decay: decoupled, on kernels only.
      adversarial: train on PGD examples of the batch, made with batch norm in inference
        mode; None trains on clean images.
      clean_epochs: of the epochs, how many at the start use clean images.
      clean_weight: weight of the clean images' loss beside the adversarial one's.
    """

    epochs: int = 20
    batch_size: int = 128
    learning_rate: float = 5e-3
    warmup: float = 0.1
    weight_decay: float = 1e-4
    adversarial: PGD | None = None
    clean_epochs: int = 0
    clean_weight: float = 0.0

    def __post_init__(self) -> None:
        check_number("epochs", self.epochs, 0)
        check_number("batch_size", self.batch_size, 1)
        check_number("learning_rate", self.learning_rate, 0, above=True)
        check_number("warmup", self.warmup, 0, 1)
        check_number("weight_decay", self.weight_decay, 0)
        check_number("clean_epochs", self.clean_epochs, 0)
        check_number("clean_weight", self.clean_weight, 0, 1)


class TrainState(NamedTuple):
    variables: dict  # {"params", "batch_stats"}
    moments: Any  # of the optimizer


class Epoch(NamedTuple):
    """One epoch's record: means over its steps, and the last learning rate."""

    epoch: int
    loss: float
    accuracy: float  # on the images as trained on: augmented, and attacked if adversarial
    learning_rate: float


@cache
def optimizer(weight_decay: float) -> optax.GradientTransformation:
    """AdamW up to its learning rate, which the jitted step takes as an argument."""
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(),
        optax.add_decayed_weights(weight_decay, mask=_kernels),
    )


def _kernels(params):
    """Weight decay leaves biases and batch norm alone."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _step(classifier, weight_decay, state, masks, images, labels, weights, learning_rate, key):
    """One step on the weighted mean loss; masks hold, batch norm uses the batch."""
    network = SpikingNetwork(classifier.architecture)

    def loss_fn(params):
        logits, updates = network.apply(
            {**state.variables, "params": params},
            images,
            masks,
            surrogate=classifier.surrogate,
            train=True,
            mutable=["batch_stats"],
            key=key,
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        hits = (logits.argmax(-1) == labels).astype(jnp.float32)
        return jnp.vdot(losses, weights), (updates, jnp.vdot(hits, weights))

    params = state.variables["params"]
    (loss, (updates, accuracy)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    direction, moments = optimizer(weight_decay).update(grads, state.moments, params)
    params = jax.tree.map(lambda p, d: p - learning_rate * d, params, direction)
    return TrainState({"params": params, **updates}, moments), loss, accuracy


@partial(jax.jit, static_argnames="kind")
def augment(
    key: Array, images: Float[Array, "B H W C"], *, kind: Literal["none", "shift", "crop_flip"]
) -> Float[Array, "B H W C"]:
    """Random shifts with zero padding: by 1/8 of the side, with flips for `crop_flip`.

    A shift of less than a pixel counts as one.
    """
    if kind == "none":
        return images
    b, h, w, _ = images.shape
    reach = max(1, h // 8)
    key_shift, key_flip = jax.random.split(key)
    padded = jnp.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    corners = jax.random.randint(key_shift, (b, 2), 0, 2 * reach + 1)

    def crop(image, corner):
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (h, w, image.shape[-1]))

    images = jax.vmap(crop)(padded, corners)
    if kind == "crop_flip":
        flips = jax.random.bernoulli(key_flip, 0.5, (b, 1, 1, 1))
        images = jnp.where(flips, images[:, :, ::-1], images)
    return images


def learning_rate(recipe: Recipe, progress: float) -> float:
    """Linear warm-up, then a cosine to 0; `progress` is the share of the steps done."""
    if progress < recipe.warmup:
        return recipe.learning_rate * progress / recipe.warmup
    after = (progress - recipe.warmup) / max(1 - recipe.warmup, 1e-9)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * min(after, 1.0)))


def steps_an_epoch(recipe: Recipe, images: int) -> int:
    """Full batches in an epoch; at least one."""
    return images // min(recipe.batch_size, images)


def train(
    key: Array,
    classifier: Classifier,
    variables: dict,
    masks: MaskTree,
    split: Split,
    recipe: Recipe,
    *,
    augmentation: Literal["none", "shift", "crop_flip"] = "none",
    report: Callable[[Epoch], None] = lambda epoch: None,
    progress: Callable[[], None] = lambda: None,
) -> dict:
    """Trains the masked network and returns its variables.

    Args:
      key: for shuffling, augmentation, the attack's random starts and a stochastic encoding.
      classifier: architecture, and the surrogate of training and of its attack.
      variables: to start from; they are copied, so the caller's stay valid.
      masks: filters that stay removed; a masked network trains like its compact twin.
      split: training images and labels.
      recipe: epochs, optimiser, attack.
      augmentation: see `augment`.
      report: called after each epoch.
      progress: called after each step.

    Raises:
      InputError: the loss stops being finite.
    """
    images, labels = jnp.asarray(split.images), jnp.asarray(split.labels)
    steps = steps_an_epoch(recipe, len(labels))
    batch = min(recipe.batch_size, len(labels))
    variables = jax.tree.map(jnp.copy, variables)
    state = TrainState(variables, optimizer(recipe.weight_decay).init(variables["params"]))
    for epoch in range(recipe.epochs):
        key_epoch = jax.random.fold_in(key, epoch)
        order = jax.random.permutation(key_epoch, len(labels))[: steps * batch]
        adversarial = recipe.adversarial is not None and epoch >= recipe.clean_epochs
        clean_share = recipe.clean_weight if adversarial else 1.0
        losses, hits = [], []
        for number, places in enumerate(order.reshape(steps, batch)):
            key_augment, key_attack = jax.random.split(jax.random.fold_in(key_epoch, number + 1))
            x, y = _batch(key_augment, images, labels, places, kind=augmentation)
            parts = [(x, clean_share)] if clean_share > 0 else []
            if adversarial and clean_share < 1:
                params = (state.variables, masks)
                attacked = recipe.adversarial(classifier, params, x, y, key_attack)
                parts.append((attacked, 1 - clean_share))
            rate = learning_rate(recipe, (epoch * steps + number + 0.5) / (recipe.epochs * steps))
            state, loss, accuracy = _step(
                classifier,
                recipe.weight_decay,
                state,
                masks,
                jnp.concatenate([part for part, _ in parts]),
                jnp.tile(y, len(parts)),
                jnp.repeat(jnp.array([share / batch for _, share in parts]), batch),
                rate,
                jax.random.fold_in(key_attack, 1) if classifier.stochastic else None,
            )
            losses.append(loss)
            hits.append(accuracy)
            progress()
        loss = float(jnp.mean(jnp.stack(losses)))
        if not (math.isfinite(loss) and bool(_finite(state.variables))):
            raise InputError(
                f"training diverged in epoch {epoch + 1} (mean loss {loss:g}): "
                f"use a learning rate below {recipe.learning_rate}."
            )
        report(Epoch(epoch, loss, float(jnp.mean(jnp.stack(hits))), rate))
    return state.variables


@jax.jit
def _finite(tree):
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


@partial(jax.jit, static_argnames="kind")
def _batch(key, images, labels, places, *, kind):
    return augment(key, unit(images[places]), kind=kind), labels[places]
