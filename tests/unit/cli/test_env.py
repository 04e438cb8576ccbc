"""`piolet env`, with an image client put in its place."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from piolet.base.errors import ImageError
from piolet.cli import main as cli
from piolet.environment.definition import from_json
from piolet.images.failures import RegistryUnreachable
from piolet.images.info import Image, ImageInfo
from piolet.site import config
from piolet.submission import cache
from piolet.submission.dependencies import Kind

from tests.unit.cli.conftest import DIGEST, Captured, Client, age
from tests.unit.submission.test_submit import unpack


def test_check(work: Path, capsys: Captured) -> None:
    assert cli.main(["env", "check", "./x.toml"]) == 0
    assert capsys.readouterr() == ("./x.toml is valid: image img, 1 mount\n", "")


def test_check_of_a_bad_file(work: Path, capsys: Captured) -> None:
    assert cli.main(["env", "check", "bad.toml"]) == 1
    assert capsys.readouterr() == (
        "",
        f"piolet: error: {work}/bad.toml:1:1: unknown key 'imgae'\n"
        "  imgae = \"img\"\n  ^^^^^\nhint: did you mean 'image'?\n",
    )


def test_check_of_a_file_of_cscs(work: Path, capsys: Captured) -> None:
    assert cli.main(["env", "check", "--from=cscs", "./x.toml"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "is valid" in lines[0] and len(lines) > 1
    assert all(line.startswith("  otherwise: ") for line in lines[1:])
    assert cli.main(["env", "check", "./x.toml"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_check_of_a_job(work: Path, capsys: Captured) -> None:
    assert cli.main(["env", "check", "@12"]) == 2
    assert capsys.readouterr().err == (
        "piolet: error: @12 is a job's environment, and no file\nhint: piolet env show 12 prints it as one\n"
    )


def test_check_without_an_image(work: Path, capsys: Captured) -> None:
    (work / "e.toml").write_text("")
    assert cli.main(["env", "check", "e.toml"]) == 0
    assert capsys.readouterr().out == "e.toml is valid: no image, runs on the host, 0 mounts\n"


def test_render(work: Path, client: Client, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["env", "render", "x.toml"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    definition = from_json(out.encode().removesuffix(b"\n"))
    assert definition.set_env == {"A": "/image/bin", "PATH": "/image/bin"}
    assert out.encode() == definition.to_json() + b"\n"
    assert client.asked == [("img", False)]


def test_explain(work: Path, capsys: Captured) -> None:
    assert cli.main(["env", "explain", "x.toml"]) == 0
    assert f"# {work}/x.toml:2, written" in capsys.readouterr().out


@pytest.mark.parametrize("action", ["check", "render", "explain"])
def test_a_registry_that_is_down_is_a_warning(
    work: Path, client: Client, capfd: pytest.CaptureFixture[str], action: str
) -> None:
    client.failure = RegistryUnreachable("cannot reach registry.example")
    assert cli.main(["env", action, "x.toml"]) == 0
    out, err = capfd.readouterr()
    assert err == (
        "piolet: warning: cannot reach registry.example; the digest and variables of the image are not known\n"
    )
    if action == "render":
        assert json.loads(out)["image"] == {"digest": None, "path": None, "reference": "img", "store": "site"}


def test_an_image_that_does_not_exist_is_an_error(work: Path, client: Client, capsys: Captured) -> None:
    client.failure = ImageError("there is no image 'img'")
    assert cli.main(["env", "check", "x.toml"]) == 1
    assert f"piolet: error: {work}/x.toml:1:9: there is no image 'img'" in capsys.readouterr().err


def test_offline_asks_nobody(work: Path, client: Client, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["env", "render", "--offline", "x.toml"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["image"]["digest"] is None
    assert err.startswith("piolet: warning: the image img was not looked at (--offline)")
    assert client.asked == []


def test_warnings_go_to_standard_error(work: Path, capsys: Captured) -> None:
    (work / "h.toml").write_text('image = "i"\n[annotations]\ncom.hooks.nothing.enabled = "true"\n')
    assert cli.main(["env", "check", "h.toml"]) == 0
    out, err = capsys.readouterr()
    assert out == "h.toml is valid: image i, 0 mounts\n"
    assert err == "piolet: warning: the hook com.hooks.nothing is not installed here; ignored\n"


def test_what_the_site_thinks_of_an_image_is_a_warning(
    work: Path, client: Client, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Findings of a scan, and what of a .sqsh file has no effect: `piolet env check` and srun say them, each time."""
    found = ImageInfo(Image("img", "site", DIGEST), env={"PATH": "/bin"}, warnings=("the image img has CVE-1",))
    monkeypatch.setattr(client, "resolve", lambda *_, **__: found)
    assert cli.main(["env", "check", "x.toml"]) == 0
    assert capsys.readouterr().err == "piolet: warning: the image img has CVE-1\n"
    _, _, cached = submitted(work)
    assert capsys.readouterr().err == "piolet: warning: the image img has CVE-1\n"
    assert b"piolet: warning: the image img has CVE-1\0" in cached[0].read_bytes()


def submitted(work: Path, *options: str, request: str = "./x.toml") -> tuple[int, bytes, list[Path]]:
    descriptor = os.memfd_create("record")
    try:
        status = cli.main([*options, "env", "submit", "--record-fd", str(descriptor), request])
        record = os.pread(descriptor, 1 << 21, 0)
    finally:
        os.close(descriptor)
    return status, record, list((work / "home/.cache/piolet/env").glob("*.rec"))


def test_submit(work: Path, client: Client, capsys: Captured) -> None:
    status, record, cached = submitted(work)
    assert status == 0
    assert client.asked == [("img", True)]
    assert capsys.readouterr() == ("", "pulling: 1 of 1 layers\n")
    expected = cache.path_of(os.environ, str(work), "./x.toml", "", os.getuid())
    assert [str(path) for path in cached] == [expected]
    kept = cached[0].read_bytes()
    for whole in (record, kept):
        assert b"./x.toml\0" + str(work).encode() + b"\0" in whole
        start = whole.index(b'{"annotations"')
        assert from_json(whole[start:]).mounts[0].source == "/tmp"
    for name in (b"HOME\0", b"EDF_IMAGESTORE\0", str(config.DEFAULT_PATH).encode() + b"\0"):
        # What srun gets now names nothing that it would have to look up: it may be in a container (decision 110).
        assert name in kept and name not in record


def test_what_is_kept_is_good_for_a_day(work: Path) -> None:
    """Links of steps come without a process: it takes a rendering now and then to remove those that are too many."""
    before = time.time_ns()
    _, record, cached = submitted(work)
    (span,) = [one.stamp for one in unpack(cached[0].read_bytes())[0] if one.kind == Kind.UNTIL]
    assert span is not None and before - 1000 <= span.mtime_ns <= time.time_ns()
    assert abs(span.ctime_ns - span.mtime_ns - 86_400 * 10**9) < 1000
    assert not [one for one in unpack(record)[0] if one.kind == Kind.UNTIL]


def test_a_script_inside_is_said_by_a_blank(work: Path) -> None:
    assert b'\0{"annotations"' in submitted(work)[1]
    (work / "x.toml").write_text('image = "img"\nscript = "inside"\n')
    age(work)
    status, record, cached = submitted(work)
    assert status == 0
    for whole in (record, cached[0].read_bytes()):
        assert from_json(whole[whole.index(b' {"annotations"') :]).image is not None


def test_submit_as_the_plugin_calls_it(work: Path) -> None:
    (work / "-x").mkdir()
    (work / "-x/y.toml").write_text("")
    status, record, _ = submitted(work, request="-x/y.toml")
    assert (status, record) == (2, b"")
    descriptor = os.memfd_create("record")
    try:
        assert cli.main(["env", "submit", "--record-fd", str(descriptor), "--", "-x/y.toml"]) == 0
        assert os.fstat(descriptor).st_size > 0
    finally:
        os.close(descriptor)


def test_submit_of_a_bad_file_writes_nothing(work: Path, capsys: Captured) -> None:
    assert submitted(work, request="./bad.toml") == (1, b"", [])
    assert "unknown key 'imgae'" in capsys.readouterr().err


def test_submit_with_a_registry_that_is_down_is_an_error(work: Path, client: Client, capsys: Captured) -> None:
    client.failure = RegistryUnreachable("cannot reach registry.example")
    assert submitted(work) == (1, b"", [])
    assert "cannot reach registry.example" in capsys.readouterr().err


def test_a_cached_record_repeats_the_warning(work: Path) -> None:
    (work / "x.toml").write_text('image = "i"\n[annotations]\ncom.hooks.nothing.enabled = "true"\n')
    age(work)
    status, _, cached = submitted(work)
    assert (status, len(cached)) == (0, 1)
    assert b"piolet: warning: the hook com.hooks.nothing is not installed here; ignored\0" in cached[0].read_bytes()


def test_submit_shows_a_long_pull_in_few_lines(work: Path, client: Client, capsys: Captured) -> None:
    client.said = [f"pulling: \x1b[2J{number} of 1000 MiB" for number in range(1001)]
    assert submitted(work)[0] == 0
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) < 10 and shown[-1] == "pulling: ?[2J1000 of 1000 MiB"


def test_submit_does_not_cache_a_file_that_changed_just_now(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = (work / "x.toml").stat().st_mtime_ns
    monkeypatch.setattr("time.time_ns", lambda: changed + 1)
    status, _, cached = submitted(work)
    assert (status, cached) == (0, [])


def test_submit_does_not_cache_for_another_configuration(work: Path) -> None:
    (work / "p.toml").write_text("")
    age(work)
    _, _, cached = submitted(work, "--config", f"{work}/p.toml")
    assert f"{work}/p.toml".encode() in cached[0].read_bytes()
    assert str(cached[0]) != cache.path_of(os.environ, str(work), "./x.toml", "", os.getuid())


def test_submit_without_a_place_for_a_cache(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    status, record, _ = submitted(work)
    assert status == 0
    assert record


def test_submit_with_too_many_dependencies_has_a_record_and_no_cache(work: Path, capsys: Captured) -> None:
    listing = "".join(f'V{i} = "${{N{i}:-}}"\n' for i in range(4200))
    (work / "x.toml").write_text("[env]\n" + listing)
    age(work)
    status, record, cached = submitted(work)
    assert (status, cached) == (0, [])
    assert len(from_json(record[record.index(b'{"annotations"') :]).unset_env) == 4200


def test_a_file_that_includes_itself(work: Path, capsys: Captured) -> None:
    (work / "x.toml").write_text('base_environment = "x.toml"\n')
    assert cli.main(["env", "check", "x.toml"]) == 1
    assert "goes in a circle" in capsys.readouterr().err


def test_submit_refuses_what_a_node_would_refuse(
    work: Path, client: Client, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    info = ImageInfo(Image("img", "site", DIGEST), env={"B": "x\0y"})
    monkeypatch.setattr(client, "resolve", lambda *_, **__: info)
    assert submitted(work) == (1, b"", [])
    assert "the definition has a value that should be a string" in capsys.readouterr().err
