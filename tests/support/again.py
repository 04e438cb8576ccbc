"""Runs once more, alone, what failed while other tests ran beside it: `python -m tests.support.again` (decision 153).

Ends with 1 where one of them fails again, or where so many failed that it is no matter of what ran beside them.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

MOST = 5
FAILED = Path(".pytest_cache/v/cache/lastfailed")
_GROUP = re.compile(r"@[\w./-]+$")


def names(said: Iterable[str]) -> list[str]:
    """Return the tests without the group that pytest-xdist puts behind their names."""
    return sorted(_GROUP.sub("", name) for name in said)


def main() -> int:
    """Return the exit status."""
    try:
        failed = names(json.loads(FAILED.read_text("utf-8")))
    except (OSError, ValueError):
        failed = []
    if not 0 < len(failed) <= MOST:
        return 1
    print("\n".join(["", f"Failed beside others, and run once more alone (decision 153): {len(failed)}", *failed]))
    return int(subprocess.run([sys.executable, "-m", "pytest", "-rA", *failed], check=False).returncode != 0)


if __name__ == "__main__":
    sys.exit(main())
