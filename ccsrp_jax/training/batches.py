"""Shuffled batches of an epoch, as indices of images."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
from jaxtyping import Array, Int

from ccsrp_jax.training.recipe import Recipe


class Batch(NamedTuple):
    """One step's share of an epoch."""

    step: int  # since the start of training
    key: Array  # for all that the step draws
    indices: Int[Array, "B"]  # of its images


def full_batch(recipe: Recipe, images: int) -> int:
    """Images a step: the recipe's batch size, or all images if there are fewer."""
    return min(recipe.batch_size, images)


def steps_per_epoch(recipe: Recipe, images: int) -> int:
    """Full batches in an epoch; at least one."""
    return images // full_batch(recipe, images)


def shuffled_batches(key: Array, recipe: Recipe, images: int, epoch: int) -> Iterator[Batch]:
    """The full batches of an epoch in random order; the rest of the images is left out.

    Args:
      key: of the whole training; it is folded with the epoch and then with the step.
      recipe: for its batch size.
      images: how many there are.
      epoch: counted from 0.
    """
    steps, batch = steps_per_epoch(recipe, images), full_batch(recipe, images)
    key_epoch = jax.random.fold_in(key, epoch)
    order = jax.random.permutation(key_epoch, images)[: steps * batch]
    for number, indices in enumerate(order.reshape(steps, batch)):
        yield Batch(epoch * steps + number, jax.random.fold_in(key_epoch, number + 1), indices)
