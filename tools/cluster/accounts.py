"""The accounts of the cluster's users and services, and the users' scratch directories.

They are real accounts of this machine, made where absent and shared by all its clusters. What was made is on
record in one place, and `remove` takes away that and nothing else.
"""

from __future__ import annotations

import grp
import json
import os
import pwd
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.cluster.errors import ClusterError
from tools.cluster.state import locked, write_atomically

USERS = ("alice", "bob", "carol")
SERVICES = ("piolet", "piolet-images", "piolet-central", "piolet-forward")
# Whose uid and gid are different numbers, as at most sites; of the others each has a group of their own.
PRIMARY = {"carol": "pioletlab"}
# `pioletlab` has both users, `alicegrp` alice alone: what supplementary groups are tested with.
GROUPS = {"pioletlab": ("alice", "bob"), "alicegrp": ("alice",)}
SCRATCH = Path("/scratch")

RECORD = Path("/var/lib/piolet-cluster/created.json")


@dataclass(frozen=True)
class Created:
    """What we made on this machine, and so may remove again."""

    users: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    directories: tuple[str, ...] = ()


def load_record(path: Path) -> Created:
    try:
        value = json.loads(path.read_text("utf-8"))
        return Created(*(tuple(str(item) for item in value[key]) for key in ("users", "groups", "directories")))
    except (OSError, ValueError, TypeError, KeyError):
        return Created()


def save_record(path: Path, created: Created) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(created.__dict__, indent=1) + "\n")


def ensure() -> str:
    """Make what is absent; return what to say of it."""
    with locked(RECORD.with_name("lock"), "the accounts of this machine"):
        record = load_record(RECORD)
        made: list[str] = []
        for name in (*(user for user in USERS if user not in PRIMARY), *SERVICES, *GROUPS, *PRIMARY):
            if _group_exists(name) if name in GROUPS else _user_exists(name):
                continue
            # First, so that a kill right afterwards leaves nothing unknown.
            if name in GROUPS:
                record = Created(record.users, (*record.groups, name), record.directories)
            else:
                record = Created((*record.users, name), record.groups, record.directories)
            save_record(RECORD, record)
            if name in GROUPS:
                _run(["groupadd", name])
            else:
                _make_user(name)
            made.append(name)
        for name, wanted in GROUPS.items():
            for user in wanted:
                if user not in grp.getgrnam(name).gr_mem:
                    _run(["usermod", "--append", "--groups", name, user])
        for path in (SCRATCH, *(SCRATCH / user for user in USERS)):
            if not path.exists():
                record = Created(record.users, record.groups, (*record.directories, str(path)))
                save_record(RECORD, record)
                _make_scratch(path)
                made.append(str(path))
        for user in USERS:
            for path in (Path(pwd.getpwnam(user).pw_dir), SCRATCH / user):
                if _adopt(path, user):
                    made.append(f"{path} theirs again")
    return f"made {', '.join(made)}" if made else f"{', '.join(USERS)} and the services', all there"


def _make_user(name: str) -> None:
    if name in SERVICES:
        kind = ["--system", "--no-create-home", "--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin"]
    else:
        kind = ["--create-home", "--shell", "/bin/bash"]
    if name in PRIMARY:
        group = grp.getgrnam(PRIMARY[name])
        # useradd's own choice may be the very number of the group.
        taken = {user.pw_uid for user in pwd.getpwall()} | {group.gr_gid}
        number = next(number for number in range(2000, 60000) if number not in taken)
        kind += ["--uid", str(number), "--no-user-group", "--gid", group.gr_name]
    else:
        kind += ["--user-group"]
    _run(["useradd", *kind, name])


def make_results(path: Path) -> None:
    """Make the directory of users' results anew, with one for each user that nobody else may enter."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o755)
    path.chmod(0o755)
    for name in USERS:
        user = pwd.getpwnam(name)
        own = path / name
        own.mkdir(mode=0o700)
        os.chown(own, user.pw_uid, user.pw_gid)


def _make_scratch(path: Path) -> None:
    path.mkdir(mode=0o755)
    if path != SCRATCH:
        user = pwd.getpwnam(path.name)
        os.chown(path, user.pw_uid, user.pw_gid)
        path.chmod(0o700)


def _adopt(path: Path, user: str) -> bool:
    """Give a directory that outlived an earlier account of the same name to the one of today.

    Refuses one that belongs to somebody who exists. Returns whether anything had to be changed.
    """
    uid, gid = numbers(user)
    owner = path.lstat().st_uid
    if owner == uid:
        return False
    try:
        somebody = pwd.getpwuid(owner).pw_name
    except KeyError:
        for directory, _, files in os.walk(path):
            for entry in (directory, *(os.path.join(directory, name) for name in files)):
                os.chown(entry, uid, gid, follow_symlinks=False)
        return True
    raise ClusterError(f"{path} belongs to {somebody}, but {user} needs it", "move it away, or chown it")


def remove() -> list[str]:
    """Remove what `ensure` made, homes and scratch directories included; return their names."""
    removed: list[str] = []
    with locked(RECORD.with_name("lock"), "the accounts of this machine"):
        record = load_record(RECORD)
        for text in reversed(record.directories):
            removed += _remove_scratch(Path(text), record)
        for name in record.users:
            if _user_exists(name):
                _run(["userdel", *(["--remove"] if name in USERS else []), name])
                removed.append(name)
        for name in record.groups:
            if _group_exists(name):
                _run(["groupdel", name])
                removed.append(name)
        RECORD.unlink(missing_ok=True)
    shutil.rmtree(RECORD.parent, ignore_errors=True)
    return removed


def _remove_scratch(path: Path, record: Created) -> list[str]:
    if not path.is_dir():
        return []
    if path.name in record.users:
        shutil.rmtree(path, ignore_errors=True)
    try:
        path.rmdir()
    except FileNotFoundError:
        return [str(path)]
    except OSError:  # somebody else put something there: it is theirs
        return []
    return [str(path)]


def numbers(name: str) -> tuple[int, int]:
    """Return uid and gid of an account. Raises ClusterError when there is none."""
    try:
        user = pwd.getpwnam(name)
    except KeyError:
        raise ClusterError(f"there is no account '{name}' on this machine") from None
    return user.pw_uid, user.pw_gid


def _user_exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _group_exists(name: str) -> bool:
    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True


def _run(argv: Sequence[str]) -> None:
    result = subprocess.run(argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    # userdel says 12 when there is no mail directory to remove, and 0 otherwise; the account is gone.
    if result.returncode not in ((0, 12) if argv[0] == "userdel" else (0,)):
        raise ClusterError(f"{' '.join(argv)} failed: {(result.stderr or result.stdout).strip()}")
