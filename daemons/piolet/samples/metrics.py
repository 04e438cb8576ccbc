"""A node's steps for Prometheus: what the sampler reads, as it reads it, at http://ADDRESS/metrics.

Shares and rates are exported as their integrals, so that a rate over any window is the mean over that window, whatever
the interval between two scrapes: `rate(piolet_gpu_sm_seconds_total[5m])` is the mean SM activity of five minutes.
Divide by the rate of `piolet_gpu_sampled_seconds_total` where samples may be missing. What is a state (memory,
temperature, clock) is a gauge with its latest value. Base units, as Prometheus wants them: seconds, bytes, hertz.

It listens on the loopback interface only: who may read it is everybody on the node. It lives in the sampler's process.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector as Exporter

from piolet.api import GPU_QUANTITIES, HOST_QUANTITIES, Quantity
from piolet.base.errors import PioletError
from piolet.samples.sampler import DeviceTotals, Sampler, Session
from piolet.samples.settings import address_of

# By the unit of a quantity: how its name ends, and what turns the value into base units. Energy is what was added to
# the device's counter since the step began, the other counters are integrals.
_COUNTERS = {"1": ("seconds", 1.0), "cores": ("seconds", 1.0), "B/s": ("bytes", 1.0), "J": ("joules", 1.0)}
_COUNTERS |= {"1/s": ("", 1.0)}
_GAUGES = {
    "": ("", 1.0),
    "s": ("seconds", 1.0),
    "B": ("bytes", 1.0),
    "W": ("watts", 1.0),
    "degC": ("celsius", 1.0),
    "MHz": ("hertz", 1e6),
    "mask": ("mask", 1.0),
    "code": ("code", 1.0),
}


def serve(sampler: Sampler, node: str, address: str) -> Callable[[], None]:
    """Serve the metrics in a thread; return what ends it.

    Raises PioletError: the address cannot be taken.
    """
    host, port = address_of(address)
    registry = CollectorRegistry()
    registry.register(Steps(sampler, node))
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise PioletError(
            f"cannot serve metrics on {address}: {error.strerror}", "choose another port in [score] prometheus"
        ) from None

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join(5)

    return stop


class Steps(Exporter):
    """Makes metrics of a sampler's sessions when it is asked; it never touches the collectors."""

    def __init__(self, sampler: Sampler, node: str) -> None:
        self._sampler = sampler
        self._node = node

    def describe(self) -> list[Metric]:
        """Return nothing: a registry then asks for no metrics in advance."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Return the metrics of all steps of now."""
        sessions = list(self._sampler.sessions)
        yield from self._of_gpus(sessions)
        yield from self._of_steps(sessions)
        yield GaugeMetricFamily("piolet_score_steps", "Steps that are being sampled.", value=len(sessions))
        yield CounterMetricFamily(
            "piolet_sampler_cpu_seconds", "Processor time of the sampler's process.", value=time.process_time()
        )

    def _labels(self, session: Session) -> dict[str, str]:
        step = session.step
        labels = {"node": self._node, "job": step.job, "step": step.step, "uid": str(step.uid)}
        simulated = next((s.collector.simulated for s in session.sources if s.collector.simulated), "")
        return labels | {"simulated": simulated}

    def _of_gpus(self, sessions: list[Session]) -> Iterator[Metric]:
        rows = [
            (
                self._labels(session) | {"gpu": str(index), "uuid": source.collector.devices[index].uuid},
                source.collector.quantities,
                total,
            )
            for session in sessions
            for source in session.sources
            for index, total in sorted(source.totals.items())
            if index >= 0
        ]
        yield from families("piolet_gpu", GPU_QUANTITIES, rows)

    def _of_steps(self, sessions: list[Session]) -> Iterator[Metric]:
        labels = {id(session): self._labels(session) for session in sessions}
        rows = [
            (labels[id(session)], source.collector.quantities, source.totals[-1])
            for session in sessions
            for source in session.sources
            if -1 in source.totals
        ]
        yield from families("piolet_step", HOST_QUANTITIES, rows)
        own: tuple[tuple[str, str, Callable[[Session], float]], ...] = (
            ("reads", "Readings that were taken.", lambda s: s.ticks),
            ("late_reads", "Readings that came too late.", lambda s: s.late_ticks),
            ("dropped_frames", "Frames lost because the step's disk did not take them.", lambda s: s.sink.dropped),
        )
        for name, text, value in own:
            family = CounterMetricFamily(f"piolet_step_{name}", text, labels=_names(labels.values()))
            for session in sessions:
                family.add_metric(list(labels[id(session)].values()), value(session))
            yield family
        missing = CounterMetricFamily(
            "piolet_step_missing_values",
            "Values that a source did not give.",
            labels=[*_names(labels.values()), "quantity", "reason"],
        )
        for session in sessions:
            for source in session.sources:
                for (quantity, reason), count in list(source.collector.blanks.items()):
                    missing.add_metric([*labels[id(session)].values(), quantity, reason], count)
        yield missing


def _names(labels: Any) -> list[str]:
    return next((list(each) for each in labels), ["node", "job", "step", "uid", "simulated"])


def families(
    prefix: str, quantities: Sequence[Quantity], rows: Sequence[tuple[dict[str, str], Sequence[str], DeviceTotals]]
) -> Iterator[Metric]:
    """Yield a family for each quantity, and one for the time that samples cover.

    rows    a device's labels, which are the same names in each; the names of what its totals are of, in order; these
    """
    names = list(rows[0][0]) if rows else []
    sampled = CounterMetricFamily(f"{prefix}_sampled_seconds", "Time that is covered by samples.", labels=names)
    for labels, _, total in rows:
        sampled.add_metric(list(labels.values()), total.span)
    if rows:
        yield sampled
    for quantity in quantities:
        counter = quantity.unit in _COUNTERS
        unit, factor = (_COUNTERS if counter else _GAUGES)[quantity.unit]
        make = CounterMetricFamily if counter else GaugeMetricFamily
        name = "_".join(filter(None, (prefix, quantity.name, unit)))
        family: Any = make(name, f"{quantity.text[:1].upper()}{quantity.text[1:]}.", labels=names)
        for labels, known, total in rows:
            if quantity.name not in known:
                continue
            place = known.index(quantity.name)
            value = total.sums[place] if counter else total.latest[place]
            if not math.isnan(value):
                family.add_metric(list(labels.values()), value * factor)
        if family.samples:
            yield family
