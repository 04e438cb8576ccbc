"""The mail at a job's end: to the site's address of the owner, with clean headers, through a server in this test."""

from __future__ import annotations

import email
import email.policy
import socketserver
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from piolet.base.errors import ConfigError, ObserveError
from piolet.observe import mail
from piolet.observe.job import VERSION, Job, Reason, Run
from piolet.observe.jobsettings import MailConfig

SETTINGS = MailConfig(recipients="%u@users.example.org", sender="slurm@example.org", signature="ask: help@example.org")
RUN = Run(0, "FAILED", 1, 0, "", ("n1",), 1_790_000_000.0, 1_790_003_600.0)
WHY = (Reason("program", "the program of step 0 ended with status 1"),)
JOB = Job(
    VERSION, "112", 112, "", "train", "alice", 1500, "", "main", "alps", "sbatch train.sh", 8, 1.0, 600.0, "", RUN,
    why=WHY,
)  # fmt: skip


class Server(socketserver.StreamRequestHandler):
    """As much of SMTP as a client needs; what came is in the server's `got`."""

    def handle(self) -> None:
        self._say("220 here")
        said: list[str] = []
        while line := self.rfile.readline().decode().strip():
            said.append(line)
            word = line.split(":")[0].split()[0].upper()
            if word == "DATA":
                self._say("354 go on")
                data = b""
                while not data.endswith(b"\r\n.\r\n"):
                    data += self.rfile.readline()
                self.server.got.append((said, data[:-3]))  # type: ignore[attr-defined]
                self._say("250 taken")
            elif word == "RCPT" and "nobody" in line:
                self._say("550 there is no such person")
            elif word == "QUIT":
                self._say("221 bye")
                return
            else:
                self._say("250 well")

    def _say(self, text: str) -> None:
        self.wfile.write(f"{text}\r\n".encode())


@pytest.fixture
def server() -> Iterator[Any]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Server) as made:
        made.daemon_threads = True
        made.got = []  # type: ignore[attr-defined]
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


def test_it_arrives(server: Any) -> None:
    mail.send(mail.message(JOB, SETTINGS), f"127.0.0.1:{server.server_address[1]}")
    ((said, data),) = server.got
    assert any(line.startswith("rcpt TO:<alice@users.example.org>") for line in said), said
    got = email.message_from_bytes(data, policy=email.policy.default)
    assert got["To"] == "alice@users.example.org" and got["From"] == "slurm@example.org"
    assert got["Subject"] == "job 112 (train) FAILED: the program of step 0 ended with status 1"
    assert got["Auto-Submitted"] == "auto-generated" and got["Date"] and got["Message-ID"].endswith("@example.org>")
    text = got.get_content()
    assert "state    FAILED, status 1" in text and "ask: help@example.org" in text


@pytest.mark.parametrize(
    "name", ["a\nBcc: bob@example.org", "a\r\n\r\nbody", "\x1b[31m", "=?utf-8?q?x?=\n", "é" * 500, "\x00"]
)
def test_no_name_makes_a_header(name: str) -> None:
    made = mail.message(replace(JOB, name=name, why=(Reason("program", f"it said {name}"),)), SETTINGS)
    text = made.as_bytes()
    got = email.message_from_bytes(text, policy=email.policy.default)
    assert sorted(got.keys()) == sorted(
        [
            "From",
            "To",
            "Subject",
            "Date",
            "Message-ID",
            "Auto-Submitted",
            "Content-Type",
            "Content-Transfer-Encoding",
            "MIME-Version",
        ]
    )
    assert got["To"] == "alice@users.example.org" and "\n" not in got["Subject"] and "\x1b" not in got.get_content()
    assert len(got["Subject"]) < 300


@pytest.mark.parametrize("user", ["", "a b", "a@b", "a,b", "a\nb", "../x", "a>", "-x" * 40])
def test_no_account_makes_an_address(user: str) -> None:
    with pytest.raises(ConfigError):
        mail.message(replace(JOB, user=user), SETTINGS)


@pytest.mark.parametrize("rule", ["%u", "nobody", "%u@x y", "%u@a@b", "%u@-"])
def test_rules_that_make_no_address(rule: str) -> None:
    with pytest.raises(ConfigError, match="is no address"):
        mail.message(JOB, replace(SETTINGS, recipients=rule))


def test_when_none_is_sent() -> None:
    assert mail.why_none(JOB, SETTINGS) == ""
    assert "recipients" in mail.why_none(JOB, MailConfig())
    short = replace(JOB, now=replace(RUN, state="COMPLETED", end=1_790_000_060.0))
    assert "less than 10 min" in mail.why_none(short, SETTINGS)
    assert mail.why_none(replace(short, now=replace(short.now, state="FAILED")), SETTINGS) == ""
    assert "array" in mail.why_none(replace(JOB, job="112_1"), SETTINGS)
    assert mail.why_none(replace(JOB, job="112_1"), replace(SETTINGS, arrays=True)) == ""
    assert "is RUNNING" in mail.why_none(replace(JOB, now=replace(RUN, state="RUNNING")), SETTINGS)


def test_a_server_that_does_not_take_it(server: Any) -> None:
    with pytest.raises(ObserveError, match=r"does not take the mail to nobody@users.example.org: .*there is"):
        mail.send(mail.message(replace(JOB, user="nobody"), SETTINGS), f"127.0.0.1:{server.server_address[1]}")
    with pytest.raises(ObserveError, match="Connection refused"):
        mail.send(mail.message(JOB, SETTINGS), "127.0.0.1:1")


def test_a_long_job_makes_no_long_mail() -> None:
    text = mail.body(["x" * 5000] * 5000, "")
    assert len(text) <= 61_000 and max(map(len, text.splitlines())) <= 500
