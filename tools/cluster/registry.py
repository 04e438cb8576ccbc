"""The container registry of the cluster, and what it is asked directly."""

from __future__ import annotations

import http.client
import subprocess
from pathlib import Path

from tools.cluster.errors import ClusterError
from tools.cluster.packages import find
from tools.cluster.processes import FIXED_PATH

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
PUSH_TIMEOUT_S = 300


def answers(registry: str) -> bool:
    """Tell whether a registry speaks at HOST:PORT."""
    return _request(registry, "GET", "/v2/") is not None


def manifest_digest(registry: str, repository: str, tag: str) -> str | None:
    """Return the digest that the registry has for a tag, or None."""
    return _request(registry, "HEAD", f"/v2/{repository}/manifests/{tag}")


def _request(registry: str, method: str, path: str) -> str | None:
    connection = http.client.HTTPConnection(registry, timeout=5.0)
    try:
        connection.request(method, path, headers={"Accept": OCI_MANIFEST})
        response = connection.getresponse()
        response.read()
        return response.getheader("Docker-Content-Digest", "") if response.status == 200 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def push(layout_directory: Path, tag: str, destination: str) -> None:
    """Copy an image from an OCI layout to `destination` (HOST:PORT/NAME:TAG) without changing a byte."""
    argv = [find("skopeo"), "--insecure-policy", "copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false"]
    argv += [f"oci:{layout_directory}:{tag}", f"docker://{destination}"]
    try:
        result = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            check=False,
            timeout=PUSH_TIMEOUT_S,
            env={"PATH": FIXED_PATH, "HOME": "/root"},
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(f"skopeo did not finish copying to {destination} in {PUSH_TIMEOUT_S} s") from None
    if result.returncode != 0:
        raise ClusterError(f"skopeo could not copy the image to {destination}: {result.stderr.strip()}")
