"""`ccsrp export`: a saved network in the format of other tools."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ccsrp_jax.exchange import exporter
from ccsrp_jax.pipeline.flags import read_flags
from ccsrp_jax.utils.console import Terminal
from ccsrp_jax.utils.guard import guard

ENDINGS = {"torch": "_torch.py"}  # of formats whose files do not end as they are called


@dataclass(frozen=True)
class Settings:
    """Write a saved network in the format of other tools, and compare the two.

    Attributes:
      network: a .safetensors file that this library wrote, such as runs/latest/pruned.safetensors.
      to: `nir`, which SpikingJelly, snnTorch, Norse and others read; `stablehlo`, a program for
        CPU, CUDA and TPU with a batch of any size; `onnx`; or `torch`, a module of SpikingJelly.
      out: the file to write; by default beside the network, with the format as its suffix.
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
    export = exporter(settings.to)
    name = settings.network.stem + ENDINGS.get(settings.to, f".{settings.to}")
    report = export(settings.network, settings.out or settings.network.with_name(name))
    for line in (report.sentence, *report.notes):
        terminal.line(line)
