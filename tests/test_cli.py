"""Every end of a command is one line on stderr and an exit status."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from ccsrp_jax.cli import guard
from ccsrp_jax.utils.console import Terminal
from ccsrp_jax.utils.errors import InputError
from ccsrp_jax.utils.interruption import Interruption

ROOT = Path(__file__).parents[1]


def raising(error):
    def run():
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (InputError("no data set 'a\nb': give\x1b[2J one"), 2, "error: no data set 'a\\nb'"),
        (InputError("no file \ud800 \x00"), 2, "error: no file \\ud800 \\x00"),
        (MemoryError(), 2, "error: memory is exhausted (MemoryError): free some"),
        (MemoryError("Unable to allocate 7 TiB"), 2, "exhausted (Unable to allocate 7 TiB)"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of\nx"), 2, "memory is exhausted"),
        (OSError(28, "No space left", "a\nb"), 2, "at a\\nb (No space left): make room"),
        (OSError("no number"), 2, "(no number)"),
        (KeyboardInterrupt(), 130, "interrupted (SIGINT); --resume continues"),
        (BrokenPipeError(), 1, ""),
    ],
)
def test_an_error_is_one_line(error, status, says, capsys):
    assert guard(raising(error)) == status
    text = capsys.readouterr().err
    assert says in text and text.count("\n") == (status != 1) and text.rstrip("\n").isprintable()


def test_an_error_of_our_own_is_not_hidden():
    for error in (jax.errors.JaxRuntimeError("INTERNAL: a bug"), ZeroDivisionError()):
        with pytest.raises(type(error)):
            guard(raising(error))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_command_stops_at_its_next_step(number, status, capsys):
    interruption, done = Interruption(), []

    def run():
        with Terminal(on_step=interruption.check).stage("steps", 9) as advance:
            for step in range(9):
                if step == 3:
                    os.kill(os.getpid(), number)
                done.append(step)
                advance()

    assert guard(run, interruption=interruption) == status
    assert done == [0, 1, 2, 3]
    assert capsys.readouterr().err == (
        f"interrupted ({number.name}); --resume continues from the last checkpoint, if there is "
        "one.\n"
    )


def test_names_that_the_output_cannot_encode_are_escaped(monkeypatch):
    for encoding in ("ascii", "latin-1", "utf-8"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", stream)
        assert guard(lambda: (Terminal().line("runs/测\udc80\né"), print("\udc80"))) == 0
        stream.flush()
        text = stream.buffer.getvalue().decode(encoding)
        assert text.count("\n") == 2 and "\\udc80\\n" in text
        assert ("测" if encoding == "utf-8" else "\\u6d4b") in text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_imports_is_one_line(number):
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "experiments" / "ccsrp.py"), "--help"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(0.5)  # the imports take seconds
    process.send_signal(number)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert text.count("\n") == 1 and text.startswith("interrupted before the run began")
