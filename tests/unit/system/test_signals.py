"""Signals that are kept until what was begun has a name."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest
from piolet.system import signals


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_what_is_begun_has_a_name_when_the_signal_is_handled() -> None:
    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    begun = ""
    with pytest.raises(KeyboardInterrupt), signals.held():
        signal.raise_signal(signal.SIGTERM)
        begun = "yes"
    assert begun == "yes" and signal.getsignal(signal.SIGTERM) is interrupt


def test_nothing_is_raised_where_none_came_and_what_is_ignored_stays_so() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with signals.held():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_an_error_inside_goes_on_and_handlers_are_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(OSError, match="begun"), signals.held():
        raise OSError("begun")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_thread_holds_nothing() -> None:
    done: list[bool] = []

    def work() -> None:
        with signals.held():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert done == [True]
