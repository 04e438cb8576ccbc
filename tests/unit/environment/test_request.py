"""What stands after `--environment=`: a file, standard input, an image alone, and what is otherwise for this once."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from piolet.base.errors import EnvironmentFileError, PioletError
from piolet.environment import request as asked
from piolet.environment.definition import Definition, Mount, from_json
from piolet.environment.render import render
from piolet.environment.settings import EnvironmentConfig
from piolet.submission.dependencies import Host

from tests.unit.environment.rendering import INFO


@pytest.fixture
def rendered(host: Host, tmp_path: Path) -> object:
    (tmp_path / "data").mkdir()
    (tmp_path / "x.toml").write_text('image = "img"\nmounts = ["/tmp:/t"]\nworkdir = "/w"\n[env]\nA = "1"\nB = "2"\n')
    return lambda request: render(request, host, EnvironmentConfig(edf_path=()), lambda _: INFO).definition


@pytest.mark.parametrize(
    ("request_", "name", "data"),
    [
        ("x.toml", "x.toml", None),
        ("a,b.toml", "a,b.toml", None),
        ("image:ubuntu:24.04", "", {"image": "ubuntu:24.04"}),
        ("x,image=ubuntu:24.04", "x", {"image": "ubuntu:24.04"}),
        ("x,mount=/a:/b:ro,nosuid,mount=/c", "x", {"mounts": ["/a:/b:ro,nosuid", "/c"]}),
        ("x,mount=/a:/b:ro,x-create=dir,workdir=/w", "x", {"mounts": ["/a:/b:ro,x-create=dir"], "workdir": "/w"}),
        ("x,env=A=1,2,B=3,env=C=", "x", {"env": {"A": "1,2,B=3", "C": ""}}),
        (
            "x,writable=false,home=true,entrypoint=true,remap_root=true",
            "x",
            {"writable": False, "home": True, "entrypoint": True, "remap_root": True},
        ),
        ("image:a/b:1,env=A=1", "", {"image": "a/b:1", "env": {"A": "1"}}),
        ("-,workdir=/w", "-", {"workdir": "/w"}),
        ("x,annotation=com.hooks.ssh.enabled=true", "x", {"annotations": {"com.hooks.ssh.enabled": "true"}}),
        ("x,device=/dev/fuse,env_policy=clean", "x", {"devices": ["/dev/fuse"], "env_policy": "clean"}),
    ],
)
def test_the_parts_of_a_request(tmp_path: Path, request_: str, name: str, data: dict[str, object] | None) -> None:
    found, above = asked.split(request_, str(tmp_path))
    assert found == name
    assert (above.data if above else None) == data


def test_a_file_of_that_very_name_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "x,image=y").touch()
    assert asked.split("x,image=y", str(tmp_path)) == ("x,image=y", None)


@pytest.mark.parametrize(
    ("request_", "column", "message", "hint"),
    [
        ("x,imge=ubuntu", 3, "unknown key 'imge'", "did you mean 'image'?"),
        ("x,mounts=/a", 3, "unknown key 'mounts'", "did you mean 'mount'?"),
        ("x,home=maybe", 8, "home must be true or false, not 'maybe'", None),
        ("x,env=A", 7, "'A' is not NAME=VALUE", "as in env=NAME=VALUE"),
    ],
)
def test_a_mistake_has_its_place(request_: str, column: int, message: str, hint: str | None) -> None:
    with pytest.raises(EnvironmentFileError) as caught:
        asked.split(request_, "/")
    assert caught.value.message == message
    assert caught.value.hint == hint
    assert caught.value.location is not None
    assert (caught.value.location.path, caught.value.location.column) == ("--environment", column)


def test_what_is_said_on_top_wins(rendered: object, tmp_path: Path) -> None:
    assert callable(rendered)
    found = rendered(f"x.toml,image=other,mount=./data:/d,workdir=./data,env=A=3,env=B=,writable=false")  # noqa: F541
    assert isinstance(found, Definition)
    assert found.mounts == (Mount("/tmp", "/t"), Mount(f"{tmp_path}/data", "/d"))
    assert found.workdir == f"{tmp_path}/data"
    assert found.set_env["A"] == "3"
    assert "B" in found.unset_env
    assert not found.writable
    assert rendered("x.toml,mount=!/t").mounts == ()
    assert rendered("x.toml,env=DIR=${EDF_DIR}").set_env["DIR"] == str(tmp_path)
    assert from_json(found.to_json()) == found


def test_an_image_without_a_file(rendered: object) -> None:
    assert callable(rendered)
    found = rendered("image:ubuntu:24.04")
    assert found.image == INFO.image
    assert found.files == ("--environment",)
    with pytest.raises(PioletError) as caught:
        rendered("image:ubuntu:24.04,mount=/nowhere-at-all:/x")
    assert "does not exist" in caught.value.message
    assert caught.value.location is not None
    assert caught.value.location.path == "--environment"


def test_a_definition_on_standard_input(rendered: object, monkeypatch: pytest.MonkeyPatch, host: Host) -> None:
    class Stream(io.TextIOWrapper):
        def isatty(self) -> bool:
            return terminal

    def give(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", Stream(io.BytesIO(data)))

    assert callable(rendered)
    terminal = False
    give(b'image = "img"\nworkdir = "${EDF_DIR}/w"\n')
    assert rendered("-").workdir == f"{host.cwd}/w"
    give(b'image = "img"\n')
    whole = render("-,workdir=/v", host, EnvironmentConfig(edf_path=()), lambda _: INFO)
    assert whole.definition.workdir == "/v"
    assert whole.passing
    for data, what in (
        (b"\xff", "is not UTF-8"),
        (b"#" * (1 << 20) + b"#", "is longer than"),
        (b"= 1", "not valid TOML"),
    ):
        give(data)
        with pytest.raises(EnvironmentFileError, match=what):
            rendered("-")
    terminal = True
    give(b"")
    with pytest.raises(EnvironmentFileError, match="and that is a terminal"):
        rendered("-")
