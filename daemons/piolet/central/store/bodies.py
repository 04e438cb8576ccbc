"""What lies deflated in the store: runs of records, and of stores of revision 0001 the body of each.

The first byte says how: 0 plain, 1 and 2 with that dictionary. A dictionary that has been in a release never changes; a
better one gets the next number.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from piolet.base.errors import EventError

_PLAIN, _FIRST, _SECOND = 0, 1, 2
_BODIES = (
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
_RUNS = (
    _BODIES + b'{"task":0,"tasks":1,"status":0,"why":"exit","order":0},1,null,null,1000,{"uptime_s":1},1],[1,17[[0,17'
)
_decode = json.JSONDecoder().raw_decode
_DICTIONARIES = {_FIRST: _BODIES, _SECOND: _RUNS}


def pack_run(records: Sequence[Sequence[Any]]) -> bytes:
    """Return the bytes of the records of a run, each a list of JSON."""
    text = json.dumps(records, separators=(",", ":")).encode("ascii")
    # A window no larger than what is in it: making one takes longer than what is done with it.
    window = min(15, max(11, (len(text) + len(_RUNS)).bit_length()))
    machine = zlib.compressobj(6, zlib.DEFLATED, -window, 8 if window > 12 else 5, zlib.Z_DEFAULT_STRATEGY, _RUNS)
    packed = machine.compress(text) + machine.flush()
    return bytes((_SECOND,)) + packed if len(packed) < len(text) else bytes((_PLAIN,)) + text


def unpack_run(data: bytes) -> list[list[Any]]:
    """Return the records of a run. Raises EventError: a later version wrote it, or the store is damaged."""
    records = _unpacked(data)
    assert isinstance(records, list)
    return records


def unpack(data: bytes | None) -> Mapping[str, Any]:
    """Return a body of revision 0001. Raises EventError as `unpack_run`."""
    if data is None:
        return {}
    body = _unpacked(data)
    assert isinstance(body, dict)
    return body


def _unpacked(data: bytes) -> Any:
    try:
        if data[0] in _DICTIONARIES:
            text = zlib.decompressobj(-15, _DICTIONARIES[data[0]]).decompress(data[1:])
        elif data[0] == _PLAIN:
            text = data[1:]
        else:
            raise EventError("a record of the store was written by a later version of Piolet")
        words = text.decode("ascii")
        value, end = _decode(words)  # json.loads looks which encoding it is first, and that takes twice as long
    except (ValueError, IndexError, zlib.error):
        raise EventError("a record of the store is damaged") from None
    if end != len(words):
        raise EventError("a record of the store is damaged")
    return value
