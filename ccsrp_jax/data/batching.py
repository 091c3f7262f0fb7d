"""Batches of one shape: the last one is padded."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ccsrp_jax.data.splits import Split, to_unit_range
from ccsrp_jax.utils.errors import InputError


def padded_batches(split: Split, max_size: int) -> Iterator[tuple[Array, Array, int]]:
    """Batches of one size, of at most `max_size` images, in the order of the split.

    The last batch is padded with its own first images, so that one compiled program serves all.

    Yields:
      Images in [0, 1], their labels, and how many of them are not padding.

    Raises:
      InputError: there are not as many labels as images, or none; values are not checked.
    """
    if not 0 < len(split.labels) == len(split.images):
        raise InputError(
            f"{len(split.images)} images with {len(split.labels)} labels cannot be divided into "
            "batches: give one label an image, and at least one."
        )
    size = balanced_batch_size(len(split.labels), max_size)
    for start in range(0, len(split.labels), size):
        images, labels = (part[start : start + size] for part in split)
        real = len(labels)
        fill = np.arange(size) % real
        yield to_unit_range(jnp.asarray(images[fill])), jnp.asarray(labels[fill]), real


def balanced_batch_size(total: int, max_size: int) -> int:
    """The size, at most `max_size`, that divides `total` images with the least padding."""
    return -(-total // max(-(-total // max_size), 1))
