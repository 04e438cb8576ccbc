"""Batches of records as a forwarder sends them: gzip of lines, bounded before and after unpacking (decision 104)."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence

from piolet.base.errors import EventError
from piolet.events.envelope import LINE_MAX

RECORDS_MAX = 500
UNPACKED_MAX = 8 << 20
PACKED_MAX = 8 << 20


def pack(lines: Sequence[bytes]) -> bytes:
    """Return the body of a batch: lines with their newlines, no more than RECORDS_MAX and UNPACKED_MAX allow."""
    if len(lines) > RECORDS_MAX or sum(map(len, lines)) > UNPACKED_MAX:
        raise EventError(f"{len(lines)} records are too many or too long for a batch")
    return gzip.compress(b"".join(lines), compresslevel=6, mtime=0)


def unpack(body: bytes) -> list[bytes]:
    """Return the lines in a body, each with its newline.

    Takes no more memory than UNPACKED_MAX, whatever the body unpacks to. Raises EventError: it is no gzip, it unpacks
    to more than that, has more than RECORDS_MAX lines, or one that does not end or is longer than LINE_MAX.
    """
    if len(body) > PACKED_MAX:
        raise EventError(f"a batch is {len(body)} bytes long, more than the limit of {PACKED_MAX}")
    machine = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        text = machine.decompress(body, UNPACKED_MAX + 1)
    except zlib.error:
        raise EventError("a batch is no gzip") from None
    if len(text) > UNPACKED_MAX:
        raise EventError(f"a batch unpacks to more than the limit of {UNPACKED_MAX} bytes")
    if not machine.eof or machine.unused_data:
        raise EventError("a batch is cut off, or something follows it")
    if not text:
        return []
    if not text.endswith(b"\n"):
        raise EventError("the last record of a batch does not end")
    if text.count(b"\n") > RECORDS_MAX:
        raise EventError(f"a batch has more than the limit of {RECORDS_MAX} records")
    lines = [line + b"\n" for line in text[:-1].split(b"\n")]
    if max(map(len, lines)) > LINE_MAX:
        raise EventError(f"a record of a batch is longer than the limit of {LINE_MAX} bytes")
    return lines
