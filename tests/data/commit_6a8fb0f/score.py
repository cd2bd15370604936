"""Write the outputs of every run for all pairs, and manifest.json: `python score.py`.

As `Scorer.open(run, store=store)` says it, one thread: `score` of all pairs of the file in its order; `probabilities`
of those scores, or for matching what `judge` says; for matching the grid of the file's images and texts too, and the
vectors of a first stage. All float32 .npy.
"""

import json
from pathlib import Path

import numpy as np
import torch

import frevl

torch.set_num_threads(1)
manifest = {"commit": "6a8fb0f", "torch": torch.__version__, "runs": []}
for run in sorted(Path("runs").glob("*/*")):
    task = run.parent.name
    if not (run / "run.json").exists():
        continue
    record = json.loads((run / "run.json").read_text())
    store = {"made-up": "stores/common"}.get(record["encoders"][0]) or (
        "stores/tokens" if record["towers"]["image"]["toy-image"]["tokens"] != "pooled" else "stores/pooled"
    )
    file = "pairs.jsonl" if task == "classification" else "captions.jsonl"
    file = "soft.jsonl" if run.name.endswith("-soft") else file
    rows = [json.loads(line) for line in Path(file).read_text().splitlines()]
    pairs = [(row["image"], row["text"]) for row in rows]
    scorer = frevl.Scorer.open(run, store=store)
    found = {"score": scorer.score(pairs)}
    if task == "classification":
        found["probabilities"] = scorer.probabilities(found["score"])
    else:
        # Right pairs, then every image with the text of the next: wrong ones.
        shifted = [(pairs[number][0], pairs[(number + 2) % len(pairs)][1]) for number in range(len(pairs))]
        found["score_wrong"] = scorer.score(shifted)
        scores, found["judge"] = scorer.judge(pairs)
        assert np.array_equal(scores, found["score"])
        found["judge_wrong"] = scorer.judge(shifted)[1]
        images, texts = (list(dict.fromkeys(side)) for side in zip(*pairs, strict=True))
        found["grid"] = scorer.grid(images, texts)
        if scorer.has_first_stage:
            found["image_vectors"] = scorer.image_vectors(images)
            found["text_vectors"] = scorer.text_vectors(texts)
    folder = Path("scores") / task / run.name
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, values in found.items():
        assert values.dtype == np.float32 and np.isfinite(values).all(), (run, name)
        np.save(folder / f"{name}.npy", values)
        files[name] = {"file": f"{folder}/{name}.npy", "shape": list(values.shape)}
    manifest["runs"].append(
        {
            "run": str(run),
            "store": store,
            "task": task,
            "pairs": file,
            "model": record["model"],
            "network": record["network_name"],
            "parameters": record["parameters"],
            "bytes": (run / "weights.safetensors").stat().st_size,
            "scores": files,
        }
    )
    print(f"{run}: {record['network_name']}, {record['parameters']:,}", {k: v.shape for k, v in found.items()})
Path("manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
