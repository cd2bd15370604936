"""Captions and search: train two towers on captions, then find images by a sentence."""

import frevl
from drawn_shapes import arguments, draw, write


def main() -> None:
    asked = arguments(__doc__)
    drawn = draw(asked.folder)
    captions = [{"image": image, "text": f"a {colour} {shape}"} for image, colour, shape in drawn]
    train = write(asked.folder / "captions.jsonl", captions)
    store = asked.folder / "store"
    frevl.extract(store, images=asked.folder / "images", pairs=[train], encoder=[asked.encoder])
    frevl.train(store, train, run=asked.folder / "run", task="matching", model="dual")
    scorer = frevl.Scorer.open(asked.folder / "run", store=store)
    colours = {image: f"{colour} {shape}" for image, colour, shape in drawn}
    for hit in frevl.search(scorer, "a red circle", k=5).hits:
        print(f"{hit.rank}. {hit.id}: {colours[hit.id]}")


if __name__ == "__main__":
    main()
