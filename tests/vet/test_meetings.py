"""Several nodes: the right one is named, no other is, and nobody hangs."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from piolet.api import FAIL, INCONCLUSIVE, PASS, Verdict
from piolet.vet import localise, screen
from piolet.vet.evals import _link, network_pair
from piolet.vet.evals._link import Link, LinkError, Server
from piolet.vet.runner import meeting, records
from piolet.vet.runner.plan import Plan
from piolet.vet.verdicts import Decision

from tests.support.protocols import plan_of
from tests.vet import nodes
from tests.vet.nodes import TOKEN, Node, Work

PAIRS = "evals:\n- {type: network_pair, size: 2 MB, pings: 5}\n"


def cluster(protocol_plan: Plan, count: int, odd: dict[str, Work], shared: str = "") -> list[Node]:
    names = [f"n{number}" for number in range(count)]
    return [nodes.start(name, odd.get(name) or nodes.take_part(protocol_plan, shared)) for name in names]


def slowly(protocol_plan: Plan) -> Work:
    """Return the work of a node whose network sends 2 MB in 300 ms at best."""

    def work(name: str, in_fd: int, out_fd: int) -> None:
        pour = _link._pour

        def slow(channel: socket.socket, size: int) -> None:
            time.sleep(0.3)
            pour(channel, size)

        _link._pour = slow
        nodes.take_part(protocol_plan)(name, in_fd, out_fd)

    return work


def test_all_good() -> None:
    one = plan_of("evals:\n- type: limits\n- {type: network_pair, size: 64 MB, pings: 5, min_bandwidth: 0.0001}\n")
    decision = nodes.vet(one, cluster(one, 5, {}))
    assert decision.good == [f"n{number}" for number in range(5)], decision.reasons
    assert len(decision.records) == 10


def test_the_node_with_the_slow_network_is_named() -> None:
    one = plan_of(PAIRS)
    decision = nodes.vet(one, cluster(one, 6, {"n4": slowly(one)}))
    assert decision.bad == ["n4"], decision.reasons
    assert "bad with" in decision.reasons["n4"][0]


def test_a_node_that_dies_during_the_vetting() -> None:
    one = plan_of(PAIRS)

    def dies_at_once(name: str, in_fd: int, out_fd: int) -> None:
        os._exit(1)

    decision = nodes.vet(one, cluster(one, 5, {"n2": dies_at_once}))
    assert decision.bad == ["n2"], decision.reasons
    assert "its task ended" in decision.reasons["n2"][0]


def test_a_node_that_hangs_costs_only_its_own_verdict() -> None:
    one = plan_of("budget: 1s\nevals:\n- type: limits\n- {type: network_pair, size: 1 MB, pings: 3}\n")

    def hangs(name: str, in_fd: int, out_fd: int) -> None:
        time.sleep(1000)

    started = time.monotonic()
    decision = nodes.vet(one, cluster(one, 4, {"n1": hangs}))
    assert time.monotonic() - started < 10
    assert decision.bad == ["n1"], decision.reasons
    assert "it did not finish within the budget" in decision.reasons["n1"][0]


def test_a_class_that_cannot_be_imported_on_one_node(tmp_path: Path) -> None:
    (tmp_path / "special.py").write_text(
        "from piolet.api import *\nclass Good(Eval):\n    def check(self, context):\n        return Verdict(PASS)\n"
    )
    text = "evals:\n- type: limits\n- type: special.Good\n- {type: network_pair, size: 1 MB, pings: 3}\n"
    one = plan_of(text, [str(tmp_path)])
    without = plan_of(text, [str(tmp_path / "none")])
    decision = nodes.vet(one, cluster(one, 4, {"n3": nodes.take_part(without)}))
    assert decision.bad == ["n3"], decision.reasons
    assert "there is no module 'special'" in decision.reasons["n3"][0]


def test_all_bad_names_nobody_and_starts_nothing() -> None:
    one = plan_of("evals:\n- {type: network_pair, size: 1 MB, pings: 3, min_bandwidth: 1000000 GB/s}\n")
    decision = nodes.vet(one, cluster(one, 4, {}))
    assert decision.good == []
    assert all("who is at fault is open" in reasons[0] for reasons in decision.reasons.values()), decision.reasons
    assert "most pairs are bad" in decision.notes[0]


GROUP = "budget: 20s\nevals:\n- {type: nccl_bandwidth, timeout: 0.5s}\n"
TOGETHER = 6
LOW = "allreduce 3 GB/s is below the limit of 20 GB/s"


def answering(answer: Callable[[str, list[str]], Verdict | None]) -> Work:
    """Return the work of a node that says `answer(name, members)` of each meeting; None: it says nothing."""

    def work(name: str, in_fd: int, out_fd: int) -> None:
        os.write(out_fd, records.encode("end", {}))
        orders = meeting.Orders(name)
        with open(in_fd, "rb") as lines:
            for line in lines:
                kind, order = records.decode(line) or ("", {})
                if kind == "stop":
                    return
                found = orders.take(kind, order, order.get("eval") == "network_pair")
                verdict = answer(name, list(found.members)) if found is not None else None
                if verdict is not None:
                    one = records.record(name, order["eval"], order["eval"], verdict, 0.1)._asdict()
                    os.write(out_fd, records.encode("met", {"round": order["round"], **one}))

    return work


def together(answer: Callable[[str, list[str]], Verdict | None]) -> Decision:
    one = plan_of(GROUP)
    return nodes.vet(one, [nodes.start(f"n{number}", answering(answer)) for number in range(TOGETHER)])


def good(value: float = 20.0) -> Verdict:
    return Verdict(PASS, "", "allreduce", value, 20.0, "GB/s")


def test_a_group_that_is_good() -> None:
    assert len(together(lambda name, members: good()).good) == TOGETHER


def test_a_bad_group_whose_pairs_are_good_is_no_pass() -> None:
    """Who is at fault is open, but something is."""
    decision = together(lambda name, members: good() if len(members) == 2 else Verdict(FAIL, LOW, "allreduce", 3.0))
    assert decision.good == []
    assert {record.outcome for record in decision.records} == {INCONCLUSIVE}
    assert all(LOW in record.reason for record in decision.records)
    assert any("all nodes together are bad" in note and LOW in note for note in decision.notes)


def test_a_rank_that_dies_is_named_by_pairs() -> None:
    """The others only know that somebody is missing."""

    def answer(name: str, members: list[str]) -> Verdict:
        if "n4" not in members:
            return good()
        why = "its process was killed by SIGBUS" if name == "n4" else "a rank did not answer"
        return Verdict(INCONCLUSIVE, why)

    decision = together(answer)
    assert decision.bad == ["n4"], decision.reasons
    assert "bad with" in decision.reasons["n4"][0]


def test_a_rank_that_dies_in_the_group_only() -> None:
    def answer(name: str, members: list[str]) -> Verdict | None:
        if len(members) == 2:
            return good()
        return None if name == "n2" else Verdict(INCONCLUSIVE, "a rank did not answer")

    decision = together(answer)
    assert decision.good == []
    assert all("n2: no answer; n0: a rank did not answer" in reasons[0] for reasons in decision.reasons.values())


def test_what_no_node_can_do_is_not_tried_in_pairs() -> None:
    def answer(name: str, members: list[str]) -> Verdict:
        assert len(members) == TOGETHER
        return Verdict(INCONCLUSIVE, "torch is not installed")

    decision = together(answer)
    assert {reason for reasons in decision.reasons.values() for reason in reasons} == {
        "nccl_bandwidth: torch is not installed"
    }


def test_a_node_that_is_lost_in_the_group_explains_it() -> None:
    def answer(name: str, members: list[str]) -> Verdict | None:
        if name == "n5":
            os._exit(1)
        return good() if "n5" not in members else Verdict(INCONCLUSIVE, "a rank did not answer")

    assert together(answer).bad == ["n5"]


def test_rounds_that_do_not_fit_are_told() -> None:
    """The decision has them, as it has what was measured."""

    def answer(name: str, members: list[str]) -> Verdict:
        time.sleep(0.1)
        return good()

    one = plan_of("budget: 0.15s\nevals:\n- {type: network_pair, timeout: 1s}\n")

    def work(name: str, in_fd: int, out_fd: int) -> None:
        os.write(out_fd, records.encode("address", {"host": "127.0.0.1", "port": 1}))
        answering(answer)(name, in_fd, out_fd)

    decision = nodes.vet(one, [nodes.start(f"n{number}", work) for number in range(8)])
    assert any("the budget was spent" in note for note in decision.notes), decision.notes
    assert "rounds were left out" in screen.render(one, decision, 1.0)


def test_a_node_with_the_wrong_token_is_named() -> None:
    one = plan_of("evals:\n- {type: network_pair, size: 1 MB, pings: 3}\n")

    def stranger(name: str, in_fd: int, out_fd: int) -> None:
        nodes.TOKEN = b"another token of another run"
        nodes.take_part(one)(name, in_fd, out_fd)

    decision = nodes.vet(one, cluster(one, 5, {"n0": stranger}))
    assert decision.bad == ["n0"], decision.reasons
    assert "does not know the token" in decision.reasons["n0"][0]


def test_a_node_that_talks_nonsense_hurts_nobody_else() -> None:
    one = plan_of("evals:\n- type: limits\n")

    def liar(name: str, in_fd: int, out_fd: int) -> None:
        for node in ("n0", "n1"):
            os.write(out_fd, b'{"piolet-vet":"verdict","node":"%s","eval":"limits","kind":"limits","outcome":"fail",'
                     b'"reason":"lies"}\n' % node.encode())  # fmt: skip
        os.write(out_fd, b"\xff\xff\n{}\n" + b"x" * 100 + b'\n{"piolet-vet":"end"}\n')
        os.read(in_fd, 10)

    decision = nodes.vet(one, cluster(one, 3, {"n1": liar}))
    assert decision.bad == ["n1"], decision.reasons


@pytest.fixture
def server() -> Server:
    one = Server("127.0.0.1", TOKEN)
    threading.Thread(target=one.serve, daemon=True).start()
    return one


def test_the_link_measures(server: Server) -> None:
    link = Link("127.0.0.1", server.port, TOKEN, 2.0)
    assert len(link.ping(10)) == 10
    assert abs(link.offset()) < 0.1
    assert link.send(3_000_000) > 0
    assert link.receive(3_000_000) > 0
    link.close()
    server.close()


def test_nobody_talks_without_the_token(server: Server) -> None:
    with pytest.raises(LinkError, match=r"token|hung up"):
        Link("127.0.0.1", server.port, b"x" * 32, 2.0)
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as raw:
        nonce = raw.recv(16)
        raw.sendall(nonce)  # what it sent comes back to it
        assert raw.recv(64) == b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as raw:
        raw.recv(16)
        raw.sendall(b"y" * 16 + b"z" * 32)
        answer = b""
        while piece := raw.recv(64):
            answer += piece
        assert len(answer) <= 32  # its proof for our nonce, and then nothing
    server.close()


@pytest.mark.parametrize("address", ["", "0.0.0.0", "::"])
def test_the_server_never_listens_on_all_addresses(address: str) -> None:
    with pytest.raises(ValueError, match="not on all"):
        Server(address, TOKEN)


def test_a_short_token_is_refused() -> None:
    with pytest.raises(ValueError, match="fewer than"):
        Server("127.0.0.1", b"short")


def test_rounds_take_little_longer_than_their_measurements() -> None:
    """31 rounds of 16 pairs would be too much for two cores; the overhead of a round is what counts."""
    one = plan_of("evals:\n- {type: network_pair, size: 1, pings: 1}\n")
    started = time.monotonic()
    decision = nodes.vet(one, cluster(one, 6, {}))
    assert (time.monotonic() - started) / len(list(localise.rounds([str(n) for n in range(6)]))) < 0.6
    assert len(decision.good) >= 4
    assert network_pair.NetworkPair.scope == "pair"
