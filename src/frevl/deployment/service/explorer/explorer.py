"""What the explorer of a service knows: the service with its store, and the labels."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from frevl.deployment.service.http.limits import RefusedError
from frevl.deployment.service.models import Service
from frevl.errors import StoreError, UsageError
from frevl.store.labels.labels_file import LabelsFile

__all__ = ["Explorer"]

A = TypeVar("A")


class Explorer:
    """A store that is looked at and labelled.

    Args:
        service: With the store.
        writable: Take labels.

    Attributes:
        labels: The labels of the store.

    Raises:
        StoreError: The labels cannot be read.
    """

    def __init__(self, service: Service, *, writable: bool = True) -> None:
        self.service = service
        self.writable = writable
        self.labels = LabelsFile(service.store.path, writes=writable)

    def check_writable(self) -> None:
        """Refuse to write where labels are not taken.

        Raises:
            RefusedError: They are not.
        """
        if not self.writable:
            raise RefusedError(
                403, "read_only", "This service takes no labels; start it with --labels, or use frevl explore."
            )

    async def ask(self, work: Callable[[], A]) -> A:
        """Do something with the disk in a thread, and turn its failures into refusals.

        Raises:
            RefusedError: 422 a name that cannot be used, 503 a disk that is full or cannot be written.
        """
        try:
            return await asyncio.to_thread(work)
        except UsageError as error:
            raise RefusedError(422, "invalid", self.scrubbed(str(error))) from None
        except StoreError as error:
            raise RefusedError(503, "cannot_write", self.scrubbed(str(error)), retry_after=10) from None

    def scrubbed(self, sentence: str) -> str:
        """Remove the path of the store from a sentence."""
        return sentence.replace(str(self.service.store.path), "STORE")
