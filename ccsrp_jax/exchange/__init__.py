"""Networks from other libraries and formats, and to them."""

from ccsrp_jax.exchange.from_nir import from_nir
from ccsrp_jax.exchange.report import ExportReport

__all__ = ["ExportReport", "from_nir"]
