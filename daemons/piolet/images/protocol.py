"""What the image service and its clients say to each other.

A SOCK_SEQPACKET Unix socket; every message is a JSON object of at most 64 KiB. One request goes in,
{"version": 1, "op": …}, with at most one descriptor beside it (credentials, or an archive). Out come
any number of {"progress": text} and {"part": […]}, then one {"result": …} or {"error": …}.

  ping
  resolve  reference, mode ('known', 'pull', 'look', 'refresh', 'renew'); descriptor: an auth.json, if there
           are credentials
  import   kind ('oci-archive', 'docker-archive'), name; descriptor: the archive, or a pipe
  list     parts: entries
  outdated parts: entries with their sources
  rm       target
  pin      target
  unpin    target
  verify   target, or null for all; parts: entries with their state
  prune    older_than_s, dry_run; parts: entries
"""

from __future__ import annotations

import json
import socket
from typing import Any

from piolet.base.errors import ImageError, WireError
from piolet.transport import packets

VERSION = 1
LIMIT_BYTES = 64 * 1024
_DESCRIPTORS = 4


def pack(message: dict[str, Any]) -> bytes:
    """Return `message` as bytes; raises ImageError when it is too long to be sent."""
    data = json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    if len(data) > LIMIT_BYTES:
        raise ImageError(f"a message of {len(data)} bytes is longer than the limit of {LIMIT_BYTES}")
    return data


def unpack(data: bytes) -> dict[str, Any]:
    """Return the message in `data`; raises ImageError for what is none."""
    if len(data) > LIMIT_BYTES:
        raise ImageError(f"the message is longer than the limit of {LIMIT_BYTES} bytes")
    try:
        value = packets.parse(data)
    except WireError:
        raise ImageError("the message is not JSON") from None
    if not isinstance(value, dict):
        raise ImageError("the message is not a JSON object")
    return value


def receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    """Return one packet and the descriptors beside it, which are the caller's to close.

    An empty packet is the end of the connection; one longer than LIMIT_BYTES was too long.
    """
    most, flags = LIMIT_BYTES + 1, socket.MSG_CMSG_CLOEXEC
    packet = packets.receive(connection, most, _DESCRIPTORS, flags, reset_ends=False)
    if packet.cut:
        packets.close_all(packet.descriptors)
        raise ImageError("the message came with too many descriptors")
    return packet.data, packet.descriptors


def send(connection: socket.socket, message: dict[str, Any], descriptor: int | None = None) -> None:
    """Send one message, with a descriptor beside it if there is one."""
    packets.send(connection, pack(message), () if descriptor is None else (descriptor,))
