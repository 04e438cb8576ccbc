"""The packages installed, used, upgraded and removed, each in a root directory of its own."""

from __future__ import annotations

from pathlib import Path

from tests.support import rpm as support
from tests.support.rpm import Packages, Root, mode
from tools import rpm
from tools.cluster.packages import slurm_version

TOML = "/etc/piolet/piolet.toml"
LINE = "/etc/slurm/plugstack.conf.d/piolet.conf"
UNITS = ("pioletd.service", "piolet-forward.service", "piolet-imaged.service", "piolet-central.service")


def test_what_is_installed_is_what_the_packages_say(installed: Root) -> None:
    """Installed where there is neither systemd nor a useful shell; RPM finds every file as it should be."""
    for name in ("common", "login", "plugins", "node", "images", "central", "doc"):
        installed.rpm("--verify", "--nodeps", f"piolet-{name}")
    assert mode(installed.file("/usr/lib64/slurm/piolet_environment.so")) == 0o755
    assert mode(installed.file("/usr/lib/systemd/system/pioletd.service")) == mode(installed.file(TOML)) == 0o644


def test_the_commands_run_where_they_are_installed(installed: Root) -> None:
    """On a system's interpreter, as nobody, whatever the user's Python variables say."""
    assert installed.chroot("/usr/bin/piolet", "--version").stdout == f"piolet {rpm.version()}\n"
    for command in ("pioletd", "piolet-imaged", "piolet-forward", "piolet-central"):
        assert "usage" in installed.chroot(f"/usr/bin/{command}", "--help").stdout
    assert installed.chroot("/usr/bin/piolet", "config", "check").stderr == ""
    hostile = ["/usr/bin/env", "PYTHONPATH=/nowhere", "PYTHONHOME=/nowhere", "/usr/bin/piolet", "--version"]
    assert installed.chroot(*hostile).stdout


def test_the_environment_is_whole_and_takes_nothing_else(installed: Root) -> None:
    """Everything that Piolet imports comes from the package or the standard library; pip is there for evals."""
    modules = "cffi matplotlib.figure numpy prometheus_client psutil pyarrow.parquet pynvml rich yaml piolet._wire pip"
    code = f"""
import importlib, sys
for name in {modules.split()!r}:
    path = importlib.import_module(name).__file__
    assert path.startswith("/usr/lib/piolet/lib/"), path
assert not [path for path in sys.path if "dist-packages" in path or path.startswith("/usr/local")], sys.path
assert sys.flags.isolated
assert importlib.import_module("piolet").__cached__.endswith(".pyc")
"""
    installed.chroot("/usr/lib/piolet/bin/python3", "-I", "-c", code)


def test_bytecode_is_there_and_never_looked_up_again(installed: Root) -> None:
    """Every module has its bytecode, marked as valid whatever the source's time stamp says."""
    packages = next(installed.file("/usr/lib/piolet/lib").iterdir()) / "site-packages"
    for source in (packages / "piolet").rglob("*.py"):
        compiled = next((source.parent / "__pycache__").glob(f"{source.stem}.*.pyc"))
        assert compiled.read_bytes()[4:8] == b"\x01\0\0\0", compiled


def test_another_slurm_is_refused(packages: Packages, system: Path, tmp_path: Path) -> None:
    """The plugins go with the Slurm that they were built for: not with the next one, not with the one before."""
    support.run("chmod", "755", tmp_path)
    major, minor = slurm_version()
    numbers = {f"{major}.{minor:02}.11": True, f"{major + 1}.02.1": False, f"{major - 1}.08.8": False}
    for number, good in numbers.items():
        root = Root(tmp_path / number)
        other = support.stand_in(tmp_path / "stand-ins", f"slurm-{number}", [f"slurm = {number}"])
        wanted = [packages[name] for name in ("common", "login", "plugins")]
        done = root.rpm("-i", "--test", system, other, *wanted, check=False)
        assert (done.returncode == 0) == good, done.stderr
        assert good or "is needed by piolet-plugins" in done.stderr


def test_a_life(packages: Packages, next_release: Packages, tmp_path: Path) -> None:
    """Installed, used, upgraded, removed. What the administrator wrote survives; nothing else of ours does."""
    support.run("chmod", "755", tmp_path)
    root = Root(tmp_path / "root", systemd=True)
    before = root.tree()
    # Requirements are the business of the other tests, and packages of a short circuit have one that nobody has.
    root.rpm("-i", "--nodeps", *packages.paths.values())
    calls = root.calls()
    assert calls[0] == "systemd-sysusers piolet.conf", "what belongs to the accounts is made after them"
    assert sorted(calls[1:]) == sorted(
        [*(f"systemd-tmpfiles --create piolet-{name}.conf" for name in ("node", "images")), *each("preset")]
    )
    # What an administrator and the daemons write.
    root.file(TOML).write_text("[node]\nverbose = true\n", "ascii")
    root.file("/etc/piolet/evals/ours.py").write_text("pass\n", "ascii")
    state = {"/var/lib/piolet/images/an-image", "/var/spool/piolet/vet/a-verdict"}
    for path in state:
        root.file(path).parent.mkdir(parents=True)
        root.file(path).touch()

    root.rpm("-U", "--nodeps", *next_release.paths.values())
    calls = root.calls()
    assert {"systemctl daemon-reload", *(f"systemctl try-restart {unit}" for unit in UNITS)} <= set(calls)
    assert not [call for call in calls if "preset" in call or "disable" in call]
    assert root.file(TOML).read_text("ascii") == "[node]\nverbose = true\n"
    assert root.file(f"{TOML}.rpmnew").read_text("utf-8").endswith("# new in release 2\n")
    # Nobody had edited this one.
    assert root.file(LINE).read_text("utf-8").endswith("# new in release 2\n")
    assert not root.file(f"{LINE}.rpmnew").exists()

    root.file(f"{TOML}.rpmnew").unlink()
    root.rpm("-e", "--nodeps", *(f"piolet-{name}" for name in packages.paths))
    assert sorted(root.calls()) == sorted(each("disable --now"))
    left = {path for path in root.tree() - before if not root.file(path).is_dir()}
    assert left == {f"{TOML}.rpmsave", "/etc/piolet/evals/ours.py"} | state
    # Directories are the system's, or hold what was just named.
    ours = {path for path in root.tree() - before if "piolet" in path} - left
    assert ours == {"/etc/piolet", "/etc/piolet/evals"} | {str(path) for name in state for path in parents(name)}


def each(verb: str) -> list[str]:
    """Return the calls of systemctl with a verb, one for each unit."""
    return [f"systemctl --no-reload {verb} {unit}" for unit in UNITS]


def parents(path: str) -> list[Path]:
    """Return the directories of ours above a path."""
    return [directory for directory in Path(path).parents if "piolet" in str(directory)]
