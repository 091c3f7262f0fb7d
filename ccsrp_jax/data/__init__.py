"""Data sets: images, TFDS data sets and event-camera recordings, with their splits."""

from ccsrp_jax.data.augmentation import Augmentation, augment
from ccsrp_jax.data.batching import padded_batches
from ccsrp_jax.data.datasets import from_arrays, load
from ccsrp_jax.data.division import SplitSettings
from ccsrp_jax.data.splits import Dataset, Split, to_unit_range

__all__ = [
    "Augmentation",
    "Dataset",
    "Split",
    "SplitSettings",
    "augment",
    "from_arrays",
    "load",
    "padded_batches",
    "to_unit_range",
]
