"""Interruption of a command by SIGINT and SIGTERM, where it can stop.

An exception that is raised between any two instructions can end up in a callback of a library,
which swallows it, or in the midst of a write. So the handler only notes the signal, and the
command asks for it at every step.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)  # of a user, and of schedulers


class Interrupted(KeyboardInterrupt):
    """A signal has been received; `except Exception` does not catch it.

    Attributes:
      name: of the signal.
      status: exit status of a command that it ended, 128 + its number.
    """

    def __init__(self, number: int):
        self.name = signal.Signals(number).name
        self.status = 128 + number
        super().__init__(self.name)


class Interruption:
    """Signals that a command has received.

    Attributes:
      at_once: the first one raises where the program is, for a command that does not ask.
    """

    def __init__(self, *, at_once: bool = False):
        self.at_once = at_once
        self._received: int | None = None

    def check(self) -> None:
        """Raises `Interrupted` if a signal has been received."""
        if self._received is not None:
            raise Interrupted(self._received)

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handles the signals in this context, except those that the process was told to ignore.

        The second one raises `Interrupted` where the program is. In a thread other than the main
        one, which cannot handle signals, this does nothing.
        """
        with _handled(self._receive):
            yield

    def _receive(self, number: int, frame: FrameType | None) -> None:
        first, self._received = self._received is None, number
        if self.at_once or not first:
            raise Interrupted(number)
        if sys.stderr is not None and sys.stderr.isatty():
            os.write(sys.stderr.fileno(), b"\nstopping at the next step; again to stop at once\n")


@contextmanager
def ended(text: str) -> Iterator[None]:
    """A signal in this context prints a line and ends the process, without any cleaning up.

    For imports, where an exception might be taken for a module that is missing.
    """

    def end(number: int, frame: FrameType | None) -> None:
        os.write(2, text.encode() + b"\n")
        os._exit(128 + number)

    with _handled(end):
        yield


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {}
    with suppress(ValueError):  # of a thread that cannot handle signals
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
