"""The limit of processor time."""

import signal
import threading
import time

import pytest

from detdistill.exporting.time_limit import time_limit


def work(seconds: float) -> None:
    """Use the processor for so long."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_work_that_takes_too_long_is_stopped() -> None:
    before = signal.getsignal(signal.SIGPROF)
    begin = time.process_time()
    with pytest.raises(TimeoutError, match=r"more than 0\.2 seconds"), time_limit(0.2):
        work(5)
    assert time.process_time() - begin < 2
    assert signal.getsignal(signal.SIGPROF) == before
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)


def test_quick_work_is_not_stopped() -> None:
    with time_limit(0.2):
        work(0.05)
    work(0.3)  # the limit is over


def test_there_is_no_limit_in_another_thread() -> None:
    finished = []

    def run() -> None:
        with time_limit(0.05):
            work(0.2)
        finished.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert finished == [True]
