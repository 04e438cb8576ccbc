"""Piolet's own hooks: what each gives a container, by what the node has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from piolet.api import Account, Entry, File, Library, Link, Mount, Node, Notice, Program, Shared, Variable
from piolet.base.errors import EnvironmentFileError, PioletError
from piolet.hooks import wanted
from piolet.hooks.settings import HooksConfig

from tests.unit.hooks.test_hooks import ON, ask

GUIDE = Path(__file__).resolve().parents[3] / "docs/hooks.md"


def of(entries: list[Entry], kind: type) -> list[Entry]:
    return [one for one in entries if isinstance(one, kind)]


def slingshot(**found: tuple[str, ...]) -> Node:
    from piolet.hooks.known import _fabric

    paths = {"/dev/cxi[0-9]*": ("/dev/cxi0",), _fabric.HOST_LIBFABRIC[0]: (_fabric.HOST_LIBFABRIC[0],)}
    paths[_fabric.HOST_CXI[0]] = (_fabric.HOST_CXI[0],)
    needed = {
        _fabric.HOST_LIBFABRIC[0]: (Shared("libcurl.so.4", "/l/libcurl.so.4.8"), Shared("libc.so.6", "/l/libc.so.6"))
    }
    return Node("n", "aarch64", {**paths, **found}, needed)


def test_slingshot_from_the_node() -> None:
    """Its libfabric is found first; what that needs only where the image has none of it; and no C library."""
    found = ask(HooksConfig("/nowhere"), {ON.format("cxi"): "true"}, slingshot())
    place = "/run/piolet/fabric"
    assert Library("libfabric.so.1", f"{place}/libfabric.so.1") in found
    assert Library("libcurl.so.4", f"{place}/libcurl.so.4", last=True) in found
    assert not [one for one in found if isinstance(one, Library) and one.soname == "libc.so.6"]


def test_nccl_over_slingshot_switches_cxi_on_and_is_required_with_it() -> None:
    config = HooksConfig("/nowhere", options=("aws_ofi_nccl.path=/opt/{variant}",))
    node = slingshot(
        **{"/opt/*/lib*/lib*ccl-net*.so": ("/opt/cuda12/lib/libnccl-net.so", "/opt/rocm6/lib/librccl-net.so")}
    )
    annotations = {ON.format("aws_ofi_nccl"): "true", "com.hooks.aws_ofi_nccl.variant": "cuda12"}
    found = ask(config, annotations, node)
    assert Mount("/opt/cuda12/lib/libnccl-net.so", "/run/piolet/fabric/libnccl-net.so") in found
    assert Variable("NCCL_NET", "AWS Libfabric") in found
    assert Library("libfabric.so.1", "/run/piolet/fabric/libfabric.so.1") in found
    with pytest.raises(PioletError, match=r"com\.hooks\.cxi is required: there is no /dev/cxi0"):
        ask(
            config,
            {**annotations, "com.hooks.aws_ofi_nccl.required": "true"},
            Node(found=dict(list(node.found.items())[3:])),
        )


SSHD, KEYGEN = "/usr/sbin/sshd", "/usr/bin/ssh-keygen"


def with_sshd(*more: str) -> Node:
    libraries = (Shared("libc.so.6", "/usr/lib/libc.so.6"), Shared("ld-linux-x86-64.so.2", "/usr/lib/ld.so"))
    found = {path: (path,) for path in (SSHD, KEYGEN, *more)}
    return Node("n", "x86_64", found, {SSHD: libraries, KEYGEN: libraries})


def test_ssh_has_no_port_of_its_own() -> None:
    found = ask(HooksConfig("/nowhere"), {ON.format("ssh"): "true"}, with_sshd())
    texts = {one.path: one.content for one in found if isinstance(one, File)}
    assert set(texts) == {f"/run/piolet/ssh/{name}" for name in ("authorized", "serve", "session")}
    assert "sshd -i -f" in texts["/run/piolet/ssh/serve"]
    assert "AuthenticationMethods publickey\nUsePAM no" in texts["/run/piolet/ssh/serve"]
    assert not [one for one in found if isinstance(one, Program)]


def test_ssh_s_key_is_a_text_or_a_file() -> None:
    key = "ssh-ed25519 AAAA alice"
    found = ask(
        HooksConfig("/nowhere"), {ON.format("ssh"): "true", "com.hooks.ssh.authorize_ssh_key": key}, with_sshd()
    )
    assert File("/run/piolet/ssh/authorized", f"{key}\n") in found
    path = {ON.format("ssh"): "true", "com.hooks.ssh.authorize_ssh_key": "/home/alice/key.pub"}
    assert Mount("/home/alice/key.pub", "/run/piolet/ssh/authorized") in ask(HooksConfig("/nowhere"), path, with_sshd())


def test_ssh_listens_where_the_site_allows_it() -> None:
    annotations = {ON.format("ssh"): "true", "com.hooks.ssh.port": "15263"}
    with pytest.raises(EnvironmentFileError, match="a port is not allowed here"):
        wanted.check(annotations, {}, HooksConfig("/nowhere"))
    allowed = HooksConfig("/nowhere", options=("ssh.port=allowed",))
    assert wanted.check(annotations, {}, allowed) == []
    for port in ("22", "70000", "x", "1\n2"):
        with pytest.raises(EnvironmentFileError, match="is not a number from 1024 to 65535"):
            wanted.check({**annotations, "com.hooks.ssh.port": port}, {}, allowed)
    (program,) = [one for one in ask(allowed, annotations, with_sshd()) if isinstance(one, Program)]
    assert program.words == ("/run/piolet/ssh/listen",)
    assert program.wait_s
    # Whatever srun has let through, a node that does not allow it does not either.
    assert not [one for one in ask(HooksConfig("/nowhere"), annotations, with_sshd()) if isinstance(one, Program)]


def test_a_newer_sshd_s_parts_are_started_by_the_node_s_loader() -> None:
    found = ask(HooksConfig("/nowhere"), {ON.format("ssh"): "true"}, with_sshd("/usr/lib/openssh/sshd-session"))
    texts = {one.path: one.content for one in found if isinstance(one, File)}
    assert "SshdSessionPath /run/piolet/ssh/sshd-session\n" in texts["/run/piolet/ssh/serve"]
    assert "ld.so --library-path" in texts["/run/piolet/ssh/sshd-session"]


def test_nccl_without_a_variant_is_left_out_where_the_node_s_own_is_taken() -> None:
    """A file from a site that has a default runs here, and says so."""
    asks = {ON.format("aws_ofi_nccl"): "true"}
    assert wanted.check(asks, {}, HooksConfig("/nowhere")) == []
    assert Notice("the hook com.hooks.aws_ofi_nccl is left out: no variant is named") in ask(
        HooksConfig("/nowhere"), asks, slingshot()
    )


def test_a_network_stack_of_the_site_s() -> None:
    config = HooksConfig("/nowhere", options=("netstack.base=/stacks", "netstack.source=artifact"))
    stack = "/stacks/aarch64/26.05.1/gpu:cuda13,cxi:13.1.0"
    node = slingshot(**{f"/stacks/*/*/*/{name}": (f"{stack}/{name}",) for name in ("libfabric.so.1", "libnccl-net.so")})
    asks = {
        ON.format("aws_ofi_nccl"): "true",
        "com.hooks.netstack.version": "26.05.1",
        "com.hooks.netstack.name": "gpu:cuda13,cxi:13.1.0",
    }
    found = ask(config, asks, node)
    assert Mount(stack, stack) in found
    assert Library("libnccl-net.so", f"{stack}/libnccl-net.so") in found
    missing = ask(config, {**asks, "com.hooks.netstack.name": "other"}, node)
    assert {type(one) for one in missing} == {Notice}
    del asks["com.hooks.netstack.version"]
    earlier = {**asks, "com.hooks.netstack.source": "artifact:26.05.1"}
    assert Mount(stack, stack) in ask(HooksConfig("/nowhere", options=config.options[:1]), earlier, node)
    for source in ("artifact:../x", "host:1", "elsewhere"):
        with pytest.raises(EnvironmentFileError):
            wanted.check({"com.hooks.netstack.source": source, "com.hooks.netstack.enabled": "true"}, {}, config)


def test_slurm_s_commands_stand_where_the_node_has_them() -> None:
    """Those of the node, each a link to one script; Slurm's own directory stays at its place."""
    libraries = (
        Shared("libslurmfull.so", "/usr/lib64/slurm/libslurmfull.so"),
        Shared("libc.so.6", "/usr/lib64/libc.so.6"),
        Shared("ld-linux-x86-64.so.2", "/usr/lib64/ld-linux-x86-64.so.2"),
    )
    commands = ("/usr/bin/sbatch", "/usr/bin/sed", "/usr/bin/srun")
    node = Node("n", "x86_64", {"/usr/bin/s*": commands}, {"/usr/bin/srun": libraries})
    found = ask(HooksConfig("/nowhere"), {ON.format("slurm"): "true"}, node)
    client = "/run/piolet/slurm/client"
    assert of(found, Link) == [Link("/usr/bin/srun", client), Link("/usr/bin/sbatch", client)]
    assert Mount("/usr/lib64/slurm", "/usr/lib64/slurm") in found
    assert Mount("/etc/slurm", "/etc/slurm") in found
    assert Mount("/run/munge", "/run/munge", optional=True) in found
    assert Account("slurm") in found
    script, stand_in = of(found, File)
    assert isinstance(script, File) and isinstance(stand_in, File)
    assert stand_in.path == "/usr/bin/piolet" and "exec /usr/bin/srun -Q --overlap" in stand_in.content
    named = ask(HooksConfig("/nowhere", options=("slurm.piolet=/opt/piolet",)), {ON.format("slurm"): "true"}, node)
    assert [one.path for one in of(named, File) if isinstance(one, File)] == [client, "/opt/piolet"]
    assert "lib1/ld-linux-x86-64.so.2 --library-path /usr/lib64/slurm:/run/piolet/slurm/lib1 " in script.content
    assert {type(one) for one in ask(HooksConfig("/nowhere"), {ON.format("slurm"): "true"}, Node())} == {Notice}


def test_mps_runs_as_long_as_the_step() -> None:
    control = "/usr/bin/nvidia-cuda-mps-control"
    found = ask(HooksConfig("/nowhere"), {ON.format("nvidia_cuda_mps"): "true"}, Node(found={control: (control,)}))
    (program,) = of(found, Program)
    assert isinstance(program, Program)
    assert (program.words, program.wait_s) == ((control, "-f"), 0.0)
    assert program.variables["CUDA_MPS_PIPE_DIRECTORY"] == "/run/piolet/mps/pipe"
    assert Variable("CUDA_MPS_PIPE_DIRECTORY", "/run/piolet/mps/pipe", override=True) in found


def test_dcgm_s_libraries_are_found() -> None:
    path = "/usr/lib64/libdcgm.so.4"
    found = ask(HooksConfig("/nowhere"), {ON.format("dcgm"): "true"}, Node(found={"/usr/lib64/libdcgm*.so*": (path,)}))
    assert found == [Mount(path, path), Library("libdcgm.so.4", path)]


def test_ldconfig_runs_before_the_tasks() -> None:
    given = {ON.format("ldcache"): "true", "com.hooks.ldcache.folders": "/a:/b"}
    (program,) = ask(HooksConfig("/nowhere"), given)
    assert isinstance(program, Program)
    assert program.words == ("/sbin/ldconfig", "/a", "/b")
    assert program.wait_s > 0


def test_the_hook_in_the_guide(tmp_path: Path) -> None:
    """What docs/hooks.md prints as a site's hook is one."""
    (text,) = re.findall(r"```python\n(from piolet\.api .*?)```", GUIDE.read_text("utf-8"), re.DOTALL)
    (tmp_path / "licences.py").write_text(text)
    config = HooksConfig(str(tmp_path))
    path = "/opt/licences/abaqus/licence.dat"
    node = Node(found={"/opt/licences/*/licence.dat": (path,)})
    asks = {ON.format("licences"): "true", "com.hooks.licences.product": "abaqus"}
    assert ask(config, asks, node) == [Mount(path, "/licence.dat"), Variable("LM_LICENSE_FILE", "/licence.dat")]
    with pytest.raises(PioletError, match=r"there is no /opt/licences/other/licence\.dat on"):
        ask(config, {**asks, "com.hooks.licences.product": "other", "com.hooks.licences.required": "true"}, node)
