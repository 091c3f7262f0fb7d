"""`ccsrp prepare`: download a TFDS data set."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from ccsrp_jax.data.prepare import prepare
from ccsrp_jax.pipeline.flags import read_flags
from ccsrp_jax.utils.guard import guard


@dataclass(frozen=True)
class Settings:
    """Download a TFDS data set and write it in the format that this library reads.

    Needs TensorFlow: pip install 'ccsrp-jax[prepare]'. Reading the data set does not.

    Attributes:
      name: of the data set, as `cifar10` or `imagenette/160px-v2`.
      data_dir: folder to write to, the --data-dir of other commands; by default that of TFDS.
    """

    name: Annotated[str, tyro.conf.Positional]
    data_dir: Annotated[str | None, tyro.conf.Positional] = None


def main(flags: Sequence[str], prog: str | None = None) -> int:
    """Runs the command with these flags; returns the exit status."""

    def run() -> None:
        settings = read_flags(Settings, flags, prog=prog)
        prepare(settings.name, settings.data_dir)

    return guard(run, "DATA-DIR", "the same command")
