"""Marks: what a command says, what stands in output, and in TensorBoard's and W&B's files, which are made here.

Files that tensorboardX 2.6.5 and wandb 0.31.0 wrote were read by the same code when it was written.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import struct
import time
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from piolet.base.errors import ConfigError, ObserveError, UsageError
from piolet.observe import layout, marks, marks_found, marks_output, marks_tensorboard, marks_wandb, records
from piolet.observe.marks import COMMAND, OUTPUT, TENSORBOARD, WANDB, Said
from piolet.observe.marks_output import Finder

NOW = 1_790_000_000.5


@pytest.mark.parametrize(
    ("word", "name", "value"),
    [
        ("loss=0.31", "loss", 0.31),
        ("train/lr=1e-4", "train/lr", 1e-4),
        ("x=-inf", "x", -math.inf),
        ("_a=.5", "_a", 0.5),
    ],
)
def test_what_is_a_mark(word: str, name: str, value: float) -> None:
    assert marks.parse(word) == (name, value)
    assert math.isnan(marks.parse("loss=NaN")[1])


@pytest.mark.parametrize(
    "word", ["loss", "=1", "loss=", "loss=x", "lo ss=1", "a" * 65 + "=1", "loss=0x1", "1a=1", "a=1_0"]
)
def test_what_is_none(word: str) -> None:
    with pytest.raises(UsageError, match=r"is no mark|is no number"):
        marks.parse(word)


def test_they_are_kept_and_read(tmp_path: Path) -> None:
    place, where = str(tmp_path), str(tmp_path / "marks/112")
    said = [Said("loss", 0.5, NOW, COMMAND, "n1", "0", "3"), Said("loss", math.nan, NOW + 1, COMMAND, "n1", "0", "3")]
    marks.add(where, "n1", said[:1])
    marks.add(where, "n1", said[1:])
    marks.add(where, "../n2", [Said("step", 1.0, None, COMMAND)])
    found = marks.of_job(place, 112)
    assert found[0] == said[0] and math.isnan(found[1].value) and found[2].time is None
    assert marks.of_job(place, 112, "1") == found[2:] and marks.of_job(place, 11) == []
    assert sorted(path.name for path in Path(where).iterdir()) == [".._n2.jsonl", "n1.jsonl"]
    (loss, step) = marks.summed(found)
    assert (loss.count, loss.first, loss.last, loss.not_numbers, step.count) == (2, 0.5, 0.5, 1, 1)
    table = marks.table(found)
    assert table.schema.equals(layout.schema("marks")) and table["subject"].to_pylist() == ["task 3", "task 3", None]
    marks.put(where, OUTPUT, [Said("loss", 1.0, None, OUTPUT)])
    marks.put(where, OUTPUT, [Said("loss", 2.0, None, OUTPUT)])
    assert [one.value for one in marks.of_job(place, 112) if one.origin == OUTPUT] == [2.0]


def test_a_file_that_somebody_wrote_is_data(tmp_path: Path) -> None:
    good = '{"name":"a","value":1,"time":1.0,"origin":"command"}'
    bad = [
        "", "[]", "5", '{"name":"a"}', good.replace("1.0", "-1"), good.replace('"a"', '"a b"'),
        good.replace(":1,", ":true,"),
        good.replace("command", "root"), good.replace(":1,", ':"x",'), "x" * 5000, '{"name":' * 100_000,
        good.replace("1.0", "1e99"), good.replace(":1,", ":" + "9" * 400 + ","),
    ]  # fmt: skip
    (tmp_path / "n1.jsonl").write_text("\n".join([*bad, good]))
    os.mkfifo(tmp_path / "n2.jsonl")
    assert list(marks.read(tmp_path)) == [Said("a", 1.0, 1.0, COMMAND)]
    assert list(marks.read(tmp_path / "none")) == []


def test_where_nothing_can_be_written_it_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ObserveError, match="cannot write") as caught:
        marks.add(str(tmp_path / "file/112"), "n1", [])
    assert "piolet-mark NAME=VALUE" in str(caught.value.hint)
    os.mkfifo(tmp_path / "n1.jsonl")
    with pytest.raises(ObserveError, match="cannot write"):
        marks.add(str(tmp_path), "n1", [])


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("step 200 loss 2.31 tokens/s 51234", {"step": 200, "loss": 2.31, "tokens_per_second": 51234}),
        ("iteration: 5 | lm loss: 6.1E+00 | grad norm: 1.0", {"step": 5, "loss": 6.1}),
        ("{'loss': 0.45, 'learning_rate': 1e-05, 'epoch': 0.1}", {"loss": 0.45}),
        ("Step 10/100: loss=nan", {"step": 10, "loss": math.nan}),
        ("throughput 1200.5 tokens/sec", {"tokens_per_second": 1200.5}),
        ("no loss of data; a step further", {}),
        ("lossless=3", {}),
        ("piolet-mark loss=0.5 accuracy=0.9 time=1790000000 bad=x", {"loss": 0.5, "accuracy": 0.9}),
        ("xpiolet-mark loss=0.5x", {}),
        ("loss 0.5. step 4", {"loss": 0.5, "step": 4}),
    ],
)
def test_usual_lines_of_output(line: str, found: dict[str, float]) -> None:
    said = {one.name: one.value for one in Finder().marks(line)}
    assert {name: str(value) for name, value in said.items()} == {
        name: str(float(value)) for name, value in found.items()
    }


def test_patterns_of_ones_own() -> None:
    finder = Finder([r"^(?P<time>\S+) lr (?P<lr>[0-9.e-]+)"])
    (one,) = finder.marks("2026-09-21T12:26:40+00:00 lr 1e-3")
    assert (one.name, one.value, one.time) == ("lr", 1e-3, 1789993600.0)
    assert next(iter(finder.marks("1790000000.5 lr 2"))).time == NOW
    assert next(iter(finder.marks("yesterday lr 2"))).time is None
    own = next(iter(finder.marks("piolet-mark a=1 time=1790000000.5")))
    assert own == Said("a", 1.0, NOW, OUTPUT)


@pytest.mark.parametrize(
    "pattern", ["loss", "(?P<loss>", "(?P<time>x)", r"(?P<a>x)\1", "(?P<a>x{1000}{1000})", "x" * 2000, "(?P<é>x)"]
)
def test_patterns_that_are_none(pattern: str) -> None:
    with pytest.raises(ConfigError):
        Finder([pattern])


def test_no_line_takes_long(tmp_path: Path) -> None:
    """What takes a backtracking machine for ever; lines without an end; a file that is longer than is read."""
    finder = Finder([r"(?P<a>(x+x+)+y)"])
    before = time.monotonic()
    assert list(finder.marks("x" * 10_000)) == []
    (tmp_path / "out").write_bytes(b"y" * 1_000_000 + b"\nloss=1\n")
    assert [one.value for one in marks_output.find(str(tmp_path / "out"), Finder())[0]] == [1.0]
    assert time.monotonic() - before < 20
    assert "was read for 0 s" in marks_output.find(str(tmp_path / "out"), Finder(), 0.0)[1]


def test_the_end_of_a_long_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marks_output, "READ_MOST", 20)
    (tmp_path / "out").write_text("loss=1\n" * 10 + "step=3 loss=2\n")
    said, left = marks_output.find(str(tmp_path / "out"), Finder())
    assert said[0].value == 2.0 and "the first 64 bytes" in left


def test_what_is_no_file_is_said(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for find in (lambda path: marks_output.find(path, Finder()), marks_tensorboard.find, marks_wandb.find):
        for name in ("fifo", "none"):
            with pytest.raises(ObserveError, match="cannot read"):
                find(str(tmp_path / name))


# -- protocol buffers, written here


def varint(value: int) -> bytes:
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*made, value])


def field(number: int, value: bytes | int | float) -> bytes:
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 1) + struct.pack("<d", value)


def single(number: int, value: float) -> bytes:
    return varint(number << 3 | 5) + struct.pack("<f", value)


def event(tag: str, value: bytes, step: int = 7) -> bytes:
    return field(1, NOW) + field(2, step) + field(5, field(1, field(1, tag.encode()) + value))


def tfrecord(data: bytes) -> bytes:
    head = struct.pack("<Q", len(data))
    sums = [struct.pack("<I", records.masked(records.crc32c(part))) for part in (head, data)]
    return head + sums[0] + data + sums[1]


def tensorboard(path: Path, *events: bytes) -> str:
    path.write_bytes(b"".join(tfrecord(one) for one in (field(1, NOW) + field(3, b"brain.Event:2"), *events)))
    return str(path)


def test_the_checksum() -> None:
    """The check value of CRC-32C is that of RFC 3720, appendix B.4, of 32 bytes of zero."""
    assert records.crc32c(bytes(32)) == 0x8A9136AA and records.crc32c(b"123456789") == 0xE3069283


def test_scalars_of_tensorboard(tmp_path: Path) -> None:
    """Simple values, tensors of one number in their two forms; images and others are none."""
    tensor = [
        field(8, field(1, 1) + field(4, struct.pack("<f", 0.25))),
        field(8, field(1, 2) + field(6, struct.pack("<d", 3.0))),
        field(8, field(1, 1) + field(4, struct.pack("<ff", 1.0, 2.0))), field(4, b"an image"),
    ]  # fmt: skip
    events = [event("train/loss", single(2, 0.5)), *(event(f"t {at}", value) for at, value in enumerate(tensor))]
    said, left = marks_tensorboard.find(tensorboard(tmp_path / "events.out.tfevents.1", *events), 60.0)
    assert left == "" and {one.origin for one in said} == {TENSORBOARD} and {one.time for one in said} == {NOW}
    assert [(one.name, one.value) for one in said] == [
        ("train/loss", 0.5), ("step", 7.0), ("t_0", 0.25), ("step", 7.0), ("t_1", 3.0), ("step", 7.0)
    ]  # fmt: skip


def test_a_file_that_is_being_written_and_a_damaged_one(tmp_path: Path) -> None:
    path = tensorboard(tmp_path / "e", event("loss", single(2, 0.5)), event("loss", single(2, 0.4)))
    whole = Path(path).read_bytes()
    Path(path).write_bytes(whole[:-3])
    said, left = marks_tensorboard.find(path)
    assert [one.value for one in said if one.name == "loss"] == [0.5] and left == ""
    Path(path).write_bytes(whole[:-8] + b"\xff" + whole[-7:])
    said, left = marks_tensorboard.find(path)
    assert [one.value for one in said if one.name == "loss"] == [0.5] and "is damaged" in left


def chunks(*records_made: bytes) -> bytes:
    """Return a log of W&B's, with a record over the end of a block where it is so long."""
    made = bytearray(struct.pack("<4sHB", b":W&B", 0xBEE1, 0))
    for record in records_made:
        first, rest = True, record
        while first or rest:
            room = 32768 - len(made) % 32768
            if room < 7:
                made += bytes(room)
                continue
            part, rest = rest[: room - 7], rest[room - 7 :]
            kind = (1 if not rest else 2) if first else (4 if not rest else 3)
            made += struct.pack("<IHB", zlib.crc32(bytes([kind]) + part), len(part), kind) + part
            first = False
    return bytes(made)


def history(**said: object) -> bytes:
    items = [field(1, field(2, key.encode()) + field(16, json.dumps(value).encode())) for key, value in said.items()]
    return field(1, 5) + field(2, b"".join(items))


def test_history_of_wandb(tmp_path: Path) -> None:
    """Numbers with their step and time; texts, tables and what W&B counts itself are none; over the end of a block."""
    long = field(3, b"x" * 40_000)
    log = chunks(
        long,
        history(loss=0.5, name="x", _step=3, _timestamp=NOW, _runtime=5, table={"a": 1}),
        long,
        history(loss=math.nan),
    )
    (tmp_path / "run-x.wandb").write_bytes(log)
    said, left = marks_wandb.find(str(tmp_path / "run-x.wandb"))
    assert left == "" and [(one.name, one.time, one.origin) for one in said] == [
        ("loss", NOW, WANDB), ("step", NOW, WANDB), ("loss", None, WANDB)
    ]  # fmt: skip
    assert said[0].value == 0.5 and said[1].value == 3.0 and math.isnan(said[2].value)
    (tmp_path / "run-x.wandb").write_bytes(log[:-2])
    assert len(marks_wandb.find(str(tmp_path / "run-x.wandb"))[0]) == 2
    (tmp_path / "run-x.wandb").write_bytes(log[:-2] + b"zz")
    assert "is damaged" in marks_wandb.find(str(tmp_path / "run-x.wandb"))[1]
    (tmp_path / "run-x.wandb").write_bytes(b"something else")
    with pytest.raises(ObserveError, match="is no file of an offline run"):
        marks_wandb.find(str(tmp_path / "run-x.wandb"))


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=300))
def test_no_bytes_do_more_than_say_nothing(data: bytes) -> None:
    """Only ValueError comes out of what parses, and nothing but finite work."""
    with contextlib.suppress(ValueError):
        assert list(marks_tensorboard.scalars(data)) is not None
    with contextlib.suppress(ValueError):
        assert marks_wandb.history(data) is not None


def test_they_are_found_below_a_directory(tmp_path: Path) -> None:
    (tmp_path / "tb/run1").mkdir(parents=True)
    tensorboard(tmp_path / "tb/run1/events.out.tfevents.9", event("loss", single(2, 0.5)))
    (tmp_path / "tb/run-x.wandb").write_bytes(chunks(history(acc=0.9)))
    (tmp_path / "tb/run-y.wandb").write_bytes(b"nonsense")
    (tmp_path / "tb/notes.txt").write_text("loss=5\n")
    (tmp_path / "out").write_text("loss=0.25\n")
    (tmp_path / "tb/loop").symlink_to(tmp_path)
    found = marks_found.look([str(tmp_path / "tb"), str(tmp_path / "out")], Finder(), 60.0)
    assert {origin: [one.value for one in said] for origin, said in found.said.items()} == {
        TENSORBOARD: [0.5, 7.0], WANDB: [0.9], OUTPUT: [0.25]
    }  # fmt: skip
    assert len(found.left) == 1 and "run-y.wandb is no file" in found.left[0]
    assert "0 s had passed" in marks_found.look([str(tmp_path / "out")], Finder(), 0.0).left[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("patterns = 5\n", "something else than patterns"),
        ("x = 1\n", "something else than patterns"),
        ("patterns = [", "is not valid TOML"),
        ("patterns = ['loss']", "names no mark"),
    ],
)
def test_a_users_own_settings(tmp_path: Path, text: str, said: str) -> None:
    assert marks_found.finder([], [], {}) and marks_found.finder([], [], {"HOME": str(tmp_path)})
    (tmp_path / ".config/piolet").mkdir(parents=True)
    (tmp_path / ".config/piolet/marks.toml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        marks_found.finder([], [], {"HOME": str(tmp_path)})
    (tmp_path / ".config/piolet/marks.toml").write_text("patterns = ['lr (?P<lr>[0-9.]+)']")
    finder = marks_found.finder(["z (?P<z>[0-9]+)"], ["y (?P<y>[0-9]+)"], {"HOME": str(tmp_path)})
    assert [one.name for one in finder.marks("lr 0.1 z 2 y 3")] == ["y", "lr", "z"]
