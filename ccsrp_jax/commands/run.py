"""`ccsrp run`: the main job."""

from collections.abc import Sequence

from ccsrp_jax.pipeline import run as job
from ccsrp_jax.pipeline.parse_config import parse
from ccsrp_jax.utils import compilation
from ccsrp_jax.utils.console import Terminal
from ccsrp_jax.utils.guard import guard
from ccsrp_jax.utils.interruption import Interruption


def main(flags: Sequence[str], prog: str | None = None) -> int:
    """Runs the job with these flags; returns the exit status."""
    interruption = Interruption()

    def run() -> None:
        compilation.enable_persistent_cache()
        job.run(parse(flags, prog), Terminal(on_step=interruption.check))

    return guard(run, interruption=interruption)
