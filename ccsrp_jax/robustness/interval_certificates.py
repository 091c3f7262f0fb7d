"""Certified L-infinity accuracy by interval bound propagation.

Attacks bound robust accuracy from above. These certificates bound it from below: no image in the
ball is classified otherwise, whatever the attack. The bounds are loose for networks that were not
trained for them, see `Recipe.certified`.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool

from ccsrp_jax.data.batching import padded_batches
from ccsrp_jax.data.splits import Split
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.gradients import Relu, SoftSpike
from ccsrp_jax.networks.inputs import checked_inputs
from ccsrp_jax.networks.interval_bounds import check_bounded, worst_margins
from ccsrp_jax.utils.errors import InputError, check_number


def certified(
    classifier: Classifier,
    network_state: Any,
    split: Split,
    eps: float | int,
    *,
    batch_size: int = 64,
    progress: Callable[[int], None] = lambda images: None,
) -> Bool[np.ndarray, "N"]:
    """Which images are classified correctly everywhere in their L-infinity ball.

    A certificate holds for what the network computes in float32, see `networks.intervals`; an image
    without one may be robust all the same.

    Args:
      classifier: a spiking network with the direct encoding; its surrogate does not matter.
      network_state: (variables, masks).
      split: images and labels.
      eps: radius in pixel units, where images span 0 to 1.
      batch_size: images per call.
      progress: called after every batch with the number of its images.

    Raises:
      InputError: a classifier without interval bounds, or images, labels or state that cannot be
        used.
    """
    split = checked_inputs(classifier, network_state, split)
    if not isinstance(classifier, Classifier) or isinstance(classifier.surrogate, Relu | SoftSpike):
        raise InputError(
            f"{type(classifier).__name__} has no spiking network to bound: give a "
            "Classifier(architecture) with a surrogate that keeps its spikes."
        )
    check_bounded(classifier.architecture)
    check_number("eps", eps, 0)
    check_number("batch_size", batch_size, 1)
    variables, masks = network_state
    found = []
    for images, labels, real in padded_batches(split, batch_size):
        margins = _worst_margins(
            classifier.architecture, variables, images, labels, float(eps), masks
        )
        others = np.arange(margins.shape[-1]) != np.asarray(labels)[:, None]
        found.append(((np.asarray(margins) < 0) | ~others).all(-1)[:real])
        progress(real)
    return np.concatenate(found)


def certified_accuracy(
    classifier: Classifier,
    network_state: Any,
    split: Split,
    eps: float | int,
    *,
    batch_size: int = 64,
) -> float:
    """Share of images that are classified correctly everywhere in their L-infinity ball.

    A lower bound of robust accuracy at `eps`, for every attack; see `certified`, which documents
    arguments and errors.
    """
    return float(certified(classifier, network_state, split, eps, batch_size=batch_size).mean())


_worst_margins = jax.jit(worst_margins, static_argnums=0)
