"""The sampler's process: what a user writes, and a library that fails or hangs, costs that user's step only."""

from __future__ import annotations

import gc
import json
import os
import pwd
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from piolet.api import Collector, Device, Target
from piolet.base.errors import ScoreError, WireError
from piolet.node.root.keeper import WRITERS, Keeper, decode
from piolet.node.scoring import Order
from piolet.node.server import scoredesk
from piolet.node.server.scoredesk import ScoreDesk, _Scored
from piolet.samples import request
from piolet.samples.choose import choose
from piolet.samples.request import Wish
from piolet.samples.sampler import Clock, Sampler
from piolet.samples.settings import ScoreConfig
from piolet.transport import packets

from tests.score.hands import Hands
from tests.wire import messages

SOUND = Wish(out="/tmp/piolet-score-%j.%s", collector="host")


class Noted(Collector):
    """A collector that notes its end."""

    name = "noted"
    quantities = ("engine",)
    closed = False

    def read(self, now: int) -> list[Any]:
        """Return nothing."""
        return []

    def close(self) -> None:
        """Note it."""
        self.closed = True


@pytest.fixture
def keeper() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The pair between sampler and keeper: first the sampler's end."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    yield ends
    for end in ends:
        end.close()


@pytest.fixture
def desk(tmp_path: Path, hands: Hands, keeper: tuple[socket.socket, socket.socket]) -> Iterator[ScoreDesk]:
    """A sampler's process without the process; nobody writes what it samples."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    clock = Clock(lambda: hands.now, lambda: hands.now, lambda _: None)
    yield ScoreDesk(listener, keeper[0], tmp_path, Sampler(clock))
    listener.close()


def announce(desk: ScoreDesk, definition: bytes, job: int = 7, restarts: int = 0, gpus: bytes = b"") -> socket.socket:
    """Announce a step as the plugin does, its first task included; return the plugin's end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    scored = _Scored(theirs, os.getpid())
    desk._steps.append(scored)
    desk._selector.register(theirs, 1)
    start = bytearray(messages.start(definition, job=job))
    messages.ffi.from_buffer("struct piolet_start *", start).plugin = messages.lib.PIOLET_PLUGIN_SCORE
    for message in (bytes(start), messages.gpus(gpus, restarts=restarts)):
        if scored in desk._steps:
            ours.send(message)
            desk._on_plugin(scored, theirs)
    return ours


def names(desk: ScoreDesk) -> list[str]:
    """Return the steps that are sampled."""
    return [session.step.name for session in desk._sampler.sessions]


@pytest.mark.parametrize(
    "definition",
    [
        SOUND.to_json().replace(b'"period":0.1', b'"period":"1"'),
        SOUND.to_json().replace(b'"period":0.1', b'"period":true'),
        SOUND.to_json().replace(b'"period":0.1', b'"period":' + b"9" * 400),
        SOUND.to_json().replace(b'"label":""', b'"label":"\xed\xa0\x80"'),
        SOUND.to_json().replace(b'"label":""', b'"label":[]'),
        b"[" * 60_000,
        b"[]",
        b"\xff",
    ],
)
def test_what_a_user_writes_ends_that_step_only(desk: ScoreDesk, definition: bytes) -> None:
    """A definition that is none is refused; the step beside it is sampled."""
    with pytest.raises(ScoreError, match="malformed"):
        request.from_json(definition)
    with announce(desk, SOUND.to_json(), 1), announce(desk, definition, 2):
        assert names(desk) == ["1.0"] and len(desk._steps) == 1


def test_a_requeued_job_has_a_data_set_of_its_own(
    desk: ScoreDesk, keeper: tuple[socket.socket, socket.socket], tmp_path: Path
) -> None:
    """Its steps' numbers begin anew; the run is told apart wherever the step's name stands."""
    wish = Wish(out="/tmp/piolet-score-%j.%s%r", collector="host")
    with announce(desk, wish.to_json(), restarts=0), announce(desk, wish.to_json(), restarts=2):
        orders = [json.loads(keeper[1].recv(1 << 16)) for _ in range(2)]
        assert [(order["step"], order["directory"]) for order in orders] == [
            ("7.0", "/tmp/piolet-score-7.0"),
            ("7.0-r2", "/tmp/piolet-score-7.0-r2"),
        ]
        assert names(desk) == ["7.0", "7.0-r2"] and sorted(path.name for path in tmp_path.iterdir()) == names(desk)


def test_a_path_that_is_no_utf8_is_one(desk: ScoreDesk) -> None:
    """Its bytes travel as JSON's escapes."""
    wish = Wish(out=os.fsdecode(b"/tmp/\xff-%j"))
    assert request.from_json(wish.to_json()) == wish
    with announce(desk, wish.to_json()):
        assert names(desk) == ["7.0"]


@pytest.mark.parametrize("fault", ["descriptors", "keeper", "sampler"])
def test_what_fails_when_a_step_begins_ends_that_step_only(
    desk: ScoreDesk, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """And what was open then is closed."""
    noted = Noted()

    def fail(*_: Any) -> Any:
        raise OSError(24, "Too many open files") if fault != "sampler" else ValueError("NaN is not JSON")

    with monkeypatch.context() as broken:
        broken.setattr(scoredesk, "choose", lambda *_: ([noted], {}))
        place: tuple[Any, str] = {
            "descriptors": (os, "pipe2"),
            "keeper": (packets, "send"),
            "sampler": (Sampler, "_header"),
        }[fault]
        broken.setattr(*place, fail)
        gc.collect()  # what earlier tests left open is not to be closed in between
        before = len(os.listdir("/proc/self/fd"))
        announce(desk, SOUND.to_json(), 1).close()
        assert noted.closed and names(desk) == [] and len(os.listdir("/proc/self/fd")) == before
    with announce(desk, SOUND.to_json(), 2):
        assert names(desk) == ["2.0"]


def test_a_full_run_leaves_no_half_of_a_note(desk: ScoreDesk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step is sampled all the same."""

    def full(aside: str, _: str) -> None:
        assert os.path.exists(aside)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    with announce(desk, SOUND.to_json()):
        assert names(desk) == ["7.0"] and list(tmp_path.iterdir()) == []


def test_a_next_sampler_goes_on_with_what_runs(
    desk: ScoreDesk, keeper: tuple[socket.socket, socket.socket], tmp_path: Path
) -> None:
    """One step once, though there is half of a note, and rubbish; what has ended is forgotten."""
    announce(desk, SOUND.to_json())
    note = (tmp_path / "7.0").read_text()
    (tmp_path / "7.0.new").write_text(note)
    (tmp_path / "8.0").write_text(note.replace('"job": 7', '"job": 8').replace('"started": ', '"started": 1'))
    (tmp_path / "9.0").write_bytes(b"\xff")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    other = ScoreDesk(listener, keeper[0], tmp_path, Sampler())
    other._recover()
    assert names(other) == ["7.0"] and [path.name for path in tmp_path.iterdir()] == ["7.0"]
    (scored,) = other._steps
    other._end(scored)
    listener.close()


def test_only_a_library_that_is_at_work_can_hang(desk: ScoreDesk, hands: Hands, tmp_path: Path) -> None:
    """A minute without a reading is none, nor is one quick reading after the other."""
    with announce(desk, SOUND.to_json()):
        hands.now += 60 * 10**9
        assert not desk.give_up()
        for _ in range(3):
            with desk._sampler.working("7.0"):
                hands.now += 3 * 10**9
                assert not desk.give_up()
        assert json.loads(json.loads((tmp_path / "7.0").read_text())["definition"])["collector"] == "host"


def test_a_library_that_hangs_is_not_asked_again(desk: ScoreDesk, hands: Hands, tmp_path: Path) -> None:
    """Whether it hangs when it is opened, read or closed."""

    class Hanging(Noted):
        gave_up = False

        def read(self, now: int) -> list[Any]:
            hands.now += 6 * 10**9
            self.gave_up = desk.give_up()
            return []

        def close(self) -> None:
            self.read(0)

    wish = Wish(out=SOUND.out, collector="gpm")
    with announce(desk, wish.to_json()):
        collector = Hanging()
        with desk._sampler.working("7.0"):
            collector.read(0)
        assert collector.gave_up
        assert json.loads(json.loads((tmp_path / "7.0").read_text())["definition"])["collector"] == "host"
        source = desk._sampler.sessions[0].sources[0]
        source.collector, source.due, collector.gave_up = collector, hands.now, False
        desk._sampler.tick()
        assert collector.gave_up
        collector.gave_up, source.due = False, hands.now + 10**12
    (scored,) = desk._steps
    desk._end(scored)
    assert collector.gave_up and not list(tmp_path.iterdir())


def test_a_gpu_that_hangs_is_left_out_and_named(
    desk: ScoreDesk, hands: Hands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are measured on; where it hangs again, or which one it is is not known, the host's figures remain."""
    targets: list[Target] = []

    def choice(target: Target, wanted: str, around: Any) -> tuple[list[Collector], dict[str, str]]:
        targets.append(target)
        noted = Noted()
        noted.devices = tuple(Device(name, "H100") for name in target.gpus or ())
        return [noted], {"dcgm": "the step has no GPU"}

    monkeypatch.setattr(scoredesk, "choose", choice)
    wish = Wish(out=SOUND.out, collector="auto")
    with announce(desk, wish.to_json(), gpus=b"GPU-a,GPU-b"):
        (scored,) = desk._steps
        hanging = Noted()
        hanging.asked = ("GPU-b", "GPU-b")
        for left in (("GPU-a",), ()):
            with desk._sampler.working("7.0", hanging):
                hands.now += 6 * 10**9
                assert desk.give_up()
            note = packets.decode(scoredesk.StepNote, (tmp_path / "7.0").read_bytes())
            desk._sampler.remove(desk._sampler.sessions[0])
            scored.facts = note
            desk._begin(scored, note)
            session = desk._sampler.sessions[0]
            collectors = [source.collector for source in session.sources]
            header = desk._sampler._header(session, collectors, collectors[0].devices, {}, 0)
            assert targets[-1].gpus == left and header["allocated"] == 2
            unseen = {device["uuid"]: device["unseen"] for device in header["devices"] if "unseen" in device}
            assert set(unseen) == {"GPU-a", "GPU-b"} - set(left)
            assert "did not answer within 5 s" in unseen["GPU-b"]


def test_the_next_steps_do_without_a_gpu_that_hung(
    desk: ScoreDesk, hands: Hands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For ten minutes: each try would cost all steps of the node some seconds, and a process that never ends."""
    targets: list[Target] = []

    def choice(target: Target, wanted: str, around: Any) -> tuple[list[Collector], dict[str, str]]:
        targets.append(target)
        return [Noted()], {}

    monkeypatch.setattr(scoredesk, "choose", choice)
    with announce(desk, Wish(out=SOUND.out).to_json(), gpus=b"GPU-a,GPU-b"):
        hanging = Noted()
        hanging.asked = ("GPU-b", "GPU-b")
        with desk._sampler.working("7.0", hanging):
            hands.now += 6 * 10**9
            assert desk.give_up()
        desk._recover()  # it is no note of a step
        with announce(desk, Wish(out=SOUND.out).to_json(), job=8, gpus=b"GPU-b,GPU-c"):
            assert targets[-1].gpus == ("GPU-c",) and desk._sampler.sessions[-1].step.unseen[0][0] == "GPU-b"
        later = time.time() + scoredesk._HUNG_AGAIN_S + 1
        monkeypatch.setattr(time, "time", lambda: later)
        with announce(desk, Wish(out=SOUND.out).to_json(), job=9, gpus=b"GPU-b,GPU-c"):
            assert targets[-1].gpus == ("GPU-b", "GPU-c")


def test_a_users_writers_that_hang_are_that_users_trouble(
    keeper: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """There are so many of a user's and no more, what is refused is logged, and others have theirs."""
    begun: list[int] = []

    def start(self: Keeper, order: Order, source: int) -> None:
        self._writers[len(begun)] = order.uid
        begun.append(order.uid)

    monkeypatch.setattr(Keeper, "_start", start)
    taker = Keeper(pwd.getpwuid(0), lambda _: None, keeper[1], ScoreConfig())
    for uid in [0] + [1000] * (WRITERS.each + 1) + [1001]:
        order = {"uid": uid, "gid": 1, "groups": [], "directory": "/d", "node": "n", "step": "1.0"}
        socket.send_fds(keeper[0], [json.dumps(order).encode()], [0])
        assert taker._take(keeper[1])
    assert begun == [1000] * WRITERS.each + [1001]
    assert "a step of root is not scored" in caplog.text
    assert f"{WRITERS.each} writers of uid 1000 are at work" in caplog.text


def test_each_opening_counts_for_itself(hands: Hands) -> None:
    """Three slow libraries are not one that hangs."""
    sampler = Sampler(Clock(lambda: hands.now, lambda: hands.now, lambda _: None))
    begun = []

    def around(collector: Collector) -> Any:
        begun.append((collector.name, sampler.busy))
        return sampler.working("1.0", collector)

    choose(Target(gpus=("0",), root="/nowhere"), "auto", around)
    assert set(begun) == {(name, None) for name in ("gpm", "dcgm", "nvml", "host")} and sampler.busy is None


@pytest.mark.parametrize(
    "changes",
    [
        {"uid": 0},
        {"uid": True},
        {"uid": -1},
        {"uid": 1 << 32},
        {"groups": "12"},
        {"groups": {"1": 2}},
        {"groups": [0.5]},
        {"directory": "d"},
        {"directory": "/d\0"},
        {"node": "../n"},
        {"step": 1},
        {"more": 1},
    ],
)
def test_what_the_sampler_may_not_ask(changes: dict[str, Any]) -> None:
    """The keeper is root, and the sampler is not."""
    order = {"uid": 1000, "gid": 1, "groups": [2], "directory": "/d", "node": "n", "step": "1.0"}
    assert decode(json.dumps(order).encode()) == Order(1000, 1, [2], "/d", "n", "1.0")
    with pytest.raises(WireError):
        decode(json.dumps({**order, **changes}).encode())


@pytest.mark.parametrize("data", [b"", b"[]", b"1", b"{}", b"\xff", b"[" * 60_000, b'{"uid":1e999}'])
def test_what_is_no_request(data: bytes) -> None:
    """None of it ends the keeper."""
    with pytest.raises(WireError):
        decode(data)


@pytest.mark.parametrize("text", ["[]", "1", "[" * 60_000, '{"peer": 99999999999999999999}', '{"peer":"x"}', "\xff"])
def test_a_note_that_is_none_is_forgotten(desk: ScoreDesk, tmp_path: Path, text: str) -> None:
    """After a restart; the others are taken up."""
    (tmp_path / "7.0").write_text(text, "latin-1")
    desk._recover()
    assert not list(tmp_path.iterdir()) and not names(desk)


def test_connections_in_a_loop_do_not_fill_the_log(
    tmp_path: Path, keeper: tuple[socket.socket, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    """Row 9 of the attacks: 16 MB of log in 8 s."""
    path = tmp_path / "score.sock"
    path.parent.chmod(0o755)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen(1024)
        one = ScoreDesk(listener, keeper[0], tmp_path / "none", Sampler(Clock(lambda: 1, lambda: 1, lambda _: None)))
        one._steps = [_Scored(0, 0)] * scoredesk._STEPS_MAX  # no more are taken of anybody
        for _ in range(20):
            for _ in range(50):
                with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
                    client.connect(str(path))
            one._listener.accept()
    assert [record.getMessage().partition(" is refused: ")[2] for record in caplog.records] == ["too many steps"]
    assert one._refused._between > 500
