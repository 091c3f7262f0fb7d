"""A network probed about the same images in other ways, without an attack.

What a classifier says of an image must depend on that image alone, and change with it as its
gradient says. Attacks and the sweeps of the audit take that for granted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ccsrp_jax.attacks.gradients import loss_and_gradient
from ccsrp_jax.attacks.losses import margin
from ccsrp_jax.attacks.threat_model import ThreatModel, per_image
from ccsrp_jax.data.batching import padded_batches
from ccsrp_jax.networks.classifier import Classifier, initial_state, predicted_classes
from ccsrp_jax.robustness.accuracy import Evaluator
from ccsrp_jax.robustness.gradient_sources import OWN, GradientSource
from ccsrp_jax.robustness.identity import Identified, logits, program

TINY = (1e-6, 0.1 / 255)  # changes of every pixel: the last bits of a float, a tenth of a level
DRAWS = 3  # of each of these changes
ALONE = 4  # images that are classified in a batch of their own
BISECTIONS = 16
STEPS = (1e-3, 1e-2)  # of every pixel, for finite differences
ROUNDING = 1e-5  # relative change of logits that counts as none
AGREEMENT = 0.2  # by how much a finite difference may differ from the gradient's prediction


@dataclass(frozen=True)
class Probes:
    """Measurements on the correctly classified images of one batch.

    An answer is another one if the class is, or if the margin has changed by more than a stated
    share of itself.

    Attributes:
      images: how many of them there are.
      trace_changes: whether the function, traced again, is another program.
      repeated: share with another answer in a second, identical call.
      batch_dependent: share with another answer beside other images, in another order or alone.
      tiny: share whose margin changes by half of the median margin, after a change of the image
        far below a level of 8 bits.
      differentiated: share with another answer while the function is differentiated, by any of
        the gradient sources.
      flat: share with the same logits, up to rounding, at random points of the ball.
      boundary_margin: on the way to an image of another class, the margin just before the class
        changes, relative to that of the image; the median.
      unconfirmed: share whose gradient does not agree with finite differences.
      widths_differ: whether surrogates of other widths have other gradients; None without any.
    """

    images: int
    trace_changes: bool
    repeated: float
    batch_dependent: float
    tiny: float
    differentiated: float
    flat: float
    boundary_margin: float
    unconfirmed: float
    widths_differ: bool | None


@dataclass(frozen=True)
class ProbedBatch:
    """One batch of a network's images, and what the network says of it.

    Attributes:
      evaluator: the network.
      images: (B, H, W, C), in [0, 1].
      labels: (B,).
      key: of every pass, so that a stochastic network draws the same.
      logits: (B, K), of the images.
      counted: (B,) images that are no padding and classified correctly.
    """

    evaluator: Evaluator
    images: Float[Array, "B H W C"]
    labels: Array
    key: Array
    logits: Float[Array, "B K"]
    counted: Bool[np.ndarray, "B"]

    def logits_of(self, images: Float[Array, "B H W C"]) -> Float[Array, "B K"]:
        """Logits of other images."""
        return logits(self.evaluator.classifier, self.evaluator.network_state, images, self.key)

    def margins(self, z: Float[Array, "B K"]) -> Float[np.ndarray, "B"]:
        """Logit of the label minus the largest other."""
        return -np.asarray(margin(z, self.labels))

    def differ(self, z: Float[Array, "B K"], share: float) -> Bool[np.ndarray, "B"]:
        """Which answers are other ones; `share` is that of the margin."""
        other_class = np.asarray(predicted_classes(z) != predicted_classes(self.logits))
        with np.errstate(invalid="ignore"):  # logits that are not finite are another check's
            before, after = self.margins(self.logits), self.margins(z)
            return other_class | (np.abs(after - before) > share * np.abs(before))

    def share(self, found: Sequence[Bool[np.ndarray, "B"]]) -> float:
        """Share of the counted images for which any of these is true."""
        if not (found and self.counted.any()):
            return 0.0
        return float(np.logical_or.reduce(found)[self.counted].mean())


def run_probes(
    evaluator: Evaluator,
    threat: ThreatModel,
    sources: Mapping[str, GradientSource],
    widths: Sequence[str],
    key: Array,
) -> Probes:
    """Asks a network about its first batch of images.

    Args:
      evaluator: the network and the images.
      threat: the ball.
      sources: gradient sources.
      widths: names of those that are the same surrogate in several widths.
      key: for all random draws.
    """
    key_pass, key_tiny, key_ball = jax.random.split(key, 3)
    network = evaluator.classifier, evaluator.network_state
    images, labels, real = next(padded_batches(evaluator.split, evaluator.batch_size))
    z = logits(*network, images, key_pass)
    counted = np.asarray(predicted_classes(z) == labels) & (np.arange(len(labels)) < real)
    probed = ProbedBatch(evaluator, images, labels, key_pass, z, counted)
    names = [name for name in (OWN, *widths) if name in sources]
    gradients = [_margin_gradient(probed, sources[name]) for name in names]
    others = [np.asarray(each.gradient != gradients[0].gradient).any() for each in gradients[1:]]
    return Probes(
        images=int(counted.sum()),
        trace_changes=_trace_changes(evaluator),
        repeated=probed.share([probed.differ(probed.logits_of(images), 1e-4)]),
        batch_dependent=_batch_dependent(probed),
        tiny=_tiny(probed, key_tiny),
        differentiated=probed.share([probed.differ(each.logits, 0.5) for each in gradients]),
        flat=_flat(probed, threat, key_ball),
        boundary_margin=_boundary_margin(probed),
        unconfirmed=_unconfirmed(probed, gradients[0].gradient),
        widths_differ=any(others) if others else None,
    )


def _trace_changes(evaluator) -> bool:
    """Whether a fresh trace is another program than the one before it; a `Classifier` is none."""
    classifier, images = evaluator.classifier, evaluator.split.images
    if isinstance(classifier, Classifier):
        return False
    function = classifier.function if isinstance(classifier, Identified) else classifier
    programs = [program(function, evaluator.network_state, images) for _ in range(2)]
    before = classifier.program if isinstance(classifier, Identified) else programs[0]
    return {before} != set(programs)


def _margin_gradient(probed, source):
    """The margin's gradient through a source, with the logits that come with it."""
    return loss_and_gradient(
        source.classifier,
        source.network_state,
        probed.images,
        probed.labels,
        loss="margin",
        key=probed.key,
        surrogate_state=initial_state(source.classifier, len(probed.images)),
    )


def _batch_dependent(probed) -> float:
    """Share of the images whose answer depends on what else is in the batch."""
    x, count = probed.images, len(probed.images)
    even = np.arange(count) % 2 == 0
    found = []
    for kept in (even, ~even):
        beside = probed.logits_of(jnp.where(per_image(jnp.asarray(kept)), x, 1 - x))
        found.append(probed.differ(beside, 0.05) & kept)
    if not probed.evaluator.stochastic:  # which draws by the place in the batch
        found.append(probed.differ(probed.logits_of(x[::-1])[::-1], 0.05))
        if not isinstance(probed.evaluator.classifier, Classifier):
            places = np.flatnonzero(probed.counted)[:ALONE]
            z = probed.logits
            for place in places:
                z = z.at[place].set(probed.logits_of(x[place : place + 1])[0])
            few = probed.differ(z, 0.05)[places]  # which stand for all
            found.append(np.full(count, few.size > 0 and few.mean() > 0.5))
    return probed.share(found)


def _tiny(probed, key) -> float:
    """Share of the images whose answer depends on changes too small to matter."""
    keys = jax.random.split(key, DRAWS)
    found = []
    for size in TINY:
        for key_draw in keys:
            signs = jax.random.rademacher(key_draw, probed.images.shape, jnp.float32)
            z = probed.logits_of(jnp.clip(probed.images + size * signs, 0, 1))
            found.append(_margin_jumps(probed, z))
    return probed.share(found)


def _margin_jumps(probed, z) -> Bool[np.ndarray, "B"]:
    """Where the margin has changed by half of its median or more: on images next to the border
    the class may change by chance, but the margin by little."""
    before = probed.margins(probed.logits)
    typical = np.median(before[probed.counted]) if probed.counted.any() else 0.0
    with np.errstate(invalid="ignore"):
        change = np.abs(probed.margins(z) - before)
    return (change > 0.5 * typical) | ~np.isfinite(change)


def _flat(probed, threat, key) -> float:
    """Share of the images whose logits are the same at several points of the ball."""
    points = [threat.random_surface_point(each, probed.images) for each in jax.random.split(key, 3)]
    first, *others = map(probed.logits_of, points)
    scale = ROUNDING * jnp.abs(first).max(-1)
    same = [np.asarray(jnp.abs(z - first).max(-1) <= scale) for z in others]
    return probed.share([np.logical_and.reduce(same)]) if threat.eps > 0 else 0.0


def _boundary_margin(probed) -> float:
    """Median margin just before the class changes, relative to that of the image."""
    classes = np.asarray(predicted_classes(probed.logits))
    count = len(classes)
    order = (np.arange(count)[:, None] + np.arange(count)) % count
    other = classes[order] != classes[:, None]
    partner = order[np.arange(count), other.argmax(-1)]
    used = probed.counted & other.any(-1)
    if not used.any():
        return 0.0
    inside, outside = probed.images, probed.images[partner]
    last = probed.logits
    for _ in range(BISECTIONS):
        middle = (inside + outside) / 2
        z = probed.logits_of(middle)
        same = jnp.asarray(np.asarray(predicted_classes(z)) == classes)
        inside = jnp.where(per_image(same), middle, inside)
        outside = jnp.where(per_image(same), outside, middle)
        last = jnp.where(same[:, None], z, last)
    before = np.maximum(probed.margins(probed.logits), 1e-30)
    return float(np.median((probed.margins(last) / before)[used]))


def _unconfirmed(probed, gradient) -> float:
    """Share of the images where no finite difference agrees with the margin's gradient."""
    before, agree = -probed.margins(probed.logits), np.zeros(len(probed.images), bool)
    for step in STEPS:
        moved = jnp.clip(probed.images + step * jnp.sign(gradient), 0, 1)
        predicted = np.asarray((gradient * (moved - probed.images)).sum((1, 2, 3)))
        with np.errstate(invalid="ignore"):
            found = -probed.margins(probed.logits_of(moved)) - before
            agree |= (predicted > 0) & (np.abs(found - predicted) <= AGREEMENT * predicted)
    return probed.share([~agree])
