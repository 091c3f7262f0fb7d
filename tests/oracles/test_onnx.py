"""ONNX models in onnxruntime compute what the network does."""

import numpy as np
import pytest
from conftest import busy, jit, tiny

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("jax2onnx")

from ccsrp_jax.exchange.to_onnx import export_onnx
from ccsrp_jax.networks.spiking_network import SpikingNetwork

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.usefixtures("untyped"),
]


@pytest.mark.parametrize("model", ["small", "resnet8"])
def test_onnxruntime_computes_the_same(model, tmp_path, images):
    architecture = tiny(model)
    variables = busy(architecture, 0)
    report = export_onnx((architecture, variables), tmp_path / "a.onnx", images[:3])
    assert report.largest_difference < 1e-5
    session = onnxruntime.InferenceSession(report.path, providers=["CPUExecutionProvider"])
    [found] = session.run(None, {"images": np.asarray(images[:5])})
    expected = jit(SpikingNetwork(architecture).apply)(variables, images[:5])
    np.testing.assert_allclose(found, expected, atol=1e-5)
