"""Networks from other libraries and formats, and to them.

In: `from_nir` reads NIR files, `from_torch` the weights of PyTorch networks. Out: `EXPORTS` names
the formats; every function is `export(network, path, images=None) -> ExportReport`, compares what
it wrote with the network, and writes nothing if that fails.
"""

import importlib
from collections.abc import Callable, Mapping

from ccsrp_jax.exchange.from_nir import from_nir
from ccsrp_jax.exchange.from_torch import from_torch
from ccsrp_jax.exchange.report import ExportReport
from ccsrp_jax.exchange.to_nir import export_nir
from ccsrp_jax.exchange.to_onnx import export_onnx
from ccsrp_jax.exchange.to_stablehlo import export_stablehlo
from ccsrp_jax.exchange.to_torch import export_torch
from ccsrp_jax.utils.errors import unknown

# by name of the format, "module:function"
EXPORTS: Mapping[str, str] = {
    "nir": "ccsrp_jax.exchange.to_nir:export_nir",
    "stablehlo": "ccsrp_jax.exchange.to_stablehlo:export_stablehlo",
    "onnx": "ccsrp_jax.exchange.to_onnx:export_onnx",
    "torch": "ccsrp_jax.exchange.to_torch:export_torch",
}


def exporter(form: str) -> Callable[..., ExportReport]:
    """The function that exports to a format.

    Raises:
      InputError: there is no such format.
    """
    if form not in EXPORTS:
        raise unknown("export format", form, EXPORTS)
    module, _, name = EXPORTS[form].partition(":")
    return getattr(importlib.import_module(module), name)


__all__ = [
    "EXPORTS",
    "ExportReport",
    "export_nir",
    "export_onnx",
    "export_stablehlo",
    "export_torch",
    "exporter",
    "from_nir",
    "from_torch",
]
