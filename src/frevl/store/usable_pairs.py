"""Pairs whose images and texts are in the store; the others are counted and reported."""

from __future__ import annotations

from pathlib import Path

from frevl.data.pairs import Pairs, read_pairs, with_targets
from frevl.errors import PairsError
from frevl.rejects import Reject, rejects_sentence
from frevl.store.reader import Store

__all__ = ["read_usable", "usable_pairs"]


def usable_pairs(pairs: Pairs, store: Store) -> tuple[Pairs, list[Reject]]:
    """Leave out the pairs whose image or text was rejected at extraction.

    Args:
        pairs: As read.
        store: Where their embeddings are. A text that it has never seen is usable: it can still be embedded.

    Returns:
        The usable pairs, and one reject for each that is left out.

    Raises:
        PairsError: A pair names an image that the store has never seen, or no pair is left.
    """
    known_images, rejects = store.positions("image"), store.rejects()
    broken = {reject.id: reject.reason for reject in rejects if reject.kind == "image"}
    broken_texts = {reject.id: reject.reason for reject in rejects if reject.kind == "text"}
    if broken_texts:
        known_texts = store.positions("text")  # another encoder, or a later call, may have embedded it
        broken_texts = {text: reason for text, reason in broken_texts.items() if text not in known_texts}
    unknown = [i for i, image in enumerate(pairs.images) if image not in known_images and image not in broken]
    if unknown:
        first = unknown[0]
        raise PairsError(
            f"{pairs.places[first]}, field 'image': the store has no image '{pairs.images[first]:.80}' "
            f"({len(unknown):,} of {len(pairs):,} pairs name unknown images); "
            "extract the folder that holds them, or correct the ids"
        )
    kept, left_out = [], []
    for i, (image, text) in enumerate(zip(pairs.images, pairs.texts, strict=True)):
        if image not in known_images:
            left_out.append(Reject("pair", pairs.places[i], f"its image '{image}' was rejected: {broken[image]}"))
        elif text in broken_texts:
            left_out.append(
                Reject("pair", pairs.places[i], f"its text '{text:.80}' was rejected: {broken_texts[text]}")
            )
        else:
            kept.append(i)
    if not kept:
        raise PairsError(f"{pairs.places[0]}: no pair is left, everything was rejected ({left_out[0].reason})")
    return pairs.select(kept), left_out


def read_usable(store: Store, pairs: str | Path | Pairs, notes: list[str]) -> Pairs:
    """Read pairs to learn from or to judge by, and keep those that the store has; the notes say what is left out."""
    read = pairs if isinstance(pairs, Pairs) else read_pairs(pairs)
    judged, unjudged = with_targets(read)
    usable, left_out = usable_pairs(judged, store)
    sentence = rejects_sentence([*read.rejected, *unjudged, *left_out])
    if sentence:
        notes.append(sentence)
    return usable
