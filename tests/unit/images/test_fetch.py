"""Our own client for odd images: which certificates it believes. With a real TLS server."""

from __future__ import annotations

import hashlib
import http.server
import os
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from piolet.base.errors import ImageError
from piolet.images import fetch
from piolet.images.manifest import Blob

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
CONTENT = b"a layer"
BLOB = Blob("sha256:" + hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))


class Layers(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT)

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A directory with a certificate for localhost that no authority of the system has signed, and its key."""
    folder = tmp_path / "keys"
    folder.mkdir()
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    words += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2"]
    subprocess.run([*words, "-keyout", folder / "key", "-out", folder / "crt"], check=True, capture_output=True)
    return folder


def serve(keys: Path, *, ask_for_one: bool = False) -> http.server.ThreadingHTTPServer:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Layers)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(keys / "crt", keys / "key")
    if ask_for_one:
        context.load_verify_locations(keys / "crt")
        context.verify_mode = ssl.CERT_REQUIRED
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture(params=[False, True], ids=["server", "client, too"])
def registry(keys: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """A registry by TLS, HOST:PORT; the second one wants a certificate of its clients."""
    server = serve(keys, ask_for_one=request.param)
    yield f"localhost:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def get(registry: str, home: Path) -> bytes:
    source = fetch.Source(f"{registry}/app", None, insecure=False, timeout_s=10, pauses=(), home=str(home))
    return fetch.fetch(source, BLOB, "app:1")


def test_certs_d(registry: str, keys: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="CERTIFICATE_VERIFY_FAILED"):
        get(registry, tmp_path)
    folder = tmp_path / ".config/containers/certs.d" / registry
    folder.mkdir(parents=True)
    shutil.copy(keys / "crt", folder / "ca.crt")
    shutil.copy(keys / "crt", folder / "me.cert")
    shutil.copy(keys / "key", folder / "me.key")
    assert get(registry, tmp_path) == CONTENT


def test_the_site_s_are_believed_where_a_user_has_none(
    keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(keys)
    registry = f"localhost:{server.server_address[1]}"
    monkeypatch.setattr(fetch, "_CERTIFICATES", (str(tmp_path / "gone"), str(tmp_path / "certs.d")))
    (tmp_path / "certs.d" / registry).mkdir(parents=True)
    os.symlink(keys / "crt", tmp_path / "certs.d" / registry / "site.crt")
    assert get(registry, tmp_path / "home") == CONTENT
    (tmp_path / "home/.config/containers/certs.d" / registry).mkdir(parents=True)
    with pytest.raises(ImageError, match="CERTIFICATE_VERIFY_FAILED"):
        get(registry, tmp_path / "home")
    server.shutdown()
    server.server_close()


def test_a_broken_certificate_is_named(tmp_path: Path) -> None:
    folder = tmp_path / ".config/containers/certs.d/a.example"
    folder.mkdir(parents=True)
    (folder / "ca.crt").write_text("no certificate\n")
    with pytest.raises(ImageError, match=f"cannot use the certificate {folder}/ca.crt"):
        get("a.example", tmp_path)
