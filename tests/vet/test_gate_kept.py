"""`piolet vet gate`: which vettings are kept, for whom, and for how long."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor

from piolet.api import FAIL, PASS
from piolet.vet import kept
from piolet.vet.runner.plan import Plan, Task

from tests.vet.recorded import NODES, PROTOCOL, SCONTROL, Slurm, told


def test_a_job_is_vetted_once(slurm: Slurm) -> None:
    slurm.record(b"".join(told(node, FAIL if node == "node4" else PASS, "bad") for node in NODES))
    first = slurm.gate("srun -N2 app")[1]
    slurm.record(b"")
    status, words, said = slurm.gate("srun -N3 app")
    assert first and (status, words[1]) == (0, "--exclude=node4")
    assert " s ago" in said and "left out: --exclude=node4" in said
    assert len(slurm.calls) == 1
    # Another protocol, or another job, is another vetting; nothing comes back, so nothing is good.
    assert slurm.gate("srun -N3 app", "p.yaml,budget=2s")[0] == 3
    (slurm.directory / "p.yaml").write_text(PROTOCOL + "  cache: 0.000001s\n")
    slurm.record(b"".join(map(told, NODES)))
    for _ in range(2):
        assert "ago" not in slurm.gate()[2]


def test_a_jobs_vetting_is_good_for_ten_minutes_at_most() -> None:
    """A longer `cache:` is the node's, which sees a reboot or a link that went down."""
    tasks = [Task(name, name, "m:a", cache_s=seconds) for name, seconds in (("a", 3600.0), ("b", 0.0), ("c", 7.0))]
    for tasks_of, seconds in (((0,), 600.0), ((0, 1), 600.0), ((0, 2), 7.0)):
        assert kept.good_for_s(Plan("p", tuple(tasks[number] for number in tasks_of))) == seconds


def test_good_news_leave_a_record_for_the_plugin(slurm: Slurm) -> None:
    """Only when all nodes are good, and only from a step of this very job."""
    records = slurm.directory / ".cache/piolet/vet"
    os.utime(slurm.directory / "p.yaml", (1, 1))
    time.sleep(0.1)  # what was written a moment ago may be written again with the same time
    slurm.record(b"".join(told(node, FAIL if node == "node2" else PASS, "bad") for node in NODES))
    assert slurm.gate("srun -N3 app")[0] == 0 and not list(records.glob("*.rec"))
    slurm.record(b"".join(map(told, NODES)))
    request = "p.yaml,budget=5s"
    assert slurm.gate("srun app", request, SLURM_HET_SIZE="2")[0] == 0 and not list(records.glob("*.rec"))
    assert slurm.gate("srun --jobid=8 app", request)[0] == 0 and not list(records.glob("*.rec"))
    assert slurm.gate("srun app", request)[0] == 0
    (record,) = records.glob("*.rec")
    assert b"all 4 nodes good" in record.read_bytes()
    record.unlink()
    # A vetting that was kept does as well.
    assert " s ago" in slurm.gate("srun app", request)[2] and record.exists()


def test_of_sruns_that_start_at_once_one_vets(slurm: Slurm) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: slurm.gate("srun app"), range(4)))
    assert [status for status, _, _ in found] == [0] * 4
    assert len(slurm.calls) == 1
    assert sum(" s ago" in said for _, _, said in found) == 3


def test_another_job_with_the_number_of_an_earlier_one_is_vetted(slurm: Slurm) -> None:
    """A job that began after the vetting is not the one that was vetted."""
    slurm.gate("srun -N2 app")
    later = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + 5))
    (slurm.directory / "scontrol").write_text(SCONTROL.replace("2026-01-01T10:00:00", later))
    slurm.record(b"".join(told(node, FAIL if node == "node4" else PASS, "bad") for node in NODES))
    status, words, said = slurm.gate("srun -N3 app")
    assert (status, words[1]) == (0, "--exclude=node4")
    assert "ago" not in said


def test_how_the_user_wants_times_to_be_shown_does_not_matter(slurm: Slurm) -> None:
    """And a job whose start cannot be told is vetted anew."""
    told_as = "case $SLURM_TIME_FORMAT in standard) at=2026-01-01T10:00:00;; *) at=10:00;; esac\n"
    scontrol = SCONTROL.replace("#!/bin/sh\n", f"#!/bin/sh\n{told_as}").replace("2026-01-01T10:00:00 Req", "$at Req")
    (slurm.directory / "scontrol").write_text(scontrol)
    slurm.gate(SLURM_TIME_FORMAT="relative")
    assert " s ago" in slurm.gate(SLURM_TIME_FORMAT="relative")[2]
    (slurm.directory / "scontrol").write_text(SCONTROL.replace("2026-01-01T10:00:00", "Unknown"))
    status, _, said = slurm.gate()
    assert status == 0 and " s ago" not in said, said


def test_a_refusal_is_not_kept(slurm: Slurm) -> None:
    slurm.record(b"")
    assert slurm.gate()[0] == 3
    slurm.record(b"".join(map(told, NODES)))
    assert slurm.gate()[0] == 0


def test_a_vetting_of_another_environment_is_another_one(slurm: Slurm) -> None:
    """What the plugin of --environment made of the request says which it is."""
    os.utime(slurm.directory / "p.yaml", (1, 1))
    (slurm.directory / "p.yaml").write_text(PROTOCOL + "- {type: env, where: environment, on_inconclusive: pass}\n")
    edf = slurm.directory / "e.toml"
    edf.write_text("")

    def made(request: str, **more: object) -> str:
        image = {"reference": "a", "store": "site", "digest": "sha256:1", "path": None}
        return json.dumps({"request": request, "files": [str(edf)], "image": image, **more})

    def vetted(words: str, definition: str | None) -> bool:
        before = len(slurm.calls)
        environ = {} if definition is None else {"SLURM_PIOLET_ENVIRONMENT": definition}
        assert slurm.gate(words, **environ)[0] == 0
        return len(slurm.calls) > before

    one, other = "srun --environment=./e.toml app", "srun --environment=other app"
    assert vetted(one, made("./e.toml"))
    assert not vetted(one, made("./e.toml"))
    assert vetted("srun app", None) and not vetted("srun app", None)  # without one that is inconclusive
    assert vetted(other, made("other")) and not vetted(other, made("other"))
    assert vetted(one, made("./e.toml", image={"reference": "a", "store": "site", "digest": "sha256:2"}))
    edf.write_text("# changed")
    assert vetted(one, made("./e.toml"))
    # A definition of something else, or none, says nothing.
    assert all(vetted(one, text) for text in (made("other"), made("other"), None, None, "{", "[]"))
    assert not list((slurm.directory / ".cache/piolet/vet").glob("*.rec"))
