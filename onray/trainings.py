"""Trainings for the tests, which the nodes import."""

import os
import signal

from frevl.errors import PairsError
from frevl.training.run_folder import Checkpoint
from frevl.training.training import train
from frevl.training.workers.team import current_team


def train_and_die_once(store, pairs, run, marker, settings, progress=False):
    """Train as one of several workers; the last of them kills itself after the first epoch, the first time."""
    team = current_team()
    if team.size > 1 and not team.leads and not marker.exists():
        save = Checkpoint.save

        def saved(self, *arguments):
            save(self, *arguments)
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)

        Checkpoint.save = saved
    return train(store, pairs, run=run, **settings)


def fail(progress=False):
    """The last worker fails, and the others wait for it."""
    team = current_team()
    if not team.leads:
        raise PairsError("there.jsonl:3: is broken")
    team.agreed(0)
