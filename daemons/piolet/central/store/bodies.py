"""Bodies of records as they lie in the store: deflated with a dictionary of what most of them say.

The first byte says how: 0 plain, 1 with the first dictionary. A dictionary that has been in a release never changes; a
better one gets the next number.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

from piolet.base.errors import EventError

_PLAIN, _FIRST = 0, 1
_DICTIONARY = (
    b'"limit":"origin":"site""origin":"user""origin":"built-in""protocol":"digest":"plan":"judge":"history"'
    b'"judge":"pair""judge":"peers""judge":"limit""unit":"GB/s""unit":"TFLOP/s""unit":"s""serial":"reason":"said":'
    b'"outcome":"bad""outcome":"warned","outcome":"good","state":"inconclusive""state":"warn""state":"fail"'
    b'"state":"pass","code":"eval":"excluded":["spares":"why":{"why":"exit""why":"signal""why":"cancelled"'
    b'"why":"time_limit""why":"out_of_memory""why":"node_fail""tasks":"records":"bytes":"epoch":"first":"last":'
    b'"pci":"0000:","xid":"sxid":"text":"NVRM: Xid (PCI:0000:"text":"NVRM: GPU at PCI:"corrected":"uncorrected":'
    b'"flaps":"scope":"cgroup""processes":"seconds":"kernel":"piolet":"booted":"before":"nodes":"reason":"by":"root"'
    b'"state":"COMPLETED""state":"FAILED""state":"drain""state":"down""state":"resume""state":"up"'
    b'{"task":0,"status":1,"signal":null,"why":"signal","tasks":1}{"status":null,"signal":9,"why":"exit"}'
    b'{"xid":79,"pci":"0000:{"uptime_s":'
)


def pack(body: Mapping[str, Any]) -> bytes | None:
    """Return the bytes of a body; None of an empty one."""
    if not body:
        return None
    text = json.dumps(body, separators=(",", ":")).encode("ascii")
    # A small window: making one takes longer than what is done with it.
    machine = zlib.compressobj(6, zlib.DEFLATED, -12, 5, zlib.Z_DEFAULT_STRATEGY, _DICTIONARY)
    packed = machine.compress(text) + machine.flush()
    return bytes((_FIRST,)) + packed if len(packed) < len(text) else bytes((_PLAIN,)) + text


def unpack(data: bytes | None) -> dict[str, Any]:
    """Return the body in `data`. Raises EventError: a later version wrote it, or the store is damaged."""
    if data is None:
        return {}
    try:
        if data[0] == _FIRST:
            machine = zlib.decompressobj(-15, _DICTIONARY)
            text = machine.decompress(data[1:])
        elif data[0] == _PLAIN:
            text = data[1:]
        else:
            raise EventError("a record of the store was written by a later version of Piolet")
        body = json.loads(text)
    except (ValueError, IndexError, zlib.error):
        raise EventError("a record of the store is damaged") from None
    assert isinstance(body, dict)
    return body
