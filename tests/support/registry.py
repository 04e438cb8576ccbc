"""A real registry on loopback, and sham ones that misbehave.

`Registry` runs `docker-registry serve` on a free port with its own folder, and counts requests by a
small proxy in front of it. Needs the Debian packages docker-registry and skopeo; the password file is
made with libcrypt, so that apache2-utils is not needed.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import http.client
import http.server
import json
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support.waiting import wait_until
from tools.cluster.registry import copy

CONFIG = """version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {data}}}
  delete: {{enabled: true}}
http: {{addr: 127.0.0.1:{port}}}
{auth}
"""


def free_port() -> int:
    """Return a TCP port on loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def bcrypt(password: str) -> str:
    """Return the password as htpasswd -B writes it."""
    crypt = ctypes.CDLL("libcrypt.so.1").crypt
    crypt.restype = ctypes.c_char_p
    made: bytes = crypt(password.encode(), b"$2b$04$abcdefghijklmnopqrstuu")
    return made.decode()


class Registry:
    """A running registry at `address` (127.0.0.1:PORT). `requests` holds each request's method and path."""

    def __init__(self, folder: Path, users: dict[str, str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._port = free_port()
        self._users = users or {}
        auth = ""
        if users:
            (folder / "htpasswd").write_text("".join(f"{user}:{bcrypt(word)}\n" for user, word in users.items()))
            auth = f"auth: {{htpasswd: {{realm: test, path: {folder}/htpasswd}}}}"
        (folder / "config.yml").write_text(CONFIG.format(data=folder / "data", port=self._port, auth=auth))
        self._process = subprocess.Popen(
            ["docker-registry", "serve", str(folder / "config.yml")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.environ["PATH"], "OTEL_TRACES_EXPORTER": "none"},
        )
        self.requests: list[str] = []
        self.disturb: Callable[[http.server.BaseHTTPRequestHandler], bool] | None = None
        """Asked for each request: whether it has answered that itself, badly."""
        self._sham = Sham(self._pass_on)
        self.address = self._sham.address
        try:
            wait_until(lambda: _listens(self._port), what="the registry's start")
        except BaseException:
            self.stop()
            raise

    def push(self, image: Path, name: str, user: str | None = None) -> str:
        """Push an image that `oci.build` made as `name`; return its whole reference."""
        reference = f"{self.address}/{name}"
        credentials = ["--dest-creds", f"{user}:{self._users[user]}"] if user else []
        copy(f"dir:{image}", reference, *credentials)
        self.requests.clear()
        return reference

    def put_manifest(self, repository: str, tag: str, body: bytes, kind: str) -> None:
        """Put a document in a manifest's place, past skopeo."""
        client = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        client.request("PUT", f"/v2/{repository}/manifests/{tag}", body, {"Content-Type": kind})
        answer = client.getresponse()
        assert answer.status == 201, answer.read()
        client.close()

    def blob_file(self, folder: Path, digest: str) -> Path:
        """Return where the registry that lives in `folder` keeps a blob."""
        plain = digest.removeprefix("sha256:")
        return folder / "data/docker/registry/v2/blobs/sha256" / plain[:2] / plain / "data"

    def stop(self) -> None:
        """End it."""
        self._sham.stop()
        self._process.kill()
        self._process.wait()

    def _pass_on(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        self.requests.append(f"{handler.command} {handler.path}")
        if self.disturb is not None and self.disturb(handler):
            return
        length = handler.headers.get("Content-Length")
        body = handler.rfile.read(int(length)) if length else _chunks(handler)
        client = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        client.putrequest(handler.command, handler.path, skip_host=True, skip_accept_encoding=True)
        for name, value in handler.headers.items():  # several Accept headers are usual, and all matter
            if name.lower() not in ("transfer-encoding", "content-length"):
                client.putheader(name, value)
        client.putheader("Content-Length", str(len(body)))
        client.endheaders(body)
        answer = client.getresponse()
        data = answer.read()
        handler.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                handler.send_header(name, value)
        known = answer.getheader("Content-Length")
        handler.send_header("Content-Length", known if handler.command == "HEAD" and known else str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)
        client.close()


def _chunks(handler: http.server.BaseHTTPRequestHandler) -> bytes:
    if handler.headers.get("Transfer-Encoding", "").lower() != "chunked":
        return b""
    data = b""
    while True:
        size = int(handler.rfile.readline().split(b";")[0], 16)
        data += handler.rfile.read(size)
        handler.rfile.readline()
        if size == 0:
            return data


class Sham:
    """An HTTP server on loopback whose every request is handed to `answer`."""

    def __init__(self, answer: Callable[[http.server.BaseHTTPRequestHandler], None]) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _do(self) -> None:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    answer(self)

            do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = _do  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextlib.contextmanager
def sham(answer: Callable[[http.server.BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """Give the address of a server that answers so."""
    server = Sham(answer)
    try:
        yield server.address
    finally:
        server.stop()


def reply(
    handler: http.server.BaseHTTPRequestHandler, status: int, body: bytes, kind: str, length: int | None = None
) -> None:
    """Send one whole answer; `length` is what it claims to have."""
    handler.send_response_only(status)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)
    if length is not None and length != len(body):
        handler.close_connection = True


def auth_file(path: Path, registry: str, user: str, password: str) -> Path:
    """Write an auth.json as podman login does."""
    word = base64.b64encode(f"{user}:{password}".encode()).decode()
    path.write_text(json.dumps({"auths": {registry: {"auth": word}}}))
    path.chmod(0o600)
    return path
