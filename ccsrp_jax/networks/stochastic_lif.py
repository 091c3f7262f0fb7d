"""Leaky integrate-and-fire neurons with membrane noise and probabilistic firing."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from ccsrp_jax.networks.neurons import (
    MembraneState,
    Neuron,
    Noise,
    check_tau,
    leaky,
    register_neuron,
)
from ccsrp_jax.utils.fields import Limits


@dataclass(frozen=True)
class StochasticLIF(Neuron):
    """`LIF` with random firing, drawn anew in every step for every neuron.

    Two kinds of noise, of which either may be 0:

      * membrane noise: v <- v + membrane_noise n with a standard normal n, after the charge and
        before the neuron fires. The membrane keeps it, until it leaks or is reset;
      * probabilistic firing (escape noise): the neuron fires with the probability
        sigmoid((v - threshold) / firing_noise), by logistic noise that is added to v only where it
        is compared with the threshold.

    The backward pass takes the surrogate gradient at the noisy distance from the threshold. With
    both 0 this is `LIF`, and not stochastic.

    A network of such neurons must be called with a key: the same key gives the same answer. The
    draws of a filter do not change when other filters are removed. Attacks average gradients over
    draws, and predictions are majorities over passes, as for the stochastic encodings.

    Stochastic neurons are one of the two extensions in Zhang et al., On the Intrinsic Structures of
    Spiking Neural Networks, arXiv 2207.04876, where they make the firing-reset mechanism adaptive;
    Gaussian membrane noise is also that of noisy spiking neurons (Ma et al., Exploiting Noise as a
    Resource for Computation and Learning in Spiking Neural Networks, arXiv 2305.16044). That the
    noise stays in the membrane, and the logistic law, are ours.

    Attributes:
      tau, threshold, reset, decay_input, detach_reset, learned: see `LIF`.
      membrane_noise: standard deviation, in units of membrane potential.
      firing_noise: scale of the logistic noise, in units of membrane potential.
    """

    tau: float = 2.0
    threshold: float = 1.0
    reset: Literal["hard", "soft", "soft_delayed"] = "hard"
    decay_input: bool = True
    detach_reset: bool = False
    learned: bool = False
    membrane_noise: float = 0.1
    firing_noise: float = 0.1

    limits: ClassVar[Mapping[str, Limits]] = {
        "tau": Limits(1, infinite=True),
        "membrane_noise": Limits(0),
        "firing_noise": Limits(0),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_tau("StochasticLIF", self.tau, self.learned)

    @property
    def membrane_tau(self) -> float:
        return self.tau

    @property
    def stochastic(self) -> bool:
        return self.membrane_noise > 0 or self.firing_noise > 0

    def noise(self, key, shape):
        membrane = firing = None
        key_membrane, key_firing = jax.random.split(key)
        if self.membrane_noise > 0:
            membrane = self.membrane_noise * jax.random.normal(key_membrane, shape)
        if self.firing_noise > 0:
            firing = self.firing_noise * jax.random.logistic(key_firing, shape)
        return Noise(membrane, firing)

    def initial_state(self, shape: tuple[int, ...]) -> MembraneState:
        return MembraneState(jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32))

    def charge(self, state, x, leak):
        v = leaky(state.v, x, self.tau, self.decay_input, leak)
        return state._replace(v=v - state.pending_reset)

    def rate_gain(self, tau):
        return 1 / (self.threshold * (tau if self.decay_input else 1))


register_neuron(StochasticLIF)
