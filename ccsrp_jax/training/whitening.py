"""A first convolution that whitens patches, computed from training images and then kept fixed.

References:
  Page, How to Train Your ResNet 8, 2019; Jordan, 94% on CIFAR-10 in 3.29 Seconds on a Single GPU,
  arXiv 2404.00498, section 3.2, with kernels of 2 x 2. It takes 5,000 images, as here.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from ccsrp_jax.data.splits import to_unit_range
from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.nodes import IMAGE, Conv
from ccsrp_jax.utils.errors import InputError

IMAGES = 5000  # from which the covariance of patches is estimated
EPSILON = 5e-4  # added to its eigenvalues


def first_layer(architecture: Architecture) -> Conv:
    """The first convolution, which reads the images.

    Raises:
      InputError: the network does not begin with one.
    """
    first = architecture.nodes[0]
    if not (isinstance(first, Conv) and first.input == IMAGE):
        raise InputError(
            f"the network begins with {first.name!r}, a {type(first).__name__}, and only a first "
            "convolution can be fixed or whitening: give first_layer learned."
        )
    return first


def with_whitening(
    architecture: Architecture, variables: dict, images: Shaped[Array | np.ndarray, "N H W C"]
) -> dict:
    """Variables with a whitening first convolution.

    Its filters are `whitening_filters` of the normalized images, as many as there are or as it
    has, in the order of their eigenvalues; further filters stay as they are.

    Args:
      architecture: the network.
      variables: its state.
      images: training images, of which the first `IMAGES` are used.

    Raises:
      InputError: the network does not begin with a convolution of images.
    """
    node = first_layer(architecture)
    if architecture.encoding == "frames":
        raise InputError("whitening is of images, and these are frames: give first_layer learned.")
    x = np.asarray(to_unit_range(jnp.asarray(images[:IMAGES])))
    x = (x - np.array(architecture.mean)) / np.array(architecture.std)
    filters = whitening_filters(x.astype(np.float32), node.kernel)
    kernel = variables["params"][node.name]["kernel"]
    pairs = min(kernel.shape[-1], filters.shape[-1]) // 2
    both = np.concatenate([filters[..., :pairs], -filters[..., :pairs]], -1)
    kernel = kernel.at[..., : 2 * pairs].set(both)
    layer = {**variables["params"][node.name], "kernel": kernel}
    return {**variables, "params": {**variables["params"], node.name: layer}}


def whitening_filters(
    images: Float[np.ndarray, "N H W C"], size: int
) -> Float[np.ndarray, "k k C G"]:
    """Eigenvectors of the (uncentred) covariance of patches, divided by the root of eigenvalues.

    Args:
      images: normalized.
      size: k, side of a patch.

    Returns:
      G = 2 k k C: the filters by falling eigenvalue, then their negatives, so that spikes and ReLU
      see both signs. Outputs of the former on the patches are uncorrelated and of unit power, but
      for `EPSILON`.
    """
    channels = images.shape[-1]
    windows = np.lib.stride_tricks.sliding_window_view(images, (size, size), (1, 2))
    covariance, count = np.zeros((size * size * channels,) * 2), 0
    for part in np.array_split(windows, max(len(images) // 250, 1)):  # bounded memory
        patches = np.moveaxis(part, 3, -1).reshape(-1, len(covariance)).astype(np.float32)
        covariance += patches.T @ patches
        count += len(patches)
    values, vectors = np.linalg.eigh(covariance / count)
    scaled = (vectors / np.sqrt(np.maximum(values, 0) + EPSILON))[:, ::-1]
    filters = scaled.reshape(size, size, channels, -1)
    return np.concatenate([filters, -filters], -1).astype(np.float32)
