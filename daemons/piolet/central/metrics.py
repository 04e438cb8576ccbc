"""What the service counts of itself, for Prometheus and for `piolet central status`."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from piolet.central.ledger import Judge, Ledger
from piolet.central.store.writer import Arrival, Refused, Taken


class Counts(Collector):
    """The counts of one service since its start."""

    def __init__(self, judge: Judge, ledger: Ledger) -> None:
        self._judge, self._ledger = judge, ledger
        self.registry = CollectorRegistry()
        self._records = Counter("piolet_central_records", "Records that were kept.", registry=self.registry)
        self._batches = Counter("piolet_central_batches", "Batches that were taken.", registry=self.registry)
        self._twice = Counter(
            "piolet_central_repeated_records", "Records that were here already.", registry=self.registry
        )
        self._not_kept = Counter(
            "piolet_central_refused_records", "Records of batches that were not kept.", registry=self.registry
        )
        self._refused = Counter(
            "piolet_central_refused_requests", "Requests that were refused.", ["status"], registry=self.registry
        )
        self.registry.register(self)
        self.started = time.time()

    def taken(self, arrival: Arrival, taken: Taken) -> None:
        """Count a batch."""
        refused = sum(1 for one in arrival.records if isinstance(one, Refused))
        self._batches.inc()
        self._records.inc(len(taken.stored))
        self._not_kept.inc(refused)
        if not taken.missing:
            self._twice.inc(max(0, len(arrival.records) - refused - len(taken.stored)))

    def refused(self, status: int) -> None:
        """Count a request that was refused."""
        self._refused.labels(str(status)).inc()

    def text(self) -> bytes:
        """Return it all as Prometheus reads it."""
        return generate_latest(self.registry)

    def describe(self) -> list[Metric]:
        """Return nothing: a registry then asks for no metrics in advance."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield what is so now."""
        judge = self._judge
        yield GaugeMetricFamily(
            "piolet_central_keeping",
            "1 while the store takes records, 0 where the last ones were not taken.",
            value=0 if self._ledger.failing else 1,
        )
        yield GaugeMetricFamily(
            "piolet_central_judging", "1 while rules see what comes, 0 after one broke.", value=0 if judge.broken else 1
        )
        delays = sorted(judge.delays)
        yield GaugeMetricFamily(
            "piolet_central_judge_delay_seconds",
            "From a record's arrival to what rules conclude of it, of 99 in 100 of the last ones.",
            value=delays[len(delays) * 99 // 100] if delays else 0.0,
        )
