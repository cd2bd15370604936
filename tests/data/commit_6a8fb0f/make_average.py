"""Average four runs of classification by hand, as `--model auto` does: `python make_average.py`.

With weights that differ, so that an average by `auto` (equal weights) is not the only one tested.
"""

import dataclasses
from pathlib import Path

from frevl.average import Average
from frevl.run import Run, name_of

for name, members in {
    "average": ("majority", "linear", "kernel", "mlp", "tiny-small"),
    "average-soft": ("linear-soft", "tiny-soft"),
    "average-tokens": ("linear-tokens", "tiny-tokens"),
}.items():
    runs = [Run.load(Path("runs/classification") / member) for member in members]
    calibrations = [{**run.calibration, "weight": 1 + number / 2} for number, run in enumerate(runs)]
    network = Average.of([run.network for run in runs], calibrations, soft=name == "average-soft")
    dataclasses.replace(
        runs[0],
        path=Path("runs/classification") / name,
        model="auto",
        network_name=name_of(network),
        network_settings=network.settings,
        calibration={"scale": 1.0, "offset": 0.0},
        settings={},
        results={"soft_targets": name == "average-soft", "notes": ["made by make_average.py"]},
        provenance={**runs[0].provenance, "run": f"runs/classification/{name}", "command": "make_average.py"},
        network=network,
    ).save()
