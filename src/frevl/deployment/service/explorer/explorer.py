"""The state of a service's explorer: the service with its store, the labels, and the images as rows."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from frevl.deployment.service.explorer.background.trainings import Trainings
from frevl.deployment.service.explorer.curating.curations import Curations
from frevl.deployment.service.explorer.mapping.neighbours import NeighbourMaps
from frevl.deployment.service.explorer.query_encoder import QueryEncoder
from frevl.deployment.service.explorer.rows import Rows
from frevl.deployment.service.explorer.teaching.lesson import Fit, Lesson
from frevl.deployment.service.explorer.teaching.teacher import Teacher
from frevl.deployment.service.explorer.thumbnail_cache import Thumbnails
from frevl.deployment.service.http.limits import RefusedError
from frevl.deployment.service.models import Service
from frevl.errors import FrevlError, ImageError, StoreError, UsageError
from frevl.store.labels.shared_labels import labels_of
from frevl.store.reader import Store

__all__ = ["Explorer"]

A = TypeVar("A")

_VIEWS = 8  # cached row lists and the like, so that scrolling does not filter again


class Explorer:
    """A store being browsed and labelled.

    Args:
        service: Service with the store.
        images: Folder of the images, or None.
        encoder: Encoder whose embeddings are used for search and teaching; None takes the first with a common space
            of texts and images, or else the first one.
        writable: Whether labels are accepted.
        fit: Fits the taught classifier; None disables teaching.
        device: Device for runs trained from the page.
        curations: Results of ``frevl curate``; None uses those in the store.

    Attributes:
        labels: The labels of the store.
        device: Device on which runs compute.
        trainings: Runs trained from here.
        neighbours: Maps that keep neighbours together.
        thumbnails: Thumbnails of its images.
        teacher: Fits the classifier, or None.

    Raises:
        StoreError: The labels cannot be read, or the store has no embeddings of images.
        UsageError: The store does not have this encoder.
    """

    def __init__(
        self,
        service: Service,
        *,
        images: Path | None = None,
        encoder: str | None = None,
        writable: bool = True,
        fit: Fit | None = None,
        device: str = "cpu",
        curations: Curations | None = None,
    ) -> None:
        self.service = service
        self.curations = curations or Curations(service.store.path, writable=writable)
        self.writable = writable
        self.device = device
        self.labels = labels_of(service.store.path, writes=writable)
        self.thumbnails = Thumbnails(service.store.path, images, max_pixels=service.limits.pixels, keep=writable)
        self.neighbours = NeighbourMaps(keep=writable)
        self.trainings = Trainings(service.store.path, device=device)
        self.encoder = _chosen(service.store, encoder)
        self._rows: Rows | None = None
        self.teacher = None if fit is None else Teacher(self.labels, self._newest_rows, fit, self.encoder)
        self._views: OrderedDict[tuple[object, ...], Any] = OrderedDict()
        self._guard = threading.Lock()

    async def rows(self) -> Rows:
        """Return the images in the newest version of the store.

        Raises:
            RefusedError: The store cannot be read.
        """
        store = await self.service.newest_store()
        return await self.ask(lambda: self._rows_of(store))

    def _rows_of(self, store: Store) -> Rows:
        with self._guard:
            if self._rows is None or self._rows.store is not store:
                tower = store.towers.get(self.encoder.image.name, self.encoder.image)
                self._rows = Rows(store, tower, keep=self.writable)
                self._views.clear()
            return self._rows

    def _newest_rows(self) -> Rows:
        return self._rows_of(self.service.store)

    async def lesson(self, rows: Rows, what: str) -> Lesson:
        """Return the classifier's predictions for these rows; the first call starts teaching it.

        Args:
            rows: The newest rows.
            what: What requires a classifier, as the subject of a sentence.

        Raises:
            RefusedError: 409, ``being_fitted`` while it learns, ``not_taught`` if it cannot.
        """
        if self.teacher is None:
            raise RefusedError(409, "not_taught", f"{what} requires a classifier. Teaching is disabled here.")
        await self.ask(self.teacher.wake)
        lesson = self.teacher.lesson
        if lesson is not None and lesson.material.key == rows.key:
            return lesson
        if self.teacher.state()["busy"]:
            raise RefusedError(409, "being_fitted", "The classifier is being fitted; try again in a moment.")
        raise RefusedError(409, "not_taught", f"{what} requires a classifier. {self.teacher.problem}")

    def close(self) -> None:
        """Stop teaching, training and curating. Blocks, so do not call it on the event loop."""
        self.neighbours.close()
        self.trainings.close()
        self.curations.job.close()
        if self.teacher is not None:
            self.teacher.close()

    def once(self, key: tuple[object, ...], make: Callable[[], A]) -> A:
        """Return the cached value for this key, or compute it."""
        with self._guard:
            if key in self._views:
                self._views.move_to_end(key)
                found: A = self._views[key]
                return found
        made = make()
        with self._guard:
            self._views[key] = made
            while len(self._views) > _VIEWS:
                self._views.popitem(last=False)
        return made

    def check_writable(self) -> None:
        """Refuse to write if labels are not accepted.

        Raises:
            RefusedError: Labels are not accepted.
        """
        if not self.writable:
            raise RefusedError(
                403, "read_only", "This service does not accept labels; start it with --labels, or use frevl explore."
            )

    async def ask(self, work: Callable[[], A]) -> A:
        """Run disk or CPU work in a thread, and turn its failures into error responses.

        Raises:
            RefusedError: 422 for unusable input, 503 for a full disk or an unreadable store, 409 for an unavailable
                encoder.
        """
        try:
            return await asyncio.to_thread(work)
        except RefusedError:
            raise
        except UsageError as error:
            raise RefusedError(422, "invalid", self.scrubbed(str(error))) from None
        except ImageError as error:
            reason = str(error).rpartition("the given bytes: ")[2]
            raise RefusedError(422, "bad_image", f"The image cannot be read: {reason}") from None
        except StoreError as error:
            raise RefusedError(503, "store", self.scrubbed(str(error)), retry_after=10) from None
        except FrevlError as error:
            raise RefusedError(409, "cannot_embed", self.scrubbed(str(error))) from None

    def scrubbed(self, sentence: str) -> str:
        """Remove the paths of store and curation from a sentence."""
        return self.curations.scrubbed(sentence).replace(str(self.service.store.path.absolute()), "STORE")


def _chosen(store: Store, name: str | None) -> QueryEncoder:
    if name is not None:
        if not store.select_towers("image", [name]):
            raise UsageError(f"{store.path}: the encoder '{name}' has no image embeddings in this store")
        return QueryEncoder(store, name)
    found = [QueryEncoder(store, one) for one in store.encoders if store.select_towers("image", [one])]
    if not found:
        raise StoreError(
            f"{store.path}: the store has no image embeddings; add some with: frevl extract --images DIR --encoder "
            f"packaged --store {store.path}"
        )
    return next((one for one in found if one.text is not None), found[0])
