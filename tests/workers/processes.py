"""Processes with devices of their own."""

import os
import subprocess
import sys
from pathlib import Path

import jax


def start(*statements: str, forced: int = 1) -> subprocess.Popen:
    """A process with so many CPU devices."""
    flags = f"--xla_force_host_platform_device_count={forced}"
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    return subprocess.Popen(
        [sys.executable, "-c", "; ".join(statements)],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(workers: list[subprocess.Popen]) -> None:
    """Waits for them, and fails with what they said if one fails or hangs."""
    said = []
    for worker in workers:
        try:
            said.append(worker.communicate(timeout=180)[0])
        except subprocess.TimeoutExpired:
            for each in workers:
                each.kill()
            said.append(worker.communicate()[0])
    assert [worker.returncode for worker in workers] == [0] * len(workers), "\n".join(said)


def on_cpu(function):
    """What it gives in this process, on one device of the kind that the workers have."""
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        return function(None)
