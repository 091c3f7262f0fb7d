"""Leaky integrate-and-fire neurons with membrane noise and probabilistic firing."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import jax

from ccsrp_jax.networks.neurons import LeakyNeuron, Noise, register_neuron
from ccsrp_jax.utils.fields import Limits


@dataclass(frozen=True)
class StochasticLIF(LeakyNeuron):
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

    membrane_noise: float = 0.1
    firing_noise: float = 0.1

    limits: ClassVar[Mapping[str, Limits]] = {
        **LeakyNeuron.limits,
        "membrane_noise": Limits(0),
        "firing_noise": Limits(0),
    }

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


register_neuron(StochasticLIF)
