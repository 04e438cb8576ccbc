"""The real Trivy in the cage, with a data base of one made-up finding; tools/bootstrap.sh trivy fetches it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.images.conftest import ALICE, Site, needs_root
from tests.support import oci, trivydb
from tests.support.registry import Registry
from tests.support.waiting import wait_until

TRIVY = Path(__file__).resolve().parents[2] / "build/trivy/trivy"
pytestmark = [
    needs_root(),
    pytest.mark.skipif(not TRIVY.exists(), reason="not there: Trivy (tools/bootstrap.sh trivy)"),
]
# Trivy opens its data base for writing, so it needs a copy: docs/images.md has these words.
WORDS = (
    'cp -r "$1/db" "$HOME/" && exec "$0" {} --cache-dir "$HOME" --cache-backend memory --quiet --format json '
    '--scanners vuln --skip-db-update --skip-java-db-update --offline-scan {} "$2"'
)
STATUS = """Package: openssl
Status: install ok installed
Architecture: amd64
Maintainer: A <a@example.org>
Version: {}
Description: x

"""
RELEASE = b'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian GNU/Linux 12"\n'


def push(site: Site, registry: Registry, name: str, version: str) -> str:
    """Push an image that says that it is Debian with openssl of this version, in two layers."""
    first = [oci.file("etc/os-release", RELEASE), oci.file("etc/debian_version", b"12.5\n")]
    second = [oci.file("var/lib/dpkg/status", STATUS.format(version).encode())]
    oci.build(site.room / name, [first, second])
    return registry.push(site.room / name, f"{name}:1")


@pytest.fixture(params=[("image", "--input", "{layout}"), ("rootfs", "", "{root}")], ids=["layout", "root"])
def scanning(site: Site, request: pytest.FixtureRequest) -> Site:
    kind, option, place = request.param
    trivydb.write(site.room / "data")
    shutil.copy(TRIVY, site.room / "data/trivy")
    (site.room / "data/trivy").chmod(0o755)
    site.stop()
    site.settings |= {
        "scanner": ["/bin/sh", "-c", WORDS.format(kind, option), "{data}/trivy", "{data}", place],
        "scanner_data": str(site.room / "data"),
        "scan_policy": "block",
    }
    return site


def test_it_finds_what_its_data_base_knows(scanning: Site, registry: Registry) -> None:
    scanning.start()
    fine, bad = push(scanning, registry, "fine", "3.0.99-1"), push(scanning, registry, "bad", "3.0.11-1")
    pulled = scanning.ask(ALICE, fine)
    assert "error" not in pulled, pulled["error"]
    refused = scanning.ask(ALICE, bad)
    assert f"has vulnerabilities (1 critical): {trivydb.FINDING}" in refused.get("error", ""), refused
    (scan,) = scanning.store.glob("*.scan")
    assert json.loads(scan.read_text())["counts"] == {}
    assert scanning.leftovers() == []


def test_it_finds_it_again_where_the_layers_are_gone(scanning: Site, registry: Registry) -> None:
    """An image that came before there was a scanner is scanned by and by."""
    wanted = {name: scanning.settings.pop(name) for name in ("scanner", "scanner_data", "scan_policy")}
    scanning.start()
    bad = push(scanning, registry, "bad", "3.0.11-1")
    assert "error" not in scanning.ask(ALICE, bad)
    scanning.stop()
    scanning.settings |= wanted
    scanning.start()
    wait_until(lambda: trivydb.FINDING in scanning.ask(ALICE, bad).get("error", ""), 60, "the scan")
    assert os.listdir(scanning.store / "tmp") == []
