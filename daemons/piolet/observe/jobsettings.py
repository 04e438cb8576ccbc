"""The sections `[results]`, `[marks]` and `[mail]` of piolet.toml."""

from __future__ import annotations

from dataclasses import dataclass

from piolet.base.errors import ConfigError
from piolet.config.schema import absolute_or_empty, not_empty, setting


@dataclass(frozen=True)
class ResultsConfig:
    """`[results]`: where the results of users' jobs are."""

    directory: str = setting(
        "",
        "Where results of vettings, scores and marks go, in which %u is the user; empty: XDG_STATE_HOME/piolet, or "
        "~/.local/state/piolet. All nodes must see it, and the user must be able to write there.",
        absolute_or_empty,
    )
    most: int = setting(
        1000, "A user's results on this cluster are no more than so many; then the oldest are removed.", least=1
    )
    most_mb: int = setting(
        5000, "They take no more than so many MB, likewise. What is younger than three days stays.", least=1
    )


@dataclass(frozen=True)
class MarksConfig:
    """`[marks]`: what is found in users' output when they ask for a job."""

    patterns: tuple[str, ...] = setting(
        [],
        "Patterns of RE2 besides the usual ones (loss, step, tokens per second), with a named group for each mark: "
        "'grad norm: (?P<grad_norm>[0-9.]+)'. Users have more of their own.",
        not_empty,
    )


def server_of(text: str) -> tuple[str, int]:
    """Return host and port of "localhost:25". Raises ConfigError."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"'{text}' is no server and port", "write for example: localhost:25")
    return host.strip("[]"), int(port)


def _server(text: str) -> None:
    server_of(text)


@dataclass(frozen=True)
class MailConfig:
    """`[mail]`: what `piolet mail` sends at the end of a job, when Slurm's controller calls it."""

    recipients: str = setting(
        "", "The address of a job's owner, of whose account's name %u is: '%u@users.example.org'; empty: no mail."
    )
    sender: str = setting("slurm@localhost", "From whom mails are.", not_empty)
    server: str = setting("localhost:25", "The mail server, which takes mails of this machine.", _server)
    least_minutes: int = setting(10, "Of jobs that ended well, or were cancelled, after a shorter time none is sent.")
    arrays: bool = setting(False, "Whether there is a mail for each task of an array.")
    signature: str = setting("", "What stands below each mail: whom to ask.")
