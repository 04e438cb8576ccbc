"""What one conversion may take: memory, time, and unpacked bytes; and that one user's requests hold up nobody."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
from piolet.base import units
from piolet.base.errors import ImageError
from piolet.images import limits, service
from piolet.images.conversion import Requester
from piolet.images.importer import Importer
from piolet.images.listening import listen
from piolet.images.quota import Held, OverQuota, Quota
from piolet.images.settings import ImagesConfig
from piolet.images.store import Access, Store
from piolet.images.tarstream import Member
from piolet.images.tree import Tree

from tests.support import oci
from tests.unit.images.test_tree import merged as merge

GIB = 1 << 30
STEP = "/".join(["d" * 250] * 15)
MERGE = """
import re, sys
from piolet.images import limits, squash
from piolet.images import manifest as documents
from piolet.base.errors import ImageError
limits.bound_memory(int(sys.argv[2]))
manifest = documents.parse_manifest(open(sys.argv[1] + "/manifest.json", "rb").read(), "test")
config = documents.parse_config(open(f"{sys.argv[1]}/{manifest.config.hex}", "rb").read(), "test", sys.argv[3])
layers = squash.layers_of(manifest, config, sys.argv[1])
try:
    tree = squash.merge(layers, config, lambda _: None)
    sys.stdout.write(f"{sum(1 for _ in tree.directories())} {max(len(inode.path) for inode in tree.inodes())}")
except (ImageError, MemoryError) as error:
    sys.stdout.write(f"{type(error).__name__}: {error}")
print()
print(int(re.search("VmHWM:\\\\s+([0-9]+)", open("/proc/self/status").read())[1]) >> 10)
"""


def member(name: str, kind: str = "file", target: str = "") -> Member:
    return Member(name.encode(), kind, 0o644, 1_600_000_000, 0, target.encode(), 0)


def deep(path: Path, steps: int, files: int) -> int:
    """Write an image with `files` files in the deepest of directories that only links can reach; return its bytes."""
    entries, at = [], ""
    for step in range(steps):
        entries += [oci.folder(f"{at}{STEP}"), oci.symlink(f"l{step}", f"{at}{STEP}")]
        at = f"l{step}/"
    entries += [oci.file(f"{at}{number}") for number in range(files)]
    packed = oci.pack(oci.tar(entries, tarfile.GNU_FORMAT))
    oci.build(path, [packed])
    return len(packed.data)


def merged(path: Path, mebibytes: int) -> tuple[str, int]:
    """Merge an image in a process of its own with so much memory; return what it said, and the MiB that it took."""
    done = subprocess.run(
        [sys.executable, "-c", MERGE, str(path), str(mebibytes), oci.ARCHITECTURE],
        capture_output=True,
        text=True,
        check=True,
    )
    text, peak = done.stdout.splitlines()
    return text, int(peak)


def test_deep_directories_cost_no_memory(tmp_path: Path) -> None:
    """The attack: with full paths, 10,000 files 130 KiB deep took 1.3 GB."""
    assert deep(tmp_path / "image", 36, 10_000) < 100_000
    text, peak = merged(tmp_path / "image", 100)
    assert "it has a path of more than 4095 bytes, which ends in 'ddd" in text and "layer 1 of 1" in text
    assert peak < 100


def test_the_deepest_path_that_can_be_opened_is_taken(tmp_path: Path) -> None:
    deep(tmp_path / "image", 1, 30_000)
    text, peak = merged(tmp_path / "image", 100)
    assert text == "15 3770" and peak < 100, (text, peak)  # with full paths: 113 MB of them


def test_too_little_memory_is_an_error_and_no_killed_service(tmp_path: Path) -> None:
    oci.build(tmp_path / "image", [[oci.file(f"f{number}") for number in range(100_000)]])
    text, peak = merged(tmp_path / "image", 30)
    assert text.startswith("MemoryError") and peak < 100


@pytest.mark.parametrize("shape", ["files", "directories", "links", "symlinks", "hidden"])
def test_nodes_take_no_more_than_what_is_counted(shape: str) -> None:
    code = f"""
import re
from piolet.images.tree import Tree
from tests.unit.images.test_bounds import fill
peak = lambda: int(re.search("VmHWM:\\\\s+([0-9]+)", open("/proc/self/status").read())[1])  # of this program alone
before = peak()
tree = Tree()
fill(tree, {shape!r}, 100_000)
nodes = (list(tree.directories()), list(tree.inodes()))
print((peak() - before) * 1024, tree.memory)
"""
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    real, counted = map(int, done.stdout.split())
    # Directories were also listed here with their whole paths, which nobody does; they are short.
    assert counted / 3 < real < counted, "counted too little is no bound; far too much refuses what could be done"


def fill(tree: Tree, shape: str, count: int) -> None:
    """Add `count` nodes of one shape."""
    tree.begin_layer(1)
    tree.add(member("target"), 0)
    for number in range(count):
        ordinal = 1000 + number
        if shape in ("files", "hidden"):
            made = member(f"d{number // 50}/{number}")
        elif shape == "directories":
            made = member(f"{number}", "dir")
        elif shape == "links":
            made = member(f"l{number}", "link", "target")
        else:
            made = member(f"l{number}", "symlink", f"target{number}")
        tree.add(made, ordinal)
    if shape == "hidden":
        tree.begin_layer(2)
        tree.add(member(".wh..wh..opq"), 0)


def test_the_memory_of_names_is_bounded() -> None:
    tree = Tree(memory_limit=1 << 20)
    with pytest.raises(ImageError, match="so many files that their names take more than 1 MiB of memory") as refused:
        fill(tree, "files", 100_000)
    assert "[images] memory" in (refused.value.hint or "") and tree.memory < 2 << 20


def test_whiteouts_through_links_are_counted() -> None:
    """Each would otherwise leave a trace of its own of a name that leads to the same file."""
    tree = Tree(memory_limit=1 << 20)
    tree.begin_layer(1)
    tree.add(member("a/b/keep"), 0)
    tree.add(member("a/self", "symlink", "."), 1)
    with pytest.raises(ImageError, match="more than 1 MiB of memory"):
        for number in range(100_000):
            tree.begin_layer(2 * number + 2)
            tree.add(member(f"a/b/{number}"), 0)
            tree.begin_layer(2 * number + 3)
            tree.add(member("a/" + "self/" * 38 + f"b/.wh.{number}"), 0)


def test_limits_follow_the_size() -> None:
    assert limits.unpacked_limit(10_000, 50) == GIB, "an image of zeros that is small is no attack"
    assert limits.unpacked_limit(GIB, 50) == 50 * GIB
    assert limits.unpacked_limit(100 * GIB, 50) == limits.UNPACKED_MOST
    assert limits.seconds(0, 2) == 120 and limits.seconds(GIB, 2) == 120 + 512
    assert 2 <= limits.conversions_at_once(6144) <= 8


@pytest.mark.parametrize(("cores", "memory", "places"), [(2, 6144, 2), (8, 256, 4), (64, 256, 8), (64, 10**9, 2)])
def test_places_follow_the_machine(monkeypatch: pytest.MonkeyPatch, cores: int, memory: int, places: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PHYS_PAGES": 1 << 23, "SC_PAGE_SIZE": 4096}[name])  # 32 GiB
    assert limits.conversions_at_once(memory) == places


def test_time_follows_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PATIENCE_S", 0.0)
    monkeypatch.setattr(limits, "_CHECK_S", 0.05)
    reading, writing = os.pipe()
    said = r"given up after 0 s, in which 0 MiB of it were read"
    with pytest.raises(limits.TooSlow, match=said) as refused, limits.bounded_time(lambda: 1, 1):
        os.read(reading, 1)  # as whatever waits for a program
    assert "conversion_rate" in (refused.value.hint or "")
    with limits.bounded_time(lambda: GIB, 1):
        time.sleep(0.2)  # several looks at the clock
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize(
    ("text", "count"),
    [("500GiB", 500 * GIB), ("2 TB", 2 * 10**12), ("1.5kib", 1536), ("10B", 10), ("5", None), ("x GiB", None),
     ("1e3GiB", None), ("-1GiB", None), ("", None), ("1 GiBs", None)],
)  # fmt: skip
def test_sizes(text: str, count: int | None) -> None:
    assert units.bytes_of(text) == count


def test_a_quota_is_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path / "store"))
    store.prepare()
    for number in range(6):
        sqsh = tmp_path / "store/tmp/new"
        sqsh.write_bytes(b"x" * 100)
        access = Access(number % 2 == 0, (4301,), 4301 if number < 4 else 4302, given_up=number == 0)
        store.publish(f"sha256:{number:064x}", str(sqsh), {}, access)
    quota = Quota(ImagesConfig(quota="350B", quota_images=0), store)
    assert quota.held(4301) == Held(3, 300, 1, 100)
    quota.check(4301, "app", 50)
    for size, text in ((51, "take 300 B of 350 B, the quota"), (400, "there is no room for app, of 400 B")):
        with pytest.raises(ImageError, match=text):
            quota.check(4301, "app", size)
    for uid in (0, os.geteuid()):
        quota.check(uid, "app", GIB)
    read: list[str] = []
    access_of = Store.access

    def counted(keeper: Store, digest: str) -> Access | None:
        read.append(digest)
        return access_of(keeper, digest)

    monkeypatch.setattr(Store, "access", counted)
    store.remove(f"sha256:{1:064x}")
    assert quota.held(4301) == Held(2, 200, 1, 100) and read == []
    store.grant(f"sha256:{2:064x}", Access(True, (), 4302))
    assert quota.held(4302) == Held(3, 300) and len(read) == 1


def test_what_is_given_up_is_bounded_too(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    store.prepare()
    for number in range(3):
        sqsh = tmp_path / "store/tmp/new"
        sqsh.write_bytes(b"x" * 100)
        store.publish(f"sha256:{number:064x}", str(sqsh), {}, Access(True, (), 4301, given_up=True))
    with pytest.raises(ImageError, match=r"you pulled and gave up 300 B that are public and still in the store"):
        Quota(ImagesConfig(quota="199B"), store).check(4301, "app", 100)
    Quota(ImagesConfig(quota="200B"), store).check(4301, "app", 100)
    with pytest.raises(ImageError, match="gave up 3 images"):
        Quota(ImagesConfig(quota="", quota_images=1), store).check(4301, "app", 100)


def test_nobody_is_refused_for_the_quota_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bob joins Alice's conversion, which her quota ends when its size is known; he gets one of his own."""
    importer = Importer(ImagesConfig(), str(tmp_path / "store"))
    importer.store.prepare()
    digest = f"sha256:{1:064x}"
    joined = asyncio.Event()

    async def look(*_: Any, **__: Any) -> dict[str, Any]:
        return {"digest": digest, "size": 1, "layers": 1, "config": None}

    async def copy(*_: Any, **__: Any) -> dict[str, Any]:
        return {"config": {}}

    async def squash(_r: object, _d: object, _c: object, _s: object, who: Requester, _t: object) -> None:
        if who.uid == 4301:
            await joined.wait()
            raise OverQuota(4301, "you have too much")
        sqsh = tmp_path / "store/tmp/new"
        sqsh.write_bytes(b"hsqs")
        importer.store.publish(digest, str(sqsh), {"config": {}}, Access(True, (who.uid,), who.uid))

    for name, made in (("_look", look), ("_copy", copy), ("_squash", squash)):
        monkeypatch.setattr(importer, name, made)

    async def main() -> list[object]:
        async with importer.open():
            pulls = [importer.resolve(Requester(uid), "quay.io/app:1", "pull", print) for uid in (4301, 4302)]
            alice = asyncio.create_task(pulls[0])
            while not any(conversion.begun for conversion in importer._running.values()):
                await asyncio.sleep(0)
            bob = asyncio.create_task(pulls[1])
            while not any(len(conversion.listeners) == 2 for conversion in importer._running.values()):
                await asyncio.sleep(0)
            joined.set()
            return list(await asyncio.gather(alice, bob, return_exceptions=True))

    refused, answer = asyncio.run(main())
    assert isinstance(refused, OverQuota) and isinstance(answer, dict) and answer["digest"] == digest


def test_a_fault_of_the_worker_forges_no_line_of_the_log(tmp_path: Path) -> None:
    """What it was given is checked before; here it is not there at all."""
    code = "import piolet.images.worker as w, sys; sys.exit(w.main())"
    hostile = "x\npiolet-imaged: forged\x1b[2J"
    job = {"kind": hostile, "what": hostile, "parent": os.getpid()}
    done = subprocess.run([sys.executable, "-c", code], input=json.dumps(job), capture_output=True, text=True)
    first, *rest = done.stderr.splitlines()
    assert first.endswith("importing x\\npiolet-imaged: forged\\x1b[2J") and done.returncode == 1
    assert rest and all(line.startswith("  ") for line in rest) and "\x1b" not in done.stderr


def test_who_connects_all_the_time_leaves_turns_to_others(tmp_path: Path) -> None:
    importer = Importer(ImagesConfig(), str(tmp_path / "store"))

    async def main() -> int:
        path = str(tmp_path / "s.sock")
        with listen(path) as listening, contextlib.ExitStack() as held:
            for _ in range(100):
                held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)).connect(path)
            answering = service.Service(importer)
            serving = asyncio.create_task(answering.serve(listening))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            accepted = len(answering._tasks)
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            return accepted

    assert asyncio.run(main()) < 5


def test_a_busy_service_is_not_taken_for_a_dead_one(tmp_path: Path) -> None:
    path = str(tmp_path / "s.sock")
    with listen(path, 1), contextlib.ExitStack() as held:
        with pytest.raises(BlockingIOError):
            for _ in range(10):
                waiting = held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
                waiting.setblocking(False)
                waiting.connect(path)
        with pytest.raises(ImageError, match=r"listens at .* already"):
            listen(path)
    with listen(path):
        pass  # its process has gone


def test_an_unpacked_stream_is_charged_for_holes(tmp_path: Path) -> None:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("hole")
        info.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(4 * GIB), "GNU.sparse.name": "hole"}
        archive.addfile(info)
    with pytest.raises(ImageError, match=r"more than 1\.0 GiB of unpacked content, the limit") as refused:
        merge(tmp_path / "x", [raw.getvalue()], limit=GIB)
    assert "holes of sparse files count" in (refused.value.hint or "")
