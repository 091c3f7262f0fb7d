"""A network as attacks and evaluation call it: `classifier(params, images) -> logits`."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Array, Float

from ccsrp_jax.networks.architecture import Architecture, shapes
from ccsrp_jax.networks.gradients import AdaptiveSharpness, Backward, Surrogate
from ccsrp_jax.networks.masks import MaskTree
from ccsrp_jax.networks.nodes import Spike
from ccsrp_jax.networks.spiking_network import Seen, SpikingNetwork


@dataclass(frozen=True)
class Classifier:
    """`(variables, masks), images -> logits` in evaluation mode.

    Hashable by value, so that jitted code may take it as a static argument. What attacks
    may know of a classifier beyond that, see `attacks`.

    Attributes:
      architecture: the network.
      surrogate: what gradients of its output go through.
    """

    architecture: Architecture
    surrogate: Backward = Surrogate()

    @property
    def stochastic(self) -> bool:
        """Whether it must be called with a key."""
        return self.architecture.stochastic

    def __call__(
        self,
        params: tuple[dict, MaskTree | None],
        images: Float[Array, "B H W C"],
        *,
        key: Array | None = None,
    ) -> Float[Array, "B K"]:
        variables, masks = params
        network = SpikingNetwork(self.architecture)
        return network.apply(variables, images, masks, surrogate=self.surrogate, key=key)

    def with_backward(self, surrogate: Backward) -> "Classifier":
        """The same network, differentiated through something else."""
        return dataclasses.replace(self, surrogate=surrogate)

    @property
    def remembers(self) -> bool:
        """Whether its gradient depends on the iterations before."""
        return isinstance(self.surrogate, AdaptiveSharpness)

    def recall(
        self,
        params: tuple[dict, MaskTree | None],
        images: Float[Array, "B H W C"],
        memory: Seen,
        *,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B K"], Seen]:
        """Logits whose gradient goes by a memory, at first `fresh_memory`, and the next one."""
        variables, masks = params
        logits, active = SpikingNetwork(self.architecture).apply(
            variables,
            images,
            masks,
            surrogate=self.surrogate,
            activity=True,
            key=key,
            seen=memory,
        )
        return logits, active.distances

    def fresh_memory(self, count: int) -> Seen:
        """What is known of `count` images before an attack."""
        a = self.architecture
        return {
            node.name: self.surrogate.fresh(a.time_steps, (count, *shapes(a)[node.name]))
            for node in a.nodes
            if isinstance(node, Spike)
        }


Logits = Callable[..., Float[Array, "B K"]]


def is_stochastic(logits: Logits) -> bool:
    return getattr(logits, "stochastic", False)


def keyed(logits: Logits, key: Array | None) -> dict[str, Array | None]:
    """What else to call a classifier with: the key, if it draws at random."""
    return {"key": key} if is_stochastic(logits) else {}


def start_memory(logits: Logits, count: int) -> Any:
    """What to give `slope` in an attack's first iteration on `count` images."""
    return logits.fresh_memory(count) if getattr(logits, "remembers", False) else None
