"""The private cluster tool: what it writes, makes and says. No cluster is started."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from tools import demo
from tools.cluster import (
    accounts,
    cli,
    config,
    image,
    lifecycle,
    network,
    oci,
    packages,
    registry,
)
from tools.cluster.errors import ClusterError, tail
from tools.cluster.layout import REPOSITORY, Layout, layout_for, node_names
from tools.cluster.report import Report


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(root=tmp_path / "cluster", build=tmp_path / "build")


@pytest.fixture
def settings(layout: Layout) -> config.Settings:
    ports = {"registry": 20001, "slurmctld": 20002, "node1": 20003, "node2": 20004}
    return config.Settings(layout, 2, True, "127.0.0.1", True, ports, (22, 5))


# Ports and paths


def test_ports_are_kept_unless_somebody_took_them() -> None:
    first = network.choose_ports(["a", "b"], {}, random.Random(1))
    assert network.choose_ports(["a", "b"], first, random.Random(2)) == first
    with socket.socket() as other:
        other.bind(("127.0.0.1", first["a"]))
        second = network.choose_ports(["a", "b", "c"], first, random.Random(3))
    assert second["a"] != first["a"]
    assert second["b"] == first["b"]
    assert len(set(second.values())) == 3
    assert all(port in network.PORTS for port in second.values())


def test_a_recorded_port_out_of_range_is_not_taken() -> None:
    assert network.choose_ports(["a"], {"a": 22}, random.Random(1))["a"] in network.PORTS


def test_a_name_that_leads_off_loopback_is_no_address_for_us() -> None:
    assert network.own_name_address("localhost") == "127.0.0.1"
    assert network.own_name_address("192.0.2.1") is None
    assert network.own_name_address("no-such-name.invalid") is None


def test_sockets_fit_however_deep_the_checkout() -> None:
    deep = Layout(root=Path("/x" * 200), build=Path("/y"))
    assert len(str(deep.munge_socket)) < 108
    # slurmd and its steps put their sockets below the spool directory: NODE/NODE_JOB.STEP.
    assert len(f"{deep.spool}/node256/node256_4294967295.4294967295") < 108
    assert deep.run != Layout(root=Path("/x"), build=Path("/y")).run


# Texts


def test_slurm_conf_stays_on_loopback_and_names_every_node(settings: config.Settings) -> None:
    text = config.slurm_conf(settings)
    assert "CommunicationParameters=NoInAddrAny,NoCtldInAddrAny\n" in text
    assert "NodeName=node1 NodeAddr=127.0.0.1 Port=20003 " in text
    assert "NodeName=node2 NodeAddr=127.0.0.1 Port=20004 " in text
    assert f"PlugStackConfig={settings.layout.etc}/plugstack.conf\n" in text
    assert "NoInAddrAny" not in config.slurm_conf(settings, stay=False)
    assert "PlugStackConfig" not in config.slurm_conf(replace(settings, piolet=False))


def test_piolet_toml_is_what_piolet_reads(settings: config.Settings, tmp_path: Path) -> None:
    from piolet.site.config import load

    path = tmp_path / "piolet.toml"
    path.write_text(config.piolet_toml(settings))
    loaded = load(path)
    assert loaded.environment.edf_path == (str(settings.layout.edf),)
    assert loaded.images.store == str(settings.layout.images)
    assert loaded.images.socket == str(settings.layout.images_socket)


def test_cgroup_conf_keeps_each_version_of_slurm_away_from_control_groups() -> None:
    assert "CgroupPlugin=cgroup/v1\n" in config.cgroup_conf((22, 5))
    assert "CgroupPlugin=disabled\n" in config.cgroup_conf((24, 11))


def test_steps_are_confined_where_that_was_asked_for(settings: config.Settings) -> None:
    plain, confined = config.slurm_conf(settings), config.slurm_conf(replace(settings, cgroups=1))
    assert "ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\n" in plain and "RealMemory" not in plain
    assert "ProctrackType=proctrack/cgroup\nTaskPlugin=task/cgroup\n" in confined and "RealMemory=" in confined
    for version in (1, 2):
        text = config.cgroup_conf((22, 5), version)
        for line in (f"CgroupPlugin=cgroup/v{version}", "ConstrainDevices=yes", "ConstrainRAMSpace=yes"):
            assert f"{line}\n" in text
        assert ("IgnoreSystemd=yes" in text) is (version == 2)


def test_jobs_have_directories_of_their_own_where_that_was_asked_for(settings: config.Settings) -> None:
    """By whichever plugin that version of Slurm has."""
    assert "Contain" not in config.slurm_conf(settings)
    for version, line in (
        ((22, 5), "JobContainerType=job_container/tmpfs"),
        ((26, 5), "NamespaceType=namespace/linux"),
    ):
        text = config.slurm_conf(replace(settings, private_tmp=True, slurm=version))
        assert f"PrologFlags=Contain\n{line}\n" in text


def test_env_sh_survives_awkward_paths(settings: config.Settings, tmp_path: Path) -> None:
    awkward = replace(settings, layout=Layout(root=tmp_path / "a 'b\" $c", build=tmp_path / "build d"))
    script = tmp_path / "env.sh"
    script.write_text(config.env_sh(awkward))
    command = f'. {shlex.quote(str(script))} && printf "%s\\n" "$SLURM_CONF" "$CLUSTER_USERS" "$PATH"'
    result = subprocess.run(
        ["/bin/sh", "-c", command], capture_output=True, text=True, check=True, env={"PATH": "/bin"}
    )
    slurm_conf, users, path = result.stdout.splitlines()
    assert slurm_conf == str(awkward.layout.slurm_conf)
    assert users == " ".join(accounts.USERS)
    assert path == f"{awkward.layout.bin}:{awkward.layout.venv_bin}:/bin"


def test_hosts_puts_our_names_before_the_machine_s_own(settings: config.Settings) -> None:
    lines = config.hosts(settings, "me", "192.0.2.1 me node1\n").splitlines()
    assert lines.index("127.0.0.1 node1") < lines.index("192.0.2.1 me node1")
    assert lines.index("127.0.0.1 me") < lines.index("192.0.2.1 me node1")


# The image


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    path = tmp_path / "layer.tar"
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("etc/hello")
        member.size = 5
        archive.addfile(member, io.BytesIO(b"world"))
    return path


def test_the_oci_layout_says_the_truth_about_its_blobs(tmp_path: Path, layer: Path) -> None:
    digest = oci.write_layout(tmp_path / "image", "1.0", layer, oci.ImageConfig("amd64", ("LANG=C.UTF-8",)))
    blobs = tmp_path / "image" / "blobs" / "sha256"
    for blob in blobs.iterdir():
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
    manifest = json.loads((blobs / digest.removeprefix("sha256:")).read_text())
    packed = (blobs / manifest["layers"][0]["digest"].removeprefix("sha256:")).read_bytes()
    assert manifest["layers"][0]["size"] == len(packed)
    described = json.loads((blobs / manifest["config"]["digest"].removeprefix("sha256:")).read_text())
    assert gzip.decompress(packed) == layer.read_bytes()
    assert described["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(layer.read_bytes()).hexdigest()}"]
    assert described["config"]["Env"] == ["LANG=C.UTF-8"]
    assert oci.read_digest(tmp_path / "image", "1.0") == digest
    assert oci.read_digest(tmp_path / "image", "2.0") is None
    assert oci.read_digest(tmp_path / "nothing", "1.0") is None


def test_the_same_layer_makes_the_same_image(tmp_path: Path, layer: Path) -> None:
    settings = oci.ImageConfig("amd64", ())
    assert oci.write_layout(tmp_path / "a", "1", layer, settings) == oci.write_layout(
        tmp_path / "b", "1", layer, settings
    )


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="needs skopeo")
def test_skopeo_reads_the_layout(tmp_path: Path, layer: Path) -> None:
    digest = oci.write_layout(tmp_path / "image", "1.0", layer, oci.ImageConfig("amd64", ()))
    result = subprocess.run(
        ["skopeo", "--insecure-policy", "inspect", f"oci:{tmp_path}/image:1.0"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(result.stdout)["Digest"] == digest


def test_the_source_is_the_suite_of_this_distribution() -> None:
    targets = "stable-updates main http://one\nstable contrib http://two\nstable main http://three\n"
    assert image.choose_source("stable", targets) == image.Source("stable", "http://three")
    with pytest.raises(ClusterError, match="no source for the component main of 'other'"):
        image.choose_source("other", targets)


def test_only_what_leads_to_a_mirror_is_taken_from_apt() -> None:
    dump = 'Acquire::http::Proxy "http://p:1/";\nAcquire::https::CaInfo "";\nAPT::Architecture "amd64";\n'
    assert image.apt_options(dump) == ['Acquire::http::Proxy "http://p:1/"']


def test_nobody_at_the_registry_s_port_is_an_answer() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert not registry.answers(address)
        assert registry.manifest_digest(address, "a", "b") is None


# What people see


def test_errors_show_the_end_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"line {number}\n" for number in range(100)))
    text = ClusterError("it failed", "try again", log).render()
    assert text.splitlines()[0] == "it failed"
    assert text.splitlines()[-2:] == ["  | line 99", "hint: try again"]
    assert "line 50" not in text
    assert tail(tmp_path / "nothing") == ["(there is no such file)"]


def test_a_step_says_how_long_it_took_and_that_it_failed() -> None:
    stream = io.StringIO()
    times = iter([0.0, 1.5, 2.0, 2.25])
    report = Report(stream, clock=lambda: next(times))
    with report.step("munge") as said:
        said.append("there")
    with pytest.raises(ClusterError), report.step("nodes"):
        raise ClusterError("no")
    first, second = stream.getvalue().splitlines()
    assert first.split() == ["munge", "there", "1.5", "s"]
    assert second == "  nodes       failed after 0.2 s"


def test_a_reader_that_went_away_stops_nothing() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    with Report(stream).step("munge") as said:
        said.append("there")
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_the_number_of_nodes_is_checked(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "require_root", lambda: None)
    for nodes in (0, -1, 257):
        with pytest.raises(ClusterError, match=f"1 to 256 nodes, not {nodes}"):
            lifecycle.up(layout, lifecycle.Request(nodes, True), Report(io.StringIO()))


def test_without_root_it_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        assert cli.main(["up", "--dir", str(tmp_path / "cluster")]) == 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    error = capsys.readouterr().err
    assert error.startswith("the private cluster needs root")
    assert "\nhint: " in error
    assert not (tmp_path / "cluster").exists()


def test_down_where_nothing_is_says_so(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "require_root", lambda: None)
    stream = io.StringIO()
    lifecycle.down(layout, Report(stream))
    assert stream.getvalue() == f"No cluster is running in {layout.root}.\n"
    assert not layout.root.exists()


# The demo


GOOD = "".join(f"rank {rank} of 8 on node{rank // 2 + 1} in [{image.MARKER_TEXT}, Debian]\n" for rank in range(8)) + (
    "epoch    0  loss 0.7000\nepoch   50  loss 0.1000\n"
)


def test_good_output_of_the_demo_has_no_problems() -> None:
    assert demo.problems(GOOD, node_names(4), 8) == []


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("rank 7 of 8", "rang 7 of 8", "7 ranks said"),
        ("on node4", "on node3", "the ranks ran on"),
        (
            f"rank 3 of 8 on node2 in [{image.MARKER_TEXT}",
            "rank 3 of 8 on node2 in [no image",
            "ranks 3 did not run in",
        ),
        ("loss 0.1000", "loss 0.7000", "did not go down"),
        ("epoch   50", "ypoch   50", "did not go down"),
    ],
)
def test_each_promise_of_the_demo_is_checked(old: str, new: str, complaint: str) -> None:
    assert old in GOOD
    found = demo.problems(GOOD.replace(old, new), node_names(4), 8)
    assert len(found) == 1
    assert complaint in found[0]


SCREEN = "SIMULATED FIGURES\nGPU saturation 82 %\nsize 6 GPUs on 3 nodes\npiolet: the report: {}/report.html\n"


def test_the_demo_shows_where_its_report_is(tmp_path: Path) -> None:
    (tmp_path / "report.html").touch()
    assert demo.report(SCREEN.format(tmp_path), 3) == f"{tmp_path}/report.html"


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("GPU saturation", "no score", "did not end with the score of 6 GPUs on 3 nodes"),
        ("6 GPUs on 3 nodes", "4 GPUs on 2 nodes", "did not end with the score of 6 GPUs on 3 nodes"),
        ("SIMULATED", "TRUE", "does not say that its GPUs are simulated"),
        ("piolet: the report", "piolet: a report", "left no report"),
        ("report.html", "other.html", "left no report"),
    ],
)
def test_a_score_that_is_not_as_promised_fails_the_demo(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    (tmp_path / "report.html").touch()
    text = SCREEN.format(tmp_path)
    assert old in text
    with pytest.raises(ClusterError, match=complaint):
        demo.report(text.replace(old, new), 3)


def test_the_example_is_packed_without_owners() -> None:
    with tarfile.open(fileobj=io.BytesIO(demo.packed(demo.EXAMPLE))) as archive:
        members = archive.getmembers()
    assert {"./train.py", "./job.sh", "./my_environment.toml", "./data/moons.csv"} <= {m.name for m in members}
    assert {(m.uid, m.gid) for m in members} == {(0, 0)}


def test_the_tool_needs_nothing_but_the_standard_library() -> None:
    code = "import tools.cluster.cli, sys; sys.exit(any(m.startswith('piolet') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-S", "-c", code], cwd=REPOSITORY, check=False).returncode == 0


def test_links_in_the_path_lead_to_one_cluster(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    assert layout_for(tmp_path / "link" / "cluster") == layout_for(tmp_path / "cluster")
