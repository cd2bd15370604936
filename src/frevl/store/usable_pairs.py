"""Select the pairs whose images and texts are in the store, and the towers that all of them have; report the rest."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from frevl.data.formats.pair_rows import WITH_ARTICLE
from frevl.data.names import list_or_none, same_names, spelling_note, text_content, why_unknown
from frevl.data.packed.columns import Coded, by_value, chosen, joined
from frevl.data.pairs import Pairs, read_pairs, with_targets
from frevl.encoders.interface import Encoder
from frevl.encoders.unreadable_texts import MOSTLY, unread_sentence
from frevl.errors import PairsError, Reject, UsageError, rejects_sentence
from frevl.store.ids.rows_of_ids import KnownIds, find_rows, rows_of_values
from frevl.store.reader import Store
from frevl.store.towers import MODALITIES, Modality, Tower

__all__ = [
    "as_known",
    "choose_towers",
    "colour_advice",
    "content_of_units",
    "contents_of",
    "names_of",
    "note_unread",
    "read_usable",
    "stored_contents_of",
    "unread_texts",
    "usable_pairs",
]

_OPENED = 16  # files compared by content before a folder in front of the ids is dropped
_HASH = 32  # letters of a content hash
_ASKED = 1_000  # evenly spaced pairs whose answers are inspected
_COLOURS = re.compile(
    r"\b(red|green|blue|navy|yellow|black|white|brown|gr[ae]y|orange|purple|pink|beige|violet|turquoise|teal|gold(en)?|"
    r"silver|cream|maroon|olive|khaki)\b",
    re.IGNORECASE,
)


def usable_pairs(pairs: Pairs, store: Store) -> tuple[Pairs, list[Reject]]:
    """Drop the pairs whose image or text was rejected at extraction.

    Args:
        pairs: Pairs as read from the file.
        store: Store with their embeddings. A text that is not in the store is usable, because it can be embedded later.

    Returns:
        The usable pairs, with the store's ids, and one reject for each pair left out. The ``notes`` of the pairs state
        which ids were spelled differently.

    Raises:
        PairsError: A pair names an image that is not in the store, or no pair is left.
    """
    known_images, rejects = store.positions("image"), store.rejects()
    broken = {reject.id: reject.reason for reject in rejects if reject.kind == "image"}
    broken_texts = {reject.id: reject.reason for reject in rejects if reject.kind == "text"}
    if broken_texts:
        known_texts = store.positions("text")  # another encoder, or a later call, may have embedded it
        broken_texts = {text: reason for text, reason in broken_texts.items() if text not in known_texts}
    known = KnownIds(known_images, broken)
    has_images = "image" in pairs.sides
    pairs = as_known(pairs, known, store) if has_images else replace(pairs, notes=())
    usable = np.ones(len(pairs), bool)
    rows = rows_of_values(known_images, pairs.images) if has_images else np.zeros(len(pairs), np.int64)
    unknown = [row for row in np.flatnonzero(rows < 0).tolist() if pairs.images[row] not in broken]
    if unknown:
        first = unknown[0]
        nearest = why_unknown(pairs.images[first], known)
        raise PairsError(
            f"{pairs.places[first]}, field 'image': the store has no image '{pairs.images[first]:.80}' "
            f"({len(unknown):,} of {len(pairs):,} pairs name unknown images){'; ' + nearest if nearest else ''}; "
            "extract the folder that holds them, or correct the ids"
        )
    left_out = []
    usable &= rows >= 0
    if broken_texts:
        usable &= by_value(pairs.texts, lambda text: text not in broken_texts, bool)
    for i in np.flatnonzero(~usable).tolist():
        image, text = pairs.images[i], pairs.texts[i]
        if rows[i] < 0:
            left_out.append(Reject("pair", pairs.places[i], f"its image '{image}' was rejected: {broken[image]}"))
        else:
            left_out.append(
                Reject("pair", pairs.places[i], f"its text '{text:.80}' was rejected: {broken_texts[text]}")
            )
    if not usable.any():
        raise PairsError(f"{pairs.places[0]}: no pair is left; all were rejected ({left_out[0].reason})")
    kept = pairs.select(np.flatnonzero(usable)) if left_out else pairs  # copying many pairs takes memory
    return replace(kept, rejected=(), notes=pairs.notes), left_out


def as_known(pairs: Pairs, known: Mapping[str, int] | KnownIds, store: Store) -> Pairs:
    """Map image names in the pairs to the store's spelling.

    A leading folder is ignored if the files so named, next to the pairs file or in the working directory, have the
    content known to the store.

    Args:
        pairs: Pairs as read from the file.
        known: Ids of images.
        store: Store that knows their content.

    Returns:
        The pairs; their ``notes`` concern only spellings.
    """
    rows = np.flatnonzero(rows_of_values(known, pairs.images) < 0)
    if not len(rows):
        return replace(pairs, notes=())
    unknown = chosen(pairs.images, rows)
    same = same_names(unknown, known)
    rest = [image for image in dict.fromkeys(unknown) if image not in same]
    if rest:
        same |= _below_a_folder(rest, known, store, Path(pairs.source).parent if pairs.source else Path())
    if not same:
        return replace(pairs, notes=())
    return replace(pairs, images=[same.get(image, image) for image in pairs.images], notes=tuple(spelling_note(same)))


def _below_a_folder(
    names: list[str], known: Mapping[str, int] | KnownIds, store: Store, beside: Path
) -> dict[str, str]:
    """Drop the folder with which all names begin, if the files confirm that the remaining paths are the ids."""
    folder, _, _ = names[0].replace("\\", "/").rpartition("/")
    while folder:
        prefix = folder + "/"
        if all(name.replace("\\", "/").startswith(prefix) for name in names):
            short = [name[len(prefix) :] for name in names]
            ids = dict(zip(names, short, strict=True))
            other = [id_ for id_, row in zip(short, find_rows(known, short).tolist(), strict=True) if row < 0]
            found = same_names(other, known)
            ids = {name: found.get(id_, id_) for name, id_ in ids.items()}
            if all(id_ in found for id_ in other) and _same_content(ids, store, beside):
                return ids
        folder, _, _ = folder.rpartition("/")
    return {}


def _same_content(ids: dict[str, str], store: Store, beside: Path) -> bool:
    """Return whether the files with these names have the content that the store has under the ids."""
    some = dict(list(ids.items())[:_OPENED])
    hashes = store.content_hashes(list(some.values()))
    for name, id_ in some.items():
        written = (name, name.replace("\\", "/"))
        places = (folder / path for path in written for folder in (beside, Path()))
        file = next((path for path in places if path.is_file()), None)
        try:
            content = None if file is None else file.read_bytes()
        except OSError:
            return False
        if content is None or id_ not in hashes or hashlib.sha256(content).hexdigest()[:_HASH] != hashes[id_]:
            return False
    return True


def unread_texts(
    store: Store, texts: Sequence[str], towers: Sequence[Tower], load: Callable[[], Sequence[Encoder]] | None = None
) -> list[str]:
    """Return the distinct texts of which each of these text towers reads less than half.

    Args:
        store: Store whose extraction recorded this for the texts in it.
        texts: Texts to check.
        towers: Text towers.
        load: Returns the encoders of the towers, to check texts that are not in the store; None skips these.
    """
    different = _different(texts)
    if not towers:
        return []
    unread = store.unread_texts(different, towers)
    if load is None:
        return unread
    # Every tokenizer reads ASCII letters, so most calls need no tokenizer.
    asked_about = [text for text in different if not text.isascii()]
    there = find_rows(store.positions("text"), asked_about).tolist() if asked_about else []
    new = [text for text, row in zip(asked_about, there, strict=True) if row < 0]
    if not new:
        return unread
    names = {tower.name for tower in towers}
    asked = [one.text for one in load() if one.text is not None and one.text.name in names]
    shares = np.min([tower.unread(new) for tower in asked], axis=0) if asked else np.zeros(len(new))
    return unread + [text for text, share in zip(new, shares.tolist(), strict=True) if share > MOSTLY]


def _different(texts: Sequence[str]) -> Sequence[str]:
    return texts.used_values() if isinstance(texts, Coded) else list(dict.fromkeys(texts))


def note_unread(
    store: Store,
    texts: Sequence[str],
    towers: Sequence[Tower],
    notes: list[str],
    load: Callable[[], Sequence[Encoder]] | None = None,
) -> None:
    """Add a note on how many texts none of these text towers can read; see `unread_texts`."""
    different = _different(texts)
    unread = unread_texts(store, different, towers, load)
    if unread:
        notes.append(unread_sentence(unread, len(different), [tower.name for tower in towers]))


def colour_advice(pairs: Pairs, towers: Sequence[Tower]) -> list[str]:
    """Return advice if most answers are colours (English words), which the image towers have lost.

    EfficientNet's last layers identify objects regardless of their colour. On product photos with 41 colours
    (research/experiments/log.md), accuracy with the first layers was 11 to 16 points higher.
    """
    blind = [tower.name for tower in towers if tower.name.startswith("efficientnet-")]
    if not blind or len(blind) < len(towers) or any(name.endswith("-colour") for name in blind):
        return []
    some = np.unique(np.linspace(0, len(pairs) - 1, min(len(pairs), _ASKED)).astype(int)).tolist()
    answers = [target for target in (pairs.targets[row] for row in some) if target is not None]
    named = sum(isinstance(target, str) and bool(_COLOURS.search(target)) for target in answers)
    if 2 * named <= len(answers):
        return []
    return [
        f"Most answers are colours ({100 * named // len(answers)} %), most of which are lost in the embeddings by "
        f"{', '.join(blind)}; add --encoder packaged-colour, which keeps them, to the same store with frevl extract."
    ]


def contents_of(store: Store, pairs: Pairs) -> tuple[Sequence[str], np.ndarray]:
    """Return the distinct images of some pairs (or texts, if there are only texts), and their content hashes.

    Returns:
        The ``n`` ids, and ``(n,)`` bytes of 32 letters.
    """
    if "image" in pairs.sides:
        ids = joined([pairs.images])[1]
        return ids, store.content_column(ids)
    texts = joined([pairs.texts])[1]
    hashes = np.zeros(len(texts), f"S{_HASH}")
    for row, text in enumerate(texts):
        hashes[row] = hashlib.sha256(text_content(text).encode()).hexdigest()[:_HASH]
    return texts, hashes


def stored_contents_of(store: Store, pairs: Pairs) -> tuple[Sequence[str], np.ndarray]:
    """Return the same as `contents_of`, leaving out images that are not in the store."""
    if "image" not in pairs.sides:
        return contents_of(store, pairs)
    ids = joined([pairs.images])[1]
    there = chosen(ids, np.flatnonzero(find_rows(store.positions("image"), ids) >= 0))
    return there, store.content_column(there)


def content_of_units(store: Store, pairs: Pairs) -> dict[str, str]:
    """Return the content hash of every image of some pairs; of every text if there are only texts."""
    if "image" in pairs.sides:
        return store.content_hashes(joined([pairs.images])[1])
    different = joined([pairs.texts])[1]
    return {text: hashlib.sha256(text_content(text).encode()).hexdigest()[:_HASH] for text in different}


def read_usable(store: Store, pairs: str | Path | Pairs, notes: list[str]) -> Pairs:
    """Read pairs for training or evaluation and keep those in the store; the notes state what is left out."""
    read = pairs if isinstance(pairs, Pairs) else read_pairs(pairs)
    notes += read.notes
    judged, unjudged = with_targets(read)
    usable, left_out = usable_pairs(judged, store)
    notes += usable.notes
    sentence = rejects_sentence([*read.rejected, *unjudged, *left_out])
    if sentence:
        notes.append(sentence)
    return usable


def choose_towers(
    store: Store, parts: Sequence[Pairs], notes: list[str], asked: Mapping[str, Sequence[str] | None]
) -> dict[Modality, list[Tower]]:
    """Choose image towers and text towers that are available for the items of some pairs.

    One encoder may have embedded the images and another the texts. By default, a modality uses the towers that all its
    items have. Encoders given by ``encoder`` are used with both towers, unless no item has an embedding by one of them;
    those given by modality are used as they are.

    Args:
        store: Store with the embeddings.
        parts: Usable pairs.
        notes: Receives a sentence for every tower that is left out.
        asked: Names of encoders by argument: ``encoder``, ``image_encoder`` and ``text_encoder``; None or absent for
            no choice.

    Returns:
        The towers of each modality, in store order; none for a modality that the pairs do not have.

    Raises:
        UsageError: An encoder is not in the store, or the chosen ones have no tower for a modality.
    """
    chosen: dict[Modality, list[Tower]] = {}
    for modality in MODALITIES:
        if modality not in parts[0].sides:
            if asked.get(f"{modality}_encoder") is not None:
                raise UsageError(f"--{modality}-encoder: no pair has {WITH_ARTICLE[modality]}; leave it out")
            chosen[modality] = []
            continue
        own = asked.get(f"{modality}_encoder")
        named = asked.get("encoder") if own is None else own
        names: list[str] | None = list_or_none(named, "encoder")
        towers = store.select_towers(modality, names)
        known = store.select_towers(modality)
        if names is not None and known and not towers:
            raise UsageError(
                f"{store.path}: the store has no {modality} embeddings by {' and '.join(names)}; choose an encoder for "
                f"the {modality}s with --{modality}-encoder: {', '.join(names_of(store, known))}"
            )
        if own is None and len(towers) > 1:
            ids = joined([part.images if modality == "image" else part.texts for part in parts])[1]
            towers = _of_all(store, modality, ids, towers, notes, whole=names is not None)
        chosen[modality] = towers
    return chosen


def _of_all(
    store: Store, modality: Modality, ids: Sequence[str], towers: list[Tower], notes: list[str], *, whole: bool
) -> list[Tower]:
    """Drop towers that some items lack (with ``whole``, that all items lack), unless none would be left."""
    states, known = store.states(modality), store.positions(modality)
    rows = find_rows(known, ids)
    rows = rows[rows >= 0]
    lacking = {tower.name: int((~states[f"has:{tower.name}"][rows]).sum()) for tower in towers}
    kept = [tower for tower in towers if lacking[tower.name] < (max(len(rows), 1) if whole else 1)]
    if not kept:
        return [min(towers, key=lambda tower: lacking[tower.name])]
    notes += [
        f"The {modality} embeddings of {' and '.join(tower.encoders)} are not used, because {lacking[tower.name]:,} of "
        f"{len(rows):,} {modality}s have none; {tower.remedy}, or choose encoders with --{modality}-encoder."
        for tower in towers
        if tower not in kept
    ]
    return kept


def names_of(store: Store, towers: Sequence[Tower]) -> list[str]:
    """Return the names of the encoders that use one of these towers, in store order."""
    return [name for name in store.encoders if any(name in tower.encoders for tower in towers)]
