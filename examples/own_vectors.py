"""Vectors of your own: embeddings from anywhere become a store, and everything else works on it."""

import numpy as np

import frevl
from drawn_shapes import arguments, draw, questions, write
from frevl.store.importing.vectors import import_embeddings


def main() -> None:
    asked = arguments(__doc__)
    drawn = draw(asked.folder)
    pairs = write(asked.folder / "pairs.jsonl", questions(drawn))
    images = [image for image, _, _ in drawn]
    texts = list(dict.fromkeys(row["text"] for row in questions(drawn)))

    # Any program may have made these; here an encoder of frevl does.
    encoder = frevl.load_encoder(asked.encoder)
    vectors = {
        "images": (images, encoder.embed_images([asked.folder / "images" / image for image in images])),
        "texts": (texts, encoder.embed_texts(texts)),
    }
    store = asked.folder / "store"
    for of, (ids, values) in vectors.items():
        np.save(asked.folder / f"{of}.npy", values)
        (asked.folder / f"{of}_ids.txt").write_text("\n".join(ids), encoding="utf-8")
        import_embeddings(
            asked.folder / f"{of}.npy", of=of, ids=asked.folder / f"{of}_ids.txt", store=store, encoder="my-model"
        )
    run = frevl.train(store, pairs, run=asked.folder / "run", task="classification", model="kernel")
    print(f"{run.results['development']['accuracy']:.1f} % of held-out answers are right")


if __name__ == "__main__":
    main()
