"""A neighbour-preserving map: PaCMAP (Wang et al. 2021), run by its library in a separate process.

It takes a minute where principal components take a second, and holds Python's lock for much of it; so the service runs
this file with ``python -m`` and keeps answering.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from frevl.deployment.service.explorer.mapping.projection import Projection, read_projection, write_projection
from frevl.deployment.service.explorer.rows import Rows

__all__ = ["MOST_NEIGHBOURS", "NeighbourMaps"]

MOST_NEIGHBOURS = 20_000
"""Above this number, images are sampled at random: about a minute on two cores."""
_FEWEST = 10
_FAILED_SECONDS = 30.0  # seconds for which a failure is reported before a request retries


class NeighbourMaps:
    """Computes the map of one version of a store at a time and caches it.

    Args:
        keep: Cache maps next to the vectors of the store.
    """

    def __init__(self, *, keep: bool) -> None:
        self._keep = keep
        self._guard = threading.Lock()
        self._key = ""
        self._found: Projection | None = None
        self._problem, self._failed = "", 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    @property
    def offered(self) -> bool:
        """Return whether the library is installed."""
        return importlib.util.find_spec("pacmap") is not None

    def ask(self, rows: Rows) -> tuple[Projection | None, str]:
        """Return the map, or None while it is being computed, and the reason if there is none."""
        with self._guard:
            is_old = bool(self._problem) and time.monotonic() - self._failed > _FAILED_SECONDS
            if self._key == rows.key and not is_old:
                return self._found, self._problem
            self._end()
            self._key, self._found, self._problem = rows.key, None, ""
            self._failed = time.monotonic()
            drawn = np.flatnonzero(rows.usable)
            if len(drawn) > MOST_NEIGHBOURS:
                drawn = np.sort(np.random.default_rng(0).choice(drawn, MOST_NEIGHBOURS, replace=False))
            path = rows.kept("neighbours", ".npz")
            self._found = read_projection(path, len(rows))
            if self._found is None:
                if not self.offered:
                    self._problem = "This map needs the library PaCMAP: pip install 'frevl[map]', then restart."
                elif len(drawn) < _FEWEST:
                    self._problem = f"This map needs at least {_FEWEST} images."
                else:
                    work = threading.Thread(target=self._compute, args=(rows, drawn, path), daemon=True)
                    work.start()
            return self._found, self._problem

    def close(self) -> None:
        """Stop the computation."""
        with self._guard:
            self._closed = True
            self._end()

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process = None

    def _compute(self, rows: Rows, drawn: np.ndarray, path: Path) -> None:
        problem, made = "", None
        try:
            with tempfile.TemporaryDirectory(prefix="frevl-map-") as folder:
                given, taken = Path(folder) / "vectors.npy", Path(folder) / "points.npy"
                np.save(given, np.asarray(rows.vectors[drawn]))
                command = [sys.executable, "-m", __name__, str(given), str(taken)]
                with self._guard:
                    if self._closed or self._key != rows.key:
                        return
                    process = self._process = subprocess.Popen(  # noqa: S603 - our own file
                        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
                    )
                said = process.communicate()[1].decode("utf-8", "replace").strip().splitlines()
                if process.returncode:
                    problem = f"The map could not be computed: {said[-1] if said else process.returncode!s:.200}."
                else:
                    made = Projection(drawn, np.load(taken, allow_pickle=False), (0.0, 0.0))
        except (OSError, ValueError) as error:
            problem = f"The map could not be computed ({error})."
        with self._guard:
            if self._key == rows.key:
                self._found, self._problem, self._process = made, problem, None
                self._failed = time.monotonic()
        if made is not None and self._keep:
            write_projection(path, made)


def _main(given: str, taken: str) -> None:
    import pacmap  # takes seconds, and may not be installed

    vectors = np.load(given, allow_pickle=False).astype(np.float32)
    points = pacmap.PaCMAP(n_components=2, random_state=0).fit_transform(vectors, init="pca")
    points = np.asarray(points, np.float32)
    points -= (points.max(axis=0) + points.min(axis=0)) / 2
    np.save(taken, points / max(float(np.abs(points).max()), 1e-12))


if __name__ == "__main__":
    _main(*sys.argv[1:])
