"""Export: one ONNX file that ONNX Runtime scores alone, with everything that a caller needs in its metadata."""

import json

import numpy as np
import onnxruntime

import frevl
from drawn_shapes import arguments, draw, questions, write
from frevl.deployment.export.exporting import export


def main() -> None:
    asked = arguments(__doc__)
    drawn = draw(asked.folder)
    pairs = write(asked.folder / "pairs.jsonl", questions(drawn))
    store, run, file = asked.folder / "store", asked.folder / "run", asked.folder / "model.onnx"
    frevl.extract(store, images=asked.folder / "images", pairs=[pairs], encoder=[asked.encoder])
    frevl.train(store, pairs, run=run, task="classification", model="kernel")
    export(run, file)

    session = onnxruntime.InferenceSession(file)
    labels = json.loads(session.get_modelmeta().custom_metadata_map["frevl.labels"])
    opened = frevl.Store.open(store)
    question = f"is it {drawn[0][1]}?"
    inputs = {"image": opened.read_images([drawn[0][0]]), "text": opened.read_texts([question])}
    names = {one.name for one in session.get_inputs()}
    outputs = session.run(None, {name: value.astype(np.float32) for name, value in inputs.items() if name in names})
    print(f"{question} {labels[int(outputs[0].argmax())]}")


if __name__ == "__main__":
    main()
