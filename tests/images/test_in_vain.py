"""Where pioletd of a machine has noted that its kernel runs no image: that is said before anything is pulled."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from piolet.node.root import imagemounts
from piolet.node.root.imagemounts import IDMAP, Choice, too_old

from tests.images.conftest import ALICE, Site, needs_root
from tests.support.registry import Registry

pytestmark = needs_root()
NO_WAY = Choice("", tried=[(IDMAP, "this kernel refuses them, as RHEL 9's does")], hint="modprobe dm_mod")
SENTENCE = "images of the site's store cannot be mounted here: "


@pytest.fixture
def state(site: Site) -> Path:
    """The directory of state of a pioletd of the site."""
    path = site.room / "state"
    path.mkdir()
    site.config.write_text(f'{site.config.read_text()}[node]\nstate = "{path}"\n')
    return path


def submit(site: Site, image: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Do what the plugin in srun does."""
    (site.room / "a.toml").write_text(f'image = "{image}"\n')
    return site.piolet(ALICE, "env", "submit", "--record-fd=1", str(site.room / "a.toml"), **more)


def fetched(registry: Registry) -> list[str]:
    return [request for request in registry.requests if "/blobs/" in request]


def test_nothing_is_pulled_in_vain(site: Site, state: Path, registry: Registry, image: Path) -> None:
    imagemounts.note(NO_WAY, str(state))
    reference = registry.push(image, "app:1")
    for more, who in (({}, "this machine"), ({"SLURMD_NODENAME": "n7"}, "node n7")):
        refused = submit(site, reference, **more)
        assert refused.returncode == 1 and f"{who}: {SENTENCE}" in refused.stderr, refused
        assert (
            f"hint: modprobe dm_mod; for other nodes, which may differ, pull it first: piolet image pull {reference}"
            in (refused.stderr)
        )
        assert "Traceback" not in refused.stderr and refused.stdout == ""
    assert registry.requests == [] and site.images() == []
    checked = site.piolet(ALICE, "env", "check", str(site.room / "a.toml"))
    assert (
        checked.returncode == 0
        and f"warning: this machine: {SENTENCE}" in checked.stderr
        and fetched(registry)[1:] == []
    )
    # Whoever says so has it, for nodes that differ; and what is there is not pulled, so the node is asked.
    pulled = site.piolet(ALICE, "image", "pull", reference)
    assert pulled.returncode == 0 and f"warning: this machine: {SENTENCE}" in pulled.stderr and len(site.images()) == 1
    registry.requests.clear()
    assert submit(site, reference).returncode == 0 and registry.requests == []


def test_what_a_user_brings_needs_no_way(site: Site, state: Path, registry: Registry, image: Path) -> None:
    imagemounts.note(NO_WAY, str(state))
    (site.room / "content").mkdir()
    subprocess.run(["mksquashfs", site.room / "content", site.room / "a.sqsh", "-quiet", "-no-progress"], check=True)
    home = site.room / "home"
    home.mkdir()
    shutil.chown(home, ALICE)
    own = {"EDF_IMAGESTORE": str(home / "images"), "HOME": str(home)}
    assert submit(site, str(site.room / "a.sqsh")).returncode == 0
    assert submit(site, registry.push(image, "app:1"), **own).returncode == 0
    # But no kernel is too old for one and new enough for the other.
    imagemounts.note(too_old("5.10.0-33-amd64"), str(state))
    refused = submit(site, registry.push(image, "app:2"), EDF_IMAGESTORE=str(home / "others"), HOME=str(home))
    assert "this machine: Linux 5.10.0-33-amd64 is too old for containers: 5.12 is the oldest" in refused.stderr
    assert not (home / "others").exists() or not list((home / "others").glob("*.sqsh"))


@pytest.mark.parametrize("noted", [None, b"", b"{", b'{"way": "", "of_another_release": 1}'])
def test_where_nothing_is_known_nothing_is_said(
    site: Site, state: Path, registry: Registry, image: Path, noted: bytes | None
) -> None:
    if noted is not None:
        (state / imagemounts.FILE).write_bytes(noted)
    done = submit(site, registry.push(image, "app:1"))
    assert done.returncode == 0 and "warning" not in done.stderr, done
    assert len(site.images()) == 1 and os.listdir(state) == ([] if noted is None else [imagemounts.FILE])
