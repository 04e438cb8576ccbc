"""Moves old months from the data base into the archive, once a day."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from piolet.base.errors import PioletError
from piolet.central.ledger import Ledger
from piolet.central.store import archive
from piolet.central.store.archive import Archive
from piolet.central.store.reader import Reader

_LOG = logging.getLogger("piolet-central")
_FIRST_S, _EVERY_S = 600.0, 86400.0


class Mover:
    """Keeps `months` months, this one not counted, in the data base."""

    def __init__(
        self, reader: Reader, ledger: Ledger, to: Archive, months: int, clock: Callable[[], float] = time.time
    ) -> None:
        self._reader, self._ledger, self._to, self._months, self._clock = reader, ledger, to, months, clock
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="archive", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End with the month that is being written."""
        self._ended.set()
        self._thread.join()

    def move(self) -> list[str]:
        """Move what is old enough; return the files that were written. Raises EventError, OSError."""
        written = []
        before = archive.months_ago(self._clock(), self._months)
        self._remove()  # of an earlier turn that did not come to its end
        for month, first, last in list(archive.months(self._reader.engine, self._to.last, before)):
            records = self._reader.arrivals(first - 1, upto=last)
            written.append(self._to.write(month, records, first, last))
            self._remove()
        return written

    def _remove(self) -> None:
        last = self._to.last
        while last and self._ledger.call(lambda writer: archive.removed(writer, last)).result():
            if self._ended.is_set():
                return

    def _run(self) -> None:
        wait = _FIRST_S
        while not self._ended.wait(wait):
            wait = _EVERY_S
            try:
                for path in self.move():
                    _LOG.info("archived %s", path)
            except (PioletError, OSError) as error:
                _LOG.error("old records could not be archived: %s", error)
