"""`make demo-observe`: four nodes train, one of them is slow, and so is the file system for a while; the screen and the
page of the job name both.

The cluster is a private one with a central service, and the training is a real one in containers (examples/observe).
Its file system is an ext4 on a disk that is slow to read, and one node's tasks have a part of a processor
(tools/observed.py). The GPUs are simulated: they do what the program says that it would have them do. What is told of
all this is what nodes record of every step, and what the central service makes of it.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tools import browser, observed
from tools.cluster import gpus, lifecycle
from tools.cluster.errors import ClusterError
from tools.cluster.layout import REPOSITORY, Layout, node_names
from tools.demo import ENDED, USER, as_user, packed
from tools.demonstration import on_a_cluster

NODES, GPUS = 4, 2
SICK = "node3"
EXAMPLES = (REPOSITORY / "examples" / "demo", REPOSITORY / "examples" / "observe")
DIRECTORY = f"/scratch/{USER}/piolet-observe"
DATA = f"{DIRECTORY}/data"
ROOM = REPOSITORY / "build" / "demo-observe"  # what stays
RUNS_S, SLOW_FROM_S, SLOW_TO_S = 84, 26, 60
SHARE = 0.04  # of a processor, that the tasks of the slow node have
USUAL_S, SLOW_S = 0.004, 0.15  # that a read of the file system takes
WITHIN_S = 60.0
NAMED = (f"{SICK} is behind", f"an operation of {DATA} took")  # by screen and page
PICTURES = ((1400, 2600, "light"), (1400, 2600, "dark"), (390, 3600, "light"), (390, 3600, "dark"))
SIMULATED = (
    "Simulated are the GPUs: for 0.15 s of a step they compute, as the program says, and poll while others are late."
    f"\nReal are the training, what it waits for, and both faults: {SICK}'s tasks have {SHARE:.0%} of a processor, and "
    f"reads of\nthe file system take {SLOW_S / USUAL_S:.0f} times as long for {SLOW_TO_S - SLOW_FROM_S} s."
)


def play(layout: Layout) -> None:
    """Train, and have it told. Raises ClusterError: not both faults are named."""
    print(SIMULATED)
    try:
        job = train(layout)
        told = tell(layout, job)
    finally:
        as_user(layout, "rm", "-rf", DIRECTORY, check=False)
    print(f"\nThe page: {ROOM / 'page.html'}; the step's data: {ROOM / 'step'}")
    pictures()
    missing = [f"{where} does not say {text!r}" for where, said in told.items() for text in NAMED if text not in said]
    if missing:
        raise ClusterError("; ".join(missing))
    print(f"Screen and page name {SICK} and the slow file system.")


def train(layout: Layout) -> str:
    """Run the job with both faults, and return its number. Raises ClusterError."""
    prepare(layout)
    disk = observed.SlowDisk(layout)
    disk.mount(DATA, NODES)
    disk.takes(USUAL_S)
    print(f"\nAs {USER}, in {DIRECTORY}: sbatch job.sh, which trains for {RUNS_S} s", flush=True)
    submit = f'cd "$0" && OBSERVED_GPUS=$1 OBSERVED_SECONDS={RUNS_S} exec sbatch --parsable job.sh'
    job = as_user(layout, "sh", "-c", submit, DIRECTORY, str(drive(layout))).strip().split(";")[0]
    held = observed.hold(layout, NODES, job, "0", WITHIN_S)
    wait(lambda: "step=" in said(layout), "the training's first step")
    began = time.monotonic()
    held[SICK].may_use(SHARE)
    for after, seconds, what in ((SLOW_FROM_S, SLOW_S, "is slow"), (SLOW_TO_S, USUAL_S, "is as fast as before")):
        while time.monotonic() < began + after:
            if state(layout, job) in ENDED:
                raise ClusterError(f"job {job} ended too soon; it said: {said(layout)}")
            time.sleep(0.5)
        disk.takes(seconds)
        print(f"  {after:2} s: the file system {what}; the program said: {said(layout).splitlines()[-1]}", flush=True)
    wait(lambda: state(layout, job) in ENDED, f"the end of job {job}", RUNS_S + WITHIN_S)
    if state(layout, job) != "COMPLETED":
        raise ClusterError(f"job {job} ended as {state(layout, job)}; it said: {said(layout)}")
    return job


def prepare(layout: Layout) -> None:
    """Put the program where the user works."""
    as_user(layout, "rm", "-rf", DIRECTORY)
    as_user(layout, "mkdir", DIRECTORY)
    for example in EXAMPLES:
        as_user(layout, "tar", "--extract", "--directory", DIRECTORY, "--file", "-", stdin=packed(example))
    as_user(layout, "mkdir", "-p", DATA)


def drive(layout: Layout) -> Path:
    """Have the GPUs do what programs say in files of a directory, and return that: every container and node sees it."""
    directory = layout.site / "gpus"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    directory.chmod(0o1777)
    for number, node in enumerate(node_names(NODES), 1):
        text = "".join(
            f"gpu\nuuid GPU-{number:08x}-0000-0000-0000-{gpu:012x}\ndriven {directory}/{node}.{gpu}\n"
            for gpu in range(GPUS)
        )
        gpus.script(layout.gpus, node).write_text(text, "ascii")
    return directory


def tell(layout: Layout, job: str) -> dict[str, str]:
    """Return what the terminal and the page say of the job, and keep the page and the data. Raises ClusterError."""

    def is_whole() -> bool:
        listed = as_user(layout, "piolet", "observe", "list", "--job", job, "--json", check=False)
        steps = json.loads(listed)["steps"] if listed else []
        return any(step["name"] == f"{job}.0" and step["state"] == "whole" for step in steps)

    wait(is_whole, "the central service had the step's data, and the detectors' word")
    directory, page = f"{DIRECTORY}/{job}.0", f"{DIRECTORY}/page.html"
    screen = shown(layout, "piolet", "job", job)
    why = shown(layout, "piolet", "why", job)
    shown(layout, "piolet", "observe", "fetch", f"{job}.0", "--out", directory)
    found = shown(layout, "piolet", "observe", "findings", f"{job}.0")
    shown(layout, "piolet", "job", f"{job}.0", "--html", page)
    shutil.rmtree(ROOM, ignore_errors=True)
    ROOM.mkdir(parents=True)
    (ROOM / "page.html").write_text(whole := as_user(layout, "cat", page))
    shutil.copytree(directory, ROOM / "step")
    return {"piolet job": screen, "piolet why": why, "piolet observe findings": found, "the page": whole}


def pictures() -> None:
    """Make pictures of the page, where there is a browser."""
    program = browser.chromium()
    if program is None:
        print("There are no pictures of it: chromium is not installed.")
        return
    page = (ROOM / "page.html").read_text()
    for width, height, theme in PICTURES:
        picture = ROOM / f"page-{width}-{theme}.png"
        browser.picture(program, page, picture, (width, height), theme)
        print(f"As a picture: {picture}")


def shown(layout: Layout, *words: str) -> str:
    """Run a command as the user, show it with what it says, and return that."""
    print(f"\n  {USER}$ {' '.join(words)}", flush=True)
    output = as_user(layout, *words)
    print("\n".join(f"    {line}".rstrip() for line in output.splitlines()), flush=True)
    return output


def said(layout: Layout) -> str:
    """Return the job's output so far."""
    return as_user(layout, "cat", f"{DIRECTORY}/train.out", check=False)


def state(layout: Layout, job: str) -> str:
    """Return what Slurm says of the job."""
    return as_user(layout, "squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T").strip()


def wait(happened: Callable[[], bool], what: str, within_s: float = WITHIN_S) -> None:
    """Wait for something. Raises ClusterError: it did not happen in time."""
    deadline = time.monotonic() + within_s
    while not happened():
        if time.monotonic() > deadline:
            raise ClusterError(f"{within_s:.0f} s went by before {what}")
        time.sleep(0.2)


def main() -> int:
    request = lifecycle.Request(NODES, piolet=True, gpus=GPUS, cgroups=True, central=True)
    return on_a_cluster("demo-observe-cluster", request, play)


if __name__ == "__main__":
    sys.exit(main())
