"""The classifier of networks whose last layer fires: its spikes, averaged over time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ccsrp_jax.networks.lowering import Run, register_node
from ccsrp_jax.networks.node_base import Channels, Shape
from ccsrp_jax.networks.nodes import Dense
from ccsrp_jax.utils.errors import InputError


@dataclass(frozen=True)
class SpikeRate(Dense):
    """A classifier without weights: the logits are the firing rates of the layer before it.

    It stands at the end of imported networks whose output is spikes. Their neurons, one for a
    class, are not pruned.
    """

    bias: bool = False

    opens_group: ClassVar[bool] = False
    fixes_channels: ClassVar[bool] = True
    keeps_zeros: ClassVar[bool] = True
    has_kernel: ClassVar[bool] = False
    input_axis: ClassVar[Mapping[str, int]] = {}
    output_axis: ClassVar[Mapping[str, int]] = {}

    def shape(self, *inputs: Shape) -> Shape:
        if inputs[0] != (self.width,):
            raise InputError(
                f"node {self.name!r} reads features of shape {inputs[0]}: give it one for each of "
                f"{self.width} classes."
            )
        return inputs[0]

    def channels(self, inputs: Sequence[Channels], output: Shape) -> Channels:
        return inputs[0]

    def param_shapes(self, inputs: Sequence[Shape], output: Shape) -> dict[str, Shape]:
        return {}

    def macs(self, inputs: Sequence[Shape], output: Shape) -> int:
        return 0


def lowering(node: SpikeRate, run: Run, x):
    """The spikes as they are; the network averages its output over time."""
    return x


register_node(SpikeRate, lowering)
