"""Every format of exports has its function, with one signature."""

import inspect

import pytest

from ccsrp_jax.exchange import EXPORTS, exporter
from ccsrp_jax.exchange.report import ExportReport
from ccsrp_jax.utils.errors import InputError


@pytest.mark.parametrize("form", EXPORTS)
def test_a_format_is_a_function_of_a_network_a_path_and_images(form):
    parameters = inspect.signature(exporter(form)).parameters.values()
    required = [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
    assert required == ["network", "path", "images"]
    assert exporter(form).__annotations__["return"] is ExportReport


def test_an_unknown_format_is_refused():
    with pytest.raises(InputError, match=r"unknown export format 'onx'.*did you mean onnx"):
        exporter("onx")
