"""The names that `dns` asks for, and with how many threads."""

from __future__ import annotations

import dataclasses
import os
import socket
import threading
import time

import pytest
from piolet.api import INCONCLUSIVE, PASS, Context
from piolet.vet.evals import dns


def context(root: str = "") -> Context:
    return Context("n1", time.monotonic() + 10, ("n1",), os.getuid(), root=root)


def test_dns_asks_for_a_few_names_with_a_few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    most = 0

    def resolve(name: str, *args: object, **more: object) -> list[object]:
        nonlocal most
        asked.append(name)
        most = max(most, threading.active_count())
        time.sleep(0.001)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    nodes = tuple(f"n{number}" for number in range(3000))
    before = threading.active_count()
    for node, wanted in (("n7", ["n7", "n8", "n9", "n10"]), ("n2999", ["n2999", "n0", "n1", "n2"])):
        asked.clear()
        verdict = dns.Dns().check(dataclasses.replace(context(), node=node, nodes=nodes))
        assert (verdict.outcome, sorted(asked)) == (PASS, sorted(wanted))
    assert dns.Dns(names=nodes[:200]).check(context()).outcome == PASS
    assert most <= before + 8


def test_dns_where_no_thread_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    verdict = dns.Dns(names=("localhost",)).check(context())
    assert (verdict.outcome, verdict.reason) == (INCONCLUSIVE, "no thread can be started")
