"""From a request to a definition, with a resolver that knows one image."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from piolet.base.errors import EnvironmentFileError, ImageError
from piolet.environment.definition import LIMIT_BYTES, Mount, from_json
from piolet.environment.render import render
from piolet.environment.settings import EnvironmentConfig
from piolet.images.info import ImageInfo
from piolet.submission.dependencies import Host, Kind

from tests.unit.environment.rendering import INFO, Render, refusal


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
        ('script = "inside"\n', "a script inside needs an image, and there is none"),
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


def test_what_every_container_has_is_dropped(made: Render, tmp_path: Path) -> None:
    rendered = made('image = "img"\nmounts = ["/tmp:/x", "!/tmp", "!/etc/hosts", "!${HOME}", "!/x"]\n')
    assert rendered.definition.dropped == ("/tmp", "/etc/hosts", str(tmp_path))
    assert rendered.definition.mounts == ()
    assert rendered.warnings == ()
    assert from_json(rendered.definition.to_json()) == rendered.definition
    error = refusal(made, 'image = "img"\nmounts = ["!/dev"]\n')
    assert error.message == "the container cannot be without /dev"


def test_a_colon_in_a_variable_or_directory_is_part_of_the_path(made: Render, host: Host, tmp_path: Path) -> None:
    odd = tmp_path / "a:b=c d"
    odd.mkdir()
    host.variables["ODD"] = str(odd)
    text = 'image = "img"\nmounts = ["${ODD}", "${ODD}/.:/x:ro"]\n'
    assert made(text).definition.mounts == (
        Mount(str(odd), str(odd)),
        Mount(str(odd), "/x", "bind", ("ro",)),
    )


def test_a_source_that_is_a_link_to_nothing(made: Render, tmp_path: Path) -> None:
    (tmp_path / "gone").symlink_to("/nowhere-at-all")
    (tmp_path / "loop").symlink_to("loop")
    for mount, link in (("./gone:/x", "gone"), ("./gone/below:/x", "gone")):
        error = refusal(made, f'image = "img"\nmounts = ["{mount}"]\n')
        assert error.message == (
            f"the source of the mount, {tmp_path}/{mount[2:-3]}, leads nowhere: {tmp_path}/{link} is a symbolic "
            "link to /nowhere-at-all"
        )
        assert error.hint == "mend the link, or name what is meant"
    error = refusal(made, 'image = "img"\nmounts = ["./loop:/x"]\n')
    assert error.message.endswith("loop, cannot be used: Too many levels of symbolic links")
    assert error.hint == "a symbolic link leads to itself: see namei -l"


def test_an_image_of_apptainer(made: Render, tmp_path: Path) -> None:
    (tmp_path / "x.sif").touch()
    for reference in ("x.sif", "./x.sif", f"{tmp_path}/X.SIF"):
        error = refusal(made, f'image = "{reference}"\n')
        assert error.message == f"{reference} is an image of apptainer's, which cannot be used as it is"
        assert "mksquashfs DIR FILE.sqsh" in (error.hint or "")
        assert error.location is not None


@pytest.mark.parametrize(
    ("mount", "message", "hint"),
    [
        ("/tmp:/x:r", "unknown mount flag 'r'", "here it is 'ro'"),
        ("/tmp:/x:readonly", "unknown mount flag 'readonly'", "here it is 'ro'"),
        ("/tmp:/x:Z", "unknown mount flag 'Z'", "other engines need it, this one does not: leave it out"),
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


def test_names_of_devices_go_to_the_nodes(made: Render) -> None:
    rendered = made('image = "img"\ndevices = ["nvidia.com/gpu=all", "/dev/x"]\n')
    assert rendered.definition.devices == ("nvidia.com/gpu=all", "/dev/x")
    assert rendered.warnings == ()


def test_annotations_are_texts(made: Render) -> None:
    text = "com.hooks.ssh.enabled = true\ncom.hooks.ssh.port = 22\norg.opencontainers.x = 'y'\n"
    assert made(f'image = "img"\n[annotations]\n{text}').definition.annotations == {
        "com.hooks.ssh.enabled": "true",
        "com.hooks.ssh.port": "22",
        "org.opencontainers.x": "y",
    }


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
        **{(Kind.UNSET, name): "" for name in EnvironmentConfig().stay_outside},
    }


@pytest.mark.parametrize(
    ("text", "site", "inside"),
    [
        ('image = "img"', "outside", False),
        ('image = "img"', "inside", True),
        ('image = "img"\nscript = "inside"', "outside", True),
        ('image = "img"\nscript = "outside"', "inside", False),
        ('[env]\nA = "1"', "inside", False),
        ('base_environment = "./b.toml"\nscript = "outside"', "inside", False),
        ('base_environment = "./b.toml"', "outside", True),
    ],
)
def test_where_a_batch_script_runs(host: Host, tmp_path: Path, text: str, site: Any, inside: bool) -> None:
    (tmp_path / "b.toml").write_text('image = "img"\nscript = "inside"\n')
    (tmp_path / "x.toml").write_text(text + "\n")
    config = EnvironmentConfig(edf_path=(), script=site)
    rendered = render("./x.toml", host, config, lambda _: INFO)
    assert rendered.script_inside is inside
    # It is said in front of the definition, and not in it.
    assert b'"script"' not in rendered.definition.to_json()
