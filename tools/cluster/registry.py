"""The container registry of the cluster, and what it is asked directly."""

from __future__ import annotations

import http.client
import os
import pwd
import subprocess
from pathlib import Path

from tools.cluster.errors import ClusterError
from tools.cluster.oci import MANIFEST
from tools.cluster.packages import find
from tools.cluster.processes import FIXED_PATH

# Not a byte is changed. For registries without a certificate, which those of clusters and tests are.
COPY = ("--insecure-policy", "copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false")
PUSH_TIMEOUT_S = 300.0


def answers(registry: str) -> bool:
    """Tell whether a registry speaks at HOST:PORT."""
    return _request(registry, "GET", "/v2/") is not None


def manifest_digest(registry: str, repository: str, tag: str) -> str | None:
    """Return the digest that the registry has for a tag, or None."""
    return _request(registry, "HEAD", f"/v2/{repository}/manifests/{tag}")


def _request(registry: str, method: str, path: str) -> str | None:
    connection = http.client.HTTPConnection(registry, timeout=5.0)
    try:
        connection.request(method, path, headers={"Accept": MANIFEST})
        response = connection.getresponse()
        response.read()
        return response.getheader("Docker-Content-Digest", "") if response.status == 200 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def push(layout_directory: Path, tag: str, destination: str) -> None:
    """Copy an image from an OCI layout to `destination` (HOST:PORT/NAME:TAG). Raises ClusterError."""
    copy(f"oci:{layout_directory}:{tag}", destination)


def copy(source: str, destination: str, *options: str, timeout_s: float = PUSH_TIMEOUT_S) -> None:
    """Copy an image to `destination` (HOST:PORT/NAME:TAG) without changing a byte; `source` is in skopeo's words.

    Raises ClusterError: skopeo says that it cannot, or is not done in time.
    """
    argv = [find("skopeo"), *COPY, *options, source, f"docker://{destination}"]
    home = pwd.getpwuid(os.geteuid()).pw_dir
    try:
        result = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
            env={"PATH": FIXED_PATH, "HOME": home},
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(f"skopeo did not finish copying to {destination} in {timeout_s:.0f} s") from None
    if result.returncode != 0:
        raise ClusterError(f"skopeo could not copy the image to {destination}: {result.stderr.strip()}")
