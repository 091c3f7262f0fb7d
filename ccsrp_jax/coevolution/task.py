"""The sub-problem of one group: a network, a group and the images that candidates are scored on."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.coevolution.scoring import CertifiedBall, shared_prefix
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.masks import MaskTree
from ccsrp_jax.networks.spiking_network import Values
from ccsrp_jax.utils import devices


class Batch(NamedTuple):
    """A batch of images, and the values that all candidates share on it."""

    images: Array  # (B, H, W, C) in [0, 1]
    labels: Array  # (B,)
    real: int  # the images after these are padding
    key: Array | None  # for an attack or a stochastic network
    prefix: Values | None = None  # None: recomputed at every use, to save memory


class Task(NamedTuple):
    """One group's sub-problem; made by `make_task`, scored by `score`."""

    classifier: Classifier
    variables: dict
    masks: MaskTree
    group: str
    clean: list[Batch]
    adversarial: list[Batch]  # empty if each candidate has an attack or bounds of its own
    macs: np.ndarray  # (n + 1,) share of the dense network's MACs, by number of filters kept
    attack: PGD | CertifiedBall | None
    mesh: Mesh | None
    single_device: tuple[dict, MaskTree]  # variables and masks on the device that runs the prefix
    member_chunk: int = 1  # members per call on each device
    refresh: bool = False  # statistics of batch norm, for every candidate
    reference: np.ndarray | None = None  # (2, images) losses of the current mask, clean and robust

    @property
    def images(self) -> int:
        """Number of clean images; there are as many adversarial ones."""
        return sum(batch.real for batch in self.clean)

    def prefix(self, batch: Batch) -> Values:
        """Values that all candidates share on a batch, on every device."""
        if batch.prefix is not None:
            return batch.prefix
        return devices.put(self.mesh, self.compute_prefix(batch))

    def compute_prefix(self, batch: Batch) -> Values:
        """The same values, computed on one device."""
        network = self.classifier.architecture, self.group, *self.single_device
        return shared_prefix(*network, batch.images, batch.key)

    def suffix_key(self, batch: Batch) -> Array | None:
        """The key of what follows the gate, on every device; None if nothing there is random."""
        random = self.classifier.architecture.neuron.stochastic
        return devices.put(self.mesh, batch.key) if random else None

    def mask_trees(self, members: Array) -> MaskTree:
        """The masks of all groups for (M, n) members of this one; members are sharded."""
        trees = {
            name: jnp.broadcast_to(mask, (len(members), *mask.shape))
            for name, mask in self.masks.items()
        }
        return devices.put(self.mesh, trees | {self.group: members}, sharded=True)

    def repeat_images(self, images: Array, members: int) -> Array:
        """The images, repeated for each of M members, (M, B, H, W, C); members are sharded."""
        repeated = jnp.broadcast_to(images, (members, *images.shape))
        return devices.put(self.mesh, repeated, sharded=True)
