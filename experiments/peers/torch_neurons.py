"""Torch twins with the neurons of snnTorch or Norse, for measurements of speed."""

import shutil

import torch
from torch import nn

from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.neurons import LIF
from ccsrp_jax.networks.nodes import Spike
from peers.torch_twin import FoldedTwin

STEP = 1e-3  # s, of Norse's time; results depend on its ratio to tau alone


class Stepped(nn.Module):
    """A cell, `(current, state) -> (spikes, state)`, stepped over the time axis."""

    def __init__(self, cell, initial_state):
        super().__init__()
        self.cell, self.initial_state = cell, initial_state

    def forward(self, currents: torch.Tensor) -> torch.Tensor:
        state, spikes = self.initial_state(currents[0]), []
        for current in currents:
            fired, state = self.cell(current, state)
            spikes.append(fired)
        return torch.cat(spikes).reshape(currents.shape)  # which stays channels last


def snntorch_neuron(neuron: LIF) -> Stepped:
    """snnTorch's Leaky with reset to zero. It does not divide its input by tau."""
    import snntorch

    cell = snntorch.Leaky(
        beta=1 - 1 / neuron.tau,
        threshold=neuron.threshold,
        spike_grad=snntorch.surrogate.atan(alpha=2.0),
        reset_mechanism="zero",
        reset_delay=False,
    )
    return Stepped(cell, torch.zeros_like)


def norse_neuron(neuron: LIF) -> Stepped:
    """Norse's LIFBoxCell; its surrogate gradient is SuperSpike."""
    import norse.torch as norse

    constants = norse.LIFBoxParameters(
        tau_mem_inv=torch.as_tensor(1 / (neuron.tau * STEP)),
        v_th=torch.as_tensor(neuron.threshold),
    )
    return Stepped(norse.LIFBoxCell(constants, dt=STEP), lambda current: None)


def twin_of(peer: str, architecture: Architecture, variables: dict) -> FoldedTwin:
    """The folded twin with a peer's neurons ("spikingjelly", "snntorch" or "norse").

    The loops of the latter two over time are compiled where there is a C++ compiler.
    """
    twin = FoldedTwin(architecture, variables)
    if peer == "spikingjelly":
        return twin
    make, neuron = {"snntorch": snntorch_neuron, "norse": norse_neuron}[peer], architecture.neuron
    if not isinstance(neuron, LIF):
        raise NotImplementedError(f"{peer} is compared with LIF neurons only, not {neuron!r}.")
    torch._dynamo.config.recompile_limit = 64  # once per layer, and with and without gradients
    for node in architecture.nodes:
        if not isinstance(node, Spike):
            continue
        twin.replace_layer(node, make(neuron))
        if peer == "snntorch":  # the division by tau goes into the weights
            with torch.no_grad():
                for parameter in twin.layer_named(node.input).parameters():
                    parameter /= neuron.tau
        if shutil.which("g++"):
            twin.layer(node).compile()
    return twin
