"""A job's environment once more, secrets that nobody keeps, and files that `enroot import` made."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.cluster.support import BUSYBOX, Cluster

RC = """\
mkdir -p "/srv" 2> /dev/null
cd "/srv" && unset OLDPWD || exit 1

if [ -s /etc/rc.local ]; then
    . /etc/rc.local
fi

if [ $# -gt 0 ]; then
    exec '/bin/busybox' 'env' 'VIA=the entrypoint' "$@"
else
    exec '/bin/busybox' 'env' 'VIA=the entrypoint' '/bin/sh'
fi
"""


def test_a_jobs_environment_once_more(cluster: Cluster, tiny: str) -> None:
    """By the image's digest, whatever has become of the file; the values of secrets are not kept."""
    text = f'image = "{tiny}"\nworkdir = "/bin"\n[env]\nRUN = "first"\nHF_TOKEN = "hf-verysecret"\nPATH = "/bin"\n'
    edf = cluster.edf("alice", text)
    says = ("sh", "-c", "echo $SLURM_JOB_ID $RUN [$HF_TOKEN] $PWD")
    job, *rest = cluster.srun("alice", edf, "-N2", "-n2", *says).good().splitlines()[0].split()
    assert rest == ["first", "[hf-verysecret]", "/bin"]
    left = cluster.run("alice", "sh", "-c", "ls ~/.cache/piolet/env").good().split()
    assert f"{job}.0.piolet.job" in left, "with the cluster's name; an earlier release may have left others there"
    shown = cluster.run("alice", "piolet", "env", "show", job).good()
    assert f"# step {job}.0, --environment={edf}" in shown and 'RUN = "first"' in shown
    name, at, digest = next(line for line in shown.splitlines() if line.startswith("image = ")).partition("@sha256:")
    assert at and len(digest) == 65 and name == f'image = "{tiny.rpartition(":")[0]}', shown
    assert "hf-verysecret" not in shown and "# HF_TOKEN was set, and its value is not kept" in shown
    home = cluster.run("alice", "sh", "-c", "echo $HOME").good().strip()
    assert cluster.run("alice", "grep", "-rl", "verysecret", f"{home}/.cache/piolet").out == ""

    cluster.write("alice", edf, 'image = "nowhere.example/x:1"\n')
    again = cluster.srun("alice", f"@{job}", *says)
    assert again.good().split()[1:] == ["first", "[]", "/bin"]
    assert f"the value of HF_TOKEN that @{job} had is not kept, and your environment has none" in again.err
    script = f"#SBATCH --environment=@{job}.0\nexport HF_TOKEN=mine\nsrun sh -c 'echo $SLURM_STEP_ID $RUN'\n"
    script += "srun sh -c 'echo $SLURM_STEP_ID $RUN'\n"
    # On standard error srun may say that it waits until the first step has gone.
    assert cluster.sbatch("alice", script, "--error=/dev/null").split() == ["0", "first", "1", "first"]
    # As a file, too: what is shown is a definition.
    kept = cluster.edf("alice", shown)
    assert cluster.srun("alice", kept, *says).good().split()[1:] == ["first", "[]", "/bin"]


@pytest.mark.parametrize("request_", ["@999999", "@x"])
def test_jobs_of_which_nothing_is_known(cluster: Cluster, request_: str) -> None:
    refused = cluster.srun("alice", request_, "true")
    assert refused.status == 1 and "piolet: error: " in refused.err and "Traceback" not in refused.err
    assert cluster.run("alice", "piolet", "env", "show", request_[1:]).status == 1


def test_a_file_that_enroot_made(cluster: Cluster, tmp_path: Path) -> None:
    room, tree = cluster.room("alice"), tmp_path / "root"
    for folder in ("bin", "etc", "srv"):
        (tree / folder).mkdir(parents=True)
    (tree / "bin/busybox").write_bytes(BUSYBOX.read_bytes())
    (tree / "bin/busybox").chmod(0o755)
    (tree / "bin/sh").symlink_to("busybox")
    (tree / "etc/environment").write_text("FROM_ENROOT=yes\nPATH=/bin\nHOME=/root\n")
    (tree / "etc/rc").write_text(RC)
    command = ["mksquashfs", str(tree), str(room / "x.sqsh"), "-quiet", "-no-progress", "-all-root"]
    subprocess.run(command, check=True, capture_output=True)
    cluster.give("alice", room / "x.sqsh")
    says = ("sh", "-c", "echo $PWD $FROM_ENROOT $PATH $VIA; test $HOME != /root")
    edf = cluster.edf("alice", f'image = "{room}/x.sqsh"\n')
    for _ in range(2):  # the second time from the cache
        assert cluster.srun("alice", edf, *says).good() == "/srv yes /bin\n"
    with_entrypoint = cluster.edf("alice", f'image = "{room}/x.sqsh"\nentrypoint = true\n')
    assert cluster.srun("alice", with_entrypoint, *says).good() == "/srv yes /bin the entrypoint\n"
    assert "is from its /etc/rc" in cluster.run("alice", "piolet", "env", "explain", edf).good()
