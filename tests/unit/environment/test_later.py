"""What of a definition only a node can say: the job's number, and what only nodes have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from piolet.base.errors import EnvironmentFileError, PioletError
from piolet.environment import later
from piolet.environment.definition import Mount, from_json
from piolet.environment.explain import explain
from piolet.environment.render import Rendered, render
from piolet.environment.settings import EnvironmentConfig
from piolet.images.info import Image, ImageInfo
from piolet.submission.dependencies import Host, Kind

INFO = ImageInfo(Image("img", "site", "sha256:" + "a" * 64))
# A job within which another is submitted has a number already, and that is not the one that is meant.
HOST = {"SLURM_JOB_ID": "7", "USER": "ada"}

Render = Callable[..., Rendered]


@pytest.fixture
def made(tmp_path: Path) -> Render:
    def make(text: str, *local: str, variables: dict[str, str] = HOST) -> Rendered:
        (tmp_path / "x.toml").write_text(f'image = "img"\n{text}')
        host = Host(variables, str(tmp_path))
        found = render("./x.toml", host, EnvironmentConfig(edf_path=(), node_local=local), lambda _: INFO)
        assert not [one for one in host.dependencies if one.kind in (Kind.VARIABLE, Kind.UNSET) and "SLURM" in one.name]
        return found

    return make


@pytest.mark.parametrize("variables", [HOST, {}], ids=["in a job", "outside"])
def test_a_job_s_number_comes_in_on_the_node(made: Render, variables: dict[str, str]) -> None:
    rendered = made(
        'mounts = ["/local/${SLURM_JOB_ID}:/job/${SLURMD_NODENAME}:ro"]\nworkdir = "/job/${SLURM_JOBID:-none}"\n'
        '[env]\nCACHE = "/job/${SLURM_JOB_ID}:$${SLURM_JOB_ID}"\n',
        variables=variables,
    )
    for job, node in ((4711, "node-1.x"), (12, "n2")):
        done = later.finish(from_json(rendered.definition.to_json()), job, node)
        assert done.mounts == (Mount(f"/local/{job}", f"/job/{node}", "bind", ("ro",)),)
        assert done.workdir == f"/job/{job}"
        assert done.set_env["CACHE"] == f"/job/{job}:${{SLURM_JOB_ID}}"


def test_what_needs_nothing_stays_as_it_is(made: Render) -> None:
    rendered = made('workdir = "/w"\n[env]\nA = "$${SLURM_JOB_ID} $SLURM_JOB_ID {SLURM_JOB_ID}"\n')
    assert later.finish(rendered.definition, 1, "not a / node") == rendered.definition


@pytest.mark.parametrize("node", ["", "a/b", "..", "-x", "a b"])
def test_a_node_without_a_name_is_refused(made: Render, node: str) -> None:
    rendered = made('workdir = "/w/${SLURMD_NODENAME}"\n')
    with pytest.raises(PioletError, match="Slurm does not say which node this is"):
        later.finish(rendered.definition, 1, node)


def test_explain_shows_what_is_written(made: Render) -> None:
    text = explain(made('mounts = ["/local/${SLURM_JOB_ID}:/j"]\nworkdir = "/j/$${X}/${SLURM_JOB_ID}"\n'))
    assert '"/local/${SLURM_JOB_ID}:/j"' in text
    assert 'workdir = "/j/$${X}/${SLURM_JOB_ID}"' in text


def test_an_image_is_chosen_before_there_is_a_job(made: Render, tmp_path: Path) -> None:
    (tmp_path / "y.toml").write_text('image = "/images/${SLURM_JOB_ID}.sqsh"\n')
    with pytest.raises(EnvironmentFileError, match="SLURM_JOB_ID"):
        render("./y.toml", Host({}, str(tmp_path)), EnvironmentConfig(edf_path=()), lambda _: INFO)


@pytest.mark.parametrize(
    "mount",
    [
        "/not/here:/x:node",
        "/not/here:/x:optional",
        "/not/here:/x:ro+node",
        "/not/here.sqsh:/x:sqsh+optional",
        "/nvme/here:/x",
        "/nvme:/x",
    ],
)
def test_sources_of_nodes_are_not_looked_for(made: Render, mount: str) -> None:
    rendered = made(f'mounts = ["{mount}"]\n', "/nvme/")
    (found,) = rendered.definition.mounts
    assert found.source == mount.split(":")[0]


@pytest.mark.parametrize("mount", ["/not/here:/x", "/nvmeother/here:/x", "/not/nvme:/x:ro"])
def test_others_are(made: Render, mount: str) -> None:
    with pytest.raises(EnvironmentFileError, match="does not exist"):
        made(f'mounts = ["{mount}"]\n', "/nvme")


@pytest.mark.parametrize("flag", ["node", "optional"])
def test_a_tmpfs_is_everywhere(made: Render, flag: str) -> None:
    with pytest.raises(EnvironmentFileError, match=f"the flag '{flag}' means nothing for a tmpfs"):
        made(f'mounts = ["tmpfs:/x:{flag}"]\n')
