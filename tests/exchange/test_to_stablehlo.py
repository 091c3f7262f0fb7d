"""A StableHLO file computes what the network does, bit for bit, for batches of any size."""

import jax
import jax.export
import numpy as np
import pytest
from conftest import busy, tiny

from ccsrp_jax.exchange.to_stablehlo import export_stablehlo
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.serialization import save
from ccsrp_jax.networks.stochastic_lif import StochasticLIF
from ccsrp_jax.utils.errors import InputError

pytest.importorskip("flatbuffers")
pytestmark = pytest.mark.usefixtures("untyped")  # symbolic sizes are no integers


@pytest.mark.parametrize("model", ["small"])
def test_a_file_is_exact_for_every_batch(model, tmp_path, images):
    architecture = tiny(model)
    variables = busy(architecture, 0)
    save(tmp_path / "network.safetensors", architecture, variables)
    report = export_stablehlo(tmp_path / "network.safetensors", tmp_path / "a.hlo", images[:3])
    assert report.largest_difference == 0 and report.images == 3
    exported = jax.export.deserialize(bytearray(report.path.read_bytes()))
    assert set(exported.platforms) == {"cpu", "cuda", "tpu"}
    expected = jax.jit(lambda x: Classifier(architecture)((variables, None), x))(images[:5])
    found = np.asarray(exported.call(images[:5]))
    np.testing.assert_array_equal(found, expected)
    assert np.ptp(found, 0).max() > 0.01


def test_a_random_network_is_refused_and_nothing_is_written(tmp_path):
    architecture = tiny("small", neuron=StochasticLIF())
    with pytest.raises(InputError, match="StochasticLIF neurons, which draw at random"):
        export_stablehlo((architecture, busy(architecture, 0)), tmp_path / "a.hlo")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_to(tmp_path):
    network = (tiny("small"), {})
    for path, why in ((tmp_path, "names no file"), (tmp_path / "no" / "a.hlo", "no folder")):
        with pytest.raises(InputError, match=why):
            export_stablehlo(network, path)
    with pytest.raises(InputError, match="give the path of a saved one"):
        export_stablehlo(3, tmp_path / "a.hlo")
