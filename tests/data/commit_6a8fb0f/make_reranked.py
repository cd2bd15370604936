"""Make rerankers with nonzero fusion and hubness weights: `python make_reranked.py`. Sizes as in small.py.

On so few images the choice on development data leaves the fusion out (runs/matching/reranked), so here the weights
are set by hand; first stage, alignment, banks and fusion are trained as ever.
"""

import functools
import inspect
import sys
from dataclasses import fields, replace
from pathlib import Path

import frevl.matching
import frevl.mining
from frevl.calibration import fit_calibration
from frevl.fitting import Options
from frevl.fusion import PRESETS
from frevl.matching import fit_first_stage, fit_reranked
from frevl.preparation import prepare
from frevl.provenance import provenance
from frevl.run import Run, name_of
from frevl.store import Store
from frevl.training import train

PRESETS["tiny"].update({"width": 32, "layers": 2, "heads": 4, "ffn_width": 64, "head_width": 32})
small = functools.partial(frevl.matching.fit_members, width=32, hidden=64)
frevl.matching.fit_members = small
frevl.mining.fit_members = small
sys.argv = ["make_reranked.py"]

for name, place, first in (
    ("reranked-fusion", "stores/pooled", "dual"),
    ("reranked-fusion-common", "stores/common", "cosine"),
    ("reranked-fusion-tokens", "stores/tokens", "dual"),
):
    store = Store.open(place)
    data = prepare(
        store, "captions.jsonl", None, task="matching", encoder=None, seed=0, dev_share=0.25, min_answer_count=1
    )
    defaults = inspect.signature(train).parameters
    options = Options(**{one.name: defaults[one.name].default for one in fields(Options)})
    options = replace(options, seed=0, epochs=20, batch_size=16)
    fitted, _ = fit_reranked("tiny", fit_first_stage(first, data, options, share=0.4), data, options)
    weights = {"alignment": 5.0, "image_crowd": -0.5, "text_crowd": -0.25, "fusion": 0.75}
    fitted = replace(fitted, network=fitted.network.weighed(weights, 20))
    logits, truth = fitted.development(data.dev)
    run = f"runs/matching/{name}"
    Run(
        path=Path(run),
        model="tiny",
        task="matching",
        network_name=name_of(fitted.network),
        network_settings=fitted.network.settings,
        labels=data.labels,
        encoders=store.encoders,
        towers={
            "image": {tower.name: tower.identity for tower in data.image_towers},
            "text": {tower.name: tower.identity for tower in data.text_towers},
        },
        calibration=fit_calibration(logits[:, -1:], truth),
        settings={},
        results={"notes": ["made by make_reranked.py"]},
        provenance=provenance(run=run, store_fingerprint=store.fingerprint, seed=0),
        train_image_hashes=data.image_hashes,
        network=fitted.network,
    ).save()
    print(run, fitted.network.weights)
