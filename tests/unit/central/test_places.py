"""Which nodes are none of the cluster's any more, by what Slurm said when it was asked where nodes are."""

from __future__ import annotations

import pytest
from piolet.base.errors import SlurmError
from piolet.central.places import Places, no_slurm

FIXED = {"fixed": frozenset(("10.0.0.9",))}


def test_a_node_is_gone_once_slurm_shows_others_and_not_it() -> None:
    """It is not asked for that: only a node that sends makes the service ask."""
    shown, asked, now = {"n1": "a", "n2": "b"}, [0], [0.0]

    def ask() -> dict[str, str]:
        asked[0] += 1
        if not shown:
            raise SlurmError("slurmctld does not answer")
        return dict(shown)

    places = Places(FIXED, ask, lambda: now[0], lambda name: frozenset((f"address of {name}",)))
    assert [places.is_gone(node) for node in ("n1", "n2", "fixed")] == [False] * 3, "nothing is known yet"
    assert asked == [0]
    assert places.of("n1") and not places.is_gone("n2")
    del shown["n2"]
    now[0] += 601
    assert not places.is_gone("n2") and asked == [1]
    assert places.of("n1") and asked == [2]
    assert [places.is_gone(node) for node in ("n1", "n2", "fixed")] == [False, True, False]
    shown.clear()
    now[0] += 601
    with pytest.raises(SlurmError):
        places.of("n1")
    assert not places.is_gone("n1") and places.is_gone("n2"), "what it said last"


def test_where_slurm_shows_no_node_none_is_gone() -> None:
    """PrivateData may hide all of them."""
    places = Places(FIXED, dict)
    assert not places.of("n1") and not places.is_gone("n1")


def test_where_there_is_no_slurm_the_file_says_which_nodes_there_are() -> None:
    assert Places(FIXED, no_slurm).is_gone("n1") and not Places(FIXED, no_slurm).is_gone("fixed")
    assert not Places({}, no_slurm).is_gone("n1")
