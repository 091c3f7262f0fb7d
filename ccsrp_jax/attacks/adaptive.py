"""The loop that APGD, SA-PGD and MI-FGSM share: iterates, their worst one, and checkpoints.

They evaluate the classifier, record the worst iterate so far, and take a step; the first two may
halve their step size at the same checkpoints.
"""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ccsrp_jax.attacks.base import RestartedAttack
from ccsrp_jax.attacks.gradients import LossAndGradient, loss_and_gradient
from ccsrp_jax.attacks.losses import LOWEST, TARGETED, infinite_where_not_finite
from ccsrp_jax.attacks.threat_model import check_attack, per_image
from ccsrp_jax.data.splits import to_unit_range
from ccsrp_jax.networks.classifier import (
    ClassifierFn,
    initial_state,
    is_stochastic,
    key_kwargs,
    predicted_classes,
)
from ccsrp_jax.utils.errors import unknown


class WorstIterate(NamedTuple):
    """For each image the worst iterate so far: misclassified before correct, then by loss."""

    images: Float[Array, "B H W C"]
    loss: Float[Array, "B"]
    misclassified: Bool[Array, "B"]

    @classmethod
    def none_yet(cls, images: Float[Array, "B H W C"], labels: Int[Array, "B"]) -> "WorstIterate":
        """Before any evaluation: every iterate is worse."""
        return cls(images, jnp.full(labels.shape, LOWEST), jnp.zeros(labels.shape, bool))

    def update(
        self, x: Float[Array, "B H W C"], result: LossAndGradient, labels: Int[Array, "B"]
    ) -> "WorstIterate":
        """The worse of this and of the iterate x that was evaluated."""
        wrong = predicted_classes(result.logits) != labels
        loss = infinite_where_not_finite(result.loss, result.logits)
        equally_wrong = wrong == self.misclassified
        worse = (wrong & ~self.misclassified) | (equally_wrong & (loss > self.loss))
        return WorstIterate(
            jnp.where(per_image(worse), x, self.images),
            jnp.where(worse, loss, self.loss),
            self.misclassified | wrong,
        )


class AdaptiveAttack(RestartedAttack):
    """Base of attacks that set their own step size; a subclass defines its start and its step.

    The result is each image's worst iterate. States have the fields `x`, the next iterate to
    evaluate, and `worst`, a `WorstIterate`.
    """

    steps: int
    loss: str
    samples: int

    @property
    def gradients(self) -> int:
        """Gradients per image, at most: every part also evaluates its last iterate."""
        return (self.steps + 1) * len(self.parts) * self.samples

    def start_state(self, start, labels) -> Any:
        """State before the first evaluation."""
        raise NotImplementedError

    def next_state(self, iteration, windows, state, result, images, labels) -> Any:
        """State after the evaluation `result` of `state.x` and a step."""
        raise NotImplementedError

    def run_once(self, classifier, network_state, images, labels, key):
        """One run from a random start; arguments as for a call."""
        return self.run_towards(classifier, network_state, to_unit_range(images), labels, key, None)

    def run_towards(self, classifier, network_state, images, labels, key, targets):
        """One run on images in float32, towards target classes where the loss takes them."""
        key_start, key_draws = jax.random.split(key)
        start = self.threat.random_surface_point(key_start, images)
        worst = images
        for state in self.path(
            classifier, network_state, images, labels, key_draws, start, targets
        ):
            worst = state.worst.images
        return worst

    def path(
        self,
        classifier: ClassifierFn,
        network_state: Any,
        images: Float[Array, "B H W C"],
        labels: Int[Array, "B"],
        key: Array,
        start: Float[Array, "B H W C"],
        targets: Int[Array, "B"] | None = None,
    ) -> Iterator[Any]:
        """One run from a given start: its state after each of steps + 1 evaluations."""
        state = self.start_state(start, labels)
        surrogate_state = initial_state(classifier, len(images), key)
        windows = checkpoint_windows(self.steps)
        for iteration in range(self.steps + 1):
            result = loss_and_gradient(
                classifier,
                network_state,
                state.x,
                labels,
                loss=self.loss,
                targets=targets,
                key=jax.random.fold_in(key, iteration) if is_stochastic(classifier) else None,
                samples=self.samples,
                surrogate_state=surrogate_state,
            )
            surrogate_state = result.surrogate_state
            state = self.next_state(iteration, windows, state, result, images, labels)
            yield state

    def check_settings(self, losses: Collection[str]) -> None:
        """Raises InputError for a setting that is out of range or an unknown loss."""
        check_attack(self)
        if self.loss not in losses:
            raise unknown("attack loss", self.loss, losses)


class TargetedAttack(AdaptiveAttack):
    """Base of adaptive attacks that may run towards one wrong class after another.

    Attributes:
      targets: for a loss in `TARGETED`, the number of wrong classes to target, in order of their
        logits on the clean image; at most as many as there are.
      rank: for such a loss, rank of the first target among the wrong classes.
    """

    targets: int
    rank: int

    @property
    def parts(self) -> tuple["TargetedAttack", ...]:
        """One attack for every target and restart."""
        single = dataclasses.replace(self, restarts=1)
        if self.loss in TARGETED:
            ranks = range(self.rank, self.rank + self.targets)
            by_target = [dataclasses.replace(single, targets=1, rank=rank) for rank in ranks]
        else:
            by_target = [single]
        return tuple(part for part in by_target for _ in range(self.restarts))

    def run_once(self, classifier, network_state, images, labels, key):
        """One restart, towards the target of this rank; arguments as for a call."""
        if self.loss not in TARGETED:
            return super().run_once(classifier, network_state, images, labels, key)
        draws = self.samples if is_stochastic(classifier) else 1
        key, *keys_clean = jax.random.split(key, 1 + draws)
        images = to_unit_range(images)
        logits = sum(_logits(classifier, network_state, images, each) for each in keys_clean)
        ranked = _ranked_wrong_classes(logits, labels)
        if self.rank > ranked.shape[-1]:  # the classifier has too few classes
            return images
        targets = jnp.take(ranked, self.rank - 1, 1)
        return self.run_towards(classifier, network_state, images, labels, key, targets)


@partial(jax.jit, static_argnums=0)
def _logits(classifier, network_state, images, key):
    return classifier(network_state, images, **key_kwargs(classifier, key))


@jax.jit
def _ranked_wrong_classes(logits, labels):
    """Wrong classes (B, K - 1), in descending order of their logits."""
    is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    return jnp.argsort(jnp.where(is_label, -jnp.inf, logits), descending=True)[:, :-1]


def checkpoint_windows(steps: int) -> Mapping[int, int]:
    """Steps after which step sizes may be halved, each with the steps since the one before.

    The windows start at 0.22 of all steps and shrink by 0.03 down to 0.06 (Croce and Hein,
    ICML 2020).
    """
    window, decrease, smallest = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    checkpoint, windows = window, {}
    while checkpoint <= steps:
        windows[checkpoint] = window
        window = max(window - decrease, smallest)
        checkpoint += window
    return windows
