"""What refers to itself goes, and what lives for long is not looked at each time."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
from piolet.central import garbage


class Ring:
    """Refers to itself."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def threshold() -> Iterator[None]:
    """Leave Python's collector as it was."""
    before = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


def test_what_is_new_is_collected_and_what_stays_is_looked_at_once_a_day() -> None:
    now = 0.0
    collector = garbage.Collector(lambda: now)
    gone, kept = Ring(), Ring()
    seen, later = weakref.ref(gone), weakref.ref(kept)
    del gone
    collector.collect()
    assert seen() is None and gc.get_freeze_count() > 1000
    del kept
    collector.collect()
    assert later() is not None, "all of memory was looked at"
    now = 86400.0
    collector.collect()
    assert later() is None


def test_there_are_no_full_collections_besides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "_EVERY_S", 3600.0)
    collector = garbage.Collector()
    collector.start()
    before = gc.get_stats()[2]["collections"]
    kept = [[number] for number in range(200_000)]
    assert gc.get_stats()[2]["collections"] == before and kept
    collector.stop()
