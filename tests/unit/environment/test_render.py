"""From a request to a definition, with a resolver that knows one image."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from piolet.base.errors import EnvironmentFileError, ImageError, PioletError
from piolet.environment.definition import LIMIT_BYTES, Mount, from_json
from piolet.environment.explain import explain
from piolet.environment.render import Rendered, render
from piolet.environment.settings import EnvironmentConfig
from piolet.images.info import Image, ImageInfo
from piolet.submission.dependencies import Host, Kind

DIGEST = "sha256:" + "a" * 64
INFO = ImageInfo(
    Image("img", "site", DIGEST),
    env={"PATH": "/image/bin", "HOME": "/root", "SHELL": "/bin/ash", "SLURM_X": "1", "PMIX_Y": "1", "LANG": "C.UTF-8"},
    entrypoint=("/entry", "--now"),
    workdir="/image/work",
)

Render = Callable[..., Rendered]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host({"HOME": f"{tmp_path}", "PATH": "/host/bin", "USER": "ada", "LC_ALL": "de_DE"}, str(tmp_path))


@pytest.fixture
def made(tmp_path: Path, host: Host) -> Render:
    def make(text: str, info: ImageInfo = INFO, **bases: str) -> Rendered:
        for name, base in bases.items():
            (tmp_path / f"{name}.toml").write_text(base)
        (tmp_path / "x.toml").write_text(text)
        return render("./x.toml", host, EnvironmentConfig(edf_path=()), lambda _: info)

    return make


def refusal(made: Render, text: str, **bases: str) -> PioletError:
    with pytest.raises(PioletError) as caught:
        made(text, **bases)
    return caught.value


def test_a_whole_definition_survives_its_own_reader(made: Render, tmp_path: Path) -> None:
    (tmp_path / "data dir").mkdir()
    rendered = made(
        'base_environment = "./base.toml"\nworkdir = "//w/./x"\nentrypoint = true\nwritable = false\n'
        'mounts = ["./data dir:/d=1:ro", "tmpfs:/t"]\ndevices = ["/dev//fuse", "/dev/fuse"]\n'
        '[env]\nPATH = "${PATH}:/more"\n',
        base='image = "img"\n[annotations]\norg.x = "${USER}"\n',
    )
    definition = rendered.definition
    assert definition.request == "./x.toml"
    assert definition.files == (f"{tmp_path}/base.toml", f"{tmp_path}/x.toml")
    assert definition.image == INFO.image
    assert definition.workdir == "/w/x"
    assert definition.entrypoint == ("/entry", "--now")
    assert definition.writable is False
    assert definition.mounts == (Mount(f"{tmp_path}/data dir", "/d=1", "bind", ("ro",)), Mount("", "/t", "tmpfs"))
    assert definition.devices == ("/dev/fuse",)
    assert definition.annotations == {"org.x": "ada"}
    assert rendered.warnings == ()
    assert from_json(definition.to_json()) == definition


def test_the_defaults(made: Render) -> None:
    definition = made('image = "img"\n').definition
    assert (definition.workdir, definition.entrypoint, definition.writable) == ("/image/work", (), True)
    assert made('image = "img"\nworkdir = ""\n').definition.workdir == "/image/work"
    assert made('image = "img"\n', ImageInfo(INFO.image)).definition.workdir is None


def test_variables_of_image_and_file(made: Render) -> None:
    definition = made(
        'image = "img"\n[env]\nA = "${PATH}"\nB = "${HOME}"\nLANG = ""\nLC_TIME = "C"\nGONE = ""\n'
        'H = "$${PATH} $PATH"\n'
    ).definition
    assert definition.set_env == {
        "PATH": "/image/bin",
        "A": "/image/bin",
        "B": str(Path(definition.files[0]).parent),
        "LC_TIME": "C",
        "H": "${PATH} $PATH",
    }
    assert definition.unset_env[:2] == ("LANG", "GONE")
    assert {"LC_ALL", "LANGUAGE", "LC_CTYPE"} <= set(definition.unset_env)
    assert "LC_TIME" not in definition.unset_env
    assert len(set(definition.unset_env)) == len(definition.unset_env)


def test_an_image_variable_in_a_mount_is_the_hosts(made: Render, host: Host, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    host.variables["HOME"] = f"{tmp_path}/m"
    assert made('image = "img"\nmounts = ["${HOME}:/m"]\n').definition.mounts[0].source == f"{tmp_path}/m"


def test_without_an_image_only_env_applies(made: Render) -> None:
    definition = made('[env]\nA = "${PATH}"\nB = ""\n').definition
    assert definition.image is None
    assert definition.set_env == {"A": "/host/bin"}
    assert definition.unset_env == ("B",)
    assert made('base_environment = "./b.toml"\nimage = ""\n', b='image = "img"\n').definition.image is None


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('mounts = ["/tmp"]\n', "mounts need an image, and there is none"),
        ('workdir = "/x"\n', "a workdir needs an image, and there is none"),
        ("entrypoint = true\n", "an entrypoint needs an image, and there is none"),
        ('devices = ["/dev/null"]\n', "devices need an image, and there is none"),
    ],
)
def test_what_needs_an_image(made: Render, text: str, what: str) -> None:
    error = refusal(made, text)
    assert error.message == what
    assert error.location is not None
    assert error.location.line == 1


def test_a_fragment_without_image_can_be_a_base(made: Render) -> None:
    assert made('base_environment = "./m.toml"\nimage = "img"\n', m='mounts = ["/tmp"]\n').definition.mounts


def test_mounts_are_dropped_replaced_and_kept_in_order(made: Render, tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
    rendered = made(
        'base_environment = "./b.toml"\nmounts = ["!/x", "./c:/y", "./a:/x2", "./a:/x2", "!/none"]\n',
        b='image = "img"\nmounts = ["./a:/x", "./b:/y", "./b:/z", "/gone:/x"]\n',
    )
    destinations = [(Path(m.source).name, m.destination) for m in rendered.definition.mounts]
    assert destinations == [("b", "/z"), ("c", "/y"), ("a", "/x2")]
    assert rendered.warnings == (f"{tmp_path}/x.toml:2: nothing is mounted at /none, so there is nothing to drop",)


def test_a_colon_in_a_variable_or_directory_is_part_of_the_path(made: Render, host: Host, tmp_path: Path) -> None:
    odd = tmp_path / "a:b=c d"
    odd.mkdir()
    host.variables["ODD"] = str(odd)
    text = 'image = "img"\nmounts = ["${ODD}", "${ODD}/.:/x:ro"]\n'
    assert made(text).definition.mounts == (
        Mount(str(odd), str(odd)),
        Mount(str(odd), "/x", "bind", ("ro",)),
    )


@pytest.mark.parametrize(
    ("mount", "message", "hint"),
    [
        ("/nowhere-at-all:/x", "the source of the mount, /nowhere-at-all, does not exist", None),
        ("./dta:/x", "the source of the mount, {dir}/dta, does not exist", "did you mean {dir}/data?"),
        ("./data/x/y:/x", "the source of the mount, {dir}/data/x/y, does not exist", None),
        ("./x.toml/y:/x", "the source of the mount, {dir}/x.toml/y, does not exist", None),
        ("data:/x", "the source 'data' of the mount is not an absolute path", "begins with './': ./data"),
        ("~/x:/x", "the source '~/x' of the mount is not an absolute path", "write ${HOME} for '~'"),
        ("$HOME:/x", "the source '$HOME' of the mount is not an absolute path", "${NAME}, with braces"),
        ("/x/$USER:/x", "the source of the mount, /x/$USER, does not exist", "${NAME}, with braces"),
        ("./data:/x:sqsh", "the source of the mount, {dir}/data, is not a SquashFS file", None),
        ("./data:/x:rp", "unknown mount flag 'rp'", None),
        ("/tmp/..", "the destination '/tmp/..' of the mount holds '..'", None),
        ("/", "the destination of a mount must not be '/'", None),
        ("!x", "the destination 'x' of the mount is not an absolute path", None),
        ("${NO}", "the variable 'NO' is not defined, in mounts[2]", None),
        ("./" + "a" * 300, "cannot be used: File name too long", None),
    ],
)
def test_a_wrong_mount_has_its_place(made: Render, tmp_path: Path, mount: str, message: str, hint: str | None) -> None:
    (tmp_path / "data").mkdir()
    error = refusal(made, f'image = "img"\nmounts = ["/tmp",\n "{mount}"]\n')
    assert message.replace("{dir}", str(tmp_path)) in error.message
    assert error.location is not None
    assert error.location.line == 3
    assert error.location.path == f"{tmp_path}/x.toml"
    assert hint is None or hint.replace("{dir}", str(tmp_path)) in (error.hint or "")


def test_the_number_of_mounts_is_bounded(made: Render) -> None:
    listing = ",".join(f'"tmpfs:/t{i}"' for i in range(1001))
    message = refusal(made, f'image = "img"\nmounts = [{listing}]\n').message
    assert message == "there are 1001 mounts, more than the limit of 1000"


@pytest.mark.parametrize("device", ["fuse", "/etc/passwd", "/dev/../etc/x", "/dev", "nvidia.com/gpu"])
def test_a_wrong_device(made: Render, device: str) -> None:
    error = refusal(made, f'image = "img"\ndevices = ["{device}"]\n')
    assert error.message == f"'{device}' is not a device"
    assert error.location is not None


def test_cdi_devices_are_a_warning(made: Render, tmp_path: Path) -> None:
    rendered = made('image = "img"\ndevices = ["nvidia.com/gpu=all"]\n')
    assert rendered.definition.devices == ()
    assert rendered.warnings == (f"{tmp_path}/x.toml:2: CDI devices are not supported; nvidia.com/gpu=all is ignored",)


def test_a_hook_that_is_not_there_is_a_warning(made: Render, tmp_path: Path, host: Host) -> None:
    text = (
        'image = "img"\n[annotations]\ncom.hooks.ssh.enabled = "true"\ncom.hooks.ssh.port = 22\n'
        'com.hooks.cxi.enabled = "false"\norg.opencontainers.x = "y"\n'
    )
    rendered = made(text)
    assert rendered.warnings == ("the hook com.hooks.ssh is not installed here; ignored",)
    assert rendered.definition.annotations["com.hooks.ssh.port"] == "22"
    installed = render("./x.toml", host, EnvironmentConfig(), lambda _: INFO, hooks=["com.hooks.ssh"])
    assert installed.warnings == ()


def test_an_unknown_key_as_a_warning(host: Host, tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text('imgae = "x"\n')
    rendered = render("./x.toml", host, EnvironmentConfig(unknown_keys="warn"), lambda _: INFO)
    assert "the unknown key 'imgae' is ignored" in rendered.warnings[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('image = "img"\nworkdir = "a"\n', "workdir 'a' is not an absolute path"),
        ('image = "img"\nworkdir = "${NO}"\n', "the variable 'NO' is not defined, in workdir"),
        (f'image = "img"\nworkdir = "/{"a" * 4095}"\n', "workdir is longer than 4095 bytes"),
    ],
)
def test_a_wrong_workdir(made: Render, text: str, message: str) -> None:
    error = refusal(made, text)
    assert error.message == message
    assert error.location is not None
    assert error.location.line == 2


def test_a_relative_workdir_is_below_the_working_directory(made: Render, tmp_path: Path) -> None:
    assert made('image = "img"\nworkdir = "./w"\n').definition.workdir == f"{tmp_path}/w"


@pytest.mark.parametrize("reference", ["./i.sqsh", "i.sqsh", "{dir}//i.sqsh", "${EDF_DIR}/i.sqsh", "./i"])
def test_an_image_file_is_made_absolute(host: Host, tmp_path: Path, reference: str) -> None:
    for name in ("i.sqsh", "i"):
        (tmp_path / name).touch()
    (tmp_path / "x.toml").write_text(f'image = "{reference.replace("{dir}", str(tmp_path))}"\n')
    asked: list[str] = []

    def resolve(reference: str) -> ImageInfo:
        asked.append(reference)
        return INFO

    render("./x.toml", host, EnvironmentConfig(), resolve)
    assert asked[0].removesuffix(".sqsh") == f"{tmp_path}/i"


def test_an_image_file_that_is_not_there(made: Render, tmp_path: Path) -> None:
    (tmp_path / "torch.sqsh").touch()
    error = refusal(made, 'image = "./toch.sqsh"\n')
    assert error.message == f"image, {tmp_path}/toch.sqsh, does not exist"
    assert error.hint == f"did you mean {tmp_path}/torch.sqsh?"
    assert refusal(made, 'image = "~/torch.sqsh"\n').hint == "write ${HOME} for '~'"
    assert "is not a SquashFS file" in refusal(made, 'image = "/tmp"\n').message


def test_a_registry_reference_goes_through_and_its_error_gets_a_place(host: Host, tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text('\nimage = "nvcr.io#nvidia/x:${USER}"\n')

    def resolve(reference: str) -> ImageInfo:
        raise ImageError(f"no such image: {reference}")

    with pytest.raises(ImageError) as caught:
        render("./x.toml", host, EnvironmentConfig(), resolve)
    assert caught.value.message == "no such image: nvcr.io#nvidia/x:ada"
    assert caught.value.location is not None
    assert caught.value.location.line == 2


def test_a_definition_that_is_too_long(made: Render) -> None:
    error = refusal(made, 'image = "img"\n[env]\n' + "".join(f'V{i} = "{"x" * 1000}"\n' for i in range(100)))
    size = re.search(r"is (\d+) bytes long", error.message)
    assert size is not None
    assert int(size[1]) > LIMIT_BYTES
    assert f"more than the limit of {LIMIT_BYTES} bytes" in error.message
    assert "are environment variables" in (error.hint or "")
    other = "".join(f'x{i} = "{"x" * 1000}"\n' for i in range(100))
    assert refusal(made, "[annotations]\n" + other).hint == "leave something out"


def test_a_hundred_megabytes_of_env(made: Render, tmp_path: Path) -> None:
    error = refusal(made, "[env]\n" + ("A" * 1000 + ' = "x"\n') * 100_000)
    assert error.message.endswith("more than the limit of 1048576 bytes")


def test_a_working_directory_that_is_not_utf8(tmp_path: Path) -> None:
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    os.mkdir(odd)
    with open(f"{odd}/x.toml", "w") as file:
        file.write('image = "img"\nmounts = ["./."]\n')
    with pytest.raises(EnvironmentFileError, match="holds a path that is not UTF-8"):
        render("./x.toml", Host({}, odd), EnvironmentConfig(), lambda _: INFO)


def test_the_dependencies(made: Render, host: Host, tmp_path: Path) -> None:
    watched = tmp_path / "watched"
    watched.touch()
    info = ImageInfo(INFO.image, env={"PATH": "/i"}, watch=(str(watched), f"{tmp_path}/gone"))
    made('image = "img"\nmounts = ["/tmp:/${USER}"]\n[env]\nA = "${PATH}${NO:-}${EDF_DIR}"\n', info)
    facts = {(d.kind, d.name): d.value for d in host.dependencies}
    assert facts == {
        (Kind.FILE, f"{tmp_path}/x.toml"): "",
        (Kind.VARIABLE, "USER"): "ada",
        (Kind.EXISTS, "/tmp"): "",
        (Kind.FILE, str(watched)): "",
        (Kind.ABSENT, f"{tmp_path}/gone"): "",
        (Kind.UNSET, "NO"): "",
    }


def test_explain_names_the_origin_of_every_value(made: Render, tmp_path: Path) -> None:
    rendered = made(
        'base_environment = "./b.toml"\nmounts = ["tmpfs:/t:ro", "/tmp:/x"]\n'
        '[env]\nA = "${USER}"\nC = ""\n"odd key" = "$${x}"\n',
        b='image = "img"\nworkdir = "/w"\ndevices = ["/dev/fuse"]\n[env]\nA = "1"\nB = "2"\n[annotations]\na.b = "c"\n',
    )
    text = explain(rendered)
    lines = [line.split(None, 1)[0] + " " + line.split("  # ")[-1] for line in text.splitlines() if "  # " in line]
    b, x = f"{tmp_path}/b.toml", f"{tmp_path}/x.toml"
    assert lines == [
        f"image {b}:1",
        f"workdir {b}:2",
        "entrypoint default",
        "writable default",
        "remap_root default",
        f'"tmpfs:/t:ro", {x}:2',
        f'"/tmp:/x", {x}:2',
        f'"/dev/fuse", {b}:3',
        "PATH from the image",
        "LANG from the image",
        f'A {x}:4, written "${{USER}}"',
        f"B {b}:6",
        f"C {x}:5, unset",
        f'"odd {x}:6, written "$${{x}}"',
        f'"a.b" {b}:8',
    ]


def test_what_explain_prints_means_the_same(made: Render, host: Host, tmp_path: Path) -> None:
    first = made(
        'image = "img"\nmounts = ["/tmp:/a:ro", \'/tmp:/b\\:c\']\n[env]\nA = "$${x} \\" \\\\ \\u007f é"\nB = ""\n'
        '[annotations]\nx.y = "1"\n"odd key" = "2"\n'
    ).definition
    (tmp_path / "again.toml").write_text(explain(made((tmp_path / "x.toml").read_text())))
    again = render("./again.toml", host, EnvironmentConfig(), lambda _: INFO).definition

    def meaning(data: bytes) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(data)
        return {key: item for key, item in value.items() if key not in ("request", "files")}

    assert meaning(again.to_json()) == meaning(first.to_json())
    assert "runs on the host" in explain(made('[env]\nA = "1"\n'))
