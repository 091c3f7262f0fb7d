"""Randomized smoothing: L2 radii within which a noise-averaged classifier is proven not to change.

The smoothed classifier g(x) answers the class that the network gives most often under Gaussian
noise on the pixels. Unlike an attack, which bounds robust accuracy from above, a certificate
bounds that of g from below, whatever the network computes and however its gradients are masked.

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
from jaxtyping import Array, Float, Int
from scipy.stats import beta, binom, norm

from ccsrp_jax.networks.classifier import ClassifierFn, is_stochastic
from ccsrp_jax.utils.errors import InputError, check_number

ABSTAIN = -1


@dataclass(frozen=True)
class Smoothing:
    """Gaussian noise, and how much of it is drawn to judge an image.

    Attributes:
      sigma: standard deviation of the noise on every pixel, where images span [0, 1].
      selection_samples: draws that choose the class to certify; Cohen et al. take 100.
      samples: further draws that bound its probability, or that `predict` counts; they cap
        the radius at sigma Phi^-1(alpha^(1 / samples)), 2.5 sigma by default and 3.8 sigma
        with the 100,000 of Cohen et al.
      alpha: chance, for each image on its own, that what is answered is false.
    """

    sigma: float
    selection_samples: int = 100
    samples: int = 1000
    alpha: float = 0.001

    def __post_init__(self) -> None:
        check_number("smoothing sigma", self.sigma, 0, above=True)
        check_number("smoothing selection_samples", self.selection_samples, 1)
        check_number("smoothing samples", self.samples, 1)
        if not 0 < self.alpha < 1:
            raise InputError(
                f"smoothing alpha {self.alpha} is outside (0, 1): give the chance of a false "
                "certificate that you accept, such as 0.001."
            )


class Certificates(NamedTuple):
    """Of every image the class, -1 where it abstains, and its L2 radius in pixel units, then 0.

    Nowhere in the open ball of that radius, in the box [0, 1] or not, does the smoothed
    classifier answer another class.
    """

    classes: Int[np.ndarray, "N"]
    radii: Float[np.ndarray, "N"]


def certify(
    logits: ClassifierFn,
    params: Any,
    images: Float[Array | np.ndarray, "N H W C"],
    key: Array,
    smoothing: Smoothing,
    *,
    batch_size: int = 256,
    progress: Callable[[int], None] = lambda images: None,
) -> Certificates:
    """Classes and certified radii of the smoothed classifier (CERTIFY of Cohen et al.).

    The first draws choose a class; the others, which that choice has not seen, give the
    Clopper-Pearson lower bound p of its probability. The radius is sigma Phi^-1(p), and where
    p is 1/2 or less it abstains. Each certificate is false with a chance of at most
    `smoothing.alpha`, as far as draws and sums in floating point pass for exact ones
    (Voracek and Hein, Sound Randomized Smoothing in Floating-Point Arithmetics, ICLR 2023).

    A stochastic classifier gets a fresh key for every draw. Its certificate is that of the
    smoothed classifier that averages over the network's own randomness too: the argument
    needs no more than a probability of the class at every input, and randomness that is
    independent of the noise.

    Args:
      logits: the classifier; static, so it must be hashable.
      params: its parameters.
      images: images in [0, 1]; they are not clipped once the noise is added.
      key: draw d of image i takes `fold_in(fold_in(key, i), d)`, so that no answer hangs on
        `batch_size`; it is split into keys of the noise and of a stochastic classifier.
      smoothing: noise, draws and alpha.
      batch_size: draws a call; all calls have this shape, the last one's surplus is dropped.
      progress: called with the number of images finished, after every image.

    Raises:
      InputError: a batch size below 1.
    """
    first, more = smoothing.selection_samples, smoothing.samples
    draws = _votes(logits, params, images, key, smoothing.sigma, first + more, batch_size)
    classes, hits = [], []
    for votes in draws:
        classes.append(np.bincount(votes[:first]).argmax())
        hits.append((votes[first:] == classes[-1]).sum())
        progress(1)
    p = clopper_pearson(np.array(hits, int), more, smoothing.alpha)
    certain = p > 0.5
    return Certificates(
        np.where(certain, np.array(classes, int), ABSTAIN),
        np.where(certain, smoothing.sigma * norm.ppf(p), 0.0),
    )


def predict(
    logits: ClassifierFn,
    params: Any,
    images: Float[Array | np.ndarray, "N H W C"],
    key: Array,
    smoothing: Smoothing,
    *,
    batch_size: int = 256,
    progress: Callable[[int], None] = lambda images: None,
) -> Int[np.ndarray, "N"]:
    """The smoothed classifier's classes, -1 where it abstains (PREDICT of Cohen et al.).

    It abstains unless a two-sided binomial test at `smoothing.alpha` tells the two most
    frequent classes among `smoothing.samples` draws apart, and so answers a class that is
    not the smoothed classifier's with a chance of at most alpha. Arguments as for `certify`.
    """
    draws = _votes(logits, params, images, key, smoothing.sigma, smoothing.samples, batch_size)
    classes, leads = [], []
    for votes in draws:
        counts = np.bincount(votes, minlength=2)  # a runner-up even where there is one class
        classes.append(counts.argmax())
        leads.append(np.sort(counts)[:-3:-1])
        progress(1)
    most, second = np.array(leads, int).reshape(-1, 2).T
    chance = 2 * binom.sf(most - 1, most + second, 0.5)
    return np.where(chance <= smoothing.alpha, np.array(classes, int), ABSTAIN)


def clopper_pearson(
    hits: Int[np.ndarray, "N"], trials: int, alpha: float
) -> Float[np.ndarray, "N"]:
    """Lower bounds of probabilities, each too high with a chance of at most `alpha`."""
    bound = beta.ppf(alpha, np.maximum(hits, 1), trials - hits + 1)
    return np.where(hits > 0, bound, 0.0)


def certified_accuracy(
    certificates: Certificates,
    labels: Int[Array | np.ndarray, "N"],
    radii: Float[Array | np.ndarray, "R"],
) -> Float[np.ndarray, "R"]:
    """Share of images that are certified as their label with at least each of the radii.

    At radius 0 it is the accuracy with abstentions counted as wrong.
    """
    right = certificates.classes == np.asarray(labels)
    return (right & (certificates.radii >= np.asarray(radii)[:, None])).mean(-1)


def _votes(
    logits, params, images, key, sigma, samples, batch_size
) -> Iterator[Int[np.ndarray, "samples"]]:
    """Of every image in turn, the class that the network gives each of its noisy draws."""
    check_number("smoothing batch_size", batch_size, 1)
    for number, image in enumerate(np.asarray(images)):
        key_image = jax.random.fold_in(key, number)
        votes = [
            _vote(logits, params, image, key_image, sigma, start, batch_size)
            for start in range(0, samples, batch_size)
        ]
        yield np.concatenate(votes)[:samples]


@partial(jax.jit, static_argnums=(0, 6))
def _vote(logits, params, image, key, sigma, start, size):
    def noisy(key):
        return image + sigma * jax.random.normal(key, image.shape, image.dtype)

    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, start + jnp.arange(size))
    noise_keys, own_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    images = jax.vmap(noisy)(noise_keys)
    if is_stochastic(logits):
        # One by one: what a classifier shares in a batch would tie its draws together.
        z = jax.vmap(lambda x, key: logits(params, x[None], key=key)[0])(images, own_keys)
    else:
        z = logits(params, images)
    return z.argmax(-1)
