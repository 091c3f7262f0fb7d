"""Leaky integrate-and-fire neurons that are connected with themselves."""

from dataclasses import dataclass

from ccsrp_jax.networks.neurons import LeakyNeuron, register_neuron


@dataclass(frozen=True)
class SelfConnectedLIF(LeakyNeuron):
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

    initial_weight: float = 0.0

    @property
    def initial_self_weight(self) -> float:
        return self.initial_weight


register_neuron(SelfConnectedLIF)
