"""The private cluster tool on a real machine: processes, records, accounts, `as`, bootstrap. No cluster is started."""

from __future__ import annotations

import grp
import hashlib
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.waiting import wait_until
from tools.cluster import (
    accounts,
    cgroup,
    config,
    lifecycle,
    processes,
    state,
)
from tools.cluster.errors import ClusterError
from tools.cluster.layout import REPOSITORY, Layout
from tools.cluster.state import Process, State

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(root=tmp_path / "cluster", build=tmp_path / "build")


@pytest.fixture
def settings(layout: Layout) -> config.Settings:
    ports = {"registry": 20001, "slurmctld": 20002, "node1": 20003, "node2": 20004}
    return config.Settings(layout, 2, True, "127.0.0.1", True, ports, (22, 5))


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(["sleep", "60"])
    yield child
    child.kill()
    child.wait(10)


def record_of(child: subprocess.Popen[bytes]) -> Process:
    start = processes.start_time(child.pid)
    assert start is not None
    return Process("sleeper", child.pid, start)


# Processes


def test_a_reused_pid_is_neither_alive_nor_signalled(sleeper: subprocess.Popen[bytes]) -> None:
    earlier = replace(record_of(sleeper), start=record_of(sleeper).start - 1)
    assert not processes.alive(earlier)
    assert not processes.terminate(earlier, signal.SIGKILL)
    assert sleeper.poll() is None


def test_our_own_process_is_signalled(sleeper: subprocess.Popen[bytes]) -> None:
    process = record_of(sleeper)
    assert processes.alive(process)
    assert processes.terminate(process)
    assert processes.wait_end([process], 10) == []
    assert sleeper.wait(10) == -signal.SIGTERM


def test_a_zombie_is_not_alive(sleeper: subprocess.Popen[bytes]) -> None:
    process = record_of(sleeper)
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert not processes.alive(process)


def test_a_process_with_brackets_and_blanks_in_its_name_has_a_start_time(tmp_path: Path) -> None:
    program = tmp_path / "a ) R 1 (b"
    shutil.copy("/bin/sleep", program)
    child = subprocess.Popen([program, "60"])
    try:
        assert record_of(child).start > record_of_pid_1()
    finally:
        child.kill()
        child.wait(10)


def record_of_pid_1() -> int:
    start = processes.start_time(1)
    assert start is not None
    return start


def test_a_process_that_ends_early_fails_the_wait_and_shows_its_log(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    log = tmp_path / "log"
    log.write_text("the reason\n")
    process = record_of(sleeper)
    sleeper.kill()
    with pytest.raises(ClusterError, match="ended before it was ready") as caught:
        processes.wait_ready(process, log, 10, lambda: False)
    assert "  | the reason" in caught.value.render()


def test_a_wait_for_what_never_comes_is_bounded(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    with pytest.raises(ClusterError, match="sleeper was not ready after 0 s"):
        processes.wait_ready(record_of(sleeper), tmp_path / "log", 0.05, lambda: False)


@needs_root
def test_the_group_holds_children_that_left_their_session_and_kill_ends_them(tmp_path: Path) -> None:
    fallback = tmp_path / "cgroup"
    group = cgroup.create(f"unit-test-{os.getpid()}", fallback)
    try:
        shell = ["/bin/sh", "-c", "setsid -f setsid -f sleep 60; exec sleep 60"]
        processes.spawn("shell", shell, tmp_path / "log", group)
        wait_until(lambda: len(cgroup.members(group)) == 2)
        cgroup.kill(group)
        assert cgroup.members(group) == []
    finally:
        cgroup.kill(group)
        processes.reap()
        cgroup.remove(group, fallback)
    assert not group.exists()


def test_the_hierarchy_is_found_among_others_and_its_path_unescaped() -> None:
    lines = [
        "30 20 0:30 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu",
        "31 20 0:31 / /read\\040only ro,relatime - cgroup2 cgroup2 ro",
        "32 20 0:32 / /with\\040blank rw,relatime shared:4 - cgroup2 cgroup2 rw",
    ]
    assert cgroup.find_hierarchy("\n".join(lines)) == Path("/with blank")
    assert cgroup.find_hierarchy(lines[0]) is None


# State


def test_state_survives_a_round_trip(tmp_path: Path) -> None:
    before = State("boot", 4, True, "/group", {"registry": 20001}, 1.5, True, (Process("a", 1, 2),))
    state.save(tmp_path / "cluster.json", before)
    assert state.load(tmp_path / "cluster.json") == before


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"processes": [{}]}', '{"processes": [], "unknown": 1}'])
def test_a_record_that_is_not_ours_is_no_record(tmp_path: Path, text: str) -> None:
    (tmp_path / "cluster.json").write_text(text)
    assert state.load(tmp_path / "cluster.json") is None


def test_a_record_of_an_earlier_boot_is_not_a_running_cluster(layout: Layout, sleeper: subprocess.Popen[bytes]) -> None:
    layout.root.mkdir()
    now = State(state.boot_id(), 1, True, "/nowhere", {}, 0.0, True, (record_of(sleeper),))
    state.save(layout.state_file, now)
    assert lifecycle.running(layout) == now
    state.save(layout.state_file, replace(now, boot="another"))
    assert lifecycle.running(layout) is None
    state.save(layout.state_file, replace(now, ready=False))
    assert lifecycle.running(layout) is None


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    state.write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        state.write_atomically(path, "new \udcff")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_lock_that_is_held_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    with (
        state.locked(tmp_path / "lock", "a thing"),
        pytest.raises(ClusterError, match="working on a thing"),
        state.locked(tmp_path / "lock", "a thing", wait_s=0.05),
    ):
        pass
    with state.locked(tmp_path / "lock", "a thing", wait_s=0.0):
        pass


# Accounts


@needs_root
def test_accounts_are_made_found_again_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user, group = f"piotest{os.getpid() % 100000}", f"piotestg{os.getpid() % 100000}"
    other = f"piotesto{os.getpid() % 100000}"
    monkeypatch.setattr(accounts, "RECORD", tmp_path / "lib" / "created.json")
    monkeypatch.setattr(accounts, "USERS", (user, other))
    monkeypatch.setattr(accounts, "PRIMARY", {other: group})
    monkeypatch.setattr(accounts, "SERVICES", ())
    monkeypatch.setattr(accounts, "GROUPS", {group: (user,)})
    monkeypatch.setattr(accounts, "SCRATCH", tmp_path / "scratch")
    try:
        assert user in accounts.ensure()
        made = pwd.getpwnam(user)
        assert grp.getgrnam(group).gr_mem == [user]
        primary = pwd.getpwnam(other)
        assert primary.pw_gid == grp.getgrnam(group).gr_gid != primary.pw_uid
        assert (tmp_path / "scratch" / user).stat().st_uid == made.pw_uid
        assert "all there" in accounts.ensure()
    finally:
        removed = accounts.remove()
    assert {user, other, group} <= set(removed)
    with pytest.raises(KeyError):
        pwd.getpwnam(user)
    with pytest.raises(KeyError):
        grp.getgrnam(group)
    assert not Path(made.pw_dir).exists()
    assert not (tmp_path / "scratch").exists()


@needs_root
def test_what_was_there_before_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "RECORD", tmp_path / "lib" / "created.json")
    monkeypatch.setattr(accounts, "USERS", ("root",))
    monkeypatch.setattr(accounts, "PRIMARY", {})
    monkeypatch.setattr(accounts, "SERVICES", ())
    monkeypatch.setattr(accounts, "GROUPS", {})
    monkeypatch.setattr(accounts, "SCRATCH", tmp_path)
    (tmp_path / "root").mkdir()
    assert "all there" in accounts.ensure()
    assert accounts.remove() == []
    assert pwd.getpwnam("root").pw_uid == 0
    assert (tmp_path / "root").is_dir()


@needs_root
def test_a_directory_of_a_lost_account_is_adopted_and_one_of_somebody_is_not(tmp_path: Path) -> None:
    orphan = tmp_path / "orphan"
    (orphan / "below").mkdir(parents=True)
    (orphan / "below" / "link").symlink_to("/etc/passwd")
    for path in (orphan, orphan / "below", orphan / "below" / "link"):
        os.chown(path, 3_999_999, 3_999_999, follow_symlinks=False)
    assert accounts._adopt(orphan, "nobody")
    assert {path.lstat().st_uid for path in (orphan, *orphan.rglob("*"))} == {65534}
    assert os.stat("/etc/passwd").st_uid == 0
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    with pytest.raises(ClusterError, match="belongs to root, but nobody needs it"):
        accounts._adopt(theirs, "nobody")


# The script `as`


@pytest.fixture
def as_script(settings: config.Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The script `as` for one user who is sure to exist: nobody."""
    monkeypatch.setattr("tools.cluster.accounts.USERS", ("nobody",))
    monkeypatch.setattr(config, "_home", lambda name: "/")
    path = tmp_path / "as"
    path.write_text(config.as_script(settings))
    path.chmod(0o755)
    return path


@needs_root
def test_as_passes_status_input_and_arguments_through(as_script: Path) -> None:
    command = [str(as_script), "nobody", "sh", "-c", 'cat; echo "[$1]" "$USER" "$HOME"; id -u; exit 7', "x", "a  b'c"]
    result = subprocess.run(command, input="in\n", capture_output=True, text=True, check=False)
    assert result.returncode == 7
    assert result.stdout.splitlines() == ["in", "[a  b'c] nobody /", "65534"]


@needs_root
def test_as_gives_a_clean_environment(as_script: Path) -> None:
    result = subprocess.run(
        [str(as_script), "nobody", "env"], capture_output=True, text=True, check=True, env={**os.environ, "LEAK": "1"}
    )
    names = {line.partition("=")[0] for line in result.stdout.splitlines()}
    assert "LEAK" not in names
    assert names >= {"HOME", "USER", "LOGNAME", "PATH", "SLURM_CONF", "REGISTRY", "DEMO_IMAGE"}


@needs_root
def test_as_starts_at_home_where_the_directory_is_closed_to_the_user(as_script: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    result = subprocess.run([str(as_script), "nobody", "pwd"], capture_output=True, text=True, check=True, cwd=closed)
    assert result.stdout == "/\n"


@needs_root
def test_as_is_killed_by_the_signal_that_kills_the_command(as_script: Path) -> None:
    command = [str(as_script), "nobody", "sh", "-c", "kill -TERM $$"]
    assert subprocess.run(command, check=False).returncode == -signal.SIGTERM


def test_as_refuses_somebody_else(as_script: Path) -> None:
    result = subprocess.run([str(as_script), "root", "true"], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "'root' is not a user of this cluster; there are: nobody" in result.stderr


# Bootstrap


@pytest.fixture
def checkout() -> Iterator[Path]:
    """A copy of bootstrap.sh in a checkout that only its owner can enter. Its path is not below pytest's."""
    base = Path(f"/var/tmp/piolet-bootstrap-test-{os.getpid()}")
    tools = base / "home" / "checkout" / "tools"
    tools.mkdir(parents=True)
    shutil.copy(REPOSITORY / "tools" / "bootstrap.sh", tools)
    yield base / "home" / "checkout"
    for target in (tools.parent / "build",):
        if target.is_symlink():
            shutil.rmtree(os.readlink(target), ignore_errors=True)
    shutil.rmtree(base)


def bootstrap(checkout: Path) -> subprocess.CompletedProcess[str]:
    command = [str(checkout / "tools" / "bootstrap.sh"), "directory"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_build_stays_where_users_can_reach_it(checkout: Path) -> None:
    result = bootstrap(checkout)
    assert (result.returncode, result.stdout) == (0, "")
    assert (checkout / "build").is_dir()
    assert not (checkout / "build").is_symlink()


def test_build_moves_out_of_a_closed_directory_and_takes_the_cache_along(checkout: Path) -> None:
    (checkout / "build" / "cache").mkdir(parents=True)
    (checkout / "build" / "cache" / "dear").write_text("kept")
    (checkout / "build" / "venv").mkdir()
    checkout.parent.chmod(0o700)
    result = bootstrap(checkout)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 1
    assert (checkout / "build").is_symlink()
    assert (checkout / "build" / "cache" / "dear").read_text() == "kept"
    assert not (checkout / "build" / "venv").exists()
    again = bootstrap(checkout)
    assert (again.returncode, again.stdout) == (0, "")


def test_a_place_that_somebody_else_made_is_refused(checkout: Path) -> None:
    checkout.parent.chmod(0o700)
    digest = hashlib.sha256(str(checkout).encode()).hexdigest()[:12]
    squatted = Path(f"/var/tmp/piolet-build-{digest}")
    squatted.mkdir()
    squatted.chmod(0o777)
    try:
        result = bootstrap(checkout)
        assert result.returncode == 1
        assert "not a directory of ours alone" in result.stderr
        assert not (checkout / "build").exists()
    finally:
        squatted.rmdir()
