"""Queries of a network without gradients, and the best of them for each image."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ccsrp_jax.attacks.losses import LOWEST, infinite_where_not_finite, margin
from ccsrp_jax.attacks.threat_model import per_image
from ccsrp_jax.networks.classifier import ClassifierFn, is_stochastic, predicted_classes


class BestQuery(NamedTuple):
    """For each image the query of the largest margin so far."""

    images: Float[Array, "B H W C"]
    margin: Float[Array, "B"]
    broken: Bool[Array, "B"]  # misclassified in that query

    @classmethod
    def none_yet(cls, images: Float[Array, "B H W C"]) -> "BestQuery":
        """Before any query: every one is accepted."""
        lowest = jnp.full(len(images), LOWEST, jnp.float32)
        return cls(images, lowest, jnp.zeros(len(images), bool))

    def update(
        self,
        images: Float[Array, "B H W C"],
        logits: Float[Array, "B K"],
        labels: Int[Array, "B"],
        *,
        stochastic: bool,
        equal: bool = False,
    ) -> "BestQuery":
        """Accepts the images that break or gain margin, where none was broken yet.

        Args:
          images: of this query.
          logits: the network's answer.
          labels: true classes.
          stochastic: one draw that misclassifies does not stop the search.
          equal: accept images of the same margin too.
        """
        gain = infinite_where_not_finite(margin(logits, labels), logits)
        broken = predicted_classes(logits) != labels
        if stochastic:
            broken = jnp.zeros_like(broken)
        higher = gain >= self.margin if equal else gain > self.margin
        better = (higher | broken) & ~self.broken
        return BestQuery(
            jnp.where(per_image(better), images, self.images),
            jnp.where(better, gain, self.margin),
            self.broken | broken,
        )


def query(
    classifier: ClassifierFn,
    samples: int,
    network_state: Any,
    images: Float[Array, "B H W C"],
    key: Array,
    number: int | Int[Array, ""],
) -> Float[Array, "B K"]:
    """Logits, averaged over `samples` draws where the classifier is stochastic.

    `number` is that of the query, which is folded into the key.
    """
    if not is_stochastic(classifier):
        return classifier(network_state, images)
    keys = jax.random.split(jax.random.fold_in(key, number), samples)
    return jax.vmap(lambda each: classifier(network_state, images, key=each))(keys).mean(0)
