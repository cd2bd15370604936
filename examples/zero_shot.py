"""Classes by their names alone: an encoder of images and texts in one space, such as CLIP, needs no example."""

import frevl
from drawn_shapes import COLOURS, SHAPES, arguments, draw


def main() -> None:
    asked = arguments(__doc__, encoder="hf:openai/clip-vit-base-patch32")
    drawn = draw(asked.folder)
    store = asked.folder / "store"
    frevl.extract(store, images=asked.folder / "images", encoder=[asked.encoder])
    names = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
    templates = ["a {} on a grey background", "a drawing of a {}"]
    run = frevl.classify(store, names, template=templates, run=asked.folder / "run")
    scorer = frevl.Scorer(run, frevl.Store.open(store))
    found = scorer.label([image for image, _, _ in drawn])
    right = sum(one.label == f"{colour} {shape}" for one, (_, colour, shape) in zip(found, drawn, strict=True))
    print(f"{100 * right / len(drawn):.1f} % of {len(drawn)} images are right, without an example")
    print("\n".join(run.results["notes"]))  # such as: not calibrated


if __name__ == "__main__":
    main()
