"""Certificates: what they say, who can sign them, and that a change is seen."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from piolet.base.errors import PioletError, ScoreError, SlurmError
from piolet.cli import certificate as verb
from piolet.cli import main
from piolet.samples import dataset
from piolet.samples.dataset import Dataset, open_dataset
from piolet.score import certificate
from piolet.score.certificate import facts
from piolet.score.report.certificate import render
from piolet.score.summary import summarise
from piolet.slurm import accounting

from tests.score import generate

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen (OpenSSH) is not installed")
JOB = {"user": "alice", "account": "a1", "state": "COMPLETED", "seconds": 700, "nodes": 2, "gpus": 8, "gpu_hours": 1.5}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set of a step of ten minutes on two nodes with four GPUs each."""
    generate.generate(tmp_path / "data", 2, 4, 600, 1)
    return tmp_path / "data"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """The site's key, and beside it whose signatures count."""
    path = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", path], check=True)
    public = path.with_suffix(".pub").read_text()
    (tmp_path / "signers").write_text(f'site.example namespaces="{verb.NAMESPACE}" {public}')
    return path


@pytest.fixture
def piolet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Call `piolet score` here, and return what it says; it raises what it raises."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "piolet.toml").write_text(f'[score]\nkey = "{tmp_path}/key"\nsigners = "{tmp_path}/signers"\n', "utf-8")

    def call(*words: str | Path) -> str:
        status = main.main(["--config", "piolet.toml", "score", *map(str, words)])
        said = capsys.readouterr()
        if status:
            raise ScoreError(said.err)
        return said.out

    return call


def test_a_certificate_is_signed_and_says_what_it_is_worth(data: Path, key: Path, piolet: Callable[..., str]) -> None:
    """JSON, page and signature; the user's files are called that, and nothing that was not asked is confirmed."""
    said = piolet("certificate", data, "--out", "c.json")
    assert said.split() == ["c.json", "c.html", "c.json.sig"]
    content = json.loads(Path("c.json").read_text())
    (step,) = content["steps"]
    assert step["name"] == "1000.0" and step["gpus"] == 8 and step["uids"] == [1000]
    assert content["total"]["gpu_hours"]["value"] == pytest.approx(8 / 6)
    assert content["total"]["saturation"]["value"] == pytest.approx(step["figures"]["saturation"]["value"])
    assert sum(step["parts"].values()) == pytest.approx(1, abs=1e-4)
    assert set(step["files"]) == {f"node000{n}{host}.parquet" for n in (0, 1) for host in ("", ".host")}
    worth = " ".join(content["worth"])
    assert "could have changed them" in worth and "simulators" in worth
    assert "Slurm's accounting did not confirm step 1000.0" in worth
    page = Path("c.html").read_text()
    assert "1.33</span> GPU hours" in page and "could have changed them" in page and "<script" not in page
    assert "default-src 'none'" in page
    said = piolet("verify", "c.json", data)
    assert "signed by site.example, and unchanged since" in said and "1.33 GPU hours" in said
    assert "are those of step 1000.0" in said


def test_anybody_can_verify_without_piolet(data: Path, key: Path, piolet: Callable[..., str], tmp_path: Path) -> None:
    """With OpenSSH alone."""
    piolet("certificate", data, "--out", "c.json")
    words = ["-Y", "verify", "-f", "signers", "-I", "site.example", "-n", verb.NAMESPACE, "-s", "c.json.sig"]
    done = subprocess.run(["ssh-keygen", *words], input=Path("c.json").read_bytes(), cwd=tmp_path, check=False)
    assert done.returncode == 0


def test_what_was_changed_is_refused(data: Path, key: Path, piolet: Callable[..., str]) -> None:
    """A figure, the page, the files; and another's signature."""
    piolet("certificate", data, "--out", "c.json")
    good, page = Path("c.json").read_bytes(), Path("c.html").read_bytes()
    Path("c.json").write_bytes(good.replace(b'"step": "0"', b'"step": "9"'))
    with pytest.raises(ScoreError, match="the signature is not of this certificate"):
        piolet("verify", "c.json")
    Path("c.json").write_bytes(good)
    Path("c.html").write_bytes(page.replace(b"GPU hours", b"GPU years"))
    with pytest.raises(ScoreError, match=r"the page c\.html is not the certificate's"):
        piolet("verify", "c.json")
    Path("c.html").write_bytes(page)
    with (data / "node0000.parquet").open("ab") as file:
        file.write(b"x")
    shutil.copy(data / "node0001.parquet", data / "node0000.parquet")
    with pytest.raises(ScoreError, match="are those of no step of the certificate"):
        piolet("verify", "c.json", data)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "other"], check=True)
    piolet("certificate", data, "--out", "d.json", "--key", "other")
    with pytest.raises(ScoreError, match=r"nobody in .*signers made the signature"):
        piolet("verify", "d.json")
    Path("d.json.sig").write_bytes(b"no signature")
    with pytest.raises(ScoreError, match=r"nobody in .*signers made the signature"):
        piolet("verify", "d.json")


def test_a_signature_for_another_purpose_does_not_count(data: Path, key: Path, piolet: Callable[..., str]) -> None:
    """The key may sign other things, as an SSH key does."""
    piolet("certificate", data, "--out", "c.json")
    body = Path("c.json").read_bytes()
    words = ["ssh-keygen", "-Y", "sign", "-q", "-f", str(key), "-n", "file"]
    Path("c.json.sig").write_bytes(subprocess.run(words, input=body, capture_output=True, check=True).stdout)
    with pytest.raises(ScoreError):
        piolet("verify", "c.json")


def test_without_the_key_there_is_no_signature(data: Path, piolet: Callable[..., str]) -> None:
    """A user's own: it says that it proves nothing, and no earlier signature stays beside it."""
    Path("c.json.sig").write_text("old")
    said = piolet("certificate", data, "--out", "c.json")
    assert "not signed, so it proves nothing" in said and "piolet score certificate" in said
    assert not Path("c.json.sig").exists()
    with pytest.raises(ScoreError, match=r"there is no c\.json.sig"):
        piolet("verify", "c.json")


def test_a_key_that_others_can_read_signs_nothing(data: Path, key: Path, piolet: Callable[..., str]) -> None:
    key.chmod(0o644)
    with pytest.raises(ScoreError, match="cannot sign with"):
        piolet("certificate", data, "--out", "c.json")
    assert not Path("c.json").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_root_reads_a_data_set_as_its_owner(data: Path, key: Path, piolet: Callable[..., str], tmp_path: Path) -> None:
    """What only root can read is not read, and root's own data are none."""
    with pytest.raises(ScoreError, match="belongs to root"):
        piolet("certificate", data)
    nobody = 65534
    for path in (tmp_path, *tmp_path.parents[:-2]):  # all but / and /tmp
        path.chmod(path.stat().st_mode | stat.S_IXOTH)
    for path in (data, *data.iterdir()):
        os.chown(path, nobody, nobody)
    piolet("certificate", data, "--out", "c.json")
    assert json.loads(Path("c.json").read_text())["steps"][0]["gpus"] == 8
    (data / "node0001.parquet").chmod(0)
    os.chown(data / "node0001.parquet", 0, 0)
    with pytest.raises(ScoreError, match=r"cannot read .*node0001"):
        piolet("certificate", data, "--out", "d.json")


@pytest.fixture(autouse=True)
def not_root(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Tests run as root, too: but for one of them that is nobody's business."""
    if "root" not in request.node.name:
        monkeypatch.setattr(verb, "_is_root", lambda: False)


def steps(data: Path) -> list[dict[str, Any]]:
    opened: Dataset = open_dataset(data)
    return [facts(summarise(opened), opened)]


MADE = {"at": "now", "by": "me", "host": "here", "release": "0"}


def test_slurms_accounting_confirms_or_contradicts(data: Path) -> None:
    """A step has room in its job, or somebody has changed something."""
    known = steps(data)
    worth = certificate.worth(known, {"1000": JOB})[-1]
    assert worth == "Slurm's accounting has a job of alice in which step 1000.0 has room: its GPUs, nodes and time."
    for change, text in (
        ({"gpus": 4}, "the job had 4 GPUs, the step 8"),
        ({"seconds": 500}, "the job ran for 500 s, the step for 600 s"),
        ({"nodes": 1}, "the job had 1 nodes, the step 2"),
    ):
        worth = certificate.worth(known, {"1000": JOB | change})[-1]
        assert "contradicts step 1000.0" in worth and text in worth
    page = render(certificate.certificate(known, {"1000": JOB}, **MADE), "c.json")
    assert "alice (a1), COMPLETED, 8 GPUs on 2 nodes" in page


def test_several_steps_are_added_up(data: Path) -> None:
    """Where one is not confirmed, the whole is a range."""
    one, other = steps(data)[0], steps(data)[0] | {"name": "1000.1"}
    got = certificate.certificate([one, other], {"1000": JOB}, **MADE)["total"]
    assert got["gpu_hours"]["value"] == pytest.approx(2 * 8 / 6) and got["saturation"]["witness"]
    bounds = {"value": None, "low": 0.2, "high": None, "witness": "", "reason": "a pipe is missing"}
    other["figures"] = other["figures"] | {"saturation": bounds}
    got = certificate.certificate([one, other], {"1000": JOB}, **MADE)["total"]["saturation"]
    mean = one["figures"]["saturation"]["value"]
    assert (got["low"], got["high"]) == pytest.approx(((mean + 0.2) / 2, (mean + 1) / 2))
    assert got["reason"] == "a pipe is missing" and got["value"] is None


def test_texts_of_a_user_are_escaped(data: Path) -> None:
    """In the page; and what the signing process believes is plain values."""
    known = [steps(data)[0] | {"label": "<script>x</script>", "sources": ["<b>"]}]
    page = render(certificate.certificate(known, {"1000": "no"}, **MADE), "c.json")
    assert "<script" not in page and "<b>" not in page and "&lt;script&gt;" in page


@pytest.mark.parametrize("text", ["{}", "[]", "1", '{"job": "1"}', '{"job": ["x"]}', "{", ""])
def test_what_is_no_step_is_refused(
    text: str, data: Path, key: Path, piolet: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was the user may say anything."""
    monkeypatch.setattr(verb, "_read_facts", lambda *_: text.encode())
    with pytest.raises(PioletError, match=r"is no step|cannot be certified"):
        piolet("certificate", data, "--out", "c.json")
    assert not Path("c.json").exists()


def test_a_data_set_that_hangs_or_floods_is_given_up(
    data: Path, key: Path, piolet: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe in a file's place; and more than can be."""
    monkeypatch.setattr(verb, "_READ_S", 1.0)
    (data / "node0001.parquet").unlink()
    os.mkfifo(data / "node0001.parquet")
    with pytest.raises(ScoreError, match="could not be read within 1 s"):
        piolet("certificate", data)
    monkeypatch.setattr(verb, "_READ_S", 60.0)
    monkeypatch.setattr(verb, "_JSON_MAX", 1000)
    monkeypatch.setattr(verb, "_read_facts", lambda *_: b"x" * 5000)
    with pytest.raises(ScoreError, match="more than a certificate can hold"):
        piolet("certificate", data)


def sacct(tmp_path: Path, lines: str, status: int = 0) -> str:
    path = tmp_path / "sacct"
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{lines}\nEND\nexit {status}\n")
    path.chmod(0o755)
    return str(path)


def test_what_sacct_says_of_a_job(tmp_path: Path) -> None:
    """The last run of a requeued one; without GPUs none; and what it does not know is an error."""
    rows = "7|bob|b|NODE_FAIL|5|1|cpu=4|s|e\n7|bob|b|COMPLETED|3600|2|billing=8,gres/gpu:h100=8,gres/gpu=8,node=2|s|e"
    got = accounting.of("7", sacct(tmp_path, rows))
    assert (got.user, got.seconds, got.nodes, got.gpus, got.gpu_hours) == ("bob", 3600, 2, 8, 8)
    assert accounting.of("7", sacct(tmp_path, "7|bob|b|FAILED|10|1|cpu=4|s|e")).gpus == 0
    for lines, status in (("", 0), ("8|x|y|z|1|1|cpu=1|s|e", 0), ("7|bob", 0), ("7|b|b|R|x|1||s|e", 0), ("", 1)):
        with pytest.raises(SlurmError, match="of job 7"):
            accounting.of("7", sacct(tmp_path, lines, status))
    with pytest.raises(SlurmError, match="cannot start"):
        accounting.of("7", "/no/such/sacct")


def test_journals_are_files_of_it_too(tmp_path: Path, data: Path) -> None:
    """What the sampler's own processes keep aside is none."""
    (data / "node0002.journal").write_bytes(b"")
    (data / ".node0002.parquet.12").write_bytes(b"")
    names = certificate.digests(Dataset(data, ()))
    assert "node0002.journal" in names and not any(name.startswith(".") for name in names)
    assert dataset.HOST_PARQUET in ".host.parquet"
