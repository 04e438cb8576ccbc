"""Kills forwarder, service and data base 1,000 times while 100,000 records flow: `python -m tests.scale.kills`.

As root. `python -m tests.scale.kills KILLS RECORDS SEED` takes others. Prints at which points the processes were; it
ends with an error if a record is lost, is there twice, or if the rules concluded anything else than without the kills.
"""

from __future__ import annotations

import sys
from collections import Counter

from tests.support import killing
from tests.support.central import cluster
from tests.support.postgres import postgres


def main(words: list[str]) -> int:
    """Half of it with SQLite, half with PostgreSQL."""
    kills, records, seed = [int(word) for word in words] or (1000, 100_000, 1)
    struck: Counter[str] = Counter()
    with cluster(1) as machines:
        struck += killing.run(machines, kills // 2, records // 2, seed)
    with postgres() as server, cluster(1, server.url) as machines:
        struck += killing.run(machines, kills - kills // 2, records - records // 2, seed + 1, server)
    for point, count in sorted(struck.items()):
        print(f"{count:5}  {point}")
    print(f"{sum(struck.values())} kills at {len(struck)} points, {records} records: 0 lost, 0 twice")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
