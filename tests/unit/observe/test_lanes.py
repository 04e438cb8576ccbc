"""What hangs holds up nobody else."""

from __future__ import annotations

import threading

import pytest
from piolet.observe.lanes import Lane, wait


def test_a_lane_that_hangs_is_left_alone_and_taken_up_when_it_comes_back() -> None:
    done, hold = threading.Condition(), threading.Event()
    stuck, well = Lane("stuck", done), Lane("well", done)
    assert stuck.give(lambda: hold.wait(30))
    assert well.give(lambda: 5)
    wait([stuck, well], done, 0.2)
    assert well.take() == 5
    with pytest.raises(TimeoutError, match="it does not answer"):
        stuck.take()
    assert not stuck.give(lambda: 6)  # nothing piles up behind it
    hold.set()
    wait([stuck], done, 10)
    assert stuck.take() is True
    assert stuck.give(lambda: 6)
    wait([stuck], done, 10)
    assert stuck.take() == 6


def test_what_a_lane_raises_is_raised_to_who_takes_it() -> None:
    done = threading.Condition()
    lane = Lane("wrong", done)
    lane.give(lambda: 1 // 0)
    wait([lane], done, 10)
    with pytest.raises(ZeroDivisionError):
        lane.take()
    assert lane.take() is None  # and once only
