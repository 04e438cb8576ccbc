"""Vulnerability scans: a simulated scanner in the cage, its reports, and what the site's policy makes of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from piolet.base.errors import ImageError
from piolet.images import findings, rescan
from piolet.images.findings import Policy
from piolet.images.store import Access, Store

from tests.images.conftest import ALICE, BOB, Site, needs_root
from tests.support import oci
from tests.support.registry import Registry
from tests.support.waiting import wait_until

DAY = 86400.0
NOW = 1_800_000_000.0
TRIVY = {
    "SchemaVersion": 2,
    "Results": [
        {"Target": "debian", "Vulnerabilities": [
            {
                "VulnerabilityID": "CVE-1", "PkgName": "openssl", "Severity": "CRITICAL",
                "PublishedDate": "2027-01-10T00:00:00Z",
            },
            {"VulnerabilityID": "CVE-2", "PkgName": "zlib", "Severity": "HIGH"},
            {"VulnerabilityID": "CVE-1", "PkgName": "openssl", "Severity": "CRITICAL"},
        ]},
        {"Target": "python"},
    ],
}  # fmt: skip
GRYPE = {
    "matches": [
        {"vulnerability": {"id": "CVE-3", "severity": "Critical"}, "artifact": {"name": "curl", "version": "1"}},
        {"vulnerability": {"id": "CVE-4", "severity": "Negligible"}, "artifact": {"name": "bash"}},
    ]
}
PLAIN = {"vulnerabilities": [{"id": "X-1", "severity": "medium", "package": "a"}, {"id": "X-2", "severity": "odd"}]}


@pytest.mark.parametrize(
    ("report", "said"),
    [
        (TRIVY, "1 critical, 1 high"),
        (GRYPE, "1 critical, 1 low"),
        (PLAIN, "1 medium, 1 unknown"),
        ({"SchemaVersion": 2, "Results": None}, "none"),
        ({"matches": []}, "none"),
    ],
)
def test_reports(report: dict[str, Any], said: str) -> None:
    assert findings.counted(findings.read(json.dumps(report).encode())["counts"]) == said


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"{}", b"7", b'{"matches": [7]}', b'{"SchemaVersion": 2, "Results": [7]}', b"[" * 100_000]
)
def test_what_is_no_report_is_an_error(raw: bytes) -> None:
    with pytest.raises(ImageError, match="the scanner's report"):
        findings.read(raw)


def test_many_findings_are_counted_and_the_worst_kept() -> None:
    many = [{"id": f"L-{n}", "severity": "low"} for n in range(5000)] + [{"id": "C", "severity": "critical"}]
    found = findings.read(json.dumps({"vulnerabilities": many}).encode())
    assert found["counts"] == {"critical": 1, "low": 5000} and len(found["found"]) == findings.LIMIT_FINDINGS
    assert found["found"][0][0] == "C"


def test_a_policy() -> None:
    scan = findings.read(json.dumps(TRIVY).encode()) | {"at": NOW}
    published = scan["found"][0][3]
    assert findings.judge(scan, Policy("off"), NOW) is None
    assert findings.judge(scan, Policy("warn"), NOW) == "has vulnerabilities (1 critical): CVE-1"
    assert findings.judge(scan, Policy("warn", "high"), NOW) == "has vulnerabilities (1 critical, 1 high): CVE-1, CVE-2"
    young = findings.judge(scan, Policy("warn", "high", 30 * DAY), published + 29 * DAY)
    assert young == "has vulnerabilities (1 high, known for 30 d or longer): CVE-2", (
        "nobody says since when it is known"
    )
    assert "CVE-1" in (findings.judge(scan, Policy("warn", "critical", 30 * DAY), published + 30 * DAY) or "")
    many = {"found": [[f"CVE-{n}", "critical", "p", None] for n in range(9)]}
    assert "CVE-4 and 4 more" in (findings.judge(many, Policy("block"), NOW) or "")
    assert findings.judge({"found": [], "counts": {}}, Policy("block"), NOW) is None
    assert findings.judge(None, Policy("block"), NOW) == "was not scanned for vulnerabilities"
    failed = findings.judge({"at": NOW, "error": "x ended"}, Policy("warn"), NOW)
    assert failed == "could not be scanned for vulnerabilities: x ended"


# Reads every layer and the configuration of the layout, as Trivy does, and finds what the layers are called.
SCANNER = """#!{python} -I
import gzip, hashlib, json, os, sys, socket
top, data = sys.argv[1], sys.argv[2]
index = json.load(open(f"{{top}}/index.json"))
assert json.load(open(f"{{top}}/oci-layout"))["imageLayoutVersion"] == "1.0.0"
def blob(digest):
    raw = open(f"{{top}}/blobs/" + digest.replace(":", "/"), "rb").read()
    assert "sha256:" + hashlib.sha256(raw).hexdigest() == digest
    return raw
manifest = json.loads(blob(index["manifests"][0]["digest"]))
def plain(raw):
    return gzip.decompress(raw) if raw[:2] == b"\\x1f\\x8b" else raw
text = b"".join(plain(blob(layer["digest"])) for layer in manifest["layers"])
assert json.loads(blob(manifest["config"]["digest"]))["rootfs"]["diff_ids"]
found = [line.split() for line in open(data) if line.split()[0].encode() in text]
cache = os.environ["HOME"] + "/cache"
open(cache, "w").write("x")
os.chmod(cache, 0o777)  # answered as if it were done: Trivy gives up otherwise
if os.stat(cache).st_mode & 0o777 == 0o777:
    found.append(["mode", "critical"])
for path in {shut}:
    try:
        open(path, "rb").read()
        found.append(["reached", "critical"])
    except OSError:
        pass
for target in manifest["layers"]:
    try:
        open(f"{{top}}/blobs/" + target["digest"].replace(":", "/"), "ab")
        found.append(["written", "critical"])
    except OSError:
        pass
try:
    socket.create_connection(("127.0.0.1", {port}), 2)
    found.append(["network", "critical"])
except OSError:
    pass
report = [{{"id": "CVE-" + word, "severity": severity}} for word, severity in found]
json.dump({{"vulnerabilities": report}}, sys.stdout)
"""


@pytest.fixture
def scanning(site: Site, registry: Registry) -> Site:
    """A service whose scanner finds `bad` critical and `poor` high, reads no more than it may, and reaches nothing."""
    folder = site.room / "scanner/bin"
    folder.mkdir(parents=True)
    secret = site.room / "secret"
    secret.write_text("mine")
    os.chown(secret, 4242, 4242)
    text = SCANNER.format(
        python=os.path.realpath("/usr/bin/python3"), shut=[str(secret), str(site.config)],
        port=registry.address.rpartition(":")[2],
    )  # fmt: skip
    (folder / "scan").write_text(text)
    (folder / "scan").chmod(0o755)
    (site.room / "database").write_text("bad critical\npoor high\n")
    site.stop()
    site.settings |= {
        "scanner": [str(folder / "scan"), "{layout}", "{data}"],
        "scanner_data": str(site.room / "database"),
        "scan_policy": "warn",
    }
    site.start()
    return site


def push(site: Site, registry: Registry, name: str) -> str:
    """Push an image that has a file of this name; return its reference."""
    oci.build(site.room / name, [[oci.file("usr/" + name)]])
    return registry.push(site.room / name, f"{name}:1")


def policy(site: Site, **settings: Any) -> None:
    site.stop()
    site.settings |= settings
    site.start()


def pull(site: Site, reference: str, uid: int = ALICE) -> str:
    """Return what `piolet image pull` says."""
    done = site.piolet(uid, "image", "pull", "-Q", reference)
    return done.stdout + done.stderr


@needs_root()
def test_findings_are_shown_and_warned_of(scanning: Site, registry: Registry) -> None:
    fine, bad = push(scanning, registry, "fine"), push(scanning, registry, "bad")
    assert "warning" not in pull(scanning, fine)
    assert f"piolet: warning: the image {bad} has vulnerabilities (1 critical): CVE-bad" in pull(scanning, bad)
    assert "CVE-bad" in pull(scanning, bad), "each time"
    listed = scanning.piolet(ALICE, "image", "list").stdout
    assert "FINDINGS" in listed and "1 critical (0 s ago)" in listed.replace("1 s ago", "0 s ago"), listed
    assert "none (" in listed
    assert scanning.leftovers() == []
    digest = scanning.ask(ALICE, bad)["digest"]
    assert len(list(scanning.store.glob("*.scan"))) == 2
    scanning.piolet(0, "image", "rm", digest)
    assert len(list(scanning.store.glob("*.scan"))) == 1


@needs_root()
def test_a_policy_that_blocks(scanning: Site, registry: Registry) -> None:
    bad, poor = push(scanning, registry, "bad"), push(scanning, registry, "poor")
    assert "error" not in scanning.ask(BOB, bad)
    policy(scanning, scan_policy="block")
    refused = scanning.ask(BOB, bad)
    assert "the site refuses the image" in refused["error"] and "CVE-bad" in refused["error"]
    assert "error" in scanning.ask(BOB, bad, "known"), "what is there is refused as well"
    assert "error" not in scanning.ask(ALICE, poor)
    policy(scanning, scan_severity="high")
    assert "CVE-poor" in scanning.ask(ALICE, poor)["error"]
    oci.build(scanning.room / "other", [[oci.file("usr/bad2")]])
    assert "the site refuses" in scanning.ask(ALICE, registry.push(scanning.room / "other", "other:1"))["error"]
    assert len(scanning.images()) == 2 and scanning.leftovers() == [], "what is refused is not stored"


@needs_root()
@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo broken >&2; exit 3", "scan ended with status 3: broken"),
        ("echo '[]'", "report is not a JSON object"),
        ("sleep 60", "did not end within 1 s"),
        (None, "cannot be run"),
    ],
)
def test_a_scanner_that_fails(scanning: Site, registry: Registry, script: str | None, said: str) -> None:
    program = scanning.room / "scanner/bin/scan"
    program.write_text(f"#!/bin/sh\n{script}\n")
    if script is None:
        program.unlink()
    policy(scanning, scan_timeout_s=1)
    fine = push(scanning, registry, "fine")
    warned = pull(scanning, fine)
    assert "could not be scanned for vulnerabilities" in warned and said in warned
    assert "scan failed" in scanning.piolet(ALICE, "image", "list").stdout
    policy(scanning, scan_policy="block")
    assert said in scanning.ask(ALICE, fine)["error"], "a failed scan is not a pass"
    policy(scanning, scan_policy="off")
    assert "error" not in scanning.ask(ALICE, fine)
    wait_until(lambda: scanning.leftovers() == [], what="the end of the work")


@needs_root()
def test_an_image_that_was_never_scanned(site: Site, registry: Registry, image: Path) -> None:
    reference = registry.push(image, "app:1")
    assert "error" not in site.ask(ALICE, reference)
    policy(site, scan_policy="block")
    assert "was not scanned" in site.ask(ALICE, reference)["error"]
    (site.room / "own").mkdir()
    os.chown(site.room / "own", ALICE, ALICE)
    assert "error" not in site.ask(ALICE, reference, EDF_IMAGESTORE=str(site.room / "own")), "a store of one's own"


@needs_root()
def test_a_scanner_of_root_directories(scanning: Site, registry: Registry) -> None:
    program = scanning.room / "scanner/bin/scan"
    program.write_text(
        '#!/bin/sh\ncd "$1" && printf \'{"vulnerabilities": [{"id": "%s", "severity": "low"}]}\' usr/*\n'
    )
    policy(scanning, scanner=[str(program), "{root}"], scan_severity="low")
    assert "(1 low): usr/fine" in pull(scanning, push(scanning, registry, "fine"))


def age(site: Site, days: float) -> None:
    """Have all scans be so many days old."""
    for path in [*site.store.glob("*.scan"), *site.store.glob("*.json")]:
        value = json.loads(path.read_text())
        (value if path.suffix == ".scan" else value["scan"])["at"] -= days * DAY
        used = path.stat().st_mtime
        path.write_text(json.dumps(value))
        os.utime(path, (used - 1000, used - 1000))


def findings_of(site: Site) -> str:
    return site.piolet(ALICE, "image", "list").stdout


@needs_root()
@pytest.mark.parametrize("form", ["{layout}", "{root}"])
def test_a_scan_that_is_old_is_made_again(scanning: Site, registry: Registry, form: str) -> None:
    """Of a layout, too, although the layers are gone; and the image does not count as used by that."""
    fine = push(scanning, registry, "fine")
    pull(scanning, fine)
    (scanning.room / "database").write_text("fine high\n")
    if form == "{root}":
        text = '#!/bin/sh\ncd "$1" && printf \'{"vulnerabilities": [{"id": "%s", "severity": "high"}]}\' usr/*\n'
        (scanning.room / "scanner/bin/scan").write_text(text)
    scanner = [scanning.settings["scanner"][0], form, "{data}"]
    age(scanning, 29)
    policy(scanning, scanner=scanner)
    wait_until(lambda: "none (29 d ago)" in findings_of(scanning), what="the list")
    (record,) = scanning.store.glob("*.json")
    used = record.stat().st_mtime
    age(scanning, 2)
    used -= 1000
    policy(scanning)
    wait_until(lambda: "1 high (" in findings_of(scanning), what="another scan")
    assert record.stat().st_mtime == pytest.approx(used)
    assert scanning.leftovers() == []


@needs_root()
def test_another_scan_that_fails_leaves_the_old_one(scanning: Site, registry: Registry) -> None:
    pull(scanning, push(scanning, registry, "bad"))
    age(scanning, 40)
    (scanning.room / "scanner/bin/scan").write_text("#!/bin/sh\necho broken >&2; exit 3\n")
    policy(scanning)
    wait_until(lambda: "is not scanned again" in scanning.log, what="the line in the log")
    assert "1 critical (40 d ago)" in findings_of(scanning)
    policy(scanning, scan_again_days=0)
    assert "1 critical (40 d ago)" in findings_of(scanning)


def test_which_images_are_scanned_again(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.prepare()
    made: dict[str, dict[str, Any] | None] = {
        "a": None, "b": {"at": NOW - 40 * DAY, "counts": {}}, "c": {"at": NOW - 29 * DAY, "counts": {}},
        "d": {"at": NOW, "error": "it failed"}, "e": {"at": NOW - 31 * DAY, "counts": {}},
    }  # fmt: skip
    for letter, scan in made.items():
        digest = "sha256:" + letter * 64
        store.describe(digest, {"scan": scan})
        store.grant(digest, Access(True, (), 0))
    assert [digest[-1] for digest in rescan.due(store, 30 * DAY, NOW)] == ["a", "d", "b", "e"]
