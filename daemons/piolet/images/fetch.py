"""Fetch one blob from a registry by ourselves, for images that skopeo does not read. In the cage.

Docker's manifests with layers of OCI's types are refused by skopeo before it fetches anything, so their blobs are
asked for here, as the distribution specification says: GET, a token where the registry wants one, redirects (to which
no credentials go). A connection that is cut is taken up at the byte where it was. Certificates are those of the system
and of certs.d, as for skopeo (containers-certs.d(5)). Mirrors (registries.conf) are skopeo's matter and not known here.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Any

from piolet.base.errors import ImageError
from piolet.images.failures import Denied, RegistryUnreachable
from piolet.images.manifest import LIMIT_BYTES, Blob

_PIECE = 1 << 20
_SILENCE_S = 60.0
_HUB = "docker.io"
_PARAMETER = re.compile(r'([A-Za-z]+)="([^"]*)"')
_CERTIFICATES = ("/etc/containers/certs.d", "/etc/docker/certs.d")
_TRANSIENT = (429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Source:
    """Where blobs come from: `repository` with its registry; `pauses` (s) are made before another try."""

    repository: str
    auth_fd: int | None
    insecure: bool
    timeout_s: float
    pauses: tuple[float, ...]
    home: str | None = None

    @cached_property
    def trust(self) -> ssl.SSLContext:
        """What connections are held against: the system's authorities, and what certs.d has for the registry.

        As skopeo does, the first directory counts that is there; of a store of a user's own that user's comes first.
        """
        context = ssl.create_default_context()
        own = (os.path.join(self.home, ".config/containers/certs.d"),) if self.home else ()
        for place in (*own, *_CERTIFICATES):
            folder = os.path.join(place, self.registry)
            if os.path.isdir(folder):
                _load(context, folder)
                break
        return context

    @property
    def registry(self) -> str:
        """Return the registry's name."""
        return self.repository.partition("/")[0]

    def url(self, digest: str) -> str:
        """Return the address of a blob."""
        host = "registry-1.docker.io" if self.registry == _HUB else self.registry
        scheme = "http" if self.insecure else "https"
        return f"{scheme}://{host}/v2/{self.repository.partition('/')[2]}/blobs/{digest}"

    def entry(self) -> dict[str, str]:
        """Return the credentials in the job's auth.json."""
        if self.auth_fd is None:
            return {}
        value: Any = json.loads(os.pread(self.auth_fd, 1 << 16, 0)).get("auths", {})
        found: dict[str, str] = value.get(self.registry, {})
        return found


def _load(context: ssl.SSLContext, folder: str) -> None:
    """Have the authorities (*.crt) of a directory believed, and show its certificates (*.cert, with *.key)."""
    for name in sorted(os.listdir(folder)):
        path, (stem, ending) = os.path.join(folder, name), os.path.splitext(name)
        try:
            if ending == ".crt":
                context.load_verify_locations(path)
            elif ending == ".cert":
                context.load_cert_chain(path, os.path.join(folder, f"{stem}.key"))
        except OSError as error:  # ssl.SSLError is one
            raise ImageError(f"cannot use the certificate {path}: {error.strerror or error}") from None


def fetch(
    source: Source, blob: Blob, what: str, place: str | None = None, tell: Callable[[], None] = lambda: None
) -> bytes:
    """Write `blob` to the file at `place`, unless it is there, and return b''; or return it, if it is small.

    Raises ImageError: no answer after some tries, refused, longer than its manifest says.
    """
    if place is None and blob.size > LIMIT_BYTES:
        raise ImageError(f"the configuration of {what} is larger than {LIMIT_BYTES} bytes")
    if place is not None and os.path.exists(place):
        return b""
    until = time.monotonic() + source.timeout_s
    aside = os.path.join(os.path.dirname(place), "incoming") if place else None
    with open(aside, "w+b") if aside else io.BytesIO() as file:
        for pause in (*source.pauses, None):
            try:
                _continue(source, blob, what, file, until, tell)
                break
            except (OSError, http.client.HTTPException) as error:
                if pause is None or time.monotonic() + pause > until:
                    raise RegistryUnreachable(
                        f"the registry did not answer for {what}: {error}", "check the network, and try again"
                    ) from None
                time.sleep(pause)
        if place is None:
            file.seek(0)
            return file.read(LIMIT_BYTES + 1)
    assert aside is not None
    os.rename(aside, place)
    return b""


def _continue(source: Source, blob: Blob, what: str, file: IO[bytes], until: float, tell: Callable[[], None]) -> None:
    """Ask for what is missing in `file`; raises OSError or HTTPException when it broke off, ImageError when refused."""
    at = file.seek(0, os.SEEK_END)
    with _asked(source, blob.digest, what, at) as answer:
        if at and answer.status != http.client.PARTIAL_CONTENT:
            at = file.seek(0)
            file.truncate()
        while piece := answer.read(_PIECE):
            at += len(piece)
            if at > blob.size:
                raise ImageError(f"the registry sends more of {what} than its manifest promises")
            file.write(piece)
            tell()
            if time.monotonic() > until:
                raise RegistryUnreachable(f"{what} was not there after {source.timeout_s:.0f} s")
    file.flush()
    if at < blob.size:
        raise ConnectionError(f"it broke off after {at} of {blob.size} bytes")


@contextlib.contextmanager
def _asked(source: Source, digest: str, what: str, at: int) -> Iterator[http.client.HTTPResponse]:
    url, credentials = source.url(digest), source.entry()
    headers = {"Range": f"bytes={at}-"} if at else {}
    try:
        answer = _open(url, headers, trust=source.trust)
    except urllib.error.HTTPError as error:
        if error.code != http.client.UNAUTHORIZED:
            raise _refused(error, what) from None
        headers["Authorization"] = _authorization(error.headers.get("WWW-Authenticate", ""), credentials, source, what)
        try:
            answer = _open(url, headers, trust=source.trust)
        except urllib.error.HTTPError as again:
            raise _refused(again, what) from None
    with answer:
        yield answer


def _open(
    url: str, headers: dict[str, str], body: bytes | None = None, *, trust: ssl.SSLContext
) -> http.client.HTTPResponse:
    """Open an address that begins with http:// or https://."""
    request = urllib.request.Request(url, body, headers)  # noqa: S310 - the callers see to the scheme
    opener = urllib.request.build_opener(_Redirect, urllib.request.HTTPSHandler(context=trust))
    answer: http.client.HTTPResponse = opener.open(request, timeout=_SILENCE_S)
    return answer


def _refused(error: urllib.error.HTTPError, what: str) -> Exception:
    if error.code in _TRANSIENT:
        return ConnectionError(f"{error.code} {error.reason}")
    kind = Denied if error.code in (401, 403) else ImageError
    return kind(f"cannot get {what}: the registry says {error.code} {error.reason}", "log in, or check the name")


def _authorization(challenge: str, entry: dict[str, str], source: Source, what: str) -> str:
    """Return the header for what a registry asks: a token from where it says, or the password itself."""
    kind, _, rest = challenge.partition(" ")
    basic = f"Basic {entry['auth']}" if "auth" in entry else ""
    if kind.lower() != "bearer":
        if not basic:
            raise Denied(f"cannot get {what}: authentication required", "log in with 'podman login'")
        return basic
    values = dict(_PARAMETER.findall(rest))
    realm, service = values.get("realm", ""), values.get("service", "")
    scope = f"repository:{source.repository.partition('/')[2]}:pull"
    if not realm.startswith("https://" if not source.insecure else ("https://", "http://")):
        raise ImageError(f"the registry of {what} names no place for tokens that can be asked")
    what_for = {"service": service, "scope": scope}
    body, headers = None, {"Authorization": basic} if basic else {}
    if "identitytoken" in entry:
        form = {"grant_type": "refresh_token", "refresh_token": entry["identitytoken"], "client_id": "piolet"}
        body, headers = urllib.parse.urlencode({**form, **what_for}).encode(), {}
    else:
        realm += f"{'&' if '?' in realm else '?'}{urllib.parse.urlencode(what_for)}"
    try:
        with _open(realm, headers, body, trust=source.trust) as answer:
            value = json.loads(answer.read(1 << 20))
            token = value.get("token") or value.get("access_token")
    except urllib.error.HTTPError as error:
        raise _refused(error, what) from None
    except (ValueError, AttributeError):
        token = None
    if not isinstance(token, str):
        raise ImageError(f"the registry of {what} gave no token")
    return f"Bearer {token}"


class _Redirect(urllib.request.HTTPRedirectHandler):
    """Follow redirects without the credentials, which are the registry's, and never to a plain file."""

    def redirect_request(self, *arguments: Any) -> urllib.request.Request | None:
        """Return the request for the new place."""
        request = super().redirect_request(*arguments)
        if request is not None:
            if urllib.parse.urlsplit(request.full_url).scheme not in ("http", "https"):
                return None
            request.remove_header("Authorization")
        return request
