"""Embed class names and descriptions as one vector per class, in a common space of images and texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from frevl.data.class_files import ClassList, doubtful_names, sentences_of
from frevl.encoders.interface import Encoder
from frevl.encoders.registry import load_encoder
from frevl.encoders.unreadable_texts import unread_sentence
from frevl.errors import UsageError
from frevl.models.inputs import mean_pool
from frevl.models.retrieval.first_stage import FirstStage
from frevl.runs.scorer import Scorer
from frevl.store.canaries import check_encoder
from frevl.store.reader import Store
from frevl.store.towers import Tower
from frevl.store.usable_pairs import unread_texts
from frevl.training.retrieval.two_tower import COMMON_SPACE, cosine_of, has_common_space

__all__ = ["NameVectors", "TextSpace", "name_vectors", "space_of_encoder", "space_of_run", "vectors_of_nameless"]

_TEXTS_AT_ONCE = 4_096  # 20,000 classes times 100 templates must not be in memory at once
_USUAL_SCALE = 100.0  # of CLIP and similar models, used if an import did not state it


@dataclass(frozen=True)
class TextSpace:
    """A common space of images and texts.

    Attributes:
        network: Maps image embeddings into the space.
        of_texts: Maps sentences to their ``(n, d)`` unit vectors.
        scale: The logit of a cosine of 1.
        known: Returns whether a sentence is available without an encoder.
        can_embed: Whether other sentences can be embedded.
        unread: Returns those of some texts whose letters or words the encoders do not know.
        towers: Names of the text towers.
        notes: Sentences for the user.
    """

    network: FirstStage
    of_texts: Callable[[Sequence[str]], Tensor]
    scale: float
    known: Callable[[str], bool]
    can_embed: bool
    unread: Callable[[Sequence[str]], list[str]]
    towers: tuple[str, ...]
    notes: list[str]


@dataclass(frozen=True)
class NameVectors:
    """Class names in a common space.

    Attributes:
        vectors: ``(classes, d)`` of unit length; zero for a class without names.
        named: ``(classes,)`` bool, whether a class has a name.
        space: The space that contains them.
        notes: Sentences for the user.
        doubts: Reasons to doubt every figure, to be said first.
    """

    vectors: Tensor
    named: Tensor
    space: TextSpace
    notes: list[str]
    doubts: list[str]


def space_of_run(store: Store, run: Scorer) -> TextSpace:
    """Return the space of a matching run with a first stage, such as a trained ``dual``."""
    network = run.network.first_stage
    if network is None:
        raise UsageError(
            f"--space: expected a matching run with a first stage (--model dual, cosine or auto), found "
            f"'{run.run.model}' of task '{run.run.task}' in {run.run.path}"
        )
    texts = store.positions("text")
    imported = any(store.towers[name].imported for name in run.run.towers["text"])

    def of_texts(sentences: Sequence[str]) -> Tensor:
        return torch.from_numpy(run.text_vectors(list(sentences)))

    first, towers = cast("FirstStage", network), [store.towers[name] for name in run.run.towers["text"]]

    def unread(names: Sequence[str]) -> list[str]:
        return unread_texts(store, names, towers, None if imported else lambda: run.encoders("text"))

    scale, named = float(first.scale.detach()), tuple(tower.name for tower in towers)
    return TextSpace(first, of_texts, scale, texts.__contains__, not imported, unread, named, [])


def space_of_encoder(store: Store, image_towers: Sequence[Tower]) -> TextSpace | None:
    """Return the common space of an encoder such as CLIP; None if its towers have none."""
    spaces = {tower.identity.get(COMMON_SPACE) for tower in image_towers} - {None}
    towers = [tower for tower in store.select_towers("text") if tower.identity.get(COMMON_SPACE) in spaces]
    if not has_common_space(image_towers, towers):
        return None
    network = cosine_of(image_towers, towers)
    positions, complete = store.positions("text"), _complete(store, towers)

    def known(sentence: str) -> bool:
        row = positions.get(sentence)
        return row is not None and bool(complete[row])

    def of_texts(sentences: Sequence[str]) -> Tensor:
        new = [sentence for sentence in sentences if not known(sentence)]
        found = dict(zip(new, _embedded(store, new, towers), strict=True)) if new else {}
        stored = [sentence for sentence in sentences if sentence not in found]
        if stored:
            values, mask = store.read("text", stored, towers)
            pooled = mean_pool(torch.from_numpy(values).float(), torch.from_numpy(mask))
            found.update(zip(stored, pooled, strict=True))
        with torch.no_grad():
            return network.text_vectors(torch.stack([found[sentence] for sentence in sentences]))

    scale, notes = float(network.scale.detach()), []
    if scale == 1.0:
        scale = _USUAL_SCALE
        notes.append(
            f"The logit scale of {', '.join(tower.name for tower in image_towers)} was not declared at import; "
            f"{_USUAL_SCALE:g}, CLIP's value, is used, and examples correct it."
        )
    can_embed = not any(tower.imported for tower in towers)

    def unread(names: Sequence[str]) -> list[str]:
        return unread_texts(store, names, towers, (lambda: _encoders(towers)) if can_embed else None)

    named = tuple(tower.name for tower in towers)
    return TextSpace(network, of_texts, scale, known, can_embed, unread, named, notes)


def name_vectors(classes: ClassList, space: TextSpace, templates: Sequence[str]) -> NameVectors:
    """Embed class names and descriptions and average them: the normalised mean of unit vectors.

    A name that is itself a text of the store is used without a template if its sentences are missing and cannot be
    embedded (imported vectors). Averaging over templates follows Radford et al. 2021, section 3.1.4.

    Raises:
        UsageError: A name is not in the store and cannot be embedded.
    """
    bare, lost = 0, list[str]()
    of_class: list[list[str]] = []
    for entry in classes.entries:
        sentences = sentences_of(entry, templates)
        if not space.can_embed:
            there = [sentence for sentence in sentences if space.known(sentence)]
            if not there:
                there = [name for name in entry.names if space.known(name)]
                bare += bool(there)
            if sentences and not there:
                raise UsageError(
                    f"{entry.place}: the text vectors of this store were imported, so '{sentences[0]:.80}' cannot be "
                    "embedded, and neither it nor the bare name is a text of the store; import vectors of the names "
                    "with frevl import --of texts, or give examples alone"
                )
            lost += [sentence for sentence in entry.descriptions if sentence not in there]
            sentences = there
        of_class.append(sentences)
    alike = _described_alike(classes, of_class)
    sums: Tensor | None = None
    flat = [(number, sentence) for number, sentences in enumerate(of_class) for sentence in sentences]
    for start in range(0, len(flat), _TEXTS_AT_ONCE):
        part = flat[start : start + _TEXTS_AT_ONCE]
        vectors = space.of_texts([sentence for _, sentence in part])
        if sums is None:
            sums = torch.zeros(len(of_class), vectors.shape[1])
        sums.index_add_(0, torch.tensor([number for number, _ in part]), vectors)
    named = torch.tensor([bool(sentences) for sentences in of_class])
    if sums is None:
        raise UsageError(f"{classes.source or 'classes'}: no class has a name or a description")
    words = list(dict.fromkeys(text for entry in classes.entries for text in (*entry.names, *entry.descriptions)))
    # Words alone, as a template that can be read would hide a name that cannot.
    unread = unread_sentence(space.unread(words), len(words), space.towers, "names and descriptions")
    doubts = [*([unread] if unread else []), *doubtful_names(classes), *alike]
    notes = [*space.notes]
    if bare:
        notes.append(f"{bare:,} names were used as stored, without a template.")
    if lost:
        notes.append(
            f"{len(lost):,} descriptions were left out, because the text vectors of this store were imported and no "
            f"other text can be embedded (the first: '{lost[0]:.80}')."
        )
    return NameVectors(F.normalize(sums, dim=1), named, space, notes, doubts)


def _described_alike(classes: ClassList, of_class: Sequence[Sequence[str]]) -> list[str]:
    first: dict[tuple[str, ...], str] = {}
    pairs = []
    for entry, sentences in zip(classes.entries, of_class, strict=True):
        other = first.setdefault(tuple(sentences), entry.label)
        if sentences and other != entry.label:
            pairs.append((other, entry.label))
    if not pairs:
        return []
    verb = "class is" if len(pairs) == 1 else "classes are"
    return [
        f"{len(pairs):,} {verb} described exactly like another one, so names cannot distinguish them (the first: "
        f"'{pairs[0][0]:.60}' and '{pairs[0][1]:.60}')."
    ]


def vectors_of_nameless(names: NameVectors, image_vectors: Tensor, labels: Tensor) -> Tensor:
    """Give classes without names a vector built from their examples (ours).

    Images and texts lie apart in a common space (the modality gap), so the mean of the examples cannot be compared with
    names. Instead, its direction from the mean of all examples is used, at the distance that names have from their
    mean.

    Args:
        names: The names, at least two of them.
        image_vectors: ``(n, d)`` unit vectors of the examples in the space.
        labels: ``(n,)`` int64, class of each example.

    Returns:
        ``(classes, d)`` unit vectors of all classes.
    """
    missing = (~names.named).nonzero()[:, 0]
    if not len(missing):
        return names.vectors
    centre = names.vectors[names.named].mean(dim=0)
    length = (names.vectors[names.named] - centre).norm(dim=1).mean()
    vectors, middle = names.vectors.clone(), image_vectors.mean(dim=0)
    for number in missing.tolist():
        direction = F.normalize(image_vectors[labels == number].mean(dim=0) - middle, dim=0)
        vectors[number] = F.normalize(centre + length * direction, dim=0)
    return vectors


def _complete(store: Store, towers: Sequence[Tower]) -> np.ndarray:
    """Return which texts of the store have an embedding by every tower."""
    states = store.states("text")
    complete: np.ndarray = np.all([states[f"has:{tower.name}"] for tower in towers], axis=0)
    return complete


def _encoders(towers: Sequence[Tower]) -> list[Encoder]:
    return [load_encoder(tower.encoders[0], tokens=tower.identity["tokens"]) for tower in towers]


def _embedded(store: Store, sentences: Sequence[str], towers: Sequence[Tower]) -> Tensor:
    """Embed sentences with the towers' encoders, after checking that these made the store."""
    parts = []
    for tower, encoder in zip(towers, _encoders(towers), strict=True):
        check_encoder(encoder, towers, str(store.path))
        own = encoder.embed_texts(list(sentences), tokens=True)
        values = torch.from_numpy(own.values.astype(tower.identity["dtype"])).float()
        parts.append(mean_pool(values, torch.from_numpy(own.mask)))
    return torch.cat(parts, dim=1)
