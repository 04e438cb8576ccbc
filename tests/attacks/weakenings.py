"""The checks that are removed to show that an attack can succeed: by name, the file, and what replaces what in it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Weakening:
    """`changes`: the file (a path from the top of the repository, below daemons/), a text that is there once, and what
    stands in its place."""

    changes: tuple[tuple[str, str, str], ...]


def _of(*changes: tuple[str, str, str]) -> Weakening:
    return Weakening(changes)


WEAKENINGS: dict[str, Weakening] = {
    # What the reader of archives does not do: give names of the archive to the file system, and follow what is there.
    "archives are unpacked": _of(
        (
            "daemons/piolet/images/archive.py",
            """    os.mkdir(folder, 0o700)
    try:
""",
            """    os.mkdir(folder, 0o700)
    import tarfile

    with os.fdopen(os.dup(fd), "rb") as file, tarfile.open(fileobj=file) as archive:
        archive.extractall(folder + ".unpacked")
    with tarfile.open(folder + ".tar", "w", dereference=True) as archive:
        archive.add(folder + ".unpacked/blobs", "blobs")
        for name in ("oci-layout", "index.json"):
            archive.add(f"{folder}.unpacked/{name}", name)
    fd = os.open(folder + ".tar", os.O_RDONLY)
    try:
""",
        ),
        (
            "daemons/piolet/images/cage.py",
            """        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        soft, hard""",
            """        return ("none",)
        soft, hard""",
        ),
    ),
    "images are mounted where users' processes are": _of(
        (
            "daemons/piolet/node/main.py",
            '(("images", 0o700), ("build", 0o755))',
            '(("images", 0o755), ("build", 0o755))',
        ),
        (
            "daemons/piolet/node/main.py",
            '    linux.unshare(linux.CLONE_NEWNS)\n    linux.mount("pioletd", str(images)',
            '    return others\n    linux.mount("pioletd", str(images)',
        ),
    ),
    "binds of the host keep suid": _of(
        (
            "daemons/piolet/container/native.py",
            "        linux.set_mount_attributes(tree, linux.MOUNT_ATTR_NOSUID)\n",
            "",
        ),
    ),
    "squashfuse stays in pioletd's control group": _of(
        ("daemons/piolet/node/root/monitor.py", "stepd = who.peer if order.foreign or served else 0", "stepd = 0"),
    ),
    # The pause makes the moment in which the user can end the killer as long as a busy machine may make it.
    "a container is killed once": _of(
        ("daemons/piolet/node/root/endings.py", "        if status == 0:\n", "        if True:\n"),
        (
            "daemons/piolet/node/root/leftovers.py",
            "        if not _may_signal(1) and not _may_signal(monitor):\n",
            "        import time\n\n        time.sleep(0.05)\n"
            "        if not _may_signal(1) and not _may_signal(monitor):\n",
        ),
    ),
    "no worker slots for each user": _of(
        (
            "daemons/piolet/node/root/monitor.py",
            "if self._building.total() >= _WORKERS_MAX:",
            "if self._building.total() >= 12:",
        ),
        (
            "daemons/piolet/node/root/monitor.py",
            "if self._building[step.who.uid] >= _WORKERS_PER_USER_MAX:",
            "if False:",
        ),
    ),
    "an eval's orphans are not looked for": _of(
        ("daemons/piolet/node/root/zygote.py", "        if not descendants.end_all(_END_S):\n", "        if False:\n"),
        (
            "daemons/piolet/node/root/zygote.py",
            "        while not descendants.end_all(0.0):\n",
            "        while False:\n",
        ),
    ),
    "squashfuse keeps what it inherits": _of(
        (
            "daemons/piolet/container/fuse.py",
            "                linux.close_all_but({theirs.fileno()})\n",
            "                for name in map(int, os.listdir('/proc/self/fd')):\n"
            "                    if os.path.exists(f'/proc/self/fd/{name}'):\n"
            "                        os.set_inheritable(name, True)\n",
        ),
    ),
    "an eval keeps what it inherits": _of(("daemons/piolet/vet/runner/child.py", "    _close_others(answer)\n", "")),
    "packets are not checked": _of(
        (
            "daemons/piolet/transport/packets.py",
            """        if not isinstance(value, dict):
            raise _wrong(where, "an object", value)
""",
            "",
        ),
        (
            "daemons/piolet/transport/packets.py",
            "    except (ValueError, RecursionError) as error:\n",
            "    except ZeroDivisionError as error:\n",
        ),
        (
            "daemons/piolet/transport/packets.py",
            """        if type(value) is not kind:
            raise _wrong(where, kind.__name__, value)
""",
            "",
        ),
        (
            "daemons/piolet/transport/packets.py",
            "        if not needed <= value.keys() <= readers.keys():\n",
            "        if False:\n",
        ),
        (
            "daemons/piolet/transport/packets.py",
            """        if not isinstance(value, list):
            raise _wrong(where, "an array", value)
""",
            "",
        ),
    ),
    "the lengths of packets are not checked": _of(
        (
            "daemons/piolet/transport/packets.py",
            "        if not isinstance(value, list) or len(value) != len(readers):\n",
            "        if False:\n",
        ),
        (
            "daemons/piolet/transport/packets.py",
            """    if type(value) is not float or not math.isfinite(value):
        raise _wrong(where, "float", value)
    return value
""",
            "    return value  # type: ignore[return-value]\n",
        ),
    ),
    "sockets of root are everybody's": _of(
        (
            "daemons/piolet/node/main.py",
            "places.listener_at(socket_path, 0o600), places.listener_at(score_path, 0o600)",
            "places.listener_at(socket_path, 0o666), places.listener_at(score_path, 0o666)",
        ),
    ),
    "a full backlog is taken for a dead daemon": _of(
        (
            "daemons/piolet/system/peer.py",
            "        except BlockingIOError:\n            return True\n",
            "        except BlockingIOError:\n            return False\n",
        ),
    ),
    "whose a verdict is says the user": _of(
        (
            "daemons/piolet/vet/origin.py",
            "        if task.requirements or task.search or task.where != HOST:\n            return None\n",
            "        return BUILT_IN, task.target[-40:]\n",
        ),
        (
            "daemons/piolet/vet/origin.py",
            "return code if code is not None else (USER, None)",
            "return self.code(task) or (USER, None)",
        ),
    ),
    "the spool has no share for each user": _of(
        (
            "daemons/piolet/events/spool.py",
            "if not self._lines.take(uid) or not self._bytes.take(uid, len(line)):",
            "if False:",
        ),
        (
            "daemons/piolet/events/spool.py",
            "self._waiting.put_nowait((uid, line))",
            "self._waiting.put_nowait((0, line))",
        ),
    ),
    "everybody says how a step ended": _of(
        ("daemons/piolet/node/places.py", "    before = os.umask(0o177)\n", "    before = os.umask(0o111)\n"),
        ("daemons/piolet/node/server/eventdesk.py", "                if uid != 0:\n", "                if uid < 0:\n"),
    ),
    "the kernel's log as it is": _of(
        (
            "daemons/piolet/node/root/kernellog.py",
            "    if not priority.isdigit() or int(priority) >> 3 != _KERNEL or not _is_of_driver(line, entry):\n"
            "        return None\n",
            "    return line if _is_of_driver(line, entry) else None\n",
        ),
    ),
    "Pythons are not isolated": _of(
        (
            "daemons/piolet/samples/local.py",
            '[sys.executable, "-I", "-m", __name__, *arguments]',
            '[sys.executable, "-m", __name__, *arguments]',
        ),
        ("daemons/piolet/samples/local.py", 'cwd="/", env=closed_environment(os.environ),', ""),
        ("daemons/piolet/vet/step.py", '("python3", "-I", "-c", bundle.LOADER)', '("python3", "-c", bundle.LOADER)'),
        (
            "daemons/piolet/vet/requirements.py",
            '_call([sys.executable, "-I", "-m", "venv"',
            '_call([sys.executable, "-m", "venv"',
        ),
        ("daemons/piolet/vet/requirements.py", 'env=_environment(os.environ), cwd="/", text=True', "text=True"),
        (
            "daemons/piolet/vet/requirements.py",
            'command = [sys.executable, "-I", "-m", "pip"',
            'command = [sys.executable, "-m", "pip"',
        ),
    ),
    "no bound for a conversion": _of(
        (
            "daemons/piolet/images/limits.py",
            "    return min(UNPACKED_MOST, max(UNPACKED_FREE, ratio * packed))\n",
            "    return UNPACKED_MOST\n",
        ),
        ("daemons/piolet/images/limits.py", "    resource.setrlimit(resource.RLIMIT_DATA, (wanted, wanted))\n", ""),
        # As it was: a path may have any length, and every file keeps its own in full.
        (
            "daemons/piolet/images/tree.py",
            "        if parent.length + 1 + len(name) > _PATH_LIMIT:\n",
            "        if False:\n",
        ),
        (
            "daemons/piolet/images/tree.py",
            "            self.parent, self.name = parent, name\n",
            "            self.parent, self.name = parent, name\n"
            "            self.target = self.target or path_of(parent, name)\n",
        ),
    ),
    "saving writes over what is there": _of(
        (
            "daemons/piolet/images/newfile.py",
            "    if not stat.S_ISREG(there.st_mode):\n",
            "    return\n    if not stat.S_ISREG(there.st_mode):\n",
        ),
        (
            "daemons/piolet/images/newfile.py",
            "            descriptor = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666)\n",
            "            linked = os.path.islink(path)\n"
            "            kind = os.O_TRUNC if linked else os.O_TMPFILE\n"
            "            descriptor = os.open(path if linked else folder, kind | os.O_RDWR, 0o666)\n",
        ),
    ),
    "saving follows links": _of(
        (
            "daemons/piolet/images/saved.py",
            "_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC\n",
            "_OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC\n",
        ),
        (
            "daemons/piolet/images/saved.py",
            "status = os.stat(name, dir_fd=directory, follow_symlinks=False)",
            "status = os.stat(name, dir_fd=directory)",
        ),
    ),
    "a file that is saved has no end": _of(
        (
            "daemons/piolet/images/saved.py",
            "os.splice(file, self._descriptor, min(left, _PIECE))",
            "os.splice(file, self._descriptor, _PIECE)",
        ),
    ),
    "users may remove public images": _of(
        (
            "daemons/piolet/images/admin.py",
            "return rules(uid) or (not access.public and uid in access.users)",
            "return True",
        ),
        (
            "daemons/piolet/images/admin.py",
            "if access is None or rules(uid) or not (access.public or set(access.users) - {uid}):",
            "if True:",
        ),
    ),
    "logs are not escaped": _of(
        (
            "daemons/piolet/base/logs.py",
            "record.message = shown(record.getMessage())",
            "record.message = record.getMessage()",
        ),
    ),
    "log lines have no bound": _of(
        ("daemons/piolet/base/logs.py", "if user is not None and not self._rates.take(user):", "if False:"),
    ),
    "a registry's answer has no bound": _of(
        (
            "daemons/piolet/images/pull.py",
            "            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))\n",
            "            pass\n",
        ),
    ),
    "steps of other jobs are looked at": _of(
        (
            "daemons/piolet/node/server/attaching.py",
            "    if attach.job_of(name) != str(start.job):\n",
            "    if False:\n",
        ),
        (
            "daemons/piolet/node/root/attachments.py",
            "if (target.who.uid, target.who.job) != (who.uid, who.job):",
            "if False:",
        ),
    ),
    "a container that is over is emptied once": _of(
        (
            "daemons/piolet/node/root/attachments.py",
            "                one.due = self._clock() + one.wait_s\n",
            "                pass\n",
        ),
    ),
    "a container of before is believed without a proof": _of(
        (
            "daemons/piolet/node/root/attachments.py",
            "if numbers == (known.user, known.mounts) and _owner(found[0]) == known.uid and known.alive():",
            "if True:",
        ),
    ),
    "whoever owns a file of a group's store is believed": _of(
        (
            "daemons/piolet/images/shared.py",
            "            self._known[uid] = uid == os.geteuid() or self._is_member(uid)\n",
            "            self._known[uid] = True\n",
        ),
    ),
    "a group's store may be anybody's": _of(
        ("daemons/piolet/images/shared.py", "    elif mode & 0o002:\n", "    elif False:\n"),
    ),
    # What users bring about counts for a rule that takes nodes out, and asks for as many re-vets as it likes.
    "users are believed": _of(
        ("daemons/piolet/central/rules/trust.py", "    if users and action != REVET:\n        return None\n", "")
    ),
    "re-vets have no budget": _of(
        (
            "daemons/piolet/central/rules/revets.py",
            "PER_USER, BY_USERS, SHARE = 4, 10, 0.01",
            "PER_USER = BY_USERS = SHARE = 10**9",
        )
    ),
}
