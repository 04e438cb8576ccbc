"""Accounts of a container: the user's own go in front of the image's, but root is as the image has it."""

from __future__ import annotations

from piolet.container.accounts import merge

IMAGE = "root:x:0:0:root:/root:/bin/ash\nalice:x:7:7::/:\nother:x:1001:5::/:\nkept:x:9:9::/:\n"
ALICE = "alice:x:1001:1001::/home/alice:/bin/bash"


def test_the_users_own_lines_win_by_name_and_number() -> None:
    assert merge(IMAGE, [ALICE]).splitlines() == [
        ALICE,
        "root:x:0:0:root:/root:/bin/ash",
        "kept:x:9:9::/:",
    ]


def test_other_accounts_come_last_and_only_those_that_are_not_there() -> None:
    others = ["slurm:x:64030:64030::/:/sbin/nologin", "kept:x:64031:64031::/:/sbin/nologin", "alice:x:3:3::/:"]
    assert merge(IMAGE, [ALICE], others).splitlines() == [
        ALICE,
        "root:x:0:0:root:/root:/bin/ash",
        "kept:x:9:9::/:",
        others[0],
    ]


def test_root_is_the_images() -> None:
    host = "root:x:0:0:root:/root:/bin/bash"
    assert merge(IMAGE, [host]) == IMAGE
    assert merge("kept:x:9:9::/:\n", [host]).splitlines() == [host, "kept:x:9:9::/:"]
    groups = merge("wheel:x:0:\nlab:x:3:\n", ["root:x:0:root", "lab:x:1005:root"])
    assert groups.splitlines() == ["lab:x:1005:root", "wheel:x:0:"]
