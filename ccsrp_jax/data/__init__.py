"""Data sets and their splits: images, TFDS sets, recordings of events."""

from ccsrp_jax.data.augmentation import Augmentation, augment
from ccsrp_jax.data.datasets import load
from ccsrp_jax.data.splits import Dataset, Split, batches, unit

__all__ = ["Augmentation", "Dataset", "Split", "augment", "batches", "load", "unit"]
