"""Slurm's lists of hosts: what they expand to, and what is none."""

from __future__ import annotations

import pytest
from piolet.base import hostlist
from piolet.base.errors import SlurmError


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("", []),
        ("node1", ["node1"]),
        ("a,b", ["a", "b"]),
        ("node[1-3,7]", ["node1", "node2", "node3", "node7"]),
        ("gpu[008-011],login", ["gpu008", "gpu009", "gpu010", "gpu011", "login"]),
        ("x[1-2]y[3-4]", ["x1y3", "x1y4", "x2y3", "x2y4"]),
    ],
)
def test_lists_of_hosts(text: str, hosts: list[str]) -> None:
    assert hostlist.expand(text) == hosts


@pytest.mark.parametrize(
    "text", ["n[1", "n]1", "n[3-1]", "n[a-b]", "n[[1]]", "n[1-999999999]", "n[]", "n[0-99999][0-9]"]
)
def test_what_is_no_list_of_hosts(text: str) -> None:
    with pytest.raises(SlurmError, match="list of hosts"):
        hostlist.expand(text)


@pytest.mark.parametrize(
    ("hosts", "text"),
    [
        ([], ""),
        (["node1"], "node1"),
        (["node2", "node3", "node4", "node7", "login"], "node[2-4,7],login"),
        (["gpu008", "gpu009", "gpu010", "gpu10", "gpu11"], "gpu[008-010,10-11]"),
        (["node9", "node10", "node10", "node12"], "node[9-10,12]"),
        (["r1n1-ib", "r1n2-ib", "r2n1-ib"], "r1n[1-2]-ib,r2n1-ib"),
        (["n999999999", "n1000000000", "n12345678901"], "n999999999,n1000000000,n12345678901"),
        (["7", "8"], "[7-8]"),
    ],
)
def test_lists_are_made_short_and_long_again(hosts: list[str], text: str) -> None:
    assert hostlist.compress(hosts) == text
    assert hostlist.expand(text) == list(dict.fromkeys(hosts))
