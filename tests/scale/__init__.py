"""What grows with the number of nodes: at full size by `make scale`, and in small as part of `make test`."""

from __future__ import annotations

import os

FULL = os.environ.get("PIOLET_TEST_SCALE") == "full"
