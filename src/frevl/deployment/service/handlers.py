"""Handlers of validated requests, one function per route, independent of HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from frevl.deployment.service.http.body import Upload
from frevl.deployment.service.http.limits import RefusedError
from frevl.deployment.service.models import Service
from frevl.deployment.service.schemas import (
    EITHER_IMAGE,
    AnswerRequest,
    EmbedRequest,
    Pair,
    ScoreRequest,
    SearchRequest,
)
from frevl.deployment.service.served_model import Found, ImagePair, Match, ServedModel
from frevl.runs.search.searching import Hit

__all__ = ["answer", "embed", "score", "search"]


async def score(
    service: Service, model: ServedModel, asked: ScoreRequest, uploads: Mapping[str, Upload]
) -> dict[str, Any]:
    """Score pairs."""
    pairs = await _pairs(service, model, asked, uploads)
    results = await service.score(model, pairs)
    has_unknown = bool(model.scorer.run.results.get("unknown"))
    scores: list[dict[str, Any]] = [
        {"score": one.score, "probability": one.probability}
        if isinstance(one, Match)
        else {
            "label": one.label,
            "probability": one.probability,
            "top": [{"label": label, "probability": probability} for label, probability in one.top],
        }
        for one in results
    ]
    if has_unknown:
        for said, one in zip(scores, results, strict=True):
            said["unknown"] = one.unknown
    notes = [*await service.notes_on(model, _texts(asked.pairs)), *await _trust(service, model, asked, pairs, scores)]
    return {"model": model.name, "task": model.scorer.run.task, "scores": scores, "notes": notes}


async def answer(
    service: Service, model: ServedModel, asked: AnswerRequest, uploads: Mapping[str, Upload]
) -> dict[str, Any]:
    """Answer questions, or abstain."""
    pairs = await _pairs(service, model, asked, uploads)
    results = await service.score(model, pairs, top=asked.top)
    answers = [
        {
            "answer": None if abstained else one.label,
            "probability": one.probability,
            "abstained": abstained,
            "top": [{"label": label, "probability": probability} for label, probability in one.top],
        }
        for one in results
        for abstained in [one.unknown or one.probability < asked.threshold]
    ]
    notes = [*await service.notes_on(model, _texts(asked.pairs)), *await _trust(service, model, asked, pairs, answers)]
    return {"model": model.name, "threshold": asked.threshold, "answers": answers, "notes": notes}


async def search(
    service: Service, model: ServedModel, asked: SearchRequest, uploads: Mapping[str, Upload]
) -> dict[str, Any]:
    """Find the best matches."""
    if asked.text is not None:
        service.check_size([asked.text], 1)
        service.check_texts(model, [asked.text])
    image: str | bytes | None = asked.image
    if asked.image is not None:
        await service.check_images([asked.image])
    if asked.upload is not None:
        if asked.upload not in uploads:
            raise RefusedError(404, "unknown_upload", f"The upload {asked.upload[:80]!r} is not in the request.")
        image = await service.checked_image(model, asked.upload, uploads[asked.upload])
    found: Found = await service.search(
        model, text=asked.text, image=image, find=asked.find, k=asked.k, where=asked.where
    )
    hits = found.by_score if asked.rerank else found.by_similarity
    return {
        "model": model.name,
        "find": asked.find,
        "searched": found.searched,
        "reranked": found.reranked if asked.rerank else 0,
        "exact": found.exact,
        "notes": found.notes,
        "hits": _hits(hits),
        **({"first_stage": _hits(found.by_similarity)} if asked.stages else {}),
    }


def _hits(hits: Sequence[Hit]) -> list[dict[str, Any]]:
    return [
        {
            "rank": rank,
            "id": hit.id,
            "score": hit.score,
            "probability": hit.probability,
            "similarity": hit.similarity,
            "metadata": hit.metadata,
        }
        for rank, hit in enumerate(hits, start=1)
    ]


async def embed(
    service: Service, model: ServedModel, asked: EmbedRequest, uploads: Mapping[str, Upload]
) -> dict[str, Any]:
    """Embed items; embeddings of stored items are read from the store."""
    items = len(asked.texts) + len(asked.images) + len(uploads)
    if not items:
        raise RefusedError(422, "invalid", "Nothing to embed: give texts, images or uploads.")
    service.check_size(asked.texts, items)
    service.check_texts(model, asked.texts)
    await service.check_images(asked.images)
    sent = await service.embed_uploads(model, uploads)
    texts = await service.embed_texts(model, asked.texts)
    images = await service.read_images(model, asked.images)
    return {
        "model": model.name,
        "text_dim": sum(tower.dim for tower in model.towers["text"]),
        "image_dim": sum(tower.dim for tower in model.towers["image"]),
        "texts": [model.pooled("text", one) for one in texts],
        "images": [model.pooled("image", one) for one in images],
        "uploads": {name: model.pooled("image", one) for name, one in sent.items()},
    }


async def _pairs(
    service: Service, model: ServedModel, asked: ScoreRequest | AnswerRequest, uploads: Mapping[str, Upload]
) -> list[ImagePair]:
    """Check pairs and insert the embeddings of uploads; sides that the model does not read are dropped."""
    pairs = asked.pairs
    if asked.sets is not None and not model.has_sets:
        raise RefusedError(
            422,
            "no_sets",
            f"The model {model.name!r} cannot return sets: no pairs were held out, or its targets are soft.",
        )
    if asked.doubt and not model.has_doubt:
        raise RefusedError(
            422,
            "no_doubt",
            f"The model {model.name!r} cannot measure doubt: that needs training examples, more than one answer, and "
            "a run of this version or later.",
        )
    # Keep the work per pair small: a request may have a thousand pairs.
    texts, images = [pair.text for pair in pairs], [pair.image for pair in pairs]
    given = [text for text in texts if text is not None] if None in texts else cast("list[str]", texts)
    service.check_size(given, len(pairs))
    sides = model.scorer.run.sides
    _check_sides(model, pairs, has_texts=len(given) == len(pairs), has_images=None not in images)
    if "text" not in sides:
        read = [""] * len(pairs)
    else:
        read = given  # every pair has a text
        service.check_texts(model, read)
    if "image" not in sides:
        return [("", text) for text in read]
    if None not in images:
        await service.check_images(cast("list[str]", images))
        return cast("list[ImagePair]", list(zip(images, read, strict=True)))
    await service.check_images([image for image in images if image is not None])
    for pair in pairs:
        if pair.upload is not None and pair.upload not in uploads:
            raise RefusedError(
                404,
                "unknown_upload",
                f"A pair names the upload {pair.upload[:80]!r}, which is not in the request.",
            )
    used = {pair.upload for pair in pairs}
    sent: dict[str, np.ndarray] = await service.embed_uploads(
        model, {name: content for name, content in uploads.items() if name in used}
    )
    found = [pair.image or "" if pair.upload is None else sent[pair.upload] for pair in pairs]
    return list(zip(found, read, strict=True))


async def _trust(
    service: Service,
    model: ServedModel,
    asked: ScoreRequest | AnswerRequest,
    pairs: list[ImagePair],
    results: list[dict[str, Any]],
) -> list[str]:
    """Add sets and doubt to results if requested; return notes on the sets."""
    if asked.doubt:
        for result, one in zip(results, await service.doubt(model, pairs), strict=True):
            result["doubt"] = one
    if asked.sets is None:
        return []
    name = "matches" if model.scorer.run.task == "matching" else "set"
    for result, one in zip(results, await service.sets(model, pairs, asked.sets), strict=True):
        result[name] = one
    return model.set_notes(asked.sets)


def _texts(pairs: Sequence[Pair]) -> list[str]:
    return [pair.text for pair in pairs if pair.text is not None]


def _check_sides(model: ServedModel, pairs: Sequence[Pair], *, has_texts: bool, has_images: bool) -> None:
    """Refuse pairs that lack a side that the model reads; ``has_images`` counts ids only, as pairs may name uploads."""
    sides = model.scorer.run.sides
    image_lacks = (
        "image" in sides and not has_images and any(pair.image is None and pair.upload is None for pair in pairs)
    )
    if not image_lacks and ("text" not in sides or has_texts):
        return
    reads = " and ".join(f"{side}s" for side in sides)
    needs = f"a pair names {EITHER_IMAGE}" if image_lacks else "a pair needs a 'text'"
    raise RefusedError(422, "invalid", f"The model {model.name!r} reads {reads}: {needs}.")
