"""Errors, files, statistics, console, devices and compilation: nothing about networks."""

from ccsrp_jax.utils.errors import InputError

__all__ = ["InputError"]
