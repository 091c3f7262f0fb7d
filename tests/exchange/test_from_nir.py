"""Imported NIR files have the spikes of the networks that wrote them."""

import json
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

from ccsrp_jax.exchange.from_nir import from_nir
from ccsrp_jax.networks.spiking_network import SpikingNetwork

nir = pytest.importorskip("nir")

ARCHIVE = Path(__file__).parents[1] / "fixtures" / "nir_sources.tar.xz"
with tarfile.open(ARCHIVE) as _tar:
    SOURCES = sorted(Path(name).stem for name in _tar.getnames() if name.endswith(".nir"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nir")
    with tarfile.open(ARCHIVE) as tar:
        tar.extractall(folder, filter="data")
    return folder


def frozen_spikes(path):
    """(T, B, *features) of every layer, with the channels first, and the output."""
    with np.load(path) as file:
        layers = [file[name] for name in file.files if name.startswith("layer")]
        shapes = [file[f"shape{i}"] for i in range(len(layers))]
        spikes = [
            np.unpackbits(bits)[: np.prod(shape)].reshape(shape)
            for bits, shape in zip(layers, shapes, strict=True)
        ]
        return spikes, file["output"]


@pytest.mark.parametrize("name", SOURCES)
def test_the_spikes_of_the_library_that_wrote_the_file(folder, name):
    options = json.loads((folder / f"{name}.json").read_text())
    expected, output = frozen_spikes(folder / f"{name}.npz")
    steps, count = output.shape[:2]
    architecture, variables = from_nir(folder / f"{name}.nir", time_steps=steps, **options)
    images = load_digits().images[:count, ..., None].astype(np.float32) / 16
    logits, active = jax.jit(lambda v, x: SpikingNetwork(architecture).apply(v, x, activity=True))(
        variables, images
    )
    assert len(active.spikes) == len(expected)
    for ours, theirs in zip(active.spikes.values(), expected, strict=True):
        ours = np.moveaxis(np.asarray(ours), -1, 2) if ours.ndim == 5 else np.asarray(ours)
        assert 0.01 < theirs.mean() < 0.99  # the layer spikes, and not always
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(logits, output.mean(0), atol=2e-5)
