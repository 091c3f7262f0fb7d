"""Accuracy and robust accuracy over whole splits, in batches of one compiled shape."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ccsrp_jax.attacks.base import CLASSIFICATION_PASS, Attack
from ccsrp_jax.data.batching import padded_batches
from ccsrp_jax.data.splits import Split
from ccsrp_jax.networks.classifier import ClassifierFn, is_stochastic
from ccsrp_jax.utils.errors import InputError

VOTES = 16  # passes over an image for a stochastic network's answer


def predict(
    logits: ClassifierFn,
    params: Any,
    images: Float[Array, "B H W C"],
    *,
    key: Array | None = None,
    votes: int = VOTES,
) -> Int[Array, "B"]:
    """Classes; of a stochastic network, those that most of its passes vote for.

    Args:
      logits, params: the classifier, as for `attacks`.
      images: in [0, 1].
      key, votes: for a stochastic network; equal votes are told apart by mean probability.
    """
    if not is_stochastic(logits):
        return _classes(logits, params, images)
    ballots = [_ballot(logits, params, images, each) for each in jax.random.split(key, votes)]
    cast, probability = jax.tree.map(lambda *parts: sum(parts), *ballots)
    return (cast + 0.5 * probability / votes).argmax(-1)


@partial(jax.jit, static_argnums=0)
def _classes(logits, params, images):
    return logits(params, images).argmax(-1)


@partial(jax.jit, static_argnums=0)
def _ballot(logits, params, images, key):
    z = logits(params, images, key=key)
    return jax.nn.one_hot(z.argmax(-1), z.shape[-1]), jax.nn.softmax(z)


def correct(
    logits: ClassifierFn,
    params: Any,
    split: Split,
    *,
    attack: Attack | None = None,
    key: Array | None = None,
    batch_size: int = 128,
    votes: int = VOTES,
    progress: Callable[[int], None] = lambda images: None,
) -> Bool[np.ndarray, "N"]:
    """Which images are classified correctly, after an attack if one is given.

    Args:
      logits, params: the classifier, as for `attacks`.
      split: images and labels.
      attack: None for clean accuracy.
      key: for the attack and a stochastic network's passes; each batch folds its number in.
      batch_size: images a call.
      votes: passes over an image, see `predict`.
      progress: called with the number of images finished after every batch.

    Raises:
      InputError: no key where one is needed.
    """
    if key is None and (attack is not None or is_stochastic(logits)):
        raise InputError("attacks and stochastic networks draw at random: give a key.")
    hits = []
    for number, (images, labels, real) in enumerate(padded_batches(split, batch_size)):
        key_batch = None if key is None else jax.random.fold_in(key, number)
        if attack is not None:
            images = attack(logits, params, images, labels, key_batch)
        key_votes = None if key is None else jax.random.fold_in(key_batch, CLASSIFICATION_PASS)
        classes = predict(logits, params, images, key=key_votes, votes=votes)
        hits.append(np.asarray(classes == labels)[:real])
        progress(real)
    return np.concatenate(hits)
