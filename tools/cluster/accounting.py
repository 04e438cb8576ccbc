"""Slurm's accounting: a MariaDB of the cluster's own, on a socket alone, and slurmdbd before it.

Both run as Slurm's account, to which the database's socket says who it is; so there is no password.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tools.cluster import network, processes
from tools.cluster.accounts import numbers
from tools.cluster.config import CONTROLLER, Settings
from tools.cluster.errors import ClusterError
from tools.cluster.packages import find
from tools.cluster.services import Keep, start_machines
from tools.cluster.state import write_atomically

DATABASE_WITHIN_S, SLURMDBD_WITHIN_S = 30, 30
ACCOUNT = "slurm"
_DATABASE = "slurm_acct"
_INNODB = ("buffer-pool-size=32M", "log-file-size=16M", "lock-wait-timeout=900", "flush-log-at-trx-commit=0")


def slurmdbd_conf(s: Settings) -> str:
    """Return slurmdbd.conf."""
    layout = s.layout
    lines = [
        "# Written by tools/cluster; the next start writes it anew.",
        f"DbdHost={CONTROLLER}",
        f"DbdAddr={s.address}",
        f"DbdPort={s.ports['slurmdbd']}",
        f"SlurmUser={ACCOUNT}",
        "AuthType=auth/munge",
        f"AuthInfo=socket={layout.munge_socket}",
        "StorageType=accounting_storage/mysql",
        "StorageHost=localhost",
        f"StorageUser={ACCOUNT}",
        f"StorageLoc={_DATABASE}",
        f"PidFile={layout.run}/mariadb/slurmdbd.pid",
        f"LogFile={layout.log}/slurmdbd.log",
        "DebugLevel=info",
        # What slurmctld tells is committed at once, so that sacct has it.
        "CommitDelay=0",
    ]
    return "".join(f"{line}\n" for line in lines)


def start(s: Settings, group: Path, keep: Keep) -> None:
    """Start the database and slurmdbd, with no memory of an earlier run."""
    socket = _start_database(s, group, keep)
    layout = s.layout
    uid, gid = numbers(ACCOUNT)
    conf = layout.etc / "slurmdbd.conf"
    write_atomically(conf, slurmdbd_conf(s), 0o600)
    log = layout.log / "slurmdbd.log"
    log.touch()
    for path in (conf, log):
        os.chown(path, uid, gid)
    argv = [find("setpriv"), f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
    argv += ["env", f"MYSQL_UNIX_PORT={socket}", f"SLURM_CONF={layout.slurm_conf}", find("slurmdbd"), "-D"]
    process = start_machines(layout, [(CONTROLLER, "slurmdbd", argv)], group, keep)[0]
    processes.wait_ready(process, log, SLURMDBD_WITHIN_S, lambda: network.accepts(s.address, s.ports["slurmdbd"]))


def _start_database(s: Settings, group: Path, keep: Keep) -> Path:
    """Start MariaDB; return its socket."""
    layout = s.layout
    uid, gid = numbers(ACCOUNT)
    data, socket = layout.root / "accounting", layout.run / "mariadb" / "mariadb.sock"
    shutil.rmtree(data, ignore_errors=True)
    for directory in (data, socket.parent):
        directory.mkdir(mode=0o755)
        os.chown(directory, uid, gid)
    # slurmdbd would make it, and connect again by what failed to connect: MariaDB's library 3.4.10 then takes no query.
    first = layout.etc / "accounting.sql"
    write_atomically(first, f"CREATE DATABASE IF NOT EXISTS {_DATABASE};\n", 0o644)
    log = layout.log / "mariadb.log"
    become = [find("setpriv"), f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
    options = ["--no-defaults", f"--datadir={data}", *(f"--innodb-{one}" for one in _INNODB)]
    made = subprocess.run(
        [*become, find("mariadb-install-db"), *options, "--skip-test-db", "--auth-root-authentication-method=socket",
         f"--auth-root-socket-user={ACCOUNT}"],
        check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120,
    )  # fmt: skip
    if made.returncode:
        log.write_text(made.stdout + made.stderr, "utf-8")
        raise ClusterError("cannot make the database of Slurm's accounting", log=log)
    argv = [*become, find("mariadbd"), *options, "--skip-networking", f"--socket={socket}", f"--init-file={first}"]
    process = processes.spawn("mariadb", argv, log, group)
    keep(process)
    processes.wait_ready(process, log, DATABASE_WITHIN_S, lambda: network.socket_accepts(str(socket)))
    return socket
