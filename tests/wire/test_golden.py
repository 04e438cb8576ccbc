"""Golden byte vectors: what the wire looked like when version 2 was settled, read by C and by Python.

A change that breaks one of them needs a new PIOLET_VERSION. Written by hand from wire.h, for little-endian machines.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
from piolet.base.errors import WireError
from piolet.transport import wire

from tests.wire import messages

pytestmark = pytest.mark.skipif(sys.byteorder != "little", reason="the vectors are little-endian")

MIG = "MIG-00000001-0002-0000-0000-000000000000"
GOLDEN = Path(__file__).with_name("golden")


def vector(name: str) -> bytes:
    """Return the bytes of a golden file: hexadecimal, '#' starts a comment, '*N' repeats the byte before."""
    out = bytearray()
    for line in (GOLDEN / f"{name}.hex").read_text("ascii").splitlines():
        for word in line.partition("#")[0].split():
            if word.startswith("*"):
                out += out[-1:] * (int(word[1:]) - 1)
            else:
                out += bytes.fromhex(word)
    return bytes(out)


def test_start() -> None:
    """Python decodes the START, and C encodes the very same bytes."""
    start = wire.decode_start(vector("start"))
    assert (start.plugin, start.job, start.step, start.uid, start.gid) == (1, 42, 3, 1000, 100)
    assert (start.groups, start.definition, start.timeout_ms, start.node) == ([100, 2000], b"{}", 30000, "node1")


def test_start_of_a_scored_step() -> None:
    """The same message, of another plugin: each socket takes its own and refuses the other's."""
    start = wire.decode_start(vector("start_score"), wire.PLUGIN_SCORE)
    assert (start.plugin, start.job, start.step, start.groups, start.definition) == (2, 42, 3, [100, 2000], b"{}")
    for name, plugin in (("start_score", wire.PLUGIN_ENVIRONMENT), ("start", wire.PLUGIN_SCORE)):
        with pytest.raises(WireError, match="unknown plugin"):
            wire.decode_start(vector(name), plugin)


def test_an_error_that_a_task_sends() -> None:
    """It has the layout of the one that pioletd sends; what is cut or of another kind is refused."""
    raw = vector("error")
    assert wire.encode_error(wire.decode_error(raw), wire_hint(raw)) == raw
    for broken in (raw[:-1], raw + b"x", raw[:4] + b"\x09" + raw[5:], vector("start"), b""):
        with pytest.raises(WireError, match="ERROR message"):
            wire.decode_error(broken)
    # All of the 1024 bytes may be text, and bytes that are none.
    full = raw[:16] + b"\xff" * 1024 + raw[16 + 1024 :]
    assert wire.decode_error(full) == "\N{REPLACEMENT CHARACTER}" * 1024


def wire_hint(raw: bytes) -> str:
    return raw[16 + 1024 :].partition(b"\0")[0].decode()


def test_gpus() -> None:
    """Python takes the numbers out of GPUS; the test's own encoder, which has wire.h's layout, makes the same bytes."""
    assert wire.decode_gpus(vector("gpus")) == wire.Gpus(("0", "3"), nodes=4, restarts=1)
    assert messages.gpus(b"0,3") == vector("gpus")


def test_outcome() -> None:
    """Two tasks exited with 0, one was ended by a segmentation fault, in a job of an array that was requeued once."""
    found = wire.decode_outcome(vector("outcome"))
    ended = (wire.Ended(0, 0, 2), wire.Ended(0x8B, 2, 1))
    assert found == wire.Outcome(42, 3, 1000, 1, (40, 2), 1_795_910_421, 0, "node1", ended, 41)
    mine = [(0, 0, 2), (0x8B, 2, 1)]
    same = messages.outcome(mine, job=42, step=3, restarts=1, array=(40, 2), end=1_795_910_421, het_job=41)
    assert same == vector("outcome")


def test_an_outcome_of_a_slurmstepd_that_was_there_before_an_upgrade() -> None:
    """Its message ends before the number of the heterogeneous job."""
    found = wire.decode_outcome(messages.outcome([(0, 0, 2)], het_job=41, size=wire.OUTCOME_LEAST))
    assert (found.job, found.ended, found.het_job) == (7, (wire.Ended(0, 0, 2),), None)
    assert wire.decode_outcome(messages.outcome([(0, 0, 2)], job=7, het_job=7)).het_job is None, "it is its own job"


@pytest.mark.parametrize("size", [0, 16, 503, 505, 508, 511, 513, 4096])
def test_an_outcome_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(WireError, match=f"{size} bytes"):
        wire.decode_outcome((vector("outcome") * 9)[:size])


@pytest.mark.parametrize(("at", "value"), [(0, 0), (4, 9), (6, 5), (8, 1), (12, 1), (16, 0), (52, 33)])
def test_an_outcome_of_another_shape_is_refused(at: int, value: int) -> None:
    """Magic, version, kind, length, what is reserved, no job, more ways than there are."""
    data = bytearray(vector("outcome"))
    data[at : at + (2 if at in (4, 6) else 4)] = value.to_bytes(2 if at in (4, 6) else 4, "little")
    with pytest.raises(WireError):
        wire.decode_outcome(bytes(data))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"", ()),
        (b"GPU-8f1c7a52-0000-0000-0000-000000000000, 1", ("GPU-8f1c7a52-0000-0000-0000-000000000000", "1")),
        (b",".join([MIG.encode()] * 56), (MIG,) * 56),  # eight GPUs in seven parts each
        (b"NoDevFiles", ()),
        (b"-1,../../etc/passwd,0x3,\xff\xfe", ()),
        (b"9" * messages.GPUS_MAX, ()),  # without a NUL: nothing behind the field is read
    ],
)
def test_only_names_of_gpus_are_taken(text: bytes, found: tuple[str, ...]) -> None:
    """The variable that it comes from is the user's to set."""
    assert wire.decode_gpus(messages.gpus(text)).names == found


def test_a_gpus_message_of_another_shape_is_refused() -> None:
    """Too short, too long, of another kind."""
    good = messages.gpus(b"0")
    for data, why in (
        (b"", "cannot have 0 bytes"),
        (good[:-1], "cannot have 4095 bytes"),
        (good + b"\0", "cannot have 4097 bytes"),
        (good[:6] + b"\4" + good[7:], "not a GPUS message"),
        (good[:12] + b"\1" + good[13:], "not a GPUS message"),
    ):
        with pytest.raises(WireError, match=why):
            wire.decode_gpus(data)


def test_start_from_c(shims: ModuleType) -> None:
    """C encodes the bytes that the golden file has."""
    ffi, lib = shims.ffi, shims.lib
    for plugin, name in ((1, "start"), (2, "start_score")):
        start = ffi.new("struct piolet_start *")
        start.plugin, start.job, start.step, start.uid, start.gid = plugin, 42, 3, 1000, 100
        start.groups, start.definition, start.timeout_ms, start.node = 2, 2, 30000, b"node1"
        out, failure = ffi.new("char[]", 4096), ffi.new("struct failure *")
        length = lib.start_encode(start, ffi.new("uint32_t[]", [100, 2000]), b"{}", out, 4096, failure)
        assert bytes(ffi.buffer(out, length)) == vector(name)


def test_ready(shims: ModuleType) -> None:
    """Python encodes the READY, and C accepts it with as many descriptors as it announces, and no other number."""
    data = wire.encode_ready(namespaces=True, environment=8, workdir="/work", entrypoint="")
    assert data == vector("ready")
    ffi, lib = shims.ffi, shims.lib
    for count in range(4):
        failure = ffi.new("struct failure *")
        accepted = lib.decode(data, len(data), ffi.new("int[]", [7, 8, 9]), count, failure) == 0
        assert accepted == (count == 3)


def test_error(shims: ModuleType) -> None:
    """Python encodes the ERROR, and C takes the sentence and the hint out of it."""
    data = wire.encode_error("no image", "pull it")
    assert data == vector("error")
    failure = shims.ffi.new("struct failure *")
    assert shims.lib.decode(data, len(data), shims.ffi.NULL, 0, failure) == -1
    assert shims.ffi.string(failure.message) == b"no image"
    assert shims.ffi.string(failure.hint) == b"pull it"
