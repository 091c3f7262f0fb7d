"""Accuracy and robust accuracy over whole splits, in batches of one compiled shape."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ccsrp_jax.attacks.base import CLASSIFICATION_PASS, Attack
from ccsrp_jax.data.batching import padded_batches
from ccsrp_jax.data.splits import Split
from ccsrp_jax.networks.classifier import ClassifierFn, is_stochastic
from ccsrp_jax.utils.errors import InputError, check_number

VOTES = 16  # passes per image that a stochastic network's prediction is the majority of


def predict(
    classifier: ClassifierFn,
    network_state: Any,
    images: Float[Array, "B H W C"],
    *,
    key: Array | None = None,
    votes: int = VOTES,
) -> Int[Array, "B"]:
    """Predicted classes; for a stochastic network, the majority over several passes.

    Args:
      classifier, network_state: see `networks.classifier`.
      images: in [0, 1].
      key, votes: for a stochastic network; ties are broken by the mean probability.

    Raises:
      InputError: no key for a stochastic network.
    """
    if not is_stochastic(classifier):
        return _classes(classifier, network_state, images)
    if key is None:
        raise InputError("a stochastic network draws at random: give a key.")
    passes = [
        _one_pass(classifier, network_state, images, key_pass)
        for key_pass in jax.random.split(key, votes)
    ]
    counts, probabilities = jax.tree.map(lambda *parts: sum(parts), *passes)
    return (counts + 0.5 * probabilities / votes).argmax(-1)


@partial(jax.jit, static_argnums=0)
def _classes(classifier, network_state, images):
    return classifier(network_state, images).argmax(-1)


@partial(jax.jit, static_argnums=0)
def _one_pass(classifier, network_state, images, key):
    """The predicted class as a one-hot vector, and the probabilities."""
    z = classifier(network_state, images, key=key)
    return jax.nn.one_hot(z.argmax(-1), z.shape[-1]), jax.nn.softmax(z)


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
      InputError: no key where one is needed.
    """
    if key is None and (attack is not None or is_stochastic(classifier)):
        raise InputError("attacks and stochastic networks draw at random: give a key.")
    hits = []
    for number, (images, labels, real) in enumerate(padded_batches(split, batch_size)):
        key_batch = _fold_in(key, number)
        if attack is not None and key_batch is not None:
            images = attack(classifier, network_state, images, labels, key_batch)
        key_votes = _fold_in(key_batch, CLASSIFICATION_PASS)
        classes = predict(classifier, network_state, images, key=key_votes, votes=votes)
        hits.append(np.asarray(classes == labels)[:real])
        progress(real)
    return np.concatenate(hits)


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
      InputError: a batch size or a number of votes below 1.
    """

    classifier: ClassifierFn
    network_state: Any
    split: Split
    batch_size: int = 128
    votes: int = VOTES

    def __post_init__(self) -> None:
        check_number("batch_size", self.batch_size, 1)
        check_number("votes", self.votes, 1)

    @property
    def stochastic(self) -> bool:
        """Whether two passes of the network may differ."""
        return is_stochastic(self.classifier)

    def correct(self, key: Array, attack: Attack | None = None) -> Bool[np.ndarray, "N"]:
        """Which images are classified correctly, after an attack if one is given."""
        return correct(
            self.classifier,
            self.network_state,
            self.split,
            attack=attack,
            key=key,
            batch_size=self.batch_size,
            votes=self.votes,
        )

    def predict(
        self, images: Float[Array, "B H W C"], key: Array, votes: int
    ) -> Int[np.ndarray, "B"]:
        """Predicted classes of one batch."""
        arguments = self.classifier, self.network_state, images
        return np.asarray(predict(*arguments, key=key, votes=votes))
