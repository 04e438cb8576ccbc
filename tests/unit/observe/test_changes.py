"""What changed since the last good run: two jobs that differ in one thing, and what must not be called a change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from piolet.observe import changes
from piolet.observe.changes import Compared
from piolet.observe.job import VERSION, Environment, Job, Run, Score
from piolet.slurm.onejob import ToldRun

TEXT = 'image = "debian@sha256:aa"\nwritable = true\n\n[env]\nA = "1"\n'
ENVIRONMENT = Environment(("110.0",), "ml", "debian@sha256:aa", "sha256:aa", ("/e/ml.toml",), TEXT, ())


def score(
    name: str = "110.0", low: float | None = 0.6, software: tuple[str, ...] = ("driver 580, kernel 6.1",)
) -> Score:
    return Score(name, 1.0, {"saturation": {"low": low, "high": low}}, 8, 60.0, software, "", (), "/data")


def job(**more: Any) -> Job:
    run = Run(0, "COMPLETED", 0, 0, "", more.pop("nodes", ("n1", "n2")), 1000.0, 1600.0)
    fields = {
        "version": VERSION, "job": "110", "number": 110, "step": "", "name": "train", "user": "alice", "uid": 1500,
        "account": "", "partition": "main", "cluster": "alps", "command": "sbatch train.sh", "gpus": 8, "submit": 900.0,
        "limit": 600.0, "waits_for": "", "now": run, "environments": (ENVIRONMENT,), "scores": (score(),),
    }  # fmt: skip
    return Job(**{**fields, **more})


def test_nothing_changed() -> None:
    found = changes.between(job(), job(job="112"), {"0": Compared(-0.02, 0.03)})
    assert found.changes == () and (found.since, found.ended) == ("110", 1600.0)
    assert "nodes" in found.same and "image" in found.same and "definition" in found.same
    assert found.unknown == ("saturation of step 0: it cannot be told apart: -2.0 to +3.0 points (95 %)",)


@pytest.mark.parametrize(
    ("other", "what", "text"),
    [
        (job(nodes=("n1", "n3")), "nodes", "n3 is new, n2 not there; 2 now, 2 before"),
        (job(nodes=("n1", "n2", "n3", "n4")), "nodes", "n[3-4] are new; 4 now, 2 before"),
        (job(command="sbatch -N4 train.sh"), "command", "sbatch -N4 train.sh, and was sbatch train.sh"),
        (job(partition="debug"), "partition", "debug, and was main"),
        (job(gpus=16), "GPUs", "16, and was 8"),
        (
            job(environments=(replace(ENVIRONMENT, image="debian@sha256:bb"),)),
            "image",
            "sha256:bb, and was debian@sha256:aa",
        ),
        (job(environments=(replace(ENVIRONMENT, files=("/e/x.toml",)),)), "definition files", "/e/x.toml"),
        (
            job(environments=(replace(ENVIRONMENT, definition=TEXT.replace('"1"', '"2"')),)),
            "definition",
            '- A = "1"; + A = "2"',
        ),
        (job(scores=(score(software=("driver 590, kernel 6.1",)),)), "driver and kernel", "driver 590"),
    ],
)
def test_one_thing_changed(other: Job, what: str, text: str) -> None:
    found = changes.between(job(), other, {"0": Compared(-0.02, 0.03)})
    assert [one.what for one in found.changes] == [what]
    assert text in found.changes[0].text


def test_an_image_is_said_once() -> None:
    """Its line in the definition differs as well."""
    other = replace(ENVIRONMENT, image="debian@sha256:bb", definition=TEXT.replace(":aa", ":bb"))
    assert [one.what for one in changes.between(job(), job(environments=(other,)), {}).changes] == ["image"]


def test_figures_differ_where_the_interval_says_so() -> None:
    slower = job(scores=(score("112.0", 0.4),))
    (change,) = changes.between(job(), slower, {"0": Compared(-0.25, -0.15, ("B ran on other GPUs",))}).changes
    assert "40 %, and was 60 %: by -25.0 to -15.0 points (95 %); but B ran on other GPUs" in change.text
    assert changes.between(job(), slower, {"0": Compared(-0.25, 0.01)}).changes == ()
    assert changes.between(job(), slower, {"0": "too few samples"}).unknown == (
        "saturation of step 0: too few samples",
    )


def test_what_is_not_known_is_neither_the_same_nor_changed() -> None:
    found = changes.between(job(scores=(), environments=(), gpus=None), job(), {})
    assert found.changes == ()
    assert {text.partition(":")[0] for text in found.unknown} == {"GPUs", "environment", "saturation of step 0"}
    assert "GPUs" not in changes.between(job(gpus=None), job(gpus=None), {}).same
    two = changes.between(job(environments=(ENVIRONMENT, replace(ENVIRONMENT, definition="x"))), job(), {})
    assert "environment: their steps had several" in two.unknown
    assert changes.between(job(), job(nodes=()), {}).unknown[0] == "nodes: it did not get any yet"


def told(number: int, end: float | None, **more: Any) -> ToldRun:
    run = ToldRun(
        str(number), number, 0, "train", "alice", 1500, "", "main", "alps", "COMPLETED", "", 0, 0, ("n1",), None, 1.0,
        2.0, end, None, "", "", "",
    )  # fmt: skip
    return replace(run, **more)


def test_the_last_good_run() -> None:
    runs = [
        told(1, 100.0), told(2, 900.0), told(3, 950.0, state="FAILED"), told(4, 960.0, name="other"),
        told(5, 970.0, uid=1501), told(110, 980.0), told(6, 1200.0), told(7, None),
    ]  # fmt: skip
    found = changes.last_good(job(), runs)
    assert found is not None and found.number == 2
    assert changes.last_good(job(), []) is None
    tasks = [told(111, 950.0, shown="109_1"), told(109, 960.0, shown="109_2")]
    assert changes.last_good(job(job="109_3", number=112), tasks) is None
