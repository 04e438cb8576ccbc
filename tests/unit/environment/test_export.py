"""The commands of other engines."""

from __future__ import annotations

import dataclasses

from piolet.environment import export
from piolet.environment.definition import Definition, Mount
from piolet.images.info import Image, ImageInfo

DIGEST = "sha256:" + "a" * 64
DEFINITION = Definition(
    "x.toml",
    image=Image("nvcr.io/nvidia/pytorch:24.05", "site", DIGEST),
    workdir="/w",
    workdir_given=True,
    writable=False,
    mounts=(
        Mount("/a", "/b", flags=("ro",)),
        Mount("", "/t", "tmpfs"),
        Mount("/c:d", "/e,f"),
        Mount("/x.sqsh", "/s", "sqsh"),
    ),
    set_env={"PATH": "/bin", "A": "1 2", "HF_TOKEN": "abc"},
)
INFO = ImageInfo(DEFINITION.image or Image("", "site"), env={"PATH": "/bin"})


def test_docker_and_podman() -> None:
    made = export.command("docker", DEFINITION, INFO, "/home/me", ["python", "x.py"])
    assert made.words == [
        *("docker", "run", "--rm", "--network=host", "--ipc=host", "--user=$(id -u):$(id -g)"),
        *("--volume=/home/me:/home/me", "--volume=/tmp:/tmp", "--volume=/a:/b:ro", "--tmpfs=/t"),
        '--mount=type=bind,source=/c:d,"target=/e,f"',
        *("--env=A=1 2", "--env=HF_TOKEN", "--workdir=/w", "--read-only", "--entrypoint="),
        *(f"nvcr.io/nvidia/pytorch@{DIGEST}", "python", "x.py"),
    ]
    assert not any("abc" in word for word in made.words)
    assert any("/x.sqsh" in sentence for sentence in made.lost)
    assert any("secrets" in sentence for sentence in made.lost)
    assert "--userns=keep-id" in export.command("podman", DEFINITION, INFO, "", []).words


def test_apptainer() -> None:
    made = export.command("apptainer", DEFINITION, INFO, "", ["sh"])
    assert made.words == [
        *("apptainer", "exec", "--no-mount=home,cwd,tmp", "--mount=type=bind,source=/tmp,destination=/tmp"),
        *("--mount=type=bind,source=/a,destination=/b,ro", '--mount=type=bind,source=/c:d,"destination=/e,f"'),
        *("--bind=/x.sqsh:/s:image-src=/", "--env=A=1 2", "--pwd=/w"),
        *(f"docker://nvcr.io/nvidia/pytorch@{DIGEST}", "sh"),
    ]
    assert (
        "--writable-tmpfs"
        in export.command("apptainer", dataclasses.replace(DEFINITION, writable=True), INFO, "", []).words
    )


def test_a_file_of_the_user_s() -> None:
    own = dataclasses.replace(DEFINITION, image=Image("/i.sqsh", "user", None, "/i.sqsh"), entrypoint=("/e",))
    assert export.command("apptainer", own, INFO, "", []).words[-1] == "/i.sqsh"
    assert export.command("apptainer", own, INFO, "", []).words[1] == "run"
    made = export.command("podman", own, INFO, "", [])
    assert "podman runs no SquashFS file: name the image that /i.sqsh was made from" in made.lost
    assert "--entrypoint=" not in made.words


def test_references() -> None:
    for reference, expected in (
        ("host:5000/a/b", f"host:5000/a/b@{DIGEST}"),
        ("host:5000/a/b:1", f"host:5000/a/b@{DIGEST}"),
        (f"a/b@{DIGEST}", f"a/b@{DIGEST}"),
    ):
        assert export._reference(reference, DIGEST) == expected
    assert export._reference("a/b:1", None) == "a/b:1"
