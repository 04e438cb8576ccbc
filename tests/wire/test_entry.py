"""The entry program where the user is root: what only a root of all ids could do is answered as done, and is not."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path

import pytest
from piolet.system import pretendroot

ENTRY = Path(__file__).resolve().parents[2] / "build" / "plugins" / "piolet-entry"
# A /run of its own, with the words of an entrypoint, of which there are none, a variable, and the filter.
INSIDE = (
    "mount -t tmpfs none /run && mkdir /run/piolet && : >/run/piolet/entrypoint && printf '?A=B\\0' >/run/piolet/task"
    ' && cat "$FILTER" >/run/piolet/filter && exec "$@"'
)
CALLS = """
import json, os, sys
failed = {}
def attempt(name, *arguments):
    try:
        getattr(os, name)(*arguments)
    except OSError as error:
        failed[name] = error.errno
file = os.open(sys.argv[1], os.O_RDONLY)
attempt("chown", sys.argv[1], 5, 6)
attempt("lchown", sys.argv[1], 5, 6)
attempt("fchown", file, 5, 6)
attempt("setgroups", [5, 6])
for name in ("setgid", "setuid"):
    attempt(name, 33)
for name in ("setregid", "setreuid"):
    attempt(name, 33, 33)
for name in ("setresgid", "setresuid"):
    attempt(name, 33, 33, 33)
os.chmod(sys.argv[1], 0o640)
status = os.stat(sys.argv[1])
print(json.dumps([failed, [*os.getresuid(), *os.getresgid()], [status.st_uid, status.st_gid, status.st_mode & 0o7777]]))
"""


def run(root: bool, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the entry program in front of a command, as root of a user namespace of one id, or as nobody in none."""
    if not ENTRY.exists():
        pytest.skip("build/plugins is not built: make plugins")
    kind = ["--user", "--map-root-user"] if root else []
    nobody = [] if root else ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    command = ["unshare", *kind, "--mount", "--", "sh", "-c", INSIDE, "sh", *nobody]
    with tempfile.NamedTemporaryFile() as filtering:
        filtering.write(pretendroot.program())
        filtering.flush()
        done = subprocess.run(
            [*command, str(ENTRY), *words[1:]],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            env={"PATH": os.environ["PATH"], "PIOLET_ARGV0": words[0], "FILTER": filtering.name},
        )
    if "unshare failed" in done.stderr:
        pytest.skip(f"no user namespaces here: {done.stderr.strip()}")
    return done


def test_root_does_what_packages_want(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    done = run(True, "python3", "-c", CALLS, str(file))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [{}, [0] * 6, [0, 0, 0o640]]
    assert file.stat().st_uid == os.getuid()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes nobody")
def test_others_are_told_the_truth() -> None:
    with tempfile.TemporaryDirectory() as room:
        os.chmod(room, 0o755)
        file = Path(room, "file")
        file.touch()
        os.chown(file, 65534, 65534)
        done = run(False, "python3", "-c", CALLS, str(file))
    assert done.returncode == 0, done.stderr
    failed, ids, _ = json.loads(done.stdout)
    ids_of = {f"set{kind}{what}id" for kind in ("", "re", "res") for what in "ug"}
    assert set(failed) == {"chown", "lchown", "fchown", "setgroups"} | ids_of
    assert set(failed.values()) == {1} and ids == [65534] * 6


def test_what_the_command_starts_has_it_too(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run(
        True, "sh", "-c", f"sh -c 'chown 5:6 {tmp_path}/file && chgrp 7 {tmp_path}/file' && ls -n {tmp_path}/file"
    )
    assert done.returncode == 0 and done.stdout.split()[2:4] == ["0", "0"], done


def test_a_command_that_is_not_there() -> None:
    done = run(True, "/not/there")
    assert (done.returncode, done.stderr) == (
        127,
        "piolet: error: cannot run /not/there in the container: No such file or directory\n",
    )


@pytest.mark.parametrize(("program", "said"), [(str(ENTRY), "ran x\n"), (f"{ENTRY.parent}/./{ENTRY.name}", "x\n")])
def test_who_attaches_runs_no_entrypoint(program: str, said: str) -> None:
    """Called by another path, it does the rest of its work: the container's own tasks have run the entrypoint."""
    inside = (
        "mount -t tmpfs none /run && mkdir /run/piolet && printf 'sh\\0-c\\0echo ran \"$1\"\\0sh\\0x\\0' "
        '>/run/piolet/entrypoint && exec "$@"'
    )
    command = ["unshare", "--user", "--map-root-user", "--mount", "--", "sh", "-c", inside, "sh", program, "x"]
    environment = {"PATH": os.environ["PATH"], "PIOLET_ARGV0": "echo"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=environment)
    if "unshare failed" in done.stderr:
        pytest.skip(f"no user namespaces here: {done.stderr.strip()}")
    assert (done.stdout, done.stderr) == (said, "")
