"""Subcommands of `ccsrp`, one module each."""
