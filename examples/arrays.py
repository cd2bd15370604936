"""Arrays in, model out: the interface of scikit-learn on embeddings, without a store."""

import numpy as np
from sklearn.model_selection import GroupKFold, cross_val_score

import frevl
from drawn_shapes import arguments, draw
from frevl.estimators import EmbeddingClassifier, FusionClassifier


def main() -> None:
    asked = arguments(__doc__)
    drawn = draw(asked.folder)
    encoder = frevl.load_encoder(asked.encoder)
    images = encoder.embed_images([asked.folder / "images" / image for image, _, _ in drawn])
    colours = np.array([colour for _, colour, _ in drawn])

    # Classes of images by examples: every third image is one.
    learned = np.arange(len(drawn)) % 3 == 0
    classifier = EmbeddingClassifier().fit(images[learned], colours[learned])
    print(f"{100 * classifier.score(images[~learned], colours[~learned]):.1f} % of the other images are named rightly")
    print(f"chosen: {classifier.results_['selection']['chosen']}")

    # Pairs of an image and a question: the columns of both, side by side.
    names = sorted(set(colours))
    asked_for = np.array([names[number % len(names)] for number in range(len(drawn))])
    texts = encoder.embed_texts([f"is it {name}?" for name in asked_for])
    answers = np.where(asked_for == colours, "yes", "no")
    fusion = FusionClassifier(image_dim=images.shape[1], model="kernel")
    groups = np.arange(len(drawn))
    scores = cross_val_score(fusion, np.hstack([images, texts]), answers, groups=groups, cv=GroupKFold(3))
    print(f"{100 * scores.mean():.1f} % of held-out answers are right")

    classifier.save(asked.folder / "run")  # an ordinary run: frevl export, frevl.Scorer and load take it
    again = EmbeddingClassifier.load(asked.folder / "run")
    same = np.mean(again.predict(images) == classifier.predict(images))
    print(f"{100 * same:.0f} % of the labels of the loaded run are the same")


if __name__ == "__main__":
    main()
