"""The central service's application: what can be asked for over HTTP, and what becomes of errors.

    POST /v1/events?gone=EPOCH:SEQ,...   a node's batch; the answer is {"have": {epoch: seq}}, of an empty one of all
    POST /v1/frames?gone=...&up=S&boot=ID  what a node recorded of steps; the answer is of the same form
    POST /v1/marks?job=N                 what an application said of itself, by its user (piolet.central.marks)
    GET  /v1/...                         what piolet.central.answers has
    GET  /metrics                        for Prometheus, where the site wants it

Every answer is an object of JSON, and signed for who asked.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from piolet.base.errors import EventError, PioletError, SlurmError
from piolet.central import frames, intake, marks
from piolet.central.answers import Answers
from piolet.central.doors import Caller, Doors, RefusedError, same_body
from piolet.central.frames import Frames
from piolet.central.jobs import Known
from piolet.central.ledger import Ledger
from piolet.central.metrics import Counts
from piolet.central.store.database import StoreError
from piolet.central.store.reader import Reader
from piolet.central.store.writer import Taken
from piolet.events.batch import PACKED_MAX
from piolet.transport.statements import ANSWER_HEADER, Statement

_LOG = logging.getLogger("piolet-central")
_BODY_S = 30.0
_USERS_AT_ONCE = 2  # what users send: who sends slowly holds up no node
_ASKS_AT_ONCE = 4  # what is asked: however many ask, some threads are left for what nodes send
_AT_ONCE = 8  # each takes up to three times the largest body while it is decoded
_THREADS = 8
_WRITTEN_S = 60.0
_ASKED_MOST = 4096


@dataclass
class Service:
    """What the application works with."""

    doors: Doors
    ledger: Ledger
    reader: Reader
    answers: Answers
    counts: Counts
    prometheus: bool = False
    frames: Frames | None = None
    known: Callable[[str], Known | None] = lambda _: None
    clock: Callable[[], float] = time.time
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(_THREADS, "ask"))
    places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))
    users: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_USERS_AT_ONCE))
    asks: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_ASKS_AT_ONCE))

    def application(self) -> Starlette:
        """Return the application."""
        routes = [
            Route("/v1/events", self._events, methods=["POST"]),
            Route("/v1/frames", self._frames, methods=["POST"]),
            Route("/v1/marks", self._marks, methods=["POST"]),
            Route("/v1/{rest:path}", self._ask, methods=["GET", "POST"]),
            *([Route("/metrics", self._metrics, methods=["GET"])] if self.prometheus else []),
        ]
        return Starlette(routes=routes)

    async def _events(self, request: Request) -> Response:
        return await self._answer(request, self._take)

    async def _frames(self, request: Request) -> Response:
        return await self._answer(request, self._take_frames)

    async def _marks(self, request: Request) -> Response:
        return await self._answer(request, self._take_marks)

    async def _ask(self, request: Request) -> Response:
        return await self._answer(request, self._say)

    async def _metrics(self, _: Request) -> Response:
        text = await self._apart(self.counts.text)
        return Response(text, media_type="text/plain; version=0.0.4")

    async def _answer(self, request: Request, what: Callable[[Request, Caller], Awaitable[dict[str, Any]]]) -> Response:
        """Return what `what` makes of a request, signed, or why it is refused."""
        credential: tuple[str, int] | None = None
        try:
            caller = await self._apart(
                self.doors.caller, request.method, _target(request), dict(request.headers), request.state.channel
            )
            credential = caller.credential
            status, said = 200, await what(request, caller)
        except RefusedError as error:
            credential = credential or error.credential
            status, said = error.status, _failure(error)
            self.counts.refused(error.status)
            _LOG.warning("%s from %s is refused: %s", request.url.path, _where(request), error.message)
        except ClientDisconnect:
            return Response(status_code=400)
        except (TimeoutError, EventError, SlurmError) as error:
            status = 400 if isinstance(error, EventError) and not isinstance(error, StoreError) else 503
            said = _failure(error if isinstance(error, PioletError) else EventError("the request takes too long"))
            self.counts.refused(status)
            _LOG.warning("%s from %s fails: %s", request.url.path, _where(request), said["error"])
        except Exception:  # noqa: BLE001 - whoever asks gets an answer, and the service goes on
            _LOG.exception("%s from %s fails", request.url.path, _where(request))
            status, said = 500, {"error": "something unexpected happened in the central service; its log says more"}
        said["time"] = self.clock()
        body = json.dumps(said, separators=(",", ":")).encode("ascii") + b"\n"
        headers = {"Content-Type": "application/json"}
        if credential is not None:
            try:
                headers[ANSWER_HEADER] = await self._apart(self.doors.sign, credential, status, body)
            except PioletError as error:
                _LOG.error("an answer cannot be signed: %s", error.message)
                return Response(b'{"error":"the answer cannot be signed"}\n', 503, {"Content-Type": "application/json"})
        return Response(body, status, headers)

    async def _take(self, request: Request, caller: Caller) -> dict[str, Any]:
        statement = await self._apart(self.doors.sender, caller)
        async with self.places:
            body = await _body(request, PACKED_MAX)
            same_body(statement, body)
            taken = await self._write(statement, body, request.query_params.get("gone", ""))
        if taken is None:
            return {"have": await self._apart(self.reader.have, statement.node)}
        if taken.missing:
            raise RefusedError(409, "records before these are missing here", have=taken.have)
        return {"have": taken.have}

    async def _take_frames(self, request: Request, caller: Caller) -> dict[str, Any]:
        """Return what of a node's frames is here, once what came is on the disk."""
        keeper = self._keeper()
        statement = await self._apart(self.doors.sender, caller)
        async with self.places:
            body = await _body(request, PACKED_MAX)
            same_body(statement, body)
            said = dict(request.query_params)
            batch = await self._apart(frames.batch_of, statement, body, said, self.clock(), self.known)
            async with asyncio.timeout(_WRITTEN_S):
                if not batch.records and not batch.gone:
                    return {"have": await asyncio.wrap_future(keeper.call(lambda known: known.have(statement.node)))}
                taken = await asyncio.wrap_future(keeper.add(batch))
        if taken.missing:
            raise RefusedError(409, "records before these are missing here", have=taken.have)
        return {"have": taken.have}

    async def _take_marks(self, request: Request, caller: Caller) -> dict[str, Any]:
        """Return of which steps a user's marks are, once they are on the disk."""
        keeper = self._keeper()
        async with self.users:
            body = await _body(request, marks.PACKED_MOST)
            if caller.statement is not None:
                same_body(caller.statement, body)
            sent = await self._apart(marks.sent, caller.uid, request.query_params.get("job", ""), body)
            async with asyncio.timeout(_WRITTEN_S):
                said: dict[str, Any] = await asyncio.wrap_future(keeper.keep(sent))
        return said

    def _keeper(self) -> Frames:
        if self.frames is None:
            raise RefusedError(404, "this service keeps no data of steps", "[keep] steps says whether it does")
        return self.frames

    async def _write(self, statement: Statement, body: bytes, gone: str) -> Taken | None:
        """Return what became of a batch once it is on the disk; None of an empty one."""
        arrival = await self._apart(intake.arrival, statement, body, gone, self.clock())
        if not arrival.records and not arrival.gone:
            return None
        async with asyncio.timeout(_WRITTEN_S):
            taken = await asyncio.wrap_future(self.ledger.add(arrival))
        self.counts.taken(arrival, taken)
        return taken

    async def _say(self, request: Request, caller: Caller) -> dict[str, Any]:
        body = await _body(request, _ASKED_MOST)
        if caller.statement is not None:
            same_body(caller.statement, body)
        async with self.asks:
            said: dict[str, Any] = await self._apart(
                self.answers.answer, caller.uid, request.method, request.path_params["rest"],
                dict(request.query_params), body,
            )  # fmt: skip
        return said

    async def _apart(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.pool, function, *arguments)


async def _body(request: Request, most: int) -> bytes:
    """Return a request's body, which is no longer than `most` and comes in time."""
    pieces = bytearray()
    async with asyncio.timeout(_BODY_S):
        async for piece in request.stream():
            pieces += piece
            if len(pieces) > most:
                raise RefusedError(413, f"the request is longer than the limit of {most} bytes")
    return bytes(pieces)


def _target(request: Request) -> str:
    path, query = request.scope["raw_path"].decode("ascii"), request.scope["query_string"].decode("ascii")
    return f"{path}?{query}" if query else path


def _failure(error: PioletError) -> dict[str, Any]:
    said = {"error": error.message, **getattr(error, "said", {})}
    return {**said, "hint": error.hint} if error.hint else said


def _where(request: Request) -> str:
    return request.client.host if request.client else "this machine"
