"""Images with class labels, and a data set divided into training, search and test splits."""

from typing import Literal, NamedTuple, overload

import numpy as np
from jaxtyping import Array, Float32, Int32, Shaped, UInt8

from ccsrp_jax.data.augmentation import Augmentation

Encoding = Literal["direct", "frames"]


class Split(NamedTuple):
    """Images, uint8 in 0..255 or float32 in [0, 1] (see `to_unit_range`), and their classes."""

    images: UInt8[np.ndarray, "N H W C"] | Float32[np.ndarray, "N H W C"]
    labels: Int32[np.ndarray, "N"]


class Dataset(NamedTuple):
    """A data set with its splits.

    Attributes:
      name: of the data set; for an .npz file, the file name without its suffix.
      train, search, test: the splits, each in the order of its source. Whatever selects masks
        uses `search`; neither training nor the final evaluation does.
      classes: number of classes K; labels are 0..K-1.
      mean, std: per channel, of the `train` images in [0, 1]; 0 and 1 for event frames, so that
        a pixel without events stays 0.
      augmentation: suitable for the training images; see `augment`.
      record: source, sizes, seed and positions of the search images, and `warnings`, a sentence
        for everything in the data that may be wrong, as JSON-compatible data.
      encoding: input encoding that the architecture needs: `frames` for event frames, else
        `direct`.
    """

    name: str
    train: Split
    search: Split
    test: Split
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation
    record: dict
    encoding: Encoding = "direct"


@overload
def to_unit_range(images: Shaped[Array, "*N"]) -> Float32[Array, "*N"]: ...
@overload
def to_unit_range(images: Shaped[np.ndarray, "*N"]) -> Float32[np.ndarray, "*N"]: ...
def to_unit_range(images: Shaped[Array | np.ndarray, "*N"]) -> Float32[Array | np.ndarray, "*N"]:
    """Images as float32 in [0, 1]: uint8 is divided by 255, floats are only cast."""
    scaled = images.astype(np.float32)
    return scaled / 255 if images.dtype == np.uint8 else scaled
