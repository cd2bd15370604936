"""What the process of a service asks of Python: few garbage collections, and threads that take turns quickly."""

from __future__ import annotations

import gc
import sys

__all__ = ["freeze_loaded_objects", "switch_threads_often"]


def freeze_loaded_objects() -> None:
    """Leave out of garbage collections what is there now, and collect less often.

    Libraries and models are a million objects that stay. Looking through them took half the time of the thread that
    answers requests (measured with 16 pairs a request).
    """
    gc.enable()  # the command turns it off while it loads
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)


def switch_threads_often() -> None:
    """Let the threads of models and requests take turns ten times as often as usual.

    Every operation of a model gives the interpreter away and then waits for it, 5 ms as Python has it.
    """
    sys.setswitchinterval(0.0005)
