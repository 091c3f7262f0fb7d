"""Randomized smoothing: certified L2 radii of a classifier averaged over Gaussian noise.

The smoothed classifier g(x) predicts the class that the network predicts most often under Gaussian
noise on the pixels. Attacks bound robust accuracy from above; a certificate bounds that of g from
below, independent of the network's gradients, masked or not.

References:
  Cohen, Rosenfeld, Kolter, Certified Adversarial Robustness via Randomized Smoothing, ICML 2019.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from ccsrp_jax.data.splits import to_unit_range
from ccsrp_jax.networks.classifier import (
    NO_CLASS,
    ClassifierFn,
    is_stochastic,
    predicted_classes,
)
from ccsrp_jax.networks.inputs import checked_batch
from ccsrp_jax.utils.errors import InputError
from ccsrp_jax.utils.fields import POSITIVE, SIZE, Limits, check_fields, integer
from ccsrp_jax.utils.keys import checked_key

ABSTAIN = NO_CLASS


@dataclass(frozen=True)
class Smoothing:
    """Gaussian noise, and the number of its draws per image.

    Attributes:
      sigma: standard deviation of the noise on every pixel, where images span [0, 1].
      selection_samples: draws that select the class to certify; 100 in Cohen et al.
      samples: further draws that bound its probability, or that `predict` counts. They limit
        the radius to sigma Phi^-1(alpha^(1 / samples)): 2.5 sigma by default, and 3.8 sigma
        with the 100,000 of Cohen et al.
      alpha: probability of a false certificate or prediction, for each image separately.
    """

    sigma: float
    selection_samples: int = 100
    samples: int = 1000
    alpha: float = 0.001

    def __post_init__(self) -> None:
        limits = {"sigma": POSITIVE, "selection_samples": SIZE, "samples": SIZE}
        check_fields(self, "smoothing", limits)
        if not 0 < self.alpha < 1:
            raise InputError(
                f"smoothing alpha {self.alpha} is outside (0, 1): give the probability of "
                "a false certificate that you accept, such as 0.001."
            )


class Certificates(NamedTuple):
    """Certified classes and radii.

    The smoothed classifier predicts the certified class everywhere in the open ball of the
    radius, inside the box [0, 1] and outside.

    Attributes:
      classes: of every image, -1 where the certificate abstains.
      radii: L2 radius in pixel units, 0 where it abstains.
    """

    classes: Int[np.ndarray, "N"]
    radii: Float[np.ndarray, "N"]


def certify(
    classifier: ClassifierFn,
    network_state: Any,
    images: Shaped[Array | np.ndarray, "N H W C"],
    key: Array,
    smoothing: Smoothing,
    *,
    batch_size: int = 256,
    progress: Callable[[int], None] = lambda images: None,
) -> Certificates:
    """Classes and certified radii of the smoothed classifier (CERTIFY of Cohen et al.).

    The first draws select a class; the others, independent of them, give the Clopper-Pearson
    lower bound p of its probability. The radius is sigma Phi^-1(p); where p is 1/2 or less the
    certificate abstains. Each certificate is false with a probability of at most
    `smoothing.alpha`, up to errors of floating-point arithmetic (Voracek and Hein, Sound
    Randomized Smoothing in Floating-Point Arithmetics, ICLR 2023).

    A stochastic classifier gets a new key for every draw. Its certificate holds for the smoothed
    classifier that also averages over the network's own randomness: the proof needs only the
    probability of a class at every input, and randomness that is independent of the noise. A draw
    with a logit that is not finite is a vote for no class.

    Args:
      classifier, network_state: see `networks.classifier`.
      images: in [0, 1], or uint8; they are not clipped after noise is added.
      key: draw d of image i uses `fold_in(fold_in(key, i), d)`, so that results do not depend
        on `batch_size`; it is split into keys for the noise and for a stochastic classifier.
      smoothing: noise, number of draws and alpha.
      batch_size: draws per call; all calls have this shape, and surplus draws are dropped.
      progress: called after every image with the number of images finished, which is 1.

    Raises:
      InputError: a batch size below 1, or images, state or key that cannot be used.
    """
    from scipy.special import ndtri  # slow to import

    first, more = smoothing.selection_samples, smoothing.samples
    options = smoothing.sigma, first + more, batch_size
    draws = _votes(classifier, network_state, images, key, *options)
    classes, hits = [], []
    for votes in draws:
        selected = votes[:first]
        classes.append(np.bincount(selected[selected != NO_CLASS], minlength=1).argmax())
        hits.append((votes[first:] == classes[-1]).sum())
        progress(1)
    p = clopper_pearson(np.array(hits, int), more, smoothing.alpha)
    certain = p > 0.5
    return Certificates(
        np.where(certain, np.array(classes, int), ABSTAIN),
        np.where(certain, smoothing.sigma * ndtri(p), 0.0),
    )


def predict(
    classifier: ClassifierFn,
    network_state: Any,
    images: Shaped[Array | np.ndarray, "N H W C"],
    key: Array,
    smoothing: Smoothing,
    *,
    batch_size: int = 256,
    progress: Callable[[int], None] = lambda images: None,
) -> Int[np.ndarray, "N"]:
    """Predicted classes of the smoothed classifier, -1 where it abstains (PREDICT of Cohen et al.).

    It abstains unless the two most frequent classes among `smoothing.samples` draws differ in a
    two-sided binomial test at level `smoothing.alpha`, so that a predicted class is wrong with
    a probability of at most alpha. Arguments as for `certify`.
    """
    from scipy.special import bdtrc  # slow to import

    options = smoothing.sigma, smoothing.samples, batch_size
    draws = _votes(classifier, network_state, images, key, *options)
    classes, leads = [], []
    for votes in draws:
        # from `NO_CLASS` on, and with a runner-up even if the network has one class
        counts = np.bincount(votes - NO_CLASS, minlength=3)
        classes.append(counts.argmax() + NO_CLASS)
        leads.append(np.sort(counts)[:-3:-1])
        progress(1)
    most, second = np.array(leads, int).reshape(-1, 2).T
    p_value = 2 * bdtrc(most - 1, most + second, 0.5)
    return np.where(p_value <= smoothing.alpha, np.array(classes, int), ABSTAIN)


def clopper_pearson(
    hits: Int[np.ndarray, "N"], trials: int, alpha: float
) -> Float[np.ndarray, "N"]:
    """Lower confidence bounds of probabilities, each too high with probability at most `alpha`."""
    from scipy.special import betaincinv  # slow to import

    bound = betaincinv(np.maximum(hits, 1), trials - hits + 1, alpha)
    return np.where(hits > 0, bound, 0.0)


def certified_accuracy(
    certificates: Certificates,
    labels: Int[Array | np.ndarray, "N"],
    radii: Float[Array | np.ndarray, "R"],
) -> Float[np.ndarray, "R"]:
    """Share of images with a certificate for their label of at least each of the radii.

    At radius 0 it is the accuracy, abstentions counted as wrong.
    """
    correct = certificates.classes == np.asarray(labels)
    return (correct & (certificates.radii >= np.asarray(radii)[:, None])).mean(-1)


def _votes(
    classifier, network_state, images, key, sigma, samples, batch_size
) -> Iterator[Int[np.ndarray, "samples"]]:
    """For every image in turn, the predicted class of each of its noisy draws."""
    batch_size = integer("smoothing batch_size", batch_size, Limits(1))
    images = to_unit_range(np.asarray(checked_batch(classifier, network_state, images)))
    key = checked_key(key)
    for number, image in enumerate(images):
        key_image = jax.random.fold_in(key, number)
        votes = [
            _vote(classifier, network_state, image, key_image, sigma, start, batch_size)
            for start in range(0, samples, batch_size)
        ]
        yield np.concatenate(votes)[:samples]


@partial(jax.jit, static_argnums=(0, 6))
def _vote(classifier, network_state, image, key, sigma, start, size):
    def noisy(key):
        return image + sigma * jax.random.normal(key, image.shape, image.dtype)

    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, start + jnp.arange(size))
    noise_keys, own_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    images = jax.vmap(noisy)(noise_keys)
    if is_stochastic(classifier):
        # one by one: randomness that a classifier shares in a batch would correlate the draws
        z = jax.vmap(lambda x, key: classifier(network_state, x[None], key=key)[0])(
            images, own_keys
        )
    else:
        z = classifier(network_state, images)
    return predicted_classes(z)
