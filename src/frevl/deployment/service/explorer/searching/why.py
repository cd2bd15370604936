"""Explain why an image was found: the nearest captions in the store, and the contribution of each query word."""

from __future__ import annotations

from typing import Any

import numpy as np

from frevl.deployment.service.explorer.explorer import Explorer
from frevl.deployment.service.explorer.rows import Rows
from frevl.deployment.service.explorer.searching.search_schemas import WhyRequest
from frevl.deployment.service.http.limits import RefusedError
from frevl.deployment.service.models import Service
from frevl.deployment.service.served_model import ServedModel
from frevl.runs.search.distances import nearest_rows

__all__ = ["why"]

_CAPTIONS = 5
_MOST_TEXTS = 200_000  # texts whose vectors are held in memory
_MOST_WORDS = 24
_AT_ONCE = 8_192


async def why(explorer: Explorer, asked: WhyRequest) -> dict[str, Any]:
    """Explain why an image was found, using the encoder or a served run."""
    service = explorer.service
    await service.check_images([asked.image])
    rows = await explorer.rows()
    if asked.text is not None:
        service.check_size([asked.text], 1)
    by_encoder = explorer.encoder.text is not None
    model = next((one for one in service.models.values() if one.searches), None)
    if not by_encoder and model is None:
        raise RefusedError(
            409, "cannot_explain", "No explanation: the encoder has no common space, and no matching run is served; "
                "start the service with --run.",
        )  # fmt: skip
    notes: list[str] = []
    if by_encoder:
        captions = await explorer.ask(lambda: _captions(explorer, rows, asked.image, notes))
        words = await explorer.ask(lambda: _words(explorer, rows, asked, notes))
        return {"by": "encoder", "of": explorer.encoder.name, "captions": captions, "words": words, "notes": notes}
    if model is None:
        raise ValueError("there is an encoder or a run")
    found = await service.search(model, image=asked.image, find="texts", k=_CAPTIONS)
    captions = [{"text": hit.id, "similarity": hit.similarity} for hit in found.by_similarity[:_CAPTIONS]]
    words = [] if asked.text is None else await _words_of_run(service, model, asked.image, asked.text, notes)
    return {"by": "run", "of": model.name, "captions": captions, "words": words, "notes": [*notes, *found.notes]}


def _vector(rows: Rows, image: str) -> np.ndarray:
    row = rows.positions.get(image)
    if row is None or not rows.usable[row]:
        raise RefusedError(409, "cannot_explain", f"The store has no embedding of {image[:80]!r}.")
    found: np.ndarray = rows.vectors[row].astype(np.float32)
    return found


def _captions(explorer: Explorer, rows: Rows, image: str, notes: list[str]) -> list[dict[str, Any]]:
    texts = rows.store.ids("text")
    if not len(texts):
        return []
    if len(texts) > _MOST_TEXTS:
        notes.append(f"The nearest captions are shown only for stores of up to {_MOST_TEXTS:,} texts.")
        return []
    key = ("texts", rows.key, rows.store.version("text"))
    vectors = explorer.once(key, lambda: _text_vectors(explorer, rows, texts))
    found, likeness = nearest_rows([vectors], _vector(rows, image), _CAPTIONS)
    return [
        {"text": texts[row], "similarity": float(value)}
        for row, value in zip(found.tolist(), likeness.tolist(), strict=True)
    ]


def _text_vectors(explorer: Explorer, rows: Rows, texts: Any) -> np.ndarray:
    tower = explorer.encoder.text
    if tower is None:
        raise ValueError("the encoder reads texts")
    has = rows.store.states("text")[f"has:{tower.name}"]
    made = np.zeros((len(texts), tower.dim), np.float16)
    usable = np.flatnonzero(has)
    for start in range(0, len(usable), _AT_ONCE):
        part = usable[start : start + _AT_ONCE]
        made[part] = rows.store.read_texts([texts[row] for row in part.tolist()], encoders=tower.encoders[:1])
    return made


def _without_each(text: str) -> list[tuple[str, str]]:
    """Return every word of a text, and the text without it."""
    words = text.split()
    if not 2 <= len(words) <= _MOST_WORDS:
        return []
    return [(word, " ".join(words[:at] + words[at + 1 :])) for at, word in enumerate(words)]


def _words(explorer: Explorer, rows: Rows, asked: WhyRequest, notes: list[str]) -> list[dict[str, Any]]:
    if asked.text is None:
        return []
    picture, encoder = _vector(rows, asked.image), explorer.encoder
    without = _without_each(asked.text)
    vectors = [encoder.embed_text(rows.store, text) for text in (asked.text, *(text for _, text in without))]
    if any(vector is None for vector in vectors):
        notes.append("Word contributions are unavailable because the text vectors were imported.")
        return []
    whole, *parts = [float(picture @ vector) for vector in vectors if vector is not None]
    return [{"word": word, "adds": whole - part} for (word, _), part in zip(without, parts, strict=True)]


async def _words_of_run(
    service: Service, model: ServedModel, image: str, text: str, notes: list[str]
) -> list[dict[str, Any]]:
    without = _without_each(text)
    texts = [text, *(rest for _, rest in without)]
    try:
        service.check_texts(model, texts)
    except RefusedError:
        notes.append("Word contributions are unavailable because the text vectors were imported.")
        return []
    if not without:
        return []
    whole, *parts = await service.score(model, [(image, one) for one in texts])
    return [
        {"word": word, "adds": float(whole.score - part.score)} for (word, _), part in zip(without, parts, strict=True)
    ]
