"""Hooks and devices in containers of steps."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from piolet.hooks import nvidia

from tests.cluster.support import Cluster, busybox_layer
from tests.simulators import driver
from tests.support.waiting import wait_until

SITE_HOOK = '''
"""A hook of the site's."""
from piolet.api import File, Hook, Library, Mount, Program, Variable


class Greeting(Hook):
    name = "greeting"
    text = "say hello"
    options = {"word": "what is said"}

    def entries(self, asked, node, step):
        word = asked.options.get("word", "hello")
        return [
            File("/opt/greeting", f"{word} {step.user} of step {step.job}.{step.step}\\n"),
            Variable("GREETING", word),
            Program(("/bin/sh", "-c", "id -u > /tmp/" + word + "; grep Cap /proc/self/status >> /tmp/" + word
                     + "; cat /proc/self/cgroup >> /tmp/" + word + "; exec sleep 1000")),
        ]
'''
LOOPS = """
from piolet.api import Hook


class Loops(Hook):
    name = "loops"
    text = "never ends"

    def entries(self, asked, node, step):
        while True:
            pass
"""


@pytest.fixture(scope="module")
def site(cluster: Cluster) -> Iterator[Path]:
    """The site's directory of hooks, with two of them, and a node that has a simulated driver."""
    etc = cluster.layout.etc
    (etc / "hooks.d").mkdir(exist_ok=True)
    (etc / "cdi").mkdir(exist_ok=True)
    (etc / "hooks.d" / "greeting.py").write_text(SITE_HOOK)
    (etc / "hooks.d" / "loops.py").write_text(LOOPS)
    root = driver.install(cluster.directory / "driver", "/usr/lib64")
    spec = nvidia.make(str(root))
    (etc / "cdi" / "nvidia.json").write_text(json.dumps(spec))
    for node in ("node1", "node2"):
        cluster.tool("stop-pioletd", node)
        cluster.tool("start-pioletd", node)
    yield etc
    (etc / "cdi" / "nvidia.json").unlink()
    for name in ("greeting.py", "loops.py"):
        (etc / "hooks.d" / name).unlink()


def edf(cluster: Cluster, image: str, text: str) -> Path:
    return cluster.edf("alice", f'image = "{image}"\n{text}')


def test_every_rank_of_pytorch_has_its_variables(cluster: Cluster, tiny: str, site: Path) -> None:
    path = edf(cluster, tiny, '[annotations]\ncom.pyxis.pytorch_remap_vars = "true"\n[env]\nMASTER_PORT = "1234"\n')
    words = (
        "-N2",
        "-n4",
        "sh",
        "-c",
        "echo $RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $MASTER_PORT $SLURM_PROCID $SLURM_LOCALID",
    )
    done = cluster.run("alice", "srun", f"--environment={path}", *words, env={"RANK": "77", "MASTER_ADDR": "outer"})
    lines = sorted(done.good().split("\n")[:-1])
    first = re.match(r"node\d", lines[0].split()[3])
    assert first is not None
    locals_ = [int(line.split()[1]) for line in lines]
    expected = [f"{rank} {local} 4 {first[0]} 1234 {rank} {local}" for rank, local in enumerate(locals_)]
    assert lines == expected


def test_a_command_that_is_not_there_is_told_as_ever(cluster: Cluster, tiny: str, site: Path) -> None:
    path = edf(cluster, tiny, '[annotations]\ncom.pyxis.pytorch_remap_vars = "true"\n')
    done = cluster.srun("alice", path, "no-such-command")
    assert done.status
    assert "no-such-command" in done.err and "No such file or directory" in done.err


def test_a_site_s_hook(cluster: Cluster, tiny: str, site: Path, room: Path) -> None:
    """Its file, its variable, and its program: the user's, without capabilities, in the step, and ended with it."""
    word = f"hello-{room.name}"
    text = f'[annotations.com.hooks.greeting]\nenabled = "true"\nword = "{word}"\n'
    path = edf(cluster, tiny, text)
    script = (
        f"cat /opt/greeting; echo $GREETING; while ! [ -s /tmp/{word} ]; do sleep 0.1; done; sleep 0.2; "
        f"cat /tmp/{word}; rm /tmp/{word}"
    )
    lines = cluster.srun("alice", path, "-w", "node1", "sh", "-c", script).good().splitlines()
    assert re.fullmatch(rf"{word} alice of step \d+\.0", lines[0])
    assert lines[1] == word
    assert lines[2] == cluster.run("alice", "id", "-u").good().strip()
    capabilities = dict(line.split(":\t") for line in lines if line.startswith("Cap"))
    assert {capabilities[name] for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {"0" * 16}
    wait_until(lambda: "sleep 1000" not in cluster.run("alice", "ps", "-u", "alice", "-o", "args").out, 10, "its end")


def test_a_hook_that_never_ends_harms_its_step_alone(cluster: Cluster, tiny: str, site: Path) -> None:
    path = edf(cluster, tiny, '[annotations]\ncom.hooks.loops.enabled = "true"\ncom.hooks.loops.required = "true"\n')
    done = cluster.srun("alice", path, "-w", "node1", "true")
    assert done.status
    assert "the hook loops took longer than 0.25 s" in done.err
    warned = edf(cluster, tiny, '[annotations]\ncom.hooks.loops.enabled = "true"\n')
    done = cluster.srun("alice", warned, "-w", "node1", "-n2", "echo", "ran")
    assert done.good() == "ran\nran\n"
    assert done.err.count("piolet: warning: node node1: the hook loops took longer than 0.25 s; it is left out") == 1


def test_a_hook_that_others_could_have_written_is_not_loaded(cluster: Cluster, tiny: str, site: Path) -> None:
    file = site / "hooks.d" / "open.py"
    file.write_text(SITE_HOOK.replace("greeting", "open").replace("Greeting", "Open"))
    file.chmod(0o666)
    try:
        path = edf(cluster, tiny, '[annotations]\ncom.hooks.open.enabled = "true"\ncom.hooks.open.required = "true"\n')
        done = cluster.srun("alice", path, "true")
    finally:
        file.unlink()
    assert done.status == 1
    assert "can be written by others than root" in done.err


def test_a_required_hook_that_is_not_there_is_told_at_once(cluster: Cluster, tiny: str, site: Path) -> None:
    path = edf(cluster, tiny, '[annotations]\ncom.hooks.cxl.enabled = "true"\ncom.hooks.cxl.required = "true"\n')
    done = cluster.srun("alice", path, "true")
    assert done.status == 1
    assert "the hook com.hooks.cxl is required and not installed here" in done.err
    assert "did you mean com.hooks.cxi?" in done.err


def test_a_required_hook_that_this_node_cannot_have_fails_the_step(cluster: Cluster, tiny: str, site: Path) -> None:
    """A job that trains over TCP, and nobody knows, would be worse."""
    text = '[annotations]\ncom.hooks.cxi.enabled = "true"\ncom.hooks.cxi.required = "true"\n'
    done = cluster.srun("alice", edf(cluster, tiny, text), "true")
    assert done.status
    assert "the hook com.hooks.cxi is required: there is no /dev/cxi0 on this node" in done.err
    done = cluster.srun("alice", edf(cluster, tiny, '[annotations]\ncom.hooks.cxi.enabled = "true"\n'), "echo", "ran")
    assert done.good() == "ran\n"
    assert "the hook com.hooks.cxi is left out: there is no /dev/cxi0 on this node" in done.err


def test_devices_by_name_and_by_what_an_image_says(cluster: Cluster, site: Path) -> None:
    """A simulated driver: its nvidia-smi runs, by libraries that the image's loader finds."""
    glibc = [*busybox_layer(), *_c_library()]
    plain = cluster.push("glibc", [glibc], Env=["PATH=/usr/bin:/bin"])
    asking = cluster.push("cuda", [glibc], Env=["PATH=/usr/bin:/bin", "NVIDIA_VISIBLE_DEVICES=all"])
    words = ("-w", "node1", "nvidia-smi")
    assert cluster.srun("alice", edf(cluster, asking, ""), *words).good() == f"{driver.SAYS}\n"
    named = edf(cluster, plain, 'devices = ["nvidia.com/gpu=all"]\n')
    assert cluster.srun("alice", named, *words).good() == f"{driver.SAYS}\n"
    assert cluster.srun("alice", edf(cluster, plain, ""), *words).status
    off = edf(cluster, asking, '[env]\nNVIDIA_VISIBLE_DEVICES = "void"\n')
    assert cluster.srun("alice", off, *words).status


def test_a_device_that_is_not_there_fails_the_step(cluster: Cluster, tiny: str, site: Path) -> None:
    done = cluster.srun("alice", edf(cluster, tiny, 'devices = ["amd.com/gpu=all"]\n'), "-w", "node1", "true")
    assert done.status
    assert "there is no device amd.com/gpu=all" in done.err
    assert "nvidia.com/gpu=0" in done.err


def test_slurm_inside_whatever_the_image_is(cluster: Cluster, tiny: str, site: Path) -> None:
    """The image has a static busybox and no C library at all."""
    path = edf(cluster, tiny, '[annotations]\ncom.hooks.slurm.enabled = "true"\n')
    script = "/usr/bin/squeue -h -j $SLURM_JOB_ID -o %T; /usr/bin/srun --overlap -n1 cat /marker || echo outside"
    done = cluster.srun("alice", path, "-n1", "sh", "-c", script)
    assert done.good().splitlines() == ["RUNNING", "outside"], done.err
    job = "#!/bin/sh\ntrue\n"
    words = ("-c", 'echo "$0" > j && /usr/bin/sbatch --parsable -o /dev/null j', job)
    done = cluster.srun("alice", path, f"--chdir={cluster.room('alice')}", "sh", *words)
    assert re.fullmatch(r"\d+\n", done.good()), done


def test_an_environment_that_is_named_inside(cluster: Cluster, tiny: str, site: Path) -> None:
    """It is worked out on the host of the node, whose Python the image has not, and runs as any other."""
    room = cluster.room("alice")
    hook = '[annotations]\ncom.hooks.slurm.enabled = "true"\n'
    outer = edf(cluster, tiny, f'mounts = ["{room}"]\nworkdir = "{room}"\n{hook}')
    cluster.edf("alice", f'image = "{cluster.demo_image}"\n[env]\nWORD = "${{SAID}} inner"\n', room, "inner.toml")
    # With standard input of its own, which is not swallowed.
    inner = "SAID=the /usr/bin/srun --overlap -n1 --environment=./inner.toml sh -c 'echo $WORD; cat; ls /marker'"
    script = f"{inner}; echo status $?; /usr/bin/srun --overlap -n1 --environment=none cat /marker || echo outside"
    done = cluster.srun("alice", outer, "-n1", "sh", "-c", script, stdin="typed\n")
    assert done.good().splitlines() == ["the inner", "typed", "status 2", "outside"], done
    wrong = cluster.srun("alice", outer, "-n1", "/usr/bin/srun", "--overlap", "--environment=./none.toml", "true")
    assert wrong.status == 1 and f"the environment file {room}/none.toml does not exist" in wrong.err, wrong
    words = ("sh", "-c", "mkdir /alone; cd /alone; /usr/bin/srun --overlap --environment=x.toml true")
    nowhere = cluster.srun("alice", outer, "-n1", *words)
    assert nowhere.status == 1 and "piolet: error: /alone is a directory of the container alone" in nowhere.err, nowhere
    words = ("sh", "-c", "echo x >/only-here; /usr/bin/srun --overlap --environment=job:$SLURM_JOB_ID.0 cat /only-here")
    assert cluster.srun("alice", outer, "-n1", *words).good() == "x\n"
    protocol = cluster.write("alice", room / "p.yaml", "name: p\nevals:\n- name: limits\n  type: limits\n")
    vetted = cluster.srun("alice", outer, "-n1", "/usr/bin/srun", "--overlap", f"--vet={protocol}", "true")
    assert vetted.status == 1 and "piolet command, which --vet needs, does not run in a container" in vetted.err, vetted


@pytest.mark.skipif(not Path("/usr/sbin/sshd").exists(), reason="not installed: sshd (openssh-server)")
def test_ssh_through_srun(cluster: Cluster, site: Path) -> None:
    """No port is opened; a session has the definition's variables, and Slurm's."""
    room = cluster.room("alice")
    key = room / "key"
    cluster.run("alice", "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key).good()
    text = f'[annotations.com.hooks.ssh]\nenabled = "true"\nauthorize_ssh_key = "{key}.pub"\n[env]\nOWN = "yes"\n'
    path = edf(cluster, cluster.demo_image, text)
    proxy = f"ProxyCommand=srun -u -Q -N1 --environment={path} /run/piolet/ssh/serve"
    options = [
        "-q",
        "-i",
        str(key),
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "UserKnownHostsFile=/dev/null",
        "-o",
        proxy,
    ]
    done = cluster.run("alice", "ssh", *options, "x", "echo $OWN $SLURM_PROCID $(id -un)")
    assert done.out == "yes 0 alice\n", done.err
    assert cluster.run("alice", "ssh", *options, "x", "cat", stdin="through\n").out == "through\n"
    # The container of a step that runs.
    srun = cluster.start("alice", "srun", f"--environment={path}", "sh", "-c", "echo $SLURM_JOB_ID; read line")
    assert srun.stdout is not None
    job = srun.stdout.readline().strip()
    by_ssh = cluster.run("alice", "piolet", "ssh", job, "-i", str(key), "echo $OWN $SLURM_STEP_ID; touch /by-ssh")
    assert by_ssh.out == "yes 1\n", by_ssh.err
    assert cluster.run("alice", "piolet", "attach", job, "ls", "/by-ssh").good() == "/by-ssh\n"
    srun.communicate("\n", timeout=30)
    closed = edf(cluster, cluster.demo_image, f"writable = false\n{text}")
    done = cluster.srun("alice", closed, "-n1", "/run/piolet/ssh/serve")
    assert done.status == 1 and "hint: set writable = true" in done.err, done


def _c_library() -> list:  # type: ignore[type-arg]
    from tests.support import oci

    found = []
    for path in ("/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"):
        if Path(path).exists():
            found.append(oci.file(path[1:], Path(path).read_bytes(), 0o755))
    for folder in ("x86_64", "aarch64"):
        path = f"/lib/{folder}-linux-gnu/libc.so.6"
        if Path(path).exists():
            found.append(oci.file(path[1:], Path(path).read_bytes(), 0o755))
    return found
