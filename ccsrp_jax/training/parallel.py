"""The network as training computes it: its type, its memory, its batch dealt out over devices.

The network folds time into the batch, time first, and a batch that is dealt out cannot stay so
through that fold, which the compiler would answer by gathering it on every device. So each
device walks the network with its share of the images, and what images share, the moments of
batch norm in training, is averaged over devices. Draws of an encoding are made before, for
the whole batch, so that they are those of one device.
"""

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.masks import MaskTree
from ccsrp_jax.networks.nodes import Spike
from ccsrp_jax.networks.spiking_network import SpikingNetwork, Values
from ccsrp_jax.utils.devices import DEVICES

# By `remat`, what is kept of each segment beside what it begins with, the spikes before it.
KEPT = {
    "time": jax.checkpoint_policies.save_only_these_names("layer"),
    "layers": jax.checkpoint_policies.nothing_saveable,
}


@dataclass(frozen=True)
class Trainee(Classifier):
    """The classifier that training differentiates and attacks.

    Attributes:
      dtype: compute type of convolutions and dense layers.
      remat: what a gradient finds in memory and what it computes anew, as in `Recipe`.
      mesh: over which images are dealt out, first axis first; None is one device. Their count
        must be a multiple of its devices'.
    """

    dtype: DTypeLike = jnp.float32
    remat: Literal["none", "time", "layers"] = "none"
    mesh: Mesh | None = None

    def __call__(
        self,
        params: tuple[dict, MaskTree | None],
        images: Float[Array, "B H W C"],
        *,
        key: Array | None = None,
    ) -> Float[Array, "B K"]:
        return self.forward(*params, images, key)[0].mean(0)

    def forward(
        self,
        variables: dict,
        masks: MaskTree | None,
        images: Float[Array, "B H W C"],
        key: Array | None,
        *,
        train: bool = False,
        activity: bool = False,
    ) -> tuple[Float[Array, "T B K"], Values, dict]:
        """Logits of every step, potentials where activity is asked for, new batch statistics.

        Potentials are (T, B, *features), and on a mesh each device's follow one another in
        time: there they are good for moments only.
        """
        axis = None if self.mesh is None else DEVICES
        network = SpikingNetwork(self.architecture, self.dtype, axis)
        values = network.encode(images, key)

        def segment(variables, masks, values, *, begin, end):
            return network.apply(
                variables,
                values,
                masks,
                begin=begin,
                end=end,
                surrogate=self.surrogate,
                train=train,
                activity=activity,
                mutable=["batch_stats"],
                method="walk",
            )

        def walk(variables, masks, values):
            potentials, updates = {}, {}
            for begin, end in self._segments():
                part = partial(segment, begin=begin, end=end)
                if self.remat in KEPT:
                    # one checkpoint for all would leave the compiler free to recompute all
                    # layers before it goes back through the last
                    part = jax.checkpoint(part, policy=KEPT[self.remat])
                (values, active), updates = part({**variables, **updates}, masks, values)
                potentials |= active.potentials
            return network.readout(values, per_step=True), potentials, updates

        if self.mesh is not None:
            sharded = P(None, DEVICES)
            walk = jax.shard_map(
                walk,
                mesh=self.mesh,
                in_specs=(P(), P(), sharded),
                out_specs=(sharded, P(DEVICES), P()),
                check_vma=False,
            )
        return walk(variables, dict(masks or {}), values)

    def _segments(self) -> list[tuple[int, int]]:
        """Positions in the graph that are walked at a time: each up to its neurons, or all."""
        nodes = self.architecture.nodes
        ends = [i + 1 for i, node in enumerate(nodes) if isinstance(node, Spike)]
        cuts = [0, *(ends if self.remat in KEPT else []), len(nodes)]
        return [(begin, end) for begin, end in pairwise(cuts) if begin < end]
