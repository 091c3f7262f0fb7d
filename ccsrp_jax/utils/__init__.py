"""Errors, files, statistics, terminal output, devices and compilation."""

from ccsrp_jax.utils.errors import InputError

__all__ = ["InputError"]
