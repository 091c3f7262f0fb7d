"""TensorBoard writer (optional dependency)."""

from collections.abc import Mapping
from pathlib import Path

from ccsrp_jax.utils.errors import InputError


def summary_writer() -> type:
    """The class that writes the files of TensorBoard.

    Raises:
      InputError: tensorboardX is not installed.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise InputError(
            "tensorboardX is not installed, which --tensorboard needs: pip install "
            "'ccsrp-jax[tensorboard]'."
        ) from error
    return SummaryWriter


class TensorBoardWriter:
    """Writes the numbers of rows of metrics.jsonl to `run_dir`/tensorboard.

    Raises:
      InputError: tensorboardX is not installed.
    """

    def __init__(self, run_dir: Path, per_round: Mapping[str, int]):
        """Writes for a run.

        Args:
          run_dir: its directory.
          per_round: epochs or generations of a round, by stage; the steps of a curve go on from
            one round to the next.
        """
        self._writer = summary_writer()(str(run_dir / "tensorboard"))
        self._per_round = dict(per_round)

    def add(self, row: dict) -> None:
        """Writes the numbers of one row, under the name of its stage."""
        row = dict(row)
        stage, number = row.pop("stage"), row.pop("round", 0)
        within = row.pop("epoch", row.pop("generation", None))
        before = max(number - 1, 0) * self._per_round.get(stage, 1)
        step = number if within is None else before + within
        stage = "/".join([stage, *[row.pop(name) for name in ("group",) if name in row]])
        for name, value in row.items():
            if not isinstance(value, int | float):
                continue
            self._writer.add_scalar(f"{stage}/{name}", value, step)
        self._writer.flush()
