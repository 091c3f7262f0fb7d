"""Accuracy and robust accuracy over whole splits, in batches of one compiled shape."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from ccsrp_jax import attacks
from ccsrp_jax.data import Split, unit


def batches(split: Split, size: int) -> Iterator[tuple[Array, Array, int]]:
    """Images in [0, 1], labels and how many of them are real.

    The last batch is filled up with its own first images, so that all have one shape.
    """
    size = min(size, len(split.labels))
    for start in range(0, len(split.labels), size):
        images, labels = (part[start : start + size] for part in split)
        real = len(labels)
        fill = np.arange(size) % real
        yield unit(jnp.asarray(images[fill])), jnp.asarray(labels[fill]), real


@partial(jax.jit, static_argnums=0)
def _hits(logits, params, images, labels):
    return logits(params, images).argmax(-1) == labels


def correct(
    logits: attacks.Logits,
    params: Any,
    split: Split,
    *,
    attack: attacks.PGD | None = None,
    key: Array | None = None,
    batch_size: int = 128,
    progress: Callable[[int], None] = lambda images: None,
) -> Bool[np.ndarray, "N"]:
    """Which images are classified correctly, after an attack if one is given.

    Args:
      logits, params: the classifier, as for `attacks.perturb`.
      split: images and labels.
      attack: None for clean accuracy.
      key: for the attack's random starts; each batch folds its number in.
      batch_size: images a call.
      progress: called with the number of images finished after every batch.
    """
    hits = []
    for number, (images, labels, real) in enumerate(batches(split, batch_size)):
        if attack is not None:
            batch_key = jax.random.fold_in(key, number)
            images = attacks.perturb(logits, params, images, labels, batch_key, attack)
        hits.append(np.asarray(_hits(logits, params, images, labels))[:real])
        progress(real)
    return np.concatenate(hits)
