"""`piolet image build`: from a Containerfile to a container, by the real buildah."""

from __future__ import annotations

import pwd
import re
import shutil
from pathlib import Path

import pytest

from tests.cluster.support import Cluster, busybox_layer
from tests.support import oci
from tests.support.registry import Registry, auth_file

ALICE = "alice"
pytestmark = pytest.mark.skipif(shutil.which("buildah") is None, reason="buildah is not installed")
RECIPE = """\
FROM dir:{base}
ARG WHO=nobody
RUN test $(id -u) = 0 && echo $WHO >/who && chown 5:6 /who && chmod 640 /who
RUN mkdir /closed && chmod 555 /closed && echo in >/closed/file
COPY hello /opt/hello
ENV GREETING=welcome
WORKDIR /opt
"""


@pytest.fixture
def context(cluster: Cluster) -> Path:
    """A directory with a Containerfile, whose base is beside it."""
    room = cluster.room(ALICE)
    oci.build(room / "base", [busybox_layer(oci.folder("tmp"))], settings={"Env": ["PATH=/bin"]})
    cluster.write(ALICE, room / "Containerfile", RECIPE.format(base=room / "base"))
    cluster.write(ALICE, room / "hello", "hello\n")
    return room


def left() -> list[Path]:
    """Return what a build may have left on this machine, whose nodes are all of the cluster's."""
    return [*Path("/tmp").glob("piolet-build-*"), *Path(pwd.getpwnam(ALICE).pw_dir).glob(".piolet-build-*")]


def test_a_containerfile_becomes_a_container(cluster: Cluster, context: Path) -> None:
    before = left()
    words = ["piolet", "image", "build", "--name", "built:1", "--build-arg", "WHO=me", "--srun=-w node2 -J build-it"]
    done = cluster.run(ALICE, *words, cwd=context, timeout=180)
    assert done.good().split()[0] == "localhost/built:1" and len(done.out.splitlines()) == 1
    assert "STEP 2/7" in done.err
    edf = cluster.edf(ALICE, 'image = "localhost/built:1"\n')
    script = "pwd; cat hello /who /closed/file; echo $GREETING; stat -c %a /who"
    try:
        said = cluster.srun(ALICE, edf, "sh", "-c", script).good().splitlines()
        assert said == ["/opt", "hello", "me", "in", "welcome", "640"]
    finally:
        cluster.remove_image("localhost/built:1")
    assert left() == before


def test_in_a_step_to_a_file(cluster: Cluster, context: Path) -> None:
    words = ["srun", "-n1", "piolet", "image", "build", "--output=out.tar"]
    done = cluster.run(ALICE, *words, cwd=context, timeout=180)
    assert done.good() == f"{context}/out.tar\n" and (context / "out.tar").stat().st_uid == pwd.getpwnam(ALICE).pw_uid
    again = cluster.run(ALICE, *words, cwd=context)
    assert again.status != 0 and "out.tar is there already" in again.err


def test_a_line_that_fails(cluster: Cluster, context: Path) -> None:
    before = left()
    cluster.write(ALICE, context / "Containerfile", f"FROM dir:{context}/base\nRUN exit 7\n")
    done = cluster.run(ALICE, "piolet", "image", "build", cwd=context, timeout=120)
    assert done.status == 1 and done.out == "" and "exit status 7" in done.err
    assert done.err.splitlines()[-2:] == [
        "piolet: error: the step that built the image ended with status 1",
        "hint: see what it said above",
    ]
    assert left() == before


def test_a_build_that_is_cancelled(cluster: Cluster, context: Path) -> None:
    before = left()
    cluster.write(ALICE, context / "Containerfile", f"FROM dir:{context}/base\nRUN echo sleeping; sleep 600\n")
    process = cluster.start(ALICE, "piolet", "image", "build", "--srun=-J cancel-it", cwd=context)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("sleeping"):
            break
    cluster.run(ALICE, "scancel", "-n", "cancel-it").good()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1 and "the step that built the image ended" in err
    cluster.wait_end("cancel-it")
    assert left() == before


def test_a_base_that_its_registry_gives_to_some(cluster: Cluster, context: Path) -> None:
    """With the user's own credentials, in the file that podman login writes; and with buildah's own settings."""
    registry = Registry(cluster.room(ALICE) / "guarded", {ALICE: "secret-a"})
    try:
        reference = registry.push(context / "base", "base:1", ALICE)
        login = auth_file(context / "auth.json", registry.address, ALICE, "secret-a")
        cluster.give(ALICE, login)
        text = f'[[registry]]\nlocation = "{registry.address}"\ninsecure = true\n'
        settings = cluster.write(ALICE, context / "registries.conf", text)
        cluster.write(ALICE, context / "Containerfile", f"FROM {reference}\nRUN busybox true\n")
        words, more = ["piolet", "image", "build", "--output=out.tar"], {"CONTAINERS_REGISTRIES_CONF": str(settings)}
        refused = cluster.run(ALICE, *words, cwd=context, env=more, timeout=120)
        assert refused.status == 1 and re.search("unauthorized|authentication required", refused.err), refused.err
        (context / ".docker").mkdir()
        (context / ".docker/config.json").write_bytes(login.read_bytes())
        for one in ({"REGISTRY_AUTH_FILE": str(login)}, {"HOME": str(context)}):
            cluster.run(ALICE, *words, cwd=context, env={**more, **one}, timeout=120).good()
            assert (context / "out.tar").stat().st_size > 1 << 20
            (context / "out.tar").unlink()
    finally:
        registry.stop()
