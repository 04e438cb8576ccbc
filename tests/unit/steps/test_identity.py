"""Names of steps: what is made is what is read, and nothing else is taken for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from piolet.steps import identity, slurmstepd

NUMBERS = st.integers(0, 2**32 - 1).filter(lambda number: number != 0xFFFFFFFB)


@given(NUMBERS, NUMBERS)
def test_a_name_is_read_back(job: int, step: int) -> None:
    name = identity.name(job, step)
    assert identity.is_name(name) and identity.parts(name) == (str(job), str(step))


def test_a_batch_script_is_called_as_slurm_calls_it() -> None:
    assert identity.name(7, 0xFFFFFFFB) == identity.name("7", "batch") == "7.batch"
    assert identity.is_name("7.batch") and identity.parts("7.batch") == ("7", "batch")


@pytest.mark.parametrize(
    "text",
    [
        "1.batch2",
        "batch.1",
        "1.extern",
        "",
        ".",
        "..",
        "1",
        "1.",
        "1.0/",
        "../1.0",
        "1.0\n",
        "1.0 ",
        "a.b",
        "1.0.tmp",
        "12345678901.0",
        "1.0-r1",
    ],
)
def test_what_is_no_name(text: str) -> None:
    assert not identity.is_name(text)
    with pytest.raises(ValueError, match=r"JOB\.STEP"):
        identity.parts(text)


def test_runs_of_a_step() -> None:
    assert identity.run_name(7, "1", 0) == "7.1" and identity.run_name("7", 1, 2) == "7.1-r2"


@pytest.mark.parametrize(
    ("cmdline", "found"),
    [
        (b"slurmstepd: [7.1]\0", ("7", "1")),
        (b"slurmstepd: [7.batch]", ("7", "batch")),
        (b"slurmstepd: [7]", None),
        (b"slurmstepd: [7.1", None),
        (b"slurmstepd\0[7.1]", None),
        (b"x slurmstepd: [7.1]", None),
        (b"slurmstepd: [../7.1]", None),
        (b"", None),
    ],
)
def test_titles(cmdline: bytes, found: tuple[str, str] | None) -> None:
    assert slurmstepd.title(cmdline) == found
