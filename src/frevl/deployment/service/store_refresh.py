"""Switch the service to the newest version of its store, between batches."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from frevl.errors import FrevlError
from frevl.store.ids.rows_of_ids import find_rows
from frevl.store.reader import TABLES, Store

__all__ = ["StoreRefresh"]

_SECONDS = 2.0

_log = logging.getLogger("frevl.service")


class StoreRefresh:
    """Check for a newer version of a store, at most every two seconds and only on request.

    Args:
        store: The store as served.
        take: Switches to a newer version; runs in the model thread, so that no batch sees two versions.
    """

    def __init__(self, store: Store, take: Callable[[Store], Awaitable[None]]) -> None:
        self._store = store
        self._take = take
        self._versions = _versions(store)  # a store moves on to newer files by itself if its own were deleted
        self._looking: asyncio.Task[None] | None = None
        self._looked, self._opened = float("-inf"), time.monotonic()

    async def look(self) -> None:
        """Switch to a newer version, if there is one; concurrent requests share the same check."""
        if self._looking is None or self._looking.done():
            if time.monotonic() - self._looked < _SECONDS:
                return
            self._looking = asyncio.create_task(self._look())
        await asyncio.shield(self._looking)  # a client that disconnects must not cancel it for others

    def glance(self) -> None:
        """Check in the background if due: removed items are soon unknown, and no request waits for it."""
        due = time.monotonic() - max(self._looked, self._opened) >= _SECONDS
        if due and (self._looking is None or self._looking.done()):
            self._looking = asyncio.create_task(self._look())
            self._looking.add_done_callback(_log_failure)

    async def _look(self) -> None:
        try:
            newer = await asyncio.to_thread(_newer, self._store, self._versions)
            if newer is not None:
                await self._take(newer)
                self._store, self._versions = newer, _versions(newer)
                counts = {TABLES[modality]: newer.count(modality) for modality in TABLES}
                _log.info("the store has changed", extra={"fields": counts})
        except FrevlError as error:  # replaced by another store, or being written: keep answering from the old one
            _log.warning("the newest version of the store cannot be served: %s", error)
        finally:
            self._looked = time.monotonic()


def _log_failure(looking: asyncio.Task[None]) -> None:
    if not looking.cancelled() and looking.exception() is not None:
        _log.warning("checking for a newer version of the store failed: %s", looking.exception())


def _versions(store: Store) -> list[int | None]:
    return [store.version(modality) for modality in TABLES]


def _newer(store: Store, served: list[int | None]) -> Store | None:
    """Open the newest version and read its ids, unless it is the one being served."""
    newest = Store.open(store.path)
    if _versions(newest) == served:
        return None
    for modality in TABLES:
        find_rows(newest.positions(modality), [""])  # done now, so that no request waits for it
    return newest
