"""What Prometheus reads of the central service."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

from piolet.central.metrics import Counts
from piolet.central.store.writer import Arrival, Refused, Taken
from prometheus_client.parser import text_string_to_metric_families

from tests.unit.central.test_store import A, event


def values(counts: Counts) -> dict[str, float]:
    """Return sample -> value, without when each began."""
    families = text_string_to_metric_families(counts.text().decode())
    return {
        "".join([sample.name.removeprefix("piolet_central_"), *sample.labels.values()]): sample.value
        for family in families for sample in family.samples if not sample.name.endswith("_created")
    }  # fmt: skip


def test_what_is_counted_and_what_is_so_now() -> None:
    judge: Any = SimpleNamespace(broken="", delays=deque(range(100)))
    ledger: Any = SimpleNamespace(failing="")
    counts = Counts(judge, ledger)
    first = Arrival("node1", [event(1), event(2), Refused(A, 3, "too long")], 1.0)
    counts.taken(first, Taken({A: 3}, stored=[None]))  # type: ignore[list-item]
    counts.refused(503)
    assert values(counts) == {
        "records_total": 1, "batches_total": 1, "repeated_records_total": 1, "refused_records_total": 1,
        "refused_requests_total503": 1, "judging": 1, "judge_delay_seconds": 99, "keeping": 1,
    }  # fmt: skip
    judge.broken, ledger.failing = "a rule", "database or disk is full"
    now = values(counts)
    assert (now["judging"], now["keeping"]) == (0, 0)
