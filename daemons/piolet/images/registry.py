"""What skopeo does for us: ask a registry for a manifest, copy an image's blobs to a folder.

skopeo gets a closed environment and credentials as an open descriptor, or none at all. The system's
registries.conf and certificates hold as for podman, and its policy.json where there is one. Every
call is bounded in time, and is made again after a while where a registry broke off or was busy; a failure is skopeo's
own last words, made readable, and a hint.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO

from piolet.base.errors import ImageError
from piolet.images.failures import Denied, RegistryUnreachable, disk_full
from piolet.images.manifest import LIMIT_BYTES

_GRACE_S = 10
_LITTLE = 64 << 10
_KEPT = (
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
)
_UNREACHABLE = (
    "connection refused",
    "no such host",
    "i/o timeout",
    "deadline exceeded",
    "no route to host",
    "network is unreachable",
    "TLS handshake timeout",
    "connection reset",
    "server misbehaving",
    "Client.Timeout",
)
_BUSY = re.compile(r"\b(?:502|503|504)\b[ (]+(?:Bad|Service|Gateway)")


_PASSING = re.compile(
    r"connection reset|EOF|TLS handshake timeout|i/o timeout|Client\.Timeout|toomanyrequests"
    r"|\b(?:429|500|502|503|504)\b[ (]+(?:Too|Internal|Bad|Service|Gateway)"
)
"""What is worth another try; a registry that refuses connections or has no address is not."""
PAUSES_S = (1.0, 3.0, 9.0)


@dataclass(frozen=True)
class Skopeo:
    """How skopeo is called. `home` is where it looks for a user's configuration, `scratch` a private folder.

    pauses   seconds before each further try; `said` is told of these
    policy   the policy's file; None: every image is accepted
    """

    program: str
    auth_fd: int | None
    insecure: bool
    timeout_s: float
    home: str
    scratch: str
    before_exec: Callable[[], None] | None = None
    pauses: tuple[float, ...] = ()
    said: Callable[[str], None] = lambda _: None
    policy: str | None = None

    def inspect(self, name: str, what: str, *, config: bool = False) -> bytes:
        """Return the raw manifest, or the raw configuration, of `name`; raises ImageError about `what`."""
        arguments = ["inspect", "--raw", *(["--config"] if config else []), *self._access("--tls-verify")]
        return self._run([*arguments, f"docker://{name}"], what, lambda: None)

    def copy(self, source: str, folder: str, what: str, tell: Callable[[], None]) -> None:
        """Copy the image at `source` as an OCI layout to `folder`, with its blobs beside its documents.

        That folder is called sha256; a blob that is there is believed, and not fetched. `tell` is called twice a
        second meanwhile. Raises ImageError about `what`.
        """
        # Both in one folder: Landlock lets no file be moved from one to another before its version 2, nor in a nested
        # domain.
        arguments = ["copy", "--remove-signatures", "--dest-oci-accept-uncompressed-layers"]
        arguments += ["--dest-shared-blob-dir", os.path.dirname(folder), *self._access("--src-tls-verify")]
        self._run([*arguments, source, f"oci:{folder}:image"], what, tell)

    def _access(self, verify: str) -> list[str]:
        options = [f"{verify}=false"] if self.insecure else []
        return options if self.auth_fd is None else ["--authfile", f"/proc/self/fd/{self.auth_fd}", *options]

    def _run(self, arguments: list[str], what: str, tell: Callable[[], None]) -> bytes:
        for number, pause in enumerate(self.pauses, 1):
            try:
                return self._run_once(arguments, what, tell)
            except ImageError as error:
                if not _PASSING.search(error.message):
                    raise
            self.said(f"the registry broke off; trying {what} again in {pause:g} s ({number} of {len(self.pauses)})")
            time.sleep(pause)
        return self._run_once(arguments, what, tell)

    def _run_once(self, arguments: list[str], what: str, tell: Callable[[], None]) -> bytes:
        command = [self.program, "--command-timeout", f"{max(1, int(self.timeout_s))}s", "--tmpdir", self.scratch]
        command += ["--policy", self.policy] if self.policy else ["--insecure-policy"]
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
        environment |= {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": self.home, "LC_ALL": "C"}
        environment |= {"TMPDIR": self.scratch, "XDG_RUNTIME_DIR": self.home}
        with tempfile.TemporaryFile(dir=self.scratch) as out, tempfile.TemporaryFile(dir=self.scratch) as log:
            try:
                child = subprocess.Popen(
                    [*command, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=log,
                    env=environment,
                    cwd=self.scratch,
                    pass_fds=() if self.auth_fd is None else (self.auth_fd,),
                    preexec_fn=self.before_exec,
                )
            except OSError as error:
                raise ImageError(f"cannot run {self.program}: {error.strerror}", "install skopeo") from None
            try:
                status = _wait(child, self.timeout_s + _GRACE_S, tell)
            finally:
                child.kill()
                child.wait()
            if status is None:
                raise RegistryUnreachable(f"skopeo did not end in {self.timeout_s:.0f} s for {what}")
            if status != 0:
                said = _tail(log)
                raise explain(said, what) if said or _has_room(self.scratch) else disk_full()
            out.seek(0)
            return out.read(LIMIT_BYTES + 1)


def _wait(child: subprocess.Popen[bytes], limit_s: float, tell: Callable[[], None]) -> int | None:
    step = 0.5
    for _ in range(max(1, int(limit_s / step))):
        try:
            return child.wait(step)
        except subprocess.TimeoutExpired:
            tell()
    return None


def _has_room(folder: str) -> bool:
    """Return whether a few lines could be written there."""
    space = os.statvfs(folder)
    return space.f_bavail * space.f_frsize > _LITTLE


def _tail(log: IO[bytes]) -> str:
    log.seek(max(0, log.seek(0, os.SEEK_END) - 8000))
    return log.read().decode("utf-8", "replace")


def explain(log: str, what: str) -> ImageError:
    """Return the error that skopeo's output `log` tells of, for the image `what`."""
    said = _last_words(log)
    if "no space left on device" in said:
        return disk_full()
    if any(sign in said for sign in _UNREACHABLE) or _BUSY.search(said):
        return RegistryUnreachable(
            f"the registry did not answer for {what}: {said}", "check its address, the network, and that it is running"
        )
    hint = None
    if "Source image rejected" in said:
        hint = "policy.json asks for a signature that the image does not have, or takes no image from there"
    elif "HTTP response to HTTPS client" in said:
        hint = "the registry speaks plain HTTP: the site can name it in [images] insecure_registries"
    elif "x509" in said or "certificate" in said:
        hint = "the registry's certificate is not trusted here; a site puts its authority below /etc/containers/certs.d"
    elif re.search(r"unauthorized|authentication required|denied|forbidden|\b40[13]\b", said, re.IGNORECASE):
        hint = "log in with 'podman login' or 'skopeo login', or check the name: registries hide what you may not see"
        return Denied(f"cannot get {what}: {said}", hint)
    elif re.search(r"unknown|not found|\b404\b", said, re.IGNORECASE):
        hint = "no such image or tag: check the spelling"
    elif "untarring" in said:
        said = re.sub(r'untarring file "[^"]*"', "untarring it", said)  # the file is ours, not the user's
        hint = "the archive is of another kind, or not all of it is there"
    return ImageError(f"cannot get {what}: {said}", hint)


def _last_words(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    fatal = [line for line in lines if "level=fatal" in line] or lines[-2:]
    words = []
    for line in fatal[-2:]:
        match = re.search(r'msg="((?:[^"\\]|\\.)*)"', line)
        words.append(re.sub(r"\\(.)", r"\1", match[1]) if match else line)
    text = "".join(c if c.isprintable() else " " for c in "; ".join(words)) or "skopeo said nothing"
    # The name is in our own sentence already.
    text = re.sub(r"^(?:Error )?(?:parsing image name|initializing source) \S+: ", "", text)
    return text if len(text) <= 600 else text[:300] + " ... " + text[-290:]
