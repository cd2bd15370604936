"""Settings of the Python process of a service: fewer garbage collections, and threads that switch more often."""

from __future__ import annotations

import gc
import sys

__all__ = ["freeze_loaded_objects", "switch_threads_often"]


def freeze_loaded_objects() -> None:
    """Exclude all objects that exist now from garbage collection, and collect less often.

    Libraries and models are a million objects that are never freed. Looking through them took half the time of the
    thread that answers requests (measured with 16 pairs a request).
    """
    gc.enable()  # the command turns it off while it loads
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)


def switch_threads_often() -> None:
    """Let the threads of models and requests switch ten times as often as usual.

    Every operation of a model releases the interpreter's lock and then waits to get it back, 5 ms by default.
    """
    sys.setswitchinterval(0.0005)
