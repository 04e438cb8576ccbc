"""What is done to the data of steps in the course of time: made into tables, thinned, packed, removed.

Everything that was removed or thinned is said in the step's `quality`, or, when nothing is left, by the state of its
row in the catalogue. One keeper works below a root; it may be killed at any time.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from piolet.base.errors import ObserveError, PioletError
from piolet.observe import bounded, finishing, joining, packing, reading, thinning, writing
from piolet.observe.catalogue import GONE, OPEN, PACKED, ROLLED, THINNED, WHOLE, Catalogue, Row, size_of
from piolet.observe.joining import Happened
from piolet.observe.keepsettings import KeepConfig

_LOG = logging.getLogger("piolet-central")
LOOK_S = 2.0
_SPOOL_MOST = 16 << 20
_NEW_LEAST_S, _NEW_SHARE = 300.0, 0.25  # how soon a running step's directory is made anew: later, the older it is
_CHORES_S = 3600.0
_PACK_AFTER_S = 7 * 86400.0
_REMARKS_S = 45 * 86400.0
_STATE_S = 6 * 3600.0
_DAY_S = 86400.0
_RUNS_MOST = 64 << 20  # of a step that runs and has more, findings and events come at its end: others wait meanwhile
_AGAIN_S, _AGAIN_MOST_S = 330.0, 3600.0  # after a step's tables were made events are asked for once more
_JOIN_LEAST_S, _JOIN_SHARE = 30.0, 10.0  # between two joinings of a step: whoever sends marks does not say how often
_AT_ONCE = 200  # so many steps a turn are thinned, packed or removed


class Keeper:
    """Keeps what is below `root` as the site wants it."""

    def __init__(
        self, root: Path, config: KeepConfig, clock: Callable[[], float], happened: Happened | None = None
    ) -> None:
        self.catalogue = Catalogue(root)
        self._config, self._clock = config, clock
        self._chores = float("-inf")
        self._judge = bounded.Judge(config.detectors)
        self._find = self._judge.keep if config.findings else None
        self._happened = happened
        self._failed: set[int] = set()
        self._joined: dict[int, tuple[float, float]] = {}  # row -> when it was joined last, when it may be again

    def turn(self) -> None:
        """Do what is due. What fails is said once, and tried again."""
        now = self._clock()
        self._each(self._open, self.catalogue.rows("state = ?", OPEN))
        self._later(now)
        self._judge.rest()
        if now - self._chores >= _CHORES_S or now < self._chores:
            self._chores = now
            self.chores()

    def _each(self, work: Callable[[Row], object], rows: Iterable[Row]) -> None:
        for row in rows:
            try:
                work(row)
                self._failed.discard(row.id)
            except Exception as error:  # noqa: BLE001 - what is wrong with one step's data keeps no other's waiting
                if row.id not in self._failed:
                    known = isinstance(error, PioletError | OSError)
                    said = getattr(error, "message", error) if known else repr(error)
                    _LOG.error("%s of uid %d: %s", row.name, row.uid, said, exc_info=None if known else error)
                self._failed.add(row.id)

    def _open(self, row: Row) -> None:
        now, config = self._clock(), self._config
        if finishing.is_due(self.catalogue, row, now, config.silent_min * 60.0, config.settle_s):
            finishing.finish(self.catalogue, row, now, find=self._find, happened=self._happened)
        elif row.last >= row.changed and now - row.changed >= max(_NEW_LEAST_S, _NEW_SHARE * (now - row.start)):
            small = row.size <= _RUNS_MOST
            find, happened = (self._find, self._happened) if small else (None, None)
            finishing.finish(self.catalogue, row, now, runs=True, find=find, happened=happened)
        elif row.bytes > _SPOOL_MOST and not finishing.is_half_done(self.catalogue, row):
            finishing.part(self.catalogue, row)

    def _later(self, now: float) -> None:
        """Join what came when the tables were made already: marks that were sent, and events of the minutes after."""
        for path, job, uid in list(joining.sent(self.catalogue.root)):
            stamp = joining.stamp(path)
            rows = self.catalogue.rows("job = ? and uid = ?", job, uid)
            whole = [row for row in rows if row.state == WHOLE and not row.packed]
            self._each(self._join, [row for row in whole if self._when(row) <= stamp])
            late = any(self._when(row) <= stamp for row in whole)
            if not late and not any(row.state == OPEN for row in rows):
                with self.catalogue.transaction():  # the service writes these files in one
                    if joining.stamp(path) == stamp:
                        path.unlink(missing_ok=True)
        if self._happened is not None:
            since, until = now - _AGAIN_MOST_S, now - _AGAIN_S
            rows = self.catalogue.rows("state = ? and packed = '' and changed > ? and changed < ?", WHOLE, since, until)
            self._each(self._join, [row for row in rows if self._when(row) < row.changed + _AGAIN_S])
        self._joined = {row: told for row, told in self._joined.items() if told[1] > now - _AGAIN_MOST_S}

    def _when(self, row: Row) -> float:
        """Return when what others know of a step was joined with its data last."""
        return self._joined.get(row.id, (row.changed, 0.0))[0]

    def _join(self, row: Row) -> None:
        """Join what others know of a step whose tables are made, and look for findings anew where anything came."""
        now, directory = self._clock(), self.catalogue.root / row.path
        if now < self._joined.get(row.id, (0.0, 0.0))[1]:
            return
        self._joined[row.id] = self._when(row), now + _JOIN_LEAST_S
        if finishing.join(self.catalogue, row, directory, self._happened):
            if self._find is not None:
                self._find(directory)
            self.catalogue.change(row, size=size_of(directory))
        took = self._clock() - now
        self._joined[row.id] = now, now + max(_JOIN_LEAST_S, _JOIN_SHARE * took)

    def chores(self) -> None:
        """Thin, pack and remove what is old enough, and what is above the quota."""
        config, now = self._config, self._clock()
        rows = self.catalogue.rows
        self._each(self._state, rows("state = ? and changed > ? and packed = ''", WHOLE, now - _STATE_S))
        self._each(self._remove, rows("state != ? and last < ?", OPEN, now - config.rollup_days * _DAY_S)[-_AT_ONCE:])
        old = "packed = '' and last < ? and state in (?, ?)"
        self._each(self._strip, rows(old, now - config.samples_days * _DAY_S, WHOLE, THINNED)[-_AT_ONCE:])
        if config.thinned_s:
            self._each(self._thin, rows(old, now - config.whole_days * _DAY_S, WHOLE, WHOLE)[-_AT_ONCE:])
        if config.pack_min:
            self._pack(now)
        if config.quota_gib:
            self._bound(config.quota_gib << 30)
        self.catalogue.prune(now - _REMARKS_S)

    def _state(self, row: Row) -> None:
        """Say in meta.json how a step's job ended, which Slurm's accounting tells some minutes later."""
        directory = self.catalogue.root / row.path
        meta, said = reading.read_meta(directory), self.catalogue.job(row.job)
        new = {key: said[key] for key in ("state", "exit") if key in said and meta.get(key) != said[key]}
        if new:
            writing.write_meta(directory, meta | new)

    def _thin(self, row: Row) -> None:
        directory, now = self.catalogue.root / row.path, self._clock()
        thinning.thin(directory, self._config.thinned_s, now)
        self.catalogue.change(row, state=THINNED, changed=now, size=size_of(directory))

    def _strip(self, row: Row) -> None:
        directory, now = self.catalogue.root / row.path, self._clock()
        thinning.strip(directory, "samples are removed, the roll-up is here", now)
        self.catalogue.change(row, state=ROLLED, changed=now, size=size_of(directory))

    def _remove(self, row: Row) -> None:
        if row.state == GONE:
            return
        root = self.catalogue.root
        shutil.rmtree(root / row.path, ignore_errors=True)
        self.catalogue.change(row, state=GONE, changed=self._clock(), size=0, packed="")
        if row.packed and not self.catalogue.rows("packed = ?", row.packed):
            (root / row.packed).unlink(missing_ok=True)

    def _pack(self, now: float) -> None:
        where = "state in (?, ?, ?) and packed = '' and last - start < ? and changed < ?"
        short = self.catalogue.rows(where, WHOLE, THINNED, ROLLED, self._config.pack_min * 60.0, now - _PACK_AFTER_S)
        by_day: dict[str, list[Row]] = {}
        for row in short[-10 * _AT_ONCE :]:
            by_day.setdefault(row.path.partition("/")[0], []).append(row)
        for day, rows in by_day.items():
            try:
                packing.pack(self.catalogue, day, rows)
            except ObserveError as error:
                _LOG.error("%s", error.message)

    def _bound(self, most: int) -> None:
        """Thin and remove the oldest until all of it is within a quota."""
        for work, state in ((self._thin, WHOLE), (self._strip, THINNED), (self._remove, ROLLED)):
            if work == self._thin and not self._config.thinned_s:
                continue
            rows = self.catalogue.rows("state = ? and packed = ''", state)
            while rows and self.taken() > most:
                self._each(work, [rows.pop()])

    def taken(self) -> int:
        """Return the bytes of all data, without the spool."""
        packed = self.catalogue.root / PACKED
        archives = sum(path.stat().st_size for path in packed.glob("*.zip")) if packed.is_dir() else 0
        return archives + sum(row.size for row in self.catalogue.rows("packed = ''"))
