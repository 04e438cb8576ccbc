"""The section `[central]` of piolet.toml."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from piolet.base.errors import ConfigError
from piolet.config.schema import absolute_or_empty, not_empty, setting

DEFAULT_PORT = 6828
_PLACE = re.compile(r"https?://(\[[0-9a-fA-F:.]+\]|[^\s/?#@:\[\]]+)(:(?P<port>[0-9]{1,5}))?/?|unix:/[^\s/?#][^\s?#]*")


def _url(text: str) -> None:
    if text and not _is_place(text):
        raise ConfigError(f"'{text}' is no address of the service", f"write for example: http://head:{DEFAULT_PORT}")


def _is_place(text: str) -> bool:
    """Return whether a text is http://HOST:PORT, https://HOST:PORT or unix:/PATH, and nothing besides."""
    match = _PLACE.fullmatch(text)
    return match is not None and text.isprintable() and 0 < int(match["port"] or 1) < 65536


def _listen(text: str) -> None:
    listen_of(text)


def listen_of(text: str) -> tuple[str, int]:
    """Return host and port of "0.0.0.0:6828" or "[::]:6828". Raises ConfigError."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"'{text}' is no address and port", f"write for example: 0.0.0.0:{DEFAULT_PORT}")
    return host.strip("[]"), int(port)


def known_store(text: str) -> None:
    """Raise ConfigError if this is not the address of a data base that the service knows."""
    scheme, _, rest = text.partition("://")
    if scheme == "sqlite" and (not rest.startswith("//") or rest.endswith("/")):
        hint = "four slashes and the path of a file: sqlite:////var/lib/piolet-central/central.sqlite"
        raise ConfigError(f"'{text}' names no file by its whole path", hint)
    if scheme not in ("sqlite", "postgresql", "postgresql+psycopg") or not rest:
        hint = "write sqlite:////PATH, or postgresql+psycopg://USER@HOST/NAME"
        raise ConfigError(f"'{text.partition('@')[2] if '@' in text else text}' is no data base that it knows", hint)


@dataclass(frozen=True)
class CentralConfig:
    """`[central]`: the central service of a cluster, and how nodes and users find it."""

    url: str = setting(
        "",
        "Where nodes and users find the service: http://HOST:PORT, https://HOST:PORT, or unix:/PATH of its socket on "
        "its own machine; empty: there is none.",
        _url,
    )
    listen: str = setting(
        f"127.0.0.1:{DEFAULT_PORT}", "Where it listens: an address of the machine and a port.", _listen
    )
    socket: str = setting(
        "/run/piolet-central/central.sock", "Where it listens for whoever is on its own machine; empty: nowhere.",
        absolute_or_empty,
    )  # fmt: skip
    account: str = setting(
        "piolet-central",
        "The account that it runs as; of one number on all machines, and never that of [node] account.",
        not_empty,
    )
    cluster: str = setting("", "Slurm's ClusterName; empty: Slurm is asked.")
    store: str = setting(
        "sqlite:////var/lib/piolet-central/central.sqlite",
        "Its data base, as SQLAlchemy writes it: sqlite:////PATH, or postgresql+psycopg://USER@HOST/NAME.",
        known_store,
    )
    trust: Literal["munge", "certificate"] = setting(
        "munge", "What says who sends: munge, or certificate where a site has no MUNGE (mutual TLS)."
    )
    munge_socket: str = setting("", "munged's socket; empty: the usual one.", absolute_or_empty)
    addresses: str = setting(
        "",
        "A file with lines NODE ADDRESS..., for nodes whose address in MUNGE's credentials is not what Slurm's "
        "NodeAddr means; empty: none.",
        absolute_or_empty,
    )
    certificate: str = setting("", "File of its certificate; with it, it speaks TLS.", absolute_or_empty)
    key: str = setting("", "File of the key of that certificate.", absolute_or_empty)
    authority: str = setting(
        "", "File with the certificates of those who sign the service's and the nodes' ones.", absolute_or_empty
    )
    staff: tuple[str, ...] = setting(
        ["root"], "Accounts, and groups with a @ before them, that see everything and may note and acknowledge."
    )
    private: bool = setting(
        False, "Hide from users what is of fewer than three users, also where Slurm has no PrivateData."
    )
    accounting_s: int = setting(
        60,
        "Seconds from one question to Slurm's accounting to the next, for ended jobs and lost nodes; 0: none.",
    )
    history_days: int = setting(90, "How far back the first of these questions goes.", least=1)
    rules: str = setting(
        "", "The file of rules that it judges by; empty: those that Piolet comes with.", absolute_or_empty
    )
    prometheus: bool = setting(False, "Serve metrics for Prometheus at /metrics, to whoever can reach the port.")
    keep_months: int = setting(
        0, "Records older than so many months move to Parquet files in archive; 0: all stay in the data base."
    )
    archive: str = setting("/var/lib/piolet-central/archive", "Where those files are.", absolute_or_empty)
