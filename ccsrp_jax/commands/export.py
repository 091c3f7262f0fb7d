"""`ccsrp export`: a saved network in the format of other tools."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import tyro

from ccsrp_jax.networks import serialization
from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.pipeline.flags import read_flags
from ccsrp_jax.utils.console import Terminal
from ccsrp_jax.utils.errors import InputError, unknown
from ccsrp_jax.utils.guard import guard
from ccsrp_jax.utils.io import write_atomic

PLATFORMS = ("cpu", "cuda", "tpu")
PLATFORMS = ("cpu", "cuda", "tpu")
# functions `(architecture, variables, path) -> None`, loaded when they are used
FORMATS = {"stablehlo": "ccsrp_jax.commands.export:to_stablehlo"}


@dataclass(frozen=True)
class Settings:
    """Write a saved network in the format of other tools.

    Attributes:
      network: a .safetensors file that this library wrote, such as runs/latest/pruned.safetensors.
      to: `stablehlo`, a portable program of the whole network that maps images in [0, 1], any
        number of them, to logits.
      out: the file to write; by default the network's, with the format as its suffix.
    """

    network: Annotated[Path, tyro.conf.Positional]
    to: str
    out: Path | None = None


def main(flags: Sequence[str], prog: str | None = None) -> int:
    """Runs the command with these flags; returns the exit status."""
    return guard(
        lambda: _run(read_flags(Settings, flags, prog=prog), Terminal()),
        "--out",
        "the same command",
    )


def _run(settings: Settings, terminal: Terminal) -> None:
    if settings.to not in FORMATS:
        raise unknown("format", settings.to, FORMATS)
    architecture, variables = serialization.load(settings.network)
    module, _, name = FORMATS[settings.to].partition(":")
    out = settings.out or settings.network.with_suffix(f".{settings.to}")
    getattr(importlib.import_module(module), name)(architecture, variables, out)
    terminal.line(f"written to {out}")


def to_stablehlo(architecture: Architecture, variables: dict, path: Path) -> None:
    """Writes a portable StableHLO artifact for CPU, CUDA and TPU, with the weights as constants.

    Raises:
      InputError: the network draws at random.
    """
    if architecture.stochastic:
        raise InputError(
            "a network that draws at random needs a key of JAX, which other tools do not have: "
            "export one with another encoding and neuron."
        )
    classifier = Classifier(architecture)
    program = jax.jit(lambda images: classifier((variables, None), images))
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *architecture.input_shape), jnp.float32)
    exported = jax.export.export(program, platforms=PLATFORMS)(images)
    write_atomic(path, exported.mlir_module_serialized)
