"""The user's own store (EDF_IMAGESTORE), files, imports, and the command line."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.images.conftest import ALICE, BOB, PYTHON, Site, environment, finish, needs_root
from tests.support import oci
from tests.support.registry import Registry

TITLES = ["REFERENCE", "DIGEST", "SIZE", "UNUSED", "FOR", "SIGNED", "ACCESS"]


@pytest.fixture
def own(room: Path) -> dict[str, str]:
    """A user's store, as the variable that names it."""
    (room / "home").mkdir()
    if os.geteuid() == 0:
        os.chown(room / "home", ALICE, ALICE)
    return {"EDF_IMAGESTORE": str(room / "home/images"), "HOME": str(room / "home")}


@pytest.fixture
def alone(room: Path) -> Site:
    """A site whose image service does not run."""
    made = Site(room)
    made.write_config()
    return made


def test_no_service_is_needed(alone: Site, own: dict[str, str], registry: Registry, image: Path) -> None:
    reference = registry.push(image, "app:1")
    looked = alone.ask(ALICE, reference, "look", **own)
    pulled = alone.ask(ALICE, reference, **own)
    assert "error" not in pulled, pulled
    assert pulled["path"] == looked["path"] and Path(pulled["path"]).is_file()
    assert pulled["path"] == f"{own['EDF_IMAGESTORE']}/{pulled['digest'].replace(':', '-')}.sqsh"
    registry.requests.clear()
    assert alone.ask(ALICE, reference, **own)["digest"] == pulled["digest"]
    assert registry.requests == []
    store = Path(own["EDF_IMAGESTORE"])
    assert list((store / "tmp").iterdir()) == [] and list((store / "leases").iterdir()) == []


def test_two_processes_of_one_user_convert_once(
    alone: Site, own: dict[str, str], registry: Registry, room: Path, counted: Callable[[], int]
) -> None:
    alone.settings["mksquashfs"] = str(room / "mksquashfs")
    alone.write_config()
    oci.build(room / "i", [[oci.file(f"f{n}", os.urandom(1 << 20)) for n in range(8)]])
    reference = registry.push(room / "i", "app:1")
    clients = [alone.begin(ALICE, reference, **own) for _ in range(4)]
    answers = [finish(client) for client in clients]
    assert len({answer.get("digest") for answer in answers}) == 1 and "error" not in answers[0], answers
    assert counted() == 1


def test_a_store_that_cannot_be(alone: Site, registry: Registry, image: Path) -> None:
    reference = registry.push(image, "app:1")
    assert "relative path" in alone.ask(ALICE, reference, EDF_IMAGESTORE="images")["error"]
    for place in ("/proc/images", "/dev/null/x"):
        refused = alone.ask(ALICE, reference, EDF_IMAGESTORE=place)
        assert "image store" in refused["error"] and "cannot be used" in refused["error"], refused


def test_sqsh_files(alone: Site, room: Path) -> None:
    (room / "files").mkdir(mode=0o755)
    good = room / "files/a.sqsh"
    (room / "files/content").mkdir()
    subprocess.run(["mksquashfs", room / "files/content", good, "-quiet", "-no-progress"], check=True)
    found = alone.ask(ALICE, str(good))
    assert found["digest"] is None and found["path"] == str(good) and found["watch"] == [str(good)]
    (room / "files/text.sqsh").write_text("hello")
    os.mkfifo(room / "files/fifo.sqsh")
    (room / "files/shut.sqsh").touch(mode=0o000)
    (room / "files/link.sqsh").symlink_to("a.sqsh")
    assert "not a SquashFS" in alone.ask(ALICE, str(room / "files/text.sqsh"))["error"]
    assert "not a regular file" in alone.ask(ALICE, str(room / "files/fifo.sqsh"))["error"]
    assert "not a regular file" in alone.ask(ALICE, str(room / "files") + "/")["error"]
    assert "No such file" in alone.ask(ALICE, "/nowhere.sqsh")["error"]
    assert "error" not in alone.ask(ALICE, str(room / "files/link.sqsh"))
    if os.geteuid() == 0:
        assert "Permission denied" in alone.ask(ALICE, str(room / "files/shut.sqsh"))["error"]


@pytest.mark.parametrize("form", ["oci-archive", "docker-archive", "oci"])
@needs_root()
def test_imports(site: Site, room: Path, image: Path, form: str) -> None:
    oci.archive(image, room / "Archive One.tar", form)
    if form != "oci":
        shutil.chown(room / "Archive One.tar", ALICE)
        (room / "Archive One.tar").chmod(0o600)
    made = site.piolet(ALICE, "image", "import", f"{form}:{room}/Archive One.tar", "--name", "mine:2")
    assert made.returncode == 0 and made.stdout.startswith("localhost/mine:2 sha256:"), made.stderr
    answer = site.ask(ALICE, "localhost/mine:2")
    assert answer["env"]["PATH"] == "/bin" and site.leftovers() == []
    # The kind is seen by itself, the name is made from the file's, and what is there is not converted again.
    again = site.piolet(ALICE, "image", "import", str(room / "Archive One.tar"))
    assert again.stdout == f"localhost/archive-one:latest {answer['digest']}\n", again.stderr
    assert len(site.images()) == 1
    assert "there is no image" in site.ask(BOB, "localhost/mine:2")["error"]
    listed = site.piolet(ALICE, "image", "list").stdout
    assert "localhost/mine:2" in listed and "localhost/archive-one:latest" in listed and "1 user" in listed


def test_imports_that_fail(site: Site, room: Path) -> None:
    (room / "text.tar").write_text("hello" * 1000)
    with tarfile.open(room / "other.tar", "w") as archive:
        archive.add(__file__, "a.py")
    shutil.copy(room / "other.tar", room / "x.sqsh")
    for words, said in (
        ((str(room / "text.tar"),), "it is not a tar archive"),
        ((str(room / "other.tar"),), "neither an OCI nor a docker archive"),
        ((str(room / "none.tar"),), "No such file"),
        ((str(room / "x.sqsh"),), "only what Piolet has written itself"),
        ((f"oci:{room}",), "not an OCI layout"),
        ((f"oci-archive:{room}/other.tar",), "cannot import localhost/other:latest: it is no OCI archive"),
        ((f"oci-archive:{room}/other.tar", "--name", "UP"), "malformed name"),
        ((f"oci-archive:{room}/other.tar", "--name", "a@sha256:" + "0" * 64), "has a digest"),
    ):
        refused = site.piolet(ALICE, "image", "import", *words)
        assert refused.returncode == 1 and said in refused.stderr, (words, refused.stderr)
        assert "Traceback" not in refused.stderr and "/tmp/" + "var/store" not in refused.stderr
    assert site.leftovers() == [] and site.images() == []


def test_the_command_line(site: Site, registry: Registry, image: Path, room: Path) -> None:
    reference = registry.push(image, "app:1")
    assert site.piolet(ALICE, "image", "list").stdout.split() == TITLES
    pulled = site.piolet(ALICE, "image", "pull", reference)
    assert pulled.returncode == 0 and pulled.stdout.startswith(f"{reference} sha256:")
    assert f"converting {reference}" in pulled.stderr and "\r" not in pulled.stderr
    again = site.piolet(ALICE, "image", "pull", reference)
    assert again.stdout == pulled.stdout and again.stderr == ""
    row = site.piolet(ALICE, "image", "list").stdout.splitlines()[1]
    assert row.startswith(reference) and "public" in row and "4.0 KiB" in row
    assert site.piolet(ALICE, "image", "pull", "--refresh", reference).stdout == pulled.stdout
    for words, status, said in (
        (("pull", "/a/b.sqsh"), 2, "needs no pull"),
        (("pull", "Bad Name"), 1, "white space"),
        (("prune", "--older-than", "soon"), 2, "not an age"),
        (("rm", "nothing:1"), 1, "yours to see"),
        (("rm", "sha256:abc"), 1, "at least 8"),
        (("rm", "sha256:00000000"), 1, "no image with a digest"),
        ((), 2, "ACTION"),
    ):
        refused = site.piolet(ALICE, "image", *words)
        assert (refused.returncode, said in refused.stderr) == (status, True), refused.stderr
    assert "removed " + reference in site.piolet(ALICE, "image", "rm", reference).stdout


def test_progress_on_a_terminal(site: Site, registry: Registry, image: Path) -> None:
    reference = registry.push(image, "app:1")
    controller, terminal = pty.openpty()
    code = (
        "from piolet.site import config; from pathlib import Path; from piolet.cli.progress import progress\n"
        "from piolet.images import client\n"
        f"settings = config.load(Path({str(site.config)!r})).images\n"
        f"with progress() as show: client.find({reference!r}, settings, 'pull', show)"
    )
    subprocess.run([PYTHON, "-c", code], env=environment(), stderr=terminal, check=True, cwd="/")
    os.close(terminal)
    shown = os.read(controller, 10_000).decode()
    os.close(controller)
    assert shown.startswith("\r\x1b[K") and f"\r\x1b[Kconverting {reference}" in shown
    assert shown.endswith("\r\x1b[K") and "\n" not in shown


@needs_root()
def test_the_own_store_by_command_line(alone: Site, own: dict[str, str], registry: Registry, image: Path) -> None:
    reference = registry.push(image, "app:1")
    assert alone.piolet(ALICE, "image", "pull", reference, **own).returncode == 0
    assert reference in alone.piolet(ALICE, "image", "list", **own).stdout
    assert "removed 1 images" in alone.piolet(ALICE, "image", "prune", "--older-than", "0s", **own).stdout
    oci.archive(image, alone.room / "a.tar")
    brought = alone.piolet(ALICE, "image", "import", str(alone.room / "a.tar"), **own)
    assert brought.stdout.startswith("localhost/a:latest"), brought.stderr
    assert "removed localhost/a" in alone.piolet(ALICE, "image", "rm", "localhost/a", **own).stdout
    assert list(Path(own["EDF_IMAGESTORE"]).glob("*.sqsh")) == []


@needs_root()
def test_a_store_of_another_user_is_not_believed(
    alone: Site, own: dict[str, str], registry: Registry, image: Path
) -> None:
    """Not even where it has a reference for who names it."""
    reference = registry.push(image, "app:1")
    assert "error" not in alone.ask(ALICE, reference, **own)
    store = Path(own["EDF_IMAGESTORE"])
    (store / "refs" / str(ALICE)).rename(store / "refs" / str(BOB))
    for path in (store.parent, *store.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    for access in store.glob("*.access"):
        access.write_text(access.read_text().replace(str(ALICE), str(BOB)))
    assert f"belongs to uid {ALICE}" in alone.ask(BOB, reference, **own)["error"]
