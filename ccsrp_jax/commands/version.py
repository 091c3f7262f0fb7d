"""`ccsrp version`: what a report of a problem should say."""

import importlib.metadata
import platform
from collections.abc import Sequence
from dataclasses import dataclass

import jax

from ccsrp_jax.pipeline.flags import read_flags
from ccsrp_jax.utils.console import Terminal
from ccsrp_jax.utils.devices import PACKAGES
from ccsrp_jax.utils.errors import InputError, reason
from ccsrp_jax.utils.guard import guard


@dataclass(frozen=True)
class Settings:
    """Print the versions of this library and of what it uses, and the devices that JAX sees."""


def main(flags: Sequence[str], prog: str | None = None) -> int:
    """Runs the command with these flags; returns the exit status."""
    return guard(lambda: _run(read_flags(Settings, flags, prog=prog), Terminal()))


def _run(settings: Settings, terminal: Terminal) -> None:
    for name in PACKAGES:
        terminal.line(f"{name} {importlib.metadata.version(name)}")
    terminal.line(f"{platform.python_implementation()} {platform.python_version()}")
    terminal.line(platform.platform())
    try:
        devices = jax.devices()
    except RuntimeError as error:  # a platform that is asked for and not there
        raise InputError(
            f"JAX finds no device ({reason(error)}): check JAX_PLATFORMS and the drivers."
        ) from error
    kinds = [device.device_kind for device in devices]
    for kind in dict.fromkeys(kinds):
        terminal.line(f"{kinds.count(kind)} x {kind} ({devices[0].platform})")
