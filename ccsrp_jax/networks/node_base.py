"""The base class of all node kinds: the rules that the rest of the library asks a node for.

`architecture`, `masks`, `compaction`, `counts`, `synops` and the scoring of populations know
no kind of node by name. They loop over the nodes and ask these rules, so a kind is added by its
class (`nodes.py`, or a module of the user's own) and its Flax code (`lowering.register_node`).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
from jaxtyping import Array, Float

from ccsrp_jax.utils.errors import InputError, shown
from ccsrp_jax.utils.fields import SIZE, Limits, check_fields

IMAGE = "image"  # the name under which the first nodes read the input
# Names that the Flax module of a network has itself, so that no layer of it can.
RESERVED = frozenset(dir(nn.Module)) | {
    *("architecture", "dtype", "axis", "split_kernel_gradient"),
    *("name", "parent", "scope", "_state", "_parent_ref", "_compact_name_scope_methods"),
    *("encode", "readout", "walk", "_neurons", "_key"),
}

Shape = tuple[int, ...]  # of one time step of one image: (H, W, C), or (C,) for features


class Segment(NamedTuple):
    """A run of channels along the last axis: all channels of one mask group."""

    group: str
    width: int


Channels = tuple[Segment, ...]  # what lies along the last axis of a node's output


@dataclass(frozen=True)
class Node:
    """One operation of a network's graph; subclasses are frozen dataclasses that add settings.

    The defaults are the rules of an operation without weights, whose output has the shape and
    the channels of its input. A subclass overrides the rules in which it differs.

    Class attributes:
      opens_group: its output channels are new filters, which form a mask group named after the
        node. Such a kind mixes all of its input channels and has a field `width`.
      merges_groups: channel i of every input belongs to one filter, as in a sum.
      fixes_channels: neither the channels it reads nor those it writes can be removed. For kinds
        that cannot be cut, such as a normalization across channels.
      keeps_zeros: an input channel that is 0 everywhere is 0 in the output too. False is always
        safe; it may leave fewer groups prunable.
      has_kernel: it multiplies its input by a parameter called `kernel`. It then counts in MACs
        and SynOps, and `MaskTree`s may mask single weights of it.
      spiking: it is a layer of neurons, whose spikes are gated by the filter masks.
      draws_in_training: it needs a random key in training mode.
      limits: by name of a field, which numbers it takes; see `utils.fields`.
      input_axis, output_axis: by name of a parameter or batch statistic, the axis that runs over
        the input and output channels (counted from the end); what is not named is not cut.

    Attributes:
      name: of the node, and of its parameters.
      input: name of the node that it reads, or `IMAGE`.
    """

    name: str
    input: str

    opens_group: ClassVar[bool] = False
    merges_groups: ClassVar[bool] = False
    fixes_channels: ClassVar[bool] = False
    keeps_zeros: ClassVar[bool] = False
    has_kernel: ClassVar[bool] = False
    spiking: ClassVar[bool] = False
    draws_in_training: ClassVar[bool] = False
    limits: ClassVar[Mapping[str, Limits]] = {"width": SIZE}
    input_axis: ClassVar[Mapping[str, int]] = {}
    output_axis: ClassVar[Mapping[str, int]] = {}

    def __post_init__(self) -> None:
        check_name(self.name)
        try:
            check_fields(self, type(self).__name__.lower(), {**Node.limits, **self.limits})
        except InputError as error:
            raise InputError(f"node {self.name!r}: {error}") from error

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the nodes that it reads."""
        return (self.input,)

    def shape(self, *inputs: Shape) -> Shape:
        """Output shape from the input shapes.

        Raises:
          InputError: the inputs do not fit.
        """
        return inputs[0]

    def channels(self, inputs: Sequence[Channels], output: Shape) -> Channels:
        """The segments of the output's last axis, from those of the inputs and the output shape."""
        return (Segment(self.name, output[-1]),) if self.opens_group else inputs[0]

    def param_shapes(self, inputs: Sequence[Shape], output: Shape) -> dict[str, Shape]:
        """Shapes of the trainable parameters, for these shapes of inputs and output."""
        return {}

    def macs(self, inputs: Sequence[Shape], output: Shape) -> int:
        """Multiply-accumulates of one time step for one image, with padding counted."""
        return 0

    def fan_out(self, width: int) -> int:
        """How many of `width` output channels an input value contributes to at one position."""
        return width

    def synapses(
        self, events: Float[Array, "S B *N"], kernel: Float[Array, "*K"] | None
    ) -> Float[Array, ""]:
        """Number of synapses that the events (0 or 1 each) reach.

        Args:
          events: which inputs are non-zero.
          kernel: 0/1, the weights that exist; None for all of them, and then the number is that
            of one output channel (of all, where `fan_out` is 1).
        """
        raise NotImplementedError(f"{type(self).__name__} has a kernel: define its `synapses`.")

    def narrowed(self, width: int) -> "Node":
        """The same node with so many output channels."""
        return dataclasses.replace(self, width=width) if self.opens_group else self

    def take(
        self, leaves: Mapping[str, Any], kept_in: Sequence[Any], kept_out: Any
    ) -> dict[str, Any]:
        """Its parameters (or batch statistics) with the removed channels cut out.

        Args:
          leaves: by name, arrays of one variable collection.
          kept_in: for each input, the indices of the channels that stay.
          kept_out: indices of the output channels that stay.
        """
        cut = {}
        for name, value in leaves.items():
            for axes, kept in ((self.input_axis, kept_in[0]), (self.output_axis, kept_out)):
                if name in axes:
                    value = value[(..., kept, *[slice(None)] * (-axes[name] - 1))]
            cut[name] = value
        return cut


def check_name(name: Any) -> None:
    """Refuses names that a node, its parameters or their tensors in a file cannot have.

    Raises:
      InputError: naming it.
    """
    fits = isinstance(name, str) and name != "" and name.isprintable() and "/" not in name
    if not fits or name in RESERVED:
        raise InputError(
            f"{shown(name)} cannot be the name of a node: give printable characters without '/', "
            f"and not {IMAGE!r} or an attribute of Flax modules."
        )


NODE_KINDS: dict[str, type[Node]] = {}  # by "op" in saved networks; see `lowering.register_node`


def check_registered(node: Node) -> None:
    """Refuses a node whose kind `lowering.register_node` has not been given.

    Raises:
      InputError: naming the node and its class.
    """
    kind = type(node)
    if NODE_KINDS.get(kind.__name__) is not kind:
        raise InputError(
            f"node {node!r} is of class {kind.__module__}.{kind.__qualname__}, which is not "
            "registered: call ccsrp_jax.networks.register_node(class, lowering) first."
        )
