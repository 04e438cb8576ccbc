"""`piolet observe list`, `fetch` and `export`, over a service that answers as the real one does."""

from __future__ import annotations

import base64
import json
import urllib.parse
from pathlib import Path
from typing import Any

import pytest
from piolet.cli import main, stepsasked
from piolet.observe import writing
from piolet.transport.asking import Answer, CentralError

START = 1_790_000_000
PIECE = 1000


class Service:
    """One step's directory, in pieces of 1000 bytes; `changes` files are made anew while they are read."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.changes, self.asked = directory, 0, list[str]()
        self.names = ["112.0"]

    def ask(self, method: str, target: str, body: bytes = b"") -> Answer:
        place = urllib.parse.urlsplit(target)
        said = dict(urllib.parse.parse_qsl(place.query))
        self.asked.append(place.path)
        return Answer(getattr(self, place.path.removeprefix("/v1/"))(said), 0.0)

    def row(self, name: str) -> dict[str, Any]:
        return {"id": 7, "name": name, "uid": 0, "state": "whole", "start": START, "last": START + 90, "size": 12345}

    def steps(self, said: dict[str, str]) -> dict[str, Any]:
        found = [self.row(name) for name in self.names if said.get("job") in (None, name.partition(".")[0])]
        return {"steps": found, "complete": True}

    def step(self, said: dict[str, str]) -> dict[str, Any]:
        if said["name"] not in self.names:
            raise CentralError("the central service refuses: there are no data of a step", None, 400)
        files = {path.name: path.stat().st_size for path in self.directory.iterdir()}
        return {**self.row(said["name"]), "files": {**files, "../evil": 3}}

    def stepfile(self, said: dict[str, str]) -> dict[str, Any]:
        assert said["id"] == "7" and "/" not in said["file"]
        data = (self.directory / said["file"]).read_bytes()
        stamp = "first"
        if self.changes and said["offset"] != "0":
            self.changes -= 1
            stamp = "second"
        piece = data[int(said["offset"]) : int(said["offset"]) + PIECE]
        return {"stamp": stamp, "size": len(data), "data": base64.b64encode(piece).decode()}


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Service:
    """A service with one step."""
    directory = tmp_path / "there"
    directory.mkdir()
    writing.write_meta(directory, {"job": "112", "step": "0", "start": START * 10**9})
    rows = {"time": [(START + 10) * 10**9] * 2, "node": ["node1", "no,de"], "gpu": [0, 1], "sm": [0.5, None],
            "power": [400.0, 401.5]}  # fmt: skip
    writing.write_table(directory, "gpu", rows)
    made = Service(directory)
    monkeypatch.setattr(stepsasked, "service", lambda _: made)
    monkeypatch.chdir(tmp_path)
    return made


def test_steps_are_listed(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["observe", "list"]) == 0
    head, line = capsys.readouterr().out.splitlines()
    assert head.split() == ["STEP", "USER", "STARTED", "LENGTH", "DATA", "SIZE"]
    assert line.startswith("112.0  root") and "whole" in line
    service.names = []
    assert main.main(["observe", "list", "--since", "2h", "--user", "0"]) == 0
    assert capsys.readouterr().out == "there are no data of such steps\n"
    assert main.main(["observe", "list", "--since", "soon"]) != 0
    assert "a time like 7d" in capsys.readouterr().err
    assert main.main(["observe", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"steps": [], "complete": True}


def test_a_step_is_fetched_whole(service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["observe", "fetch", "112"]) == 0
    assert "112.0: 2 files" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "112.0").iterdir()} == {"meta.json", "gpu.parquet"}
    for path in (tmp_path / "112.0").iterdir():
        assert path.read_bytes() == (service.directory / path.name).read_bytes()
    assert main.main(["observe", "fetch", "112.0"]) != 0
    assert "112.0 is there already" in capsys.readouterr().err


def test_a_file_that_is_made_anew_meanwhile_is_read_again(service: Service, tmp_path: Path) -> None:
    service.changes = 2
    assert main.main(["observe", "fetch", "112.0", "--out", "mine"]) == 0
    read = (tmp_path / "mine" / "gpu.parquet").read_bytes()
    assert len(read) > 2 * PIECE and read == (service.directory / "gpu.parquet").read_bytes()


def test_what_fails_leaves_nothing(service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    service.changes = 1000
    assert main.main(["observe", "fetch", "112.0", "--out", "mine"]) != 0
    assert "changes faster than it can be read" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert main.main(["observe", "fetch", "999"]) != 0
    assert "there are no data of job 999" in capsys.readouterr().err
    service.names = ["112.0", "112.1"]
    assert main.main(["observe", "fetch", "112"]) != 0
    assert "name one of 112.0, 112.1" in capsys.readouterr().err


def test_a_table_is_exported(service: Service, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main.main(["observe", "export", "112"]) == 0
    lines = capfdbinary.readouterr().out.decode().splitlines()
    assert lines[0] == '"time","node","gpu","sm","power [W]"' or lines[0] == "time,node,gpu,sm,power [W]"
    assert lines[1].replace('"', "").endswith("node1,0,0.5,400") and lines[2].endswith('"no,de",1,,401.5')
    assert main.main(["observe", "export", str(service.directory), "--format", "json", "--columns", "gpu,sm"]) == 0
    out = capfdbinary.readouterr().out.decode().splitlines()
    assert [json.loads(line) for line in out] == [{"gpu": 0, "sm": 0.5}, {"gpu": 1}]
    assert main.main(["observe", "export", "112.0", "--table", "host", "--out", str(tmp_path / "host.csv")]) == 0
    assert (tmp_path / "host.csv").read_text().startswith("time,span [s],node,cpu [cores]")
    assert main.main(["observe", "export", "112.0", "--columns", "watt"]) != 0
    assert b"no column watt" in capfdbinary.readouterr().err
    assert main.main(["observe", "export", "./absent"]) != 0
    assert b"there is no directory" in capfdbinary.readouterr().err
