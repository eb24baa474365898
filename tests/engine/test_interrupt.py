"""SIGINT waits until a step is done."""

import signal
from collections.abc import Iterator

import pytest

from detdistill.engine.interrupt import uninterrupted


@pytest.fixture
def default_sigint() -> Iterator[None]:
    """The SIGINT handler of a program in a terminal. A program that was started in the background ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("default_sigint")
def test_an_interrupt_is_raised_after_the_block() -> None:
    done: list[str] = []

    def block() -> None:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done.append("the rest of the block")

    with pytest.raises(KeyboardInterrupt):
        block()
    assert done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("default_sigint")
def test_an_error_in_the_block_restores_the_handler() -> None:
    with pytest.raises(ZeroDivisionError), uninterrupted():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("default_sigint")
def test_a_handler_of_the_program_stays() -> None:
    calls: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: calls.append(number))
    with uninterrupted():
        signal.raise_signal(signal.SIGINT)
        assert calls == [signal.SIGINT]
