"""Reading of NIR files, as one flat graph without cycles.

NIR: Pedersen et al., Neuromorphic intermediate representation, Nature Communications 15, 8122
(2024). Files are HDF5, read by the package `nir`.
"""

import graphlib
import warnings
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ccsrp_jax.exchange.report import imported
from ccsrp_jax.utils.errors import InputError, reason, shown
from ccsrp_jax.utils.io import as_path

VERSIONS = ("0", "1")  # first numbers of the versions of NIR files that are read
METADATA = "ccsrp_jax"  # under which our own files say how they are to be discretized


class FlatGraph(NamedTuple):
    """A NIR graph with the graphs in it dissolved.

    Attributes:
      nodes: by name, in topological order; objects of `nir`.
      reads: for every node, the names of those that it reads, whose sum is its input.
      metadata: of the whole graph.
      source: what the graph is called in messages.
    """

    nodes: dict[str, Any]
    reads: dict[str, list[str]]
    metadata: dict[str, Any]
    source: str

    def named(self, name: str) -> str:
        """A node for a message."""
        return f"node {shown(name)} of {self.source} ({type(self.nodes[name]).__name__})"

    def refused(self, name: str, why: str, advice: str) -> InputError:
        """The error for a node that cannot be represented."""
        return InputError(f"{self.named(name)} cannot be imported: {why}; {advice}.")

    def value(self, name: str, field: str) -> np.ndarray:
        """A parameter of a node, as float64.

        Raises:
          InputError: it is not there, is no number or not finite.
        """
        found = getattr(self.nodes[name], field, None)
        try:
            array = np.asarray(found, np.float64)
        except (TypeError, ValueError, RuntimeError):
            array = np.asarray(np.nan)
        if found is None or not np.isfinite(array).all():
            raise InputError(
                f"{field} of {self.named(name)} has values that are missing or not finite: export "
                "a network of finite weights."
            )
        return array


def read_graph(source: Any) -> FlatGraph:
    """The flat graph of a NIR file, or of a `nir.NIRGraph`.

    Raises:
      InputError: `nir` is not installed; the file is missing, damaged or of another format; or
        the graph has cycles, or edges to nodes that are not there.
    """
    if isinstance(source, str | PathLike):
        path = as_path(source)
        graph, what = _read_file(path), str(path)
    else:
        graph, what = source, "the NIR graph"
    if not all(hasattr(graph, field) for field in ("nodes", "edges")):
        raise InputError(f"{what} is {shown(graph)}: give the path of a NIR file or a NIRGraph.")
    nodes: dict[str, Any] = {}
    edges: list[tuple[str, str]] = []
    try:
        _flatten(graph, "", nodes, edges)
    except (AttributeError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{what} is no NIR graph ({reason(error)}): export it anew.") from error
    for edge in edges:
        for end in edge:
            if end not in nodes:
                raise InputError(
                    f"{what} has an edge to {shown(end)}, which is no node of it: export it anew."
                )
    metadata = getattr(graph, "metadata", None)
    metadata = dict(metadata) if isinstance(metadata, Mapping) else {}
    return _ordered(nodes, edges, metadata, what)


def _read_file(path: Path) -> Any:
    nir, serialization = imported("nir", "nir"), imported("nir.serialization", "nir")
    if not path.is_file():
        raise InputError(f"there is no file {path}: give the path of a NIR file.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            version = str(serialization.read_version(path))
            if version.split(".")[0] in VERSIONS:
                # types are checked by the shapes of the architecture: `nir` refuses grouped
                # convolutions, and pooling whose shapes it cannot infer
                return nir.read(path, type_check=False)
    except Exception as error:  # h5py and nir raise all kinds for damaged files
        raise InputError(
            f"{path} cannot be read as a NIR file ({reason(error)}): give one that nir.write made."
        ) from error
    raise InputError(
        f"{path} has version {shown(version)} of NIR, and {' and '.join(VERSIONS)} are known: "
        "export it with an earlier version of nir."
    )


def _flatten(
    graph: Any, prefix: str, nodes: dict[str, Any], edges: list[tuple[str, str]]
) -> tuple[list[str], list[str]]:
    """Adds the nodes and edges of a graph; returns the names of its inputs and outputs.

    Inputs and outputs of graphs within become the nodes `Pass`.
    """
    inner: dict[str, tuple[list[str], list[str]]] = {}
    inputs, outputs = [], []
    for key, node in graph.nodes.items():
        name = f"{prefix}{key}"
        kind = type(node).__name__
        if kind == "NIRGraph":
            inner[name] = _flatten(node, f"{name}.", nodes, edges)
            continue
        if kind == "Input":
            inputs.append(name)
        if kind == "Output":
            outputs.append(name)
        nodes[name] = Pass() if prefix and kind in ("Input", "Output") else node
    for before, after in graph.edges:
        before, after = f"{prefix}{before}", f"{prefix}{after}"
        starts = inner[before][1] if before in inner else [before]
        ends = inner[after][0] if after in inner else [after]
        edges += [(start, end) for start in starts for end in ends]
    return inputs, outputs


class Pass:
    """Where a graph within another begins or ends."""


def _ordered(
    nodes: dict[str, Any], edges: list[tuple[str, str]], metadata: dict[str, Any], what: str
) -> FlatGraph:
    reads: dict[str, list[str]] = {name: [] for name in nodes}
    for before, after in edges:
        if before in reads[after]:
            raise InputError(
                f"{what} has the edge from {shown(before)} to {shown(after)} twice: export it anew."
            )
        reads[after].append(before)
    try:
        order = list(graphlib.TopologicalSorter(reads).static_order())
    except graphlib.CycleError as error:
        cycle = " -> ".join(map(str, reversed(error.args[1])))
        raise InputError(
            f"{what} is recurrent ({cycle}), and networks here are feed-forward: remove the cycle."
        ) from error
    return FlatGraph({name: nodes[name] for name in order}, reads, metadata, what)
