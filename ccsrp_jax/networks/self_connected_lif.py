"""Leaky integrate-and-fire neurons that are connected with themselves."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import jax.numpy as jnp

from ccsrp_jax.networks.neurons import (
    MembraneState,
    Neuron,
    check_tau,
    leaky,
    register_neuron,
)
from ccsrp_jax.utils.fields import Limits


@dataclass(frozen=True)
class SelfConnectedLIF(Neuron):
    """`LIF` whose spike charges its own membrane in the next step: v <- v + w s(t - 1).

    The weight w is learned, one for every channel of a layer (for every neuron of a dense layer).
    It is removed with its channel, and has no weight decay. It is added after the leak and before
    the neuron fires, and is not divided by tau. `detach_reset` does not stop its gradients. Its
    costs: one parameter a channel, one MAC a neuron in every step, and one SynOp for every spike
    but those of the last step.

    With w = 0 this is `LIF`. With w = -threshold and without any other reset it would be the
    `soft_delayed` reset, so that w also learns how strong that reset is.

    Self-connections are one of the two extensions in Zhang et al., On the Intrinsic Structures of
    Spiking Neural Networks, arXiv 2207.04876, where they make the integration operation adaptive.
    One weight a channel, without connections between neurons, is our reading.

    Attributes:
      tau, threshold, reset, decay_input, detach_reset, learned: see `LIF`.
      initial_weight: where w starts, in units of membrane potential.
    """

    tau: float = 2.0
    threshold: float = 1.0
    reset: Literal["hard", "soft", "soft_delayed"] = "hard"
    decay_input: bool = True
    detach_reset: bool = False
    learned: bool = False
    initial_weight: float = 0.0

    limits: ClassVar[Mapping[str, Limits]] = {"tau": Limits(1, infinite=True)}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_tau("SelfConnectedLIF", self.tau, self.learned)

    @property
    def membrane_tau(self) -> float:
        return self.tau

    @property
    def initial_self_weight(self) -> float:
        return self.initial_weight

    def initial_state(self, shape: tuple[int, ...]) -> MembraneState:
        return MembraneState(jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32))

    def charge(self, state, x, leak):
        v = leaky(state.v, x, self.tau, self.decay_input, leak)
        return state._replace(v=v - state.pending_reset)

    def rate_gain(self, tau):
        return 1 / (self.threshold * (tau if self.decay_input else 1))


register_neuron(SelfConnectedLIF)
