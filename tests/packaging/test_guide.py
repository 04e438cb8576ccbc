"""docs/admin.md and the beginning of docs/central.md, followed to the letter on machines that systemd booted.

Piolet is installed, used, upgraded and removed there.

It is the one place where the daemons run as their units say, with those rights and no others.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator

import pytest

from tests.support.rpm import Packages
from tests.support.site import USER, Block, Site, read_guide, site, tiny
from tools.cluster.packages import missing
from tools.machines import Machine
from tools.rpm import ROOT

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(missing()), reason=f"not installed: {', '.join(missing())}"),
]
GUIDE = read_guide(ROOT / "docs" / "admin.md")
CENTRAL = read_guide(ROOT / "docs" / "central.md")
INSTALL = [block for block in GUIDE if block.where not in ("user", "upgrade", "remove")]


def blocks(where: str) -> list[Block]:
    return [block for block in GUIDE if block.where == where]


@pytest.fixture(scope="module")
def fresh(packages: Packages) -> Iterator[Site]:
    """A login node and two compute nodes with Slurm, and the packages where the guide has them."""
    build = (ROOT / "build").resolve()
    with site(build / "cache", build / "test-site") as made:
        (made.shared / "rpm").mkdir()
        for path in packages.paths.values():
            shutil.copy(path, made.shared / "rpm")
        made.push("ours/tiny:1", [tiny()])
        yield made


@pytest.fixture(scope="module")
def installed(fresh: Site) -> Site:
    """The site, once the guide has been followed up to the doctor."""
    for block in INSTALL:
        places = {"every": fresh.machines, "once": (fresh.login,), "login": (fresh.login,), "node": fresh.nodes}
        said = fresh.follow([block], *places[block.where])
        if "doctor" in block.commands:
            assert said.count(", 0 bad") == len(fresh.machines) and not warnings(said), said
    return fresh


def warnings(said: str) -> list[str]:
    """Return what the doctor warns of, but for Slurm's own: these machines have no control group controllers for it."""
    own = re.compile(r"warning +(process tracking|steps recorded):")
    return [line for line in said.splitlines() if line.startswith("warning") and not own.match(line)]


def complaints(machine: Machine) -> str:
    """Return what the journal has of our daemons that nobody should find there."""
    said = machine.good("journalctl", "-u", "pioletd", "-u", "piolet-imaged", "-o", "cat")
    return "\n".join(line for line in said.splitlines() if "Traceback" in line or "rror" in line or "could not" in line)


def test_the_guide_ends_with_a_vetted_step_in_containers(installed: Site) -> None:
    said = installed.follow(blocks("user"), installed.login)
    assert "2 of 2 nodes good" in said, said
    assert {"node1", "node2"} <= set(said.splitlines()), said
    assert not [complaint for machine in installed.machines if (complaint := complaints(machine))]


def test_a_batch_script_takes_an_environment_of_its_own(installed: Site) -> None:
    """srun renders it on the compute node, where the image service says what the image is."""
    script = "srun --environment=./my_environment.toml sh -c 'echo in $(ls /)'"
    installed.login.good("sbatch", "--wait", "-N2", "--output=batch", f"--wrap={script}", user=USER)
    said = (installed.shared / "home" / USER / "batch").read_text()
    assert said.count("in bin") == 2 and "usr" not in said, said


def test_the_line_twice_is_found(installed: Site) -> None:
    node = installed.nodes[0]
    node.good("sh", "-c", "cp /etc/slurm/plugstack.conf /tmp; cat /tmp/plugstack.conf >>/etc/slurm/plugstack.conf")
    found = node.run("piolet", "doctor")
    node.good("cp", "/tmp/plugstack.conf", "/etc/slurm/plugstack.conf")
    assert found.status == 1 and "Slurm loads piolet_environment.so twice" in found.out, found.out


def test_a_step_leaves_nothing(installed: Site) -> None:
    """What a task sent into the background is ended with the container: pioletd has the rights that this takes."""
    step = "setsid sleep 12345 >/dev/null 2>&1 </dev/null & echo started"
    said = installed.login.good("srun", "-N2", "--environment=./my_environment.toml", "sh", "-c", step, user=USER)
    assert said.split() == ["started", "started"]
    for node in installed.nodes:
        node.good("timeout", "10", "sh", "-c", "while pgrep -x sleep -a | grep -q 12345; do sleep 0.1; done")
        assert not complaints(node)
        assert "/run/piolet/mnt" not in node.good("cat", "/proc/mounts")


def test_a_step_is_scored(installed: Site) -> None:
    """There is no GPU here: the host's figures are taken all the same, and the screen says what is missing."""
    said = installed.login.good("srun", "-N2", "--score=out=score", "sleep", "2", user=USER)
    assert "piolet score: step" in said, said
    assert not [complaint for machine in installed.machines if (complaint := complaints(machine))]


def test_a_central_service_hears_of_every_node(installed: Site) -> None:
    """By the daemons' own units, accounts and rights, which is where records have stayed on their nodes before."""
    for machine in installed.machines:
        machine.good("sh", "-c", f"echo {installed.login.address} head >>/etc/hosts")
        machine.good("systemctl", "restart", "munge")  # it asks for its address once, which had no name when it booted
    for block in CENTRAL:
        places = {"every": installed.machines, "head": (installed.login,), "node": installed.nodes}[block.where]
        installed.follow([block], *places)
        if block.where == "every":  # what the page says of a site without slurmdbd, as this one
            for machine in installed.machines:
                machine.good("sed", "-i", r"/^\[central\]/a accounting_s = 0", "/etc/piolet/piolet.toml")
    heard = "until piolet central status | grep 'of 2 nodes'; do sleep 0.2; done"
    installed.login.good("timeout", "60", "sh", "-c", heard)
    for machine in installed.machines:
        said = machine.good("piolet", "doctor")
        assert "the central service answers" in said and ", 0 bad" in said and not warnings(said), said
    said = installed.nodes[0].good("piolet", "node", "node2", user=USER)
    assert said == "node2: nothing is known against it\n"
    modes = installed.login.good(
        "stat", "-c", "%U %a", "/var/lib/piolet-central/central.sqlite", "/var/lib/piolet-central"
    )
    assert modes.splitlines() == ["piolet-central 600", "piolet-central 700"]


def test_a_step_outlives_an_upgrade(installed: Site, next_release: Packages) -> None:
    """Of an image that the user brought, which squashfuse serves: it goes on where pioletd is restarted."""
    (installed.shared / "rpm-new").mkdir()
    for path in next_release.paths.values():
        shutil.copy(path, installed.shared / "rpm-new")
    tree = installed.shared / "tree"
    (tree / "bin").mkdir(parents=True)
    for name in ("busybox", "sh", "cat", "sleep"):
        shutil.copy("/bin/busybox", tree / "bin" / name)
    (tree / "late").write_text("still there\n")
    installed.login.good("mksquashfs", "/shared/tree", "/shared/own.sqsh", "-quiet", "-no-progress", "-all-root")
    (installed.shared / "own.toml").write_text('image = "/shared/own.sqsh"\n[env]\nPATH = "/bin"\n')
    go = installed.shared / "home" / USER / "go"
    script = f"echo running >{go}.running; until [ -e {go} ]; do sleep 0.2; done; cat /late"
    wrapped = "srun --environment=/shared/own.toml sh -c '" + script.replace(str(installed.shared), "/shared") + "'"
    submit = ["sbatch", "--parsable", "-w", "node1", "--output=/shared/home/alice/out", f"--wrap={wrapped}"]
    installed.login.good(*submit, user=USER)
    running = installed.shared / "home" / USER / "go.running"
    installed.login.good(
        "timeout", "20", "sh", "-c", f"until [ -e /shared/home/{USER}/{running.name} ]; do sleep 0.1; done"
    )
    before = installed.nodes[0].good("systemctl", "show", "-p", "MainPID", "pioletd")

    installed.follow(blocks("upgrade"), *installed.machines)

    assert installed.nodes[0].good("systemctl", "show", "-p", "MainPID", "pioletd") != before
    assert "piolet-node-0.1.0-2" in installed.nodes[0].good("rpm", "-qa", "piolet-node")
    said = installed.nodes[0].good("piolet", "doctor")
    assert ", 0 bad" in said and not warnings(said)
    go.touch()
    installed.login.good("timeout", "20", "sh", "-c", "while squeue -h | grep -q .; do sleep 0.1; done")
    assert (installed.shared / "home" / USER / "out").read_text() == "still there\n"
    installed.nodes[0].good("timeout", "10", "sh", "-c", "while pgrep -x squashfuse; do sleep 0.1; done")


def test_removal_leaves_what_the_guide_names(installed: Site) -> None:
    """Steps run as before, no daemon and no file of ours is there but configuration and state."""
    installed.follow(blocks("remove"), *installed.machines)
    assert set(installed.login.good("srun", "-N2", "hostname", user=USER).split()) == {"node1", "node2"}
    for machine in installed.machines:
        assert machine.run("pgrep", "-f", "piolet").status == 1
        found = machine.good("find", "/etc", "/usr", "/var", "-name", "*piolet*", "-not", "-path", "/var/lib/rpm/*")
        own = {f"/etc/piolet/piolet.toml.{suffix}" for suffix in ("rpmsave", "rpmnew")}
        named = {"/etc/piolet", "/var/lib/piolet", "/var/spool/piolet"} | own
        named |= {"/var/lib/piolet-central", "/var/lib/piolet-forward"}
        assert set(found.split()) <= named and own <= set(found.split()), found
