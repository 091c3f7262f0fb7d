"""The classifier interface of attacks and evaluation, and the spiking network behind it.

A classifier is a hashable callable `classifier(network_state, images) -> logits` on images in
[0, 1], input normalization included. `network_state` is a PyTree of its own choice; that of
`Classifier` is `(variables, masks)`. It may also have:

  * `stochastic`, true if two passes may differ; it is then called with `key=`;
  * `with_backward(backward)`, a copy with another surrogate gradient (see `networks.gradients`);
  * `stateful`, true if its gradient depends on the previous iterations of an attack; it then has
    `initial_state(count)`, the surrogate state before an attack on so many images, and
    `apply_stateful(network_state, images, surrogate_state)`, logits and the next such state;
  * `random_gradient`, true if its gradient, not its output, is drawn at random; it is stateful
    then, and `initial_state` is called with `key=` too.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ccsrp_jax.networks.architecture import Architecture, shapes
from ccsrp_jax.networks.gradients import (
    AdaptiveSharpness,
    Backward,
    RandomWidth,
    Surrogate,
    SurrogateState,
)
from ccsrp_jax.networks.masks import MaskTree
from ccsrp_jax.networks.spiking_network import SpikingNetwork
from ccsrp_jax.utils.errors import InputError, shown

ClassifierFn = Callable[..., Float[Array, "B K"]]

GRADIENT_DRAWS = 2**29  # folded into an attack's key; no attack has this many steps
NO_CLASS = -1  # what logits that are not finite predict: no label is equal to it


@dataclass(frozen=True)
class Classifier:
    """A spiking network in evaluation mode, as a classifier with state (variables, masks).

    Hashable by value, so that jitted functions may take it as a static argument.

    Attributes:
      architecture: the network.
      surrogate: the backward pass of its spikes; it need not be that of training.

    Raises:
      InputError: they are something else.
    """

    architecture: Architecture
    surrogate: Backward = Surrogate()

    def __post_init__(self) -> None:
        kinds = {"architecture": (Architecture,), "surrogate": get_args(Backward)}
        for name, classes in kinds.items():
            if not isinstance(value := getattr(self, name), classes):
                known = " or ".join(each.__name__ for each in classes)
                raise InputError(f"{name} of a classifier is {shown(value)}: give {known}.")

    @property
    def stochastic(self) -> bool:
        """Whether it draws at random and must be called with a key."""
        return self.architecture.stochastic

    @property
    def stateful(self) -> bool:
        """Whether its gradient depends on the previous iterations of an attack."""
        return isinstance(self.surrogate, AdaptiveSharpness | RandomWidth)

    @property
    def random_gradient(self) -> bool:
        """Whether widths of its surrogate are drawn at random."""
        return isinstance(self.surrogate, RandomWidth)

    def __call__(
        self,
        network_state: tuple[dict, MaskTree | None],
        images: Float[Array, "B H W C"],
        *,
        key: Array | None = None,
    ) -> Float[Array, "B K"]:
        """Logits, averaged over time."""
        variables, masks = network_state
        network = SpikingNetwork(self.architecture)
        logits: Any = network.apply(variables, images, masks, surrogate=self.surrogate, key=key)
        return logits

    def with_backward(self, surrogate: Backward) -> "Classifier":
        """A copy with another surrogate gradient."""
        return dataclasses.replace(self, surrogate=surrogate)

    def apply_stateful(
        self,
        network_state: tuple[dict, MaskTree | None],
        images: Float[Array, "B H W C"],
        surrogate_state: SurrogateState,
        *,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B K"], SurrogateState]:
        """Logits, differentiated with the surrogate state, and the state of the next iteration."""
        variables, masks = network_state
        output: Any = SpikingNetwork(self.architecture).apply(
            variables,
            images,
            masks,
            surrogate=self.surrogate,
            activity=True,
            key=key,
            surrogate_state=surrogate_state,
        )
        logits, active = output
        return logits, active.surrogate_state

    def initial_state(self, count: int, key: Array | None = None) -> SurrogateState:
        """Surrogate state before an attack on `count` images; empty unless stateful.

        Args:
          count: number of images.
          key: for the widths of `RandomWidth`; by default they are the same in every attack.
        """
        a, surrogate = self.architecture, self.surrogate
        spiking = [node.name for node in a.nodes if node.spiking]
        if isinstance(surrogate, RandomWidth):
            key = jax.random.key(0) if key is None else key
            return dict(zip(spiking, jax.random.split(key, len(spiking)), strict=True))
        if not isinstance(surrogate, AdaptiveSharpness):
            return {}
        return {
            name: surrogate.initial_state(a.time_steps, (count, *shapes(a)[name]))
            for name in spiking
        }


def predicted_classes(logits: Float[Array, "*B K"]) -> Int[Array, "*B"]:
    """The class of the largest logit; `NO_CLASS` where a logit is not finite."""
    return jnp.where(jnp.isfinite(logits).all(-1), logits.argmax(-1), NO_CLASS)


def is_stochastic(classifier: ClassifierFn) -> bool:
    """Whether two passes of the classifier may differ."""
    return getattr(classifier, "stochastic", False)


def key_kwargs(classifier: ClassifierFn, key: Array | None) -> dict[str, Array | None]:
    """Keyword arguments of a call: the key if the classifier is stochastic, else none."""
    return {"key": key} if is_stochastic(classifier) else {}


def initial_state(classifier: Any, count: int, key: Array | None = None) -> Any:
    """Surrogate state before an attack on `count` images; None unless the classifier has one.

    `key` is the attack's, for a classifier with a random gradient.
    """
    if not getattr(classifier, "stateful", False):
        return None
    if getattr(classifier, "random_gradient", False):
        key = None if key is None else jax.random.fold_in(key, GRADIENT_DRAWS)
        return classifier.initial_state(count, key=key)
    return classifier.initial_state(count)
