"""The classifier of training: compute type, rematerialization, batch sharded over devices.

The network folds time into the batch, time first. A sharded batch cannot keep its sharding through
that fold: the compiler would gather it on every device. So each device runs the network on its
shard of the images, and the batch norm statistics of training are averaged over devices. Random
draws are made for the whole batch, so that they equal those of one device.
"""

from collections.abc import Mapping
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

from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.masks import MaskTree
from ccsrp_jax.networks.spiking_network import SpikingNetwork, Values
from ccsrp_jax.utils.devices import DEVICES

# What the forward pass stores of each segment besides its inputs, by `remat`.
REMAT_POLICIES = {
    "time": jax.checkpoint_policies.save_only_these_names("layer"),
    "layers": jax.checkpoint_policies.nothing_saveable,
}


def training_network(
    architecture: Architecture, dtype: DTypeLike = jnp.float32, axis: str | None = None
) -> SpikingNetwork:
    """The Flax module with the gradient of kernels as this backend computes it fastest."""
    cpu = jax.default_backend() == "cpu"
    return SpikingNetwork(architecture, dtype, axis, split_kernel_gradient=cpu)


@dataclass(frozen=True)
class ParallelClassifier(Classifier):
    """The classifier that training differentiates and attacks.

    Attributes:
      dtype: compute type of convolutions and dense layers.
      remat: rematerialization in the backward pass, as in `BaseRecipe`.
      mesh: devices over which images are sharded along the batch axis; None is one device. The
        batch size must be a multiple of the number of devices.
    """

    dtype: DTypeLike = jnp.float32
    remat: Literal["none", "time", "layers"] = "none"
    mesh: Mesh | None = None

    def __call__(
        self,
        network_state: tuple[dict, MaskTree | None],
        images: Float[Array, "B H W C"],
        *,
        key: Array | None = None,
    ) -> Float[Array, "B K"]:
        return self.forward(*network_state, images, key)[0].mean(0)

    def forward(
        self,
        variables: dict,
        masks: MaskTree | None,
        images: Float[Array, "B H W C"],
        key: Array | None,
        *,
        train: bool = False,
        activity: bool = False,
    ) -> tuple[Float[Array, "T B K"], Values, Mapping]:
        """Logits of every time step, potentials if `activity` is true, new batch statistics.

        Potentials are (T, B, *features) by layer. On a mesh the devices' shards are concatenated
        along time instead of the batch, so that only statistics over both are meaningful.
        """
        axis = None if self.mesh is None else DEVICES
        network = training_network(self.architecture, self.dtype, axis)
        random = self.architecture.neuron.stochastic or (
            train and self.architecture.draws_in_training
        )
        draws = key if random else None
        values = network.encode(images, key)

        def segment(variables, masks, values, key, *, begin, end):
            return network.apply(
                variables,
                values,
                masks,
                begin=begin,
                end=end,
                surrogate=self.surrogate,
                train=train,
                activity=activity,
                key=key,
                mutable=["batch_stats"],
                method="walk",
            )

        def walk(variables, masks, values, key):
            potentials, updates = {}, {}
            for begin, end in self._segments():
                part = partial(segment, begin=begin, end=end)
                if self.remat in REMAT_POLICIES:
                    # with a single checkpoint the compiler could recompute all layers before the
                    # backward pass of the last
                    part = jax.checkpoint(part, policy=REMAT_POLICIES[self.remat])
                (values, active), updates = part({**variables, **updates}, masks, values, key)
                potentials |= active.potentials
            return network.readout(values, per_step=True), potentials, updates

        if self.mesh is not None:
            sharded = P(None, DEVICES)
            walk = jax.shard_map(
                walk,
                mesh=self.mesh,
                in_specs=(P(), P(), sharded, P()),
                out_specs=(sharded, P(DEVICES), P()),
                check_vma=False,
            )
        return walk(variables, dict(masks or {}), values, draws)

    def _segments(self) -> list[tuple[int, int]]:
        """Ranges of nodes under one checkpoint, each up to a layer of neurons; or all nodes."""
        nodes = self.architecture.nodes
        ends = [i + 1 for i, node in enumerate(nodes) if node.spiking]
        cuts = [0, *(ends if self.remat in REMAT_POLICIES else []), len(nodes)]
        return [(begin, end) for begin, end in pairwise(cuts) if begin < end]
