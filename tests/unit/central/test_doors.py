"""What is said to a node whose batch was signed elsewhere than where it is."""

from __future__ import annotations

import pytest
from piolet.central.doors import Caller, Doors, RefusedError
from piolet.central.places import Places, no_slurm
from piolet.transport import statements
from piolet.transport.statements import Statement


@pytest.mark.parametrize(
    ("address", "hint"),
    [("10.1.0.7", "[central] addresses"), ("127.0.1.1", "munged has no address"), ("0.0.0.0", "munged has no address")],
)
def test_a_batch_that_was_signed_elsewhere(address: str, hint: str) -> None:
    """An address that every machine has tells no node from another: nobody is sent to write it down."""
    doors = Doors(1, 2, "alps", Places({"n7": frozenset(("10.0.0.7",))}, no_slurm))
    statement = Statement("POST", "/v1/events", "alps", "n7", statements.digest(b""), "", 1.0)
    with pytest.raises(RefusedError, match=f"signed at {address}, and not at 10.0.0.7") as caught:
        doors.sender(Caller(2, statement, None, frozenset((address,))))
    assert caught.value.status == 403 and hint in str(caught.value.hint)
