"""What attacks have in common: their interface, restarts, and the worst result of several.

An attack is a hashable callable `attack(classifier, network_state, images, labels, key)` that
returns adversarial images; those of this package are frozen dataclasses. Class attributes
describe it, each optional for an attack of one's own:

  * `kind`: `white box` (the default), `black box`, `noise`, or `seeded`: it goes on from what
    other attacks found;
  * `norms`: the norms that it supports, by default all;
  * `gradients`, `queries`: gradients and forward passes that it computes for an image, by
    default 0;
  * `parts`: attacks that make it up, to be run one after another on the images that are left;
  * `takes_start`: true if a call takes `start=`, images in the ball to begin at; a suite gives it
    for every image the one of the largest margin that any attack has found before;
  * `run`: the same as a call, without the check of its arguments, for loops over images that
    were checked before.

Loops over steps run in Python around one jitted step, since a convolution's gradient inside a
`fori_loop` is far slower on CPU; under an outer `jit` they unroll.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from ccsrp_jax.attacks.losses import LOWEST, cross_entropy, infinite_where_not_finite
from ccsrp_jax.attacks.threat_model import NORMS, Norm, ThreatModel, per_image
from ccsrp_jax.data.splits import to_unit_range
from ccsrp_jax.networks.classifier import ClassifierFn, key_kwargs
from ccsrp_jax.networks.inputs import checked_inputs
from ccsrp_jax.utils.keys import checked_key

Attack = Callable[[ClassifierFn, Any, Array, Array, Array], Float[Array, "B H W C"]]
AttackKind = Literal["noise", "white box", "black box", "seeded"]

# Folded into a key for the pass that classifies adversarial images; no attack has this many steps.
CLASSIFICATION_PASS = 2**30

SHORT_PGD_CAVEAT = (
    "PGD through a surrogate gradient is an upper bound on robust accuracy: spiking networks "
    "mask gradients, and stronger attacks can break more images."
)


def unchecked(attack: Attack) -> Attack:
    """The attack without the check of its arguments, for loops over images that were checked.

    It is the attack's `run`, unless a subclass has replaced the call and not `run`.
    """
    for kind in type(attack).__mro__:
        if "run" in vars(kind):
            return getattr(attack, "run")  # noqa: B009
        if "__call__" in vars(kind):
            break
    return attack


class RestartedAttack:
    """Base of attacks that may be run several times, from independent random starts.

    A subclass is a frozen dataclass with the fields `eps` and `restarts` and a field or class
    attribute `norm`, and defines `run_once`.
    """

    kind: ClassVar[AttackKind] = "white box"
    norms: ClassVar[tuple[Norm, ...]] = NORMS
    queries: ClassVar[int] = 0  # forward passes without a gradient, per image
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field]]

    eps: float | int
    norm: Norm
    restarts: int

    @property
    def threat(self) -> ThreatModel:
        """The ball that adversarial images lie in."""
        return ThreatModel(self.norm, self.eps)

    @property
    def parts(self) -> tuple["RestartedAttack", ...]:
        """One attack for every restart."""
        return (dataclasses.replace(self, restarts=1),) * self.restarts

    def run_once(
        self,
        classifier: ClassifierFn,
        network_state: Any,
        images: Shaped[Array, "B H W C"],
        labels: Int[Array, "B"],
        key: Array,
    ) -> Float[Array, "B H W C"]:
        """Adversarial images of a single run; arguments as for a call."""
        raise NotImplementedError

    def __call__(
        self,
        classifier: ClassifierFn,
        network_state: Any,
        images: Shaped[Array | np.ndarray, "B H W C"],
        labels: Int[Array | np.ndarray, "B"],
        key: Array,
    ) -> Float[Array, "B H W C"]:
        """Adversarial images, the worst that the parts find for each image.

        Args:
          classifier: static under jit, so it must be hashable; see `networks.classifier`.
          network_state: its first argument, such as (variables, masks).
          images: clean images in [0, 1], or as uint8.
          labels: true classes.
          key: for all random draws, including those of a stochastic network.

        Returns:
          Images in [0, 1] within `eps` of the clean ones, in float32.

        Raises:
          InputError: images, labels, key, classifier or state cannot be used; values are checked
            outside `jit` only.
        """
        split = checked_inputs(classifier, network_state, (images, labels))
        images, labels = (jnp.asarray(part) for part in split)
        return self.run(classifier, network_state, images, labels, checked_key(key))

    def run(
        self,
        classifier: ClassifierFn,
        network_state: Any,
        images: Shaped[Array, "B H W C"],
        labels: Int[Array, "B"],
        key: Array,
    ) -> Float[Array, "B H W C"]:
        """As a call, without the check of its arguments."""
        runs = [part.run_once for part in self.parts]
        if len(runs) > 1:
            return worst_of(runs, classifier, network_state, images, labels, key)
        return runs[0](classifier, network_state, images, labels, jax.random.split(key, 1)[0])


def worst_of(
    attacks: Sequence[Attack],
    classifier: ClassifierFn,
    network_state: Any,
    images: Shaped[Array, "B H W C"],
    labels: Int[Array, "B"],
    key: Array,
) -> Float[Array, "B H W C"]:
    """For each image the worst result of several attacks.

    A misclassified image is worse than a correctly classified one; among equals, the one of
    higher cross-entropy is.
    """
    worst = to_unit_range(images)
    worst_score = jnp.full(labels.shape, LOWEST)
    for key_attack, attack in zip(jax.random.split(key, len(attacks)), attacks, strict=True):
        adversarial = unchecked(attack)(classifier, network_state, images, labels, key_attack)
        key_classify = jax.random.fold_in(key_attack, CLASSIFICATION_PASS)
        score = _severity(classifier, network_state, adversarial, labels, key_classify)
        worse = score > worst_score
        worst = jnp.where(per_image(worse), adversarial, worst)
        worst_score = jnp.where(worse, score, worst_score)
    return worst


@partial(jax.jit, static_argnums=0)
def _severity(classifier, network_state, images, labels, key):
    """Cross-entropy, plus 1000 where misclassified: above that of every correct image; infinite
    where a logit is not finite."""
    z = classifier(network_state, images, **key_kwargs(classifier, key))
    wrong = z.argmax(-1) != labels
    severity = cross_entropy(z, labels, None) + jnp.where(wrong, 1e3, 0.0)
    return infinite_where_not_finite(severity, z)
