"""Lets Ctrl-C interrupt a run between two steps only."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay SIGINT until the end of the block, then raise KeyboardInterrupt.

    It does nothing outside the main thread, because Python delivers signals to the main thread only. It also does
    nothing if the program has its own SIGINT handler.
    """
    default_handler = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if threading.current_thread() is not threading.main_thread() or not default_handler:
        yield
        return
    signals: list[int] = []

    def record(number: int, frame: FrameType | None) -> None:
        signals.append(number)

    signal.signal(signal.SIGINT, record)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signals:
        raise KeyboardInterrupt
