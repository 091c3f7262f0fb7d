"""Figures, tables and pages made from the records of runs."""

from ccsrp_jax.reporting.comparison import hypervolume

__all__ = ["hypervolume"]
