"""A trace of some steps of a training, for TensorBoard's or Perfetto's viewer."""

from pathlib import Path

import jax

WARM_UP = 2  # steps before the trace: the first one compiles


class StepProfile:
    """Traces a number of steps with `jax.profiler`, once they are compiled."""

    def __init__(self, folder: Path, steps: int):
        """Traces into a folder; 0 steps trace nothing."""
        self._folder, self._steps, self._done, self._tracing = folder, steps, 0, False

    def step(self) -> None:
        """To be called after every step."""
        self._done += 1
        if self._done == WARM_UP and self._steps:
            jax.profiler.start_trace(str(self._folder))
            self._tracing = True
        elif self._tracing and self._done == WARM_UP + self._steps:
            self.close()

    def close(self) -> None:
        """Ends the trace, if it has not ended: the training had too few steps, or was stopped."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
