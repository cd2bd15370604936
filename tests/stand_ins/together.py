"""Trainings shared by several real processes; workers import this file by its name."""

from pathlib import Path

from frevl.errors import MissingExtraError, PairsError
from frevl.training.training import train
from frevl.training.workers.joining import working_together

CLASSIFICATION, MATCHING = {"task": "classification"}, {"task": "matching"}
ROUGH = {"epochs": 2, "batch_size": 50, "learning_rate": 3e-3}
TRAININGS = {
    "tiny": {**CLASSIFICATION, "model": "tiny", "options": {**ROUGH, "layers": 1, "mixup_share": 0.5, "dropout": 0.2}},
    "tiny with dropped inputs": {
        **CLASSIFICATION, "model": "tiny",
        "options": {**ROUGH, "layers": 0, "mixup_share": 0.5, "input_dropout": 0.2, "standardise": True},
    },
    "mlp": {**CLASSIFICATION, "model": "mlp", "options": {**ROUGH, "class_weight": "balanced"}},
    "mlp, fewer pairs a step than workers": {
        **CLASSIFICATION, "model": "mlp", "options": {"epochs": 1, "batch_size": 2, "hidden": 8},
    },
    "tiny for matching": {**MATCHING, "model": "tiny", "options": {**ROUGH, "layers": 1}},
    "dual": {**MATCHING, "model": "dual", "options": {"epochs": 3, "batch_size": 50, "members": 2, "width": 32}},
    "tiny after dual": {
        **MATCHING, "model": "tiny", "first_stage": "dual", "options": {"epochs": 1, "layers": 0, "batch_size": 50},
    },
}  # fmt: skip


def all_trainings(store, files, folder, workers=None, progress=False):
    """Train everything in `TRAININGS`, each in a folder of its number."""
    named = {"store": store, "files": files, "folder": folder, "workers": workers}
    with working_together(all_trainings, named, workers=workers, device="cpu") as team:
        for number, settings in enumerate(TRAININGS.values()):
            train(store, files[settings["task"]], run=Path(folder) / str(number), **settings)
    return team.size


def until_the_clock(store, files, folder, time_limit, workers=None, progress=False):
    """Train until the time is over; return why each worker has stopped."""
    named = {"store": store, "files": files, "folder": folder, "time_limit": time_limit}
    with working_together(until_the_clock, named, workers=workers, device="cpu") as team:
        run = train(
            store, files["matching"], run=folder, task="matching", model="mlp", time_limit=time_limit,
            options={"epochs": 100_000, "patience": 100_000, "hidden": 4},
        )  # fmt: skip
        stopped = run.results["fit"]
        team.same({name: stopped[name] for name in ("stopped", "epochs", "best_epoch", "metric")})
        return stopped


ERRORS = {
    "known": PairsError("there.jsonl:3: is broken"),
    "of other arguments": MissingExtraError("ray", "ray"),
    "unknown": ValueError("a mistake of ours"),
}


def one_fails(error, workers=None, progress=False):
    """The last worker fails, and the others wait for it."""
    with working_together(one_fails, {"error": error}, workers=workers, device="cpu") as team:
        if team.size > 1 and not team.leads:
            raise ERRORS[error]
        team.agreed(0)
        team.same({})
