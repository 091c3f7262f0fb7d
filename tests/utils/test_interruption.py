"""A signal takes effect where a command can stop, and in no callback of a library."""

import os
import signal
import threading

import pytest

from ccsrp_jax.utils.interruption import Interrupted, Interruption


class Dropped:
    """Sends a signal when it is deleted; Python swallows what is raised there."""

    def __init__(self, number):
        self.number = number

    def __del__(self):
        os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_noted_anywhere_and_raised_where_it_is_asked_for(number, status):
    before = signal.getsignal(number)
    interruption = Interruption()
    with interruption.handled():
        interruption.check()
        dropped = Dropped(number)
        del dropped
        for _ in range(2):  # also if the first one is swallowed
            with pytest.raises(Interrupted) as raised:
                interruption.check()
        assert (raised.value.status, raised.value.name) == (status, signal.Signals(number).name)
        with pytest.raises(Interrupted):  # the second signal
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_does_not_ask_is_interrupted_at_once(number):
    with Interruption(at_once=True).handled(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)


def test_a_signal_that_the_process_is_to_ignore_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the background of a shell
    try:
        with Interruption(at_once=True).handled():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_leaves_the_handlers_alone():
    done = []

    def run():
        with Interruption().handled():
            done.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert done == [signal.getsignal(signal.SIGTERM)]
