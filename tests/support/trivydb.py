"""A vulnerability data base for Trivy with one made-up finding: the real one has to be fetched, and cannot be here.

Trivy keeps it in a file of bbolt (etcd-io/bbolt: pages of 4 KiB, two of meta data, buckets as B+ trees); what is
written here has one page for each bucket, which is all that a few values need.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PAGE = 4096
FINDING = "CVE-2099-0001"
_BRANCH_OF_A_BUCKET, _META, _LEAF, _FREE = 1, 4, 2, 16
Tree = Mapping[str, Any]
"""Bytes, and further ones."""


def write(folder: Path) -> None:
    """Write the data base to `folder`/db: openssl of Debian 12 before 3.0.99-1 has a critical vulnerability."""
    source = {"ID": "debian", "Name": "Debian Security Tracker", "URL": "https://example.org"}
    details = {"Title": "made up", "Severity": "CRITICAL", "PublishedDate": "2026-01-02T03:04:05Z"}
    tree: Tree = {
        "data-source": {"debian 12": _json(source)},
        "debian 12": {"openssl": {FINDING: _json({"FixedVersion": "3.0.99-1"})}},
        "vulnerability": {FINDING: _json({**details, "VendorSeverity": {"nvd": 4}})},
    }
    (folder / "db").mkdir(parents=True)
    (folder / "db/trivy.db").write_bytes(_file(tree))
    times = {"NextUpdate": "2099-01-01T00:00:00Z", "UpdatedAt": "2026-11-29T00:00:00Z"}
    (folder / "db/metadata.json").write_bytes(_json({"Version": 2, "DownloadedAt": "2026-11-29T00:00:00Z", **times}))


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _file(tree: Tree) -> bytes:
    pages: dict[int, bytes] = {2: struct.pack("<QHHI", 2, _FREE, 0, 0)}
    root = _bucket(tree, pages)
    high = max(pages) + 1
    for number in (0, 1):
        meta = struct.pack("<IIIIQQQQQ", 0xED0CDAED, 2, PAGE, 0, root, 0, 2, high, number)
        pages[number] = struct.pack("<QHHI", number, _META, 0, 0) + meta + struct.pack("<Q", _fnv(meta))
    return b"".join(pages[number].ljust(PAGE, b"\0") for number in range(high))


def _bucket(tree: Tree, pages: dict[int, bytes]) -> int:
    """Write a bucket, those in it first; return the number of its page."""
    items: list[tuple[bytes, bytes, int]] = []
    for name, value in sorted(tree.items()):
        inner = not isinstance(value, bytes)
        data = value if isinstance(value, bytes) else struct.pack("<QQ", _bucket(value, pages), 0)
        items.append((name.encode(), data, _BRANCH_OF_A_BUCKET if inner else 0))
    heads = body = b""
    for number, (key, data, flags) in enumerate(items):
        heads += struct.pack("<IIII", flags, (len(items) - number) * 16 + len(body), len(key), len(data))
        body += key + data
    page = max(pages) + 1
    pages[page] = struct.pack("<QHHI", page, _LEAF, len(items), 0) + heads + body
    assert len(pages[page]) <= PAGE
    return page


def _fnv(data: bytes) -> int:
    value = 0xCBF29CE484222325
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) & (2**64 - 1)
    return value
