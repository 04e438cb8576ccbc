"""The application: whoever asks much takes no thread from what nodes send."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

from piolet.central.doors import Caller
from piolet.central.service import Service

CALLER = Caller(1000, None, None, frozenset())


class Asked:
    """A request of a user's, as far as an answer needs it."""

    method = "GET"
    path_params = {"rest": "slow"}  # noqa: RUF012
    query_params: dict[str, str] = {}  # noqa: RUF012

    async def stream(self) -> AsyncIterator[bytes]:
        yield b""


def test_questions_that_take_long_leave_threads_for_nodes() -> None:
    go, entered = threading.Event(), threading.Semaphore(0)

    def answer(*_: Any) -> dict[str, Any]:
        entered.release()
        assert go.wait(30)
        return {}

    unused: Any = None
    answers: Any = SimpleNamespace(answer=answer)
    service = Service(unused, unused, unused, answers, unused)
    request: Any = Asked()

    async def run() -> None:
        asked = [asyncio.create_task(service._say(request, CALLER)) for _ in range(50)]
        try:
            assert await asyncio.to_thread(entered.acquire, timeout=20)
            assert await asyncio.wait_for(service._apart(lambda: "a node is heard"), 20)
        finally:
            go.set()
        assert await asyncio.gather(*asked) == [{}] * 50

    asyncio.run(run())
    service.pool.shutdown()
