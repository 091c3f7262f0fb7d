"""Counts what XLA compiles, and for how long; and keeps it for the next run."""

import contextlib
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import jax

EVENT = "/jax/core/compile/backend_compile_duration"


@dataclass
class CompilationLog:
    """Programs compiled, in order: what each is called, and seconds it took.

    A program that came out of the persistent cache counts, with the seconds of reading it.
    """

    programs: list[tuple[str, float]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return sum((seconds for _, seconds in self.programs), 0.0)

    def count(self, name: str) -> int:
        """How many programs of a function."""
        return sum(program == f"jit({name})" for program, _ in self.programs)


@contextlib.contextmanager
def count_compilations() -> Iterator[CompilationLog]:
    """Counts compilations while it is open."""
    counted = CompilationLog()

    def listen(event: str, seconds: float, **about) -> None:
        if event == EVENT:
            counted.programs.append((str(about.get("fun_name")), seconds))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield counted
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def enable_persistent_cache(folder: str | os.PathLike | None = None) -> None:
    """Keeps compiled programs in a folder, where later runs find them.

    By default that is the user's cache. JAX_COMPILATION_CACHE_DIR, where it is set, says where
    instead; empty, it keeps none.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(folder or cache / "ccsrp_jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    # a damaged entry (a disk was full) is compiled anew: nothing that a user can act on
    warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")
