"""What a definition is refused for before it comes to a node, as the node would refuse it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from piolet.base.errors import EnvironmentFileError
from piolet.container import rehearsal
from piolet.environment.render import render
from piolet.environment.settings import EnvironmentConfig
from piolet.images.info import Image, ImageInfo
from piolet.submission.dependencies import Host, Kind

ROOT = Path(__file__).resolve().parents[3]
INFO = ImageInfo(Image("img", "site", "sha256:" + "a" * 64), entrypoint=("/entry",), workdir="/image/work")

Try = Callable[..., Host]


@pytest.fixture
def tried(tmp_path: Path) -> Try:
    for name in ("data/there", "more", "home/there"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "file").touch()

    def go(text: str, info: ImageInfo = INFO, config: EnvironmentConfig | None = None) -> Host:
        host = Host({}, str(tmp_path))
        (tmp_path / "x.toml").write_text(f'image = "img"\n{text}')
        rendered = render("./x.toml", host, EnvironmentConfig(edf_path=()), lambda _: info)
        rehearsal.rehearse(rendered, host, f"{tmp_path}/home", config or EnvironmentConfig())
        return host

    return go


def refusal(tried: Try, text: str, **more: object) -> EnvironmentFileError:
    with pytest.raises(EnvironmentFileError) as caught:
        tried(text, **more)
    return caught.value


@pytest.mark.parametrize(
    "mounts",
    [
        '["./data:/data", "./more:/data/there"]',
        '["./data:/data", "./file:/data/x/y:x-create"]',
        '["./data:/data", "tmpfs:/data/there", "./more:/data/there/x"]',
        '["./data:/data", "tmpfs:/data/there"]',
        '["./data:/etc", "./file:/etc2/x"]',
        '["./more:/anywhere/in/the/image", "./file:/etc/config"]',
        '["./more:{dir}/home/there"]',
        '["/etc:/etc:ro", "/tmp:/var/tmp"]',
        '["/etc/passwd:/etc/passwd:ro"]',
    ],
)
def test_what_a_node_can_mount(tried: Try, tmp_path: Path, mounts: str) -> None:
    tried(f"mounts = {mounts.replace('{dir}', str(tmp_path))}\n")


@pytest.mark.parametrize(
    ("mounts", "place", "hint"),
    [
        (
            '"./data:/data", "./more:/data/sub"',
            "/data/sub",
            "make {dir}/data/sub yourself, or have it made by the flag",
        ),
        ('"./data:/data", "./file:/data/a/b"', "/data/a/b", "{dir}/file:/data/a/b:x-create"),
        (
            '"./data:/data:ro", "./more:/data/sub:x-create"',
            "/data/sub",
            "in {dir}/data you can make nothing by way of a",
        ),
        ('"./more:/tmp/piolet/never"', "/tmp/piolet/never", "have it made by the flag x-create"),
        ('"./more:{dir}/home/sub"', "{dir}/home/sub", "make {dir}/home/sub yourself"),
        (
            '"./data:/data", "./data:/data/there", "tmpfs:/data/there/t"',
            "/data/there/t",
            "tmpfs:/data/there/t:x-create",
        ),
    ],
)
def test_a_missing_mount_point_in_what_is_mounted(
    tried: Try, tmp_path: Path, mounts: str, place: str, hint: str
) -> None:
    error = refusal(tried, f"mounts = [{mounts}]\n".replace("{dir}", str(tmp_path)))
    assert error.message == (
        f"the mount point {place} is not there, and nothing is made in what is mounted above it"
    ).replace("{dir}", str(tmp_path))
    assert hint.replace("{dir}", str(tmp_path)) in (error.hint or "")
    assert error.location is not None
    assert error.location.line == 2
    assert not (tmp_path / "data" / "sub").exists()


def test_links_are_followed_as_in_the_container(tried: Try, tmp_path: Path) -> None:
    (tmp_path / "data" / "link").symlink_to("/other")
    (tmp_path / "data" / "near").symlink_to("./there/../there")
    (tmp_path / "data" / "loop").symlink_to("/data/loop")
    tried('mounts = ["./data:/data", "./more:/data/link/x"]\n')  # in the image
    tried('mounts = ["./data:/data", "./more:/data/near"]\n')
    refusal(tried, 'mounts = ["./data:/data", "./data:/other", "./more:/data/link/x"]\n')
    refusal(tried, 'mounts = ["./data:/data", "./more:/data/near/x"]\n')
    looped = refusal(tried, 'mounts = ["./data:/data", "./more:/data/loop"]\n')
    assert looped.message == "a symbolic link in /data/loop leads to itself"
    assert looped.hint == "choose another path"


@pytest.mark.parametrize(("one", "other"), [("more", "file"), ("file", "there")])
def test_a_mount_point_of_another_kind(tried: Try, tmp_path: Path, one: str, other: str) -> None:
    (tmp_path / "data" / "file").touch()
    error = refusal(tried, f'mounts = ["./data:/data", "./{one}:/data/{other}"]\n')
    kinds = {"more": "directory", "there": "directory", "file": "file"}
    assert error.message == (
        f"{tmp_path}/{one} is a {kinds[one]} and cannot be mounted at /data/{other}: "
        f"{tmp_path}/data/{other} of the host is seen there, a {kinds[other]}"
    )


def test_dev_is_the_host_s(tried: Try) -> None:
    error = refusal(tried, 'mounts = ["./file:/dev/piolet-none/x"]\n')
    assert error.message.startswith("the mount point /dev/piolet-none/x is not there")


@pytest.mark.parametrize(
    ("workdir", "why"),
    [("/data/none", "{dir}/data/none of the host, which does not exist"), ("/data/f", "which is not a directory")],
)
def test_a_workdir_that_is_seen_to_be_wrong(tried: Try, tmp_path: Path, workdir: str, why: str) -> None:
    (tmp_path / "data" / "f").touch()
    error = refusal(tried, f'mounts = ["./data:/data"]\nworkdir = "{workdir}"\n')
    assert why.replace("{dir}", str(tmp_path)) in error.message
    assert error.location is not None
    assert error.location.line == 3
    tried('mounts = ["./data:/data"]\nworkdir = "/data/there"\n')
    tried('workdir = "/only/the/image/knows"\n')


def test_an_entrypoint_that_a_mount_hides(tried: Try) -> None:
    for place in ("/run", "/run/piolet"):
        error = refusal(tried, f'entrypoint = true\nmounts = ["./data:{place}"]\n')
        assert error.message == f"the mount at {place} hides /run/piolet, which the entrypoint needs"
        error = refusal(tried, f'save = "x"\nmounts = ["./data:{place}"]\n')
        assert error.message == f"the mount at {place} hides /run/piolet, which [startup] and save need"
        error = refusal(tried, f'mounts = ["./data:{place}"]\n[startup]\ncommands = "x"\n')
        assert error.hint == "mount what you need of it elsewhere, or leave them out"
        tried(f'mounts = ["./data:{place}"]\n')
    tried('entrypoint = true\nmounts = ["./data:/run/piolets"]\n')


def test_an_entrypoint_that_is_too_long(tried: Try) -> None:
    program = (ROOT / "spank" / "entry.c").read_text()
    limits = re.findall(r"#define (?:BYTES|WORDS)_MAX (\d+)", program)
    assert limits == [str(rehearsal.ENTRYPOINT_BYTES_MAX), str(rehearsal.ENTRYPOINT_WORDS_MAX)]
    for words in (("x" * 65535,), ("x",) * 1025):
        error = refusal(tried, "entrypoint = true\n", info=ImageInfo(INFO.image, entrypoint=words))
        assert error.message.startswith(f"the image's entrypoint has {len(words)} words of ")
        assert error.hint == "set entrypoint = false"
    tried("entrypoint = true\n", info=ImageInfo(INFO.image, entrypoint=("x" * 65534,)))


def test_the_result_holds_as_long_as_the_mount_point_is_there(tried: Try, tmp_path: Path) -> None:
    host = tried('mounts = ["./data:/data", "./more:/data/there"]\n')
    assert (Kind.EXISTS, f"{tmp_path}/data/there") in {(one.kind, one.name) for one in host.dependencies}


def test_what_only_the_node_can_tell(tmp_path: Path) -> None:
    host, config = Host({}, str(tmp_path)), EnvironmentConfig()

    def left(text: str) -> tuple[str, ...]:
        (tmp_path / "x.toml").write_text(f'image = "img"\n{text}')
        return rehearsal.rehearse(render("./x.toml", host, config, lambda _: INFO), host, None, config)

    assert left('workdir = "/srv"\n') == ("whether the image has the workdir /srv shows on the node",)
    assert left('mounts = ["./"]\nworkdir = "./"\n') == ()
    assert left('workdir = "/"\n') == ()
    assert left("") == ()  # the image's own is made
