"""`remap_root`: the user is root in the container, packages can be installed there, and outside it is the same user."""

from __future__ import annotations

import os
import platform
import pwd
import subprocess
from pathlib import Path

import pytest

from tests.cluster.support import ROOT, Cluster
from tests.support.ahead import INSTALLERS
from tools.cluster import image, oci, registry
from tools.cluster.errors import ClusterError

ALICE, BOB = "alice", "bob"
# What packages do that only root can: files of others, accounts, groups, setgid, directories that nobody may write to.
CONTROL = (
    "Package: piolet-try\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\nDescription: try\n"
)
POSTINST = """#!/bin/sh
set -e
adduser --system --group --home /var/lib/piolet-try pioletsvc
chown -R pioletsvc:pioletsvc /var/lib/piolet-try
install -o pioletsvc -g mail -m 2750 -d /srv/piolet-try
setcap cap_net_raw+ep /opt/try/program
"""
RPM = """
Name: piolet-try-rpm
Version: 1
Release: 1
Summary: Try
License: none
BuildArch: noarch
%description
Try
%pre
useradd --system pioletrpm
%install
mkdir -p %{buildroot}/opt/closed
echo yes >%{buildroot}/opt/closed/file
echo yes >%{buildroot}/opt/able
%files
%dir %attr(0555, root, root) /opt/closed
%attr(0640, pioletrpm, mail) /opt/closed/file
%caps(cap_net_bind_service=ep) %attr(0755, bin, bin) /opt/able
"""


@pytest.fixture
def edf(cluster: Cluster, tiny: str) -> Path:
    return cluster.edf(ALICE, f'image = "{tiny}"\nremap_root = true\n')


@pytest.fixture(scope="module")
def debian(cluster: Cluster) -> str:
    """An image of Debian with apt and rpm, in the cluster's registry."""
    try:
        layout, _ = image.ensure(ROOT / "build" / "cache", lambda _: None, packages=INSTALLERS)
    except ClusterError as error:
        pytest.skip(f"no image with apt can be made here: {error.message}")
    digest = oci.read_digest(layout, image.TAG)
    assert digest is not None
    reference = f"{cluster.registry}/test/packages:{digest[7:19]}"
    registry.copy(f"oci:{layout}:{image.TAG}", reference)
    cluster.run(ALICE, "piolet", "image", "pull", reference, timeout=300).good()
    return reference


def facts(text: str) -> dict[str, str]:
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


@pytest.mark.kernels
def test_inside_root_and_outside_the_user(cluster: Cluster, tiny: str, room: Path) -> None:
    user = pwd.getpwnam(ALICE)
    mark = room / "mark"
    edf = cluster.edf(ALICE, f'image = "{tiny}"\nremap_root = true\nmounts = ["{room}"]\n')
    script = (
        f"id -u; id -g; whoami; cat /proc/self/status; : >/new && : >{mark}; ls -n /new {mark} | awk '{{print $3, $4}}'"
    )
    said = cluster.srun(ALICE, edf, "sh", "-c", script).good().splitlines()
    assert said[:3] == ["0", "0", "root"] and said[-2:] == ["0 0", "0 0"]
    assert (mark.stat().st_uid, mark.stat().st_gid) == (user.pw_uid, user.pw_gid)
    status = facts("\n".join(said[3:-2]))
    # CAP_DAC_OVERRIDE and CAP_SETFCAP, and no way to more.
    kept = 1 << 1 | 1 << 31
    assert [int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd")] == [kept] * 3
    assert [int(status[name], 16) for name in ("CapInh", "CapAmb")] == [0, 0]
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert status["Uid"].split() == ["0"] * 4


def test_without_it_nothing_changes(cluster: Cluster, tiny_edf: Path) -> None:
    status = facts(cluster.srun(ALICE, tiny_edf, "cat", "/proc/self/status").good())
    assert [int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb")] == [0] * 5
    assert status["Seccomp"] == "0" and status["Uid"].split() == [str(pwd.getpwnam(ALICE).pw_uid)] * 4
    done = cluster.srun(ALICE, tiny_edf, "sh", "-c", ": >/new; chown 5:6 /new")
    assert done.status != 0 and "chown" in done.err


def test_what_is_anothers_stays_so(cluster: Cluster, tiny: str) -> None:
    theirs = cluster.room(BOB) / "secret"
    cluster.write(BOB, theirs, "of bob\n", 0o600)
    roots = cluster.room(ALICE) / "roots"
    roots.write_text("of root\n")
    roots.chmod(0o400)
    mounts = f'["/etc:/mnt", "{theirs.parent}", "{roots.parent}"]'
    edf = cluster.edf(ALICE, f'image = "{tiny}"\nremap_root = true\nmounts = {mounts}\n')
    attempts = (
        f"cat {theirs}", f"cat {roots}", "cat /mnt/shadow", ": >/mnt/piolet-new", f"chmod 666 {theirs}",
        f"rm -f {theirs}", f"setcap x {roots}", "mount -t tmpfs none /tmp", "chroot /", "kill -0 1", "mknod /d b 1 1",
        f"chmod 4755 {roots}", "hostname other", "echo 1 >/proc/sys/kernel/panic",
    )  # fmt: skip
    script = "; ".join(f"({one}) 2>/dev/null && echo did: '{one}'" for one in attempts)
    # Answered as if it were done, and not done.
    script += f"; chown 0:0 {theirs} {roots}; ls {theirs} {roots}; echo over"
    done = cluster.srun(ALICE, edf, "sh", "-c", script)
    assert done.good().splitlines() == [*sorted(map(str, (theirs, roots))), "over"]
    assert theirs.read_text() == "of bob\n" and theirs.stat().st_uid == pwd.getpwnam(BOB).pw_uid
    assert roots.stat().st_uid == 0 and roots.stat().st_mode & 0o7777 == 0o400
    assert not Path("/etc/piolet-new").exists()


def test_a_setuid_program_gives_nothing(cluster: Cluster, edf: Path) -> None:
    """Nor a file to which root of the container has given capabilities."""
    script = "cp /bin/busybox /busybox && chown 5:5 /busybox && chmod 6755 /busybox && "
    script += "/busybox id -u && /busybox grep CapEff /proc/self/status"
    said = cluster.srun(ALICE, edf, "sh", "-c", script).good().splitlines()
    assert said[0] == "0" and int(facts("\n".join(said))["CapEff"], 16) == 1 << 1 | 1 << 31


def test_an_entrypoint_and_a_users_own_file(cluster: Cluster, tiny: str, room: Path) -> None:
    tree = room / "tree"
    (tree / "bin").mkdir(parents=True)
    for name in ("busybox", "sh", "ls", "id", "chown", "touch"):
        (tree / "bin" / name).write_bytes(Path("/bin/busybox").read_bytes())
        (tree / "bin" / name).chmod(0o755)
    file = room / "own.sqsh"
    subprocess.run(["mksquashfs", tree, file, "-quiet", "-no-progress"], check=True, stdout=subprocess.DEVNULL)
    cluster.give(ALICE, file)
    edf = cluster.edf(ALICE, f'image = "{file}"\nremap_root = true\n[env]\nPATH = "/bin"\n')
    script = "id -u && touch /new && chown 5:6 /new /bin/ls && ls -n /new"
    said = cluster.srun(ALICE, edf, "sh", "-c", script).good().splitlines()
    assert said[0] == "0" and said[1].split()[2:4] == ["0", "0"]


def test_it_needs_an_image(cluster: Cluster) -> None:
    done = cluster.srun(ALICE, cluster.edf(ALICE, "remap_root = true\n"), "true")
    assert done.status != 0 and "remap_root needs an image" in done.err


def test_apt_installs(cluster: Cluster, debian: str, room: Path) -> None:
    tree = room / "package"
    for directory in ("DEBIAN", "opt/try", "var/lib/piolet-try"):
        (tree / directory).mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(CONTROL)
    (tree / "DEBIAN/postinst").write_text(POSTINST)
    (tree / "DEBIAN/postinst").chmod(0o755)
    (tree / "opt/try/program").write_bytes(Path("/bin/true").read_bytes())
    os.chown(tree / "opt/try", 33, 42)
    (tree / "opt/try").chmod(0o2550)
    package = room / "piolet-try.deb"
    subprocess.run(["dpkg-deb", "-b", tree, package], check=True, stdout=subprocess.DEVNULL)
    package.chmod(0o644)
    edf = cluster.edf(ALICE, f'image = "{debian}"\nremap_root = true\nmounts = ["{room}"]\n')
    script = (
        f"apt-get -q install -y {package} && dpkg -s piolet-try && getcap /opt/try/program && ls -ld /srv/piolet-try"
    )
    script += " && getent passwd pioletsvc && apt-get -q remove -y piolet-try && test ! -e /opt/try/program"
    done = cluster.srun(ALICE, edf, "sh", "-c", script, timeout=120)
    said = done.good()
    assert "Status: install ok installed" in said and "pioletsvc:x:" in said
    assert "/opt/try/program cap_net_raw=ep" in said and "drwxr-s--- " in said
    assert "E:" not in done.both and "W:" not in done.both


def test_rpm_installs(cluster: Cluster, debian: str, room: Path) -> None:
    spec = room / "try.spec"
    spec.write_text(RPM)
    build = ["rpmbuild", "-bb", "--quiet", "--define", f"_topdir {room}/rpm", "--target", "noarch", str(spec)]
    made = subprocess.run(build, check=False, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    (package,) = (room / "rpm").rglob("*.rpm")
    edf = cluster.edf(ALICE, f'image = "{debian}"\nremap_root = true\nmounts = ["{room}"]\n')
    # rpm 4.20 unshares namespaces around scriptlets, by a plugin, which takes more than this root has (docs/edf.md).
    script = 'case "$(rpm --version)" in *" 4.1"*) ;; *) alone=--noplugins ;; esac\n'
    script += 'rpm() { command rpm $alone "$@"; }\n'
    script += f"rpm --nodeps -i {package} && rpm -q piolet-try-rpm && cat /opt/closed/file && getcap /opt/able"
    # A directory that its mode closes to all but root.
    script += " && echo more >/opt/closed/more && rpm -e piolet-try-rpm && test ! -e /opt/able && id -u pioletrpm"
    said = cluster.srun(ALICE, edf, "sh", "-c", script, timeout=120).good().splitlines()
    assert said[:3] == ["piolet-try-rpm-1-1.noarch", "yes", "/opt/able cap_net_bind_service=ep"], platform.machine()


def test_tasks_of_two_nodes_with_a_prolog_and_a_vetting_inside(cluster: Cluster, room: Path) -> None:
    """What Slurm and a vetting start in the container is root, too."""
    protocol = "name: inside\nevals:\n- {name: pairs, type: network_pair, size: 1 MB, pings: 5, where: environment}\n"
    cluster.write(ALICE, room / "p.yaml", protocol)
    prolog = cluster.write(ALICE, room / "prolog", "#!/bin/sh\n: >/new-$$ && echo export SEEN=$(id -u)\n", 0o755)
    edf = cluster.edf(ALICE, f'image = "{cluster.demo_image}"\nremap_root = true\nmounts = ["{room}"]\n')
    words = ["srun", "-N2", "-n4", f"--environment={edf}", "--vet=p.yaml", f"--task-prolog={prolog}"]
    done = cluster.run(ALICE, *words, "sh", "-c", "echo $SEEN $(id -u)", cwd=room)
    assert done.good().splitlines() == ["0 0"] * 4
    assert "2 of 2 nodes good" in done.err


def test_a_batch_script_s_steps(cluster: Cluster, edf: Path) -> None:
    script = f"#SBATCH --environment={edf}\nsrun id -u\nsrun sh -c 'chown 5:6 /marker && echo well'\n"
    lines = cluster.sbatch(ALICE, f"#!/bin/bash\n{script}").splitlines()
    # srun says so when a step has to wait for the one before to be tidied up.
    assert [line for line in lines if not line.startswith("srun: ")] == ["0", "well"]
