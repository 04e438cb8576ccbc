"""What the packages hold, require and do, seen without installing them; and that they can be made again."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

from tests.support.rpm import Builds, Packages, query, run
from tools.cluster.packages import slurm_version
from tools.rpm import LOCK, MACHINES, ROOT, SPEC, fetch, sources, version

PLUGINS = "/usr/lib64/slurm"
ENTRIES = "/etc/slurm/plugstack.conf.d"
NAMES = ("piolet", "vet", "score", "outcomes")
HOME = "/usr/lib/piolet"


def test_two_builds_give_the_same_bytes(builds: Builds) -> None:
    """Whoever builds the same sources anywhere gets the same packages."""
    sums = [
        {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in build.paths.items()}
        for build in (builds.first, builds.second)
    ]
    assert set(sums[0]) == {"common", "login", "plugins", "node", "images", "central", "doc"}
    assert sums[0] == sums[1]


def test_nothing_in_them_knows_where_or_when_they_were_built(packages: Packages, builds: Builds) -> None:
    """No path of the build in what is ours, no name of the machine, and the time of the last commit."""
    place = str(builds.work).encode()
    buildroot = next((builds.work / "BUILDROOT").glob("*-1.*"))
    ours = [path for path in buildroot.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(ours) > 1000
    assert not [path for path in ours if place in path.read_bytes()]
    for path in packages.paths.values():
        assert query(path, "--qf", "%{BUILDHOST}") == ["reproducible"]
        commit = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, check=True)
        assert query(path, "--qf", "%{BUILDTIME}") == [commit.stdout.decode().strip()]


def test_rpmlint_has_nothing_to_say(packages: Packages) -> None:
    """But what packaging/rpm/rpmlint.toml gives a reason for."""
    configuration = SPEC.with_name("rpmlint.toml")
    done = run("rpmlint", "-c", configuration, *packages.paths.values(), SPEC, check=False)
    assert "7 packages and 1 specfiles checked; 0 errors, 0 warnings" in done.stdout, done.stdout


def test_versions_agree(packages: Packages) -> None:
    """setup.py, the spec and what is installed say the same."""
    assert f'version="{version()}"' in (ROOT / "setup.py").read_text("utf-8")
    major, minor = slurm_version()
    release = f"{version()}-1.slurm{major}.{minor:02}"
    assert all(query(path, "--qf", "%{VERSION}-%{RELEASE}") == [release] for path in packages.paths.values())


def test_the_lock_has_every_requirement(packages: Packages) -> None:
    """requirements.txt's pins are the lock's, and all of the lock is declared as bundled."""
    pins = re.compile(r"^([\w.-]+==\S+)", re.MULTILINE)
    lock = set(pins.findall(LOCK.read_text("utf-8")))
    assert set(pins.findall((ROOT / "requirements.txt").read_text("utf-8"))) <= lock
    of_central = set(pins.findall((ROOT / "requirements-central.txt").read_text("utf-8")))
    assert of_central == set(pins.findall(LOCK.read_text("utf-8").partition("# piolet-central")[2]))
    for name, wanted, own in (("common", lock - of_central, 1), ("central", of_central, 0)):
        provided = "\n".join(query(packages[name], "--provides"))
        declared = set(re.findall(r"bundled\(python3dist\((\S+)\)\) = (\S+)", provided))
        assert {"==".join(one) for one in declared} == {pin for pin in wanted if not pin.startswith(BUILD_ONLY)}
        held = [path for path in packages.files(name) if path.endswith(".dist-info")]
        assert len(held) == len(declared) + own  # piolet itself


BUILD_ONLY = ("setuptools==", "wheel==")


def test_what_is_required_of_the_system(packages: Packages) -> None:
    """These names and no others: a new one must be known to RHEL and SLES."""
    names = {line.split()[0] for line in packages.foreign()}
    libraries = {name for name in names if re.match(r"((lib[\w+]+|ld-linux[\w-]*)\.so\.\d|rtld\()", name)}
    python = f"/usr/bin/python3.{sys.version_info.minor}"
    assert names - libraries == {python, "/bin/sh", "skopeo", "squashfs-tools", "zstd", "(slurm"}
    assert query(packages["node"], "--recommends") == ["(piolet-squashfuse or squashfuse)", "squashfs-tools >= 4.5"]
    sonames = {name.split("(")[0] for name in libraries}
    known = "libc libm libdl libpthread librt libgcc_s libstdc++ libz ld-linux-x86-64 ld-linux-aarch64 libslurm rtld"
    assert {name.split(".so")[0] for name in sonames} <= {*known.split(), "libresolv"}
    major, minor = slurm_version()
    wanted = f"(slurm >= {major}.{minor:02} with slurm < {major}.{minor + 1:02})"
    assert wanted in query(packages["plugins"], "--requires")
    provided = {line.split()[0] for path in packages.paths.values() for line in query(path, "--provides")}
    assert not {name for name in provided if not re.match(r"piolet-|config\(piolet-|bundled\(", name)}


def test_one_set_of_sources_is_for_every_architecture(tmp_path: Path) -> None:
    """Each distribution of the lock has a wheel for each architecture of the spec, or one for all."""
    wheels = (ROOT / "build").resolve() / "wheels-of-sources"
    fetch(wheels, MACHINES)
    sources(tmp_path, wheels, 0)
    with tarfile.open(tmp_path / "piolet-wheels.tar") as archive:
        names = [name.removeprefix("wheels/") for name in archive.getnames()]
    said = run("rpmspec", "-P", SPEC).stdout
    assert re.findall(r"^ExclusiveArch: +(.*)$", said, re.MULTILINE) == [" ".join(MACHINES)]
    locked = re.findall(r"^([\w.-]+)==(\S+)$", LOCK.read_text("utf-8"), re.MULTILINE)
    for distribution, number in locked:
        start = f"{re.sub('[-_.]+', '_', distribution).lower()}-{number}-"
        found = [name for name in names if name.lower().startswith(start)]
        assert found, distribution
        if not found[0].endswith("-any.whl"):
            tags = [name.rpartition("manylinux_2_")[2].partition(".")[0] for name in found]
            assert {tag.partition("_")[2] for tag in tags} == set(MACHINES), found
    assert len(locked) > 20 and len(names) > len(locked)


def test_names_of_another_slurm() -> None:
    """OpenHPC's packages of headers and of Slurm are not called alike."""
    names = {"piolet_slurm_package": "slurm-ohpc", "piolet_slurm_devel": "slurm-devel-ohpc"}
    defines = [word for name, value in names.items() for word in ("--define", f"{name} {value}")]
    said = run("rpmspec", "-P", *defines, SPEC).stdout
    assert re.search(r"^BuildRequires: +slurm-devel-ohpc$", said, re.MULTILINE)
    assert re.search(r"^Requires: +\(slurm-ohpc >= \S+ with slurm-ohpc < \S+\)$", said, re.MULTILINE)
    assert re.search(r"^BuildRequires: +slurm-devel$", run("rpmspec", "-P", SPEC).stdout, re.MULTILINE)


def test_the_files_of_each_package(packages: Packages) -> None:
    """Who has what; the environment's own files are too many to name."""
    licence = {f"/usr/share/licenses/piolet-{{}}-{version()}", f"/usr/share/licenses/piolet-{{}}-{version()}/LICENSE"}
    expected = {
        "login": {
            "/usr/bin/piolet",
            "/etc/edf",
            "/usr/share/bash-completion/completions/piolet",
            "/usr/share/zsh/site-functions/_piolet",
            "/usr/share/piolet",
            "/usr/share/piolet/grafana",
            "/usr/share/piolet/grafana/piolet-job.json",
        },
        "plugins": {
            *(f"{PLUGINS}/piolet_{name}.so" for name in ("environment", "vet", "score", "outcomes")),
            *(f"{ENTRIES}/{name}.conf" for name in NAMES),
            ENTRIES,
        },
        "node": {
            "/usr/bin/pioletd",
            "/usr/bin/piolet-forward",
            "/usr/libexec/piolet",
            "/usr/libexec/piolet/piolet-entry",
            "/usr/libexec/piolet/piolet-vet-task",
            "/usr/lib/systemd/system/pioletd.service",
            "/usr/lib/systemd/system/piolet-forward.service",
            "/usr/lib/tmpfiles.d/piolet-node.conf",
        },
        "images": {
            "/usr/bin/piolet-imaged",
            "/usr/lib/systemd/system/piolet-imaged.service",
            "/usr/lib/tmpfiles.d/piolet-images.conf",
        },
    }
    place = "/usr/lib/piolet-central"
    central = {path for path in packages.files("central") if path != place and not path.startswith(f"{place}/")}
    python = f"{HOME}/lib/python3.{sys.version_info.minor}/site-packages"
    assert central == {path.format("central") for path in licence} | {
        "/usr/bin/piolet-central", "/usr/lib/systemd/system/piolet-central.service", f"{python}/piolet_central.pth",
    }  # fmt: skip
    assert not [
        path for path in packages.files("common") if "sqlalchemy" in path.lower() or "starlette" in path.lower()
    ]
    for name, wanted in expected.items():
        assert set(packages.files(name)) == wanted | {path.format(name) for path in licence}
    common = {path for path in packages.files("common") if not path.startswith((HOME, "/usr/share/licenses/"))}
    etc = {f"/etc/piolet{part}" for part in ("", "/evals", "/hooks.d", "/detectors.d", "/piolet.toml")}
    assert common == {*etc, "/usr/lib/sysusers.d/piolet.conf"}
    programs = {path.rpartition("/")[2] for path in packages.files("common") if path.startswith(f"{HOME}/bin/")}
    assert programs == {"python3", "piolet", "pioletd", "piolet-imaged", "piolet-forward", "piolet-central"}
    assert all(
        path.startswith(("/usr/share/doc/piolet", "/usr/share/man/", "/usr/share/lic"))
        for path in packages.files("doc")
    )


def test_owners_and_modes(packages: Packages) -> None:
    """Everything is root's, nothing is setuid, and nobody else may write anything."""
    for name in packages.paths:
        for path, entry in packages.files(name).items():
            octal, *owners = entry.split()
            bits = int(octal, 8)
            assert owners == ["root", "root"], path
            if bits >> 12 == 0o12:  # a link
                continue
            directory = bits >> 12 == 0o4
            runs = re.match(
                rf"{PLUGINS}/|/usr/libexec/piolet/|{HOME}/bin/|({HOME}/lib|{HOME}-central)/.*\.so(\.|$)", path
            )
            wanted = 0o755 if directory or runs else 0o644
            assert bits & 0o7777 == wanted, f"{path} has the mode {octal}"


def test_configuration_is_kept_by_upgrades(packages: Packages) -> None:
    """Configuration is marked as such, all of it and nothing else."""
    marked = {path for name in packages.paths for path in query(packages[name], "--configfiles")}
    assert marked == {"/etc/piolet/piolet.toml", *(f"{ENTRIES}/{name}.conf" for name in NAMES)}
    for name in ("common", "plugins"):
        flags = query(packages[name], "--qf", "[%{FILENAMES} %{FILEFLAGS:fflags}\\n]")
        assert all(line.endswith(" cn") for line in flags if line.split()[0] in marked)


def test_scriptlets_call_systemd_and_nothing_else(packages: Packages) -> None:
    """No scriptlet touches a file by itself, and none can fail a transaction."""
    line = re.compile(
        r'(if (\[ "\$1" -(eq|ge) [01] \] && )?\[ -x (?P<program>/usr/bin/system(ctl|d-sysusers|d-tmpfiles)) \]; then '
        r"((?P=program) [a-z0-9. -]+ \|\| :; )+fi|(post|pre)\w+ scriptlet \(using /bin/sh\):)"
    )
    for name, path in packages.paths.items():
        scripts = [text for text in query(path, "--scripts", "--triggers", "--filetriggers") if text]
        assert bool(scripts) == (name in ("common", "node", "images", "central"))
        assert not [text for text in scripts if not line.fullmatch(text)]


def test_the_plugins_are_those_of_make_plugins(builds: Builds, tmp_path: Path) -> None:
    """The same C with the same hardening, byte for byte; only what debuggers read was taken away."""
    run(sys.executable, ROOT / "spank" / "build_shims.py", "--output", tmp_path, cwd=ROOT)
    buildroot = next((builds.work / "BUILDROOT").glob("*-1.*"))
    packaged = [*(buildroot / PLUGINS[1:]).iterdir(), *(buildroot / "usr/libexec/piolet").iterdir()]
    assert {path.name for path in packaged} == {path.name for path in tmp_path.iterdir()}
    for path in packaged:
        run("strip", tmp_path / path.name)
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name
    for path in (path for path in packaged if path.suffix == ".so"):
        assert "BIND_NOW" in run("readelf", "-d", path).stdout
        assert "GNU_RELRO" in run("readelf", "-lW", path).stdout
        assert re.search(r"GNU_STACK .* RW ", run("readelf", "-lW", path).stdout)


def test_paths_agree_with_where_things_are(packages: Packages) -> None:
    """Units, plugstack's lines, the configuration's defaults, accounts and directories name what the packages bring."""
    from piolet.site.config import Config

    everything = {path for name in packages.paths for path in packages.files(name)}
    for unit in (ROOT / "etc/systemd").iterdir():
        started = re.findall(r"^Exec\w+=[-+!:@]*(\S+)", unit.read_text("utf-8"), re.MULTILINE)
        assert started and set(started) <= everything, unit.name
    defaults = Config()
    for entry in (ROOT / "etc/plugstack.conf.d").iterdir():
        line = next(line for line in entry.read_text("utf-8").splitlines() if not line.startswith("# "))
        # What a site has to ask for stands there behind a "#".
        _, plugin, *words = line.lstrip("#").split()
        assert f"{PLUGINS}/{plugin}" in everything
        values = dict(word.split("=", 1) for word in words)
        assert values.pop("command") in everything
        sockets = (None, defaults.node.socket, defaults.node.score_socket, defaults.events.socket)
        assert values.pop("socket", None) in sockets
        assert not values
    assert {defaults.environment.entry_program, defaults.node.vet_program} <= everything
    assert set(defaults.vet.evals) | set(defaults.environment.edf_path) <= everything
    accounts = re.findall(r"^u (\S+)", (ROOT / "etc/sysusers.d/piolet.conf").read_text("utf-8"), re.MULTILINE)
    daemons = (defaults.node, defaults.images, defaults.central, defaults.forward)
    assert set(accounts) == {daemon.account for daemon in daemons}
    lines = "".join(path.read_text("utf-8") for path in (ROOT / "etc/tmpfiles.d").iterdir())
    made = re.findall(r"^d (\S+)", lines, re.MULTILINE)
    assert {defaults.node.state, defaults.vet.spool, defaults.events.spool, defaults.images.store} <= set(made)
    tomllib.loads((ROOT / "etc/piolet.toml").read_text("utf-8"))
