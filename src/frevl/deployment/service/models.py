"""All served models behind one queue; the routes and the page use only this class."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from frevl.deployment.service.http.body import Upload, decoded
from frevl.deployment.service.http.limits import Limits, RefusedError
from frevl.deployment.service.queue import ModelQueue, Work
from frevl.deployment.service.served_model import Found, ImagePair, ServedModel
from frevl.deployment.service.store_refresh import StoreRefresh
from frevl.errors import FrevlError, ImageError, StoreError, UsageError, nearest
from frevl.machine import processors
from frevl.runs.scorer import Scorer
from frevl.store.ids.rows_of_ids import find_rows
from frevl.store.reader import Store
from frevl.store.towers import Modality

__all__ = ["Service"]


class Service:
    """All served models, their queue and their limits.

    Args:
        scorers: Runs by name, all of one store; the first is the default.
        store: The store; None takes the runs' own.
        limits: Limits on a request.
        observe: Called after every batch with the name of the work, its items and seconds.
    """

    def __init__(
        self,
        scorers: Mapping[str, Scorer],
        *,
        store: Store | None = None,
        limits: Limits,
        observe: Callable[[str, int, float], None] | None = None,
    ) -> None:
        self.limits = limits
        self.models = {name: ServedModel(name, scorer) for name, scorer in scorers.items()}
        self._stamps = {name: _stamp(scorer.run.path) for name, scorer in scorers.items()}
        self.store = next(iter(scorers.values())).store if store is None else store
        self._store_refresh = StoreRefresh(self.store, self._switch_to)
        self.queue = ModelQueue(
            waiting_items=limits.waiting_items,
            batch_items=limits.batch_items,
            client_share=limits.client_share,
            observe=observe,
        )
        self._decoders = ThreadPoolExecutor(processors(), thread_name_prefix="decode")

    @property
    def images(self) -> Mapping[str, int]:
        """Map every image to its row; read anew each time, because another process may delete the source."""
        return self.store.positions("image")

    def record(self) -> dict[str, Any]:
        """Return the answer of ``GET /v1/models``."""
        return {
            "models": [model.record() for model in self.models.values()],
            "images": len(self.images),
            "texts": self.store.count("text"),
            "limits": vars(self.limits),
        }

    def model(self, name: str | None, *, task: str | None = None) -> ServedModel:
        """Find a model.

        Args:
            name: Name of the model; None selects the first for the task.
            task: Required task; None for any.

        Raises:
            RefusedError: The model does not exist, or does another task.
        """
        if name is not None and name not in self.models:
            raise RefusedError(404, "unknown_model", f"There is no model {name[:80]!r}. {nearest(name, self.models)}")
        if not self.models:
            raise RefusedError(409, "no_model", "No run is served here; start the service with --run RUN.")
        chosen = [self.models[name]] if name is not None else list(self.models.values())
        fitting = [model for model in chosen if task in (None, model.scorer.run.task)]
        if not fitting:
            raise RefusedError(
                409,
                "wrong_task",
                f"This requires a model for {task}; the model {chosen[0].name!r} does {chosen[0].scorer.run.task}.",
            )
        return fitting[0]

    def searching_model(self, name: str | None) -> ServedModel:
        """Find a model that can search; None takes the first one.

        Raises:
            RefusedError: No served model can search.
        """
        if name is not None:
            model = self.model(name)
            if not model.searches:
                raise RefusedError(
                    409, "wrong_task", f"The model {name!r} cannot search; it needs a matching run with a first stage."
                )
            return model
        searching = [model for model in self.models.values() if model.searches]
        if not searching:
            raise RefusedError(
                409, "wrong_task", "No model here can search; serve a matching run with a first stage (--model dual)."
            )
        return searching[0]

    async def check_images(self, ids: Sequence[str]) -> None:
        """Refuse ids that are missing even from the newest version of the store.

        Raises:
            RefusedError: An id is unknown.
        """
        unknown = self._unknown(ids)
        if unknown:
            await self._store_refresh.look()
            unknown = self._unknown(ids)
        else:
            self._store_refresh.glance()  # they may have been removed
        if unknown:
            raise RefusedError(
                404,
                "unknown_image",
                f"The store has no image {unknown[0][:80]!r} ({len(set(unknown))} of the request's ids are "
                "unknown); name images in the store, or send the images as uploads.",
            )

    def _unknown(self, ids: Sequence[str]) -> list[str]:
        there = find_rows(self.images, ids).tolist()
        return [id_ for id_, row in zip(ids, there, strict=True) if row < 0]

    def check_texts(self, model: ServedModel, texts: Sequence[str]) -> None:
        """Refuse texts that are not in the store and cannot be embedded.

        Raises:
            RefusedError: A text is not in the store and its vectors were imported, or the model reads only images.
        """
        if texts and not model.towers["text"]:
            raise _reads_no("text", model)
        there = [] if model.embeds["text"] else find_rows(self.store.positions("text"), texts).tolist()
        unknown = next((text for text, row in zip(texts, there, strict=False) if row < 0), None)
        if unknown is not None:
            raise RefusedError(
                409,
                "cannot_embed",
                f"The text vectors were imported, so a text outside the store ({unknown[:80]!r}) cannot be "
                "embedded in the same way; use texts in the store.",
            )

    async def notes_on(self, model: ServedModel, texts: Sequence[str]) -> list[str]:
        """Return notes on texts that the encoder cannot read; plain letters are not checked."""
        if all(map(str.isascii, texts)):
            return []
        return await asyncio.to_thread(model.notes_on, texts)

    async def newest_store(self) -> Store:
        """Return the newest version of the store, checking for one at most every two seconds."""
        await self._store_refresh.look()
        return self.store

    async def add(self, name: str, run: Path, *, device: str = "cpu") -> ServedModel:
        """Serve another run, or reload one; meanwhile the others keep answering.

        A run that was deleted and retrained replaces the one served under its name.

        Args:
            name: Name used in requests.
            run: The run's folder.
            device: Device for PyTorch.

        Raises:
            RefusedError: Another run has this name, or it cannot be used with this store.
        """
        stamp = _stamp(run)  # taken before reading: later writes are loaded next time
        found = self.models.get(name)
        if found is not None:
            if found.scorer.run.path.resolve() != run.resolve():
                raise RefusedError(
                    409, "name_taken", f"Another run is served as {name[:80]!r}; give this one another name."
                )
            if self._stamps.get(name) == stamp:
                return found
        store = await self.newest_store()
        try:
            made = await asyncio.to_thread(lambda: ServedModel(name, Scorer.open(run, store=store, device=device)))
        except FrevlError as error:
            sentence = str(error).replace(str(run), "RUN").replace(str(store.path), "STORE")
            raise RefusedError(409, "wrong_run", sentence) from None
        await self.queue.submit(self._join, made, items=1)
        self._stamps[name] = stamp
        return made

    def _join(self, models: Sequence[ServedModel]) -> list[None]:
        """Add runs in the model thread, where the store cannot be switched meanwhile."""
        for model in models:
            if model.scorer.store is not self.store:
                model.switch_to(self.store)
            self.models = {**self.models, model.name: model}
        return [None] * len(models)

    async def _switch_to(self, store: Store) -> None:
        await self.queue.submit(self._take, store, items=1)

    def _take(self, stores: Sequence[Store]) -> list[None]:
        for model in self.models.values():
            model.switch_to(stores[-1])
        self.store = stores[-1]  # assigned here so that the next run to join is switched too
        return [None] * len(stores)

    def check_size(self, texts: Sequence[str], items: int) -> None:
        """Refuse requests with too many items or a text that is too long.

        Raises:
            RefusedError: A limit is exceeded.
        """
        if items > self.limits.items:
            raise RefusedError(
                413,
                "too_many_items",
                f"A request may have at most {self.limits.items} items, found {items}; send several requests.",
            )
        longest = max(map(len, texts), default=0)
        if longest > self.limits.text_characters:
            raise RefusedError(
                422,
                "text_too_long",
                f"A text may have at most {self.limits.text_characters} characters, found one with {longest}; "
                "shorten it.",
            )

    async def score(self, model: ServedModel, pairs: Sequence[ImagePair], *, top: int = 5) -> Any:
        """Score pairs with known images; return a `Match` or a `Prediction` for each."""
        return await self._of_pairs(model.score, (pairs, top), pairs)

    async def sets(self, model: ServedModel, pairs: Sequence[ImagePair], level: float) -> list[Any]:
        """Return the prediction set of each pair; for a matching run, whether it matches."""
        found: list[Any] = await self._of_pairs(model.sets, (pairs, level), pairs)
        return found

    async def doubt(self, model: ServedModel, pairs: Sequence[ImagePair]) -> list[float]:
        """Return the doubt of each pair."""
        found: list[float] = await self._of_pairs(model.doubt, pairs, pairs)
        return found

    async def _of_pairs(self, work: Work[Any, Any], payload: Any, pairs: Sequence[ImagePair]) -> Any:
        try:
            return await self.queue.submit(work, payload, items=len(pairs))
        except StoreError:
            # An image may have been removed in the meantime.
            await self.check_images([image for image, _ in pairs if isinstance(image, str) and image])
            raise

    async def embed_uploads(self, model: ServedModel, uploads: Mapping[str, Upload]) -> dict[str, np.ndarray]:
        """Decode and embed images sent with a request.

        Raises:
            RefusedError: There are too many images, or one cannot be read.
        """
        if not uploads:
            return {}
        if len(uploads) > self.limits.uploads:
            raise RefusedError(
                413,
                "too_many_uploads",
                f"A request may contain at most {self.limits.uploads} images, found {len(uploads)}.",
            )
        _check_embeds_images(model)
        loop = asyncio.get_running_loop()
        prepared = [
            await loop.run_in_executor(self._decoders, self._prepare, model, name, upload)
            for name, upload in uploads.items()
        ]
        embedded = await self.queue.submit(model.embed_images, prepared, items=len(prepared))
        return dict(zip(uploads, embedded, strict=True))

    async def search(
        self,
        model: ServedModel,
        *,
        text: str | None = None,
        image: str | bytes | None = None,
        find: str = "images",
        k: int = 10,
        where: str | None = None,
    ) -> Found:
        """Search. An image is a checked id of the store, or bytes returned by `checked_image`.

        Raises:
            RefusedError: An invalid condition, or a search for texts by text.
        """
        await self._store_refresh.look()  # recently added items must be found
        job = {"text": text, "image": image, "find": find, "k": k, "where": where}
        try:
            return await self.queue.submit(model.search, job, items=max(1, model.scorer.rerank_depth))
        except UsageError as error:
            raise RefusedError(422, "invalid", model.scrubbed(str(error))) from None

    async def checked_image(self, model: ServedModel, name: str, upload: Upload) -> bytes:
        """Return an image sent with a request, if it can be read.

        Raises:
            RefusedError: The image cannot be read.
        """
        _check_embeds_images(model)
        content = decoded(name, upload)
        await asyncio.get_running_loop().run_in_executor(self._decoders, self._prepare, model, name, content)
        return content

    async def embed_texts(self, model: ServedModel, texts: Sequence[str]) -> list[np.ndarray]:
        """Embed texts, ``(tokens, dim)`` each."""
        return await self.queue.submit(model.embed_texts, texts, items=len(texts)) if texts else []

    async def read_images(self, model: ServedModel, ids: Sequence[str]) -> list[np.ndarray]:
        """Read images of the store, ``(tokens, dim)`` each.

        Raises:
            RefusedError: The model reads only texts.
        """
        if ids and not model.towers["image"]:
            raise _reads_no("image", model)
        return await self.queue.submit(model.read_images, ids, items=len(ids)) if ids else []

    def close(self) -> None:
        """Finish accepted requests and stop all threads."""
        self.queue.close()
        self._decoders.shutdown(cancel_futures=True)

    def _prepare(self, model: ServedModel, name: str, upload: Upload) -> list[np.ndarray]:
        try:
            return model.scorer.prepare_image(decoded(name, upload), max_pixels=self.limits.pixels)
        except ImageError as error:
            reason = str(error).rpartition("the given bytes: ")[2]
            raise RefusedError(422, "bad_image", f"The upload {name[:80]!r} cannot be read: {reason}") from None


def _stamp(run: Path) -> tuple[int, int] | None:
    """Return a stamp of ``run.json``, written last, that distinguishes trainings of a run; None without it."""
    try:
        status = (run / "run.json").stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino


def _reads_no(side: Modality, model: ServedModel) -> RefusedError:
    alone = "texts" if side == "image" else "images"
    return RefusedError(
        409, "cannot_embed", f"The model {model.name!r} reads only {alone}, so it has no {side} encoder."
    )


def _check_embeds_images(model: ServedModel) -> None:
    if not model.towers["image"]:
        raise _reads_no("image", model)
    if not model.embeds["image"]:
        raise RefusedError(
            409,
            "cannot_embed",
            "The image vectors were imported, so uploaded images cannot be embedded in the same way; name "
            "images in the store.",
        )
