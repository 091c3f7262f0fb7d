"""What an export reports, the network that it takes, and how its file is written."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ccsrp_jax.data.checks import checked_images
from ccsrp_jax.data.splits import to_unit_range
from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.serialization import load
from ccsrp_jax.utils.errors import InputError, reason, shown
from ccsrp_jax.utils.io import as_path

CHECK_IMAGES = 16  # drawn where none are given

# of a saved network, or (architecture, variables), with which `load` answers
Network = str | PathLike[str] | tuple[Architecture, Mapping[str, Any]]


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how it compared with the network.

    Attributes:
      path: of the file.
      form: `nir`, `stablehlo`, `onnx` or `torch`.
      compared: what was compared, and with what.
      images: number of images on which.
      largest_difference: largest absolute difference of a logit.
      spike_differences: number of spikes that differ; None where they were not compared.
      notes: what a reader of the file must know, as sentences.
    """

    path: Path
    form: str
    compared: str
    images: int
    largest_difference: float
    spike_differences: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """The result of the check."""
        spikes = ""
        if self.spike_differences is not None:
            spikes = f", {self.spike_differences} spikes differ"
        return (
            f"{self.path}: {self.compared} on {self.images} images: largest difference of a logit "
            f"{self.largest_difference:.3g}{spikes}."
        )


def as_network(network: Any) -> tuple[Architecture, dict]:
    """The architecture and variables of a network, or of the file that has them.

    Raises:
      InputError: it is neither, or cannot be loaded.
    """
    if isinstance(network, str | PathLike):
        return load(network)
    if isinstance(network, tuple | list) and len(network) >= 2:
        architecture, variables = network[:2]
        if isinstance(architecture, Architecture) and isinstance(variables, Mapping):
            return architecture, dict(variables)
    raise InputError(
        f"the network is {shown(network)}: give the path of a saved one, or the pair "
        "(architecture, variables)."
    )


def check_images(
    architecture: Architecture, images: Any, count: int = CHECK_IMAGES
) -> Float[Array, "B H W C"]:
    """The images to check an export on; without any, uniform noise, always the same."""
    if images is None:
        shape = (count, *architecture.input_shape)
        return jax.random.uniform(jax.random.key(0), shape)
    return to_unit_range(jnp.asarray(checked_images(images, architecture.input_shape)))


def check_deterministic(architecture: Architecture, form: str) -> None:
    """Refuses networks that draw at random, which the file could not.

    Raises:
      InputError: the encoding or the neurons are random.
    """
    if architecture.stochastic:
        what = f"the {architecture.encoding} encoding"
        if architecture.neuron.stochastic:
            what = f"{type(architecture.neuron).__name__} neurons"
        raise InputError(
            f"{form} cannot hold {what}, which draw at random: export another network."
        )


def logits(architecture: Architecture, variables: Mapping[str, Any], images: Any) -> np.ndarray:
    """Logits of a network, averaged over time."""
    classifier = Classifier(architecture)
    return np.asarray(jax.jit(classifier)((dict(variables), None), images))


def target_path(path: Any) -> Path:
    """The path of the file to write.

    Raises:
      InputError: the path names no file, or its folder is not there.
    """
    path = as_path(path)
    if not path.name or path.is_dir():
        raise InputError(f"{shown(str(path))} names no file: give the path of one.")
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent}: make it, or give another path.")
    return path


def imported(module: str, extra: str) -> Any:
    """A module of a package that an extra brings.

    Raises:
      InputError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"{module} cannot be imported ({reason(error)}): install it with "
            f"pip install 'ccsrp-jax[{extra}]'."
        ) from error


def check_close(form: str, difference: float, tolerance: float) -> None:
    """Refuses an export that does not compute what the network does.

    Raises:
      InputError: the difference is larger than the tolerance, or not a number.
    """
    if not difference <= tolerance:
        raise InputError(
            f"the {form} export differs from the network by {difference:.3g} in a logit, more than "
            f"{tolerance:g}: nothing was written; report this network as a bug."
        )
