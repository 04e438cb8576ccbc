"""Log lines: one record is one line, and nobody's are too many."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator

from piolet.base import logs
from piolet.base.rates import Rates


@contextlib.contextmanager
def written(form: str = "%(name)s: %(message)s") -> Iterator[io.StringIO]:
    """Give what is logged, without pytest's own handlers meanwhile."""
    root, out = logging.getLogger(), io.StringIO()
    handlers, level = list(root.handlers), root.level
    root.handlers.clear()
    try:
        logs.configure(form, stream=out)
        yield out
    finally:
        root.handlers[:], root.level = handlers, level


def test_a_record_is_one_line() -> None:
    hostile = "x\npiolet-imaged: uid 0: forged\r\x1b[2J\x00\u202eabc\u2028\udcff\x9b \\n café"
    with written() as out:
        logging.getLogger("a").info("asked for %s", hostile)
    assert out.getvalue() == (
        "a: asked for x\\npiolet-imaged: uid 0: forged\\r\\x1b[2J\\x00\\u202eabc\\u2028\\udcff\\x9b \\\\n café\n"
    )


def test_a_record_is_not_endless() -> None:
    with written() as out:
        logging.getLogger("a").info("%s", "\n" * 100_000)
        logging.getLogger("a").info("%s", "y" * 100_000)
    lines = out.getvalue().splitlines()
    assert len(lines) == 2 and all(len(line) < logs.LENGTH_MOST + 40 for line in lines)
    assert lines[1].endswith("... (98000 more)")


def test_tracebacks_are_ours() -> None:
    with written() as out:
        try:
            try:
                raise ValueError("first\nb: forged")
            except ValueError as error:
                raise KeyError("second\nb: forged") from error
        except KeyError:
            logging.getLogger("a").exception("a fault")
    first, *rest = out.getvalue().splitlines()
    assert first == "a: a fault" and all(line.startswith("  ") for line in rest) and len(rest) == 4
    assert "test_logs.py:" in rest[0] and "in test_tracebacks_are_ours" in rest[0]
    assert rest[1] == "  KeyError: 'second\\\\nb: forged'" and rest[3] == "  ValueError: first\\nb: forged"


def test_one_users_lines_are_limited_and_what_was_left_out_is_told() -> None:
    out, now = io.StringIO(), [100.0]
    handler = logs.Limited(out, 20, 100, lambda: now[0])
    handler.setFormatter(logs.Formatter("%(message)s"))

    def say(text: str, user: int | None = None) -> None:
        record = logging.LogRecord("a", logging.INFO, "", 0, text, None, None)
        if user is not None:
            record.user = user
        handler.emit(record)

    for number in range(1000):
        say(f"alice {number}", 4301)
    say("bob", 4302)
    say("the service itself")
    lines = out.getvalue().splitlines()
    assert lines[99] == "alice 99" and lines[100].startswith("900 lines about user 4301 were left out: more than 20 a")
    assert lines[101:] == ["bob", "the service itself"]
    for _ in range(10):
        now[0] += 1.0
        for number in range(1000):
            say(f"alice {number}", 4301)
    assert len(out.getvalue().splitlines()) - len(lines) <= 201
    handler.close()
    told = [line for line in out.getvalue().splitlines() if "left out" in line]
    assert sum(int(line.split()[0]) for line in told) + 100 + 200 == 11_000, "every line is written or counted"


def test_what_was_taken_comes_back() -> None:
    now = [0.0]
    rates = Rates(2, 10, lambda: now[0])
    assert [rates.take(1, 6), rates.take(1, 6), rates.take(2, 6)] == [True, False, True]
    now[0] = 1.0
    assert rates.take(1, 6) and not rates.take(1, 1)


def test_rates_forget_who_rests() -> None:
    now = [0.0]
    rates = Rates(1, 2, lambda: now[0])
    assert [rates.take("a") for _ in range(3)] == [True, True, False]
    now[0] = 1.0
    assert [rates.take("a") for _ in range(2)] == [True, False]
    for key in range(10_000):
        rates.take(key)
        now[0] += 0.01
    assert len(rates._left) <= 4096
    for key in range(10_000):  # as many at once as there may ever be
        rates.take(("b", key))
    assert len(rates._left) <= 4096
