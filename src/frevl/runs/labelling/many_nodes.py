"""Scoring in blocks: in this process, or on the nodes of a Ray cluster, each with the run and the store opened."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from frevl.errors import FrevlError
from frevl.models.hub import weights_digest
from frevl.runs.scorer import Scorer
from frevl.store.many_nodes.connection import connected
from frevl.store.many_nodes.workers import Greeting, Workers
from frevl.store.remote.address import is_remote
from frevl.store.towers import MODALITIES

__all__ = ["scoring_through"]

B = TypeVar("B")
R = TypeVar("R")


@contextmanager
def scoring_through(
    address: str | None, scorer: Scorer, call: Callable[[Scorer, B], R], *, notes: list[str]
) -> Iterator[Callable[[Iterable[B]], Iterator[R]]]:
    """Score blocks here, or on a cluster.

    Args:
        address: Of the cluster, see `frevl.store.many_nodes.connection.connected`; None scores here.
        scorer: The run with its store. Nodes open both under the same paths.
        call: Scores one block. With a cluster it can be pickled: a function of a module, or a `functools.partial`.
        notes: Gets sentences that a user should read.

    Yields:
        What takes blocks, and yields their results in the same order.

    Raises:
        MissingExtraError: Ray is not installed.
        FrevlError: There is no cluster, or a node sees another store or run, or another frevl.
    """
    if address is None:
        yield lambda blocks: (call(scorer, block) for block in blocks)
        return
    with connected(address) as ray:
        place = _Place.of(scorer)
        accelerators = 0 if scorer.device == "cpu" else 1
        hired: Workers[B, R] = Workers(ray, partial(_open, place, call), accelerators=accelerators)

        def greeted(greeting: Greeting) -> None:
            if greeting.about != place.content:
                raise FrevlError(
                    f"--ray: the node {greeting.node} sees another store or run than this process under {place.store} "
                    f"and {place.run}; give paths that mean the same on all nodes, and let nobody write to the store"
                )

        with hired:
            hired.start(greeted)
            yield hired.in_order
        notes += hired.notes


@dataclass(frozen=True)
class _Place:
    """Where run and store are, and what they hold."""

    run: str
    store: str
    device: str
    batch_size: int
    content: dict[str, Any]

    @classmethod
    def of(cls, scorer: Scorer) -> _Place:
        run, store = (
            str(path) if is_remote(path) or not os.path.exists(path) else os.path.abspath(path)  # noqa: PTH100, PTH110
            for path in (scorer.run.path, scorer.store.path)
        )
        return cls(run, store, scorer.device, scorer.batch_size, _content(scorer))


def _content(scorer: Scorer) -> dict[str, Any]:
    versions = {modality: scorer.store.version(modality) for modality in MODALITIES}
    return {"store": scorer.store.fingerprint, "versions": versions, "weights": weights_digest(scorer.run.path)}


class _Scoring:
    """Scores blocks on a node."""

    def __init__(self, place: _Place, call: Callable[[Scorer, Any], Any]) -> None:
        self._scorer = Scorer.open(place.run, store=place.store, batch_size=place.batch_size, device=place.device)
        self._call = call
        self.about = _content(self._scorer)

    def __call__(self, block: Any) -> Any:
        return self._call(self._scorer, block)


def _open(place: _Place, call: Callable[[Scorer, Any], Any]) -> _Scoring:
    return _Scoring(place, call)
