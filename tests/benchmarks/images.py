"""What images cost: the second pull, and many who want one image at the same time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tests.benchmarks.cluster import Cluster


@dataclass(frozen=True)
class Traffic:
    """Registry requests and conversions that were counted in the logs of the registry and of the image service."""

    requests: int
    conversions: int


def _requests(cluster: Cluster) -> int:
    log = (cluster.directory / "log" / "registry.log").read_text("utf-8", "replace")
    return sum(1 for line in log.splitlines() if '"GET /v2/' in line or '"HEAD /v2/' in line)


def _conversions(cluster: Cluster) -> int:
    log = (cluster.directory / "log" / "piolet-imaged.log").read_text("utf-8", "replace")
    return sum(1 for line in log.splitlines() if "converted" in line)


def counted(cluster: Cluster, commands: list[tuple[str, ...]]) -> Traffic:
    """Run the commands (user, words…) at the same time; return the traffic that they caused."""
    requests, conversions = _requests(cluster), _conversions(cluster)
    with ThreadPoolExecutor(len(commands)) as pool:
        list(pool.map(lambda words: cluster.run(*words[1:], user=words[0]), commands))
    return Traffic(_requests(cluster) - requests, _conversions(cluster) - conversions)
