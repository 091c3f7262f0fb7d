"""Accuracy and robust accuracy over whole splits, in batches of one compiled shape."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from ccsrp_jax.attacks.base import CLASSIFICATION_PASS, Attack, unchecked
from ccsrp_jax.data.batching import padded_batches
from ccsrp_jax.data.splits import Split, to_unit_range
from ccsrp_jax.networks.classifier import (
    NO_CLASS,
    ClassifierFn,
    is_stochastic,
    predicted_classes,
)
from ccsrp_jax.networks.inputs import checked_batch, checked_inputs, checked_logits
from ccsrp_jax.utils.errors import InputError
from ccsrp_jax.utils.fields import SIZE, Limits, integer
from ccsrp_jax.utils.keys import checked_key

VOTES = 16  # passes per image that a stochastic network's prediction is the majority of


def predict(
    classifier: ClassifierFn,
    network_state: Any,
    images: Shaped[Array | np.ndarray, "B H W C"],
    *,
    key: Array | None = None,
    votes: int = VOTES,
) -> Int[Array, "B"]:
    """Predicted classes; for a stochastic network, the majority over several passes.

    Args:
      classifier, network_state: see `networks.classifier`.
      images: in [0, 1], or uint8.
      key, votes: for a stochastic network; ties are broken by the mean probability.

    Returns:
      Of every image its class, or -1, which no label is: where a logit is not finite, or for a
      stochastic network where it is not in as many passes as vote for any class.

    Raises:
      InputError: no key for a stochastic network, or images, state or key that cannot be used.
    """
    images = to_unit_range(jnp.asarray(checked_batch(classifier, network_state, images)))
    votes = integer("votes", votes, SIZE)
    key = None if key is None else checked_key(key)
    return _predict(classifier, network_state, images, key, votes)


def _predict(classifier, network_state, images, key, votes):
    """As `predict`, without the check of the images."""
    if not is_stochastic(classifier):
        return _classes(classifier, network_state, images)
    if key is None:
        raise InputError("a stochastic network draws at random: give a key.")
    passes = [
        _one_pass(classifier, network_state, images, key_pass)
        for key_pass in jax.random.split(key, votes)
    ]
    counts, probabilities = jax.tree.map(lambda *parts: sum(parts), *passes)
    classes = (counts + 0.5 * probabilities / votes).argmax(-1)
    undecided = votes - counts.sum(-1) >= jnp.maximum(counts.max(-1), 1)
    return jnp.where(undecided, NO_CLASS, classes)


@partial(jax.jit, static_argnums=0)
def _classes(classifier, network_state, images):
    return predicted_classes(checked_logits(classifier(network_state, images), len(images)))


@partial(jax.jit, static_argnums=0)
def _one_pass(classifier, network_state, images, key):
    """The predicted class as a one-hot vector, and the probabilities; zeros where a logit is not
    finite."""
    z = checked_logits(classifier(network_state, images, key=key), len(images))
    probabilities = jnp.where(jnp.isfinite(z).all(-1, keepdims=True), jax.nn.softmax(z), 0)
    return jax.nn.one_hot(predicted_classes(z), z.shape[-1]), probabilities


def correct(
    classifier: ClassifierFn,
    network_state: Any,
    split: Split,
    *,
    attack: Attack | None = None,
    key: Array | None = None,
    batch_size: int = 128,
    votes: int = VOTES,
    progress: Callable[[int], None] = lambda images: None,
) -> Bool[np.ndarray, "N"]:
    """Which images are classified correctly, after an attack if one is given.

    An image is wrong where a logit is not finite, see `predict`.

    Args:
      classifier, network_state: see `networks.classifier`.
      split: images and labels.
      attack: None for clean accuracy.
      key: for the attack and the passes of a stochastic network; the number of each batch is
        folded in.
      batch_size: images per call.
      votes: passes per image, see `predict`.
      progress: called after every batch with the number of its images.

    Raises:
      InputError: no key where one is needed, or images, labels, state or key that cannot be used.
    """
    split = checked_inputs(classifier, network_state, split)
    batch_size = integer("batch_size", batch_size, Limits(1))
    votes = integer("votes", votes, SIZE)
    key = None if key is None else checked_key(key)
    classes = _classes_of_split(
        classifier, network_state, split, attack, key, batch_size, votes, progress
    )
    return classes == np.asarray(split.labels)


def _classes_of_split(
    classifier: ClassifierFn,
    network_state: Any,
    split: Split,
    attack: Attack | None,
    key: Array | None,
    batch_size: int,
    votes: int,
    progress: Callable[[int], None] = lambda images: None,
) -> Int[np.ndarray, "N"]:
    """Predicted classes, after an attack if one is given; the arguments were checked."""
    if key is None and (attack is not None or is_stochastic(classifier)):
        raise InputError("attacks and stochastic networks draw at random: give a key.")
    found = []
    for number, (images, labels, real) in enumerate(padded_batches(split, batch_size)):
        key_batch = _fold_in(key, number)
        if attack is not None and key_batch is not None:
            images = unchecked(attack)(classifier, network_state, images, labels, key_batch)
        key_votes = _fold_in(key_batch, CLASSIFICATION_PASS)
        classes = _predict(classifier, network_state, images, key_votes, votes)
        found.append(np.asarray(classes)[:real])
        progress(real)
    return np.concatenate(found)


def _fold_in(key: Array | None, number: int) -> Array | None:
    return None if key is None else jax.random.fold_in(key, number)


@dataclass(frozen=True)
class Evaluator:
    """A network, the images that it is evaluated on, and how its predictions are computed.

    Attributes:
      classifier, network_state: see `networks.classifier`.
      split: images and labels.
      batch_size: images per call.
      votes: passes per image, see `predict`.

    Raises:
      InputError: a batch size or a number of votes below 1, or images, labels or state that
        cannot be used.
    """

    classifier: ClassifierFn
    network_state: Any
    split: Split
    batch_size: int = 128
    votes: int = VOTES

    def __post_init__(self) -> None:
        object.__setattr__(self, "batch_size", integer("batch_size", self.batch_size, Limits(1)))
        object.__setattr__(self, "votes", integer("votes", self.votes, SIZE))
        split = checked_inputs(self.classifier, self.network_state, self.split)
        object.__setattr__(self, "split", split)

    @property
    def stochastic(self) -> bool:
        """Whether two passes of the network may differ."""
        return is_stochastic(self.classifier)

    def correct(self, key: Array, attack: Attack | None = None) -> Bool[np.ndarray, "N"]:
        """Which images are classified correctly, after an attack if one is given."""
        return self.classes(key, attack) == np.asarray(self.split.labels)

    def classes(self, key: Array, attack: Attack | None = None) -> Int[np.ndarray, "N"]:
        """Predicted classes, -1 where a logit is not finite, after an attack if one is given."""
        network = self.classifier, self.network_state
        return _classes_of_split(*network, self.split, attack, key, self.batch_size, self.votes)

    def predict(
        self, images: Float[Array, "B H W C"], key: Array, votes: int
    ) -> Int[np.ndarray, "B"]:
        """Predicted classes of one batch."""
        return np.asarray(_predict(self.classifier, self.network_state, images, key, votes))
