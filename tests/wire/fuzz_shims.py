"""Feeds broken messages to the shims' C. Run under AddressSanitizer by test_fuzz.py:

    python fuzz_shims.py DIRECTORY-OF-THE-MODULE SEED COUNT

Prints how many inputs were tried and how many were accepted; a crash or a sanitizer's report ends it.
"""

from __future__ import annotations

import os
import random
import socket
import sys
from typing import Any

from piolet.transport import wire

from tests.wire import messages


def mutate(random_: random.Random, data: bytes) -> bytes:
    """Return `data` with a few bytes changed, cut, doubled or replaced by interesting numbers."""
    out = bytearray(data)
    for _ in range(random_.randint(1, 4)):
        at = random_.randrange(len(out)) if out else 0
        match random_.randrange(6):
            case 0 if out:
                out[at] ^= 1 << random_.randrange(8)
            case 1:
                number = random_.choice([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFF, 65536, len(out)])
                out[at // 4 * 4 : at // 4 * 4 + 4] = number.to_bytes(4, "little")
            case 2:
                del out[at:]
            case 3:
                out += random_.randbytes(random_.randrange(64))
            case 4:
                out[at:at] = out[at : at + random_.randrange(32)]
            case _:
                out[at : at + 8] = random_.randbytes(8)
    return bytes(out)


def main(directory: str, seed: int, count: int) -> None:
    """Try `count` inputs on every parser, and one in fifty also through a socket."""
    sys.path.insert(0, directory)
    import piolet_shims

    lib: Any = piolet_shims.lib
    ffi: Any = piolet_shims.ffi
    random_ = random.Random(seed)
    failure, definition, length = ffi.new("struct failure *"), ffi.new("char **"), ffi.new("size_t *")
    here = os.getcwd()
    replies = [
        wire.encode_ready(namespaces=True, environment=99, workdir="/w", entrypoint=""),
        wire.encode_ready(namespaces=False, environment=0, workdir="", entrypoint="/e"),
        wire.encode_error("what failed", "what to do"),
    ]
    environment = wire.encode_environment({"A": "1", "PATH": "/bin:/usr/bin", "E": ""}, ("X", "Y"))
    request = (lib.PIOLET_DEP_REQUEST, b"x.toml", here.encode())
    records = [
        messages.record(b"{}", [request]),
        messages.record(
            b'{"a":1}',
            [
                request,
                (lib.PIOLET_DEP_FILE, b"/etc/passwd", b""),
                (lib.PIOLET_DEP_EXISTS, b"/", b""),
                (lib.PIOLET_DEP_ABSENT, b"/nowhere/at/all", b""),
                (lib.PIOLET_DEP_UNSET, b"PIOLET_NOT_SET", b""),
                (lib.PIOLET_DEP_VARIABLE, b"PIOLET_FUZZ", b"yes"),
            ],
        ),
    ]
    os.environ["PIOLET_FUZZ"] = "yes"
    accepted = {"reply": 0, "environment": 0, "record": 0, "peek": 0}
    descriptors = ffi.new("int[]", [-1, -1, -1])
    for number in range(count):
        data = random_.choice(replies)
        data = mutate(random_, data) if number % 100 else data
        failure.set = False
        accepted["reply"] += lib.decode(data, len(data), descriptors, random_.randrange(4), failure) == 0
        data = mutate(random_, environment) if number % 100 else environment
        failure.set = False
        accepted["environment"] += lib.environment_check(data, len(data), failure) == 0
        data = random_.choice(records)
        data = mutate(random_, data) if number % 100 else data
        failure.set = False
        accepted["record"] += (
            lib.record_check(data, len(data), b"x.toml", here.encode(), definition, length, failure) == 0
        )
        if number % 50 == 0:
            accepted["peek"] += peek(lib, ffi, random_, random_.choice(replies))
    assert all(accepted.values()), f"the untouched inputs must be accepted: {accepted}"
    assert max(accepted.values()) < count, f"broken inputs must be refused: {accepted}"
    sys.stdout.write(f"{count} inputs each; accepted {accepted}\n")


def peek(lib: Any, ffi: Any, random_: random.Random, message: bytes) -> bool:
    """Answer a shim with a broken message and a random number of descriptors; none may leak."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = len(os.listdir("/proc/self/fd"))
    files = [0] * random_.choice([0, 0, 1, 2, 2, 3, 4, 9])
    data = mutate(random_, message) if random_.random() < 0.7 else message
    if data:
        socket.send_fds(theirs, [data], files)
    if random_.random() < 0.3 or not data:
        theirs.close()
    reply, failure = ffi.new("struct reply *"), ffi.new("struct failure *")
    good = bool(lib.channel_peek(ours.fileno(), lib.now_ms() + 1000, reply, failure) == 0)
    assert good != bool(failure.set)
    lib.reply_close(reply)
    after = len(os.listdir("/proc/self/fd")) + (theirs.fileno() < 0)
    ours.close()
    theirs.close()
    assert after == before, f"descriptors leaked: {before} before, {after} after"
    return good


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
