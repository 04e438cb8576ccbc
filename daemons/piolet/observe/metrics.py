"""The figures of every step for Prometheus, at http://ADDRESS/metrics of each node: docs/observe-prometheus.md.

They are made of the frames that the sampler writes to its journal, as it writes them: nothing is read again, and
what Prometheus has is what the data of steps have. Shares and rates are integrals, as in samples/metrics.py; their
names begin with piolet_observe_, since a step with --score is in both. A step that has ended is told of a little
longer, so that its last frame is scraped.

It listens on the loopback interface, and where there is a token only who sends it is answered: what other people's jobs
do is not for everybody on the node.
"""

from __future__ import annotations

import hmac
import math
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector as Exporter

from piolet.api import GPU_QUANTITIES, HOST_QUANTITIES, Quantity
from piolet.base.errors import PioletError
from piolet.observe.layout import MORE_OF_HOST, TABLES
from piolet.samples.metrics import families
from piolet.samples.sampler import DeviceTotals
from piolet.samples.settings import address_of

STEP, FRAME, END = "observe.step", "observe.frame", "observe.end"  # of a node's journal
ENDED_S = 120.0
_STEPS_MOST, _DEVICES_MOST, _REASONS_MOST = 2048, 512, 64
_TIMEOUT_S, _REQUESTS_MOST = 5.0, 8
# What is no integral, and what is a number of events in a span.
_AS = {"rate": "", "nic_rate": "", "wait": "s", "processes": "", "blocked": "", "out_of_memory": "1/s"}
_PER_SPAN = ("out_of_memory",)


def _of(quantities: tuple[Quantity, ...]) -> tuple[Quantity, ...]:
    return tuple(Quantity(one.name, _AS.get(one.name, one.unit), one.text) for one in quantities)


def _columns(table: str) -> tuple[Quantity, ...]:
    return _of(tuple(Quantity(one.name, one.unit, one.text) for one in TABLES[table][3:] if one.unit))


# By table of a frame: its quantities, and the columns that tell its rows apart.
_TABLES = {
    "gpu": (_of(GPU_QUANTITIES), ("gpu", "uuid")),
    "host": (_of((*HOST_QUANTITIES, *MORE_OF_HOST)), ()),
    "io": (_columns("io"), ("mount", "kind", "scope")),
    "net": (_columns("net"), ("port", "kind")),
}
_NAMES = {table: tuple(one.name for one in quantities) for table, (quantities, _) in _TABLES.items()}


class Spool(Protocol):
    """Where frames go."""

    def put(
        self, kind: str, source: str, *, at: float | None = None, job: int | None = None, step: str = "",
        uid: int | None = None, body: Mapping[str, Any] | None = None,
    ) -> bool:  # fmt: skip
        """Take a record; return whether it was taken."""


@dataclass
class _Step:
    labels: dict[str, str]
    devices: dict[tuple[str, tuple[str, ...]], DeviceTotals] = field(default_factory=dict)
    missing: dict[tuple[str, str], float] = field(default_factory=dict)
    ended: float = math.inf


class Figures(Exporter):
    """Adds up frames on their way to the spool, and makes metrics of the sums when it is asked."""

    def __init__(self, spool: Spool, node: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._spool, self._node, self._clock = spool, node, clock
        self._steps: dict[tuple[str, str], _Step] = {}
        self._frames = self._dropped = 0
        self._lock = threading.Lock()

    def put(
        self, kind: str, source: str, *, at: float | None = None, job: int | None = None, step: str = "",
        uid: int | None = None, body: Mapping[str, Any] | None = None,
    ) -> bool:  # fmt: skip
        """Take a record, pass it on, and return whether it was taken there."""
        taken = self._spool.put(kind, source, at=at, job=job, step=step, uid=uid, body=body)
        if kind in (STEP, FRAME, END) and body is not None:
            with self._lock:
                name = str(body.get("sluid", "")) if job is None else str(job)
                self._note(kind, (name, step), uid, body)
                self._frames += kind == FRAME
                self._dropped += kind == FRAME and not taken
        return taken

    def _note(self, kind: str, key: tuple[str, str], uid: int | None, body: Mapping[str, Any]) -> None:
        own = self._steps.get(key)
        if own is None or own.ended != math.inf:
            labels = {"node": self._node, "job": key[0], "step": key[1], "uid": "" if uid is None else str(uid)}
            own = self._steps[key] = _Step(labels | {"simulated": ""})
        if kind == STEP:
            own.labels["simulated"] = str(body.get("simulated", ""))
        elif kind == FRAME:
            for table in _TABLES:
                if table in body:
                    _add(own, table, body[table], float(body["span"]))
        else:
            own.ended = self._clock()
        for row in _rows(body.get("quality")):
            reason = (str(row.get("source", "")), str(row.get("reason", "")))
            if reason in own.missing or len(own.missing) < _REASONS_MOST:
                own.missing[reason] = own.missing.get(reason, 0.0) + float(row.get("values") or 0)
        self._forget()

    def _forget(self) -> None:
        now = self._clock()
        for key in [key for key, one in self._steps.items() if now - one.ended > ENDED_S]:
            del self._steps[key]
        while len(self._steps) > _STEPS_MOST:
            del self._steps[min(self._steps, key=lambda key: self._steps[key].ended)]

    def describe(self) -> list[Metric]:
        """Return nothing: a registry then asks for no metrics in advance."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Return the metrics of now."""
        with self._lock:
            self._forget()
            made = list(self._collect())
        yield from made

    def _collect(self) -> Iterator[Metric]:
        for table, (quantities, keys) in _TABLES.items():
            rows = [
                (step.labels | dict(zip(keys, names, strict=True)), _NAMES[table], totals)
                for step in self._steps.values()
                for (of, names), totals in step.devices.items()
                if of == table
            ]
            yield from families(f"piolet_observe_{table}", quantities, rows)
        names = ["node", "job", "step", "uid", "simulated", "source", "reason"]
        text = "Values that a source did not tell."
        missing = CounterMetricFamily("piolet_observe_missing_values", text, labels=names)
        for step in self._steps.values():
            for reason, count in step.missing.items():
                missing.add_metric([*step.labels.values(), *reason], count)
        yield missing
        running = sum(step.ended == math.inf for step in self._steps.values())
        yield GaugeMetricFamily("piolet_observe_steps", "Steps that are recorded.", value=running)
        for name, text, value in (
            ("frames", "Samples of steps that were taken.", self._frames),
            ("dropped_frames", "Samples that the node's journal did not take.", self._dropped),
            ("sampler_cpu_seconds", "Processor time of the process that records steps.", time.process_time()),
        ):
            yield CounterMetricFamily(f"piolet_observe_{name}", text, value=value)


def _rows(table: Any) -> Iterator[dict[str, Any]]:
    if table:
        for row in table["rows"]:
            yield dict(zip(table["columns"], row, strict=True))


def _add(step: _Step, table: str, told: Mapping[str, Any], span: float) -> None:
    names = _NAMES[table]
    for row in _rows(told):
        key = (table, tuple(str(row.get(name, "")) for name in _TABLES[table][1]))
        totals = step.devices.get(key)
        if totals is None:
            if len(step.devices) >= _DEVICES_MOST:
                return
            counters = [names.index("energy")] if "energy" in names else []
            totals = step.devices[key] = DeviceTotals(len(names), counters)
        own = float(row.get("span") or span)
        if own > 0:
            values = [math.nan if (value := row.get(name)) is None else float(value) for name in names]
            for name in _PER_SPAN:
                if name in names:
                    values[names.index(name)] /= own
            totals.add(own, values)


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    """A few requests at once: who opens connections and says nothing takes no memory from the sampler."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[WSGIRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._slots = threading.BoundedSemaphore(_REQUESTS_MOST)
        super().__init__(address, handler)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's asks a name server for this machine's name
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._slots.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()


class _Handler(WSGIRequestHandler):
    timeout = _TIMEOUT_S

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of who asked."""


def serve(figures: Figures, address: str, token: str = "") -> Callable[[], None]:
    """Serve the metrics in a thread; return what ends it.

    token    what a request has to have behind "Authorization: Bearer "; '': whoever reaches the address is answered

    Raises ConfigError: the address is not of the loopback interface; PioletError: it cannot be taken.
    """
    host, port = address_of(address)
    registry = CollectorRegistry()
    registry.register(figures)
    answer = make_wsgi_app(registry)
    wanted = f"Bearer {token}".encode()

    def app(environ: dict[str, Any], start: Callable[..., Any]) -> Any:
        given = str(environ.get("HTTP_AUTHORIZATION", "")).encode("latin-1", "replace")
        if token and not hmac.compare_digest(given, wanted):
            start("401 Unauthorized", [("WWW-Authenticate", "Bearer"), ("Content-Length", "0")])
            return [b""]
        return answer(environ, start)

    try:
        server = _Server((host, port), _Handler)
    except OSError as error:
        raise PioletError(
            f"cannot serve metrics on {address}: {error.strerror}", "choose another port in [observe] prometheus"
        ) from None
    server.set_app(app)
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join(5)

    return stop
