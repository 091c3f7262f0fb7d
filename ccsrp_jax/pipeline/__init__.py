"""The main job: from a data set to a compact, robust network and its report."""

from ccsrp_jax.pipeline.config import Config, parse

__all__ = ["Config", "parse"]
