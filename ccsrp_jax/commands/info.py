"""`ccsrp info`: what is in a saved network or in the directory of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from ccsrp_jax.data import provenance
from ccsrp_jax.networks import cost, masks, serialization
from ccsrp_jax.networks.architecture import Architecture, shapes
from ccsrp_jax.pipeline.flags import read_flags
from ccsrp_jax.utils.console import Terminal
from ccsrp_jax.utils.errors import InputError, shown
from ccsrp_jax.utils.guard import guard
from ccsrp_jax.utils.io import read_json

# networks of a run, and their part of its summary
NETWORKS = {"pruned.safetensors": "pruned", "networks/round00.safetensors": "dense"}
RESULTS = ("accuracy", "robust_accuracy", "latency_ms")
TRAINED_ON = ("dataset", "version", "seed", "search_fraction", provenance.DIGESTS, "recipe_sha256")


@dataclass(frozen=True)
class Settings:
    """Print what is in a saved network or in the directory of a run.

    That is: the layers of the network with their parameters and MACs, what it was trained on, and
    its accuracy where the run's summary says it.

    Attributes:
      path: a .safetensors file, or the directory of a run, such as runs/latest.
    """

    path: Annotated[Path, tyro.conf.Positional]


def main(flags: Sequence[str], prog: str | None = None) -> int:
    """Runs the command with these flags; returns the exit status."""
    return guard(lambda: _run(read_flags(Settings, flags, prog=prog), Terminal()))


def _run(settings: Settings, terminal: Terminal) -> None:
    path = settings.path
    if path.is_dir():
        there = [path / name for name in NETWORKS if (path / name).is_file()]
        if not there:
            raise InputError(
                f"{path} holds no network of a run ({' or '.join(NETWORKS)}): give the directory "
                "of a run, or a .safetensors file."
            )
    else:
        there = [path]
    for number, each in enumerate(there):
        if number:
            terminal.line("")
        _describe(each, terminal)


def _describe(path: Path, terminal: Terminal) -> None:
    architecture, variables, origin = serialization.load_with_provenance(path)
    zeros = masks.of_zeros(architecture, variables)  # of methods that remove single weights
    params, macs = cost.params(architecture, zeros), cost.macs(architecture, zeros)
    terminal.line(f"{path}, {path.stat().st_size:,} bytes")
    height, width, channels = architecture.input_shape
    terminal.line(
        f"images of {height} x {width} x {channels}, {architecture.classes} classes, "
        f"{architecture.time_steps} time steps, {architecture.encoding} encoding"
    )
    terminal.line(f"neurons {architecture.neuron}")
    terminal.table(
        f"{sum(params.values()):,} parameters, {sum(macs.values()):,} MACs a time step",
        ["layer", "kind", "output", "parameters", "MACs"],
        _layers(architecture, params, macs),
    )
    terminal.line(_training(origin))
    if said := _summary(path):
        terminal.line(f"on the test images, as {said}")


def _layers(
    architecture: Architecture, params: Mapping[str, int], macs: Mapping[str, int]
) -> list[list[str]]:
    shape = shapes(architecture)
    return [
        [
            node.name,
            type(node).__name__,
            " x ".join(map(str, shape[node.name])),
            f"{params[node.name]:,}" if node.name in params else "",
            f"{macs[node.name]:,}" if node.name in macs else "",
        ]
        for node in architecture.nodes
    ]


def _training(origin: Mapping[str, Any] | None) -> str:
    if origin is None:
        return "the file does not say what it was trained on"
    known = [f"{name} {_short(origin[name])}" for name in TRAINED_ON if name in origin]
    limits = [
        f"{value} {name}"
        for name, value in origin.items()
        if name.endswith("_images") and value is not None
    ]
    return "trained on " + ", ".join([*known, *limits])


def _short(value: Any) -> str:
    """A value, digests among them by their first digits."""
    if isinstance(value, list):
        return " ".join(map(_short, value))
    return value[:12] if isinstance(value, str) and len(value) == 64 else shown(value)


def _summary(path: Path) -> str | None:
    """What the summary of the run says that a network belongs to, where there is one."""
    for name, part in NETWORKS.items():
        within, whole = Path(name).parts, path.absolute()
        summary = whole.parents[min(len(within), len(whole.parents)) - 1] / "summary.json"
        if whole.parts[-len(within) :] == within and summary.is_file():
            found = read_json(summary).get(part) or {}
            figures = [f"{key} {found[key]:.4g}" for key in RESULTS if key in found]
            return f"summary.json says: {', '.join(figures)}" if figures else None
    return None
