"""What sacct and sacctmgr print, read back."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

import pytest
from piolet.base.errors import SlurmError
from piolet.slurm import past
from piolet.slurm.past import EndedJob, NodeState

SHANGHAI = datetime.timezone(datetime.timedelta(hours=8))


def test_jobs_of_every_kind() -> None:
    text = (
        "12|12|1000|FAILED|1:0|node[1-2]|1700000000|1700000010|1700000100\n"
        "13|13|1000|CANCELLED by 1001|0:15|node3|1700000000|1700000010|1700000200\n"
        "15|14_1|1001|NODE_FAIL|0:0|node1|1700000000|1700000010|1700000300\n"
        "17|16+1|1001|TIMEOUT|0:0|node[1,3]|1700000000|1700000010|1700000400\n"
        "18|18|1001|RUNNING|0:0|node1|1700000000|1700000010|Unknown\n"
        "19|19|1001|PENDING|0:0|None assigned|1700000000|Unknown|Unknown\n"
        "20|20|1001|CANCELLED by 0|0:0|None assigned|1700000000|Unknown|1700000500\n"
        "12.0|12.0|1000|FAILED|1:0|node1|1700000000|1700000010|1700000100\n"
    )
    found = past.jobs(text)
    assert [(job.job, job.array, job.state, job.status, job.signal, job.nodes) for job in found] == [
        (12, "", "FAILED", 1, 0, ("node1", "node2")),
        (13, "", "CANCELLED", 0, 15, ("node3",)),
        (15, "14_1", "NODE_FAIL", 0, 0, ("node1",)),
        (17, "16+1", "TIMEOUT", 0, 0, ("node1", "node3")),
        (20, "", "CANCELLED", 0, 0, ()),
    ]
    assert found[0] == EndedJob(12, "", 1000, "FAILED", 1, 0, ("node1", "node2"), 1.7e9, 1.7e9 + 10, 1.7e9 + 100)
    assert found[-1].start is None
    assert [job.by for job in found] == [None, 1001, None, None, 0]


def test_a_file_with_a_header_of_its_own_and_times_as_slurm_prints_them() -> None:
    text = "JobID|State|NodeList|End|ExitCode\n7_3|OUT_OF_MEMORY|n1|2023-11-14T22:13:20|0:125\n"
    (job,) = past.jobs(text, datetime.UTC)
    assert (job.job, job.array, job.end, job.uid, job.signal) == (7, "7_3", 1.7e9, None, 125)
    (job,) = past.jobs(text, SHANGHAI)
    assert job.end == 1.7e9 - 8 * 3600
    (job,) = past.jobs(text.replace("22:13:20", "22:13:20+0100"), SHANGHAI)
    assert job.end == 1.7e9 - 3600


def test_states_of_nodes() -> None:
    text = (
        "|1700000000|Unknown||Cluster Registered TRES|\n"
        "node1|1700000000|1700000100|DOWN*|Not responding|slurm(64030)\n"
        "node2|1700000000|Unknown|IDLE+DRAIN|disk | full|root(0)\n"
    )
    assert past.states(text) == [
        NodeState("node1", 1.7e9, 1.7e9 + 100, "down", "Not responding", "slurm"),
        NodeState("node2", 1.7e9, None, "drain", "disk | full", "root"),
    ]


@pytest.mark.parametrize(
    ("reason", "is_read"),
    [("two\nlines", "two lines"), ("a\n\nb | c", "a b | c"), ("a | b\nc | d\r\ne", "a | b c | d e"),
     ("a\x0cb\u2028c\x1ed", "a?b?c?d"), ("x\n" * 60, "x " * 60),
     ("\nNHC: x", " NHC: x"), ("x\r\ny", "x y")],
)  # fmt: skip
def test_a_reason_of_several_lines(reason: str, is_read: str) -> None:
    """A site's health check may give one, and what came of other nodes is read all the same."""
    row = "node1|1700000000|1700000100|DOWN|{}|root(0)\nnode2|1700000000|Unknown|DRAIN|disk|root(0)\n"
    first, second = past.states(row.format(reason))
    assert (first.end, first.by, first.reason) == (1.7e9 + 100, "root", is_read) and second.node == "node2"


@pytest.mark.parametrize(
    "text",
    ["node1|1700000000|1700000100|DOWN|cut",
     "node1|1700000000|1700000100|DOWN|cut\nnode2|1700000000|Unknown|DRAIN|disk|root\n",
     "node1|1700000000|17000\nnode2|1700000000|Unknown|DRAIN|disk|root\n", "node1\nnode2\n",
     "x|1700000000|1700000100|DOWN|" + "x\n" * 200 + "|root\n"],
)  # fmt: skip
def test_a_row_that_is_cut_off_is_none(text: str) -> None:
    with pytest.raises(SlurmError, match=r"line 1 .* columns?, not 6"):
        past.states(text)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("IDLE+POWERED_DOWN", "powered_down"), ("IDLE~", "idle"), ("MIXED+DRAIN", "drain"), ("DOWN+DRAIN", "drain"),
        ("FAIL", "fail"), ("UNK", "unknown"), ("", "unknown"), ("ALLOCATED+MAINT", "maint"),
        ("DOWN+POWERED_DOWN", "powered_down"),
    ],
)  # fmt: skip
def test_one_word_for_a_state(text: str, word: str) -> None:
    assert past.state_word(text) == word


@pytest.mark.parametrize(
    "text",
    ["12|12|1000|FAILED\n", "x|x|1|FAILED|1:0|n1|1|1|1700000000\n", "1|1|1|FAILED|1:0|n[1-|1|1|1700000000\n",
     "1|1|1|FAILED|1:0|n1|yesterday|1700000000|1700000000\n"],
)  # fmt: skip
def test_what_is_none_is_said_with_its_line(text: str) -> None:
    with pytest.raises(SlurmError, match="line 1"):
        past.jobs(text)


def program(tmp_path: Path, script: str) -> str:
    path = tmp_path / "sacct"
    path.write_text(f"#!/bin/sh\n{script}\n", "utf-8")
    path.chmod(0o755)
    return os.fspath(path)


def test_sacct_is_asked_in_seconds_and_what_ended_before_is_left_out(tmp_path: Path) -> None:
    sacct = program(tmp_path, "echo \"$@\" >&2; test \"$SLURM_TIME_FORMAT\" = %s || exit 1\n"
                    "echo '1|1|1|FAILED|1:0|n1|1690000000|1690000000|1699999999'\n"
                    "echo '2|2|1|FAILED|1:0|n1|1690000000|1690000000|1700000001'")  # fmt: skip
    assert [job.job for job in past.ask_jobs(1.7e9, 1.7e9 + 60, sacct)] == [2]


def test_a_row_that_makes_no_sense_keeps_nothing_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It stays in slurmdbd for ever."""
    monkeypatch.setattr(past, "_PASSED", set())
    good = "|FAILED|1:0|n1|1700000000|1700000000|1700000001"
    slurm = program(tmp_path, f"echo '1|1|1{good}'; echo '2|2'; echo '3|3|x{good}'; echo '4|4|1{good}'")
    for _ in range(2):
        assert [job.job for job in past.ask_jobs(1.7e9, 1.7e9 + 60, slurm)] == [1, 4]
    assert [one.message for one in caplog.records] == [
        "a row of Slurm's accounting is passed over: it has 2 columns, not 9",
        "a row of Slurm's accounting is passed over: it does not describe a job: '3'",
    ]
    slurm = program(tmp_path, "printf 'n1|1|x|y\\nn2|1700000000|Unknown|DRAIN|a\\nb|root\\n'")
    assert [(one.node, one.reason) for one in past.ask_states(1.7e9, slurm)] == [("n2", "a b")]


def test_a_command_that_fails_hangs_or_never_ends_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SlurmError, match="no dbd"):
        past.ask_jobs(0, 1, program(tmp_path, "echo no dbd >&2; exit 1"))
    with pytest.raises(SlurmError, match="cannot start"):
        past.ask_jobs(0, 1, os.fspath(tmp_path / "absent"))
    monkeypatch.setattr(past, "ASK_S", 0.2)
    with pytest.raises(SlurmError, match=r"within 0\.2 s"):
        past.ask_jobs(0, 1, program(tmp_path, "exec sleep 60"))
    monkeypatch.setattr(past, "ASK_S", 30.0)
    monkeypatch.setattr(past, "OUTPUT_MAX", 1 << 20)
    with pytest.raises(SlurmError, match="than 1 MiB"):
        past.ask_jobs(0, 1, program(tmp_path, "exec yes"))


@pytest.mark.parametrize(
    ("private", "level", "hides"),
    [
        ("none", "None", set()),
        ("users", "", set()),
        ("jobs,users", "None", {"jobs"}),
        ("events,jobs", "", {"jobs", "events"}),
        ("events,jobs", "Operator", set()),
        ("events,jobs", "Administrator", set()),
    ],
)
def test_what_slurmdbd_hides_from_an_account(tmp_path: Path, private: str, level: str, hides: set[str]) -> None:
    """Empty answers of sacct are no word of it."""
    config = "Configuration data as of 2026-11-29T22:15:29\nPrivateData            = jobs,events\n\n"
    config += f"SlurmDBD configuration:\nMessageTimeout         = 10 secs\nPrivateData            = {private}\n"
    script = f"case $2 in configuration) printf '{config}' ;; *) [ $4 = user ] && echo '{level}' ;; esac"
    assert past.hidden("piolet-central", program(tmp_path, script)) == hides
