"""Metrics for TensorBoard, which an extra brings."""

from pathlib import Path

from ccsrp_jax.utils.errors import InputError

ROUND = 100_000  # steps are a round's number times this, and the epoch or generation in it


class Board:
    """Writes the numbers of metrics' rows to `run_dir`/tensorboard.

    Raises:
      InputError: tensorboardX is not installed.
    """

    def __init__(self, run_dir: Path):
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise InputError(
                "tensorboardX is not installed, which --tensorboard needs: pip install "
                "'ccsrp-jax[tensorboard]'."
            ) from error
        self._writer = SummaryWriter(str(run_dir / "tensorboard"))

    def add(self, row: dict) -> None:
        """The numbers of one row of metrics.jsonl, under the name of its stage."""
        row = dict(row)
        stage, step = row.pop("stage"), ROUND * row.pop("round", 0)
        step += row.pop("epoch", row.pop("generation", 0))
        stage = "/".join([stage, *[row.pop(name) for name in ("group",) if name in row]])
        for name, value in row.items():
            if not isinstance(value, int | float):
                continue
            self._writer.add_scalar(f"{stage}/{name}", value, step)
        self._writer.flush()
