"""A user's own store, or one of their group's, EDF_IMAGESTORE: the importer run in their process, for one request."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from typing import Any

from piolet.images import admin, credentials, shared
from piolet.images import verify as verification
from piolet.images.conversion import Requester
from piolet.images.failures import from_os
from piolet.images.importer import Importer
from piolet.images.reference import parse
from piolet.images.settings import ImagesConfig
from piolet.images.store import Store

Tell = Callable[[str], None]


def resolve(config: ImagesConfig, root: str, reference: str, mode: str, tell: Tell) -> dict[str, Any]:
    """Return the importer's answer for `reference`, pulled into the store at `root` if need be."""
    wanted = parse(reference)
    found = credentials.Found() if wanted.is_local else credentials.find(wanted, os.environ)

    async def work(importer: Importer) -> dict[str, Any]:
        return await importer.resolve(Requester(os.geteuid(), found.entry), reference, mode, tell)

    with found.told():
        return _run(config, root, work)


def bring(config: ImagesConfig, root: str, kind: str, fd: int, name: str, tell: Tell) -> dict[str, Any]:
    """Import the archive that is open at `fd`."""

    async def work(importer: Importer) -> dict[str, Any]:
        return await importer.bring(Requester(os.geteuid()), kind, fd, name, tell)

    return _run(config, root, work)


def verify(config: ImagesConfig, root: str, target: str | None, tell: Tell) -> dict[str, Any]:
    """Return the entries of the images in the store at `root`, or of one, with their state."""

    def act(keeper: admin.Admin) -> dict[str, Any]:
        chosen = keeper.chosen(os.geteuid(), target)
        store = Store(root, group=shared.group_of(root))
        return {"entries": verification.verify(store, chosen, tell, threading.Event())}

    return manage(config, root, act)


def manage(config: ImagesConfig, root: str, act: Callable[[admin.Admin], dict[str, Any]]) -> dict[str, Any]:
    """Do `act`, a listing or removal, with the store at `root`."""

    async def work(importer: Importer) -> dict[str, Any]:
        return act(admin.Admin(importer.store, importer.presence))

    return _run(config, root, work)


def _run(config: ImagesConfig, root: str, work: Callable[[Importer], Any]) -> dict[str, Any]:
    group = shared.group_of(root)

    async def main() -> dict[str, Any]:
        os.makedirs(root, mode=0o700, exist_ok=True)
        importer = Importer(config, root, os.path.expanduser("~"), group)
        async with importer.open():
            result: dict[str, Any] = await work(importer)
            return result

    before = os.umask(shared.UMASK) if group else None
    try:
        return asyncio.run(main())
    except OSError as error:
        raise from_os(error, root) from None
    finally:
        if before is not None:
            os.umask(before)
