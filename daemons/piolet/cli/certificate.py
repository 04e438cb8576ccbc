"""`piolet score certificate` and `piolet score verify`: what steps made of their GPUs, signed by the site.

OpenSSH signs and verifies (ssh-keygen -Y), with a key that only those who may sign can read: a user makes the same
certificate without a signature. What is signed is the JSON; the page is in it by its digest.

A data set is a user's. It is read by a process that has no more than that user's rights, whoever makes the certificate,
and that tells plain values; what is checked with Slurm's accounting, and signed, are these.
"""

from __future__ import annotations

import argparse
import getpass
import hashlib
import json
import os
import pwd
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from piolet.base import files
from piolet.base.errors import PioletError, ScoreError, SlurmError
from piolet.cli.files import write
from piolet.cli.main import printable
from piolet.samples.settings import ScoreConfig
from piolet.system import linux

NAMESPACE = "piolet-score"
_SIGN_S, _READ_S = 30.0, 600.0
_JSON_MAX, _SIGNATURE_MAX, _PIECE = 64 << 20, 64 << 10, 1 << 16


def make(args: argparse.Namespace, settings: ScoreConfig, locate: Callable[[str], Path]) -> int:
    """Write NAME.json, NAME.html and, if the key can be read, NAME.json.sig; return the exit status.

    `locate` returns the directory of a data set by its name.
    """
    calibration = args.calibration.absolute() if args.calibration else None
    read = [_facts(locate(name).absolute(), calibration) for name in args.data]
    # After that: what forks has one thread.
    from piolet.score import certificate
    from piolet.score.report.certificate import render

    try:
        steps = [json.loads(each) for each in read]
        content = certificate.certificate(
            steps,
            {step["job"]: _accounting(str(step["job"])) for step in steps},
            at=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
            by=getpass.getuser(),
            host=os.uname().nodename,
            release=metadata.version("piolet"),
        )
        target = args.out or Path(f"piolet-certificate-{'-'.join(_plain(step['name']) for step in steps[:1])}.json")
        page = render(content, target.name).encode()
        body = certificate.to_json(content | {"page": hashlib.sha256(page).hexdigest()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ScoreError("what was read of the data sets is no step") from None
    key = args.key or Path(settings.key)
    signature = None if args.unsigned or (args.key is None and not os.access(key, os.R_OK)) else sign(body, key)
    write(target, body)
    write(target.with_suffix(".html"), page)
    signed = target.with_name(f"{target.name}.sig")
    if signature is not None:
        write(signed, signature)
    else:
        signed.unlink(missing_ok=True)  # of an earlier one, which this is not
    for path in (target, target.with_suffix(".html"), *([signed] if signature is not None else [])):
        print(path)
    if signature is None:
        hint = f"who can read the site's key {key} makes a signed one: piolet score certificate {' '.join(args.data)}"
        print(f"not signed, so it proves nothing\nhint: {hint}")
    return 0


def _plain(text: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in text)[:60]


def _facts(directory: Path, calibration: Path | None) -> bytes:
    """Return what is certified of a data set, as JSON of a process that is its owner. Raises ScoreError."""
    try:
        owner = directory.stat()
    except OSError as error:
        raise ScoreError(f"cannot read {directory}: {error.strerror}") from None
    if _is_root() and owner.st_uid == 0:
        raise ScoreError(f"{directory} belongs to root, whose steps are not scored")
    read, told = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read)
            linux.close_all_but({told, 2})
            if _is_root():
                _become(owner)
            _write_all(told, b"+" + _read_facts(directory, calibration))
        except PioletError as error:
            _write_all(told, f"-{error.message}".encode("utf-8", "replace"))
        except Exception as error:  # noqa: BLE001 - it is the last thing that this process does
            _write_all(told, f"-{type(error).__name__}: {error}".encode("utf-8", "replace"))
        finally:
            os._exit(0)
    os.close(told)
    try:
        data = _taken(read, directory)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(read)
    if data[:1] != b"+":
        said = data[1:501].decode("utf-8", "replace") or "the process that reads it has ended"
        raise ScoreError(f"{directory} cannot be certified: {printable(said)}")
    return data[1:]


def _is_root() -> bool:
    return os.getuid() == 0


def _become(owner: os.stat_result) -> None:
    account = pwd.getpwuid(owner.st_uid)
    linux.become(account.pw_uid, account.pw_gid, os.getgrouplist(account.pw_name, account.pw_gid))
    linux.die_with_parent(signal.SIGKILL)
    linux.no_new_privileges()
    linux.not_dumpable()  # so the user's other processes cannot make it say what they want


def _read_facts(directory: Path, calibration: Path | None) -> bytes:
    from piolet.samples.dataset import open_dataset
    from piolet.score.certificate import facts
    from piolet.score.peaks import from_file
    from piolet.score.summary import summarise

    data = open_dataset(directory)
    found = facts(summarise(data, from_file(calibration) if calibration else None), data)
    return json.dumps(found, allow_nan=False).encode()


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _taken(read: int, directory: Path) -> bytes:
    """Return what comes until the other end closes. Raises ScoreError: too much, or too late."""
    data, deadline = bytearray(), time.monotonic() + _READ_S
    while True:
        if not select.select([read], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise ScoreError(f"{directory} could not be read within {_READ_S:g} s")
        if not (piece := os.read(read, _PIECE)):
            return bytes(data)
        data += piece
        if len(data) > _JSON_MAX:
            raise ScoreError(f"{directory} says more than a certificate can hold")


def verify(args: argparse.Namespace, settings: ScoreConfig) -> int:
    """Say whether a certificate is signed by the site, and what it says. Raises ScoreError: it is not."""
    body = _read(args.file, _JSON_MAX)
    signature = _read(args.file.with_name(f"{args.file.name}.sig"), _SIGNATURE_MAX)
    signer = verified(body, signature, args.signers or Path(settings.signers))
    try:
        content = json.loads(body)
        page, steps, worth = str(content["page"]), list(content["steps"]), list(content["worth"])
        lines = [_line(step) for step in steps]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ScoreError(f"{args.file} is signed by {signer}, and is no certificate of Piolet") from None
    print(f"{args.file}: signed by {printable(signer)}, and unchanged since")
    for text in (*lines, *worth):
        print(f"  {printable(str(text))}")
    wrong = _page(args.file.with_suffix(".html"), page)
    for directory in args.data:
        wrong += _files(Path(directory), steps)
    if wrong:
        raise ScoreError("; ".join(wrong))
    return 0


def sign(body: bytes, key: Path) -> bytes:
    """Return OpenSSH's signature of `body`. Raises ScoreError."""
    return _keygen(body, f"cannot sign with {key}", "-Y", "sign", "-q", "-f", str(key), "-n", NAMESPACE)


def verified(body: bytes, signature: bytes, signers: Path) -> str:
    """Return who signed `body`, of those in the file `signers`. Raises ScoreError: nobody of them did."""
    if not os.access(signers, os.R_OK):
        hint = 'the site gives it: NAME namespaces="piolet-score" and its public key; --signers FILE'
        raise ScoreError(f"cannot read {signers}, which says whose signatures count", hint)
    with tempfile.TemporaryDirectory(prefix="piolet-") as room:
        path = Path(room, "signature")
        path.write_bytes(signature)
        where = ("-s", str(path), "-f", str(signers))
        names = _keygen(b"", f"nobody in {signers} made the signature", "-Y", "find-principals", *where)
        name = names.decode("utf-8", "replace").splitlines()[0]
        what = "the signature is not of this certificate: one of them was changed"
        _keygen(body, what, "-Y", "verify", "-n", NAMESPACE, "-I", name, *where)
    return name


def _keygen(data: bytes, what: str, *words: str) -> bytes:
    environ = os.environ | {"LC_ALL": "C", "SSH_ASKPASS_REQUIRE": "never"}
    try:
        # In a session of its own: it would ask the terminal for a passphrase.
        done = subprocess.run(
            ["ssh-keygen", *words], input=data, capture_output=True, timeout=_SIGN_S, check=False, env=environ,
            start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise ScoreError(
            f"cannot start ssh-keygen: {error.strerror}", "OpenSSH 8.1 or later has what it takes"
        ) from None
    except subprocess.TimeoutExpired:
        raise ScoreError(f"{what}: ssh-keygen did not answer within {_SIGN_S:g} s") from None
    if done.returncode or not (done.stdout or "verify" in words):
        said = (done.stderr or done.stdout).decode("utf-8", "replace").strip().splitlines()
        raise ScoreError(f"{what}: {printable(said[-1][:200]) if said else 'ssh-keygen does not say why'}")
    return done.stdout


def _accounting(job: str) -> dict[str, Any] | str:
    """Return what Slurm's accounting says of a job, or why it says nothing."""
    from piolet.score.certificate import accounting_of
    from piolet.slurm import accounting

    if not (job.isascii() and job.isdecimal()):
        return "it is no job of Slurm's"
    try:
        return accounting_of(accounting.of(job))
    except SlurmError as error:
        return error.message


def _read(path: Path, most: int) -> bytes:
    try:
        return files.read_small(str(path), most)[0]
    except FileNotFoundError:
        hint = "a certificate without a signature proves nothing" if path.suffix == ".sig" else ""
        raise ScoreError(f"there is no {path}", hint) from None
    except (OSError, ValueError) as error:
        raise ScoreError(f"cannot read {path}: {error}") from None


def _line(step: dict[str, Any]) -> str:
    from piolet.score.figure import restored
    from piolet.score.report.screen import said, share

    hours = said(restored(step["gpu_hours"]), lambda value: f"{value:.2f}")
    return f"step {step['name']}: saturation {share(restored(step['figures']['saturation']))}, {hours} GPU hours"


def _page(path: Path, digest: str) -> list[str]:
    if not path.exists():
        return []
    same = hashlib.sha256(_read(path, _JSON_MAX)).hexdigest() == digest
    return [] if same else [f"the page {path} is not the certificate's: it was changed, or is another one's"]


def _files(directory: Path, steps: list[dict[str, Any]]) -> list[str]:
    """Return what is wrong with a data set that a certificate should be of."""
    from piolet.samples.dataset import open_dataset
    from piolet.score.certificate import digests

    here = digests(open_dataset(directory))
    for step in steps:
        if step["files"] == here:
            print(f"  the files in {printable(str(directory))} are those of step {printable(str(step['name']))}")
            return []
    return [f"the files in {directory} are those of no step of the certificate"]
