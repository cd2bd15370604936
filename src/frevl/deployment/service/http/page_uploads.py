"""Pictures that browsers send to the page, kept on disk for a while and within a limit."""

from __future__ import annotations

import asyncio
import re
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from frevl.deployment.service.http.fair_share import ASKING
from frevl.deployment.service.http.limits import Limits, RefusedError

__all__ = ["PageUploads"]

_KEPT_SECONDS = 3600.0
_MOST_FILES = 4096
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,8}")


@dataclass(eq=False)
class _Kept:
    place: Path
    client: str
    size: int
    since: float


class PageUploads:
    """The folder of the pictures. When it is full, the oldest one of the client that has the most there is deleted.

    The page's library has a route of its own for this. It is not used, because it keeps whatever it is sent.

    Args:
        folder: Folder of this process alone.
        limits: How large a picture, and all together, may be.
    """

    def __init__(self, folder: Path, limits: Limits) -> None:
        self._folder = folder
        self._limits = limits
        self._kept: list[_Kept] = []  # the oldest first

    async def receive(self, request: Request) -> list[str]:
        """Keep the pictures of a form whose fields are named ``files``.

        Returns:
            Paths, in the order of the fields.

        Raises:
            RefusedError: No form, or too many files.
        """
        most = self._limits.uploads
        try:
            form = await request.form(max_files=most, max_fields=most, max_part_size=self._limits.body_bytes)
        except (MultiPartException, HTTPException):  # Starlette raises the second inside an application
            raise RefusedError(400, "not_multipart", f"The page sends at most {most} pictures, as a form.") from None
        try:
            sent = [part for part in form.getlist("files") if isinstance(part, UploadFile)]
            return [await asyncio.to_thread(self._keep, part, ASKING.get()) for part in sent]
        finally:
            await form.close()

    def _keep(self, sent: UploadFile, client: str) -> str:
        size = sent.size or 0
        self._make_room(size)
        suffix = PurePosixPath(sent.filename or "").suffix
        kept = _Kept(self._folder / secrets.token_hex(16), client, size, time.monotonic())
        self._kept.append(kept)
        kept.place.mkdir()
        path = kept.place / f"picture{suffix if _SUFFIX.fullmatch(suffix) else ''}"
        with path.open("xb") as file:
            shutil.copyfileobj(sent.file, file)
        return str(path)

    def _make_room(self, size: int) -> None:
        too_old = time.monotonic() - _KEPT_SECONDS
        while self._kept and self._kept[0].since < too_old:
            self._delete(self._kept[0])
        while self._kept and (
            sum(one.size for one in self._kept) + size > self._limits.page_upload_bytes
            or len(self._kept) >= _MOST_FILES
        ):
            sizes: dict[str, int] = {}
            for one in self._kept:
                sizes[one.client] = sizes.get(one.client, 0) + max(one.size, 1)
            greediest = max(sizes, key=sizes.__getitem__)
            self._delete(next(one for one in self._kept if one.client == greediest))

    def _delete(self, kept: _Kept) -> None:
        self._kept.remove(kept)
        shutil.rmtree(kept.place, ignore_errors=True)
