"""Work for the tests of the workers, which the nodes import."""

import os
import signal
import time
from functools import partial
from pathlib import Path

from frevl.errors import PairsError


class Squares:
    """Squares numbers; a folder says what goes wrong, once each."""

    about = "squares"

    def __init__(self, faults):
        self.faults = Path(faults)
        if self._once("kill-loading"):
            os.kill(os.getpid(), signal.SIGKILL)

    def _once(self, name):
        try:
            (self.faults / name).unlink()
        except FileNotFoundError:
            return False
        return True

    def __call__(self, number):
        if self._once(f"kill-{number}"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self._once(f"full-{number}"):
            raise OSError(28, "No space left on device")
        if self._once(f"slow-{number}"):
            time.sleep(60)
        if (self.faults / f"poison-{number}").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        if (self.faults / f"wrong-{number}").exists():
            raise PairsError(f"line {number}: wrong")
        return number * number


def squares(faults):
    return partial(Squares, str(faults))
