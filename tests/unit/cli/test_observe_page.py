"""`piolet observe page` and `piolet job --html`: of a directory, of the central service, of what --score collected."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from piolet.base.errors import ObserveError
from piolet.cli import job, main, observe_page, stepsasked
from piolet.observe import marks, reading, results, writing
from piolet.observe.job import Happened
from piolet.site.config import Config

from tests.unit.cli.test_observe_data import Service
from tools import incident


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of a step that no detector looked at."""
    return incident.write(tmp_path_factory.mktemp("steps") / "4242.0")


def test_a_page_of_a_directory(directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is for its owner to read; where nobody looked for findings that is done, and nothing is written there."""
    before = sorted(path.name for path in directory.iterdir())
    target = tmp_path / "page.html"
    assert main.main(["observe", "page", str(directory), "--out", str(target)]) == 0
    page = target.read_text()
    assert capsys.readouterr().out == f"{target}\n" and target.stat().st_mode & 0o777 == 0o600
    assert "GPU 2 of node3 is slower" in page and "an operation of /scratch took" in page
    assert sorted(path.name for path in directory.iterdir()) == before and list(tmp_path.iterdir()) == [target]


def test_findings_that_are_there_are_taken(directory: Path, tmp_path: Path) -> None:
    """Those of the step's end; and none, if the detectors found nothing then."""
    known = incident.write(tmp_path / "1.0", incident.FINDINGS[:1])
    page = observe_page.made(str(known), Config())[1].decode()
    assert "works at 1080 MHz" in page and "an operation of" not in page
    nothing = incident.write(tmp_path / "2.0")
    writing.write_table(nothing, "judged", {"detector": ["straggler"], "version": [1], "state": ["nothing"]})
    assert "id=findings" not in observe_page.made(str(nothing), Config())[1].decode()


def test_what_cannot_be_read_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No data, damaged data, no place for the page."""
    for word, said in ((str(tmp_path), "holds no samples"), (f"{tmp_path}/none", "cannot read")):
        assert main.main(["observe", "page", word]) == 1
        told = capsys.readouterr().err
        assert said in told and "Traceback" not in told
    step = incident.write(tmp_path / "3.0", incident.FINDINGS)
    (step / "gpu.parquet").write_bytes(b"PAR1 this is none")
    (step / "rollup.parquet").unlink(missing_ok=True)
    assert main.main(["observe", "page", str(step)]) == 1
    assert "gpu.parquet" in capsys.readouterr().err
    with pytest.raises(ObserveError, match=r"cannot write /nowhere/page\.html: No such file"):
        observe_page.write(Path("/nowhere/page.html"), b"")


def test_a_job_is_what_the_service_keeps_of_it(
    directory: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With what piolet job knows besides; without a service what --score collected; else it says that it is missing."""
    service = Service(directory)
    service.names = ["4242.0"]
    monkeypatch.setattr(stepsasked, "service", lambda _: service)
    settings = Config()
    central = dataclasses.replace(settings, central=dataclasses.replace(settings.central, url="https://central"))
    page = observe_page.of_job(incident.JOB, central).decode()
    assert "piolet observe fetch 4242.0" in page and "piolet-page-" not in page  # no directory that is gone
    assert "/v1/stepfile" in service.asked and "Against job 4190" in page and "is slower than the others" in page
    with pytest.raises(ObserveError, match=r"there are no data of job 4242\.0"):
        observe_page.of_job(incident.JOB, settings)

    def scored(where: Path) -> Any:
        return dataclasses.make_dataclass("Score", ["step", "directory"])("4242.0-r1", str(where))

    known = dataclasses.replace(incident.JOB, scores=(scored(directory),))
    assert "Against job 4190" in observe_page.of_job(known, settings).decode()
    monkeypatch.setattr(job, "views", lambda *_: known)
    target = tmp_path / "job.html"
    assert main.main(["job", "4242.0", "--html", str(target)]) == 0
    assert "train-7b" in target.read_text() and reading.open_step(directory).name == "4242.0"


def test_the_page_of_a_job_has_its_events_and_its_users_marks(
    directory: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The data that the service keeps have none: both come from elsewhere. A task that ended well is no event."""
    step = tmp_path / "steps" / "4242.0"
    shutil.copytree(directory, step)
    for table in ("events", "marks"):
        (step / f"{table}.parquet").unlink()
    service = Service(step)
    service.names = ["4242.0"]
    monkeypatch.setattr(stepsasked, "service", lambda _: service)
    began = incident.START / 1e9
    happened = [
        Happened(began + 9, "node1", kind, "kernel", "warn", "", "", text, body)
        for kind, text, body in (
            ("gpu.xid", "XID 31", {}), ("step.outcome", "it ended well", {"status": 0}),
            ("step.outcome", "task 3 ended with status 7", {"status": 7}),
        )
    ]  # fmt: skip
    base = Config()
    settings = dataclasses.replace(
        base, central=dataclasses.replace(base.central, url="https://central"),
        results=dataclasses.replace(base.results, directory=str(tmp_path / "results")),
    )  # fmt: skip
    where = results.marks_place(f"{tmp_path}/results/{settings.events.cluster}", 4242)
    told = [marks.Said("loss", 1.0 / n, began + 10 * n, marks.COMMAND) for n in range(1, 20)]
    marks.add(where, "node1", [*told, marks.Said("of_an_earlier_job", 1.0, 9.0, marks.COMMAND)])
    mine = dataclasses.replace(incident.JOB, uid=os.getuid(), events=tuple(happened))
    page = observe_page.of_job(mine, settings).decode()
    assert "gpu.xid" in page and "task 3 ended with status 7" in page and "it ended well" not in page
    assert '"title":"loss"' in page and "of_an_earlier_job" not in page
    # Of another user's job staff see the events, and no file of that user's.
    page = observe_page.of_job(dataclasses.replace(mine, uid=incident.UID), settings).decode()
    assert "gpu.xid" in page and '"title":"loss"' not in page
