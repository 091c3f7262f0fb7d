"""The main job: from a data set to a compact, robust network and its report."""

from ccsrp_jax.pipeline.config import Config
from ccsrp_jax.pipeline.parse_config import parse

__all__ = ["Config", "parse"]
