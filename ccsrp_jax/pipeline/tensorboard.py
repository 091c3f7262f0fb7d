"""TensorBoard writer (optional dependency)."""

from pathlib import Path

from ccsrp_jax.utils.errors import InputError

STEPS_PER_ROUND = 100_000  # a row's step: its round times this, plus its epoch or generation


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

    def __init__(self, run_dir: Path):
        self._writer = summary_writer()(str(run_dir / "tensorboard"))

    def add(self, row: dict) -> None:
        """Writes the numbers of one row, under the name of its stage."""
        row = dict(row)
        stage, step = row.pop("stage"), STEPS_PER_ROUND * row.pop("round", 0)
        step += row.pop("epoch", row.pop("generation", 0))
        stage = "/".join([stage, *[row.pop(name) for name in ("group",) if name in row]])
        for name, value in row.items():
            if not isinstance(value, int | float):
                continue
            self._writer.add_scalar(f"{stage}/{name}", value, step)
        self._writer.flush()
