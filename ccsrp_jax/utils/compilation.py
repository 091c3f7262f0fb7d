"""Compilation counter and persistent compilation cache."""

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
    """Compiled programs in order: name, and seconds that the compilation took.

    A program that was loaded from the persistent cache is included, with the seconds of loading.
    """

    programs: list[tuple[str, float]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Total compilation time."""
        return sum((seconds for _, seconds in self.programs), 0.0)

    def count(self, name: str) -> int:
        """Number of programs compiled for the jitted function of that name."""
        return sum(program == f"jit({name})" for program, _ in self.programs)


@contextlib.contextmanager
def count_compilations() -> Iterator[CompilationLog]:
    """Logs the compilations that happen within the context."""
    log = CompilationLog()

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == EVENT:
            log.programs.append((str(kwargs.get("fun_name")), duration_secs))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield log
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def enable_persistent_cache(folder: str | os.PathLike | None = None) -> None:
    """Stores compiled programs in a folder, so that later runs load them.

    The environment variable JAX_COMPILATION_CACHE_DIR, if set, takes precedence; an empty value
    disables the cache.

    Args:
      folder: where to store them; by default `ccsrp_jax` in the user's cache folder.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(folder or cache / "ccsrp_jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    # A damaged entry (the disk was full) is compiled again: the user need not act on it.
    warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")
